//! One file from the hub into the cache.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::Response;

use super::cache::Store;
use super::client::{Client, Hash, Listed, Listing, Patience};
use super::{Event, tell};
use crate::error::{Error, HubProblem, Result};

const PIECE: usize = 1 << 18;

/// A commit on its way into the cache.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) store: &'a Store,
    pub(super) listing: &'a Listing,
    pub(super) retries: u32,
    pub(super) watch: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
}

/// A file on its way from a server to the disk.
pub(super) struct Transfer<'a> {
    /// Asks for the bytes from an offset on.
    pub(super) get: &'a dyn Fn(u64) -> Result<Response<Body>, HubProblem>,
    /// What errors call the file.
    pub(super) what: String,
    pub(super) goal: &'a Goal<'a>,
    pub(super) retries: u32,
    pub(super) watch: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
}

/// What a file must become.
pub(super) struct Goal<'a> {
    pub(super) name: &'a str,
    pub(super) size: u64,
    pub(super) hash: Hash,
}

impl Download<'_> {
    /// Brings a file, unless it is there.
    pub(super) fn bring(&mut self, name: &str) -> Result<()> {
        let listing = self.listing;
        let commit = &listing.commit;
        let listed = listing.files.get(name).ok_or_else(|| self.error(name, HubProblem::NoFile))?;
        let path = self.store.snapshot(commit).join(name);
        if path.is_file() && listed.size.is_none_or(|size| is_file_of(&path, size)) {
            return Ok(());
        }
        let goal = self.goal(name, listed)?;
        let hash = goal.hash.text();
        let blob = self.store.blob(hash);
        let lock = self.store.lock(hash, || tell(self.watch, Event::Waiting { name }))?;
        // The same bytes may be another commit's, or another process brought them while we waited.
        if !is_file_of(&blob, goal.size) {
            // Without a lock nobody else may write to our file.
            let ending =
                lock.as_ref().map_or(format!("{}.incomplete", std::process::id()), |_| "incomplete".into());
            let get = |from| self.client.get(commit, name, from);
            let what = self.store.shown(name);
            let transfer =
                Transfer { get: &get, what, goal: &goal, retries: self.retries, watch: self.watch };
            transfer.run(&blob.with_file_name(format!("{hash}.{ending}")), &blob)?;
        }
        self.store.link(commit, name, hash)
    }

    /// Size and hash of a file, from the list or from the hub.
    fn goal<'n>(&mut self, name: &'n str, listed: &Listed) -> Result<Goal<'n>> {
        let mut patience = Patience::new(self.retries);
        let mut listed = listed.clone();
        loop {
            if let Listed { size: Some(size), hash: Some(hash) } = listed {
                return Ok(Goal { name, size, hash });
            }
            match self.client.look(&self.listing.commit, name) {
                Ok(Listed { size: Some(size), hash: Some(hash) }) => return Ok(Goal { name, size, hash }),
                Ok(_) => {
                    let reason = "neither the list nor the file's headers say its size and hash".into();
                    return Err(self.error(name, HubProblem::Answer { reason }));
                }
                Err(problem) => patience.again(self.error(name, problem), self.watch)?,
            }
            listed = Listed { size: None, hash: None };
        }
    }

    fn error(&self, name: &str, problem: HubProblem) -> Error {
        Error::Hub { what: self.store.shown(name), problem }
    }
}

