//! An engine over the small model: what a picture depends on, what runs beside what, and how jobs end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tch::{Device, Kind, Tensor};
use tch_flux::Error;
use tch_flux::engine::{Engine, Event, Options};
use tch_flux::generation::{Generated, Parts, Phase, Pipeline, Request, Settings};
use tch_flux::numerics::{Numerics, with_cancel};

const PROMPTS: [&str; 3] = [
    "a red circle on a blue background",
    "a white ring on a black background",
    "a green triangle on a white background",
];

fn settings() -> Settings {
    Settings { numerics: Numerics::Fast, keep_text_encoders: true, ..Settings::default() }
}

fn open(settings: Settings) -> Pipeline {
    let model = crate::support::root().join("fixtures/tiny");
    Pipeline::open(Parts::find(model).unwrap(), settings).unwrap()
}

fn engine() -> Engine {
    Engine::start([open(settings())], Options::default()).unwrap()
}

fn request(i: u64) -> Request {
    Request::new(PROMPTS[i as usize % PROMPTS.len()], 64, 64).seed(i).steps(2)
}

fn alone(request: &Request) -> Vec<Generated> {
    open(settings()).generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn every_picture_is_the_one_made_alone() {
    let expected: Vec<_> = (0..6).map(|i| alone(&request(i))).collect();
    let engines =
        [engine(), Engine::start([open(settings()), open(settings())], Options::default()).unwrap()];
    let jobs: Vec<_> = (0..6)
        .flat_map(|i| engines.each_ref().map(|engine| (i, engine.submit(request(i)).unwrap())))
        .collect();
    for (i, job) in jobs {
        assert_eq!(job.wait().unwrap(), expected[i as usize], "request {i}");
    }
}

#[test]
fn events_come_in_their_order_and_end_once() {
    let engine = engine();
    let job = engine.submit(request(1).steps(4).previews(2)).unwrap();
    let mut heard = Vec::new();
    let mut ends = 0;
    while let Some(event) = job.recv() {
        heard.push(match event {
            Event::Queued { ahead } => format!("queued {ahead}"),
            Event::Phase(phase) => format!("{phase:?}"),
            Event::Step { image: 0, images: 1, step, steps } => format!("{step}/{steps}"),
            Event::Preview { image: 0, step, picture } => {
                assert_eq!((picture.width, picture.height), (64, 64));
                format!("preview {step}")
            }
            Event::Picture { image: 0, images: 1, .. } => "picture".into(),
            Event::Finished(pictures) => {
                ends += 1;
                format!("{} pictures", pictures.len())
            }
            other => panic!("{other:?}"),
        });
    }
    let expected = "queued 0, Text, Load, Denoise, 1/4, 2/4, preview 2, 3/4, preview 3, 4/4, Decode, picture, 1 pictures";
    assert_eq!((heard.join(", ").as_str(), ends), (expected, 1));
}

#[test]
fn previews_are_small_near_the_picture_and_change_nothing() {
    let request = Request::new(PROMPTS[0], 512, 256).seed(3).steps(4);
    let plain = alone(&request);
    let mut previews = Vec::new();
    let mut pipeline = open(settings());
    let drawn = pipeline.generate(&request.clone().previews(3), &mut |progress| {
        if let tch_flux::generation::Progress::Preview { picture, .. } = progress {
            previews.push(picture);
        }
        ControlFlow::Continue(())
    });
    assert_eq!(drawn.unwrap()[0].image, plain[0].image);
    assert_eq!(previews.len(), 3);
    assert!(previews.iter().all(|picture| (picture.width, picture.height) == (256, 128)));
    let mean = |rgb: &[u8]| rgb.iter().map(|&byte| f64::from(byte)).sum::<f64>() / rgb.len() as f64;
    let (last, picture) = (mean(&previews[2].rgb), mean(&plain[0].image.rgb));
    assert!((last - picture).abs() < 12.0, "{last} of {picture}");
}

#[test]
fn a_job_in_its_steps_is_cancelled_and_the_next_is_drawn() {
    let engine = engine();
    let job = engine.submit(request(0).steps(1000)).unwrap();
    while let Some(event) = job.recv() {
        match event {
            Event::Step { step: 2, .. } => job.cancel(),
            Event::Step { step, .. } => assert!(step < 4, "step {step} after the cancellation"),
            Event::Failed(error) => assert!(matches!(error, Error::Cancelled), "{error}"),
            Event::Finished(_) => panic!("it was cancelled"),
            _ => {}
        }
    }
    assert_eq!(engine.submit(request(2)).unwrap().wait().unwrap(), alone(&request(2)));
    assert_eq!((engine.stats().cancelled, engine.stats().finished), (1, 1));
}

#[test]
fn a_job_that_cannot_fit_is_refused_with_what_would_help() {
    let engine = engine();
    let error = engine.submit(Request::new(PROMPTS[0], 16_384, 16_384)).unwrap().wait().unwrap_err();
    let Error::TooLarge { needed, free, device: Device::Cpu, .. } = error else { panic!("{error}") };
    assert!(needed > free && needed > 100_000_000_000, "{needed} {free}");
    assert!(error.to_string().contains("tiles"), "{error}");
    assert!(engine.submit(request(0)).unwrap().wait().is_ok());
}

#[test]
fn every_model_stops_at_its_next_block() {
    let mut pipeline = open(settings());
    let cancel = Arc::new(AtomicBool::new(true));
    let mut phases = Vec::new();
    let outcome = with_cancel(&cancel, || {
        pipeline.generate(&request(0), &mut |progress| {
            phases.push(progress);
            ControlFlow::Continue(())
        })
    });
    assert!(matches!(outcome, Err(Error::Cancelled)));
    assert_eq!(phases, [tch_flux::generation::Progress::Phase(Phase::Text)]);

    use tch::nn::VarStore;
    use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams};
    let params =
        AutoEncoderParams { ch: 32, ch_mult: vec![1, 1], num_res_blocks: 1, ..AutoEncoderParams::flux1() };
    let vs = VarStore::new(Device::Cpu);
    let model = AutoEncoder::new(vs.root(), &params).unwrap();
    tch_flux::nn::init(&vs, 1).unwrap();
    let z = Tensor::zeros([1, params.z_channels, 8, 8], (Kind::Float, Device::Cpu));
    assert!(model.decode(&z).is_ok());
    let stopped = with_cancel(&cancel, || model.decode(&z));
    assert!(matches!(stopped, Err(Error::Cancelled)));
}

