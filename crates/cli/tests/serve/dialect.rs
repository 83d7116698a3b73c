//! Answers, as the dialect has them, and as `/openapi.json` says.

use std::io::Cursor;

use serde_json::{Value, json};
use tch_flux::image::Image;

use crate::client::{Answer, EDITS, GENERATIONS, JSON, edit, events, generate, get, metric, send};
use crate::schema::lacks;
use crate::{CIRCLE, Served, shared, small, with};

/// Holds a value against a named schema of the server's own document.
fn fits(schema: &str, value: &Value) {
    let document = get(shared(), "/openapi.json").json();
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    let lacking = lacks(&document, &schema, value, "");
    assert!(lacking.is_empty(), "{lacking:#?}");
}

fn png(file: &[u8]) -> (u32, u32) {
    let reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
    (reader.info().width, reader.info().height)
}

#[test]
fn a_generation_answers_as_the_dialect_says() {
    let answer = generate(shared(), &json!({ "prompt": CIRCLE, "size": "96x64", "seed": 7, "n": 2 }));
    let body = answer.json();
    fits("Images", &body);
    assert_eq!(body["size"], "96x64");
    assert_eq!(
        (&body["background"], &body["output_format"], &body["quality"]),
        (&json!("opaque"), &json!("png"), &json!("high"))
    );
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    let seeds: Vec<_> = body["data"].as_array().unwrap().iter().map(|datum| datum["seed"].as_u64()).collect();
    assert_eq!(seeds, [Some(7), Some(8)], "seeds count on");
    assert_eq!(body["usage"]["output_tokens"], 2 * 6 * 4);
    let text = body["usage"]["input_tokens_details"]["text_tokens"].as_u64().unwrap();
    assert!((3..40).contains(&text), "the prompt's tokens: {text}");
    assert_eq!(body["usage"]["total_tokens"], text + 48);
    let pictures = answer.pictures();
    pictures.iter().for_each(|file| assert_eq!(png(file), (96, 64)));
    // The second is what its seed draws alone.
    let alone = generate(shared(), &json!({ "prompt": CIRCLE, "size": "96x64", "seed": 8 })).pictures();
    assert_eq!(pictures[1], alone[0]);
}

#[test]
fn a_picture_is_the_programs_own_with_the_same_texts() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = std::process::Command::new(env!("CARGO_BIN_EXE_tch-flux"))
        .args(["generate", CIRCLE, "--seed", "5", "-o", "own.png", "--quiet"])
        .current_dir(folder.path())
        .status();
    assert!(drawn.unwrap().success());
    let [file] = &generate(shared(), &json!({ "prompt": CIRCLE, "seed": 5 })).pictures()[..] else {
        panic!()
    };
    std::fs::write(folder.path().join("served.png"), file).unwrap();
    let read = |name| Image::read_png(folder.path().join(name)).unwrap();
    assert_eq!(read("served.png"), read("own.png"));
    // And it can be drawn again from its file.
    let again = ["generate", "--from-image", "served.png", "-o", "again.png", "--quiet"];
    let drawn = std::process::Command::new(env!("CARGO_BIN_EXE_tch-flux"))
        .args(again)
        .current_dir(folder.path())
        .status();
    assert!(drawn.unwrap().success());
    assert_eq!(read("again.png"), read("own.png"));
}

