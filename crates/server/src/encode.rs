//! Encodes pictures, away from the threads that wait for sockets.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::api_error::ApiError;
use crate::model::Model;
use tch_flux::generation::Generated;
use tch_flux::generation::provenance::Provenance;
use tch_flux::image::{Format, Image};

/// Runs work that occupies a core on a thread of its own, once one of the permits is free.
pub(crate) async fn run_blocking<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let fault = |reason: String| ApiError::internal("fault", format!("a fault: {reason}")).retry_after(1);
    let permit = permits.clone().acquire_owned().await.map_err(|closed| fault(closed.to_string()))?;
    let work = move || {
        let _permit = permit;
        work()
    };
    spawn_blocking(work).await.map_err(|panic| fault(panic.to_string()))?
}

/// Encodes a finished picture; the file says how it was drawn.
pub(crate) fn encode(
    picture: &Generated,
    model: &Model,
    format: Format,
    quality: u8,
) -> Result<Vec<u8>, ApiError> {
    let mut provenance = Provenance::new(&model.record, picture);
    provenance.controls = model.capabilities.control_records(&picture.request);
    provenance.pictured = model.capabilities.ip_adapter_records(&picture.request);
    let file = provenance.texts().and_then(|texts| picture.image.encode(format, quality, &texts));
    file.map_err(|error| ApiError::from_engine(&error, 1))
}

/// Encodes a picture without provenance.
pub(crate) fn encode_plain(image: &Image, format: Format, quality: u8) -> Result<Vec<u8>, ApiError> {
    let failed = |error: tch_flux::Error| ApiError::internal("encoding", error.to_string());
    image.encode(format, quality, &Default::default()).map_err(failed)
}
