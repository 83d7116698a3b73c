//! The server over engines that do as they are told: what no real model does when a test wants it.

#[path = "../../../tests/support/http_client.rs"]
mod client;
mod fields;
#[path = "../../../tests/support/json_schema.rs"]
mod schema;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use axum::routing::get;
use serde_json::{Value, json};
use tch::Device;
use tokio::sync::oneshot;

use super::*;
use client::{Connection, GENERATIONS, JSON, events, generate, metric, post, until};
use tch_flux::engine::{Options as Queue, Worker};
use tch_flux::generation::provenance::ModelRecord;
use tch_flux::generation::{Generated, OnBatchProgress, Phase, Progress, Request};
use tch_flux::image::{Format, Image};
use tch_flux::numerics::{Numerics, Quantize};
use tch_flux::{Error, Result};

/// Draws what a test tells it to.
struct FakeWorker<F>(Device, F);

impl<F> Worker for FakeWorker<F>
where
    F: FnMut(&Request) -> Result<()> + Send + 'static,
{
    fn device(&self) -> Device {
        self.0
    }
    fn max_batch(&self, _: &Request) -> usize {
        1
    }
    fn can_batch(&self, _: &Request, _: &Request) -> bool {
        false
    }
    fn draw(
        &mut self,
        requests: &[&Request],
        on_progress: &mut OnBatchProgress,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        let draw = |(place, request): (usize, &&Request)| {
            if let ControlFlow::Break(()) = on_progress(place, Progress::Phase(Phase::Text)) {
                return Err(Error::Cancelled);
            }
            (self.1)(request)?;
            let (width, height) = (request.width as u32, request.height as u32);
            // Nothing that a PNG could make small.
            let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ request.seed as u8;
            let image = Image { width, height, rgb: (0..width * height * 3).map(noise).collect() };
            Ok(vec![Generated {
                image,
                request: Request::clone(request),
                warnings: request.prompt_warnings(),
                skipped: (0, 0),
            }])
        };
        Ok(requests.iter().enumerate().map(draw).collect())
    }
    fn release(&mut self) {}
}

fn engine(draw: impl FnMut(&Request) -> Result<()> + Send + 'static) -> Engine {
    Engine::start_workers([FakeWorker(Device::Cpu, draw)], Queue { queue: 1 }).unwrap()
}

fn model() -> Model {
    Model {
        name: "told".into(),
        aliases: Vec::new(),
        created: 1,
        side: 64,
        images: 1,
        role: None,
        capabilities: Capabilities::default(),
        record: ModelRecord {
            model: "told".into(),
            kind: "f32".into(),
            numerics: Numerics::Exact,
            quantize: Quantize::None,
            vae_tile: None,
            autoencoder: String::new(),
            loras: Vec::new(),
        },
        devices: vec![Device::Cpu],
        tokenizer: None,
        tokens: 16,
    }
}

/// Listens until it is dropped.
struct Listening {
    at: SocketAddr,
    _stop: oneshot::Sender<()>,
}

fn listen(server: &Server, router: Router) -> Listening {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let state = server.state.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            connection::run(state, router, listener, async { drop(stopped.await) }).await.unwrap();
        });
    });
    Listening { at, _stop: stop }
}

fn serving(draw: impl FnMut(&Request) -> Result<()> + Send + 'static) -> Listening {
    let server = Server::new(Options { grace: Duration::from_millis(100), ..Options::default() });
    server.ready(engine(draw), model());
    listen(&server, server.router())
}

fn request(seed: u64) -> Value {
    json!({ "prompt": "a", "size": "64x64", "seed": seed })
}

/// Fails once with this, then draws.
fn once(fail: impl Fn() -> Result<()> + Send + 'static) -> Listening {
    let mut failed = false;
    serving(move |_| if std::mem::replace(&mut failed, true) { Ok(()) } else { fail() })
}

#[test]
fn after_an_injected_panic_the_next_request_succeeds() {
    let served = once(|| panic!("an injected fault"));
    let answer = generate(served.at, &request(1));
    let error = answer.error();
    assert_eq!(
        (answer.status, error["type"].as_str(), error["code"].as_str()),
        (500, Some("server_error"), Some("fault"))
    );
    assert_eq!(generate(served.at, &request(1)).pictures().len(), 1);
    assert_eq!(metric(served.at, "tch_flux_jobs_total{outcome=\"failed\"}"), 1.0);
}

