//! A pipeline from the library: what a picture depends on, and what errors leave behind.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::Error;
use tch_flux::checkpoint::Access;
use tch_flux::generation::{
    ControlPreprocess, Edit, Generated, Offload, PartOverrides, Parts, Phase, Pipeline, PreviewBy, Progress,
    Request, Role, Settings,
};
use tch_flux::image::Image;
use tch_flux::image::Mask;
use tch_flux::models::autoencoder::{TinyAutoEncoder, TinyAutoEncoderParams};

fn model() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

fn open(settings: Settings) -> Pipeline {
    Pipeline::open(Parts::find(model()).unwrap(), settings).unwrap()
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Vec<Generated> {
    pipeline.generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn circle(seed: u64) -> Request {
    Request::new("a red circle on a blue background", 64, 64).seed(seed)
}

#[test]
fn the_same_seed_gives_the_same_picture_whatever_the_batch_around_it() {
    let mut pipeline = open(Settings::default());
    let alone = draw(&mut pipeline, &circle(12)).remove(0).image;
    let mut batch = circle(10).num_images(3);
    batch.prompts = vec!["a white ring on a black background".into(), circle(0).prompts.remove(0)];
    let drawn = draw(&mut pipeline, &batch);
    assert_eq!(drawn.len(), 6);
    let same = drawn.iter().find(|g| g.request.seed == 12 && g.request.prompts == circle(0).prompts).unwrap();
    assert_eq!(same.image, alone);
    assert_ne!(drawn[0].image, drawn[1].image, "another seed gives another picture");
    assert_eq!(
        draw(&mut open(Settings::default()), &same.request)[0].image,
        alone,
        "its own request draws it again"
    );
}

#[test]
fn libtorchs_own_random_numbers_have_no_part_in_a_picture() {
    let mut pipeline = open(Settings::default());
    tch::manual_seed(1);
    let first = draw(&mut pipeline, &circle(3));
    tch::manual_seed(2);
    let state = tch::Tensor::rand([4], tch::kind::FLOAT_CPU);
    tch::manual_seed(2);
    assert_eq!(draw(&mut pipeline, &circle(3)), first);
    assert_eq!(tch::Tensor::rand([4], tch::kind::FLOAT_CPU), state, "nor has it one in them");
}

#[test]
fn progress_tells_of_every_phase_and_step_in_order() {
    let mut pipeline = open(Settings::default());
    let mut heard = Vec::new();
    let request = circle(0).steps(3).num_images(2);
    let drawn = pipeline
        .generate(&request, &mut |p| {
            heard.push(p);
            ControlFlow::Continue(())
        })
        .unwrap();
    let step = |image, step| Progress::Step { image, images: 2, step, steps: 3 };
    let phase = Progress::Phase;
    let picture = |image: usize| {
        let picture = Arc::new(drawn[image].clone());
        Progress::Picture { image, images: 2, picture }
    };
    let expected = [
        phase(Phase::Text),
        phase(Phase::Load),
        phase(Phase::Denoise),
        step(0, 1),
        step(0, 2),
        step(0, 3),
        phase(Phase::Decode),
        picture(0),
        phase(Phase::Denoise),
        step(1, 1),
        step(1, 2),
        step(1, 3),
        phase(Phase::Decode),
        picture(1),
    ];
    assert_eq!(heard, expected);
}

#[test]
fn cancelling_at_any_point_leaves_the_pipeline_usable() {
    let mut pipeline = open(Settings::default());
    let expected = draw(&mut open(Settings::default()), &circle(1));
    for stop_at in 0..8 {
        let mut heard = 0;
        let stopped = pipeline.generate(&circle(1), &mut |_| {
            heard += 1;
            if heard > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "stopped at {stop_at}: {stopped:?}");
    }
    assert_eq!(draw(&mut pipeline, &circle(1)), expected);
}

/// Four small pictures.
fn four() -> Request {
    Request::new("a red circle", 32, 32).seed(3).steps(4).num_images(4)
}

/// What is drawn of [`four`] until `stops` is true of what is heard, with how often it was asked, and the pictures that
/// were handed out.
fn until(
    settings: Settings,
    stops: impl Fn(&Progress, usize) -> bool,
) -> (Result<Vec<Generated>, Error>, Vec<Generated>) {
    let (stop, mut heard, mut handed) = (Arc::new(AtomicBool::new(false)), 0, Vec::new());
    let (mut last_step, mut stopped_at) = (0, None);
    let drawn = open(settings).generate_until(&four(), &stop, &mut |progress| {
        if let Progress::Step { step, .. } = progress {
            // Pictures that are drawn together end the step together.
            assert!(stopped_at.is_none_or(|at| step == at || step == 4), "{step} after {stopped_at:?}");
            last_step = step;
        }
        heard += 1;
        if stops(&progress, heard) {
            stop.store(true, Ordering::SeqCst);
            stopped_at.get_or_insert(last_step);
        }
        if let Progress::Picture { picture, image, images } = progress {
            assert_eq!((image, images), (handed.len(), 4));
            handed.push(Generated::clone(&picture));
        }
        ControlFlow::Continue(())
    });
    (drawn, handed)
}

#[test]
fn what_is_nearly_done_when_it_is_stopped_is_finished() {
    let fast = Settings { numerics: tch_flux::numerics::Numerics::Fast, ..Settings::default() };
    for settings in [Settings::default(), fast] {
        let whole = draw(&mut open(settings), &four());
        let together = open(settings).max_batch(&four()).min(4);
        let step_of = |progress: &Progress| match progress {
            Progress::Step { image, step, .. } => Some((*image, *step)),
            _ => None,
        };
        // In a step that is not the last: nothing is done yet.
        let (drawn, handed) = until(settings, |progress, _| step_of(progress) == Some((0, 2)));
        assert!(drawn.unwrap().is_empty() && handed.is_empty());
        // In the last step of the first ones, or while they are decoded: they are finished.
        for last in [true, false] {
            let (drawn, handed) = until(settings, |progress, _| match progress {
                Progress::Step { step: 4, .. } => last,
                Progress::Phase(Phase::Decode) => !last,
                _ => false,
            });
            let drawn = drawn.unwrap();
            assert_eq!(drawn, whole[..together], "{together}");
            assert_eq!(drawn, handed);
        }
        let (drawn, _) = until(settings, |_, heard| heard == 1);
        assert!(matches!(drawn, Err(Error::Cancelled)), "{drawn:?}");
        let (drawn, handed) = until(settings, |_, _| false);
        assert_eq!(drawn.unwrap(), whole);
        assert_eq!(handed, whole);
    }
}

#[test]
fn pictures_are_handed_out_where_parts_are_offloaded_too() {
    let whole = draw(&mut open(Settings::default()), &four());
    for offload in [Offload::Parts, Offload::Blocks] {
        let settings = Settings { offload, ..Settings::default() };
        let (drawn, handed) = until(settings, |_, _| false);
        assert_eq!(drawn.unwrap(), whole, "{offload:?}");
        assert_eq!(handed, whole, "{offload:?}");
        // The third is on its way: the first two are whole, whether they were decoded yet or not.
        let third = |progress: &Progress, _| matches!(progress, Progress::Step { image: 2, step: 1, .. });
        let (drawn, handed) = until(settings, third);
        assert_eq!(drawn.unwrap(), whole[..2], "{offload:?}");
        assert_eq!(handed, whole[..2], "{offload:?}");
    }
}

#[test]
fn requests_that_cannot_be_drawn_are_refused_with_what_would_be_right() {
    let mut pipeline = open(Settings::default());
    let mut refused = |request: Request| match pipeline.generate(&request, &mut |_| ControlFlow::Continue(()))
    {
        Err(error @ (Error::Request(_) | Error::Parameter(_))) => error.to_string(),
        other => panic!("{request:?} gave {other:?}"),
    };
    let sized = |width, height| Request::new("a red circle on a blue background", width, height);
    assert!(refused(sized(1000, 64)).contains("992 and 1008"));
    let of_height = "height must be a multiple of 16 from 16 to 16384, not ";
    assert_eq!(refused(sized(64, 7)), format!("{of_height}7; the nearest is 16"));
    assert_eq!(refused(sized(64, -16)), format!("{of_height}-16"));
    assert!(refused(sized(i64::MAX, 64)).contains("width"));
    assert!(refused(circle(0).steps(0)).contains("steps"));
    assert!(refused(circle(0).guidance(f64::NAN)).contains("guidance"));
    assert!(refused(circle(0).num_images(0)).contains("num_images"));
    assert!(refused(Request { prompts: vec![], ..circle(0) }).contains("prompt"));
    assert!(refused(Request { max_sequence_length: Some(1), ..circle(0) }).contains("max_sequence_length"));
    assert_eq!(draw(&mut pipeline, &circle(0)).len(), 1, "and the pipeline still draws");
}

#[test]
fn tokens_that_do_not_fit_are_a_warning_and_not_silence() {
    let mut pipeline = open(Settings::default());
    let long = Request { max_sequence_length: Some(16), ..Request::new("a red circle ".repeat(40), 64, 64) };
    let drawn = draw(&mut pipeline, &long).remove(0);
    assert!(drawn.warnings.iter().any(|w| w.starts_with("T5 reads 16 tokens")), "{:?}", drawn.warnings);
    assert!(drawn.warnings.iter().any(|w| w.starts_with("CLIP reads 77 tokens")), "{:?}", drawn.warnings);
    assert!(draw(&mut pipeline, &circle(0))[0].warnings.is_empty());
}

#[test]
fn every_kind_and_access_draws_nearly_the_same_picture() {
    let reference =
        draw(&mut open(Settings { kind: Some(Kind::Float), ..Settings::default() }), &circle(4)).remove(0);
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        for access in [Access::Map, Access::Read] {
            let settings = Settings { kind: Some(kind), access, ..Settings::default() };
            let drawn = draw(&mut open(settings), &circle(4)).remove(0);
            let far = mean_difference(&reference.image, &drawn.image);
            assert!(far < 6.0, "{kind:?} {access:?}: {far} grey levels away");
        }
    }
}

fn mean_difference(a: &Image, b: &Image) -> f64 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let sum: u64 = a.rgb.iter().zip(&b.rgb).map(|(&x, &y)| u64::from(x.abs_diff(y))).sum();
    sum as f64 / a.rgb.len() as f64
}

#[test]
fn the_diffusers_folder_draws_the_same_picture_as_the_official_files() {
    let official = draw(&mut open(Settings::default()), &circle(5));
    let parts = Parts {
        transformer: model().join("transformer"),
        autoencoder: model().join("vae"),
        ..Parts::find(model()).unwrap()
    };
    let diffusers = draw(&mut Pipeline::open(parts, Settings::default()).unwrap(), &circle(5));
    assert_eq!(official, diffusers);
}

#[test]
fn legacy_noise_is_another_picture_in_bf16_only() {
    let legacy = Request { legacy_noise: true, ..circle(6) };
    let bf16 = Settings { kind: Some(Kind::BFloat16), ..Settings::default() };
    assert_ne!(draw(&mut open(bf16), &legacy)[0].image, draw(&mut open(bf16), &circle(6))[0].image);
    let f32 = Settings { kind: Some(Kind::Float), ..Settings::default() };
    assert_eq!(draw(&mut open(f32), &legacy)[0].image, draw(&mut open(f32), &circle(6))[0].image);
}

#[test]
fn a_folder_without_a_part_is_refused_with_the_names_that_were_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| match Parts::find(path) {
        Err(Error::MissingPart { part, expected, .. }) => format!("{part}: {expected}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(folder.path()),
        "transformer: flux1-*.safetensors or flux1-*.sft or flux1-*.gguf or transformer"
    );
    std::fs::copy(model().join("flux1-schnell.safetensors"), folder.path().join("flux1-a.safetensors"))
        .unwrap();
    assert_eq!(refused(folder.path()), "autoencoder: ae.safetensors or ae.sft or vae");
    std::fs::write(folder.path().join("flux1-b.safetensors"), b"").unwrap();
    assert!(matches!(Parts::find(folder.path()), Err(Error::File { .. })), "two transformers could be meant");
}

#[test]
fn a_folder_need_not_hold_the_parts_that_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let Parts {
        transformer,
        autoencoder,
        clip,
        t5,
        clip_tokenizer,
        t5_tokenizer,
        base,
        redux,
        image_encoder,
        preview,
        depth,
        scheduler,
        model_index: _,
    } = Parts::find(model()).unwrap();
    std::fs::copy(transformer, folder.path().join("flux1-a.safetensors")).unwrap();
    let own = PartOverrides {
        base,
        transformer: None,
        autoencoder: Some(autoencoder),
        clip: Some(clip),
        t5: Some(t5),
        clip_tokenizer: Some(clip_tokenizer),
        t5_tokenizer: Some(t5_tokenizer),
        redux,
        image_encoder,
        preview,
        depth,
        scheduler,
    };
    assert_eq!(own.whole(), None);
    let parts = Parts::find_rest(own, folder.path()).unwrap();
    let transformer = folder.path().join("flux1-a.safetensors");
    assert_eq!(parts, Parts { transformer, model_index: None, ..Parts::find(model()).unwrap() });
}

