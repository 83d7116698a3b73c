//! What a test needs beyond the crate. Without it the test says that it was skipped, past the harness, and passes; it fails
//! where `TCH_FLUX_REQUIRE`, names with commas between, has the name.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Cuda;

/// What was found, or a word about what is missing.
pub fn require<T>(name: &str, found: Result<T, &str>) -> Option<T> {
    let missing = match found {
        Ok(found) => return Some(found),
        Err(missing) => missing,
    };
    let required = std::env::var("TCH_FLUX_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|other| other.trim() == name);
    assert!(!required, "TCH_FLUX_REQUIRE names {name}, and {missing}");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // `println!` of a test that passes is swallowed.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {missing}");
    None
}

/// The Python that has the reference packages.
pub fn python() -> Option<Command> {
    let python = std::env::var_os("TCH_FLUX_PYTHON").map(Command::new);
    require("python", python.ok_or("the reference packages come with scripts/with-libtorch --reference"))
}

/// A program on the path, or where administrators' programs are.
pub fn program(name: &str, names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]).collect();
    let mut files = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    require(
        name,
        files.find(|file| file.is_file()).ok_or(&format!("there is no {} on the PATH", names.join(" or "))),
    )
}

/// The first CUDA device, for one test alone, which may fill it.
pub fn cuda() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    require("cuda", if Cuda::device_count() > 0 { Ok(()) } else { Err("there is no CUDA device") })?;
    Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}
