//! The fields that OpenAI's API lacks: that they reach the engine's request, and what is refused before it waits.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;
use tch_flux::generation::{ControlPreprocess, ReduxMix, Role, Variation};
use tch_flux::models::flux1::StepCache;
use tch_flux::sampling::{Sampler, Schedule};

/// A picture's file.
pub(super) fn png(width: u32, height: u32) -> Vec<u8> {
    let image = Image { width, height, rgb: vec![9; (3 * width * height) as usize] };
    image.to_png(&Default::default()).unwrap()
}

/// In base64.
pub(super) fn encoded(width: u32, height: u32) -> String {
    BASE64_STANDARD.encode(png(width, height))
}

/// The capabilities of a model that draws from text and has everything.
pub(super) fn capabilities() -> Capabilities {
    let net = |name: &str, modes| NamedControlNet { name: name.into(), modes };
    let adapter = |name: &str| NamedIpAdapter { name: name.into(), depth: 3 };
    Capabilities {
        only_role: None,
        depth: false,
        redux: true,
        controlnets: vec![net("plain", None), net("union", Some(7))],
        ip_adapters: vec![adapter("first"), adapter("second")],
    }
}

/// A model of one role.
fn with_only(role: Role, depth: bool) -> Model {
    Model {
        capabilities: Capabilities { only_role: Some(role), depth, ..Capabilities::default() },
        ..model()
    }
}

/// Serves this model, and tells what it is asked to draw.
fn telling(model: Model, options: Options) -> (Listening, mpsc::Receiver<Request>) {
    let (tell, told) = mpsc::channel();
    let server = Server::new(Options { grace: Duration::from_millis(100), ..options });
    let draw = move |request: &Request| {
        tell.send(request.clone()).unwrap();
        Ok(())
    };
    server.ready(engine(draw), model);
    (listen(&server, server.router()), told)
}

fn capable_model() -> Model {
    Model { capabilities: capabilities(), ..model() }
}

fn merged(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

#[test]
fn the_walk_reaches_the_request() {
    let (served, told) = telling(capable_model(), Options::default());
    let asked = |more: Value| {
        let answer = generate(served.at, &merged(request(1), more));
        assert_eq!(answer.status, 200, "{}", answer.text());
        (told.recv().unwrap(), answer.json()["data"][0].clone())
    };
    let (drawn, datum) = asked(json!({
        "prompt_2": "b", "literal": true, "max_sequence_length": 77, "sampler": "dpmpp_2m", "shift": [0.4, 1.2],
        "cache": "taylor-seer:4,2", "variation_strength": 0.25, "variation_seed": 8,
    }));
    assert_eq!((drawn.prompt_2.as_deref(), drawn.literal), (Some("b"), true));
    assert_eq!((drawn.max_sequence_length, drawn.sampler), (Some(77), Some(Sampler::Dpmpp2m)));
    assert_eq!(drawn.schedule, Some(Schedule::Shifted { base: 0.4, max: 1.2 }));
    assert_eq!(drawn.cache, Some(StepCache::TaylorSeer { interval: 4, order: 2, warmup: 3 }));
    assert_eq!(drawn.variation, Some(Variation { seed: 8, strength: 0.25 }));
    assert_eq!((&datum["seed"], &datum["variation_seed"]), (&json!(1), &json!(8)));
    let (drawn, datum) = asked(json!({ "sigmas": [1, 0.6, 0.2], "sampler": "lcm" }));
    assert_eq!(drawn.schedule, Some(Schedule::Sigmas(vec![1.0, 0.6, 0.2])));
    assert_eq!(datum.get("variation_seed"), None);
    for (name, schedule) in [("linear", Schedule::Linear), ("shifted", Schedule::SHIFTED)] {
        assert_eq!(asked(json!({ "schedule": name })).0.schedule, Some(schedule));
    }
    assert_eq!(asked(json!({})).0.schedule, None, "the model's own");
    assert!(asked(json!({ "legacy_noise": true })).0.legacy_noise && !asked(json!({})).0.legacy_noise);
}

#[test]
fn prompts_are_read_to_the_letter_unless_a_request_asks_for_weights() {
    let (served, told) = telling(capable_model(), Options::default());
    let asked = |more: Value| generate(served.at, &merged(request(1), more));
    let prose = "a room (aspect ratio 16:9) with (fog:inf)";
    for more in [json!({}), json!({ "literal": null }), json!({ "literal": true })] {
        let answer = asked(merged(json!({ "prompt": prose }), more));
        assert_eq!((answer.status, answer.json().get("warnings")), (200, None), "{}", answer.text());
        assert!(told.recv().unwrap().literal);
    }
    let answer = asked(json!({ "prompt": prose, "literal": false }));
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("no finite number"), "{}", answer.text());

    let weighted = json!({
        "prompt": "(a:1.5) room (aspect ratio 16:9) (embedding:dust:1)", "literal": false,
        "negative_prompt": "(b:-3)", "true_cfg_scale": 2,
    });
    let are_told = |warnings: &Value| {
        let warnings: Vec<&str> = warnings.as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        let words = ["\"aspect ratio 16\" a weight of 9", "embedding:dust", "\"b\" a weight of -3"];
        assert!(warnings.iter().zip(words).all(|(text, words)| text.contains(words)), "{warnings:?}");
        assert_eq!(warnings.len(), 3, "{warnings:?}");
    };
    let answer = asked(weighted.clone());
    assert!(!told.recv().unwrap().literal);
    are_told(&answer.json()["warnings"]);
    let answer = asked(merged(weighted, json!({ "stream": true })));
    let events = events(&answer.text());
    let completed: Value = serde_json::from_str(&events.last().unwrap().data).unwrap();
    are_told(&completed["warnings"]);
}

