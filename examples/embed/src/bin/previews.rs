//! Draws picture after picture, each with previews on the way: `cargo run -p embed --bin previews -- MODEL_FOLDER OUT`.

use std::path::PathBuf;

use tch_flux::engine::{Engine, Event, Options};
use tch_flux::generation::{Parts, Pipeline, Request, Settings};

fn main() -> Result<(), tch_flux::Error> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny");
    let model = arguments.next().unwrap_or_else(|| beside.into());
    let out = arguments.next().unwrap_or_else(std::env::temp_dir);

    let settings = Settings { keep_text_encoders: true, ..Settings::default() };
    let engine = Engine::start([Pipeline::open(Parts::find(model)?, settings)?], Options::default())?;
    for (i, prompt) in
        ["a red circle on a blue background", "a white ring on a black background"].iter().enumerate()
    {
        let job = engine.submit(Request::new(*prompt, 64, 64).seed(7).previews(2))?;
        while let Some(event) = job.recv() {
            let (picture, name) = match event {
                Event::Preview { step, picture, .. } => (picture, format!("{i}-after-{step}.png")),
                Event::Finished(mut pictures) => (pictures.swap_remove(0).image, format!("{i}.png")),
                Event::Failed(error) => return Err(error),
                _ => continue,
            };
            picture.write_png(out.join(&name), &Default::default())?;
            println!("{name}: {prompt}");
        }
    }
    Ok(())
}
