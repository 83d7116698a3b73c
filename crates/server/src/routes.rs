//! The table of routes, from which come the router, the access checks, and `/openapi.json`.

/// What a request must have before its route does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Open,
    /// The key, if the server has one.
    Key,
    /// The key, if the server has one, and an engine that takes jobs.
    Engine,
}

/// What answers a route's requests. The router knows the handler of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Generations,
    Edits,
    ImageContent,
    Models,
    Model,
    Health,
    Ready,
    Metrics,
    OpenApi,
    PageIndex,
    PageStyle,
    PageScript,
    PageHistory,
    PageServer,
    PageSettings,
    PageStart,
}

/// A route.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    /// The path in axum's syntax.
    pub(crate) path: &'static str,
    pub(crate) access: Access,
    pub(crate) about: &'static str,
    pub(crate) response: ResponseKind,
    /// The statuses of the route's errors, beside those that all routes of its kind have.
    pub(crate) statuses: &'static [u16],
    pub(crate) endpoint: Endpoint,
}

/// What a successful response holds.
pub(crate) struct ResponseKind {
    pub(crate) types: &'static [&'static str],
    /// The name of the JSON's schema in `/openapi.json`; empty for what is no JSON.
    pub(crate) schema: &'static str,
}

macro_rules! route {
    ($method:literal, $path:expr, $access:ident, $endpoint:ident, $response:expr, $statuses:expr, $about:literal) => {
        Route {
            method: $method,
            path: $path,
            access: Access::$access,
            about: $about,
            response: $response,
            statuses: &$statuses,
            endpoint: Endpoint::$endpoint,
        }
    };
}

pub(crate) const GENERATIONS: &str = "/v1/images/generations";
pub(crate) const EDITS: &str = "/v1/images/edits";
const CONTENT: &str = "/v1/images/{id}/content";

const fn json(schema: &'static str) -> ResponseKind {
    ResponseKind { types: &["application/json"], schema }
}

const fn plain(types: &'static [&'static str]) -> ResponseKind {
    ResponseKind { types, schema: "" }
}

const PICTURE: ResponseKind = plain(&["image/png", "image/jpeg", "image/webp"]);
const TEXT: ResponseKind = plain(&["text/plain"]);
const HTML: ResponseKind = plain(&["text/html"]);
const STYLE: ResponseKind = plain(&["text/css"]);
const SCRIPT: ResponseKind = plain(&["text/javascript"]);
/// The statuses of routes that draw.
const DRAWING: [u16; 7] = [400, 404, 408, 413, 415, 429, 504];

/// All routes.
#[rustfmt::skip]
pub(crate) const ROUTES: [Route; 16] = [
    route!("POST", GENERATIONS, Engine, Generations, json("Images"), DRAWING, "Draw pictures of a prompt."),
    route!("POST", EDITS, Engine, Edits, json("Images"), DRAWING, "Draw pictures that begin with pictures."),
    route!("GET", CONTENT, Open, ImageContent, PICTURE, [400, 404], "A picture by the address that an answer named."),
    route!("GET", "/v1/models", Engine, Models, json("Models"), [], "The model that there is."),
    route!("GET", "/v1/models/{*id}", Engine, Model, json("Model"), [400, 404], "A model by its name."),
    route!("GET", "/health", Open, Health, json("Status"), [503], "Whether the process is of use."),
    route!("GET", "/ready", Open, Ready, json("Status"), [503], "Whether jobs are taken."),
    route!("GET", "/metrics", Key, Metrics, TEXT, [], "Numbers for Prometheus."),
    route!("GET", "/openapi.json", Open, OpenApi, json("Document"), [], "This."),
    route!("GET", "/", Open, PageIndex, HTML, [], "A page to draw with."),
    route!("GET", "/page.css", Open, PageStyle, STYLE, [], "The page's style."),
    route!("GET", "/page.js", Open, PageScript, SCRIPT, [], "The page's script."),
    route!("GET", "/history.js", Open, PageHistory, SCRIPT, [], "A part of the page's script."),
    route!("GET", "/server.js", Open, PageServer, SCRIPT, [], "A part of the page's script."),
    route!("GET", "/settings.js", Open, PageSettings, SCRIPT, [], "A part of the page's script."),
    route!("GET", "/start.js", Open, PageStart, SCRIPT, [], "A part of the page's script."),
];
