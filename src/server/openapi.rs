//! `/openapi.json`: made of the tables that the code itself runs by.

use axum::Json;
use serde_json::{Map, Value, json};

use super::edits::MAX_IMAGES;
use super::fields::fields;
use super::problem::STATUSES;
use super::routes::{Access, EDITS, GENERATIONS, ROUTES, Route};
use super::shape::Shape;

pub(super) async fn answer() -> Json<Value> {
    Json(document())
}

/// The whole document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let path = route.path.replace("{*", "{");
        let operation = json!({ route.method.to_lowercase(): operation(route) });
        paths.insert(path, operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tch-flux",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The OpenAI Images dialect, with fields of our own.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(),
        },
    })
}

fn operation(route: &Route) -> Value {
    let (r#type, schema) = route.answer;
    let mut content =
        json!({ r#type: if schema.is_empty() { json!({}) } else { json!({ "schema": named(schema) }) } });
    let edits = route.path == EDITS;
    let draws = edits || route.path == GENERATIONS;
    if draws {
        content["text/event-stream"] =
            json!({ "schema": named(if edits { "EditEvent" } else { "GenerationEvent" }) });
    }
    let mut operation = json!({
        "summary": route.about,
        "responses": {
            "200": { "description": "As asked.", "content": content, "headers": request_id() },
            "default": {
                "description": format!("One of {}.", STATUSES.map(|status| status.to_string()).join(", ")),
                "content": { "application/json": { "schema": named("Error") } },
                "headers": request_id(),
            },
        },
        "security": if route.access == Access::Open { json!([]) } else { json!([{ "key": [] }, {}]) },
    });
    if route.path.contains("id}") {
        operation["parameters"] =
            json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
    }
    if draws {
        let (r#type, schema) =
            if edits { ("multipart/form-data", "Edit") } else { ("application/json", "Generation") };
        operation["requestBody"] =
            json!({ "required": true, "content": { r#type: { "schema": named(schema) } } });
    }
    operation
}

fn named(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn request_id() -> Value {
    json!({ "x-request-id": { "schema": { "type": "string" } } })
}

/// What a request may hold. In JSON null is absent.
fn request(edits: bool) -> Value {
    let mut properties = Map::new();
    for field in fields(edits) {
        if edits && field.shape == Shape::Pictures {
            let file = json!({ "type": "string", "contentMediaType": "image/*", "description": field.about });
            properties.insert(field.name.into(), file.clone());
            if field.name != "mask" {
                let files = json!({ "type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": file });
                properties.insert(format!("{}[]", field.name), files);
            }
            continue;
        }
        let mut schema = field.shape.schema();
        if !edits && field.shape != Shape::Ignored && field.name != "prompt" {
            schema = json!({ "anyOf": [schema, { "type": "null" }] });
        }
        schema["description"] = field.about.into();
        properties.insert(field.name.into(), schema);
    }
    // Without a prompt there are pictures to look at.
    let needs = ["prompt", "redux_image", "redux_image[]"];
    let needs = &needs[..if edits { 3 } else { 2 }];
    json!({
        "type": "object",
        "properties": properties,
        "anyOf": needs.iter().map(|name| json!({ "required": [name] })).collect::<Vec<_>>(),
        "additionalProperties": false,
    })
}

fn schemas() -> Value {
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
        "additionalProperties": false,
    });
    let data = json!({ "type": "array", "items": datum });
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
    model["properties"]["controlnets"] = names.clone();
    model["properties"]["ip_adapters"] = names;
    json!({
        "Generation": request(false),
        "Edit": request(true),
        "Images": images,
        "Usage": object(usage),
        "GenerationEvent": event("image_generation"),
        "EditEvent": event("image_edit"),
        "Model": model,
        "Models": object(vec![("object", json!({ "const": "list" })), ("data", models)]),
        "Status": object(vec![("status", json!({ "enum": ["ok", "ready"] }))]),
        "Error": object(vec![("error", object(detail))]),
        "Document": { "type": "object" },
    })
}

/// Of these properties, all of which are there, and no others.
fn object(properties: Vec<(&str, Value)>) -> Value {
    let required: Vec<_> = properties.iter().map(|(name, _)| name.to_string()).collect();
    let properties: Map<_, _> =
        properties.into_iter().map(|(name, schema)| (name.to_string(), schema)).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}
