//! Three replicas of the binary behind nginx with `deploy/nginx.conf`: what `docs/scaling.md` promises of them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{alone, support::require};

const REPLICAS: usize = 3;
const CLIENTS: usize = 12;
const KINDS: usize = 8;
const GENERATIONS: &str = "/v1/images/generations";
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn terminate(&mut self) -> ExitStatus {
        let sent = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.0.wait().unwrap()
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn replica(port: u16) -> Process {
    let model = crate::support::root().join("fixtures/tiny");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-flux"));
    command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string(), "--model"]).arg(model);
    // The last bits of a picture depend on it.
    Process::start(command.env("OMP_NUM_THREADS", "1").stderr(Stdio::null()))
}

/// `deploy/nginx.conf` with these addresses, and all that it writes in `folder`.
fn configuration(folder: &Path, port: u16, replicas: &[u16]) -> String {
    let file = crate::support::root().join("deploy/nginx.conf");
    let mut text = fs::read_to_string(file).unwrap();
    let mut replace = |from: &str, to: &str| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text = text.replace(from, to);
    };
    for (i, replica) in replicas.iter().enumerate() {
        replace(&format!("server replica-{}:8000 ", i + 1), &format!("server 127.0.0.1:{replica} "));
    }
    replace("listen 80;", &format!("listen 127.0.0.1:{port};"));
    replace("pid /run/nginx.pid;", &format!("pid {}/nginx.pid;\ndaemon off;\nuser root;", folder.display()));
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = kinds.map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()));
    replace("http {\n", &format!("http {{\n{}\n", temporary.join("\n")));
    text
}

struct Cluster {
    port: u16,
    ports: Vec<u16>,
    replicas: Vec<Process>,
    _nginx: Process,
    _folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// All of them ready; `None` without nginx.
    fn start() -> Option<Self> {
        let nginx = require::program("nginx", &["nginx"])?;
        let alone = alone();
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let ports: Vec<_> = (0..REPLICAS).map(|_| free_port()).collect();
        let replicas = ports.iter().map(|port| replica(*port)).collect();
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration(folder.path(), port, &ports)).unwrap();
        let mut command = Command::new(nginx);
        command.args(["-e", "stderr", "-p"]).arg(folder.path()).arg("-c").arg(&file);
        let nginx =
            Process::start(command.stderr(fs::File::create(folder.path().join("error.log")).unwrap()));
        let cluster = Self { port, ports, replicas, _nginx: nginx, _folder: folder, _alone: alone };
        cluster.ports.iter().chain([&cluster.port]).for_each(|port| until_ready(*port));
        Some(cluster)
    }

    fn running(&self, replica: usize) -> bool {
        let metrics = get(self.ports[replica], "/metrics").unwrap().text();
        metrics.lines().any(|line| line == "tch_flux_jobs_running 1")
    }
}

fn until_ready(port: u16) {
    let begun = Instant::now();
    while !get(port, "/ready").is_ok_and(|answer| answer.status == 200) {
        assert!(begun.elapsed() < PATIENCE, "port {port} is not ready");
        thread::sleep(Duration::from_millis(20));
    }
}

// ---------------------------------------------------------------- the client

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A request of HTTP/1.0: its answer ends with the connection.
fn ask(port: u16, method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let head =
        format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{kind}Content-Length: {}", body.len());
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "no whole answer");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(broken)?;
    let body = answer.split_off(end + 4);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    if length.is_some_and(|length: usize| length != body.len()) {
        return Err(broken());
    }
    Ok(Answer { status, body })
}

fn get(port: u16, path: &str) -> io::Result<Answer> {
    ask(port, "GET", path, "")
}

/// One of [`KINDS`] pictures.
fn picture(i: usize) -> Value {
    let colour = ["red", "green", "blue", "yellow"][i % 4];
    let prompt = format!("a {colour} circle on a black background");
    json!({"prompt": prompt, "size": "64x64", "num_inference_steps": 4, "seed": i % KINDS})
}

/// The same; every other one is a stream.
fn request(i: usize) -> Value {
    if i.is_multiple_of(2) {
        picture(i)
    } else {
        with(picture(i), json!({"stream": true, "partial_images": 1}))
    }
}

fn with(mut object: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    object.as_object_mut().unwrap().extend(more);
    object
}

/// The base64 of the picture, or what was answered in its place.
fn draw(port: u16, request: &Value) -> Result<String, String> {
    let answer =
        ask(port, "POST", GENERATIONS, &request.to_string()).map_err(|problem| problem.to_string())?;
    let text = answer.text();
    if answer.status != 200 {
        return Err(format!("{}: {text}", answer.status));
    }
    let last = match request.get("stream") {
        None => answer.json()["data"][0].clone(),
        Some(_) => text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .find(|event| event["type"] == "image_generation.completed")
            .unwrap_or_default(),
    };
    last["b64_json"].as_str().map(str::to_string).ok_or_else(|| format!("a stream broke off: {text:.300}"))
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    drawn: AtomicUsize,
    retries: Mutex<Vec<String>>,
    failures: Mutex<Vec<String>>,
}

