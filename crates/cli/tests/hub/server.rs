//! A hub on the loopback: lists, files, redirects to a second server that has the large ones, and faults on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files above this lie on the second server, and have a SHA-256 instead of git's hash.
pub const LARGE: usize = 4096;
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const NAME: &str = "test/tiny";

/// What goes wrong with an answer.
#[derive(Clone)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// A length is not announced, and the connection ends after so many bytes.
    CutWithoutLength(usize),
    /// Nothing comes any more after so many bytes.
    Stall(usize),
    /// The whole file, whatever was asked for.
    IgnoreRange,
    /// Other bytes, as many.
    Corrupt,
    /// More bytes than listed.
    Longer,
    /// Nothing is answered.
    Hang,
    /// A status with headers, instead of the answer.
    Status(u16, &'static [(&'static str, &'static str)]),
    /// A redirect.
    Redirect(String),
}

/// A question that was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub is_hub: bool,
}

pub struct State {
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Whether the list says sizes and hashes.
    pub says_blobs: bool,
    pub log: Vec<Asked>,
    /// For questions with this in their first line, so many times.
    faults: Vec<(String, usize, Fault)>,
}

pub struct Server {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let (hub, store) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let [url, other] =
            [&hub, &store].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        let state = Arc::new(Mutex::new(State {
            commit: COMMIT.into(),
            files,
            says_blobs: true,
            log: Vec::new(),
            faults: Vec::new(),
        }));
        for (listener, is_hub) in [(hub, true), (store, false)] {
            let (state, other) = (Arc::clone(&state), other.clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, other) = (Arc::clone(&state), other.clone());
                    // The client may have had enough of it.
                    thread::spawn(move || answer(stream, &state, is_hub, &other).ok());
                }
            });
        }
        Self { url, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn fault(&self, question: &str, times: usize, fault: Fault) {
        self.state().faults.push((question.into(), times, fault));
    }

    /// The questions so far, which are forgotten.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().log)
    }

    pub fn hash(&self, name: &str) -> String {
        hash(&self.state().files[name])
    }
}

/// As the hub names a file's bytes.
pub fn hash(bytes: &[u8]) -> String {
    let digest = if bytes.len() > LARGE { Sha256::digest(bytes).to_vec() } else { git_hash(bytes) };
    hex(&digest)
}

