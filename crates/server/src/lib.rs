//! The OpenAI Images dialect over HTTP, on an [`Engine`]: what the `openai` package and Open WebUI speak.
//!
//! A [`Server`] may listen before its model is loaded; until then, and once it drains, it answers 503 and says so. It
//! writes no files: what is to be fetched by an address stays in memory for a while. Everything that a client can make
//! grow is bounded by [`Options`], and a client that leaves takes its job along.
//!
//! ```no_run
//! use tch_flux::engine::{self, Engine};
//! use tch_flux::generation::{Parts, Pipeline, Settings};
//! use tch_flux_server::{Model, Options, Server};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let parts = Parts::find("model")?;
//! let pipeline = Pipeline::open(parts.clone(), Settings::default())?;
//! let model = Model::of(&pipeline, &parts, "flux1-schnell", 1024);
//! let engine = Engine::start([pipeline], engine::Options::default())?;
//! let server = Server::new(Options::default());
//! server.ready(engine, model);
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
//! server.run(listener, std::future::pending()).await?; // or `axum::serve`, with `server.router()` in a router of yours
//! # Ok(())
//! # }
//! ```

mod able;
mod answer;
mod asked;
mod body;
mod coding;
mod connection;
mod edits;
mod fields;
mod gate;
mod generations;
mod jobs;
mod metrics;
mod models;
mod openapi;
mod options;
mod page;
mod pictures;
mod problem;
mod routes;
mod shape;
mod shelf;
mod state;
mod status;
mod stream;
mod synonyms;
#[cfg(test)]
mod tests;
mod upload;
mod values;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;

pub use able::{Abilities, NamedControlNet, NamedIpAdapter};
pub use models::Model;
pub use options::Options;

use state::{Phase, Shared};
use tch_flux::engine::Engine;

/// A server, before and after it listens. Clones are the same one.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    /// One that is loading.
    pub fn new(options: Options) -> Self {
        Self { shared: Arc::new(Shared::new(options)) }
    }

    /// From now on it draws. Only the first call counts.
    pub fn ready(&self, engine: Engine, model: Model) {
        self.shared.serve(engine, model);
    }

    /// All of its routes, to be mounted in another program. A connection's own limits (how long a head may take, a reader
    /// that does not read) are [`Server::run`]'s alone.
    pub fn router(&self) -> Router {
        routes::router(self.shared.clone())
    }

    /// Listens until `stop`, then takes no more connections or jobs, lets those that it has finish for as long as
    /// [`Options::grace`] says, and cancels the rest.
    ///
    /// # Errors
    /// What the system says of the listener.
    pub async fn run(&self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        connection::run(self.shared.clone(), self.router(), listener, stop).await
    }

    /// Takes no more jobs and says so at `/ready`: what [`Server::run`] begins its end with.
    pub fn drain(&self) {
        self.shared.enter(Phase::Draining);
    }
}
