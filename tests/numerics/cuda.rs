//! What only a CUDA device can show. Without one each test says that it was skipped, and passes.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tch::nn::VarStore;
use tch::{Cuda, Device, Kind, Tensor};
use tch_flux::Error;
use tch_flux::engine::{Engine, Event, Options};
use tch_flux::family::ModelFamily;
use tch_flux::generation::{Conditions, Generated, Parts, Phase, Pipeline, Request, Settings, denoise};
use tch_flux::models::Model;
use tch_flux::models::Transformer;
use tch_flux::models::flux1::{Flux1, Flux1Params};
use tch_flux::numerics::{Numerics, with_cancel};

const DEVICE: Device = Device::Cuda(0);

/// Not through `println!`, which a test that passes swallows.
fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

fn open(settings: Settings) -> Pipeline {
    let model = crate::support::root().join("fixtures/tiny");
    Pipeline::open(Parts::find(model).unwrap(), settings).unwrap()
}

fn on_cuda(numerics: Numerics) -> Settings {
    Settings { device: DEVICE, numerics, keep_text_encoders: true, ..Settings::default() }
}

fn circle(side: i64) -> Request {
    Request::new("a red circle on a blue background", side, side).seed(3).steps(4)
}

fn draw(settings: Settings, request: &Request) -> Vec<Generated> {
    open(settings).generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn engine() -> Engine {
    Engine::start([open(on_cuda(Numerics::Fast))], Options::default()).unwrap()
}

/// The mean difference of two pictures, in steps of their eight bits.
fn difference(a: &[Generated], b: &[Generated]) -> f64 {
    let (a, b) = (&a[0].image.rgb, &b[0].image.rgb);
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).sum();
    sum / a.len() as f64
}

#[test]
fn pictures_are_those_of_the_cpu() {
    let Some(_alone) = crate::support::require::cuda() else { return };
    for (kind, most) in [(Kind::Float, 0.1), (Kind::BFloat16, 2.0)] {
        let kind = Some(kind);
        let cpu = draw(Settings { kind, ..Settings::default() }, &circle(64));
        for numerics in [Numerics::Exact, Numerics::Fast] {
            let settings = Settings { kind, ..on_cuda(numerics) };
            let cuda = draw(settings, &circle(64));
            let difference = difference(&cuda, &cpu);
            say(&format!("{kind:?}, {numerics:?}: {difference:.3} of 255"));
            assert!(difference < most, "{kind:?}, {numerics:?}: {difference}");
            assert_eq!(draw(settings, &circle(64)), cuda, "the same bits again");
        }
    }
}

#[test]
fn a_request_for_more_memory_than_there_is_is_refused_with_numbers() {
    let Some(_alone) = crate::support::require::cuda() else {
        return;
    };
    let engine = engine();
    let error = engine.submit(circle(16_384)).unwrap().wait().unwrap_err();
    say(&error.to_string());
    let Error::TooLarge { needed, free, device: DEVICE, .. } = error else { panic!("{error}") };
    assert!(needed > free && free > 1_000_000_000, "{needed} {free}");
    assert!(engine.submit(circle(64)).unwrap().wait().is_ok());
}

/// All memory that can be had.
fn fill() -> Vec<Tensor> {
    let mut held = Vec::new();
    for megabytes in [1024, 64, 2] {
        while let Ok(tensor) = Tensor::f_empty([megabytes << 20], (Kind::Uint8, DEVICE)) {
            held.push(tensor);
        }
    }
    held
}

#[test]
fn a_job_that_runs_out_of_memory_fails_and_the_next_is_drawn() {
    let Some(_alone) = crate::support::require::cuda() else { return };
    if !in_a_child("a_job_that_runs_out_of_memory_fails_and_the_next_is_drawn") {
        return;
    }
    let engine = engine();
    let expected = engine.submit(circle(64)).unwrap().wait().unwrap();
    let job = engine.submit(circle(1024).steps(4000)).unwrap();
    let mut held = Vec::new();
    let error = loop {
        match job.recv() {
            Some(Event::Phase(Phase::Denoise)) => held = fill(),
            Some(Event::Failed(error)) => break error,
            Some(Event::Finished(_)) | None => panic!("there was no memory to draw it with"),
            Some(_) => {}
        }
    };
    say(&error.to_string());
    assert!(matches!(error, Error::OutOfMemory(_)), "{error:?}");
    drop(held);
    assert_eq!(engine.submit(circle(64)).unwrap().wait().unwrap(), expected);
    assert_eq!(engine.stats().workers, 1);
}

