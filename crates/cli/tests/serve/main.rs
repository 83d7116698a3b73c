//! `tch-flux serve`, over real sockets, with the small model: the server of the library, and the binary where it is the
//! process that matters. What needs an engine that does as it is told is in `crates/server/src/tests.rs`.
#![cfg(unix)]

mod addons;
mod bodies;
#[path = "../../../../tests/support/http_client.rs"]
mod client;
mod connections;
mod dialect;
mod forms;
mod life;
mod modes;
#[path = "../../../../tests/support/json_schema.rs"]
mod schema;
mod security;
mod settings;
#[path = "../../../../tests/support/mod.rs"]
mod support;
mod surfaces;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tch_flux::engine::{self, Engine};
use tch_flux::generation::{Parts, Pipeline, Settings};
use tch_flux::numerics::Numerics;
use tch_flux_server::{Model, Options, Server};
use tokio::sync::oneshot;

const CIRCLE: &str = "a red circle on a blue background";

fn tiny() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

/// A server in this process, which ends when it is dropped.
struct Served {
    at: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    fn start(options: Options, queue: usize) -> Self {
        let parts = Parts::find(tiny()).unwrap();
        let settings = Settings { numerics: Numerics::Fast, keep_text_encoders: true, ..Settings::default() };
        Self::of(Pipeline::open(parts.clone(), settings).unwrap(), &parts, options, queue)
    }

    fn of(pipeline: Pipeline, parts: &Parts, options: Options, queue: usize) -> Self {
        // No balancer looks at it.
        let server = Server::new(Options { drain_notice: Duration::ZERO, ..options });
        let model = Model::from_pipeline(&pipeline, parts, "tiny", 64);
        let engine = Engine::start([pipeline], engine::Options { queue }).unwrap();
        server.ready(engine, model);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let stop = async { drop(stopped.await) };
                server.run(listener, stop).await.unwrap();
            });
        });
        Self { at, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A test that has failed already says why.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// The server that all tests share that need no other.
fn shared() -> SocketAddr {
    static SHARED: LazyLock<Served> = LazyLock::new(|| Served::start(Options::default(), 64));
    SHARED.at
}

/// A request that is drawn in an instant.
fn small(seed: u64) -> Value {
    json!({ "prompt": CIRCLE, "size": "64x64", "seed": seed, "num_inference_steps": 1 })
}

/// A request that takes far longer than a test.
fn long() -> Value {
    json!({ "prompt": CIRCLE, "size": "512x512", "num_inference_steps": 100, "n": 10 })
}

fn with(mut request: Value, name: &str, value: Value) -> Value {
    request[name] = value;
    request
}

/// The server still draws.
fn is_well(at: SocketAddr) {
    assert_eq!(client::generate(at, &small(1)).pictures().len(), 1);
}
