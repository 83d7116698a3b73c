//! What an embedding binary needs: the folder that tch-flux publishes, as its run path, and libtorch named once so that
//! the linker keeps CUDA.

fn main() {
    if let Ok(lib) = std::env::var("DEP_TCH_FLUX_LIBTORCH_LIB") {
        for flag in [&format!("-Wl,-rpath,{lib}"), "-Wl,--no-as-needed", &format!("-L{lib}"), "-ltorch"] {
            println!("cargo:rustc-link-arg={flag}");
        }
    }
}
