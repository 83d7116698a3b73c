//! What keeps a repository on the hub from being had.

use std::path::PathBuf;

/// Why something on the hub cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// A text that names no repository.
    #[error("a repository's name is OWNER/NAME or OWNER/NAME@REVISION")]
    Name,
    /// Access is given on request, and not yet to us.
    #[error("access is given on request: accept the licence on its page, {page}, then {}", if *token {
        "let the token in use (HF_TOKEN or the token file) read gated repositories"
    } else {
        "log in with `hf auth login` or set HF_TOKEN"
    })]
    Gated {
        /// The address of the page where access is asked for.
        page: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub knows no such repository, or does not show it to us.
    #[error("the hub has no such repository, or it is private{}", if *token {
        " and the token in use (HF_TOKEN or the token file) may not read it"
    } else {
        ": then log in with `hf auth login` or set HF_TOKEN"
    })]
    NotFound {
        /// Whether a token was sent.
        token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("it has no such revision; without @REVISION its branch main is taken")]
    NoRevision,
    /// The repository has no such file.
    #[error("the repository has no such file")]
    NoFile,
    /// The token is not, or no longer, good.
    #[error("the hub refuses the token in use: log in again with `hf auth login`, or mend HF_TOKEN")]
    Token,
    /// Refused for another reason.
    #[error("the hub refuses it: {reason}")]
    Forbidden {
        /// In the hub's words.
        reason: String,
    },
    /// A server that is no hub does not give a file.
    #[error("the server answers {status}")]
    Refused {
        /// The status.
        status: u16,
    },
    /// More requests than the hub allows.
    #[error("the hub asks for fewer requests{}; with a token (HF_TOKEN) it allows more", wait.map_or(
        String::new(), |wait| format!(": try again in {wait} s")
    ))]
    RateLimited {
        /// The seconds after which it wants to be asked again, if it says.
        wait: Option<u64>,
    },
    /// The hub failed, several times.
    #[error("the hub answers {status}, an error of its own: try again later")]
    Server {
        /// The status.
        status: u16,
    },
    /// No answer, or one that broke off, several times.
    #[error("the connection failed: {reason}")]
    Network {
        /// What happened.
        reason: String,
    },
    /// An address that cannot be asked.
    #[error("it cannot be asked for: {reason}; look at HF_ENDPOINT and HF_TOKEN")]
    Address {
        /// Why.
        reason: String,
    },
    /// An answer that no hub gives.
    #[error("the answer makes no sense: {reason}; is HF_ENDPOINT the address of a hub?")]
    Answer {
        /// What is wrong with it.
        reason: String,
    },
    /// A name in the repository's list that would lead out of the cache.
    #[error("the repository lists {name:?}, which is no name of a file in it; nothing of it is fetched")]
    UnsafeName {
        /// The name.
        name: String,
    },
    /// Something is not in the cache, and nothing may be fetched.
    #[error("not in the cache, {}, and offline nothing is fetched: run it once without HF_HUB_OFFLINE", cache.display())]
    Offline {
        /// The folder of the cache.
        cache: PathBuf,
    },
    /// Another number of bytes than the hub announced. They are thrown away.
    #[error("{found} bytes came, but the hub lists {expected}: try again later")]
    WrongSize {
        /// As the hub lists it.
        expected: u64,
        /// As it came.
        found: u64,
    },
    /// Other bytes than the hub announced. They are thrown away.
    #[error(
        "what came has the hash {found}, but the hub lists {expected}: try again, or over another network"
    )]
    WrongHash {
        /// As the hub lists it: a SHA-256, or git's of a small file.
        expected: String,
        /// As it came.
        found: String,
    },
    /// No room for a file. What came of it stays, to be gone on with.
    #[error("the disk of {} is full: {needed} more bytes are needed; HF_HUB_CACHE names another place", folder.display())]
    DiskFull {
        /// Where the room is missing.
        folder: PathBuf,
        /// How many bytes have yet to come.
        needed: u64,
    },
}