#[test]
fn after_a_panic_in_a_stream_the_next_request_succeeds() {
    let served = once(|| panic!("an injected fault"));
    let mut stream = request(1);
    stream["stream"] = true.into();
    let answer = generate(served.at, &stream);
    assert_eq!(answer.status, 200, "it had begun");
    let [event] = &events(&answer.text())[..] else { panic!("{}", answer.text()) };
    let data: Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!((event.name.as_deref(), data["error"]["code"].as_str()), (None, Some("fault")));
    assert_eq!(events(&generate(served.at, &stream).text()).len(), 1);
}

#[test]
fn after_memory_has_run_out_the_next_request_succeeds() {
    let out =
        || Err(tch::TchError::Torch("DefaultCPUAllocator: can't allocate memory: 9 bytes".into()).into());
    let served = once(out);
    let answer = generate(served.at, &request(1));
    assert_eq!((answer.status, answer.error()["code"].as_str()), (503, Some("out_of_memory")));
    assert!(answer.header("retry-after").is_some(), "it may fare better");
    assert_eq!(generate(served.at, &request(1)).pictures().len(), 1);
}

#[test]
fn what_cannot_fit_is_refused_with_the_numbers() {
    let too_large = || {
        let hints = vec![tch_flux::Hint::VaeTile];
        Err(Error::TooLarge { needed: 9_000_000_000, free: 4_000_000_000, device: Device::Cpu, hints })
    };
    let error = generate(once(too_large).at, &request(1)).is_error(400, "size");
    let text = error["message"].as_str().unwrap();
    assert!(text.contains("9.00 GB") && text.contains("4.00 GB") && text.contains("tiles"), "{text}");
}

#[test]
fn what_the_engine_says_has_its_status() {
    let damaged = || Err(Error::NotFinite { what: "the latent", hint: "the file is damaged" });
    let answer = generate(once(damaged).at, &request(1));
    assert_eq!(
        (answer.status, answer.error()["code"].as_str()),
        (500, Some("failed")),
        "and is not tried again"
    );
    let wrong = || Err(Error::Request("no such thing".into()));
    generate(once(wrong).at, &request(1)).is_error(400, "");
}

#[test]
fn a_lost_device_is_told_and_is_not_healthy() {
    let server = Server::new(Options::default());
    let lost = |_: &Request| Err(tch::TchError::Torch("CUDA error: an illegal memory access".into()).into());
    let engine = Engine::start_workers([FakeWorker(Device::Cuda(0), lost)], Queue::default()).unwrap();
    server.ready(engine, model());
    let served = listen(&server, server.router());
    assert_eq!(client::get(served.at, "/health").status, 200);
    let answer = generate(served.at, &request(1));
    assert_eq!((answer.status, answer.error()["code"].as_str()), (503, Some("device_lost")));
    until("the thread has ended", || client::get(served.at, "/ready").status == 503);
    assert_eq!(client::get(served.at, "/health").error()["code"], "device_lost");
    assert_eq!(generate(served.at, &request(1)).error()["code"], "device_lost");
}

