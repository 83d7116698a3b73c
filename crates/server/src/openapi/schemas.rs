//! The schemas of `/openapi.json`.

use serde_json::{Map, Value, json};

use super::{Api, reference};
use crate::fields::{field_name, fields, free_roles};
use tch_flux::generation::Role;
use tch_flux::generation::params::{Given, Kind, MAX_IMAGES, Parameter, RULES, Rule};

/// Returns the schema of a request. A field that is null is absent.
pub(crate) fn request_schema(api: &Api, edits: bool) -> Value {
    let capabilities = api.capabilities();
    let offered: Vec<_> = fields(edits).filter(|(_, field)| capabilities.offers(field)).collect();
    let has = |name: &str| offered.iter().any(|(other, _)| *other == name);
    let properties: Map<_, _> =
        offered.iter().map(|(name, field)| ((*name).into(), property(api, name, field, edits))).collect();
    let mut required = if edits { vec!["image"] } else { Vec::new() };
    let mut rules = rules(api, edits, &has);
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if has("redux_image") {
        // A request without a prompt must have pictures for Redux.
        rules.push(json!({ "anyOf": [{ "required": ["prompt"] }, is_given("redux_image")] }));
    } else {
        required.push("prompt");
    }
    if capabilities.only_role == Some(Role::Fill) && edits {
        required.push("mask");
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema["allOf"] = json!(rules);
    schema
}

fn property(api: &Api, name: &str, field: &Parameter, edits: bool) -> Value {
    let capabilities = api.capabilities();
    let one_or_list = |item: Value| {
        let list = json!({ "type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": item });
        json!({ "anyOf": [item, list] })
    };
    let one_of = |names: Vec<&str>| match api.show_names {
        true => json!({ "type": "string", "enum": names }),
        false => json!({ "type": "string" }),
    };
    let mut schema = match name {
        "model" => match api.model {
            // An empty name is as good as none.
            Some(model) => {
                let aliases = model.aliases.iter().map(String::as_str);
                one_of([model.name.as_str(), ""].into_iter().chain(aliases).collect())
            }
            None => field.served().schema(),
        },
        "as" => match capabilities.only_role {
            Some(role) => json!({ "type": "string", "enum": [role.name()] }),
            None => json!({ "type": "string", "enum": free_roles() }),
        },
        "background" => json!({ "not": { "const": "transparent" } }),
        "controlnet" => {
            one_or_list(one_of(capabilities.controlnets.iter().map(|net| net.name.as_str()).collect()))
        }
        "ip_adapter" => one_or_list(one_of(
            capabilities.ip_adapters.iter().map(|adapter| adapter.name.as_str()).collect(),
        )),
        _ if edits && field.kind == Kind::Pictures => {
            let file = json!({ "type": "string", "format": "binary" });
            let most = api.model.map_or(1, |model| model.images);
            match name {
                "mask" => file,
                "image" if capabilities.only_role.is_some() && most == 1 => file,
                _ => one_or_list(file),
            }
        }
        _ => field.served().schema(),
    };
    // A form has no null, except as a word where texts are read as numbers or lists.
    let has_null = if edits { field.kind.is_read_from_text() } else { name != "prompt" };
    if has_null {
        schema = nullable(schema);
    }
    if name == "as" {
        let role = api.model.and_then(|model| model.role).or(capabilities.only_role);
        schema["default"] = role.unwrap_or(Role::Init).name().into();
    }
    if let Kind::Choice(choices) = field.kind
        && schema.get("enum").is_some()
    {
        let about: Vec<_> = choices.iter().map(|(_, about)| about.trim()).collect();
        schema["x-enum-descriptions"] = json!(about);
    }
    schema["x-group"] = field.group.title().into();
    schema["description"] = match field.default {
        Some(default) => format!("{} Default: {default}.", field.about()),
        None => field.about().to_string(),
    }
    .into();
    schema
}

/// Returns the schema that allows null as well.
fn nullable(mut schema: Value) -> Value {
    if let Some(name) = schema["type"].as_str() {
        schema["type"] = json!([name, "null"]);
        if let Some(choices) = schema.get_mut("enum").and_then(Value::as_array_mut) {
            choices.push(Value::Null);
        }
    } else if let Some(any) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        any.push(json!({ "type": "null" }));
    }
    // A schema without types allows null already.
    schema
}

