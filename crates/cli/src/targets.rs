//! Where a command may write, by one rule for all of them: folders that are missing are made, what stands there already stays
//! unless `--force` says otherwise, and what the command reads is never written over. All of it is checked before anything is
//! loaded. A file appears whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tch_flux::Error;

/// A file that is going to be written, and what says so: `--output`.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) flag: &'static str,
}

/// A file that is read, and what names it: `--image`.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) path: PathBuf,
    pub(super) flag: &'static str,
}

impl Input {
    pub(super) fn new(flag: &'static str, path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), flag }
    }
}

/// The temporary name of the file that is being written at present.
static UNFINISHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Checks that all targets can be written.
pub(super) fn check(targets: &[Target], inputs: &[Input], force: bool) -> anyhow::Result<()> {
    let mut places: BTreeMap<PathBuf, &'static str> = BTreeMap::new();
    for Target { path, flag } in targets {
        let name = path.display();
        if let Some(other) = places.insert(place(path), flag) {
            let text = match other == *flag {
                true => format!("{name}: two files of {flag} would have this name"),
                false => format!("{name}: {flag} needs another name than {other}"),
            };
            return Err(Error::Request(text).into());
        }
        check_file(path, flag, inputs, force)?;
    }
    let folders: BTreeMap<&Path, ()> = targets.iter().map(|target| (folder_of(&target.path), ())).collect();
    folders.into_keys().try_for_each(check_folder)
}

fn check_file(path: &Path, flag: &str, inputs: &[Input], force: bool) -> anyhow::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        // What its folder is says more.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(refused(path, error)),
    };
    // What a link points to may be gone.
    let behind = fs::metadata(path).ok();
    if behind.as_ref().unwrap_or(&there).is_dir() {
        let text = format!("this is a folder: name a file in it by {flag}");
        return Err(refused(path, io::Error::new(ErrorKind::IsADirectory, text)));
    }
    if let Some(input) = inputs.iter().find(|input| is_same(path, behind.as_ref(), &input.path)) {
        let text = format!(
            "{}: this is what {} reads, so {flag} does not write it: give another name",
            path.display(),
            input.flag
        );
        return Err(Error::Request(text).into());
    }
    if behind.is_some_and(|behind| !behind.is_file()) {
        let text = format!("this is no ordinary file: give another name by {flag}");
        return Err(refused(path, io::Error::new(ErrorKind::AlreadyExists, text)));
    }
    if !force {
        let text = format!("this stands there already: --force replaces it, or give another name by {flag}");
        return Err(refused(path, io::Error::new(ErrorKind::AlreadyExists, text)));
    }
    Ok(())
}

/// Checks that files can be made in a folder, which may not be there yet.
pub(super) fn check_folder(folder: &Path) -> anyhow::Result<()> {
    let mut nearest = folder;
    let there = loop {
        match fs::metadata(nearest) {
            Ok(there) => break there,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(refused(folder, error)),
        }
        if fs::symlink_metadata(nearest).is_ok() {
            let text = format!("{} is a link to nowhere", nearest.display());
            return Err(refused(folder, io::Error::new(ErrorKind::NotFound, text)));
        }
        nearest = nearest.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    };
    if !there.is_dir() {
        let text = format!("{} is a file, so there is no folder of this name", nearest.display());
        return Err(refused(folder, io::Error::new(ErrorKind::NotADirectory, text)));
    }
    // No permission says for certain whether a file can be made; making one does.
    let trial = nearest.join(unused("trial"));
    match File::options().write(true).create_new(true).open(&trial) {
        Ok(_) => fs::remove_file(&trial).map_err(|error| refused(folder, error)),
        Err(error) => {
            let text = format!("no file can be written there ({error}): name another folder");
            Err(refused(folder, io::Error::new(error.kind(), text)))
        }
    }
}

/// Makes the folders of all targets.
pub(super) fn make_folders(targets: &[Target]) -> anyhow::Result<()> {
    targets.iter().map(|target| folder_of(&target.path)).try_for_each(make_folder)
}

pub(super) fn make_folder(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).map_err(|error| refused(folder, error))
}

/// Writes a whole file under its name. Without `force`, a file that came to stand there since it was checked stays: the new
/// one then gets the next free name, which is returned.
pub(super) fn save(path: &Path, bytes: &[u8], force: bool) -> anyhow::Result<PathBuf> {
    let part = path.with_file_name(unused("part"));
    set_unfinished(Some(part.clone()));
    let write = || {
        let mut file = File::options().write(true).create_new(true).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if force { fs::rename(&part, path).map(|()| path.to_path_buf()) } else { place_beside(&part, path) }
    };
    let written = write();
    if written.is_err() {
        // The error that led here is the one to tell.
        let _ = fs::remove_file(&part);
    }
    set_unfinished(None);
    written.map_err(|error| refused(path, error))
}

/// Removes a file that is written in part, for a process that ends at once.
pub(super) fn remove_unfinished() {
    if let Ok(mut unfinished) = UNFINISHED.try_lock()
        && let Some(part) = unfinished.take()
    {
        // There is nobody left to tell.
        let _ = fs::remove_file(part);
    }
}

fn set_unfinished(part: Option<PathBuf>) {
    if let Ok(mut unfinished) = UNFINISHED.lock() {
        *unfinished = part;
    }
}

