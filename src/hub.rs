//! Models by their names on the hub: what a run needs of a repository, and no more, in the cache that Python shares.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use tch_flux::hub::{Hub, Repository};
//! use tch_flux::generation::PartOverrides;
//!
//! let repository: Repository = "black-forest-labs/FLUX.1-schnell".parse()?;
//! let parts = Hub::from_env()?.fetch(&repository, PartOverrides::default(), &mut |_| ControlFlow::Continue(()))?;
//! # Ok::<(), tch_flux::Error>(())
//! ```
//!
//! Addresses and the names of folders are those of Python's `huggingface_hub`. The transfer is our own, since the crate for it
//! goes on with a broken file without looking at the answer, compares no hashes, and waits for no server.
//!
//! In the cache a file lies as `models--OWNER--NAME/blobs/HASH`, and its name in `snapshots/COMMIT/` is a link there;
//! `refs/` says which commit a branch was. A file that is still coming is `HASH.incomplete`: it gets its name when its
//! size and its hash are right, so whatever ends the process, no half file stands under a final name.

mod cache;
mod client;
mod download;
mod files;

use std::ffi::OsString;
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, HubProblem, Result};
use crate::generation::{PartOverrides, Parts};
use cache::Store;
use client::{Client, Hash, Web, is_safe};
use download::{Download, Goal, Transfer, is_file_of};
use files::Plan;

/// Where repositories are fetched from, and where they are kept.
#[derive(Clone)]
#[non_exhaustive]
pub struct Hub {
    /// The folder of the cache, in which the folders of the repositories lie.
    pub cache: PathBuf,
    /// The hub's address; `None` is the public one.
    pub endpoint: Option<String>,
    /// What proves who asks. It is sent to the hub, and to no server that the hub redirects to.
    pub token: Option<String>,
    /// Take what the cache has, and open no connection.
    pub offline: bool,
    /// How long a server may be silent.
    pub timeout: Duration,
    /// How often in a row something is tried again that may pass: a broken connection, a busy or a failing server.
    pub retries: u32,
    /// Link snapshots to blobs. Where links are not to be had, or not wanted, files go to the snapshots themselves.
    pub symlinks: bool,
    /// The proxy to go through.
    proxy: Option<ureq::Proxy>,
}