impl Seen {
    /// Picture after picture, each asked for once more at the most, until `done`.
    fn client(&self, port: u16, alone: &[String], first: usize, done: &AtomicBool) {
        for i in first.. {
            if done.load(Ordering::Relaxed) {
                return;
            }
            let request = request(i);
            let drawn = draw(port, &request).or_else(|problem| {
                self.retries.lock().unwrap().push(problem);
                draw(port, &request)
            });
            match drawn {
                Ok(drawn) if drawn == alone[i % KINDS] => {
                    self.drawn.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => self.failures.lock().unwrap().push(format!("{request}: not the picture made alone")),
                Err(problem) => self.failures.lock().unwrap().push(problem),
            }
        }
    }

    fn until(&self, drawn: usize) {
        let begun = Instant::now();
        while self.drawn.load(Ordering::Relaxed) < drawn && self.failures.lock().unwrap().is_empty() {
            assert!(begun.elapsed() < PATIENCE, "{} of {drawn} pictures", self.drawn.load(Ordering::Relaxed));
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Puts load on the cluster, and lets `happen` when it is under way.
fn under_load(cluster: &mut Cluster, happen: impl FnOnce(&mut Cluster)) -> Seen {
    let alone: Vec<_> = (0..KINDS).map(|i| draw(cluster.ports[1], &picture(i)).unwrap()).collect();
    let (seen, done, port) = (Seen::default(), AtomicBool::new(false), cluster.port);
    thread::scope(|scope| {
        for i in 0..CLIENTS {
            let (seen, alone, done) = (&seen, &alone, &done);
            scope.spawn(move || seen.client(port, alone, i, done));
        }
        seen.until(2 * CLIENTS);
        happen(cluster);
        seen.until(seen.drawn.load(Ordering::Relaxed) + 4 * CLIENTS);
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.failures.lock().unwrap().is_empty(), "{:#?}", seen.failures.lock().unwrap());
    seen
}

// ---------------------------------------------------------------- the promises

#[test]
fn a_replica_that_is_killed_costs_no_client_its_picture() {
    let Some(mut cluster) = Cluster::start() else { return };
    let seen = under_load(&mut cluster, |cluster| {
        let begun = Instant::now();
        while !cluster.running(0) {
            assert!(begun.elapsed() < PATIENCE, "nothing is drawn by the first replica");
        }
        cluster.replicas[0].kill();
    });
    // What had been answered in part cannot be answered by another replica; all else is nginx's own affair.
    let retries = seen.retries.lock().unwrap();
    assert!(retries.len() <= CLIENTS, "{retries:#?}");
    assert!(retries.iter().all(|problem| problem.contains("broke off")), "{retries:#?}");
}

#[test]
fn a_replica_that_drains_costs_no_client_a_retry() {
    let Some(mut cluster) = Cluster::start() else { return };
    let seen = under_load(&mut cluster, |cluster| {
        let status = cluster.replicas[0].terminate();
        assert!(status.success(), "{status}");
    });
    assert!(seen.retries.lock().unwrap().is_empty(), "{:#?}", seen.retries.lock().unwrap());
}

#[test]
fn a_picture_is_found_at_its_address_whichever_replica_has_it() {
    let Some(cluster) = Cluster::start() else { return };
    for i in 0..2 * REPLICAS {
        let asked = with(picture(i), json!({"response_format": "url"}));
        let answer = ask(cluster.port, "POST", GENERATIONS, &asked.to_string()).unwrap().json();
        let url = answer["data"][0]["url"].as_str().unwrap();
        let path = url
            .strip_prefix(&format!("http://127.0.0.1:{}", cluster.port))
            .unwrap_or_else(|| panic!("{url}"));
        for _ in 0..REPLICAS {
            let picture = get(cluster.port, path).unwrap();
            assert_eq!((picture.status, &picture.body[..4]), (200, &b"\x89PNG"[..]));
        }
    }
    let lost = get(cluster.port, "/v1/images/none/content").unwrap();
    assert_eq!((lost.status, lost.json()["error"]["message"].is_string()), (404, true));
}

#[test]
fn what_nginx_says_itself_has_the_form_of_errors() {
    let Some(mut cluster) = Cluster::start() else { return };
    for replica in &mut cluster.replicas {
        replica.kill();
    }
    let answer = ask(cluster.port, "POST", GENERATIONS, &picture(0).to_string()).unwrap();
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (503, Some("server_error")));
    assert_eq!(get(cluster.port, "/metrics").unwrap().status, 404);
}
