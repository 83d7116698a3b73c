//! What a binary that embeds tch-flux needs: see `examples/embed/build.rs`.

fn main() {
    if let Ok(lib) = std::env::var("DEP_TCH_FLUX_LIBTORCH_LIB") {
        for flag in [&format!("-Wl,-rpath,{lib}"), "-Wl,--no-as-needed", &format!("-L{lib}"), "-ltorch"] {
            println!("cargo:rustc-link-arg={flag}");
        }
    }
}