#[test]
fn while_it_loads_it_says_so() {
    let server = Server::new(Options::default());
    let served = listen(&server, server.router());
    assert_eq!(client::get(served.at, "/health").status, 200);
    for answer in
        [client::get(served.at, "/ready"), client::get(served.at, "/v1/models"), post(served.at, "{}")]
    {
        assert_eq!((answer.status, answer.error()["code"].as_str()), (503, Some("loading")));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(client::get(served.at, "/metrics").status, 200);
    server.ready(engine(|_| Ok(())), model());
    assert_eq!(client::get(served.at, "/ready").status, 200);
    server.drain();
    assert_eq!(client::get(served.at, "/ready").error()["code"], "stopping");
    assert_eq!(post(served.at, "{}").error()["code"], "stopping");
}

#[test]
fn a_job_that_takes_too_long_is_ended_and_not_tried_again() {
    let options = Options { job_timeout: Duration::from_millis(100), ..Options::default() };
    let server = Server::new(options);
    let (pass, wait) = mpsc::channel::<()>();
    server.ready(engine(move |_| wait.recv().map_err(|_| Error::Cancelled)), model());
    let served = listen(&server, server.router());
    let answer = generate(served.at, &request(1));
    assert_eq!((answer.status, answer.error()["code"].as_str()), (504, Some("timeout")));
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    drop(pass);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let (pass, wait) = mpsc::channel();
    let served = serving(move |_| wait.recv().map_err(|_| Error::Cancelled));
    let mut connections = [1, 2].map(|seed| {
        let mut connection = Connection::open(served.at);
        connection.send("POST", GENERATIONS, &[JSON], request(seed).to_string().as_bytes());
        let taken =
            || metric(served.at, "tch_flux_jobs_running") + metric(served.at, "tch_flux_queue_length");
        until("it is taken", || taken() == seed as f64);
        connection
    });
    let answer = generate(served.at, &request(3));
    let error = answer.error();
    assert_eq!(
        (answer.status, error["type"].as_str(), error["code"].as_str()),
        (429, Some("rate_limit_error"), Some("queue_full"))
    );
    assert_eq!(error["message"], "the queue is full: 1 of at most 1 jobs are waiting; try again later");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(metric(served.at, "tch_flux_jobs_total{outcome=\"refused\"}"), 1.0);
    for connection in &mut connections {
        pass.send(()).unwrap();
        assert_eq!(connection.answer().unwrap().status, 200);
    }
}

#[test]
fn a_panic_in_a_handler_is_an_answer_of_the_one_form() {
    async fn fault() -> &'static str {
        panic!("a fault in a handler")
    }
    let server = Server::new(Options::default());
    let router = Router::new()
        .route("/fault", get(fault))
        .layer(from_fn_with_state(server.state.clone(), middleware::handle))
        .merge(server.router());
    let served = listen(&server, router);
    for _ in 0..2 {
        let answer = client::get(served.at, "/fault");
        assert_eq!((answer.status, answer.error()["code"].as_str()), (500, Some("fault")));
        assert!(!answer.text().contains("handler"), "what is inside stays there");
    }
    assert_eq!(client::get(served.at, "/health").status, 200);
}

