//! What the program keeps in the user's cache.

use std::path::PathBuf;

use anyhow::Context;

/// Returns the folder of this program in the user's cache.
pub(super) fn folder() -> anyhow::Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").or_else(|| variable("USERPROFILE"));
    let base = match std::env::consts::OS {
        "windows" => variable("LOCALAPPDATA"),
        "macos" => home().map(|home| home.join("Library/Caches")),
        _ => variable("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache"))),
    };
    Ok(base.context("no cache folder: HOME is not set")?.join("tch-flux"))
}

/// Returns where compiled CUDA kernels are kept, if the user has a cache folder.
pub(super) fn kernels() -> Option<PathBuf> {
    folder().ok().map(|folder| folder.join("kernels"))
}
