//! The process: from its start to its end.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::client::{Connection, GENERATIONS, JSON, PATIENCE, generate, get, metric, until, until_ready};
use crate::{CIRCLE, long, small, tiny, with};

/// The binary, serving.
pub struct Process {
    child: Child,
    /// Read as it comes: a full pipe would stop the process.
    log: Option<std::thread::JoinHandle<String>>,
    pub at: SocketAddr,
}

impl Process {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(Path::new("."), arguments)
    }

    /// In a folder that is also the place for temporary files.
    pub fn start_in(folder: &Path, arguments: &[&str]) -> Self {
        let has = |name| arguments.contains(&name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
        command.arg("serve").args(arguments).current_dir(folder).env("TMPDIR", folder);
        if !has("--port") {
            command.args(["--port", "0"]);
        }
        if !has("--model") {
            command.arg("--model").arg(tiny());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let at = line.trim().strip_prefix("listening on http://").and_then(|at| at.parse().ok());
        let Some(at) = at else {
            let said = child.wait_with_output().unwrap();
            panic!("{line:?} {}", String::from_utf8_lossy(&said.stderr));
        };
        let mut from = child.stderr.take().unwrap();
        let read = move || {
            let mut log = String::new();
            from.read_to_string(&mut log).unwrap();
            log
        };
        Self { child, log: Some(std::thread::spawn(read)), at }
    }

    pub fn ready(arguments: &[&str]) -> Self {
        Self::ready_in(Path::new("."), arguments)
    }

    pub fn ready_in(folder: &Path, arguments: &[&str]) -> Self {
        let process = Self::start_in(folder, arguments);
        until_ready(process.at);
        process
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(begun.elapsed() < PATIENCE, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has logged, once it has ended.
    pub fn log(mut self) -> String {
        self.ended();
        self.log.take().unwrap().join().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_in_a_job_lets_it_finish_and_takes_no_more() {
    let mut process = Process::ready(&[]);
    let mut job = Connection::open(process.at);
    let request = json!({ "prompt": CIRCLE, "size": "512x512", "num_inference_steps": 20, "stream": true });
    job.send("POST", GENERATIONS, &[JSON], request.to_string().as_bytes());
    let mut open = Connection::open(process.at);
    open.send("GET", "/ready", &[], b"");
    assert_eq!(open.answer().unwrap().status, 200);
    assert_eq!(job.head().unwrap().0, 200);
    assert!(job.chunk().unwrap().is_some());

    process.signal(Signal::TERM);
    until_draining(process.at);
    // What is open is answered, and so is whoever comes now: a balancer that asks, and a client that was sent here.
    open.send("GET", "/ready", &[], b"");
    for answer in [open.answer().unwrap(), get(process.at, "/ready"), generate(process.at, &small(1))] {
        assert_eq!(answer.error()["code"], "stopping");
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(get(process.at, "/health").status, 200, "the process is as it should be");
    let mut text = Vec::new();
    while let Some(chunk) = job.chunk().unwrap() {
        text.extend(chunk);
    }
    assert!(String::from_utf8(text).unwrap().contains("event: image_generation.completed"));
    assert_eq!(process.ended().code(), Some(0));
}

#[test]
fn while_it_drains_open_connections_are_told_so() {
    let mut process = Process::ready(&[]);
    let mut job = Connection::open(process.at);
    let request = json!({ "prompt": CIRCLE, "size": "512x512", "num_inference_steps": 20 });
    job.send("POST", GENERATIONS, &[JSON], request.to_string().as_bytes());
    until("it is drawn", || metric(process.at, "tch_flux_jobs_running") == 1.0);
    let mut connections = [0, 1].map(|_| Connection::open(process.at));
    for connection in &mut connections {
        connection.send("GET", "/health", &[], b"");
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    process.signal(Signal::INT);
    until_draining(process.at);
    let [health, draws] = &mut connections;
    health.send("GET", "/health", &[], b"");
    assert_eq!(health.answer().unwrap().status, 200, "the process is as it should be");
    draws.send("POST", GENERATIONS, &[JSON], small(1).to_string().as_bytes());
    assert_eq!(draws.answer().unwrap().error()["code"], "stopping");
    assert_eq!(job.answer().unwrap().status, 200);
    assert_eq!(process.ended().code(), Some(0));
}

#[test]
fn after_the_grace_time_what_is_left_is_cancelled_and_told() {
    let mut process = Process::ready(&["--grace", "0.3"]);
    let mut whole = Connection::open(process.at);
    whole.send("POST", GENERATIONS, &[JSON], long().to_string().as_bytes());
    let mut stream = Connection::open(process.at);
    stream.send("POST", GENERATIONS, &[JSON], with(long(), "stream", json!(true)).to_string().as_bytes());
    assert_eq!(stream.head().unwrap().0, 200);
    until("one is drawn", || metric(process.at, "tch_flux_jobs_running") >= 1.0);
    let begun = Instant::now();
    process.signal(Signal::TERM);
    let answer = whole.answer().unwrap();
    assert_eq!((answer.status, answer.error()["code"].as_str()), (503, Some("stopping")));
    let mut text = Vec::new();
    while let Some(chunk) = stream.chunk().unwrap() {
        text.extend(chunk);
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("data: {\"error\":{") && text.contains("\"stopping\""), "{text}");
    assert_eq!(process.ended().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// A process that draws for long, and has been told to end.
fn ending(signal: Signal) -> (Process, Connection) {
    let process = Process::ready(&["--grace", "10m"]);
    let mut job = Connection::open(process.at);
    job.send("POST", GENERATIONS, &[JSON], long().to_string().as_bytes());
    until("it is drawn", || metric(process.at, "tch_flux_jobs_running") == 1.0);
    process.signal(signal);
    until_draining(process.at);
    (process, job)
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let (mut process, _job) = ending(signal);
        std::thread::sleep(Duration::from_millis(1100));
        process.signal(signal);
        assert!(!process.ended().success());
    }
}

#[test]
fn a_signal_that_comes_twice_within_a_second_is_one() {
    let mut process = Process::ready(&["--log-level", "info"]);
    let mut job = Connection::open(process.at);
    let request = json!({ "prompt": CIRCLE, "size": "512x512", "num_inference_steps": 20 });
    job.send("POST", GENERATIONS, &[JSON], request.to_string().as_bytes());
    until("it is drawn", || metric(process.at, "tch_flux_jobs_running") == 1.0);
    process.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    process.signal(Signal::TERM);
    process.signal(Signal::INT);
    assert_eq!(job.answer().unwrap().status, 200, "what was begun is finished");
    assert_eq!(process.ended().code(), Some(0));
    assert!(process.log().contains("stopping already"));
}

#[test]
fn idle_it_is_seen_to_stop_and_then_ends() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut process = Process::ready(&[]);
        let _idle = Connection::open(process.at);
        let begun = Instant::now();
        process.signal(signal);
        until_draining(process.at);
        assert_eq!(process.ended().code(), Some(0));
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(8), "{took:?}");
    }
    let mut process = Process::ready(&["--drain-notice", "0"]);
    let begun = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.ended().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // A longer one is waited for.
    let mut process = Process::ready(&["--drain-notice", "2500ms"]);
    let begun = Instant::now();
    process.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(get(process.at, "/ready").status, 503);
    assert_eq!(process.ended().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(2500), "{:?}", begun.elapsed());
}

/// Waits until a new connection is told that the server stops.
fn until_draining(at: SocketAddr) {
    until("it says that it stops", || {
        let answer = get(at, "/ready");
        answer.status == 503 && answer.error()["code"] == "stopping"
    });
}

#[test]
fn a_signal_while_it_loads_ends_it_well() {
    for _ in 0..5 {
        let mut process = Process::start(&[]);
        process.signal(Signal::TERM);
        assert_eq!(process.ended().code(), Some(0));
    }
}

#[test]
fn kill_9_in_a_write_leaves_nothing_behind_and_the_next_one_serves() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start_in(folder.path(), &[]);
    until_ready(process.at);
    // An address, so that there is something to keep; and an answer that is not read to its end.
    generate(process.at, &with(small(1), "response_format", json!("url"))).json();
    let mut connection = Connection::open(process.at);
    let request = json!({ "prompt": CIRCLE, "size": "1024x1024", "num_inference_steps": 1, "n": 4 });
    connection.send("POST", GENERATIONS, &[JSON], request.to_string().as_bytes());
    let (status, headers) = connection.head().unwrap();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").unwrap().1.parse::<usize>().unwrap();
    process.signal(Signal::KILL);
    assert!(!process.ended().success());
    let came = connection.rest();
    assert!(status == 200 && came < length, "{came} of {length}: it did not break off");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let port = process.at.port().to_string();
    let next = Process::ready(&["--port", &port]);
    assert_eq!(generate(next.at, &small(1)).status, 200);
}

#[test]
fn a_model_that_cannot_be_loaded_ends_it_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(&["--model", folder.path().to_str().unwrap()]);
    assert_eq!(process.ended().code(), Some(1));
    let log = process.log();
    assert!(log.contains("error: ") && log.contains("transformer"), "{log}");
}

#[test]
fn it_warns_where_it_is_open_to_all() {
    let warns = |arguments: &[&str]| {
        let process = Process::ready(arguments);
        process.signal(Signal::TERM);
        process.log().contains("WITHOUT A KEY")
    };
    assert!(warns(&["--host", "0.0.0.0"]));
    assert!(!warns(&["--host", "0.0.0.0", "--api-key", "sesame"]));
    assert!(!warns(&[]));
}

#[test]
fn requests_are_logged_with_their_ids() {
    let process = Process::ready(&["--log-json"]);
    let mut connection = Connection::open(process.at);
    connection.send(
        "POST",
        GENERATIONS,
        &[JSON, ("x-request-id", "my-own")],
        small(1).to_string().as_bytes(),
    );
    assert_eq!(connection.answer().unwrap().header("x-request-id"), Some("my-own"));
    assert_eq!(get(process.at, "/nothing").status, 404);
    let process_port = process.at.port();
    process.signal(Signal::TERM);
    let log = process.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line =
        lines.iter().find(|line| line["span"]["id"] == "my-own" && line["fields"]["message"] == "answered");
    let span = &line.unwrap_or_else(|| panic!("{log}"))["span"];
    assert_eq!(
        (&span["method"], &span["route"], &span["path"], &span["status"]),
        (&json!("POST"), &json!(GENERATIONS), &json!(GENERATIONS), &json!(200))
    );
    let client: SocketAddr = span["client"].as_str().and_then(|at| at.parse().ok()).expect("an address");
    assert!(client.ip().is_loopback() && client.port() != process_port, "{client}");
    assert!(line.unwrap()["fields"]["seconds"].is_f64());
    let listening = lines.iter().find(|line| line["fields"]["message"] == "listening").unwrap();
    assert_eq!(listening["fields"]["address"], json!(format!("127.0.0.1:{process_port}")));
    assert!(span["job"].is_u64(), "{span}");
    assert!(!log.contains(CIRCLE), "what users ask for is not logged");
}

#[test]
fn curl_draws_a_picture() {
    let process = Process::ready(&[]);
    let folder = tempfile::tempdir().unwrap();
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "60"])
            .args(arguments)
            .output();
        let output = output.expect("curl is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let to = |path: &str| format!("http://{}{path}", process.at);
    let request = with(small(3), "response_format", json!("url")).to_string();
    let answer = curl(&[&to(GENERATIONS), "--json", &request]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let url = answer["data"][0]["url"].as_str().unwrap();
    assert!(url.starts_with(&to("/v1/images/")), "{url}");
    let file = folder.path().join("a.png");
    curl(&[url, "-o", file.to_str().unwrap()]);
    assert!(std::fs::read(&file).unwrap().starts_with(b"\x89PNG"));
    let image = format!("image=@{}", file.display());
    let edited =
        curl(&[&to("/v1/images/edits"), "-F", "prompt=a", "-F", &image, "-F", "num_inference_steps=2"]);
    assert!(edited.contains("b64_json"), "{edited}");
    let stream = with(small(3), "stream", json!(true)).to_string();
    assert!(curl(&["-N", &to(GENERATIONS), "--json", &stream]).contains("event: image_generation.completed"));
    // A body that is too long is asked for first, and refused.
    let large = folder.path().join("large.json");
    std::fs::write(&large, json!({ "prompt": "a", "user": "x".repeat(3 << 20) }).to_string()).unwrap();
    let data = format!("@{}", large.display());
    let status = curl(&[&to(GENERATIONS), "--json", &data, "-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(status, "413");
}
