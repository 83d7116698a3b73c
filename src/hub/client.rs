//! Questions to the hub, and what its answers mean.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::{Event, Hub, Repository, is_commit, tell};
use crate::error::{Error, HubProblem};

const MAX_REDIRECTS: usize = 10;
/// No list of a repository is longer.
const MAX_LISTING: u64 = 64 << 20;
/// The longest that the hub may make us wait before an error says when to come again.
const MAX_WAIT: u64 = 60;

/// Where the hub is unless [`Hub::endpoint`] says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// Sends requests, through the proxy and within the times of a [`Hub`].
pub(super) struct Web {
    agent: Agent,
    /// The page whose server the token is for.
    home: String,
    token: Option<String>,
}

/// Asks the hub for the files of one repository.
pub(super) struct Client {
    web: Web,
    /// The hub's address, without a slash at its end.
    endpoint: String,
    repository: Repository,
}

/// A commit and its files by their names.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, Listed>,
}

/// What a list says of a file. Some hubs' lists say less than others'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) size: Option<u64>,
    pub(super) hash: Option<Hash>,
}

/// What the bytes of a file must come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hash {
    /// Of a large file.
    Sha256(String),
    /// Git's SHA-1 of a small one.
    Git(String),
}

impl Hash {
    /// A hash, by its length. What is accepted is the name of a file, too.
    fn new(text: &str) -> Option<Self> {
        let is_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match text.len() {
            64 if is_hex => Some(Self::Sha256(text.to_string())),
            40 if is_hex => Some(Self::Git(text.to_string())),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> &str {
        let (Self::Sha256(text) | Self::Git(text)) = self;
        text
    }
}

impl Web {
    pub(super) fn new(hub: &Hub, home: String, token: Option<String>) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(hub.proxy.clone())
            .timeout_resolve(Some(hub.timeout))
            .timeout_connect(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout))
            .timeout_per_write(Some(hub.timeout))
            .user_agent(concat!("tch-flux/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: agent.into(), home, token }
    }

    /// Returns the bytes from an offset on of a file below the home, which is a folder of any server; else as [`Client::get`].
    pub(super) fn get(&self, name: &str, from: u64) -> Result<Response<Body>, HubProblem> {
        let response = self.send(Method::Get { from }, format!("{}/{}", self.home, encode(name)))?;
        match response.status().as_u16() {
            200 => Ok(response),
            206 | 416 if from > 0 => Ok(response),
            status @ (408 | 429 | 500..=599) => {
                Err(HubProblem::Network { reason: format!("the server answers {status}") })
            }
            status => Err(HubProblem::Refused { status }),
        }
    }

    /// One question, and on to where the answers send us. The token goes to the hub alone: a redirect may lead to
    /// anybody's server.
    fn send(&self, method: Method, mut url: String) -> Result<Response<Body>, HubProblem> {
        for _ in 0..MAX_REDIRECTS {
            let request = match method {
                Method::Head => self.agent.head(&url),
                Method::Get { from: 0 } => self.agent.get(&url),
                Method::Get { from } => self.agent.get(&url).header("Range", format!("bytes={from}-")),
            };
            // Lengths and offsets are those of the file, not of something packed.
            let request = request.header("Accept-Encoding", "identity");
            let is_home = origin(&url).eq_ignore_ascii_case(origin(&self.home));
            let request = match &self.token {
                Some(token) if is_home => request.header("Authorization", format!("Bearer {token}")),
                _ => request,
            };
            let response = request.call().map_err(from_ureq)?;
            let location =
                header(response.headers(), "location").filter(|_| response.status().is_redirection());
            let Some(location) = location else { return Ok(response) };
            let next = follow(&url, location)?;
            // What a file is, is said by the hub, not by the server that has its bytes.
            let said = header(response.headers(), "x-linked-etag").is_some() || origin(&next) != origin(&url);
            if matches!(method, Method::Head) && said {
                return Ok(response);
            }
            url = next;
        }
        Err(HubProblem::Answer { reason: format!("more than {MAX_REDIRECTS} redirects") })
    }
}

impl Client {
    pub(super) fn new(hub: &Hub, repository: &Repository) -> Self {
        let endpoint = hub.endpoint.clone().unwrap_or_else(|| ENDPOINT.into());
        let web = Web::new(hub, format!("{endpoint}/{}", repository.id), hub.token.clone());
        Self { web, endpoint, repository: repository.clone() }
    }

    /// The commit that the revision is now, and its files.
    pub(super) fn listing(
        &self,
        retries: u32,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Listing, Error> {
        let wrong = |problem| Error::Hub { what: self.repository.to_string(), problem };
        let mut patience = Patience::new(retries);
        let text = loop {
            match self.ask_for_listing() {
                Ok(text) => break text,
                Err(problem) => patience.again(wrong(problem), watch)?,
            }
        };
        read_listing(&text).map_err(wrong)
    }

    fn ask_for_listing(&self) -> Result<String, HubProblem> {
        let Repository { id, revision } = &self.repository;
        let url = format!("{}/api/models/{id}/revision/{}?blobs=true", self.endpoint, in_path(revision));
        let mut response = self.web.send(Method::Get { from: 0 }, url)?;
        if !response.status().is_success() {
            return Err(self.refusal(&response));
        }
        response.body_mut().with_config().limit(MAX_LISTING).read_to_string().map_err(from_ureq)
    }

    /// Size and hash of a file of which the list does not say them.
    pub(super) fn look(&self, commit: &str, name: &str) -> Result<Listed, HubProblem> {
        let response = self.web.send(Method::Head, self.address(commit, name))?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(&response));
        }
        let headers = response.headers();
        let size = match header(headers, "x-linked-size") {
            // The length of a redirect is not the file's.
            None if status.is_redirection() => None,
            None => header(headers, "content-length"),
            linked => linked,
        };
        let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).unwrap_or_default();
        let hash = Hash::new(etag.trim_start_matches("W/").trim_matches('"'));
        Ok(Listed { size: size.and_then(|size| size.parse().ok()), hash })
    }