fn git_hash(bytes: &[u8]) -> Vec<u8> {
    Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl State {
    fn fault_for(&mut self, line: &str) -> Option<Fault> {
        let (_, times, fault) =
            self.faults.iter_mut().find(|(part, n, _)| *n > 0 && line.contains(part.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }

    fn list(&self) -> Value {
        let files = self.files.iter().map(|(name, bytes)| match bytes.len() > LARGE {
            _ if !self.says_blobs => json!({ "rfilename": name }),
            true => json!({
                "rfilename": name, "size": bytes.len(), "blobId": hex(&git_hash(b"a note")),
                "lfs": { "sha256": hash(bytes), "size": bytes.len(), "pointerSize": 134 },
            }),
            false => json!({ "rfilename": name, "size": bytes.len(), "blobId": hash(bytes) }),
        });
        json!({ "id": NAME, "sha": self.commit, "siblings": files.collect::<Vec<_>>() })
    }

    /// The list as Python asks for it.
    fn tree(&self) -> Value {
        let files = self.files.iter().map(|(name, bytes)| match bytes.len() > LARGE {
            true => json!({
                "type": "file", "path": name, "size": bytes.len(), "oid": hex(&git_hash(b"a note")),
                "lfs": { "oid": hash(bytes), "size": bytes.len(), "pointerSize": 134 },
            }),
            false => json!({ "type": "file", "path": name, "size": bytes.len(), "oid": hash(bytes) }),
        });
        files.collect()
    }

    fn knows(&self, revision: &str) -> bool {
        ["main", "v1", &self.commit].contains(&revision)
    }
}

type Headers = Vec<(String, String)>;

/// Status, headers and body of what is asked for.
fn respond(state: &State, path: &str, is_hub: bool, other: &str) -> (u16, Headers, Vec<u8>) {
    let header = |name: &str, value: &str| (name.to_string(), value.to_string());
    let none = |code: &str| (404, vec![header("X-Error-Code", code)], Vec::new());
    if !is_hub {
        let bytes = state.files.values().find(|bytes| path.ends_with(&hash(bytes)));
        return bytes.map_or_else(
            || none(""),
            |bytes| (200, vec![header("ETag", "\"of-the-store\"")], bytes.clone()),
        );
    }
    let path = path.split('?').next().unwrap();
    let as_json = |value: Value| {
        (200, vec![header("Content-Type", "application/json")], value.to_string().into_bytes())
    };
    if let Some(rest) = path.strip_prefix("/api/models/test/tiny/") {
        return match rest.split_once('/') {
            Some(("revision", revision)) if state.knows(revision) => as_json(state.list()),
            Some(("tree", revision)) if state.knows(revision) => as_json(state.tree()),
            _ => none("RevisionNotFound"),
        };
    }
    let Some(rest) = path.strip_prefix("/test/tiny/resolve/") else { return none("RepoNotFound") };
    let (revision, name) = rest.split_once('/').unwrap();
    let Some(bytes) = state.files.get(name).filter(|_| state.knows(revision)) else {
        return none("EntryNotFound");
    };
    let mut headers = vec![header("X-Repo-Commit", &state.commit)];
    if bytes.len() > LARGE {
        headers.push(header("X-Linked-Size", &bytes.len().to_string()));
        headers.push(header("X-Linked-ETag", &format!("\"{}\"", hash(bytes))));
        headers.push(header("Location", &format!("{other}/store/{}", hash(bytes))));
        return (302, headers, b"Found. Redirecting".to_vec());
    }
    headers.push(header("ETag", &format!("\"{}\"", hash(bytes))));
    (200, headers, bytes.clone())
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, is_hub: bool, other: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(line) = lines.next().transpose()? else { return Ok(()) };
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    let (method, path) = line.split_once(' ').unwrap();
    let path = path.split(' ').next().unwrap();
    let from =
        headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    let ((mut status, mut head, mut body), fault) = {
        let mut state = state.lock().unwrap();
        state.log.push(Asked { line: line.clone(), headers, is_hub });
        (respond(&state, path, is_hub, other), state.fault_for(&line))
    };
    match &fault {
        Some(Fault::Status(other, headers)) => {
            (status, body) = (*other, b"no".to_vec());
            head = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        }
        Some(Fault::Redirect(to)) => (status, head) = (307, vec![("Location".into(), to.clone())]),
        Some(Fault::Corrupt) => body.iter_mut().for_each(|byte| *byte ^= 1),
        Some(Fault::Longer) => body.push(0),
        Some(Fault::Hang) => thread::sleep(Duration::from_secs(3)),
        _ => {}
    }
    let total = body.len();
    if let Some(from) = from.filter(|_| status == 200 && !matches!(fault, Some(Fault::IgnoreRange))) {
        if from < total {
            (status, body) = (206, body.split_off(from));
            head.push(("Content-Range".into(), format!("bytes {from}-{}/{total}", total - 1)));
        } else {
            (status, body) = (416, Vec::new());
        }
    }
    let mut text = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
    if !matches!(fault, Some(Fault::CutWithoutLength(_))) {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    stream.write_all(format!("{text}\r\n").as_bytes())?;
    let sent = match fault {
        Some(Fault::Cut(n) | Fault::CutWithoutLength(n) | Fault::Stall(n)) => n.min(body.len()),
        _ => body.len(),
    };
    if method != "HEAD" {
        stream.write_all(&body[..sent])?;
    }
    stream.flush()?;
    if matches!(fault, Some(Fault::Stall(_))) {
        thread::sleep(Duration::from_secs(30));
    }
    Ok(())
}