#[test]
fn every_format_is_what_it_says() {
    let draw = |format: &str, quality: u64| {
        let request =
            with(with(small(3), "output_format", json!(format)), "output_compression", json!(quality));
        let answer = generate(shared(), &request);
        assert_eq!(answer.json()["output_format"], format);
        answer.pictures().remove(0)
    };
    for (format, magic) in [("png", &b"\x89PNG\r\n\x1a\n"[..]), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")]
    {
        assert!(draw(format, 100).starts_with(magic), "{format}");
    }
    let lossy = draw("webp", 50);
    assert!(lossy[8..].starts_with(b"WEBP") && lossy.windows(4).any(|mark| mark == b"VP8 "), "lossy");
    for format in ["jpeg", "webp"] {
        assert!(draw(format, 5).len() < draw(format, 95).len(), "{format}");
    }
}

#[test]
fn an_address_brings_the_picture_without_a_key() {
    let by = |extra: &str| with(with(small(9), "response_format", json!(extra)), "n", json!(2));
    let answer = generate(shared(), &by("url"));
    fits("Images", &answer.json());
    let body = answer.json();
    let urls: Vec<_> = body["data"].as_array().unwrap().iter().map(|d| d["url"].as_str().unwrap()).collect();
    assert!(body["data"][0].get("b64_json").is_none());
    let base = "http://localhost/v1/images/";
    let contents: Vec<_> =
        urls.iter().map(|url| get(shared(), url.strip_prefix("http://localhost").unwrap())).collect();
    for (url, content) in urls.iter().zip(&contents) {
        let id = url.strip_prefix(base).unwrap().strip_suffix("/content").unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_eq!(content.header("content-type"), Some("image/png"));
        assert!(content.header("cache-control").unwrap().contains("max-age="));
    }
    let pictures = generate(shared(), &by("b64_json")).pictures();
    assert_eq!(contents.into_iter().map(|content| content.body).collect::<Vec<_>>(), pictures);
    assert_eq!(
        get(shared(), &urls[0].replace("http://localhost", "").replace('a', "b").replace('0', "1")).status,
        404
    );
    get(shared(), "/v1/images/none/content").is_error(404, "");
}

/// As OpenAI answers, and as clients that were written for these models read.
#[test]
fn dall_e_answers_with_addresses_unless_pictures_are_asked_for() {
    let asked = |model: &str, more: &[(&str, Value)]| {
        let request = with(small(9), "model", json!(model));
        let request = more.iter().fold(request, |all, (name, value)| with(all, name, value.clone()));
        generate(shared(), &request)
    };
    let picture = generate(shared(), &small(9)).pictures().remove(0);
    for model in ["dall-e-2", "dall-e-3"] {
        for more in [&[][..], &[("response_format", json!(null))], &[("response_format", json!("url"))]] {
            let body = asked(model, more).json();
            fits("Images", &body);
            assert!(body["data"][0].get("b64_json").is_none(), "{model}");
            let path = body["data"][0]["url"].as_str().unwrap().replace("http://localhost", "");
            assert_eq!(get(shared(), &path).body, picture, "{model}");
        }
        assert_eq!(
            asked(model, &[("response_format", json!("b64_json"))]).pictures(),
            std::slice::from_ref(&picture)
        );
        // All that dall-e-3 takes.
        let more = [
            ("quality", json!("hd")),
            ("style", json!("natural")),
            ("size", json!("64x64")),
            ("user", json!("me")),
        ];
        assert!(asked(model, &more).json()["data"][0]["url"].is_string());
        // A stream brings pictures.
        let events = events(&asked(model, &[("stream", json!(true))]).text());
        assert_eq!(events[0].name.as_deref(), Some("image_generation.completed"));
        asked(model, &[("stream", json!(true)), ("response_format", json!("url"))])
            .is_error(400, "response_format");
    }
    for model in
        ["gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2", "gpt-image-2.6-flare", "tiny", ""]
    {
        assert_eq!(asked(model, &[]).pictures(), std::slice::from_ref(&picture), "{model}");
    }
    let parts =
        [("prompt", None, &b"a"[..]), ("image", Some("a.png"), &picture), ("model", None, b"dall-e-2")];
    assert!(edit(shared(), &parts).json()["data"][0]["url"].is_string());
}

/// The sizes of dall-e-2 and dall-e-3 are sizes here.
#[test]
fn sizes_of_openai_are_taken() {
    let sizes =
        ["256x256", "512x512", "1024x1024", "1792x1024", "1024x1792", "1536x1024", "1024x1536", "auto"];
    let document = get(shared(), "/openapi.json").json();
    let pattern = &document["components"]["schemas"]["Generation"]["properties"]["size"]["pattern"];
    for size in sizes.iter().filter(|size| **size != "auto") {
        let (width, height) = size.split_once('x').unwrap();
        for side in [width, height] {
            assert!(pattern.as_str().unwrap().contains(side), "{side}");
        }
    }
}

#[test]
fn a_variation_without_a_seed_says_the_one_that_was_drawn() {
    let answer = generate(shared(), &with(with(small(5), "variation_strength", json!(0.5)), "n", json!(2)));
    let body = answer.json();
    fits("Images", &body);
    let files = answer.pictures();
    for (datum, file) in body["data"].as_array().unwrap().iter().zip(&files) {
        let variation = datum["variation_seed"].as_u64().expect("the seed that was drawn");
        let reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let texts = &reader.info().uncompressed_latin1_text;
        let compressed = &reader.info().utf8_text;
        let all: String = texts.iter().map(|text| text.text.clone()).collect::<Vec<_>>().join("\n")
            + &compressed.iter().filter_map(|text| text.get_text().ok()).collect::<Vec<_>>().join("\n");
        assert!(all.contains(&variation.to_string()), "{variation}: {all}");
        // And it draws the same picture again.
        let again = with(
            with(small(datum["seed"].as_u64().unwrap()), "variation_strength", json!(0.5)),
            "variation_seed",
            json!(variation),
        );
        assert_eq!(&generate(shared(), &again).pictures()[0], file);
    }
    let other = generate(shared(), &with(small(5), "variation_strength", json!(0.5))).json();
    assert_ne!(other["data"][0]["variation_seed"], body["data"][0]["variation_seed"], "each draws its own");
}

#[test]
fn addresses_expire_and_make_room() {
    let keep = |options: tch_flux_server::Options| {
        let served = Served::start(options, 8);
        let draw = |seed| {
            let answer = generate(served.at, &with(small(seed), "response_format", json!("url")));
            let url = answer.json()["data"][0]["url"].as_str().map(|url| url.replace("http://localhost", ""));
            url.ok_or(answer)
        };
        let first = draw(1).unwrap();
        (served, first)
    };
    let options = tch_flux_server::Options::default;
    let (served, first) =
        keep(tch_flux_server::Options { url_lifetime: std::time::Duration::from_millis(300), ..options() });
    assert_eq!(get(served.at, &first).status, 200);
    crate::client::until("it expires", || get(served.at, &first).status == 404);
    assert_eq!(metric(served.at, "tch_flux_kept_picture_bytes"), 0.0);

    let (served, first) = keep(tch_flux_server::Options { url_count: 2, ..options() });
    let two = with(with(small(2), "response_format", json!("url")), "n", json!(2));
    assert_eq!(generate(served.at, &two).status, 200);
    assert_eq!(get(served.at, &first).status, 404, "the oldest made room");
    let three = with(two.clone(), "n", json!(3));
    generate(served.at, &three).is_error(400, "response_format");

    let (served, first) = keep(tch_flux_server::Options { url_bytes: 20_000, ..options() });
    assert_eq!(get(served.at, &first).status, 200);
    let large = with(with(small(2), "response_format", json!("url")), "size", json!("512x512"));
    generate(served.at, &large).is_error(400, "response_format");
}

#[test]
fn what_is_accepted_and_ignored_changes_nothing() {
    let plain = generate(shared(), &small(4)).pictures();
    let body = json!({
        "quality": "hd", "complexity": "low", "background": "auto", "moderation": "low", "style": "vivid", "user": "me",
        "safety_identifier": {"any": ["thing"]}, "output_compression": 30, "partial_images": 2, "model": "gpt-image-1",
        "guidance_scale": 7.5,
    });
    let body =
        body.as_object().unwrap().iter().fold(small(4), |all, (name, value)| with(all, name, value.clone()));
    assert_eq!(generate(shared(), &body).pictures(), plain);
}

#[test]
fn a_stream_brings_partial_pictures_then_the_pictures() {
    let request = json!({
        "prompt": CIRCLE, "size": "64x64", "seed": 3, "n": 2, "stream": true, "partial_images": 3,
    });
    let answer = generate(shared(), &request);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = events(&answer.text());
    let names: Vec<_> = events.iter().map(|event| event.name.as_deref().unwrap()).collect();
    let (partial, completed) = ("image_generation.partial_image", "image_generation.completed");
    assert_eq!(names, [vec![partial; 6], vec![completed; 2]].concat());
    let data: Vec<Value> = events.iter().map(|event| serde_json::from_str(&event.data).unwrap()).collect();
    for (name, data) in names.iter().zip(&data) {
        fits("GenerationEvent", data);
        assert_eq!(data["type"], *name);
    }
    let indices: Vec<_> =
        data[..6].iter().map(|data| data["partial_image_index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    let whole = generate(shared(), &with(with(request, "stream", json!(false)), "partial_images", json!(0)));
    let whole = whole.json();
    for (i, data) in data[6..].iter().enumerate() {
        assert_eq!(data["b64_json"], whole["data"][i]["b64_json"], "as without a stream");
        assert_eq!(data["seed"], 3 + i);
        assert_eq!(data["usage"], whole["usage"]);
    }
}

#[test]
fn a_stream_says_in_comments_how_far_it_is() {
    // Nobody else is in this one's queue.
    let served = Served::start(Default::default(), 8);
    let answer = generate(served.at, &json!({ "prompt": CIRCLE, "size": "64x64", "stream": true }));
    let text = answer.text();
    let comments: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix(": ")?).ok()).collect();
    let steps: Vec<_> = comments.iter().filter_map(|comment| comment["step"].as_u64()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    assert_eq!(comments[0], json!({ "queued": 0 }));
    assert_eq!(comments.last(), Some(&json!({ "step": 4, "steps": 4, "image": 0, "images": 1 })));
}

#[test]
fn a_quiet_stream_says_that_it_is_there() {
    let options = tch_flux_server::Options {
        stream_keep_alive: std::time::Duration::from_millis(20),
        ..Default::default()
    };
    let served = Served::start(options, 8);
    let request = json!({ "prompt": CIRCLE, "size": "512x512", "stream": true, "num_inference_steps": 2 });
    let text = generate(served.at, &request).text();
    assert!(text.contains(": keep-alive\n\n"), "{}", &text[..200]);
    assert_eq!(events(&text).len(), 1);
}

#[test]
fn models_are_listed_and_found() {
    let list = get(shared(), "/v1/models").json();
    fits("Models", &list);
    assert_eq!(list["data"][0]["id"], "tiny");
    let model = get(shared(), "/v1/models/tiny").json();
    fits("Model", &model);
    assert_eq!(model, list["data"][0]);
    assert_eq!(get(shared(), "/v1/models/gpt-image-1").json()["id"], "gpt-image-1");
    for name in ["other", "a/b", "a%2Fb"] {
        let error = get(shared(), &format!("/v1/models/{name}")).is_error(404, "model");
        assert_eq!(error["code"], "model_not_found");
    }
    let error = generate(shared(), &with(small(1), "model", json!("sdxl"))).is_error(404, "model");
    assert_eq!(error["code"], "model_not_found");
}

#[test]
fn the_request_of_open_webui_is_served() {
    let body = json!({ "model": "dall-e-3", "prompt": CIRCLE, "n": 1, "size": "512x512", "response_format": "b64_json" });
    let headers = [
        JSON,
        ("accept", "*/*"),
        ("accept-encoding", "gzip, deflate, br"),
        ("user-agent", "Python/3.11 aiohttp/3.11"),
        ("authorization", "Bearer "),
        ("x-openwebui-user-name", "Jane%20Doe"),
        ("x-openwebui-user-id", "0b1c"),
        ("x-openwebui-user-email", "jane@example.org"),
        ("x-openwebui-user-role", "admin"),
    ];
    let answer = send(shared(), "POST", GENERATIONS, &headers, body.to_string().as_bytes());
    assert_eq!(png(&answer.pictures()[0]), (512, 512));
}

#[test]
fn errors_of_http_have_the_one_form() {
    let to = shared();
    for path in [
        "/nothing",
        "/v1",
        "/v1/images",
        "/v1/images/variations",
        "//",
        "/v1/models/",
        "/%00",
        "/v1/../health",
    ] {
        get(to, path).is_error(404, "");
    }
    for (method, path, allowed) in [
        ("GET", GENERATIONS, "POST"),
        ("PUT", EDITS, "POST"),
        ("DELETE", "/v1/models/tiny", "GET,HEAD"),
        ("POST", "/health", "GET,HEAD"),
        ("OPTIONS", "/", "GET,HEAD"),
        ("BREW", "/ready", "GET,HEAD"),
    ] {
        let answer = send(to, method, path, &[], b"");
        answer.is_error(405, "");
        assert_eq!(answer.header("allow"), Some(allowed));
    }
    let head = Answer { body: Vec::new(), ..get(to, "/health") };
    assert_eq!(head.status, 200);
}

#[test]
fn every_answer_has_a_request_id_and_a_sane_one_is_kept() {
    let id = |headers: &[(&str, &str)]| {
        send(shared(), "GET", "/health", headers, b"").header("x-request-id").unwrap().to_string()
    };
    let own = id(&[]);
    assert!(own.starts_with("req_") && own != id(&[]), "{own}");
    assert_eq!(id(&[("x-request-id", "abc-1.2_3:4")]), "abc-1.2_3:4");
    let long = "x".repeat(129);
    for odd in ["", "a b", "<script>", "a\"b", "ä", long.as_str()] {
        assert!(id(&[("x-request-id", odd)]).starts_with("req_"), "{odd}");
    }
    for path in ["/", "/metrics", "/openapi.json", "/v1/models", "/nothing"] {
        assert!(get(shared(), path).header("x-request-id").is_some());
    }
}

#[test]
fn the_document_is_true_to_the_code() {
    let document = get(shared(), "/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    for (path, operations) in paths {
        let operations = operations.as_object().unwrap();
        let asked = path.replace("{id}", if path.contains("models") { "tiny" } else { "none" });
        for method in ["get", "post", "put", "delete"] {
            let answer = send(shared(), &method.to_uppercase(), &asked, &[], b"");
            match operations.get(method) {
                None => assert_eq!(answer.status, 405, "{method} {path}"),
                Some(operation) => {
                    assert_ne!(answer.status, 405, "{method} {path}");
                    let found = answer.header("content-type").unwrap().split(';').next().unwrap().to_string();
                    let content = operation["responses"]["200"]["content"].as_object().unwrap();
                    let known = content.contains_key(&found) || answer.status != 200;
                    assert!(known, "{path}: {found}");
                    if answer.status == 200 && found == "application/json" {
                        let lacking = lacks(&document, &content[&found]["schema"], &answer.json(), path);
                        assert!(lacking.is_empty(), "{lacking:#?}");
                    }
                }
            }
        }
    }
    assert_eq!(document["servers"], json!([{ "url": "/" }]));
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["Generation"]["required"], json!(["prompt"]));
    assert_eq!(schemas["Edit"]["required"], json!(["image", "prompt"]));
    // In JSON null is absent, but for what is required.
    for (name, schema) in schemas["Generation"]["properties"].as_object().unwrap() {
        let taken = lacks(&document, schema, &Value::Null, name).is_empty();
        assert_eq!(taken, name != "prompt", "{name}");
    }
    // What the small model alone has not.
    for name in ["controlnet", "control_image", "ip_adapter", "redux_image", "redux_mix", "canny", "depth"] {
        for schema in ["Generation", "Edit"] {
            assert!(schemas[schema]["properties"].get(name).is_none(), "{schema}: {name}");
        }
    }
    assert_eq!(schemas["Edit"]["properties"]["as"]["enum"], json!(["start", "reference"]));
    assert!(document["components"].get("securitySchemes").is_none(), "without a key none is asked for");
    // Every status that an operation answers with stands there.
    let statuses = |path: &str, method: &str| {
        let all = document["paths"][path][method]["responses"].as_object().unwrap();
        all.keys().map(|status| status.parse().unwrap()).collect::<Vec<u16>>()
    };
    assert_eq!(statuses(GENERATIONS, "post"), [200, 400, 403, 404, 408, 413, 415, 429, 500, 503, 504]);
    assert_eq!(statuses("/v1/models/{id}", "get"), [200, 400, 404, 500, 503]);
    assert!(get(shared(), "/nothing").json()["error"].is_object());
    fits("Error", &get(shared(), "/nothing").json());
}

#[test]
fn metrics_count_what_happens() {
    let served = Served::start(Default::default(), 8);
    let count = |name: &str| metric(served.at, name);
    assert_eq!(count("tch_flux_jobs_total{outcome=\"finished\"}"), 0.0);
    generate(served.at, &json!({ "prompt": CIRCLE, "size": "64x64", "num_inference_steps": 3, "n": 2 }))
        .pictures();
    generate(served.at, &json!({ "prompt": CIRCLE, "n": 0 })).is_error(400, "n");
    edit(served.at, &[]).is_error(400, "prompt");
    let route = |route: &str, method: &str, status: u16| {
        count(&format!(
            "tch_flux_http_requests_total{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}"
        ))
    };
    assert_eq!(count("tch_flux_jobs_total{outcome=\"finished\"}"), 1.0);
    assert_eq!(count("tch_flux_step_seconds_count"), 6.0);
    assert!(count("tch_flux_step_seconds_sum") > 0.0);
    assert_eq!(count("tch_flux_step_seconds_bucket{le=\"+Inf\"}"), 6.0);
    assert_eq!(count("tch_flux_queue_wait_seconds_count"), 1.0);
    assert_eq!(count("tch_flux_job_seconds_count"), 1.0);
    assert_eq!((route(GENERATIONS, "POST", 200), route(GENERATIONS, "POST", 400)), (1.0, 1.0));
    assert_eq!(route(EDITS, "POST", 400), 1.0);
    get(served.at, "/v1/models/tiny");
    get(served.at, "/v1/models/other");
    send(served.at, "BREW", "/nowhere", &[], b"");
    assert_eq!((route("/v1/models/{*id}", "GET", 200), route("/v1/models/{*id}", "GET", 404)), (1.0, 1.0));
    assert_eq!(route("none", "other", 404), 1.0, "no client makes up labels");
    assert_eq!(
        (count("tch_flux_queue_length"), count("tch_flux_jobs_running"), count("tch_flux_workers")),
        (0.0, 0.0, 1.0)
    );
    assert!(count("process_resident_memory_bytes") > 1e6);
    assert_eq!(count("tch_flux_upload_bytes"), 0.0, "what was uploaded is let go of");
    let text = get(served.at, "/metrics").text();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let plain = name.split('{').next().unwrap();
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| plain.strip_suffix(end)).unwrap_or(plain);
        let typed = |name: &str| text.contains(&format!("# TYPE {name} "));
        assert!(typed(family) || typed(plain), "{line}");
    }
}
