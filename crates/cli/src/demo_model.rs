//! The small model that is drawn with where none is named.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tch_flux::hub::{Hub, RemoteFile};

use super::cache;
use super::hub::DownloadProgress;
use super::progress::Verbosity;

/// What the model's folder holds: a SHA-256, a number of bytes and a name on each line.
const FILES: &str = include_str!("demo_model.txt");

/// Returns the model's folder: the repository's, or one in the cache, where it is fetched once.
pub(super) fn folder(verbosity: Verbosity) -> anyhow::Result<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny");
    if is_whole(&beside) {
        return Ok(beside);
    }
    let cached = cache::folder()?.join(format!("tiny-{}", env!("CARGO_PKG_VERSION")));
    if !is_whole(&cached) {
        let address = std::env::var("TCH_FLUX_TINY_URL").ok();
        let base = address.or_else(published).context(
            "no --model was given, and the small model is not here: clone the repository, or name a folder with \
             --model, or the address of the model's folder in TCH_FLUX_TINY_URL",
        )?;
        fetch(&Hub::from_env()?, &base, &cached, verbosity)
            .with_context(|| format!("fetching the small model from {base}"))?;
    }
    Ok(cached)
}

/// Returns where the repository publishes it, if the crate says where that is.
fn published() -> Option<String> {
    let repository = env!("CARGO_PKG_REPOSITORY");
    (!repository.is_empty()).then(|| format!("{repository}/raw/v{}/fixtures/tiny", env!("CARGO_PKG_VERSION")))
}

fn files() -> Vec<RemoteFile<'static>> {
    let file = |line: &'static str| {
        let mut words = line.split_ascii_whitespace();
        let (sha256, size, name) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        Some(RemoteFile { name, size, sha256 })
    };
    FILES.lines().filter_map(file).collect()
}

/// Whether every file is there; their contents were checked when they came.
fn is_whole(folder: &Path) -> bool {
    files().iter().all(|file| folder.join(file.name).is_file())
}

/// Fetches every file, checks it, and puts the whole folder in place at once.
fn fetch(hub: &Hub, base: &str, folder: &Path, verbosity: Verbosity) -> anyhow::Result<()> {
    let parent = folder.parent().context("the cache folder has no parent")?;
    let beside = parent.join(format!(".tiny.{}.part", std::process::id()));
    fs::create_dir_all(&beside).with_context(|| beside.display().to_string())?;
    let mut progress = DownloadProgress::new(verbosity);
    let fetched = hub.fetch_files(base, &files(), &beside, &mut |event| progress.show(event));
    let placed = fetched.map_err(anyhow::Error::from).and_then(|()| match fs::rename(&beside, folder) {
        // Another process was quicker; its folder is as good.
        Err(_) if is_whole(folder) => Ok(()),
        other => other.with_context(|| folder.display().to_string()),
    });
    if beside.exists() {
        fs::remove_dir_all(&beside).with_context(|| beside.display().to_string())?;
    }
    placed
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    const QUIET: Verbosity = Verbosity { bars: false, warnings: false };

    /// What becomes of a file on the way; `None` for one that is not there.
    type Change = fn(Vec<u8>) -> Option<Vec<u8>>;

    /// Serves the small model on the loopback, each file through `change`, to `requests` requests.
    fn serve(requests: usize, change: Change) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(requests) {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                let name = first.split(' ').nth(1).unwrap().trim_start_matches("/model/");
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny").join(name);
                let (status, body) = match fs::read(path).ok().and_then(change) {
                    Some(body) => ("200 OK", body),
                    None => ("404 Not Found", Vec::new()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                // The client may have had enough.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        format!("http://{address}/model/")
    }

    #[test]
    fn fetches_the_whole_model_once() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("new/tiny");
        fetch(&Hub::new(cache.path()), &serve(files().len(), Some), &folder, QUIET).unwrap();
        assert!(is_whole(&folder));
        assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1, "nothing else stays");
    }

    #[test]
    fn refuses_what_was_changed_on_the_way_and_leaves_nothing() {
        let changes: [Change; 3] = [
            |mut bytes| {
                bytes[0] ^= 1;
                Some(bytes)
            },
            |mut bytes| {
                bytes.pop();
                Some(bytes)
            },
            |_| None,
        ];
        for change in changes {
            let cache = tempfile::tempdir().unwrap();
            let folder = cache.path().join("tiny");
            assert!(fetch(&Hub::new(cache.path()), &serve(1, change), &folder, QUIET).is_err());
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "nothing half-fetched stays");
        }
    }
}
