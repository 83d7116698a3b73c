//! Connections that are slow, many, or gone.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use tch_flux_server::Options;

use crate::client::{Connection, EDITS, GENERATIONS, JSON, bytes, generate, get, metric, until};
use crate::{CIRCLE, Served, long, small, with};

fn cancelled(served: &Served) -> f64 {
    metric(served.at, "tch_flux_jobs_total{outcome=\"cancelled\"}")
}

/// A server that is impatient.
fn impatient() -> Served {
    let options = Options {
        header_timeout: Duration::from_millis(400),
        body_timeout: Duration::from_millis(1500),
        body_pause: Duration::from_millis(400),
        write_timeout: Duration::from_millis(500),
        ..Options::default()
    };
    Served::start(options, 4)
}

/// Sends a byte now and then, until the other side has had enough.
fn trickle(to: std::net::SocketAddr, beginning: &[u8], byte: &[u8]) -> (Duration, Connection) {
    let mut connection = Connection::open(to);
    connection.write(beginning).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if connection.write(byte).is_err() || connection.has_come() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    (begun.elapsed(), connection)
}

#[test]
fn slow_headers_are_cut_off() {
    let served = impatient();
    let beginning = b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\nx-a: ";
    let (after, mut connection) = trickle(served.at, beginning, b"a");
    assert!(after < Duration::from_secs(10), "{after:?}");
    assert!(connection.is_closed());
    // Nor may a head be long.
    let mut connection = Connection::open(served.at);
    let _ = connection.write(format!("GET / HTTP/1.1\r\nx-a: {}\r\n\r\n", "a".repeat(200_000)).as_bytes());
    if let Ok((status, _)) = connection.head() {
        assert_eq!(status, 431);
    }
    assert_eq!(get(served.at, "/health").status, 200);
}

#[test]
fn slow_bodies_are_cut_off() {
    let served = impatient();
    for (path, content_type) in
        [(GENERATIONS, "application/json"), (EDITS, "multipart/form-data; boundary=x")]
    {
        let headers = [("content-type", content_type), ("content-length", "100000")];
        // A byte now and then, until the whole takes too long.
        let (after, mut connection) = trickle(served.at, &bytes("POST", path, &headers, b"--x\r\n"), b" ");
        assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&after), "{after:?}");
        let answer = connection.answer().unwrap();
        let error = answer.error();
        assert_eq!((answer.status, error["code"].as_str()), (408, Some("body_timeout")), "{error}");
        assert_eq!(answer.header("connection"), Some("close"));
        // None at all: the pause is too long.
        let mut connection = Connection::open(served.at);
        connection.send("POST", path, &headers, b"");
        assert_eq!(connection.answer().unwrap().status, 408);
    }
    assert_eq!(metric(served.at, "tch_flux_upload_bytes"), 0.0);
    assert_eq!(generate(served.at, &small(1)).status, 200);
}

