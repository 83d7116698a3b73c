//! The schemas of `/openapi.json`.

use serde_json::{Map, Value, json};

use super::super::able::{ROLES, role_name};
use super::super::edits::MAX_IMAGES;
use super::super::fields::{Field, fields};
use super::super::shape::Shape;
use super::{Offer, named};
use tch_flux::generation::Role;

/// What a request may hold. Null is absent.
pub(super) fn request_schema(offer: &Offer, edits: bool) -> Value {
    let able = offer.able();
    let offered: Vec<_> = fields(edits).filter(|field| able.offers(field.name)).collect();
    let has = |name: &str| offered.iter().any(|field| field.name == name);
    let properties: Map<_, _> =
        offered.iter().map(|field| (field.name.into(), property(offer, field, edits))).collect();
    let mut required = if edits { vec!["image"] } else { Vec::new() };
    let mut rules = rules(offer, edits, &has);
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if has("redux_image") {
        // Without a prompt there are pictures to look at.
        rules.push(json!({ "anyOf": [{ "required": ["prompt"] }, given("redux_image")] }));
    } else {
        required.push("prompt");
    }
    if able.only_role == Some(Role::Fill) && edits {
        required.push("mask");
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema["allOf"] = json!(rules);
    schema
}

fn property(offer: &Offer, field: &Field, edits: bool) -> Value {
    let able = offer.able();
    let one_or_list = |item: Value| {
        let list = json!({ "type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": item });
        json!({ "anyOf": [item, list] })
    };
    let known = |names: Vec<&str>| match offer.names {
        true => json!({ "type": "string", "enum": names }),
        false => json!({ "type": "string" }),
    };
    let mut schema = match field.name {
        "model" => match offer.model {
            // An empty one is as good as none.
            Some(model) => {
                let aliases = model.aliases.iter().map(String::as_str);
                known([model.name.as_str(), ""].into_iter().chain(aliases).collect())
            }
            None => field.shape.schema(),
        },
        "as" => match able.only_role {
            Some(role) => json!({ "type": "string", "enum": [role_name(role)] }),
            None => json!({ "type": "string", "enum": ROLES[..2] }),
        },
        "background" => json!({ "not": { "const": "transparent" } }),
        "controlnet" => one_or_list(known(able.controlnets.iter().map(|net| net.name.as_str()).collect())),
        "ip_adapter" => {
            one_or_list(known(able.ip_adapters.iter().map(|adapter| adapter.name.as_str()).collect()))
        }
        _ if edits && field.shape == Shape::Pictures => {
            let file = json!({ "type": "string", "format": "binary" });
            let most = offer.model.map_or(1, |model| model.images);
            match field.name {
                "mask" => file,
                "image" if able.only_role.is_some() && most == 1 => file,
                _ => one_or_list(file),
            }
        }
        _ => field.shape.schema(),
    };
    // A form has no null, but where numbers and lists are read of text, the word for it.
    let has_null = if edits { field.shape.is_read_from_text() } else { field.name != "prompt" };
    if has_null {
        schema = nullable(schema);
    }
    schema["description"] = field.about.into();
    schema
}

/// The same, and null.
fn nullable(mut schema: Value) -> Value {
    if let Some(name) = schema["type"].as_str() {
        schema["type"] = json!([name, "null"]);
        if let Some(choices) = schema.get_mut("enum").and_then(Value::as_array_mut) {
            choices.push(Value::Null);
        }
    } else if let Some(any) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        any.push(json!({ "type": "null" }));
    }
    // What is left takes anything.
    schema
}

/// What holds for several fields at once, as far as JSON Schema can say it.
fn rules(offer: &Offer, edits: bool, has: &impl Fn(&str) -> bool) -> Vec<Value> {
    let mut rules = vec![
        never([
            holds("stream", json!({ "const": true })),
            holds("response_format", json!({ "const": "url" })),
        ]),
        needs(
            holds("true_cfg_scale", json!({ "type": "number", "exclusiveMinimum": 1 })),
            given("negative_prompt"),
        ),
        needs(given("variation_seed"), given("variation_strength")),
        never([given("sigmas"), given("schedule")]),
        never([given("sigmas"), given("shift")]),
        never([given("sigmas"), given("num_inference_steps")]),
        never([holds("schedule", json!({ "const": "linear" })), given("shift")]),
    ];
    let mut about = |pictures: &str, others: &[&str]| {
        let others = others.iter().filter(|name| has(pictures) && has(name));
        rules.extend(others.map(|name| needs(given(name), given(pictures))));
    };
    about(
        "control_image",
        &[
            "controlnet",
            "control_mode",
            "controlnet_conditioning_scale",
            "control_guidance_start",
            "control_guidance_end",
        ],
    );
    about("ip_adapter_image", &["ip_adapter", "negative_ip_adapter_image", "ip_adapter_scale"]);
    about("redux_image", &["prompt_embeds_scale", "pooled_prompt_embeds_scale", "redux_mix"]);
    if edits && offer.able().only_role.is_none() {
        let usual = offer.model.and_then(|model| model.role).unwrap_or(Role::Start);
        let is = |role: Role| match holds("as", json!({ "const": role_name(role) })) {
            named if usual == role => json!({ "anyOf": [named, { "not": given("as") }] }),
            named => named,
        };
        let several = json!({ "type": "array", "minItems": 2 });
        rules.push(needs(holds("image", several), is(Role::Reference)));
        rules.push(needs(holds("keep_size", json!({ "const": true })), is(Role::Reference)));
        rules.push(needs(given("mask"), is(Role::Start)));
    }
    rules
}