#[test]
fn pictures_in_json_reach_the_request() {
    let (served, told) = telling(capable_model(), Options::default());
    let uri = format!("data:image/png;base64,{}", encoded(32, 16));
    let unfilled = encoded(16, 48).trim_end_matches('=').to_string();
    let answer = generate(
        served.at,
        &json!({
            "prompt": "a", "negative_prompt": "b", "true_cfg_scale": 2, "seed": 1,
            "controlnet": ["union", "plain"], "control_image": [uri, unfilled],
            "controlnet_conditioning_scale": [0.5, 0.7], "control_guidance_end": 0.8, "control_canny": true,
            "ip_adapter": "second", "ip_adapter_image": [encoded(5, 5), encoded(6, 6)],
            "negative_ip_adapter_image": encoded(7, 7), "ip_adapter_scale": [0.1, 0.2, 0.3],
            "redux_image": [encoded(8, 8), encoded(9, 9)], "redux_mix": "sum",
            "prompt_embeds_scale": [0.6, 0.4], "pooled_prompt_embeds_scale": 0.5,
        }),
    );
    // A mode is the union's alone, so it cannot be said once for all.
    answer.is_error(400, "control_mode");
    let mut asked = json!({
        "prompt": "a", "negative_prompt": "b", "true_cfg_scale": 2, "seed": 1,
        "controlnet": "union", "control_image": [uri, unfilled], "control_mode": ["depth", 4],
        "controlnet_conditioning_scale": [0.5, 0.7], "control_guidance_end": 0.8, "control_canny": true,
        "ip_adapter": "second", "ip_adapter_image": [encoded(5, 5), encoded(6, 6)],
        "negative_ip_adapter_image": encoded(7, 7), "ip_adapter_scale": [0.1, 0.2, 0.3],
        "redux_image": [encoded(8, 8), encoded(9, 9)], "redux_mix": "sum",
        "prompt_embeds_scale": [0.6, 0.4], "pooled_prompt_embeds_scale": 0.5,
    });
    let answer = generate(served.at, &asked);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["usage"]["input_tokens_details"]["image_tokens"], 32, "what ControlNets follow");
    let drawn = told.recv().unwrap();
    let controls: Vec<_> = drawn
        .controls
        .iter()
        .map(|item| (item.net, item.image.width, item.strength, item.mode, item.start, item.end, item.canny))
        .collect();
    assert_eq!(controls, [(1, 32, 0.5, Some(2), 0.0, 0.8, true), (1, 16, 0.7, Some(4), 0.0, 0.8, true)]);
    let [pictured] = &drawn.pictured[..] else { panic!("{:?}", drawn.pictured) };
    assert_eq!((pictured.adapter, pictured.scales.clone()), (1, vec![0.1, 0.2, 0.3]));
    assert_eq!((pictured.images.len(), pictured.negative[0].width), (2, 7));
    let redux = drawn.redux.unwrap();
    let images: Vec<_> =
        redux.images.iter().map(|item| (item.image.width, item.strength, item.pooled)).collect();
    assert_eq!((images, redux.mix), (vec![(8, 0.6, 0.5), (9, 0.4, 0.5)], ReduxMix::Sum));

    // Each IP-Adapter with its own picture, and lists for each.
    asked["ip_adapter"] = json!(["first", "second"]);
    asked["ip_adapter_scale"] = json!([[0.5], [1, 2, 3]]);
    assert_eq!(generate(served.at, &asked).status, 200);
    let pictured = told.recv().unwrap().pictured;
    let each: Vec<_> =
        pictured.iter().map(|item| (item.adapter, item.images[0].width, item.scales.clone())).collect();
    assert_eq!(each, [(0, 5, vec![0.5]), (1, 6, vec![1.0, 2.0, 3.0])]);

    // From pictures alitem.
    let alone = json!({ "redux_image": encoded(8, 8), "redux_without_text": true });
    assert_eq!(generate(served.at, &alone).status, 200);
    let drawn = told.recv().unwrap();
    assert!(drawn.prompts == [""] && drawn.redux.unwrap().without_text);
}