    /// The bytes of a file from an offset on, unless the answer has another status: then it is the whole file, or says
    /// that there is nothing from there on.
    pub(super) fn get(&self, commit: &str, name: &str, from: u64) -> Result<Response<Body>, HubProblem> {
        let response = self.web.send(Method::Get { from }, self.address(commit, name))?;
        match response.status().as_u16() {
            200 => Ok(response),
            206 | 416 if from > 0 => Ok(response),
            _ => Err(self.refusal(&response)),
        }
    }

    fn address(&self, commit: &str, name: &str) -> String {
        format!("{}/resolve/{}/{}", self.web.home, in_path(commit), encode(name))
    }

    /// What a refusal means.
    fn refusal(&self, response: &Response<Body>) -> HubProblem {
        let token = self.web.token.is_some();
        let say = |name| header(response.headers(), name);
        match (response.status().as_u16(), say("x-error-code")) {
            (_, Some("GatedRepo")) => HubProblem::Gated { page: self.web.home.clone(), token },
            (_, Some("RepoNotFound")) => HubProblem::NotFound { token },
            (_, Some("RevisionNotFound")) => HubProblem::NoRevision,
            (_, Some("EntryNotFound")) => HubProblem::NoFile,
            (401, _) if token => HubProblem::Token,
            // So the hub answers whoever is not logged in and asks for what is private or is not there.
            (401 | 404, _) => HubProblem::NotFound { token },
            (429, _) => HubProblem::RateLimited { wait: wait_asked_for(response.headers()) },
            (status @ (408 | 500..=599), _) => HubProblem::Server { status },
            (status @ (403 | 451), _) => {
                let reason = say("x-error-message").map_or(format!("status {status}"), String::from);
                HubProblem::Forbidden { reason }
            }
            (status, _) => HubProblem::Answer { reason: format!("status {status}") },
        }
    }
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    Get { from: u64 },
}

impl HubProblem {
    /// Whether it can be otherwise in a moment.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Server { .. } | Self::RateLimited { .. })
    }
}

/// How often something that failed is tried again.
pub(super) struct Patience {
    retries: u32,
    failed: u32,
}

impl Patience {
    pub(super) fn new(retries: u32) -> Self {
        Self { retries, failed: 0 }
    }

    /// Something went well: what fails from now on counts anew.
    pub(super) fn renew(&mut self) {
        self.failed = 0;
    }

    /// Waits, as long as the hub asks for and twice as long each time otherwise. Gives the error back where it will
    /// not pass, or patience is at its end.
    pub(super) fn again(
        &mut self,
        error: Error,
        watch: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let asked = match &error {
            Error::Hub { problem: HubProblem::RateLimited { wait }, .. } => *wait,
            Error::Hub { problem, .. } if problem.may_pass() => None,
            _ => return Err(error),
        };
        if self.failed == self.retries || asked.is_some_and(|wait| wait > MAX_WAIT) {
            return Err(error);
        }
        let wait = asked.map_or(Duration::from_millis(250 << self.failed.min(5)), Duration::from_secs);
        self.failed += 1;
        tell(watch, Event::Retry { reason: &error.to_string(), wait })?;
        std::thread::sleep(wait);
        Ok(())
    }
}

