//! Everything of a server that can be chosen.

use std::time::Duration;

/// A mebibyte.
const MIB: usize = 1 << 20;

/// How a server behaves. What it bounds is bounded for all clients together unless it says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// What `Authorization: Bearer` must bring; without one, everybody is served.
    pub api_key: Option<String>,
    /// Web pages that may call it, as a browser names them (`https://example.org`), or `*`.
    pub cors_origins: Vec<String>,
    /// Names that it is called by, beside addresses and `localhost`. Empty, and bound to the loopback without a key, it
    /// answers no other: a page in a browser could point a name of its own at it. Empty otherwise, it answers all.
    pub hosts: Vec<String>,
    /// Whether [`Options::hosts`] are all names that it answers to.
    pub check_hosts: bool,
    /// Begins the addresses of pictures, where clients see another address than this server does.
    pub public_url: Option<String>,
    /// Bytes of a JSON body; of a server that reads pictures beside an edit's own, as many as an edit's.
    pub json_bytes: usize,
    /// Bytes of an edit's body.
    pub edit_bytes: usize,
    /// Bytes of one uploaded picture.
    pub image_bytes: usize,
    /// Pixels of all pictures of one request.
    pub image_pixels: u64,
    /// Bytes that bodies, and the pictures decoded from them, take at once.
    pub upload_bytes: usize,
    /// Bytes that answers take until they are sent.
    pub answer_bytes: usize,
    /// How long a request's head may take, and how long a connection may idle.
    pub header_timeout: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// How long a body may pause.
    pub body_pause: Duration,
    /// How long a client may read next to nothing of its answer.
    pub write_timeout: Duration,
    /// How long a job may take, waiting included.
    pub job_timeout: Duration,
    /// How often a stream says that it is still there.
    pub keep_alive: Duration,
    /// How long jobs may go on once the server stops.
    pub grace: Duration,
    /// How long at least a server that was ready goes on answering once it stops: `/ready` and whoever wants to draw are
    /// answered 503, so that a balancer sees it and sends no more.
    pub drain_notice: Duration,
    /// Connections at once.
    pub connections: usize,
    /// How long a picture that was asked for as an address is kept.
    pub url_lifetime: Duration,
    /// How many of them are kept.
    pub url_count: usize,
    /// How many bytes of them are kept.
    pub url_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api_key: None,
            cors_origins: Vec::new(),
            hosts: Vec::new(),
            check_hosts: false,
            public_url: None,
            json_bytes: MIB,
            edit_bytes: 64 * MIB,
            image_bytes: 50 * MIB,
            image_pixels: 32_000_000,
            upload_bytes: 512 * MIB,
            answer_bytes: 512 * MIB,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            body_pause: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            job_timeout: Duration::from_secs(600),
            keep_alive: Duration::from_secs(15),
            grace: Duration::from_secs(30),
            drain_notice: Duration::from_secs(1),
            connections: 4096,
            url_lifetime: Duration::from_secs(3600),
            url_count: 1000,
            url_bytes: 256 * MIB,
        }
    }
}
