//! Who is served: keys, pages elsewhere, names that are not the server's.

use serde_json::json;
use tch_flux_server::Options;

use crate::client::{Answer, EDITS, GENERATIONS, JSON, form, generate, get, send};
use crate::{Served, shared, small};

fn keyed() -> Served {
    Served::start(Options { api_key: Some("sesame".into()), ..Options::default() }, 8)
}

#[test]
fn without_the_key_nobody_draws() {
    let served = keyed();
    let ask = |headers: &[(&str, &str)]| {
        let headers = [&[JSON], headers].concat();
        send(served.at, "POST", GENERATIONS, &headers, small(1).to_string().as_bytes())
    };
    for wrong in [
        "Bearer wrong",
        "Bearer sesam",
        "Bearer sesamee",
        "Bearer",
        "Bearer ",
        "Basic sesame",
        "sesame",
        "Bearer SESAME",
    ] {
        let answer = ask(&[("authorization", wrong)]);
        let error = answer.is_error(401, "");
        assert_eq!(
            (error["type"].as_str(), error["code"].as_str()),
            (Some("authentication_error"), Some("invalid_api_key"))
        );
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(!answer.text().contains("sesame"));
    }
    ask(&[]).is_error(401, "");
    assert_eq!(ask(&[("authorization", "Bearer sesame")]).pictures().len(), 1);
    assert_eq!(ask(&[("authorization", "bearer sesame")]).pictures().len(), 1);
}

#[test]
fn what_tells_nothing_needs_no_key() {
    let served = keyed();
    for path in ["/health", "/ready", "/openapi.json", "/", "/page.css", "/page.js"] {
        assert_eq!(get(served.at, path).status, 200, "{path}");
    }
    for path in ["/metrics", "/v1/models", "/v1/models/tiny"] {
        get(served.at, path).is_error(401, "");
        assert_eq!(
            send(served.at, "GET", path, &[("authorization", "Bearer sesame")], b"").status,
            200,
            "{path}"
        );
    }
    // A large body is read to its end, so that the client hears why.
    let (content_type, body) = form(&[("image", Some("a.png"), &vec![0; 20 << 20])]);
    send(served.at, "POST", EDITS, &[("content-type", &content_type)], &body).is_error(401, "");
}

#[test]
fn the_document_says_names_to_those_alone_who_may_ask_for_them() {
    let served = Served::start(
        Options {
            api_key: Some("sesame".into()),
            public_url: Some("https://a.example/flux/".into()),
            ..Options::default()
        },
        8,
    );
    let ask = |headers: &[(&str, &str)]| send(served.at, "GET", "/openapi.json", headers, b"").json();
    let (stranger, friend) = (ask(&[]), ask(&[("authorization", "Bearer sesame")]));
    let model = |document: &serde_json::Value| {
        document["components"]["schemas"]["Generation"]["properties"]["model"]["enum"].clone()
    };
    assert_eq!(model(&stranger), json!(null));
    assert!(model(&friend).as_array().unwrap().contains(&json!("tiny")));
    for document in [stranger, friend] {
        assert_eq!(document["servers"], json!([{ "url": "https://a.example/flux" }]));
        assert_eq!(document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
        let operation = &document["paths"][GENERATIONS]["post"];
        assert_eq!(operation["security"], json!([{ "key": [] }]));
        assert!(operation["responses"]["401"].is_object());
        assert_eq!(document["paths"]["/health"]["get"]["security"], json!([]));
    }
}

fn from(origin: &str, served: std::net::SocketAddr) -> Answer {
    send(served, "POST", GENERATIONS, &[JSON, ("origin", origin)], small(1).to_string().as_bytes())
}

#[test]
fn pages_elsewhere_may_not_draw_unless_they_are_let() {
    for origin in ["https://evil.example", "null", "http://localhost:1", "https://localhost.evil.example"] {
        let answer = from(origin, shared());
        assert_eq!(answer.is_error(403, "")["code"], "unknown_origin");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    // A form, which browsers send without asking first.
    let (content_type, body) = form(&[("prompt", None, b"a")]);
    let headers = [("content-type", content_type.as_str()), ("origin", "https://evil.example")];
    send(shared(), "POST", EDITS, &headers, &body).is_error(403, "");
    // The server's own page.
    assert_eq!(from("http://localhost", shared()).status, 200);

    let friend = "https://friend.example";
    let served = Served::start(Options { cors_origins: vec![friend.into()], ..Options::default() }, 8);
    let answer = from(friend, served.at);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some(friend));
    assert!(answer.header("access-control-expose-headers").unwrap().contains("x-request-id"));
    assert_eq!(answer.header("vary"), Some("origin"));
    from("https://evil.example", served.at).is_error(403, "");
    let errors = send(served.at, "POST", GENERATIONS, &[JSON, ("origin", friend)], b"{");
    assert_eq!((errors.status, errors.header("access-control-allow-origin")), (400, Some(friend)));
}

#[test]
fn a_browser_is_told_what_a_page_may_send() {
    let friend = "https://friend.example";
    let served = Served::start(
        Options { cors_origins: vec![friend.into()], api_key: Some("sesame".into()), ..Options::default() },
        8,
    );
    let asks = |origin, to| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization, content-type"),
        ];
        send(to, "OPTIONS", GENERATIONS, &headers, b"")
    };
    let answer = asks(friend, served.at);
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some(friend));
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization, content-type"));
    assert!(answer.header("access-control-allow-methods").unwrap().contains("POST"));
    assert!(answer.header("x-request-id").is_some());
    assert_ne!(asks("https://evil.example", served.at).status, 204);
    asks(friend, shared()).is_error(405, "");
}

#[test]
fn names_that_are_not_the_servers_are_refused() {
    let options = Options { check_hosts: true, hosts: vec!["flux.example".into()], ..Options::default() };
    let served = Served::start(options, 8);
    let call = |host: &str| send(served.at, "GET", "/health", &[("host", host)], b"");
    for host in [
        "localhost",
        "localhost:8000",
        "LOCALHOST",
        "127.0.0.1:80",
        "10.0.0.7",
        "[::1]:8000",
        "flux.example",
        "Flux.Example:8000",
    ] {
        assert_eq!(call(host).status, 200, "{host}");
    }
    for host in
        ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "flux.example.evil", "x:y:z"]
    {
        assert_eq!(call(host).is_error(403, "")["code"], "unknown_host", "{host}");
    }
}

#[test]
fn the_page_takes_nothing_from_elsewhere() {
    let page = get(shared(), "/");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.header(name), Some(value));
    }
    let text = page.text();
    let elsewhere =
        ["src=\"http", "href=\"http", "src=\"//", "href=\"//", "url(http", "@import", "from \"http"];
    for load in elsewhere {
        assert!(!text.contains(load), "{load}: nothing is loaded from elsewhere");
    }
    // Everything that the page names is there.
    let names = text.split(['"', '\'']).filter(|name| name.ends_with(".js") || name.ends_with(".css"));
    for name in names {
        assert_eq!(get(shared(), &format!("/{}", name.trim_start_matches("./"))).status, 200, "{name}");
    }
    let script = get(shared(), "/page.js");
    assert_eq!(script.header("content-type"), Some("text/javascript; charset=utf-8"));
    let imported = script.text();
    for name in imported.split('"').filter_map(|name| name.strip_prefix("./")) {
        assert_eq!(get(shared(), &format!("/{name}")).status, 200, "{name}");
    }
    assert_eq!(
        generate(shared(), &json!({ "prompt": "a", "size": "64x64" })).header("x-content-type-options"),
        Some("nosniff")
    );
}