#[test]
fn a_fault_while_a_picture_is_encoded_is_an_answer() {
    // A picture that is smaller than it says.
    let picture = Image { width: 64, height: 64, rgb: vec![0; 3] };
    for format in Format::ALL {
        let error = encode::encode_plain(&picture, format, 90).unwrap_err();
        assert_eq!(error.status, 500);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    for _ in 0..2 {
        let outcome = runtime.block_on(encode::run_blocking::<()>(&permits, || panic!("a fault")));
        assert_eq!(outcome.unwrap_err().status, 500);
    }
    assert_eq!(runtime.block_on(encode::run_blocking(&permits, || Ok(7))).unwrap(), 7);
}

#[test]
fn the_router_can_be_mounted_elsewhere() {
    let server = Server::new(Options::default());
    server.ready(engine(|_| Ok(())), model());
    let router = Router::new().nest("/draw", server.router()).route("/other", get(|| async { "other" }));
    let served = listen(&server, router);
    assert_eq!(client::get(served.at, "/other").body, b"other");
    let answer = client::send(
        served.at,
        "POST",
        "/draw/v1/images/generations",
        &[JSON],
        request(1).to_string().as_bytes(),
    );
    assert_eq!(answer.pictures().len(), 1);
    assert_eq!(client::get(served.at, "/draw/v1/models").status, 200);
}

#[test]
fn a_slow_reader_is_let_go_of() {
    let server = Server::new(Options { write_timeout: Duration::from_millis(300), ..Options::default() });
    server.ready(engine(|_| Ok(())), model());
    let served = listen(&server, server.router());
    // More than the sockets between hold.
    let large = json!({ "prompt": "a", "size": "2048x2048", "output_compression": 0 });
    let mut stream = large.clone();
    stream["stream"] = true.into();
    for request in [large, stream] {
        let whole = post(served.at, request.to_string()).body.len();
        let mut connection = Connection::open(served.at);
        connection.send("POST", GENERATIONS, &[JSON], request.to_string().as_bytes());
        assert_eq!(connection.head().unwrap().0, 200);
        // The answer is there, and it is not read. Nobody else has to wait for that.
        assert_eq!(generate(served.at, &self::request(1)).status, 200);
        until("it is let go of", || metric(served.at, "tch_flux_http_requests_active") == 1.0);
        let rest = connection.rest();
        assert!(rest < whole, "it broke off: {rest} bytes of {whole}");
    }
    assert_eq!(
        server.state.response_permits.available_permits(),
        server.state.options.max_answer_bytes / 1024
    );
}

/// Fields that are not tried with every value: they say more than a schema can, or what they say depends on the server.
const SKIPPED: [&str; 17] = [
    "size",
    "model",
    "prompt",
    "true_cfg_scale",
    "background",
    "controlnet",
    "control_mode",
    "control_guidance_start",
    "control_guidance_end",
    "ip_adapter",
    "redux_without_text",
    "sigmas",
    "cache",
    "as",
    "keep_size",
    "canny",
    "depth",
];

/// Whether a field is not tried.
fn is_skipped(name: &str, schema: &Value) -> bool {
    let schema_text = schema.to_string();
    SKIPPED.contains(&name) || schema_text.contains("\"content") || schema_text.contains("\"binary\"")
}

#[test]
fn what_the_document_allows_is_taken_and_nothing_else() {
    let server = Server::new(Options { grace: Duration::from_millis(100), ..Options::default() });
    server.ready(engine(|_| Ok(())), Model { capabilities: fields::capabilities(), ..model() });
    let served = listen(&server, server.router());
    let document = client::get(served.at, "/openapi.json").json();
    // What other fields need.
    let picture = fields::encoded(8, 8);
    let needed = json!({
        "prompt": "a", "size": "64x64", "variation_strength": 0.5, "controlnet": "plain",
        "control_image": picture, "ip_adapter": "first", "ip_adapter_image": picture,
        "redux_image": picture, "redux_mix": "sum",
    });
    let tries = [
        json!(null),
        json!(0),
        json!(1),
        json!(3),
        json!(10),
        json!(11),
        json!(100),
        json!(-1),
        json!(0.5),
        json!(1.0),
        json!(30),
        json!(31),
        json!(true),
        json!(""),
        json!("png"),
        json!("url"),
        json!("b64_json"),
        json!([]),
    ];
    let schemas = &document["components"]["schemas"];
    let generation = schemas["Generation"]["properties"].as_object().unwrap();
    for (name, schema) in generation.iter().filter(|(name, schema)| !is_skipped(name, schema)) {
        for value in &tries {
            let mut request = needed.clone();
            request[name] = value.clone();
            let allowed = schema::lacks(&document, schema, value, name).is_empty();
            let answer = generate(served.at, &request);
            assert_eq!(answer.status == 200, allowed, "{name}: {value}: {}", answer.status);
        }
    }
    let edit = schemas["Edit"]["properties"].as_object().unwrap();
    let png = Image { width: 64, height: 64, rgb: vec![9; 64 * 64 * 3] }.to_png(&Default::default()).unwrap();
    for (name, schema) in edit.iter().filter(|(name, schema)| !is_skipped(name, schema)) {
        for value in &tries {
            let text = value.as_str().map_or(value.to_string(), str::to_string);
            // A form has no other texts than texts.
            let value = if schema["type"] == "string" { json!(text) } else { value.clone() };
            let allowed = value.is_null() || schema::lacks(&document, schema, &value, name).is_empty();
            let mut parts = vec![("prompt", None, &b"a"[..]), ("image", Some("a.png"), &png)];
            let needed = needed.as_object().unwrap().iter();
            let others = needed.filter(|(other, _)| *other != "prompt" && *other != name);
            let others: Vec<_> = others
                .map(|(other, value)| (other, value.as_str().map_or(value.to_string(), str::to_string)))
                .collect();
            parts.extend(others.iter().map(|(other, text)| (other.as_str(), None, text.as_bytes())));
            parts.push((name, None, text.as_bytes()));
            let answer = client::edit(served.at, &parts);
            assert_eq!(answer.status == 200, allowed, "{name}: {text}: {}", answer.text());
        }
    }
}

/// The document of a server with this model.
fn document(model: Model) -> Value {
    let server = Server::new(Options { grace: Duration::from_millis(100), ..Options::default() });
    server.ready(engine(|_| Ok(())), model);
    let served = listen(&server, server.router());
    client::get(served.at, "/openapi.json").json()
}

#[test]
fn the_document_offers_what_the_server_has() {
    let all = document(Model { capabilities: fields::capabilities(), ..model() });
    let schemas = &all["components"]["schemas"];
    let generation = &schemas["Generation"]["properties"];
    assert_eq!(generation["controlnet"]["anyOf"][0]["enum"], json!(["plain", "union"]));
    assert_eq!(generation["ip_adapter"]["anyOf"][0]["enum"], json!(["first", "second"]));
    for name in ["control_image", "control_mode", "ip_adapter_image", "redux_image", "redux_mix"] {
        assert!(generation[name].is_object() && schemas["Edit"]["properties"][name].is_object(), "{name}");
    }
    assert!(schemas["Model"]["properties"]["controlnets"].is_object());
    // With Redux a prompt may be left out.
    assert!(schemas["Generation"].get("required").is_none());
    let fits = |request: Value| schema::lacks(&all, &schemas["Generation"], &request, "").is_empty();
    let picture = fields::encoded(8, 8);
    assert!(
        fits(json!({ "prompt": "a" })) && fits(json!({ "redux_image": picture })) && !fits(json!({ "n": 1 }))
    );
    for wrong in [
        json!({ "prompt": "a", "controlnet": "plain" }),
        json!({ "prompt": "a", "ip_adapter_scale": 0.5 }),
        json!({ "prompt": "a", "stream": true, "response_format": "url" }),
        json!({ "prompt": "a", "variation_seed": 1 }),
        json!({ "prompt": "a", "true_cfg_scale": 2 }),
        json!({ "prompt": "a", "sigmas": [1, 0.5], "shift": [0, 1] }),
        json!({ "prompt": "a", "schedule": "linear", "shift": [0, 1] }),
        json!({ "prompt": "a", "steps": 1 }),
        json!({ "prompt": null }),
    ] {
        assert!(!fits(wrong.clone()), "{wrong}");
    }
    for right in [
        json!({ "prompt": "a", "controlnet": null, "variation_seed": null, "stream": true, "response_format": null }),
        json!({ "prompt": "a", "true_cfg_scale": 2, "negative_prompt": "" }),
        json!({ "prompt": "a", "variation_seed": 1, "variation_strength": 0.5 }),
        json!({ "prompt": "a", "controlnet": "plain", "control_image": picture }),
    ] {
        let lacking = schema::lacks(&all, &schemas["Generation"], &right, "");
        assert!(lacking.is_empty(), "{lacking:?}");
    }
}

#[test]
fn a_model_of_one_role_offers_that_one() {
    use tch_flux::generation::Role;
    for (role, depth, word, has, has_not) in [
        (Role::Fill, false, "fill", &["mask"][..], &["strength", "keep_size", "canny", "depth"][..]),
        (Role::Control, false, "control", &["canny"], &["mask", "strength", "keep_size", "depth"]),
        (Role::Control, true, "control", &["canny", "depth"], &["mask", "strength", "keep_size"]),
    ] {
        let capabilities = Capabilities { only_role: Some(role), depth, ..Capabilities::default() };
        let document = document(Model { capabilities, ..model() });
        assert!(document["paths"].get(GENERATIONS).is_none(), "it draws from pictures alone");
        let schema = &document["components"]["schemas"]["Edit"];
        assert_eq!(schema["properties"]["as"]["enum"], json!([word]));
        for name in has {
            assert!(schema["properties"][*name].is_object(), "{word}: {name}");
        }
        for name in has_not {
            assert!(schema["properties"].get(*name).is_none(), "{word}: {name}");
        }
        let required = schema["required"].as_array().unwrap();
        assert_eq!(required.contains(&json!("mask")), role == Role::Fill);
    }
}

#[test]
fn while_it_loads_the_document_is_there() {
    let server = Server::new(Options::default());
    let served = listen(&server, server.router());
    let document = client::get(served.at, "/openapi.json").json();
    assert!(document["paths"][GENERATIONS].is_object());
    assert!(document["components"]["schemas"]["Generation"]["properties"].get("controlnet").is_none());
}

#[test]
fn mounted_elsewhere_the_document_says_where() {
    let server = Server::new(Options::default());
    let served = listen(&server, Router::new().nest("/flux", server.router()));
    let document = client::get(served.at, "/flux/openapi.json").json();
    assert_eq!(document["servers"], json!([{ "url": "/flux" }]));
}
