//! `bench decode`: the autoencoder, from latents to pixels.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use tch_flux::Error;
use tch_flux::autoencoder::{AutoEncoder, AutoEncoderParams};

use super::measure::Measure;
use super::random;

#[derive(Args)]
pub(in crate::cli) struct Decode {
    /// Pixels, a multiple of 16.
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    width: i64,
    /// Pixels, a multiple of 16.
    #[arg(long, value_name = "PIXELS", default_value_t = 512)]
    height: i64,
    #[command(flatten)]
    measure: Measure,
}

impl Decode {
    /// Weights and latents are of the one kind, without autocast.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { width, height, measure } = self;
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
        let measured = measure.run(random::bytes(&vs, None), || Ok(()), |(), _| model.decode(&latent))?;
        measure.report(
            &format!("FLUX.1's autoencoder, a picture of {width} × {height}"),
            json!({ "width": width, "height": height }),
            &measured,
        )
    }
}