/// Moves a whole file to its name, or where that is taken to the next free one.
fn place_beside(part: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut to = path.to_path_buf();
    for number in 1.. {
        // A link is made only where nothing stands, which nobody can come before.
        match fs::hard_link(part, &to) {
            Ok(()) => {
                fs::remove_file(part)?;
                break;
            }
            Err(_) if fs::symlink_metadata(&to).is_ok() => to = numbered(path, number),
            // Some file systems know no links.
            Err(_) => {
                fs::rename(part, &to)?;
                break;
            }
        }
    }
    Ok(to)
}

/// Returns `picture-1.png` for `picture.png`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{number}{ending}"))
}

/// Returns a name that no other file has.
fn unused(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(".tch-flux.{}.{}.{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Returns the same path for all ways to write it.
fn place(path: &Path) -> PathBuf {
    let folder = folder_of(path);
    let folder = folder.canonicalize().or_else(|_| std::path::absolute(folder));
    folder.unwrap_or_default().join(path.file_name().unwrap_or_default())
}

/// Whether both are one file, by whatever names and links.
fn is_same(path: &Path, behind: Option<&Metadata>, input: &Path) -> bool {
    let (Some(behind), Ok(read)) = (behind, fs::metadata(input)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if (behind.dev(), behind.ino()) == (read.dev(), read.ino()) {
            return true;
        }
    }
    let _ = (behind, read);
    path.canonicalize().ok().zip(input.canonicalize().ok()).is_some_and(|(a, b)| a == b)
}

/// Returns an error of the system with the whole name of the file.
fn refused(path: &Path, source: io::Error) -> anyhow::Error {
    Error::Io { path: path.to_path_buf(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(paths: &[PathBuf]) -> Vec<Target> {
        paths.iter().map(|path| Target { path: path.clone(), flag: "--output" }).collect()
    }

    fn says(targets: &[Target], inputs: &[Input], force: bool) -> String {
        check(targets, inputs, force).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn what_stands_there_stays_unless_it_is_forced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a.png"), "a").unwrap();
        fs::create_dir(at("b.png")).unwrap();
        assert_eq!(says(&targets(&[at("new.png"), at("x/y/new.png")]), &[], false), "");
        assert!(says(&targets(&[at("a.png")]), &[], false).contains("a.png: this stands there already"));
        assert_eq!(says(&targets(&[at("a.png")]), &[], true), "");
        for force in [false, true] {
            assert!(says(&targets(&[at("b.png")]), &[], force).contains("this is a folder"));
            assert!(says(&targets(&[at("a.png/c.png")]), &[], force).contains("is a file"));
            let twice = targets(&[at("n.png"), at("./n.png")]);
            assert!(says(&twice, &[], force).contains("two files of --output"));
            assert!(says(&targets(&[at(&"n".repeat(300))]), &[], force).contains("nnn: "));
        }
        assert!(!at("x").exists(), "nothing was made");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing stays of the trials");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_read_is_never_written_by_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("in.png"), "in").unwrap();
        fs::create_dir(at("sub")).unwrap();
        std::os::unix::fs::symlink(at("in.png"), at("soft.png")).unwrap();
        std::os::unix::fs::symlink(at("sub"), at("way")).unwrap();
        fs::hard_link(at("in.png"), at("sub/hard.png")).unwrap();
        let inputs = [Input::new("--image", at("in.png"))];
        for name in ["in.png", "soft.png", "sub/hard.png", "sub/../in.png", "way/hard.png"] {
            for force in [false, true] {
                assert!(says(&targets(&[at(name)]), &inputs, force).contains("what --image reads"), "{name}");
            }
        }
        std::os::unix::fs::symlink(at("gone"), at("dangling.png")).unwrap();
        assert!(says(&targets(&[at("dangling.png")]), &inputs, false).contains("already"));
        std::os::unix::fs::symlink(at("gone"), at("dangling")).unwrap();
        assert!(says(&targets(&[at("dangling/x.png")]), &inputs, false).contains("a link to nowhere"));
        let twice = targets(&[at("sub/n.png"), at("way/n.png")]);
        assert!(says(&twice, &[], false).contains("two files"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_that_takes_no_files_is_named_whole() {
        use std::os::unix::fs::PermissionsExt;
        let said = says(&targets(&["/proc/x.png".into()]), &[], false);
        assert!(said.starts_with("/proc: no file can be written there"), "{said}");
        let folder = tempfile::tempdir().unwrap();
        let shut = folder.path().join("shut");
        fs::create_dir(&shut).unwrap();
        fs::set_permissions(&shut, fs::Permissions::from_mode(0o555)).unwrap();
        // Root may write everywhere.
        if fs::write(shut.join("x"), "").is_err() {
            let said = says(&targets(&[shut.join("y/x.png")]), &[], false);
            assert!(said.contains("no file can be written there"), "{said}");
        }
    }

    #[test]
    fn a_file_is_whole_and_takes_the_place_of_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        assert_eq!(save(&path, b"one", false).unwrap(), path);
        assert_eq!(save(&path, b"two", false).unwrap(), folder.path().join("a-1.png"));
        assert_eq!(save(&path, b"three", false).unwrap(), folder.path().join("a-2.png"));
        assert_eq!(save(&path, b"four", true).unwrap(), path);
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        assert_eq!(
            (&read("a.png")[..], &read("a-1.png")[..], &read("a-2.png")[..]),
            (&b"four"[..], &b"two"[..], &b"three"[..])
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        let gone = save(&folder.path().join("no/b.png"), b"", true).unwrap_err().to_string();
        assert!(gone.contains("no/b.png: "), "{gone}");
        // A name as long as the system allows needs no longer one beside it.
        let long = folder.path().join(format!("{}.png", "n".repeat(251)));
        assert_eq!(save(&long, b"", false).unwrap(), long);
    }
}