#[test]
fn the_model_tells_its_names() {
    let (served, _told) = telling(capable_model(), Options::default());
    let model = client::get(served.at, "/v1/models").json()["data"][0].clone();
    assert_eq!(
        (&model["controlnets"], &model["ip_adapters"]),
        (&json!(["plain", "union"]), &json!(["first", "second"]))
    );
}

#[test]
fn the_same_in_a_form() {
    let (served, told) = telling(capable_model(), Options::default());
    let [small, tall] = [png(32, 16), png(16, 48)];
    let text = |name, text: &'static str| (name, None, text.as_bytes());
    let answer = client::edit(
        served.at,
        &[
            text("prompt", "a"),
            ("image", Some("a.png"), &small),
            ("image[]", Some("b.png"), &tall),
            text("as", "reference"),
            text("keep_size", "true"),
            text("sigmas[]", "1"),
            text("sigmas[]", "0.5"),
            text("controlnet", "union"),
            ("control_image[]", Some("c.png"), &tall),
            ("control_image", None, encoded(64, 64).as_bytes()),
            text("control_mode", "canny"),
            text("controlnet_conditioning_scale", "0.5, 0.25"),
            text("control_guidance_start", "[0.1, 0.2]"),
            text("ip_adapter", "first"),
            ("ip_adapter_image", Some("d.png"), &small),
            text("ip_adapter_scale", "0.5"),
            ("redux_image", Some("e.png"), &small),
            text("prompt_embeds_scale", "0.5"),
        ],
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let drawn = told.recv().unwrap();
    let edit = drawn.edit.unwrap();
    assert_eq!((edit.role, edit.images.len(), edit.keep_size), (Some(Role::Reference), 2, true));
    assert_eq!((drawn.width, drawn.height), (32, 16), "as the first reference");
    assert_eq!(drawn.schedule, Some(Schedule::Sigmas(vec![1.0, 0.5])));
    let controls: Vec<_> =
        drawn.controls.iter().map(|item| (item.image.width, item.mode, item.strength, item.start)).collect();
    assert_eq!(controls, [(16, Some(0), 0.5, 0.1), (64, Some(0), 0.25, 0.2)]);
    assert_eq!((drawn.pictured[0].adapter, &drawn.pictured[0].scales[..]), (0, &[0.5][..]));
    assert_eq!(drawn.redux.unwrap().images[0].strength, 0.5);
}

#[test]
fn models_of_one_role_take_their_pictures_and_refuse_the_rest() {
    let picture = png(64, 64);
    let clear = {
        let mut file = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut file, 64, 64);
        encoder.set_color(::png::ColorType::Rgba);
        encoder.write_header().unwrap().write_image_data(&[0; 4 * 64 * 64]).unwrap();
        file
    };
    let ask = |at, more: &[(&str, Option<&str>, &[u8])]| {
        let parts = [&[("prompt", None, &b"a"[..]), ("image", Some("a.png"), &picture)][..], more].concat();
        client::edit(at, &parts)
    };
    let yes = |name| (name, None, &b"true"[..]);
    let mask = ("mask", Some("m.png"), &clear[..]);

    let (fill, told) = telling(with_only(Role::Fill, false), Options::default());
    let error = ask(fill.at, &[]).is_error(400, "mask");
    assert!(error["message"].as_str().unwrap().contains("`mask`"), "{error}");
    ask(fill.at, &[("as", None, b"start")]).is_error(400, "as");
    ask(fill.at, &[mask, yes("canny")]).is_error(400, "canny");
    let error = generate(fill.at, &request(1)).is_error(400, "image");
    assert!(error["message"].as_str().unwrap().contains("/v1/images/edits"), "{error}");
    assert_eq!(ask(fill.at, &[mask]).status, 200);
    let edit = told.recv().unwrap().edit.unwrap();
    assert!(edit.role == Some(Role::Fill) && edit.mask.is_some());

    let (control, told) = telling(with_only(Role::Control, false), Options::default());
    ask(control.at, &[mask]).is_error(400, "mask");
    ask(control.at, &[yes("keep_size")]).is_error(400, "keep_size");
    ask(control.at, &[("image", Some("b.png"), &picture)]).is_error(400, "image");
    ask(control.at, &[yes("canny"), yes("depth")]).is_error(400, "depth");
    let error = ask(control.at, &[yes("depth")]).is_error(400, "depth");
    assert!(error["message"].as_str().unwrap().contains("--depth-model"), "{error}");
    generate(control.at, &request(1)).is_error(400, "image");
    assert_eq!(ask(control.at, &[yes("canny"), ("depth", None, b"false")]).status, 200);
    assert_eq!(told.recv().unwrap().edit.unwrap().follow, ControlPreprocess::Canny);

    let (depth, told) = telling(with_only(Role::Control, true), Options::default());
    assert_eq!(ask(depth.at, &[yes("depth")]).status, 200);
    assert_eq!(told.recv().unwrap().edit.unwrap().follow, ControlPreprocess::Depth);

    let (text, told) = telling(capable_model(), Options::default());
    for role in ["fill", "control"] {
        ask(text.at, &[("as", None, role.as_bytes())]).is_error(400, "as");
    }
    ask(text.at, &[("as", None, b"looked at")]).is_error(400, "as");
    ask(text.at, &[yes("canny")]).is_error(400, "canny");
    ask(text.at, &[mask, ("as", None, b"reference")]).is_error(400, "mask");
    ask(text.at, &[mask, mask]).is_error(400, "mask");
    generate(text.at, &merged(request(1), json!({ "as": "start" }))).is_error(400, "as");
    assert!(told.try_recv().is_err(), "nothing was drawn");
}

