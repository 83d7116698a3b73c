use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::*;
use crate::checkpoint::HEADERS_READ;
use crate::generation::{Offload, Parts};

/// The small model, which a published library has not beside it.
fn small_model() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny");
    folder.exists().then_some(folder)
}

fn headers_read() -> Vec<PathBuf> {
    let mut read = HEADERS_READ.take();
    read.sort();
    read
}

#[test]
fn each_header_is_read_once_however_often_its_part_is_asked_for_and_loaded() {
    let Some(folder) = small_model() else { return };
    let parts = Parts::find(&folder).unwrap();
    let mut expected =
        vec![parts.transformer.clone(), parts.autoencoder.clone(), parts.clip.clone(), parts.t5.clone()];
    for path in expected.iter_mut().filter(|path| path.is_dir()) {
        path.push("model.safetensors");
    }
    expected.sort();

    let settings = Settings { offload: Offload::Parts, ..Settings::default() };
    let mut pipeline = Pipeline::open(parts, settings).unwrap();
    let request = Request::new("a red circle", 64, 64).steps(1);
    pipeline.set_loras(&[]).unwrap();
    pipeline.weights().unwrap();
    pipeline.warnings().unwrap();
    pipeline.check_memory(&request).unwrap();
    pipeline.fit(&request, 1 << 40, false).unwrap();
    let mut draw = || {
        pipeline.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        pipeline.release();
    };
    draw();
    draw();
    assert_eq!(headers_read(), expected);
}

#[test]
fn a_file_that_was_replaced_is_opened_anew() {
    let Some(model) = small_model() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flux1-schnell.safetensors");
    let replace = || {
        let other = folder.path().join("other");
        std::fs::copy(model.join("flux1-schnell.safetensors"), &other).unwrap();
        std::fs::rename(other, &path).unwrap();
    };
    replace();
    let parts = Parts { transformer: path.clone(), ..Parts::find(&model).unwrap() };
    let pipeline = Pipeline::open(parts, Settings::default()).unwrap();
    let read = || headers_read().iter().filter(|read| **read == path).count();
    assert_eq!(read(), 1);
    pipeline.weights().unwrap();
    assert_eq!(read(), 0);
    replace();
    pipeline.weights().unwrap();
    assert_eq!(read(), 1);
}