#[test]
fn a_thousand_idle_connections_delay_nobody() {
    raise_descriptors();
    let served = Served::start(Options::default(), 8);
    generate(served.at, &small(1)).pictures();
    let idle: Vec<_> = (0..1000)
        .map(|i| {
            let mut stream = TcpStream::connect(served.at).unwrap();
            if i % 2 == 0 {
                stream.write_all(b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\n").unwrap();
            }
            stream
        })
        .collect();
    let begun = Instant::now();
    generate(served.at, &small(2)).pictures();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(idle);
    assert_eq!(get(served.at, "/health").status, 200);
}

/// Both ends of a thousand connections are in this process.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(8192, |most| most.min(8192));
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

#[test]
fn connections_are_bounded_and_idle_ones_make_room() {
    let options =
        Options { max_connections: 4, header_timeout: Duration::from_millis(300), ..Options::default() };
    let served = Served::start(options, 4);
    let _idle: Vec<_> = (0..8).map(|_| TcpStream::connect(served.at).unwrap()).collect();
    assert_eq!(get(served.at, "/health").status, 200);
}

#[test]
fn a_client_that_leaves_while_it_waits_frees_its_place() {
    let served = Served::start(Options::default(), 1);
    let mut drawn = Connection::open(served.at);
    drawn.send("POST", GENERATIONS, &[JSON], long().to_string().as_bytes());
    until("it is drawn", || metric(served.at, "tch_flux_jobs_running") == 1.0);
    for waiting in [with(small(1), "stream", json!(true)), small(1)] {
        let before = cancelled(&served);
        let mut waits = Connection::open(served.at);
        waits.send("POST", GENERATIONS, &[JSON], waiting.to_string().as_bytes());
        until("it waits", || metric(served.at, "tch_flux_queue_length") == 1.0);
        let full = generate(served.at, &small(2));
        assert_eq!((full.status, full.error()["code"].as_str()), (429, Some("queue_full")));
        drop(waits);
        until("its place is free", || metric(served.at, "tch_flux_queue_length") == 0.0);
        assert_eq!(cancelled(&served), before + 1.0);
    }
    assert_eq!(metric(served.at, "tch_flux_jobs_running"), 1.0, "the other one is still drawn");
}

#[test]
fn a_client_that_leaves_in_a_step_ends_it() {
    let served = Served::start(Options::default(), 4);
    let mut connection = Connection::open(served.at);
    connection.send("POST", GENERATIONS, &[JSON], long().to_string().as_bytes());
    until("a step is done", || metric(served.at, "tch_flux_step_seconds_count") >= 1.0);
    drop(connection);
    until("it is cancelled", || cancelled(&served) == 1.0);
    assert_eq!(generate(served.at, &small(1)).status, 200);
    let left =
        "tch_flux_http_requests_total{route=\"/v1/images/generations\",method=\"POST\",status=\"499\"}";
    assert_eq!(metric(served.at, left), 1.0);
}

#[test]
fn a_client_that_leaves_in_the_stream_ends_it() {
    let served = Served::start(Options::default(), 4);
    let mut connection = Connection::open(served.at);
    let request = with(with(long(), "stream", json!(true)), "partial_images", json!(3));
    connection.send("POST", GENERATIONS, &[JSON], request.to_string().as_bytes());
    assert_eq!(connection.head().unwrap().0, 200);
    // The first of it has come: that it waits, or a step.
    assert!(connection.chunk().unwrap().is_some());
    drop(connection);
    until("it is cancelled", || cancelled(&served) == 1.0);
    assert_eq!(generate(served.at, &small(1)).status, 200);
}

#[test]
fn two_hundred_at_once_are_all_answered_and_every_picture_is_its_own() {
    let served = Served::start(Options::default(), 64);
    let seeds = 0..10u64;
    let request = |seed| json!({ "prompt": CIRCLE, "size": "64x64", "seed": seed, "num_inference_steps": 2 });
    let alone: Vec<_> = seeds.map(|seed| generate(served.at, &request(seed)).pictures().remove(0)).collect();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..200u64)
            .map(|i| scope.spawn(move || (i % 10, generate(served.at, &request(i % 10)))))
            .collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let (mut drawn, mut refused) = (0, 0);
    for (seed, answer) in answers {
        match answer.status {
            200 => {
                assert_eq!(answer.pictures()[0], alone[seed as usize]);
                drawn += 1;
            }
            429 => {
                let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=60).contains(&wait));
                assert_eq!(answer.error()["type"], "rate_limit_error");
                refused += 1;
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert_eq!(drawn + refused, 200);
    assert!(drawn >= 65, "as many as may wait, and the first: {drawn}");
}

#[test]
fn one_connection_brings_many_requests() {
    let served = Served::start(Options::default(), 8);
    let mut connection = Connection::open(served.at);
    for i in 0..5 {
        connection.send("POST", GENERATIONS, &[JSON], small(i).to_string().as_bytes());
        assert_eq!(connection.answer().unwrap().status, 200);
        connection.send("POST", GENERATIONS, &[JSON], b"{");
        assert_eq!(connection.answer().unwrap().status, 400);
        connection.send("GET", "/health", &[], b"");
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    // Two at once.
    let both = [bytes("GET", "/health", &[], b""), bytes("GET", "/nothing", &[], b"")].concat();
    connection.write(&both).unwrap();
    assert_eq!((connection.answer().unwrap().status, connection.answer().unwrap().status), (200, 404));
}