/// A field that is there and fits a schema.
fn holds(name: &str, schema: Value) -> Value {
    json!({ "required": [name], "properties": { name: schema } })
}

/// Not both.
fn never(both: [Value; 2]) -> Value {
    json!({ "not": { "allOf": both } })
}

/// The second where the first is.
fn needs(given: Value, needed: Value) -> Value {
    json!({ "if": given, "then": needed })
}

/// A field that is there and not null.
fn given(name: &str) -> Value {
    holds(name, json!({ "not": { "type": "null" } }))
}

/// All of them, by their names.
pub(super) fn schemas(offer: &Offer) -> Value {
    let text = || json!({ "type": "string" });
    let whole = || json!({ "type": "integer", "minimum": 0 });
    let about = || {
        vec![
            ("background", json!({ "const": "opaque" })),
            ("output_format", json!({ "enum": ["png", "jpeg", "webp"] })),
            ("size", json!({ "type": "string", "pattern": "^[0-9]+x[0-9]+$" })),
            ("quality", json!({ "const": "high" })),
        ]
    };
    let event = |kind: &str| {
        let base = |name: &str| {
            let r#type = json!({ "const": format!("{kind}.{name}") });
            [vec![("type", r#type), ("b64_json", text()), ("created_at", whole())], about()].concat()
        };
        let partial = [base("partial_image"), vec![("partial_image_index", whole())]].concat();
        let completed = [base("completed"), vec![("seed", whole()), ("usage", named("Usage"))]].concat();
        let mut completed = object(completed);
        completed["properties"]["variation_seed"] = whole();
        completed["properties"]["warnings"] = json!({ "type": "array", "items": text() });
        json!({ "oneOf": [object(partial), completed, named("Error")] })
    };
    let input = vec![("text_tokens", whole()), ("image_tokens", whole())];
    let usage = vec![
        ("input_tokens", whole()),
        ("input_tokens_details", object(input)),
        ("output_tokens", whole()),
        ("total_tokens", whole()),
    ];
    let datum = json!({
        "type": "object",
        "properties": { "b64_json": text(), "url": text(), "seed": whole(), "variation_seed": whole() },
        "required": ["seed"],
        "oneOf": [{ "required": ["b64_json"] }, { "required": ["url"] }],
        "additionalProperties": false,
    });
    let data = json!({ "type": "array", "minItems": 1, "items": datum });
    let images = [vec![("created", whole()), ("data", data), ("usage", named("Usage"))], about()].concat();
    let mut images = object(images);
    images["properties"]["warnings"] = json!({ "type": "array", "items": text() });
    let model = vec![
        ("id", text()),
        ("object", json!({ "const": "model" })),
        ("created", whole()),
        ("owned_by", text()),
    ];
    let models = json!({ "type": "array", "items": named("Model") });
    let detail = vec![
        ("message", text()),
        ("type", text()),
        ("param", json!({ "type": ["string", "null"] })),
        ("code", json!({ "type": ["string", "null"] })),
    ];
    let names = json!({ "type": "array", "items": text() });
    let mut model = object(model);
    let able = offer.able();
    if !able.controlnets.is_empty() {
        model["properties"]["controlnets"] = names.clone();
    }
    if !able.ip_adapters.is_empty() {
        model["properties"]["ip_adapters"] = names;
    }
    let mut all = json!({
        "Edit": request_schema(offer, true),
        "Images": images,
        "Usage": object(usage),
        "EditEvent": event("image_edit"),
        "Model": model,
        "Models": object(vec![("object", json!({ "const": "list" })), ("data", models)]),
        "Status": object(vec![("status", json!({ "enum": ["ok", "ready"] }))]),
        "Error": object(vec![("error", object(detail))]),
        "Document": { "type": "object" },
    });
    if able.only_role.is_none() {
        all["Generation"] = request_schema(offer, false);
        all["GenerationEvent"] = event("image_generation");
    }
    all
}

/// Of these properties, all of which are there, and no others.
fn object(properties: Vec<(&str, Value)>) -> Value {
    let required: Vec<_> = properties.iter().map(|(name, _)| name.to_string()).collect();
    let properties: Map<_, _> =
        properties.into_iter().map(|(name, schema)| (name.to_string(), schema)).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}
