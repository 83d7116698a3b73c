//! Ways from noise to picture, and how little memory they may take: what changes a picture, and what must not.

#[path = "walks/configs.rs"]
mod configs;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tch::Kind;
use tch_flux::Error;
use tch_flux::generation::{Generated, Memory, Offload, Parts, Pipeline, Request, Settings};
use tch_flux::image::Image;
use tch_flux::models::flux1::StepCache;
use tch_flux::numerics::{Numerics, Quantize};
use tch_flux::sampling::{Sampler, Schedule};

use crate::support::{layout, temp, write_sparse};

fn model() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

fn open(settings: Settings) -> Pipeline {
    Pipeline::open(Parts::find(model()).unwrap(), settings).unwrap()
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Vec<Generated> {
    pipeline.generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn picture(pipeline: &mut Pipeline, request: &Request) -> Image {
    draw(pipeline, request).remove(0).image
}

fn circle() -> Request {
    Request::new("a red circle on a blue background", 64, 64).seed(3)
}

#[test]
fn what_is_offloaded_changes_no_bit() {
    for (kind, numerics) in
        [(Kind::BFloat16, Numerics::Fast), (Kind::Float, Numerics::Fast), (Kind::BFloat16, Numerics::Exact)]
    {
        let settings = Settings { kind: Some(kind), numerics, ..Settings::default() };
        let whole = picture(&mut open(settings), &circle());
        for offload in [Offload::Parts, Offload::Blocks] {
            let mut pipeline = open(Settings { offload, ..settings });
            for again in 0..2 {
                assert_eq!(
                    picture(&mut pipeline, &circle()),
                    whole,
                    "{offload:?} {kind:?} {numerics:?} {again}"
                );
            }
        }
    }
}

#[test]
fn what_is_quantised_layer_by_layer_is_what_is_quantised_at_once() {
    for numerics in [Numerics::Fast, Numerics::Exact] {
        let settings = Settings { quantize: Quantize::Int8, numerics, ..Settings::default() };
        let whole = picture(&mut open(settings), &circle());
        let plain = picture(&mut open(Settings { quantize: Quantize::None, ..settings }), &circle());
        assert!(whole.psnr(&plain).is_some_and(|db| db > 30.0), "{numerics:?}: {:?}", whole.psnr(&plain));
        let mut layer_by_layer = open(Settings { offload: Offload::Blocks, ..settings });
        for again in 0..2 {
            assert!(picture(&mut layer_by_layer, &circle()) == whole, "{numerics:?} {again}");
        }
    }
}

#[test]
fn every_sampler_draws_another_picture_and_the_same_again() {
    let mut pipeline = open(Settings::default());
    let request = circle().steps(6);
    let samplers = [Sampler::Euler, Sampler::Heun, Sampler::Dpmpp2m, Sampler::Lcm];
    let pictures = samplers.map(|sampler| picture(&mut pipeline, &request.clone().sampler(sampler)));
    for (i, one) in pictures.iter().enumerate() {
        assert_eq!(*one, picture(&mut pipeline, &request.clone().sampler(samplers[i])));
        assert!(pictures[..i].iter().all(|other| other != one), "{:?} is another's", samplers[i]);
    }
    // LCM's noise is of the seed, whatever is drawn beside it.
    let both = draw(&mut pipeline, &request.clone().sampler(Sampler::Lcm).seed(2).num_images(2));
    assert_eq!(both[1].image, pictures[3]);
}

#[test]
fn a_schedule_of_ones_own_is_taken_as_it_is() {
    let mut pipeline = open(Settings::default());
    let even = Schedule::Sigmas(vec![1.0, 0.75, 0.5, 0.25]);
    assert_eq!(picture(&mut pipeline, &circle().schedule(even)), picture(&mut pipeline, &circle()));
    let open_end = Schedule::Sigmas(vec![1.0, 0.9, 0.3]);
    let closed = Schedule::Sigmas(vec![1.0, 0.9, 0.3, 0.0]);
    let drawn = draw(&mut pipeline, &circle().schedule(open_end)).remove(0);
    assert_eq!(drawn.request.steps, Some(3));
    assert_eq!(drawn.image, picture(&mut pipeline, &circle().schedule(closed)));
    for wrong in [vec![], vec![1.5, 0.5], vec![0.5, 0.5], vec![0.5, 0.9], vec![1.0, f64::NAN], vec![0.0]] {
        let error = circle().schedule(Schedule::Sigmas(wrong.clone())).check().unwrap_err();
        assert!(matches!(error, Error::Parameter(_)), "{wrong:?}: {error}");
        assert!(error.to_string().starts_with("sigmas must fall"), "{wrong:?}: {error}");
    }
    let error = circle().steps(5).schedule(Schedule::Sigmas(vec![1.0, 0.5])).check().unwrap_err();
    assert!(error.to_string().contains("steps is 5, but there are sigmas for 2"), "{error}");
}

#[test]
fn a_variation_goes_from_one_noise_to_the_other() {
    let mut pipeline = open(Settings::default());
    let mut at = |strength| picture(&mut pipeline, &circle().variation(40, strength));
    let [none, some, all] = [0.0, 0.4, 1.0].map(&mut at);
    assert_eq!(none, picture(&mut pipeline, &circle()));
    assert_eq!(all, picture(&mut pipeline, &circle().seed(40)));
    assert!(some != none && some != all);
    let several = draw(&mut pipeline, &circle().variation(39, 0.4).num_images(2));
    assert_eq!(several[1].image, some, "the variation's seeds count on, not the request's");
    assert_eq!(picture(&mut pipeline, &several[1].request), some);
}

#[test]
fn weights_of_a_prompt_count_unless_it_is_read_to_the_letter() {
    let mut pipeline = open(Settings::default());
    let mut with = |prompt: &str, literal| {
        picture(&mut pipeline, &Request { prompts: vec![prompt.into()], literal, ..circle() })
    };
    let plain = with("a red circle on a blue background", false);
    assert_eq!(with("a (red:1) circle on a blue background", false), plain);
    assert_ne!(with("a (red:0.2) circle on a blue background", false), plain);
    assert_ne!(with("a (red:1) circle on a blue background", true), plain);
    // Without a number, a parenthesis is text.
    let text = "a (red) circle on a blue background";
    assert_eq!(with(text, false), with(text, true));
    // Prompts that ComfyUI reads as the same tokens with the same weights, and one that it reads otherwise.
    for [one, same, other] in [
        ["((red)) circle on (blue:1.0)", "(red:1.21) circle on (blue:1.0)", "(red:1.1) circle on (blue:1.0)"],
        ["(a (red:2) circle:0.3)", "(a :0.3)(red:2)( circle:0.3)", "(a red circle:0.3)"],
        ["(((red:1.2))) circle", "(red:1.2) circle", "((red):1.2) circle"],
        ["(red:1.2) on (blue)", "(red:1.2) on (blue:1.1)", "(red:1.2) on blue"],
        ["red(circle:1.4) on blue", "red (circle:1.4) on blue", "red circle on blue"],
        ["(:1.2) red circle", "(:1.2:1.1) red circle", ":1.2 red circle"],
        [r"\(a\) (red:1.2)", r"\(a\)(red:1.2)", "(a) (red:1.2)"],
    ] {
        let drawn = with(one, false);
        assert_eq!(drawn, with(same, false), "{one}");
        assert_ne!(drawn, with(other, false), "{one}");
    }
}

#[test]
fn weights_of_each_prompt_count_and_strange_ones_are_told() {
    let mut pipeline = open(Settings::default());
    let mut with = |request: Request| draw(&mut pipeline, &request).remove(0);
    let weighted = "a (red:0.2) circle on a blue background";
    let own = Request { prompts: vec![weighted.into()], ..circle() };
    // CLIP's vector is that of the text: what T5 reads is all that is weighed.
    assert_eq!(with(circle().prompt_2(weighted)).image, with(own).image);
    let negative = |text: &str| circle().negative_prompt(text, 3.0);
    assert_ne!(with(negative("a (blue:0.2) ring")).image, with(negative("a (blue:1) ring")).image);

    let drawn = with(negative("a (blue:-3) ring").prompt_2("a (red:2) circle (aspect ratio 16:9)"));
    assert_eq!(drawn.warnings.len(), 2, "{:?}", drawn.warnings);
    assert!(drawn.warnings[0].contains("\"aspect ratio 16\" a weight of 9"), "{:?}", drawn.warnings);
    assert!(drawn.warnings[1].starts_with("negative prompt: "), "{:?}", drawn.warnings);
    assert_eq!(with(circle()).warnings, [""; 0]);
    for number in ["nan", "inf", "-Infinity", "1e39"] {
        let prompt = format!("a (red:{number}) circle");
        for request in [Request::new(&prompt, 64, 64), circle().prompt_2(&prompt), negative(&prompt)] {
            let error = request.check().unwrap_err();
            assert!(error.to_string().contains("\"red\" the weight"), "{error}");
            Request { literal: true, ..request }.check().unwrap();
        }
    }
}

#[test]
fn a_step_cache_says_what_it_skipped_and_one_that_skips_nothing_changes_nothing() {
    for numerics in [Numerics::Exact, Numerics::Fast] {
        let mut pipeline = open(Settings { numerics, ..Settings::default() });
        let request = circle().steps(8);
        let whole = draw(&mut pipeline, &request).remove(0);
        assert_eq!(whole.skipped, (0, 0));
        let nothing = [
            StepCache::FirstBlock { threshold: 0.0 },
            StepCache::TeaCache { threshold: 0.0 },
            StepCache::TaylorSeer { interval: 1, order: 1, warmup: 0 },
        ];
        for cache in nothing {
            let drawn = draw(&mut pipeline, &request.clone().cache(cache)).remove(0);
            assert_eq!((drawn.skipped, &drawn.image), ((0, 8), &whole.image), "{cache:?} {numerics:?}");
        }
        for cache in [StepCache::FirstBlock { threshold: 0.5 }, StepCache::TEA_CACHE, StepCache::TAYLOR_SEER]
        {
            let drawn = draw(&mut pipeline, &request.clone().cache(cache)).remove(0);
            assert!(
                (1..8).contains(&drawn.skipped.0) && drawn.skipped.1 == 8,
                "{cache:?}: {:?}",
                drawn.skipped
            );
            assert!(drawn.image.psnr(&whole.image).is_none_or(|db| db > 20.0), "{cache:?} {numerics:?}");
            // Whatever is drawn beside it.
            let both = draw(&mut pipeline, &request.clone().cache(cache).seed(2).num_images(2)).remove(1);
            assert_eq!((both.image, both.skipped), (drawn.image, drawn.skipped), "{cache:?} {numerics:?}");
        }
    }
    assert!(circle().cache(StepCache::FirstBlock { threshold: -1.0 }).check().is_err());
    assert!(circle().cache(StepCache::TaylorSeer { interval: 0, order: 1, warmup: 1 }).check().is_err());
}

#[test]
fn a_plan_says_what_is_done_and_keeps_to_what_was_set_where_nothing_helps() {
    let (_dir, folder) = temp("full");
    full_size(&folder);
    let mut pipeline = Pipeline::open(Parts::find(&folder).unwrap(), Settings::default()).unwrap();
    let request = Request::new("a lighthouse", 1024, 1024);
    let plan = pipeline.fit(&request, 64 << 30, false).unwrap();
    assert!(plan.steps.is_empty() && pipeline.settings().offload == Offload::None, "{plan:?}");

    let plan = pipeline.fit(&request, 8 << 30, false).unwrap();
    let Memory { text, denoise, decode } = plan.expected;
    assert!([text, denoise, decode].iter().all(|&bytes| bytes > 0 && bytes <= 8 << 30), "{plan:?}");
    assert_eq!(pipeline.settings().offload, Offload::Blocks);

    // 8.6 GB of int8 do not fit, and would in 12.
    assert!(!plan.quantized_fits && pipeline.settings().quantize == Quantize::None, "{plan:?}");
    let mut pipeline = Pipeline::open(Parts::find(&folder).unwrap(), Settings::default()).unwrap();
    let plan = pipeline.fit(&request, 12 << 30, false).unwrap();
    assert!(plan.quantized_fits && pipeline.settings().quantize == Quantize::None, "{plan:?}");
    let mut pipeline = Pipeline::open(Parts::find(&folder).unwrap(), Settings::default()).unwrap();
    let plan = pipeline.fit(&request, 12 << 30, true).unwrap();
    assert!(!plan.quantized_fits && plan.expected.peak() > 8 << 30, "{plan:?}");
    let Settings { quantize, offload, .. } = *pipeline.settings();
    assert_eq!((quantize, offload), (Quantize::Int8, Offload::Blocks));
    assert!(plan.steps.iter().any(|step| step.contains("int8")), "{plan:?}");

    let mut pipeline = Pipeline::open(Parts::find(&folder).unwrap(), Settings::default()).unwrap();
    let plan = pipeline.fit(&request, 3 << 30, false).unwrap();
    assert!(pipeline.settings().vae_tile.is_some() && plan.expected.peak() <= 3 << 30, "{plan:?}");

    let before = *pipeline.settings();
    let error = pipeline.fit(&request, 100 << 20, false).unwrap_err();
    assert!(matches!(error, Error::TooLarge { free, .. } if free == 100 << 20), "{error}");
    assert_eq!(*pipeline.settings(), before);
}

/// schnell in files of the official size that take no room on the disk.
fn full_size(folder: &Path) {
    for part in ["text_encoder", "text_encoder_2"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    write_sparse(&folder.join("flux1-schnell.safetensors"), &layout("flux1-schnell"));
    write_sparse(&folder.join("ae.safetensors"), &layout("ae"));
    write_sparse(&folder.join("text_encoder/model.safetensors"), &layout("clip-l-text"));
    write_sparse(&folder.join("text_encoder_2/model.safetensors"), &layout("t5-xxl-encoder"));
    for part in ["tokenizer", "tokenizer_2"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        for entry in std::fs::read_dir(model().join(part)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(part).join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn normalised_true_guidance_is_another_picture_unless_nothing_is_led_away_from() {
    let mut pipeline = open(Settings { kind: Some(Kind::Float), ..Settings::default() });
    let guided = |negative: &str| circle().negative_prompt(negative, 4.0);
    let normalised = |request: Request| Request { cfg_normalization: true, ..request };
    let away = "a green square on a red background";
    let plain = picture(&mut pipeline, &guided(away));
    assert_ne!(picture(&mut pipeline, &normalised(guided(away))), plain);
    // Of a prompt that is its own negative, the velocity is the prompt's, and so is its length.
    let own = guided(&circle().prompts[0]);
    assert_eq!(picture(&mut pipeline, &normalised(own.clone())), picture(&mut pipeline, &own));
}
