//! Clients that exist, unmodified, with the binary: the `openai` package, curl, and the page in a real browser.
//!
//! The first need what `scripts/with-libtorch --reference` brings. The browser needs Node, what `npm ci` installs in
//! `tests/page`, and Chromium.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{alone, support::require};

const KEY: &str = "sesame";
const MODEL: &str = "fixtures/tiny";
/// Longer than a busy machine takes to load the model.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that ends with the test.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    /// One that is ready.
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
        command.current_dir(crate::support::root());
        // Several share the machine, and threads that wait for one another on a busy one are slower than one alone.
        command.args(["serve", "--port", "0", "--threads", "1", "--model", MODEL]).args(arguments);
        // It warns of each error that it answers, and many are provoked.
        command.args(["--log-level", "error"]).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("where it listens").to_string();
        let server = Self { process, url };
        let begun = Instant::now();
        while !server.is_ready() {
            assert!(begun.elapsed() < PATIENCE, "{} is not ready", server.url);
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn is_ready(&self) -> bool {
        let host = self.url.strip_prefix("http://").unwrap();
        let mut answer = String::new();
        let mut stream = TcpStream::connect(host).unwrap();
        write!(stream, "GET /ready HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer.starts_with("HTTP/1.1 200 ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a program that is a client of an open server, and of one that wants a key.
fn run(command: &mut Command, root: &Path) {
    let _alone = alone();
    let (open, keyed) = (Server::start(&[]), Server::start(&["--api-key", KEY]));
    let narrow = Server::start(&["--queue", "1", "--job-timeout", "10"]);
    command.current_dir(root).env("TCH_FLUX_KEY", KEY);
    command.env("TCH_FLUX_URL", &open.url).env("TCH_FLUX_KEYED_URL", &keyed.url);
    command.env("TCH_FLUX_NARROW_URL", &narrow.url).env("TCH_FLUX_BINARY", env!("CARGO_BIN_EXE_tch-flux"));
    command.env("TCH_FLUX_MODEL", crate::support::root().join(MODEL));
    // The servers are on this machine, whatever leads out of it.
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let output = command.output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success(), "{text}");
}

#[test]
fn the_openai_package_curl_and_open_webui_are_served() {
    let Some(mut command) = crate::support::require::python() else { return };
    let folder = crate::support::root().join("tests/openai");
    command.args(["-B", "-m", "unittest", "--verbose"]);
    run(&mut command, &folder);
}

/// Node, where it has what the page is tested with.
fn node(folder: &Path) -> Option<PathBuf> {
    let node = require::program("browser", &["node"])?;
    let names = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];
    require::program("browser", &names)?;
    let installed = folder.join("node_modules/playwright-core").is_dir();
    require::require("browser", installed.then_some(node).ok_or("`npm ci` was not run in tests/page"))
}

#[test]
fn the_page_works_in_a_real_browser() {
    let folder = crate::support::root().join("tests/page");
    let Some(node) = node(&folder) else { return };
    run(Command::new(node).args(["--test", "--test-reporter=spec", "page.test.mjs"]), &folder);
}