impl Transfer<'_> {
    /// Fetches the bytes, goes on where a connection broke off, now or in an earlier run, and gives them their name
    /// when they are right.
    pub(super) fn run(mut self, partial: &Path, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let mut partial = Partial::open(partial, self.goal).map_err(Error::io(partial))?;
        while partial.take_up().map_err(Error::io(&partial.path))? {
            self.tell(partial.have)?;
        }
        let mut from_earlier = partial.have > 0;
        let mut patience = Patience::new(self.retries);
        loop {
            self.tell(partial.have)?;
            while partial.have < self.goal.size {
                let before = partial.have;
                let pulled = self.pull(&mut partial);
                if partial.have > before {
                    patience.renew();
                }
                match pulled {
                    Ok(()) => {}
                    Err(error @ Error::Hub { problem: HubProblem::WrongSize { .. }, .. }) => {
                        partial.discard();
                        return Err(error);
                    }
                    Err(error) => patience.again(error, self.watch)?,
                }
            }
            let found = partial.digest();
            if found == self.goal.hash.text() {
                return partial.finish(path);
            }
            if !from_earlier {
                partial.discard();
                let expected = self.goal.hash.text().to_string();
                return Err(self.error(HubProblem::WrongHash { expected, found }));
            }
            // What an earlier run left need not be what it wrote: the disk may have been full, or the power gone.
            from_earlier = false;
            partial.restart().map_err(Error::io(&partial.path))?;
        }
    }

    /// Reads as much of the rest as one answer gives.
    fn pull(&mut self, partial: &mut Partial) -> Result<()> {
        let response = (self.get)(partial.have).map_err(|problem| self.error(problem))?;
        match response.status().as_u16() {
            206 => {
                let (first, total) = range(&response).unwrap_or_default();
                self.check_size(total)?;
                if first != partial.have {
                    let reason = format!("bytes from {first} on, not from {} as asked for", partial.have);
                    return Err(self.error(HubProblem::Answer { reason }));
                }
            }
            416 => {
                partial.restart().map_err(Error::io(&partial.path))?;
                let reason = "the server says that nothing is left of the file".into();
                return Err(self.error(HubProblem::Network { reason }));
            }
            _ => {
                let is_plain = response.headers().get("content-encoding").is_none_or(|e| e == "identity");
                self.check_size(response.body().content_length().filter(|_| is_plain))?;
                if partial.have > 0 {
                    partial.restart().map_err(Error::io(&partial.path))?;
                }
            }
        }
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        while partial.have < self.goal.size {
            let read = match body.read(&mut piece) {
                Ok(0) => Err(format!("it ended after {} of {} bytes", partial.have, self.goal.size)),
                Ok(read) => Ok(read),
                Err(error) => Err(error.to_string()),
            };
            let read = read.map_err(|reason| self.error(HubProblem::Network { reason }))?;
            self.check_size(Some(partial.have + read as u64).filter(|have| *have > self.goal.size))?;
            partial.append(&piece[..read]).map_err(|error| match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    let folder = partial.path.parent().unwrap_or(&partial.path).to_path_buf();
                    self.error(HubProblem::DiskFull { folder, needed: self.goal.size - partial.have })
                }
                _ => Error::io(&partial.path)(error),
            })?;
            self.tell(partial.have)?;
        }
        Ok(())
    }

    fn check_size(&self, found: Option<u64>) -> Result<()> {
        match found {
            Some(found) if found != self.goal.size => {
                Err(self.error(HubProblem::WrongSize { expected: self.goal.size, found }))
            }
            _ => Ok(()),
        }
    }

    fn tell(&mut self, have: u64) -> Result<()> {
        tell(self.watch, Event::File { name: self.goal.name, have, size: self.goal.size })
    }

    fn error(&self, problem: HubProblem) -> Error {
        Error::Hub { what: self.what.clone(), problem }
    }
}

/// First byte and length of the whole, of `Content-Range: bytes 5-9/10`.
fn range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let text = response.headers().get("content-range")?.to_str().ok()?.strip_prefix("bytes ")?;
    let (bytes, total) = text.split_once('/')?;
    Some((bytes.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

pub(super) fn is_file_of(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

/// A file that is not yet whole, and the hash of what there is of it.
struct Partial<'a> {
    path: PathBuf,
    file: File,
    goal: &'a Goal<'a>,
    have: u64,
    hasher: Hasher,
}

impl<'a> Partial<'a> {
    /// A new file, or one that an earlier run left, of which nothing counts before it is taken up.
    fn open(path: &Path, goal: &'a Goal) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut partial = Self { path: path.to_path_buf(), goal, have: 0, hasher: Hasher::new(goal), file };
        if partial.file.metadata()?.len() > goal.size {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Another piece of what an earlier run left; false at its end.
    fn take_up(&mut self) -> io::Result<bool> {
        let mut piece = vec![0; PIECE];
        let left = self.file.metadata()?.len().saturating_sub(self.have);
        let read = (&self.file).take(left).read(&mut piece)?;
        self.hasher.update(&piece[..read]);
        self.have += read as u64;
        Ok(read > 0)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hasher = Hasher::new(self.goal);
        self.have = 0;
        Ok(())
    }

    /// The hash of all bytes.
    fn digest(&self) -> String {
        let bytes = match &self.hasher {
            Hasher::Sha256(hasher) => hasher.clone().finalize().to_vec(),
            Hasher::Git(hasher) => hasher.clone().finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Gives the file its name. Its bytes are on the disk before, so that not even a loss of power leaves half a file.
    fn finish(self, blob: &Path) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        drop(self.file);
        fs::rename(&self.path, blob).map_err(Error::io(blob))
    }

    /// Throws away what cannot become right; what cannot be removed is found wrong again by the next run.
    fn discard(self) {
        drop(self.file);
        let _ = fs::remove_file(self.path);
    }
}

enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    fn new(goal: &Goal) -> Self {
        match goal.hash {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::Git(_) => Self::Git(Sha1::new_with_prefix(format!("blob {}\0", goal.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }
}
