//! `bench decode`: the autoencoder, from latents to pixels.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;
use tch::{Kind, Tensor};
use tch_flux::Error;
use tch_flux::models::Model;
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams};

use super::measure::Measure;
use super::random;

#[derive(Args)]
pub(crate) struct Decode {
    /// Pixels, a multiple of 16.
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    width: i64,
    /// Pixels, a multiple of 16.
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    height: i64,
    /// In tiles of so many pixels a side, of which neighbours share a quarter.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(i64).range(64..))]
    vae_tile: Option<i64>,
    /// And once without tiles, after what is measured: how far the picture lies from that one.
    #[arg(long, requires = "vae_tile")]
    difference: bool,
    #[command(flatten)]
    measure: Measure,
}

impl Decode {
    /// Weights and latents are of the one kind, without autocast.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { width, height, vae_tile, difference, measure } = self;
        for (what, pixels) in [("width", width), ("height", height)] {
            if !(16..=16_384).contains(&pixels) || pixels % 16 != 0 {
                let text = format!("--{what} must be a multiple of 16 up to 16384, not {pixels}");
                return Err(Error::Request(text).into());
            }
        }
        let params = AutoEncoderParams::flux1();
        let mut vs = measure.store();
        let model = AutoEncoder::new(vs.root(), &params)?;
        random::fill(&mut vs)?;
        model.set_numerics(measure.numerics());

        let down = params.downsampling();
        let latent =
            random::normal(&[1, params.z_channels, height / down, width / down], measure.kind(), &vs)?;
        let decode = |tile: Option<i64>| match tile {
            Some(tile) => model.decode_tiled(&latent, tile, tile / 4),
            None => model.decode(&latent),
        };
        let measured = measure.run(random::bytes(&vs, None), || Ok(()), |(), _| decode(vae_tile))?;
        let difference =
            difference.then(|| picture_difference(&decode(vae_tile)?, &decode(None)?)).transpose()?;
        let mut title = format!("FLUX.1's autoencoder, a picture of {width} × {height}");
        if let Some(tile) = vae_tile {
            title += &format!(", in tiles of {tile}");
        }
        if let Some(PictureDifference { largest, psnr }) = &difference {
            title += &format!(": {largest:.4} at most from the one without, of 2, {psnr:.1} dB");
        }
        let setting =
            json!({ "width": width, "height": height, "vae_tile": vae_tile, "difference": difference });
        measure.report(&title, setting, &measured)
    }
}

/// How far two pictures lie apart, whose values are between -1 and 1; what is beyond is cut off, as in a picture.
#[derive(Serialize)]
struct PictureDifference {
    largest: f64,
    psnr: f64,
}

fn picture_difference(first: &Tensor, second: &Tensor) -> tch_flux::Result<PictureDifference> {
    let _no_grad = tch::no_grad_guard();
    let cut = |x: &Tensor| x.f_to_kind(Kind::Float)?.f_clamp(-1.0, 1.0);
    let difference = cut(first)?.f_sub(&cut(second)?)?;
    let largest = f64::try_from(difference.f_abs()?.f_max()?)?;
    let squares = f64::try_from(difference.f_square()?.f_mean(Kind::Float)?)?;
    Ok(PictureDifference { largest, psnr: 10.0 * (4.0 / squares).log10() })
}