impl Hub {
    /// The public hub, as somebody without an account sees it, and a cache.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: None,
            token: None,
            offline: false,
            timeout: Duration::from_secs(10),
            retries: 5,
            symlinks: true,
            proxy: None,
        }
    }

    /// As Python's `huggingface_hub` would be set up: from these variables, of which empty ones do not count.
    ///
    /// | variable | what it sets |
    /// | --- | --- |
    /// | `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE` | the cache; else it is `hub` in `HF_HOME` |
    /// | `HF_HOME` | else `huggingface` in `XDG_CACHE_HOME` or in `~/.cache` |
    /// | `HF_ENDPOINT` | the hub's address |
    /// | `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN` | the token; else it is in the file `HF_TOKEN_PATH`, or `token` in `HF_HOME` |
    /// | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | `1`: send no token |
    /// | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | `1`: open no connection |
    /// | `HF_HUB_DOWNLOAD_TIMEOUT` | seconds that a server may be silent, otherwise 10 |
    /// | `HF_HUB_DISABLE_SYMLINKS` | `1`: no links in the cache |
    /// | `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` | the proxy |
    ///
    /// # Errors
    /// [`Error::Config`] where no variable says where the cache is, [`Error::Io`] where the token cannot be read.
    pub fn from_env() -> Result<Self> {
        let hub = Self::from_variables(|name| std::env::var_os(name))?;
        Ok(Self { proxy: ureq::Proxy::try_from_env(), ..hub })
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_string());
        let yes = |name: &str| {
            text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()))
        };
        let user = || set("HOME").or_else(|| set("USERPROFILE")).map(PathBuf::from);
        let path = |name: &str| {
            let path = PathBuf::from(set(name)?);
            match path.strip_prefix("~") {
                Ok(rest) => Some(user()?.join(rest)),
                Err(_) => Some(path),
            }
        };
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(user()?.join(".cache")));
            Some(caches?.join("huggingface"))
        });
        let in_home = |name: &str| Some(home.as_ref()?.join(name));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| in_home("hub"));
        let cache = cache.ok_or_else(|| {
            Error::Config("there is no place for a cache: set HF_HOME or HF_HUB_CACHE to a folder".into())
        })?;
        let token = match text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
            _ if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            Some(token) => Some(token),
            None => {
                path("HF_TOKEN_PATH").or_else(|| in_home("token")).map_or(Ok(None), |p| read_token(&p))?
            }
        };
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok());
        let hub = Self::new(cache);
        Ok(Self {
            endpoint: text("HF_ENDPOINT").map(|url| url.trim_end_matches('/').to_string()),
            token: token.filter(|token| !token.is_empty()),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            timeout: seconds.filter(|s| *s > 0).map_or(hub.timeout, Duration::from_secs),
            symlinks: !yes("HF_HUB_DISABLE_SYMLINKS"),
            ..hub
        })
    }

    /// The parts of a repository, but for those that are named: looked up as [`Parts::find`] does in a folder, fetched
    /// where the cache lacks them, checked, and there to stay. `watch` sees what happens; its `Break` ends it, and what
    /// came so far stays.
    ///
    /// A commit that the cache holds wholly is taken without a question; so is any other revision where the hub cannot
    /// be reached, which `watch` is told.
    ///
    /// # Errors
    /// [`Error::Hub`], [`Error::MissingPart`] and [`Error::File`] as for a folder, [`Error::Io`], [`Error::Cancelled`].
    pub fn fetch(
        &self,
        repository: &Repository,
        own: PartOverrides,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Parts> {
        let plan = |shown: &Path, snapshot: &Path, names: &[String]| {
            files::plan(shown, snapshot, names, own.clone())
        };
        self.fetch_planned(repository, &plan, watch)
    }

    /// What reads pictures for Redux, [`PartOverrides::redux`] and [`PartOverrides::image_encoder`], of a repository as
    /// `black-forest-labs/FLUX.1-Redux-dev`; else as [`Hub::fetch`].
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn fetch_redux(
        &self,
        repository: &Repository,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<PartOverrides> {
        self.fetch_planned(repository, &files::plan_redux, watch)
    }

    /// Fetches files from a folder of any web server, `base`, into a folder here, as those of a repository are fetched: through
    /// the proxy, tried again, and compared with their sizes and hashes before they have their names. No token is sent. Files
    /// that are there with their sizes are taken as they are. Two calls at a time need two folders.
    ///
    /// # Errors
    /// [`Error::Hub`], [`Error::Io`], [`Error::Cancelled`].
    pub fn fetch_files(
        &self,
        base: &str,
        files: &[RemoteFile],
        folder: &Path,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<()> {
        let web = Web::new(self, base.trim_end_matches('/').to_string(), None);
        for RemoteFile { name, size, sha256 } in files.iter().copied() {
            let what = format!("{base}: {name}");
            let path = folder.join(name);
            if !is_safe(name) {
                return Err(Error::Hub { what, problem: HubProblem::UnsafeName { name: name.into() } });
            }
            if is_file_of(&path, size) {
                continue;
            }
            if self.offline {
                return Err(Error::Hub { what, problem: HubProblem::Offline { cache: folder.into() } });
            }
            let get = |from| web.get(name, from);
            let goal = Goal { name, size, hash: Hash::Sha256(sha256.into()) };
            let transfer =
                Transfer { get: &get, what, goal: &goal, retries: self.retries, watch: &mut *watch };
            transfer.run(&folder.join(format!("{name}.incomplete")), &path)?;
        }
        Ok(())
    }

    fn fetch_planned<T>(
        &self,
        repository: &Repository,
        plan: &Plan<T>,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<T> {
        let store = Store::new(self, repository);
        let cached = store.planned(plan);
        if self.offline || (repository.commit().is_some() && cached.is_ok()) {
            return cached;
        }
        let client = Client::new(self, repository);
        // Somebody without a network who has all that is needed should not have to wait.
        let retries = if cached.is_ok() { 0 } else { self.retries };
        let listing = match client.listing(retries, watch) {
            Err(Error::Hub { what, problem }) if problem.may_pass() && cached.is_ok() => {
                tell(watch, Event::Stale { reason: &format!("{what}: {problem}") })?;
                return cached;
            }
            listing => listing?,
        };
        let snapshot = store.snapshot(&listing.commit);
        let names: Vec<String> = listing.files.keys().cloned().collect();
        let (parts, needed) = plan(Path::new(&repository.to_string()), &snapshot, &names)?;
        let mut download =
            Download { client: &client, store: &store, listing: &listing, retries: self.retries, watch };
        files::for_each(&snapshot, &needed, &mut |name| download.bring(name))?;
        // Only now, so that a branch never stands for a snapshot that is not yet whole.
        store.remember(&listing.commit)?;
        Ok(parts)
    }
}

impl fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { cache, endpoint, offline, .. } = self;
        f.debug_struct("Hub")
            .field("cache", cache)
            .field("endpoint", endpoint)
            .field("offline", offline)
            .finish_non_exhaustive()
    }
}

/// The token that the hub's own tool left, if there is one.
fn read_token(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// A file on a web server, and what its bytes must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteFile<'a> {
    /// Its name below the server's folder, and below the one that it is fetched to.
    pub name: &'a str,
    /// Its bytes.
    pub size: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: &'a str,
}

/// What happens while something is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// So much of a file is there. Told when it begins, at every piece, and when it is whole.
    File {
        /// Its name in the repository.
        name: &'a str,
        /// The bytes that are there.
        have: u64,
        /// All its bytes.
        size: u64,
    },
    /// Another process is fetching this file; it is waited for.
    Waiting {
        /// Its name in the repository.
        name: &'a str,
    },
    /// Something failed that may pass; it is tried again.
    Retry {
        /// What failed.
        reason: &'a str,
        /// How long is waited before.
        wait: Duration,
    },
    /// The hub cannot be reached: what the cache holds of the revision is taken, though the hub may have newer.
    Stale {
        /// Why.
        reason: &'a str,
    },
}