#[test]
fn a_lost_device_ends_its_thread_with_an_event_and_the_process_lives() {
    let Some(_alone) = crate::support::require::cuda() else {
        return;
    };
    if !in_a_child("a_lost_device_ends_its_thread_with_an_event_and_the_process_lives") {
        return;
    }
    let engine = engine();
    let job = engine.submit(circle(64).steps(4000)).unwrap();
    let waiting = engine.submit(circle(64)).unwrap();
    let error = loop {
        match job.recv() {
            Some(Event::Step { step: 3, .. }) => {
                // No row of this number: an assert on the device.
                let rows = Tensor::zeros([4, 4], (Kind::Float, DEVICE));
                let index = Tensor::full([1], 1 << 20, (Kind::Int64, DEVICE));
                std::mem::forget((rows.f_index_select(0, &index), rows, index));
            }
            Some(Event::Failed(error)) => break error,
            Some(Event::Finished(_)) | None => panic!("the device was lost"),
            Some(_) => {}
        }
    };
    say(&error.to_string());
    assert!(matches!(error, Error::DeviceLost { device: DEVICE, .. }), "{error:?}");
    assert!(matches!(waiting.wait(), Err(Error::Stopped)));
    let deadline = Instant::now() + Duration::from_secs(30);
    while engine.stats().workers > 0 {
        assert!(Instant::now() < deadline, "the thread lives on");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(matches!(engine.submit(circle(64)), Err(Error::Stopped)));
    // The CPU still draws.
    assert_eq!(draw(Settings::default(), &circle(64)).len(), 1);
}

/// Whether this is a process of the test's own, since what it does to the device cannot be undone. Elsewhere runs it in
/// one.
fn in_a_child(test: &str) -> bool {
    const CHILD: &str = "TCH_FLUX_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let status = Command::new(this).args(["--exact", test, "--nocapture"]).env(CHILD, "1").status().unwrap();
    assert!(status.success(), "{test}: {status}");
    false
}

/// A transformer of FLUX.1's width with few blocks and random weights.
fn wide(blocks: usize) -> (VarStore, Flux1) {
    let mut vs = VarStore::new(DEVICE);
    vs.set_kind(Kind::BFloat16);
    let params = Flux1Params { depth: 0, depth_single_blocks: blocks, ..Flux1Params::DEV };
    let model = Flux1::new(vs.root(), &params).unwrap();
    let _no_grad = tch::no_grad_guard();
    for mut variable in vs.variables().into_values() {
        let size = variable.size();
        let value = Tensor::randn(&size[..], (Kind::BFloat16, DEVICE)) / (size[size.len() - 1] as f64).sqrt();
        variable.set_data(&value);
    }
    vs.freeze();
    model.set_numerics(Numerics::Fast);
    (vs, model)
}

#[test]
fn what_is_cancelled_ends_within_two_blocks() {
    let Some(_alone) = crate::support::require::cuda() else { return };
    let _no_grad = tch::no_grad_guard();
    const BLOCKS: usize = 60;
    let (_vs, model) = wide(BLOCKS);
    let model = Transformer::Flux1(Box::new(model));
    let random = |size: &[i64]| Tensor::randn(size, (Kind::BFloat16, DEVICE));
    let latent = ModelFamily::Flux1.latent();
    let noise =
        latent.get_noise(1, 1024, 1024, Kind::BFloat16, 1, Default::default()).unwrap().to_device(DEVICE);
    let prepared = latent.prepare(&noise, &random(&[1, 512, 4096]), Some(&random(&[1, 768]))).unwrap();
    let run = |steps: usize| {
        let times: Vec<f64> = (0..=steps).map(|i| 1.0 - i as f64 / steps as f64).collect();
        denoise(&model, &prepared, &times, 2.5, &Conditions::default(), &mut |_, _| Ok(()))
    };
    let wait = || Cuda::synchronize(0);
    let _ = run(1).unwrap();
    wait();
    let begun = Instant::now();
    let _ = run(4).unwrap();
    wait();
    let block = begun.elapsed() / (4 * BLOCKS as u32);

    let cancel = Arc::new(AtomicBool::new(false));
    let elsewhere = cancel.clone();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        elsewhere.store(true, Ordering::Relaxed);
        Instant::now()
    });
    let outcome = with_cancel(&cancel, || run(100));
    wait();
    let took = canceller.join().unwrap().elapsed();
    say(&format!("a block takes {block:?}, the end came {took:?} after the cancellation"));
    assert!(matches!(outcome, Err(Error::Cancelled)));
    assert!(took < 3 * block + Duration::from_millis(5), "{took:?}, where a block takes {block:?}");
}
