//! Compiles the C++ file of `src/shim.rs` and tells the linker where libtorch is.
//!
//! A library cannot hand link arguments on to the binary that embeds it, so the folder is published as
//! `DEP_TCH_FLUX_LIBTORCH_LIB` for that binary's build script (`examples/embed/build.rs`).

use std::path::{Path, PathBuf};
use std::{env, process};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/shim.cpp");
    // File by file: the Rust files beside them are none of this.
    let files = std::fs::read_dir("src/ops/cpu").into_iter().flatten().flatten().map(|entry| entry.path());
    let kernels =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "cpp" || end == "inl" || end == "h");
    for file in files.filter(kernels) {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    if env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        return;
    }
    // torch-sys publishes its folder to direct dependents, under the name of its `links` key, on Linux and macOS.
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        eprintln!("torch-sys published no libtorch folder: this target is not supported");
        process::exit(1);
    };
    let amx = compile_kernels();
    compile(&lib, amx);
    link(&lib);
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-env=TCH_FLUX_LIBTORCH_LIB={}", lib.display());
}

fn compile(lib: &Path, amx: bool) {
    let root = env::var_os("LIBTORCH_INCLUDE")
        .map(PathBuf::from)
        .or_else(|| lib.parent().map(Path::to_path_buf))
        .unwrap_or_default();
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into());
    let mut build = cc::Build::new();
    if is_x86() {
        build.define("TCH_FLUX_X86", None);
    }
    if amx {
        build.define("TCH_FLUX_AMX", None);
    }
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .file("src/shim.cpp")
        .file("src/ops/cpu/dispatch.cpp")
        .file("src/ops/cpu/threads.cpp")
        .compile("tch_flux_shim");
}

fn is_x86() -> bool {
    env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64")
}

/// The kernels, once for each instruction set: which of them runs is decided when the program does. Always optimised,
/// since a debug build of them would take minutes for what is tested in seconds. Says whether the compiler knows AMX.
fn compile_kernels() -> bool {
    let avx512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"];
    let bf16 = [&avx512[..], &["-mavx512vnni", "-mavx512bf16"]].concat();
    let tiles = ["-mamx-tile", "-mamx-bf16", "-mamx-int8"];
    let mut builds = vec![("plain", vec![])];
    let probe = cc::Build::new();
    let amx = is_x86() && tiles.iter().all(|flag| probe.is_flag_supported(flag).unwrap_or(false));
    if is_x86() {
        builds.push(("avx2", vec!["-mavx2", "-mfma"]));
        builds.push(("avx512", avx512.to_vec()));
        builds.push(("avx512_bf16", bf16.clone()));
    }
    if amx {
        builds.push(("amx", [&bf16[..], &tiles].concat()));
    }
    std::thread::scope(|scope| {
        for (name, flags) in builds {
            scope.spawn(move || compile_build(name, &flags));
        }
    });
    amx
}

fn compile_build(name: &str, flags: &[&str]) {
    let mut build = cc::Build::new();
    // GCC warns of what its own headers leave unset.
    build
        .warnings(false)
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .debug(false)
        .file(format!("src/ops/cpu/{name}.cpp"));
    for flag in flags {
        build.flag(flag);
    }
    build.compile(&format!("tch_flux_kernels_{name}"));
}

fn link(lib: &Path) {
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // libtorch.so names libtorch_cuda.so; nothing else does, so --as-needed would drop CUDA without a word.
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-L{}", lib.display());
        println!("cargo:rustc-link-arg=-ltorch");
        println!("cargo:rustc-link-arg=-Wl,--as-needed");
    }
}
