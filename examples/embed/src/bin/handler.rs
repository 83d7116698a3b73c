//! An axum handler: `cargo run -p embed --bin handler -- MODEL_FOLDER ADDRESS`, then `curl -d "a red circle" ADDRESS`.

use std::error::Error;

use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::{Router, extract::State, response::IntoResponse, routing::post};
use tch_flux::engine::{Engine, Options};
use tch_flux::generation::{Parts, Pipeline, Request, Settings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny");
    let model = arguments.next().unwrap_or_else(|| beside.into());
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8000".into());

    let settings = Settings { keep_text_encoders: true, ..Settings::default() };
    let engine = Engine::start([Pipeline::open(Parts::find(model)?, settings)?], Options::default())?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, Router::new().route("/", post(draw)).with_state(engine)).await?;
    Ok(())
}

/// A client that leaves drops this future, and with it the job.
async fn draw(
    State(engine): State<Engine>,
    prompt: String,
) -> Result<impl IntoResponse, (StatusCode, String)> {
    let said = |error: tch_flux::Error| match error {
        tch_flux::Error::Full { .. } => (StatusCode::TOO_MANY_REQUESTS, error.to_string()),
        tch_flux::Error::Request(reason) => (StatusCode::BAD_REQUEST, reason),
        error => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let job = engine.submit(Request::new(prompt, 64, 64)).map_err(said)?;
    let pictures = job.finished().await.map_err(said)?;
    let png = pictures[0].image.to_png(&Default::default()).map_err(said)?;
    Ok(([(CONTENT_TYPE, "image/png")], png))
}
