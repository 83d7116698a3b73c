//! Draws one picture from a program of its own: `cargo run -p embed -- MODEL_FOLDER OUT.png`.

use std::ops::ControlFlow;
use std::path::PathBuf;

use tch_flux::pipeline::{Parts, Pipeline, Progress, Request, Settings};

fn main() -> Result<(), tch_flux::Error> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny");
    let model = arguments.next().unwrap_or_else(|| beside.into());
    let out = arguments.next().unwrap_or_else(|| std::env::temp_dir().join("embed.png"));

    let mut pipeline = Pipeline::open(Parts::find(model)?, Settings::default())?;
    let request = Request::new("a green triangle on a white background", 64, 64).seed(7);
    let generated = pipeline.generate(&request, &mut |progress| {
        if let Progress::Step { step, steps, .. } = progress {
            println!("step {step} of {steps}");
        }
        ControlFlow::Continue(())
    })?;
    generated[0].image.write_png(&out, &Default::default())?;
    println!("{}", out.display());
    Ok(())
}
