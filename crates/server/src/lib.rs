//! The OpenAI Images API over HTTP, on an [`Engine`], for clients such as the `openai` package and Open WebUI.
//!
//! A [`Server`] may listen before its model is loaded; until then, and once it drains, it answers 503. It writes no files:
//! pictures that are fetched by an address stay in memory for a limited time. [`Options`] limits everything that clients
//! can make grow. When a client disconnects, its job is cancelled.
//!
//! ```no_run
//! use tch_flux::engine::{self, Engine};
//! use tch_flux::generation::{Parts, Pipeline, Settings};
//! use tch_flux_server::{Model, Options, Server};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let parts = Parts::find("model")?;
//! let pipeline = Pipeline::open(parts.clone(), Settings::default())?;
//! let model = Model::from_pipeline(&pipeline, &parts, "flux1-schnell", 1024);
//! let engine = Engine::start([pipeline], engine::Options::default())?;
//! let server = Server::new(Options::default());
//! server.ready(engine, model);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
//! server.run(listener, std::future::pending()).await?; // or `axum::serve`, with `server.router()` in a router of yours
//! # Ok(())
//! # }
//! ```

mod api_error;
mod body;
mod capabilities;
mod conditioning;
mod connection;
mod decode;
mod encode;
mod fields;
mod image_store;
mod images;
mod jobs;
mod metrics;
mod middleware;
mod model;
mod openapi;
mod options;
mod page;
mod request;
mod response;
mod router;
mod routes;
mod sse;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod uploads;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

pub use capabilities::{Capabilities, NamedControlNet, NamedIpAdapter};
pub use model::Model;
pub use options::Options;

use state::{Phase, ServerState};
use tch_flux::engine::Engine;

/// A server, before and after it listens. Clones are handles to the same server.
#[derive(Clone)]
pub struct Server {
    state: Arc<ServerState>,
}

impl Server {
    /// Returns a server whose model is still loading.
    pub fn new(options: Options) -> Self {
        Self { state: Arc::new(ServerState::new(options)) }
    }

    /// Sets the model and the engine that draws with it. Only the first call has an effect.
    pub fn ready(&self, engine: Engine, model: Model) {
        self.state.set_model(engine, model);
    }

    /// Returns all routes, to be mounted in another program. The limits of connections (how long a head may take, a client
    /// that does not read) are [`Server::run`]'s alone.
    pub fn router(&self) -> Router {
        router::router(self.state.clone())
    }

    /// Listens until `stop`, then takes no more connections or jobs, lets the others finish within
    /// [`Options::grace`], and cancels the rest.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn run(&self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        connection::run(self.state.clone(), self.router(), listener, stop).await
    }

    /// Takes no more jobs, and says so at `/ready`. [`Server::run`] does this first when it stops.
    pub fn drain(&self) {
        self.state.enter(Phase::Draining);
    }
}
