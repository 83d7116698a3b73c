//! Pictures to files, away from the threads that wait for sockets.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::models::Model;
use super::problem::Problem;
use crate::image::Image;
use crate::pipeline::Generated;
use crate::recipe::Recipe;

/// What pictures are sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    Webp,
}

impl Format {
    pub(super) const NAMES: [&'static str; 3] = ["png", "jpeg", "webp"];

    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Png, Self::Jpeg, Self::Webp].into_iter().find(|format| format.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    pub(super) fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

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

/// The file of a picture that was drawn. A PNG says how.
pub(super) fn encode(
    picture: &Generated,
    model: &Model,
    format: Format,
    quality: u8,
) -> Result<Vec<u8>, Problem> {
    match format {
        Format::Png => {
            let mut recipe = Recipe::new(&model.means, picture);
            recipe.controls = model.able.followed(&picture.request);
            recipe.pictured = model.able.liked(&picture.request);
            let png = recipe.texts().and_then(|texts| picture.image.to_png(&texts));
            png.map_err(|error| Problem::of_job(&error, 1))
        }
        _ => encode_plain(&picture.image, format, quality),
    }
}

/// The file of a picture that says nothing.
pub(super) fn encode_plain(image: &Image, format: Format, quality: u8) -> Result<Vec<u8>, Problem> {
    let Image { width, height, rgb } = image;
    let failed = |reason: String| Problem::internal("encoding", format!("{}: {reason}", format.name()));
    match format {
        Format::Png => image.to_png(&Default::default()).map_err(|error| failed(error.to_string())),
        Format::Jpeg => {
            let mut jpeg = Vec::new();
            let encoder = jpeg_encoder::Encoder::new(&mut jpeg, quality.max(1));
            // Sides are bounded far below what the format can say.
            let (width, height) = (*width as u16, *height as u16);
            let encoded = encoder.encode(rgb, width, height, jpeg_encoder::ColorType::Rgb);
            encoded.map_err(|error| failed(error.to_string()))?;
            Ok(jpeg)
        }
        Format::Webp => {
            let encoder = webp::Encoder::from_rgb(rgb, *width, *height);
            let webp = encoder.encode_simple(false, f32::from(quality));
            Ok(webp.map_err(|error| failed(format!("{error:?}")))?.to_vec())
        }
    }
}