/// Requests of two shapes, with and without previews, of several prompts and seeds.
fn mixed() -> Vec<Request> {
    (0..12)
        .map(|i| match i % 4 {
            3 => request(i).steps(3),
            2 => request(i).num_images(2).previews(1),
            _ => request(i),
        })
        .collect()
}

#[test]
fn what_is_drawn_together_has_the_bits_that_it_has_alone() {
    let requests = mixed();
    let expected: Vec<_> = requests.iter().map(alone).collect();
    let mut pipeline = open(settings());
    assert!(pipeline.max_batch(&requests[0]) > 2, "small pictures are drawn several at a time");
    let all: Vec<_> = requests.iter().collect();
    let drawn = pipeline.generate_batch(&all, &mut |_, _| ControlFlow::Continue(())).unwrap();
    for (i, (drawn, expected)) in drawn.into_iter().zip(&expected).enumerate() {
        assert_eq!(&drawn.unwrap(), expected, "request {i}");
    }
    // The exact numerics are libtorch's, whose bits depend on what is beside a row.
    let exact = Settings { numerics: Numerics::Exact, ..settings() };
    assert_eq!(open(exact).max_batch(&requests[0]), 1);
}

#[test]
fn one_that_is_stopped_leaves_the_others_as_they_are_alone() {
    let requests = [0, 1, 2].map(|i| request(i).steps(4));
    let mut pipeline = open(settings());
    let outcomes = pipeline.generate_batch(&requests.each_ref(), &mut |job, progress| match progress {
        tch_flux::generation::Progress::Step { step: 2, .. } if job == 1 => ControlFlow::Break(()),
        tch_flux::generation::Progress::Step { step: 3.., .. } if job == 1 => panic!("it was stopped"),
        _ => ControlFlow::Continue(()),
    });
    let [one, two, three] = &outcomes.unwrap()[..] else { panic!("three requests, three outcomes") };
    assert!(matches!(two, Err(Error::Cancelled)));
    assert_eq!(one.as_ref().unwrap(), &alone(&requests[0]));
    assert_eq!(three.as_ref().unwrap(), &alone(&requests[2]));
}
