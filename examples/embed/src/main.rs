//! Draws one picture from a program of its own: `cargo run -p embed -- MODEL_FOLDER OUT.png`.

use std::path::PathBuf;

use tch_flux::engine::{Engine, Event, Options};
use tch_flux::generation::{Parts, Pipeline, Request, Settings};

fn main() -> Result<(), tch_flux::Error> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny");
    let model = arguments.next().unwrap_or_else(|| beside.into());
    let out = arguments.next().unwrap_or_else(|| std::env::temp_dir().join("embed.png"));

    let pipeline = Pipeline::open(Parts::find(model)?, Settings::default())?;
    let engine = Engine::start([pipeline], Options::default())?;
    let job = engine.submit(Request::new("a green triangle on a white background", 64, 64).seed(7))?;
    while let Some(event) = job.recv() {
        match event {
            Event::Step { step, steps, .. } => println!("step {step} of {steps}"),
            Event::Finished(pictures) => pictures[0].image.write_png(&out, &Default::default())?,
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
    println!("{}", out.display());
    Ok(())
}