fn read_listing(text: &str) -> Result<Listing, HubProblem> {
    #[derive(Deserialize)]
    struct Info {
        sha: String,
        siblings: Vec<Sibling>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Sibling {
        rfilename: String,
        size: Option<u64>,
        blob_id: Option<String>,
        lfs: Option<Lfs>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        sha256: String,
        size: u64,
    }
    let info: Info = serde_json::from_str(text)
        .map_err(|e| HubProblem::Answer { reason: format!("no list of files: {e}") })?;
    if !is_commit(&info.sha) {
        return Err(HubProblem::Answer { reason: format!("{:?} is no commit", info.sha) });
    }
    let listed = |file: Sibling| {
        if !is_safe(&file.rfilename) {
            return Err(HubProblem::UnsafeName { name: file.rfilename });
        }
        let listed = match file.lfs {
            // The other hash is that of the note which stands for the file in git.
            Some(lfs) => Listed { size: Some(lfs.size), hash: Hash::new(&lfs.sha256) },
            None => Listed { size: file.size, hash: file.blob_id.as_deref().and_then(Hash::new) },
        };
        Ok((file.rfilename, listed))
    };
    Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(listed).collect::<Result<_, _>>()? })
}

/// Whether a name leads to a file in the folder that it is joined to, on every system.
pub(super) fn is_safe(name: &str) -> bool {
    let is_step = |step: &str| !["", ".", ".."].contains(&step);
    name.split('/').all(is_step) && !name.contains(['\\', ':']) && !name.contains(char::is_control)
}

/// The seconds of `Retry-After`, or of the draft standard's `RateLimit: "api";r=0;t=55`.
fn wait_asked_for(headers: &HeaderMap) -> Option<u64> {
    let from_limit = || {
        let fields = header(headers, "ratelimit")?.split(';');
        fields.filter_map(|field| field.trim().strip_prefix("t=")).next()
    };
    header(headers, "retry-after").or_else(from_limit)?.trim().parse().ok()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at);
    &url[..end]
}

/// Where a redirect leads.
fn follow(url: &str, location: &str) -> Result<String, HubProblem> {
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match location {
        _ if location.starts_with("http://") || location.starts_with("https://") => Ok(location.to_string()),
        _ if location.starts_with("//") => Ok(format!("{scheme}:{location}")),
        _ if location.starts_with('/') => Ok(format!("{}{location}", origin(url))),
        _ => Err(HubProblem::Answer { reason: format!("a redirect to {location:?}") }),
    }
}

/// A revision as one part of an address.
fn in_path(revision: &str) -> String {
    encode(revision).replace('/', "%2F")
}

/// A name as part of an address.
fn encode(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte as char)
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn from_ureq(error: ureq::Error) -> HubProblem {
    let reason = error.to_string();
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
            HubProblem::Address { reason }
        }
        ureq::Error::BodyExceedsLimit(_) => HubProblem::Answer { reason },
        _ => HubProblem::Network { reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port_whatever_follows() {
        for (url, expected) in [
            ("http://hub.test:80/a/b?c", "http://hub.test:80"),
            ("https://hub.test?x=/", "https://hub.test"),
            ("https://hub.test@elsewhere.test/", "https://hub.test@elsewhere.test"),
            ("https://hub.test#/a", "https://hub.test"),
        ] {
            assert_eq!(origin(url), expected);
        }
        assert_eq!(follow("https://a.test/x/y", "/z").unwrap(), "https://a.test/z");
        assert_eq!(follow("https://a.test/x/y", "//b.test/z").unwrap(), "https://b.test/z");
        assert!(follow("https://a.test/x/y", "file:///etc/passwd").is_err());
    }

    #[test]
    fn names_that_lead_out_of_a_folder_are_refused_with_the_whole_list() {
        for name in ["../x", "a/../../x", "/etc/passwd", "a//b", "a\\..\\b", "C:x", ".", "", "a\0b"] {
            let list = serde_json::json!({
                "sha": "0".repeat(40), "siblings": [{ "rfilename": "good" }, { "rfilename": name }],
            });
            let problem = read_listing(&list.to_string()).map(|listing| listing.files).unwrap_err();
            assert_eq!(problem, HubProblem::UnsafeName { name: name.into() });
        }
        let no_commit = r#"{"sha": "../../x", "siblings": []}"#;
        assert!(matches!(read_listing(no_commit).map(|_| ()), Err(HubProblem::Answer { .. })));
    }

    #[test]
    fn a_hash_is_hexadecimal_or_none() {
        assert_eq!(Hash::new(&"a".repeat(40)), Some(Hash::Git("a".repeat(40))));
        assert_eq!(Hash::new(&"0".repeat(64)), Some(Hash::Sha256("0".repeat(64))));
        assert_eq!(Hash::new(&format!("{}/..", "0".repeat(61))), None);
        assert_eq!(Hash::new(""), None);
    }

    #[test]
    fn the_hub_says_when_to_come_again_in_two_ways() {
        let wait = |name: &'static str, value: &str| {
            wait_asked_for(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]))
        };
        assert_eq!(wait("retry-after", "7"), Some(7));
        assert_eq!(wait("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(wait("ratelimit", "\"api\";r=0;t=55"), Some(55));
    }
}
