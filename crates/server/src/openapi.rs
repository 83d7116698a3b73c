//! `/openapi.json`, made from the tables of routes and fields, and from what the server has loaded.

mod schemas;

use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, Method};
use serde_json::{Map, Value, json};

use crate::capabilities::Capabilities;
use crate::middleware::check_key;
use crate::model::Model;
use crate::options::Options;
use crate::routes::{Access, EDITS, GENERATIONS, ROUTES, Route};
use crate::state::ServerState;
use schemas::schemas;

/// `GET /openapi.json`
pub(crate) async fn document(
    State(state): State<Arc<ServerState>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Json<Value> {
    let options = &state.options;
    // Where another program has mounted the routes, they begin with what it has put before them.
    let mounted_at = uri.path().strip_suffix("/openapi.json").unwrap_or_default();
    let url = options.public_url.as_deref().unwrap_or(mounted_at).trim_end_matches('/');
    let model = state.loaded_model().ok().map(|loaded| &loaded.model);
    let show_names = check_key(options, &headers).is_ok();
    Json(Api { options, model, show_names, url: if url.is_empty() { "/" } else { url } }.document())
}

/// What the document describes.
struct Api<'a> {
    options: &'a Options,
    /// `None` while the model is being loaded.
    model: Option<&'a Model>,
    /// Whether the client may see the names of the model, its ControlNets and its IP-Adapters.
    show_names: bool,
    /// The address where the paths begin.
    url: &'a str,
}

impl Api<'_> {
    fn capabilities(&self) -> Capabilities {
        self.model.map(|model| model.capabilities.clone()).unwrap_or_default()
    }

    /// Returns the whole document.
    fn document(&self) -> Value {
        let is_offered =
            |route: &&Route| route.path != GENERATIONS || self.capabilities().only_role.is_none();
        let paths: Map<_, _> = ROUTES
            .iter()
            .filter(is_offered)
            .map(|route| {
                let operation = json!({ route.method.to_lowercase(): self.operation(route) });
                (route.path.replace("{*", "{"), operation)
            })
            .collect();
        let mut document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "tch-flux",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "The OpenAI Images dialect, with fields of our own. What this server was not started with \
                                is left out.",
            },
            "servers": [{ "url": self.url }],
            "paths": paths,
            "components": { "schemas": schemas(self) },
        });
        if self.options.api_key.is_some() {
            document["components"]["securitySchemes"] =
                json!({ "key": { "type": "http", "scheme": "bearer" } });
        }
        document
    }

    fn operation(&self, route: &Route) -> Value {
        let edits = route.path == EDITS;
        let draws = edits || route.path == GENERATIONS;
        let mut content = Map::new();
        for r#type in route.response.types {
            let schema = match route.response.schema {
                "" => json!({}),
                schema => json!({ "schema": reference(schema) }),
            };
            content.insert((*r#type).into(), schema);
        }
        if draws {
            let events = reference(if edits { "EditEvent" } else { "GenerationEvent" });
            // An event has a name, and data that is JSON.
            let data =
                json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": events });
            let event = json!({
                "type": "object",
                "properties": { "event": { "type": "string" }, "data": data },
                "required": ["data"],
            });
            content.insert("text/event-stream".into(), json!({ "schema": event }));
        }
        let mut responses = Map::new();
        responses.insert(
            "200".into(),
            json!({ "description": "As asked.", "content": content, "headers": headers(200) }),
        );
        for status in self.statuses(route) {
            let (_, description) =
                STATUSES.iter().find(|(known, _)| *known == status).unwrap_or(&STATUSES[0]);
            let error = json!({
                "description": description,
                "content": { "application/json": { "schema": reference("Error") } },
                "headers": headers(status),
            });
            responses.insert(status.to_string(), error);
        }
        let mut operation = json!({
            "operationId": operation_id(route),
            "summary": route.about,
            "responses": responses,
            "security": if self.is_locked(route) { json!([{ "key": [] }]) } else { json!([]) },
        });
        if route.path.contains("id}") {
            operation["parameters"] = json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }]);
        }
        if draws {
            operation["requestBody"] = json!({ "required": true, "content": request_content(edits) });
        }
        operation
    }

    fn is_locked(&self, route: &Route) -> bool {
        route.access != Access::Open && self.options.api_key.is_some()
    }

    /// Returns the statuses that a route's errors may have. 405 is none of them: it answers methods that no path here has.
    fn statuses(&self, route: &Route) -> Vec<u16> {
        // Without a key, pages of other origins may not send what a browser sends without a preflight.
        let is_forbidden_to_pages = route.method == Method::POST.as_str() && self.options.api_key.is_none();
        let mut statuses = route.statuses.to_vec();
        statuses.push(500);
        if self.is_locked(route) {
            statuses.push(401);
        }
        if route.access == Access::Engine {
            statuses.push(503);
        }
        if self.options.check_hosts || is_forbidden_to_pages {
            statuses.push(403);
        }
        statuses.sort_unstable();
        statuses.dedup();
        statuses
    }
}

/// The meanings of errors' statuses.
const STATUSES: [(u16, &str); 12] = [
    (400, "The request is wrong: `param` says which field, `message` how to mend it."),
    (401, "The key is missing or wrong."),
    (
        403,
        "The request comes from a page that may not call, or calls the server by a name that is not its own.",
    ),
    (404, "There is no such model, or no such picture any more."),
    (405, "The path does not answer this method."),
    (408, "The body did not come in time."),
    (413, "The body, or a picture, is too large."),
    (415, "The body is of another type."),
    (429, "The queue is full: `message` says how many wait, `retry-after` when to come again."),
    (500, "A fault in the server."),
    (503, "The model is being loaded, or the server stops, or memory ran out."),
    (504, "The job took too long."),
];

fn headers(status: u16) -> Value {
    let text = |about: &str| json!({ "description": about, "schema": { "type": "string" } });
    let mut headers =
        json!({ "x-request-id": text("The request's own, where that is a plain name, or a new one.") });
    if status == 401 {
        headers["www-authenticate"] = text("`Bearer`.");
    }
    if [408, 429, 500, 503].contains(&status) {
        headers["retry-after"] = text("Seconds after which the same request may fare better.");
    }
    if status >= 400 {
        headers["x-should-retry"] = text("`false` where the same request would fail again.");
    }
    headers
}

fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/v1");
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    [route.method.to_lowercase()]
        .into_iter()
        .chain(words.map(str::to_lowercase))
        .collect::<Vec<_>>()
        .join("_")
}

fn request_content(edits: bool) -> Value {
    if edits {
        let pictures = json!({ "contentType": "image/png, image/jpeg, image/webp" });
        return json!({ "multipart/form-data": {
            "schema": reference("Edit"),
            "encoding": { "image": pictures, "mask": pictures },
        } });
    }
    json!({ "application/json": {
        "schema": reference("Generation"),
        "examples": {
            "a picture": { "value": { "prompt": "a red circle on a blue background" } },
            "the same two each time": { "value": {
                "prompt": "a red circle on a blue background", "n": 2, "seed": 42, "num_inference_steps": 4,
            } },
        },
    } })
}

/// Returns a reference to a schema.
fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}