#[test]
fn a_part_given_in_place_of_another_is_named_as_what_it_is() {
    let parts = || Parts::find(model()).unwrap();
    let wrong = [
        (Parts { transformer: model().join("text_encoder_2"), ..parts() }, "this is a T5 encoder"),
        (Parts { t5: model().join("text_encoder"), ..parts() }, "this is a CLIP text model"),
        (Parts { clip: model().join("ae.safetensors"), ..parts() }, "this is FLUX.1's autoencoder"),
        (Parts { autoencoder: model().join("transformer"), ..parts() }, "this is FLUX.1 schnell"),
    ];
    for (parts, says) in wrong {
        let drawn = Pipeline::open(parts, Settings::default())
            .and_then(|mut pipeline| pipeline.generate(&circle(0), &mut |_| ControlFlow::Continue(())));
        match drawn {
            Err(error @ (Error::Config(_) | Error::File { .. })) => {
                let text = error.to_string();
                assert!(text.contains(says), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A picture of one colour.
fn plain(width: u32, height: u32, colour: [u8; 3]) -> Image {
    Image { width, height, rgb: colour.repeat((width * height) as usize) }
}

#[test]
fn references_are_looked_at_and_a_picture_beside_changes_nothing() {
    let mut pipeline = open(Settings { numerics: tch_flux::numerics::Numerics::Fast, ..Settings::default() });
    let edit = |images: Vec<Image>| {
        circle(3).steps(2).edit(Edit { role: Some(Role::Reference), keep_size: true, ..Edit::new(images) })
    };
    let (red, blue) = (plain(64, 64, [200, 0, 0]), plain(48, 80, [0, 0, 200]));
    let requests = [
        circle(3).steps(2),
        edit(vec![red.clone()]),
        edit(vec![blue.clone()]),
        edit(vec![red.clone(), blue.clone()]),
        edit(vec![blue.clone(), red.clone()]),
    ];
    let alone: Vec<_> = requests.iter().map(|request| draw(&mut pipeline, request).remove(0).image).collect();
    for i in 0..alone.len() {
        assert!(alone[i + 1..].iter().all(|other| *other != alone[i]), "{i} is another one's, too");
    }
    let all: Vec<&Request> = requests.iter().chain(&requests[..2]).collect();
    let together = pipeline.generate_batch(&all, &mut |_, _| ControlFlow::Continue(())).unwrap();
    for (i, outcome) in together.into_iter().enumerate() {
        assert_eq!(outcome.unwrap().remove(0).image, alone[i % requests.len()], "request {i}");
    }
}

#[test]
fn pictures_in_a_role_that_the_model_does_not_have_are_refused() {
    let pipeline = open(Settings::default());
    let image = plain(64, 64, [1, 2, 3]);
    let mask = || Some(Mask { width: 64, height: 64, chosen: vec![255; 64 * 64] });
    let one = || Edit::new(vec![image.clone()]);
    let refused = |edit: Edit| match pipeline.role(&edit) {
        Err(Error::Request(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(pipeline.role(&one()).unwrap(), Role::Init);
    for role in [Role::Fill, Role::Control] {
        assert!(refused(Edit { role: Some(role), ..one() }).contains("start or reference"));
    }
    assert!(refused(Edit::new(vec![image.clone(), image.clone()])).contains("one picture"));
    assert!(refused(Edit { role: Some(Role::Reference), mask: mask(), ..one() }).contains("no mask"));
}

/// A tiny autoencoder with random weights: in a file with both halves, and in one for each, under its author's names.
fn tiny_autoencoder(folder: &Path) -> [PathBuf; 2] {
    let vs = VarStore::new(Device::Cpu);
    let params = TinyAutoEncoderParams { block_out_channels: 8, ..TinyAutoEncoderParams::taef1() };
    let _model = TinyAutoEncoder::new(vs.root(), &params).unwrap();
    tch_flux::nn::init(&vs, 1).unwrap();
    let all: Vec<(String, Tensor)> = vs.variables().into_iter().collect();
    let write = |name: &str, tensors: &[(String, Tensor)]| {
        let path = folder.join(name);
        Tensor::write_safetensors(tensors, &path).unwrap();
        path
    };
    let half = |name: &str, shift: usize| {
        let tensors = all.iter().filter_map(|(full, tensor)| {
            let (number, rest) = full.strip_prefix(&format!("{name}.layers."))?.split_once('.')?;
            Some((format!("{}.{rest}", number.parse::<usize>().ok()? + shift), tensor.shallow_clone()))
        });
        write(&format!("taef1_{name}.safetensors"), &tensors.collect::<Vec<_>>())
    };
    half("encoder", 0);
    [write("taef1.safetensors", &all), half("decoder", 1)]
}

#[test]
fn previews_are_made_by_whatever_is_named_and_change_no_bit_of_the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let [decoder, halves] = tiny_autoencoder(folder.path());
    let factors = folder.path().join("factors.json");
    let json = serde_json::json!({ "format": "latent-rgb/1", "factors": vec![[0.1, 0.2, -0.1]; 16], "bias": [0.0, 0.1, 0.2] });
    std::fs::write(&factors, json.to_string()).unwrap();
    let plain = draw(&mut open(Settings::default()), &circle(8)).remove(0).image;
    let mut seen: Vec<Vec<Image>> = Vec::new();
    for (preview, side) in [
        (None, 64),
        (Some(PreviewBy::Decoder(decoder)), 64),
        (Some(PreviewBy::Decoder(halves)), 64),
        (Some(PreviewBy::Factors(factors)), 8),
    ] {
        let parts = Parts { preview, ..Parts::find(model()).unwrap() };
        let mut pipeline = Pipeline::open(parts, Settings::default()).unwrap();
        let mut previews = Vec::new();
        let drawn = pipeline.generate(&circle(8).previews(2), &mut |progress| {
            if let Progress::Preview { picture, .. } = progress {
                previews.push(picture);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(drawn.unwrap().remove(0).image, plain);
        assert_eq!(previews.len(), 2);
        assert!(previews.iter().all(|picture| (picture.width, picture.height) == (side, side)));
        seen.push(previews);
    }
    assert_eq!(seen[1], seen[2], "both layouts are one decoder");
    assert_ne!(seen[0], seen[1], "the previews are another decoder's");
}

#[test]
fn a_tiny_autoencoder_stands_in_for_the_full_one() {
    let folder = tempfile::tempdir().unwrap();
    let [both, halves] = tiny_autoencoder(folder.path());
    let edit = || Edit { strength: 0.5, ..Edit::new(vec![plain(64, 64, [200, 90, 10])]) };
    let with = |autoencoder: &Path| {
        let parts = Parts { autoencoder: autoencoder.to_path_buf(), ..Parts::find(model()).unwrap() };
        let mut pipeline = Pipeline::open(parts, Settings::default()).unwrap();
        [circle(9), circle(9).edit(edit())].map(|request| draw(&mut pipeline, &request).remove(0).image)
    };
    assert_eq!(with(&both), with(&halves));
    std::fs::remove_file(folder.path().join("taef1_encoder.safetensors")).unwrap();
    let parts = Parts { autoencoder: halves, ..Parts::find(model()).unwrap() };
    let mut alone = Pipeline::open(parts, Settings::default()).unwrap();
    assert_eq!(draw(&mut alone, &circle(9)).remove(0).image, with(&both)[0]);
    let refused = alone.generate(&circle(9).edit(edit()), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(Error::Config(text)) if text.contains("no encoder")));
}

#[test]
fn depths_need_a_model_of_them_and_a_transformer_that_follows() {
    let pipeline = open(Settings::default());
    let edit = Edit { follow: ControlPreprocess::Depth, ..Edit::new(vec![plain(64, 64, [1, 2, 3])]) };
    assert!(
        matches!(pipeline.role(&edit), Err(Error::Request(text)) if text.contains("for a picture as control, not as start"))
    );
}

/// LongCLIP has 248 positions: words beyond the 77th token reach the pooled vector, and nothing is said to be cut.
#[test]
fn longclip_reads_a_prompt_of_more_than_77_tokens() {
    use tch_flux::checkpoint::Checkpoint;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("longclip.safetensors");
    let clip = Checkpoint::open(model().join("text_encoder"), Access::Read).unwrap().official();
    let mut named = Vec::new();
    for name in clip.names() {
        let tensor = clip.tensor(name).unwrap();
        let tensor = match name.ends_with("position_embedding.weight") {
            true => Tensor::cat(&[&tensor, &tensor, &tensor, &tensor.narrow(0, 60, 17)], 0),
            false => tensor,
        };
        named.push((name.to_string(), tensor));
    }
    Tensor::write_safetensors(&named, &path).unwrap();
    let parts = || Parts { clip: path.clone(), ..Parts::find(model()).unwrap() };
    let settings = Settings { kind: Some(Kind::Float), ..Settings::default() };
    // More than 77 tokens, and fewer than 248.
    let request = Request::new("a red circle on a blue background, ".repeat(14), 64, 64).seed(5);
    let mut long = Pipeline::open(parts(), settings).unwrap();
    let one = draw(&mut long, &request).remove(0);
    assert!(!one.warnings.iter().any(|warning| warning.starts_with("CLIP")), "{:?}", one.warnings);
    let other = draw(&mut open(settings), &request).remove(0);
    assert!(
        other.warnings.iter().any(|warning| warning.starts_with("CLIP reads 77 tokens")),
        "{:?}",
        other.warnings
    );
    assert!(one.image != other.image, "the end of the prompt is another token's state");
    // And 248 are not enough for everything.
    let endless = Request::new("circle ".repeat(300), 64, 64);
    let said = draw(&mut long, &endless).remove(0).warnings;
    assert!(said.iter().any(|warning| warning.starts_with("CLIP reads 248 tokens")), "{said:?}");
}

/// What stands beside a part in its file is said once, by the library and for all parts.
#[test]
fn what_is_left_aside_is_said_once() {
    use tch_flux::checkpoint::Checkpoint;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t5.safetensors");
    let t5 = Checkpoint::open(model().join("text_encoder_2"), Access::Read).unwrap();
    let mut named: Vec<_> = t5.names().map(|name| (name.to_string(), t5.tensor(name).unwrap())).collect();
    named.push(("lm_head.weight".into(), Tensor::ones([4, 4], (Kind::Float, Device::Cpu))));
    Tensor::write_safetensors(&named, &path).unwrap();
    let parts = Parts { t5: path.clone(), ..Parts::find(model()).unwrap() };
    let mut pipeline = Pipeline::open(parts, Settings::default()).unwrap();
    let warnings = pipeline.warnings().unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("lm_head.weight"), "{warnings:?}");
    assert!(warnings[0].contains("t5.safetensors"), "{warnings:?}");
    assert_eq!(
        draw(&mut pipeline, &circle(1))[0].image,
        draw(&mut open(Settings::default()), &circle(1))[0].image
    );
    assert!(open(Settings::default()).warnings().unwrap().is_empty());
}

/// Shards at the top of a folder are one transformer, with their index and without.
#[test]
fn a_transformer_in_shards_is_found_at_the_top_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["ae.safetensors", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
        std::os::unix::fs::symlink(model().join(name), folder.path().join(name)).unwrap();
    }
    for name in
        ["flux1-a-00001-of-00002.safetensors", "flux1-a-00002-of-00002.safetensors", "._flux1-a.safetensors"]
    {
        std::fs::write(folder.path().join(name), b"").unwrap();
    }
    let found = |folder: &Path| Parts::find(folder).unwrap().transformer;
    assert!(found(folder.path()).ends_with("flux1-a-00001-of-00002.safetensors"));
    std::fs::write(folder.path().join("flux1-a.safetensors.index.json"), b"{}").unwrap();
    assert!(found(folder.path()).ends_with("flux1-a.safetensors.index.json"));
    std::fs::write(folder.path().join("flux1-b.safetensors"), b"").unwrap();
    let error = Parts::find(folder.path()).unwrap_err().to_string();
    assert!(error.contains("several transformers could be meant") && error.contains("flux1-b"), "{error}");
}
