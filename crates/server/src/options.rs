//! Everything of a server that can be chosen.

use std::time::Duration;

/// A mebibyte.
const MIB: usize = 1 << 20;

type Count = usize;
type Pixels = u64;
type Size = usize;
type Time = Duration;

/// The table of the limits: the documentation of each, its name, its kind, its default, the least that it may be (of a time
/// in milliseconds), and another limit that it may not exceed, with the words for what that one bounds. A program that takes
/// limits from flags or files calls it with a macro that makes its fields of the same table.
#[doc(hidden)]
#[macro_export]
macro_rules! limits {
    ($with:ident) => {
        $with! {
            /// How long jobs may go on once the server stops.
            grace: Time = Duration::from_secs(30), least 0;
            /// How long at least a server that was ready goes on answering once it stops, with 503 at `/ready` and to whoever
            /// wants to draw, so that balancers see it.
            drain_notice: Time = Duration::from_secs(1), least 0;
            /// How long a request's head may take, and how long a connection may idle.
            header_timeout: Time = Duration::from_secs(10), least 1;
            /// How long a body may take.
            body_timeout: Time = Duration::from_secs(60), least 1;
            /// How long a body may pause.
            body_pause: Time = Duration::from_secs(10), least 1;
            /// How long a client may read next to nothing of its answer.
            write_timeout: Time = Duration::from_secs(30), least 1;
            /// How long a job may take, waiting included.
            job_timeout: Time = Duration::from_secs(600), least 1;
            /// How long a stream may be silent before it says that it is still there.
            stream_keep_alive: Time = Duration::from_secs(15), least 1;
            /// Connections at once.
            max_connections: Count = 4096, least 1;
            /// Size of a JSON body; where it may bring pictures, as large as an edit's.
            max_json_bytes: Size = MIB, least 64, within max_upload_bytes "all uploads together";
            /// Size of an edit's body.
            max_edit_bytes: Size = 64 * MIB, least 1024, within max_upload_bytes "all uploads together";
            /// Size of an uploaded picture's file.
            max_image_bytes: Size = 50 * MIB, least 1024, within max_edit_bytes "a body with one";
            /// Pixels of a request's pictures together.
            max_image_pixels: Pixels = 32_000_000, least 4096;
            /// Size of all uploads at once, and of the pictures decoded from them.
            max_upload_bytes: Size = 512 * MIB, least 1024;
            /// Size of all answers that are not read yet.
            max_answer_bytes: Size = 512 * MIB, least 65536;
            /// How long a picture is kept for its address.
            url_lifetime: Time = Duration::from_secs(3600), least 1;
            /// Pictures that are kept for their addresses.
            url_count: Count = 1000, least 0;
            /// Size of the pictures that are kept for their addresses.
            url_bytes: Size = 256 * MIB, least 1024;
        }
    };
}

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident: $kind:ident = $default:expr, least $least:literal $(, within $most:ident $what:literal)?;)*) => {
        /// How a server behaves. What it bounds is bounded for all clients together unless it says otherwise.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Options {
            /// What `Authorization: Bearer` must bring; without one, everybody is served.
            pub api_key: Option<String>,
            /// Web pages that may call it, as a browser names them (`https://example.org`), or `*`.
            pub cors_origins: Vec<String>,
            /// Names that it is called by, beside addresses and `localhost`. Empty, and bound to the loopback without a key,
            /// it answers no other: a page in a browser could point a name of its own at it. Empty otherwise, it answers all.
            pub hosts: Vec<String>,
            /// Whether [`Options::hosts`] are all names that it answers to.
            pub check_hosts: bool,
            /// Begins the addresses of pictures, where clients see another address than this server does.
            pub public_url: Option<String>,
            $($(#[$doc])* pub $name: $kind,)*
        }

        impl Default for Options {
            fn default() -> Self {
                Self {
                    api_key: None,
                    cors_origins: Vec::new(),
                    hosts: Vec::new(),
                    check_hosts: false,
                    public_url: None,
                    $($name: $default,)*
                }
            }
        }
    };
}

limits!(options);