/// Returns the rules about several fields at once, as far as JSON Schema can express them.
fn rules(api: &Api, edits: bool, has: &impl Fn(&str) -> bool) -> Vec<Value> {
    let mut rules = vec![
        not_both([
            holds("stream", json!({ "const": true })),
            holds("response_format", json!({ "const": "url" })),
        ]),
        implies(
            holds("true_cfg_scale", json!({ "type": "number", "exclusiveMinimum": 1 })),
            is_given("negative_prompt"),
        ),
        not_both([is_given("sigmas"), is_given("num_inference_steps")]),
    ];
    let offers = |key: &str| has(field_name(key));
    rules.extend(RULES.iter().filter_map(|rule| match *rule {
        Rule::Excludes(when, other, _) if offers(when.key()) && offers(other.key()) => {
            Some(not_both([given(when), given(other)]))
        }
        Rule::Needs(when, other, _) | Rule::NeedsPictures(when, other)
            if offers(when.key()) && offers(other) =>
        {
            Some(implies(given(when), is_given(field_name(other))))
        }
        _ => None,
    }));
    if edits && api.capabilities().only_role.is_none() {
        let default_role = api.model.and_then(|model| model.role).unwrap_or(Role::Init);
        let is = |role: Role| match holds("as", json!({ "const": role.name() })) {
            named if default_role == role => json!({ "anyOf": [named, { "not": is_given("as") }] }),
            named => named,
        };
        let several = json!({ "type": "array", "minItems": 2 });
        rules.push(implies(holds("image", several), is(Role::Reference)));
        rules.push(implies(holds("keep_size", json!({ "const": true })), is(Role::Reference)));
        rules.push(implies(is_given("mask"), is(Role::Init)));
        rules.push(implies(is_given("strength"), is(Role::Init)));
    }
    rules
}

/// Returns the rule that a field is present and fits a schema.
fn holds(name: &str, schema: Value) -> Value {
    json!({ "required": [name], "properties": { name: schema } })
}

/// Returns the rule that two others do not hold together.
fn not_both(rules: [Value; 2]) -> Value {
    json!({ "not": { "allOf": rules } })
}

/// Returns the rule that the second holds where the first does.
fn implies(condition: Value, consequence: Value) -> Value {
    json!({ "if": condition, "then": consequence })
}

/// Returns the rule that a condition holds.
fn given(condition: Given) -> Value {
    let name = field_name(condition.key());
    match condition {
        Given::Any(_) => is_given(name),
        // Of a form, the value is text.
        Given::True(_) => holds(name, json!({ "enum": [true, "true"] })),
        Given::Is(_, value) => holds(name, json!({ "const": value })),
    }
}

/// Returns the rule that a field is present and not null.
fn is_given(name: &str) -> Value {
    holds(name, json!({ "not": { "type": "null" } }))
}

/// Returns all schemas by their names.
pub(crate) fn schemas(api: &Api) -> Value {
    let text = || json!({ "type": "string" });
    let whole = || json!({ "type": "integer", "minimum": 0 });
    let info = || {
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
            [vec![("type", r#type), ("b64_json", text()), ("created_at", whole())], info()].concat()
        };
        let partial = [base("partial_image"), vec![("partial_image_index", whole())]].concat();
        let completed = [base("completed"), vec![("seed", whole()), ("usage", reference("Usage"))]].concat();
        let mut completed = object(completed);
        completed["properties"]["variation_seed"] = whole();
        completed["properties"]["warnings"] = json!({ "type": "array", "items": text() });
        json!({ "oneOf": [object(partial), completed, reference("Error")] })
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
    let images = [vec![("created", whole()), ("data", data), ("usage", reference("Usage"))], info()].concat();
    let mut images = object(images);
    images["properties"]["warnings"] = json!({ "type": "array", "items": text() });
    let model = vec![
        ("id", text()),
        ("object", json!({ "const": "model" })),
        ("created", whole()),
        ("owned_by", text()),
    ];
    let models = json!({ "type": "array", "items": reference("Model") });
    let detail = vec![
        ("message", text()),
        ("type", text()),
        ("param", json!({ "type": ["string", "null"] })),
        ("code", json!({ "type": ["string", "null"] })),
    ];
    let names = json!({ "type": "array", "items": text() });
    let mut model = object(model);
    let capabilities = api.capabilities();
    if !capabilities.controlnets.is_empty() {
        model["properties"]["controlnets"] = names.clone();
    }
    if !capabilities.ip_adapters.is_empty() {
        model["properties"]["ip_adapters"] = names;
    }
    let mut all = json!({
        "Edit": request_schema(api, true),
        "Images": images,
        "Usage": object(usage),
        "EditEvent": event("image_edit"),
        "Model": model,
        "Models": object(vec![("object", json!({ "const": "list" })), ("data", models)]),
        "Status": object(vec![("status", json!({ "enum": ["ok", "ready"] }))]),
        "Error": object(vec![("error", object(detail))]),
        "Document": { "type": "object" },
    });
    if capabilities.only_role.is_none() {
        all["Generation"] = request_schema(api, false);
        all["GenerationEvent"] = event("image_generation");
    }
    all
}

/// Returns the schema of an object with exactly these properties.
fn object(properties: Vec<(&str, Value)>) -> Value {
    let required: Vec<_> = properties.iter().map(|(name, _)| name.to_string()).collect();
    let properties: Map<_, _> =
        properties.into_iter().map(|(name, schema)| (name.to_string(), schema)).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}
