//! The cache on the disk, in the layout that Python's `huggingface_hub` reads and writes.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::Plan;
use super::{Hub, Repository, files, is_commit};
use crate::error::{Error, HubProblem, Result};

/// The folder of one repository in the cache.
pub(super) struct Store {
    repository: Repository,
    cache: PathBuf,
    root: PathBuf,
    locks: PathBuf,
    symlinks: bool,
}

impl Store {
    pub(super) fn new(hub: &Hub, repository: &Repository) -> Self {
        let name = repository.folder_name();
        Self {
            repository: repository.clone(),
            root: hub.cache.join(&name),
            locks: hub.cache.join(".locks").join(name),
            cache: hub.cache.clone(),
            symlinks: hub.symlinks,
        }
    }

    /// A file of the repository, as errors name it.
    pub(super) fn shown(&self, name: &str) -> String {
        format!("{}: {name}", self.repository)
    }

    /// Where the files of a commit have their names.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Where the bytes with this hash lie.
    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.root.join("blobs").join(hash)
    }

    /// What a plan makes of the revision, if every file of it is here.
    pub(super) fn planned<T>(&self, plan: &Plan<T>) -> Result<T> {
        let missing =
            |what: String| Error::Hub { what, problem: HubProblem::Offline { cache: self.cache.clone() } };
        let commit = self.commit().ok_or_else(|| missing(self.repository.to_string()))?;
        let snapshot = self.snapshot(&commit);
        let names = files_in(&snapshot);
        let shown = self.repository.to_string();
        let (parts, needed) = plan(Path::new(&shown), &snapshot, &names).map_err(|e| match e {
            Error::MissingPart { path, expected, .. } => missing(format!("{}: {expected}", path.display())),
            other => other,
        })?;
        files::for_each(&snapshot, &needed, &mut |name| match snapshot.join(name).is_file() {
            true => Ok(()),
            false => Err(missing(self.shown(name))),
        })?;
        Ok(parts)
    }

    /// The commit that the revision was when it was last asked for.
    fn commit(&self) -> Option<String> {
        if let Some(commit) = self.repository.commit() {
            return Some(commit.to_string());
        }
        let text = fs::read_to_string(self.reference()).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    fn reference(&self) -> PathBuf {
        self.root.join("refs").join(&self.repository.revision)
    }

    /// Notes which commit the revision is.
    pub(super) fn remember(&self, commit: &str) -> Result<()> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference();
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
            let beside = beside(&path);
            fs::write(&beside, commit)?;
            fs::rename(&beside, &path)
        };
        match write() {
            // Whoever may only read the cache has all files by now, and can do without the note.
            Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                Ok(())
            }
            written => written.map_err(Error::io(&path)),
        }
    }

    /// Waits until nobody else writes these bytes, Python included; `waiting` is called if that is not at once. `None`
    /// where the file system knows no locks.
    pub(super) fn lock(&self, hash: &str, waiting: impl FnOnce() -> Result<()>) -> Result<Option<File>> {
        let path = self.locks.join(format!("{hash}.lock"));
        fs::create_dir_all(&self.locks).map_err(Error::io(&self.locks))?;
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io(&path))?;
        let locked = match file.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                waiting()?;
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
        match locked {
            Ok(()) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(Error::io(&path)(error)),
        }
    }

    /// Gives bytes that are here a name in a snapshot.
    pub(super) fn link(&self, commit: &str, name: &str, hash: &str) -> Result<()> {
        let (path, blob) = (self.snapshot(commit).join(name), self.blob(hash));
        let place = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
            let beside = beside(&path);
            // Out of the folders of the name, of the commit, and of `snapshots`.
            let up = "../".repeat(name.matches('/').count() + 2);
            let linked = match self.symlinks {
                true => symlink(format!("{up}blobs/{hash}").as_ref(), &beside),
                false => Err(ErrorKind::Unsupported.into()),
            };
            match linked.or_else(|_| fs::hard_link(&blob, &beside)) {
                Ok(()) => fs::rename(&beside, &path),
                // A copy would need the room twice.
                Err(_) => fs::rename(&blob, &path),
            }
        };
        place().map_err(Error::io(&path))
    }
}

/// A name in the same folder that nobody else uses.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()));
    // One of a process that was killed and had our number.
    let _ = fs::remove_file(&beside);
    beside
}

/// Every file under a folder, named from there with `/`. Links that lead nowhere are none.
fn files_in(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(files_in(&entry.path()).iter().map(|inner| format!("{name}/{inner}")));
        } else if entry.path().is_file() {
            names.push(name);
        }
    }
    names
}

#[cfg(unix)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn symlink(to: &Path, at: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to, at)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}