#[test]
fn what_contradicts_itself_is_refused_before_it_waits() {
    let (served, told) = telling(capable_model(), Options::default());
    let one = encoded(8, 8);
    let control = json!({ "controlnet": "plain", "control_image": one });
    let like = json!({ "ip_adapter": "first", "ip_adapter_image": one });
    let look = json!({ "redux_image": one });
    let refused = |more: Value, param: &str, says: &str| {
        let error = generate(served.at, &merged(request(1), more.clone())).is_error(400, param);
        let text = error["message"].as_str().unwrap();
        assert!(text.contains(param) && text.contains(says), "{more}: {text}");
    };
    refused(json!({ "sampler": "ddim" }), "sampler", "euler, heun");
    refused(json!({ "schedule": "karras" }), "schedule", "linear");
    refused(json!({ "shift": [0.5, 1, 2] }), "shift", "2 numbers");
    refused(json!({ "shift": [0.5, 100] }), "shift", "20");
    refused(json!({ "schedule": "linear", "shift": [0.5, 1] }), "shift", "shifted");
    for sigmas in [json!([0.5, 1]), json!([1, 1]), json!([0]), json!([0.0, 0.0])] {
        refused(json!({ "sigmas": sigmas }), "sigmas", "fall");
    }
    for sigmas in
        [json!([]), json!([2, 1]), json!("1, 0.5"), json!([[1]]), json!([1, "0.5"]), json!(vec![0.5; 102])]
    {
        refused(json!({ "sigmas": sigmas }), "sigmas", "0 to 1");
    }
    refused(json!({ "sigmas": [1, 0.5], "num_inference_steps": 3 }), "num_inference_steps", "2");
    refused(json!({ "sigmas": [1, 0.5], "schedule": "linear" }), "schedule", "sigmas");
    refused(json!({ "sigmas": [1, 0.5], "shift": [0.5, 1] }), "shift", "sigmas");
    for cache in ["fbcache", "first-block:x", "tea-cache:-1", "taylor-seer:0", "taylor-seer:5,9", ""] {
        refused(json!({ "cache": cache }), "cache", "taylor-seer");
    }
    refused(json!({ "variation_seed": 3 }), "variation_strength", "variation_seed");
    refused(json!({ "variation_strength": 1.5 }), "variation_strength", "from 0 to 1");
    refused(json!({ "max_sequence_length": 513 }), "max_sequence_length", "512");

    refused(json!({ "control_image": one }), "controlnet", "plain, union");
    refused(merged(control.clone(), json!({ "controlnet": "unions" })), "controlnet", "`union`");
    refused(
        merged(control.clone(), json!({ "controlnet": ["plain", "union"] })),
        "controlnet",
        "2 values for 1",
    );
    refused(merged(control.clone(), json!({ "controlnet": "union" })), "control_mode", "canny, tile");
    refused(
        merged(control.clone(), json!({ "controlnet": "union", "control_mode": 7 })),
        "control_mode",
        "0 to 6",
    );
    refused(merged(control.clone(), json!({ "control_mode": "canny" })), "control_mode", "plain");
    refused(merged(control.clone(), json!({ "control_mode": "edges" })), "control_mode", "canny, tile");
    let half = json!({ "control_guidance_start": 0.5, "control_guidance_end": 0.5 });
    refused(merged(control.clone(), half), "control_guidance_end", "above");
    for (name, value) in [
        ("controlnet_conditioning_scale", json!([1, 2])),
        ("control_guidance_start", json!([0, 0.1])),
        ("control_guidance_end", json!([1, 0.9])),
    ] {
        refused(merged(control.clone(), json!({ name: value })), name, "2 values for 1");
        refused(json!({ name: 0.5 }), name, "`control_image`");
    }
    refused(json!({ "control_canny": true }), "control_canny", "`control_image`");
    refused(json!({ "controlnet": "plain" }), "controlnet", "`control_image`");
    refused(json!({ "control_mode": 0 }), "control_mode", "`control_image`");

    refused(json!({ "ip_adapter_image": one }), "ip_adapter", "first, second");
    refused(merged(like.clone(), json!({ "ip_adapter": "third" })), "ip_adapter", "first, second");
    refused(
        merged(like.clone(), json!({ "ip_adapter_scale": [1, 2] })),
        "ip_adapter_scale",
        "3 double blocks",
    );
    refused(
        merged(like.clone(), json!({ "ip_adapter_scale": [[1], [2]] })),
        "ip_adapter_scale",
        "2 lists for 1",
    );
    refused(merged(like.clone(), json!({ "ip_adapter_scale": [[1], 2] })), "ip_adapter_scale", "list");
    refused(json!({ "ip_adapter_scale": 1 }), "ip_adapter_scale", "`ip_adapter_image`");
    let negative = json!({ "negative_ip_adapter_image": one });
    refused(merged(like.clone(), negative.clone()), "negative_ip_adapter_image", "negative_prompt");
    refused(negative, "negative_ip_adapter_image", "`ip_adapter_image`");

    refused(json!({ "prompt_embeds_scale": 1 }), "prompt_embeds_scale", "`redux_image`");
    refused(json!({ "redux_without_text": true }), "redux_without_text", "redux_image");
    refused(merged(look.clone(), json!({ "redux_without_text": true })), "prompt", "redux_without_text");
    refused(
        merged(look.clone(), json!({ "prompt_embeds_scale": [1, 2] })),
        "prompt_embeds_scale",
        "2 values for 1",
    );
    let pooled = json!({ "pooled_prompt_embeds_scale": 2 });
    refused(merged(look, pooled), "pooled_prompt_embeds_scale", "redux_mix");
    assert!(told.try_recv().is_err(), "nothing was drawn");
}

