//! Pictures to files, away from the threads that wait for sockets.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::models::Model;
use super::problem::Problem;
use tch_flux::generation::Generated;
use tch_flux::generation::provenance::Provenance;
use tch_flux::image::{Format, Image};

/// Does work that takes a core, with few others at once.
pub(super) async fn aside<T: Send + 'static>(
    coders: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let fault = |reason: String| Problem::internal("fault", format!("a fault: {reason}")).again(1);
    let place = coders.clone().acquire_owned().await.map_err(|closed| fault(closed.to_string()))?;
    let work = move || {
        let _place = place;
        work()
    };
    spawn_blocking(work).await.map_err(|panic| fault(panic.to_string()))?
}

/// The file of a picture that was drawn, which says how.
pub(super) fn encode(
    picture: &Generated,
    model: &Model,
    format: Format,
    quality: u8,
) -> Result<Vec<u8>, Problem> {
    let mut provenance = Provenance::new(&model.means, picture);
    provenance.controls = model.able.followed(&picture.request);
    provenance.pictured = model.able.liked(&picture.request);
    let file = provenance.texts().and_then(|texts| picture.image.encode(format, quality, &texts));
    file.map_err(|error| Problem::of_job(&error, 1))
}

/// The file of a picture that says nothing.
pub(super) fn encode_plain(image: &Image, format: Format, quality: u8) -> Result<Vec<u8>, Problem> {
    let failed = |error: tch_flux::Error| Problem::internal("encoding", error.to_string());
    image.encode(format, quality, &Default::default()).map_err(failed)
}