fn tell(watch: &mut dyn FnMut(Event) -> ControlFlow<()>, event: Event) -> Result<()> {
    match watch(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// A repository with a model, at a revision: `OWNER/NAME` or `OWNER/NAME@REVISION`, where the revision is a branch, a
/// tag or a commit, and otherwise the branch `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    id: String,
    revision: String,
}

impl Repository {
    /// The revision, where it is a whole commit's hash, which no push can change.
    fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(&*self.revision)
    }

    /// The name of its folder in the cache.
    fn folder_name(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &*self.revision {
            "main" => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

impl FromStr for Repository {
    type Err = Error;

    /// Both names are letters, digits, `_`, `-` and `.`, as the hub has them. Nothing that is accepted can lead out of
    /// the cache.
    fn from_str(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let name = |name: &str| {
            let edges = [name.chars().next(), name.chars().last()];
            edges.iter().all(|c| c.is_some_and(|c| !"-.".contains(c)))
                && name.chars().all(plain)
                && !name.contains("--")
                && !name.contains("..")
        };
        let step = |step: &str| {
            !["", ".", ".."].contains(&step) && step.chars().all(|c| plain(c) || "+=".contains(c))
        };
        match id.split_once('/') {
            Some((owner, model)) if name(owner) && name(model) && revision.split('/').all(step) => {
                Ok(Self { id: id.to_string(), revision: revision.to_string() })
            }
            _ => Err(Error::Hub { what: format!("{text:?}"), problem: HubProblem::Name }),
        }
    }
}

/// Whether a text is the whole hash of a commit.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_up(variables: &[(&str, &str)]) -> Result<Hub> {
        Hub::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[_]| set_up(variables).unwrap().cache;
        let home = ("HOME", "/home/me");
        assert_eq!(cache(&[home]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/c")]), Path::new("/c/huggingface/hub"));
        assert_eq!(
            cache(&[home, ("HF_HOME", "~/hf"), ("XDG_CACHE_HOME", "/c")]),
            Path::new("/home/me/hf/hub")
        );
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/old"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")]), Path::new("/new"));
        assert_eq!(cache(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert!(matches!(set_up(&[]), Err(Error::Config(_))));
    }

    #[test]
    fn the_other_variables_are_heeded_too() {
        let hub = set_up(&[
            ("HF_HOME", "/h"),
            ("HF_ENDPOINT", "https://hub.test/"),
            ("HF_TOKEN", " hf_x\n"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "60"),
            ("HF_HUB_DISABLE_SYMLINKS", "1"),
        ]);
        let hub = hub.unwrap();
        assert_eq!((hub.endpoint.as_deref(), hub.token.as_deref()), (Some("https://hub.test"), Some("hf_x")));
        assert_eq!((hub.offline, hub.symlinks, hub.timeout), (true, false, Duration::from_secs(60)));
        let hub = set_up(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", "0"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon")])
            .unwrap();
        assert_eq!((hub.offline, hub.symlinks, hub.timeout), (false, true, Duration::from_secs(10)));
        assert_eq!((hub.endpoint, hub.token), (None, None));
    }
}