#[test]
fn a_server_that_has_none_says_so() {
    let (served, told) = telling(model(), Options::default());
    for (name, flag) in [
        ("control_image", "--controlnet"),
        ("ip_adapter_image", "--ip-adapter"),
        ("redux_image", "--redux-model"),
    ] {
        let error =
            generate(served.at, &merged(request(1), json!({ name: encoded(8, 8) }))).is_error(400, name);
        assert!(error["message"].as_str().unwrap().contains(flag), "{error}");
    }
    assert!(told.try_recv().is_err());
}

#[test]
fn pictures_in_json_have_the_bounds_of_files() {
    let options = Options { max_image_bytes: 100_000, max_image_pixels: 10_000, ..Options::default() };
    let (served, told) = telling(capable_model(), options);
    let refused = |picture: Value, status: u16| {
        let asked = merged(request(1), json!({ "redux_image": picture }));
        generate(served.at, &asked).is_error(status, "redux_image")
    };
    for picture in
        ["", "a picture", "data:image/png,abc", "data:image/png;base64,!", "data:", "AAAA", "iVBORw0KGgo="]
    {
        assert_eq!(refused(json!(picture), 400)["code"], "invalid_image", "{picture}");
    }
    let error = refused(json!("https://example.org/a.png"), 400);
    assert!(error["message"].as_str().unwrap().contains("not fetched"), "{error}");
    for picture in [json!(1), json!({}), json!([1]), json!([]), json!(vec![encoded(8, 8); 17])] {
        assert_eq!(refused(picture, 400)["code"], "invalid_value");
    }
    let error = refused(json!([encoded(80, 80), encoded(80, 80)]), 400);
    assert!(error["message"].as_str().unwrap().contains("80x80"), "{error}");
    assert_eq!(refused(json!(BASE64_STANDARD.encode(vec![0; 100_001])), 413)["code"], "part_too_large");
    // As long as an edit's, and no longer.
    assert_eq!(refused(json!("A".repeat(2 << 20)), 413)["code"], "part_too_large");
    let answer = generate(served.at, &merged(request(1), json!({ "redux_image": "A".repeat(65 << 20) })));
    assert_eq!(answer.is_error(413, "")["code"], "body_too_large");
    // What would take many times its own bytes of memory.
    let many = format!(r#"{{"prompt": "a", "user": [{}0]}}"#, "0,".repeat(1 << 20));
    let error = post(served.at, many).is_error(400, "");
    assert!(error["message"].as_str().unwrap().contains("values"), "{error}");
    assert_eq!(metric(served.at, "tch_flux_upload_bytes"), 0.0);
    assert!(told.try_recv().is_err());
}

#[test]
fn a_stream_is_charged_for_its_pictures_until_it_ends() {
    let (pass, wait) = mpsc::channel();
    let server = Server::new(Options { grace: Duration::from_millis(100), ..Options::default() });
    server.ready(engine(move |_| wait.recv().map_err(|_| Error::Cancelled)), capable_model());
    let served = listen(&server, server.router());
    let asked = merged(request(1), json!({ "redux_image": encoded(100, 100), "stream": true }));
    let mut connection = Connection::open(served.at);
    connection.send("POST", GENERATIONS, &[JSON], asked.to_string().as_bytes());
    assert_eq!(connection.head().unwrap().0, 200);
    assert!(metric(served.at, "tch_flux_upload_bytes") >= 40_000.0, "four bytes a pixel");
    pass.send(()).unwrap();
    while connection.chunk().unwrap().is_some() {}
    until("it is given back", || metric(served.at, "tch_flux_upload_bytes") == 0.0);
}

#[test]
fn a_picture_says_how_it_was_controlled() {
    let (served, _told) = telling(capable_model(), Options::default());
    let asked = json!({
        "controlnet": "union", "control_image": encoded(8, 8), "control_mode": "pose", "control_guidance_end": 0.5,
        "ip_adapter": "first", "ip_adapter_image": encoded(8, 8), "ip_adapter_scale": 0.5,
        "redux_image": encoded(8, 8), "prompt_embeds_scale": 0.7, "sampler": "heun", "cache": "tea-cache",
    });
    let file = generate(served.at, &merged(request(1), asked)).pictures().remove(0);
    let provenance = recipe_of(&file);
    let [followed] = &provenance.controls[..] else { panic!("{provenance:?}") };
    assert_eq!((followed.controlnet.to_str(), &followed.image), (Some("union"), &None));
    assert_eq!((followed.mode, followed.end), (Some(4), 0.5));
    let [liked] = &provenance.pictured[..] else { panic!("{provenance:?}") };
    assert_eq!((liked.ip_adapter.to_str(), &liked.scales[..]), (Some("first"), &[0.5][..]));
    assert!(liked.images.is_empty() && liked.image_encoder.is_none());
    assert_eq!(provenance.redux.unwrap().images[0].strength, 0.7);
    assert_eq!(
        (provenance.request.sampler, provenance.request.cache),
        (Some(Sampler::Heun), Some(StepCache::TEA_CACHE))
    );
}

/// What a picture's file says of how it was drawn.
fn recipe_of(file: &[u8]) -> tch_flux::generation::provenance::Provenance {
    let reader = ::png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let texts = reader.info().utf8_text.iter().map(|text| (text.keyword.clone(), text.get_text().unwrap()));
    tch_flux::generation::provenance::Provenance::from_texts(&texts.collect()).unwrap().unwrap()
}
