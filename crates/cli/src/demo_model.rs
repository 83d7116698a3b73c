//! The small model that is drawn with where none is named.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use super::cache;

/// What the model's folder holds: a SHA-256 and a name on each line.
const FILES: &str = include_str!("demo_model.sha256");
/// No file of it is larger.
const MAX_FILE: u64 = 16_000_000;

/// Returns the model's folder: the repository's, or one in the cache, where it is fetched once.
pub(super) fn folder() -> anyhow::Result<PathBuf> {
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
        fetch(&base, &cached).with_context(|| format!("fetching the small model from {base}"))?;
    }
    Ok(cached)
}

/// Returns where the repository publishes it, if the crate says where that is.
fn published() -> Option<String> {
    let repository = env!("CARGO_PKG_REPOSITORY");
    (!repository.is_empty()).then(|| format!("{repository}/raw/v{}/fixtures/tiny", env!("CARGO_PKG_VERSION")))
}

fn files() -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.lines().filter_map(|line| line.split_once("  "))
}

/// Whether every file is there; their contents were checked when they came.
fn is_whole(folder: &Path) -> bool {
    files().next().is_some() && files().all(|(_, name)| folder.join(name).is_file())
}

/// Fetches every file, checks it, and puts the whole folder in place at once.
fn fetch(base: &str, folder: &Path) -> anyhow::Result<()> {
    let parent = folder.parent().context("the cache folder has no parent")?;
    let beside = parent.join(format!(".tiny.{}.part", std::process::id()));
    fs::create_dir_all(&beside).with_context(|| beside.display().to_string())?;
    let fetched = files().try_for_each(|(digest, name)| fetch_file(base, &beside, digest, name));
    let placed = fetched.and_then(|()| match fs::rename(&beside, folder) {
        // Another process was quicker; its folder is as good.
        Err(_) if is_whole(folder) => Ok(()),
        other => other.with_context(|| folder.display().to_string()),
    });
    if beside.exists() {
        fs::remove_dir_all(&beside).with_context(|| beside.display().to_string())?;
    }
    placed
}

fn fetch_file(base: &str, folder: &Path, digest: &str, name: &str) -> anyhow::Result<()> {
    let url = format!("{}/{name}", base.trim_end_matches('/'));
    let mut response = ureq::get(&url).call().with_context(|| url.clone())?;
    let mut bytes = Vec::new();
    let mut body = response.body_mut().as_reader().take(MAX_FILE + 1);
    body.read_to_end(&mut bytes).with_context(|| url.clone())?;
    ensure!(bytes.len() as u64 <= MAX_FILE, "{url}: larger than {MAX_FILE} bytes");
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != digest {
        bail!("{url}: its SHA-256 is {found}, not {digest}");
    }
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    fs::write(&path, bytes).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

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
        fetch(&serve(files().count(), Some), &folder).unwrap();
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
            assert!(fetch(&serve(1, change), &folder).is_err());
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "nothing half-fetched stays");
        }
    }
}
