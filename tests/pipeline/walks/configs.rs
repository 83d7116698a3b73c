//! What a folder's configs make of a picture, and what of them is refused.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use tch::Kind;
use tch_flux::generation::provenance::{ModelRecord, Provenance};
use tch_flux::generation::{
    ControlPreprocess, Edit, PartOverrides, Parts, Pipeline, Request, Role, Settings,
};
use tch_flux::image::{Image, Mask};
use tch_flux::sampling::{FlowMatch, Sampler, Schedule, Spacing};
use tch_flux::{Error, FileProblem, Result};

use super::{circle, draw, model, picture};

const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// The small model with some keys of a file's settings changed.
fn changed(changes: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model()).unwrap().map(|entry| entry.unwrap().path()) {
        let (name, own) = (entry.file_name().unwrap(), folder.path().join(entry.file_name().unwrap()));
        let file = changes.iter().find(|(file, _)| Path::new(file).starts_with(name));
        match file {
            // Without the single files: the parts of diffusers, whose settings these are.
            None if name.to_string_lossy().ends_with("safetensors") => {}
            Some((file, _)) if Path::new(file).components().count() > 1 => {
                std::fs::create_dir(&own).unwrap();
                for entry in std::fs::read_dir(&entry).unwrap().map(|entry| entry.unwrap().path()) {
                    symlink(&entry, own.join(entry.file_name().unwrap())).unwrap();
                }
            }
            _ => symlink(&entry, &own).unwrap(),
        }
    }
    for (file, change) in changes {
        let path = folder.path().join(file);
        let mut fields: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, fields.to_string()).unwrap();
    }
    folder
}

fn open(folder: &Path) -> Result<Pipeline> {
    Pipeline::open(Parts::find(folder)?, Settings { kind: Some(Kind::Float), ..Settings::default() })
}

fn usual() -> Image {
    picture(&mut open(&model()).unwrap(), &circle())
}

/// The error of reading all that a folder says, which names this file and this key.
fn refused(folder: &Path, file: &str, words: &[&str]) {
    let error = open(folder).and_then(|pipeline| pipeline.warnings()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains(&folder.join(file).display().to_string()), "{error}");
    assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
}

#[test]
fn a_scheduler_says_how_requests_are_walked_that_say_nothing() {
    let folder = changed(&[(SCHEDULER, json!({ "shift": 3.0 }))]);
    let mut pipeline = open(folder.path()).unwrap();
    let shifted = Schedule::from(FlowMatch { shift: 3.0, ..FlowMatch::default() });
    let complete = pipeline.complete(&circle());
    assert_eq!((complete.schedule, complete.sampler), (Some(shifted.clone()), Some(Sampler::Euler)));
    let (drawn, usual) = (picture(&mut pipeline, &circle()), usual());
    assert_ne!(drawn, usual);
    // A request says more, and the schedule that is named is the one that is taken.
    assert_eq!(picture(&mut pipeline, &circle().schedule(Schedule::Linear)), usual);
    assert_eq!(picture(&mut open(&model()).unwrap(), &circle().schedule(shifted.clone())), drawn);
    assert!(pipeline.can_batch(&circle(), &circle().schedule(shifted)));
    assert!(!pipeline.can_batch(&circle(), &circle().schedule(Schedule::Linear)));

    let folder = changed(&[(SCHEDULER, json!({ "stochastic_sampling": true, "use_karras_sigmas": true }))]);
    let mut pipeline = open(folder.path()).unwrap();
    let karras = Schedule::from(FlowMatch { spacing: Spacing::Karras, ..FlowMatch::default() });
    let named = circle().sampler(Sampler::Lcm).schedule(karras);
    assert_eq!(picture(&mut pipeline, &circle()), picture(&mut open(&model()).unwrap(), &named));
    let euler = circle().sampler(Sampler::Euler).schedule(Schedule::Linear);
    assert_eq!(picture(&mut pipeline, &euler), usual);
}

#[test]
fn without_its_scheduler_a_folder_is_walked_as_the_official_code_does() {
    let parts = Parts::find(model()).unwrap();
    assert_eq!(parts.scheduler.as_deref(), Some(model().join(SCHEDULER).as_path()));
    let parts = Parts { scheduler: None, ..parts };
    let mut pipeline =
        Pipeline::open(parts, Settings { kind: Some(Kind::Float), ..Settings::default() }).unwrap();
    assert_eq!(pipeline.complete(&circle()).schedule, Some(Schedule::Linear));
    assert_eq!(picture(&mut pipeline, &circle()), usual());
}

#[test]
fn a_picture_is_repeated_without_the_folder_that_it_was_drawn_from() {
    let change = json!({ "shift": 2.0, "use_exponential_sigmas": true, "shift_terminal": 0.1 });
    let folder = changed(&[(SCHEDULER, change)]);
    let parts = Parts::find(folder.path()).unwrap();
    let mut pipeline = open(folder.path()).unwrap();
    let drawn = draw(&mut pipeline, &circle()).remove(0);
    let texts = Provenance::new(&ModelRecord::of(&pipeline, &parts), &drawn).texts().unwrap();
    let again = Provenance::from_texts(&texts).unwrap().unwrap().request;
    assert_eq!(picture(&mut open(&model()).unwrap(), &again), drawn.image);
    // Pictures from before there was a choice name no sampler, and were drawn with Euler's.
    let mut older: Value = serde_json::from_str(&texts["tch-flux"]).unwrap();
    older.as_object_mut().unwrap().remove("sampler");
    let older = [("tch-flux".to_string(), older.to_string())].into();
    assert_eq!(Provenance::from_texts(&older).unwrap().unwrap().request.sampler, Some(Sampler::Euler));
}

#[test]
fn a_transformer_of_another_variant_is_not_walked_by_the_folders_scheduler() {
    // Fill and Canny have more channels; schnell and dev differ by the guidance alone.
    let folder = changed(&[
        (SCHEDULER, json!({ "shift": 3.0 })),
        ("transformer/config.json", json!({ "guidance_embeds": true })),
    ]);
    let own = PartOverrides { transformer: Some(model().join("transformer")), ..PartOverrides::default() };
    let parts = Parts::find_rest(own, folder.path()).unwrap();
    let pipeline = Pipeline::open(parts, Settings::default()).unwrap();
    assert_eq!(pipeline.complete(&circle()).schedule, Some(Schedule::Linear));
    let warnings = pipeline.warnings().unwrap();
    assert!(
        warnings[0].contains("scheduler_config.json is not obeyed") && warnings[0].contains("dev"),
        "{warnings:?}"
    );
    // One of the same variant is.
    let folder = changed(&[(SCHEDULER, json!({ "shift": 3.0 }))]);
    let own = PartOverrides {
        transformer: Some(model().join("flux1-schnell.safetensors")),
        ..PartOverrides::default()
    };
    let parts = Parts::find_rest(own, folder.path()).unwrap();
    let pipeline = Pipeline::open(parts, Settings::default()).unwrap();
    assert!(matches!(pipeline.complete(&circle()).schedule, Some(Schedule::FlowMatch(_))));
    assert_eq!(pipeline.warnings().unwrap(), [""; 0]);
}

#[test]
fn a_schedule_without_times_fails_its_request_alone() {
    let folder = changed(&[(SCHEDULER, json!({ "shift_terminal": 0.1 }))]);
    let mut pipeline = open(folder.path()).unwrap();
    // One step begins at 1, which is stretched to no terminal.
    let (one, four) = (circle().steps(1), circle());
    let outcomes =
        pipeline.generate_batch(&[&one, &four], &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(
        matches!(&outcomes[0], Err(Error::Request(text)) if text.contains("1 steps")),
        "{:?}",
        outcomes[0]
    );
    assert!(outcomes[1].is_ok());
}

#[test]
fn the_autoencoders_factors_are_those_of_its_settings() {
    let factors = json!({ "scaling_factor": 0.5, "shift_factor": 0.05 });
    let folder = changed(&[("vae/config.json", factors)]);
    let ring = Image { width: 64, height: 64, rgb: (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect() };
    let begun = Edit { strength: 0.5, role: Some(Role::Init), ..Edit::new(vec![ring]) };
    for request in [circle(), circle().edit(begun)] {
        let drawn = picture(&mut open(folder.path()).unwrap(), &request);
        assert_ne!(drawn, picture(&mut open(&model()).unwrap(), &request));
        // Named as a folder, as a file in it, and as a file of another name with the settings beside it.
        let file = folder.path().join("vae/diffusion_pytorch_model.safetensors");
        let beside = tempfile::tempdir().unwrap();
        std::fs::copy(&file, beside.path().join("mine.safetensors")).unwrap();
        std::fs::copy(folder.path().join("vae/config.json"), beside.path().join("config.json")).unwrap();
        for named in [folder.path().join("vae"), file, beside.path().join("mine.safetensors")] {
            let own = PartOverrides { autoencoder: Some(named), ..PartOverrides::default() };
            let parts = Parts::find_rest(own, model()).unwrap();
            let settings = Settings { kind: Some(Kind::Float), ..Settings::default() };
            assert_eq!(picture(&mut Pipeline::open(parts, settings).unwrap(), &request), drawn);
        }
    }
    // Tiles and previews are decoded with the same.
    let tiled = Settings { kind: Some(Kind::Float), vae_tile: Some(64), ..Settings::default() };
    let parts = Parts::find(folder.path()).unwrap();
    assert_eq!(
        picture(&mut Pipeline::open(parts, tiled).unwrap(), &circle()),
        picture(&mut open(folder.path()).unwrap(), &circle())
    );
}

#[test]
fn the_settings_beside_the_single_file_are_of_it_where_the_sizes_are() {
    let folder = changed(&[("vae/config.json", json!({ "scaling_factor": 0.5 }))]);
    let drawn = picture(&mut open(folder.path()).unwrap(), &circle());
    symlink(model().join("ae.safetensors"), folder.path().join("ae.safetensors")).unwrap();
    assert_eq!(picture(&mut open(folder.path()).unwrap(), &circle()), drawn);
    let other = json!({ "scaling_factor": 0.5, "block_out_channels": [64, 64, 64, 64] });
    let folder = changed(&[("vae/config.json", other)]);
    symlink(model().join("ae.safetensors"), folder.path().join("ae.safetensors")).unwrap();
    assert_eq!(picture(&mut open(folder.path()).unwrap(), &circle()), usual());
}

#[test]
fn settings_of_another_model_beside_a_file_are_not_the_files() {
    let beside = tempfile::tempdir().unwrap();
    let there = |file: &str, name: &str| {
        symlink(model().join(file), beside.path().join(name)).unwrap();
        Some(beside.path().join(name))
    };
    let own = PartOverrides {
        transformer: there("flux1-schnell.safetensors", "flux.safetensors"),
        autoencoder: there("ae.safetensors", "ae.safetensors"),
        clip: there("text_encoder/model.safetensors", "clip_l.safetensors"),
        t5: there("text_encoder_2/model.safetensors", "t5xxl.safetensors"),
        ..PartOverrides::default()
    };
    let draws = || {
        let parts = Parts::find_rest(own.clone(), model())?;
        let settings = Settings { kind: Some(Kind::Float), ..Settings::default() };
        Ok::<_, Error>(picture(&mut Pipeline::open(parts, settings)?, &circle()))
    };
    // Sizes alone say what they said before: there is no mark of the end that no shape tells, so compare with those.
    let bare = draws().unwrap();
    for other in [
        json!({ "_class_name": "UNet2DConditionModel", "in_channels": 4 }),
        json!({ "_class_name": "AutoencoderKL", "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159 }),
        json!({ "model_type": "bert", "hidden_size": 12 }),
        json!({ "hidden_size": 12, "notes": "of mine" }),
        json!({ "model_type": "clip_vision_model", "hidden_size": 12 }),
    ] {
        std::fs::write(beside.path().join("config.json"), other.to_string()).unwrap();
        assert_eq!(draws().unwrap(), bare, "{other}");
    }
    // Those of CLIP are CLIP's alone.
    let clip = std::fs::read(model().join("text_encoder/config.json")).unwrap();
    std::fs::write(beside.path().join("config.json"), clip).unwrap();
    assert_ne!(draws().unwrap(), bare);
}

#[test]
fn what_the_weights_say_otherwise_or_nothing_is_built_for_is_refused_by_file_and_key() {
    let transformer = "transformer/config.json";
    let (vae, clip, t5) = ("vae/config.json", "text_encoder/config.json", "text_encoder_2/config.json");
    let index = "model_index.json";
    for (file, change, words) in [
        (
            SCHEDULER,
            json!({ "_class_name": "UniPCMultistepScheduler" }),
            &["_class_name", "UniPC", "a sampler and a schedule that a request names"][..],
        ),
        (SCHEDULER, json!({ "time_shift_type": "cosine" }), &["time_shift_type", "linear"]),
        (SCHEDULER, json!({ "shift": "3" }), &["\"shift\"", "number"]),
        (transformer, json!({ "_class_name": "ChromaTransformer2DModel" }), &["_class_name", "Chroma"]),
        (transformer, json!({ "num_layers": 3 }), &["num_layers", "3", "2", "transformer"]),
        (transformer, json!({ "guidance_embeds": true }), &["guidance_embeds", "true", "false"]),
        (transformer, json!({ "attention_head_dim": 64 }), &["attention_head_dim", "64", "32"]),
        (transformer, json!({ "joint_attention_dim": 4096 }), &["joint_attention_dim"]),
        (transformer, json!({ "out_channels": 16 }), &["out_channels"]),
        (transformer, json!({ "axes_dims_rope": [4, 14, 16] }), &["axes_dims_rope", "34", "32"]),
        (transformer, json!({ "axes_dims_rope": [4, 28] }), &["axes_dims_rope", "three"]),
        (transformer, json!({ "axes_dims_rope": [3, 15, 14] }), &["axes_dims_rope", "even"]),
        (transformer, json!({ "axes_dims_rope": "4,14,14" }), &["axes_dims_rope", "list"]),
        (vae, json!({ "_class_name": "AutoencoderKLFlux2" }), &["_class_name", "AutoencoderKL"]),
        (vae, json!({ "latent_channels": 4 }), &["latent_channels", "4", "16"]),
        (vae, json!({ "block_out_channels": [32, 64, 64, 64] }), &["block_out_channels"]),
        (vae, json!({ "layers_per_block": 2 }), &["layers_per_block"]),
        (vae, json!({ "act_fn": "gelu" }), &["act_fn", "silu"]),
        (vae, json!({ "norm_num_groups": 16 }), &["norm_num_groups", "32"]),
        (vae, json!({ "use_quant_conv": true }), &["use_quant_conv"]),
        (vae, json!({ "mid_block_add_attention": false }), &["mid_block_add_attention"]),
        (vae, json!({ "up_block_types": ["AttnUpDecoderBlock2D"] }), &["up_block_types"]),
        (vae, json!({ "scaling_factor": 0 }), &["scaling_factor"]),
        (vae, json!({ "scaling_factor": "0.5" }), &["scaling_factor", "number"]),
        (clip, json!({ "model_type": "t5" }), &["model_type", "clip"]),
        (clip, json!({ "hidden_act": "relu" }), &["hidden_act", "quick_gelu"]),
        (clip, json!({ "num_attention_heads": 5 }), &["num_attention_heads", "64"]),
        (clip, json!({ "hidden_size": 768 }), &["hidden_size", "768", "64"]),
        (clip, json!({ "eos_token_id": [2, 3] }), &["eos_token_id"]),
        (t5, json!({ "feed_forward_proj": "relu" }), &["feed_forward_proj", "gated-gelu"]),
        (t5, json!({ "dense_act_fn": "silu" }), &["dense_act_fn"]),
        (t5, json!({ "is_gated_act": false }), &["is_gated_act"]),
        (t5, json!({ "is_decoder": true }), &["is_decoder"]),
        (t5, json!({ "d_kv": 64 }), &["d_kv", "64", "16"]),
        (t5, json!({ "num_layers": "2" }), &["num_layers", "whole number"]),
        (index, json!({ "_class_name": "ChromaPipeline" }), &["_class_name", "Chroma", "FLUX.1"]),
        (index, json!({ "_class_name": "Flux2Pipeline" }), &["_class_name", "Flux2Pipeline"]),
        (index, json!({ "_class_name": "StableDiffusion3Pipeline" }), &["_class_name", "StableDiffusion3"]),
    ] {
        refused(changed(&[(file, change)]).path(), file, words);
    }
}

#[test]
fn a_config_that_is_cut_short_is_refused_by_its_name() {
    for file in [
        SCHEDULER,
        "vae/config.json",
        "transformer/config.json",
        "text_encoder/config.json",
        "model_index.json",
    ] {
        let folder = changed(&[(file, json!({}))]);
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap();
        let cuts = [&text[..text.len() / 2], "", "[]"].map(|cut| (cut, "settings"));
        for (cut, word) in cuts.into_iter().chain([("<html></html>", "web page")]) {
            std::fs::write(folder.path().join(file), cut).unwrap();
            refused(folder.path(), file, &[word]);
        }
    }
}

#[test]
fn what_is_not_obeyed_is_said() {
    let warned = |file: &str, change: Value, word: &str| {
        let folder = changed(&[(file, change)]);
        let mut pipeline = open(folder.path()).unwrap();
        let warnings = pipeline.warnings().unwrap();
        assert!(
            warnings.len() == 1 && warnings[0].contains(file) && warnings[0].contains(word),
            "{warnings:?}"
        );
        assert_eq!(picture(&mut pipeline, &circle()), usual(), "{word}");
    };
    assert_eq!(open(&model()).unwrap().warnings().unwrap(), [""; 0]);
    warned("vae/config.json", json!({ "latents_mean": [0.1] }), "latents_mean");
    warned("vae/config.json", json!({ "use_wavelets": true }), "use_wavelets");
    warned("vae/config.json", json!({ "shift_factor": null }), "shift_factor");
    warned("transformer/config.json", json!({ "rope_scaling": 2 }), "rope_scaling");
    warned(SCHEDULER, json!({ "sigma_max": 1.0 }), "sigma_max");
    warned("model_index.json", json!({ "_class_name": "FluxOfMineOwnPipeline" }), "FluxOfMineOwnPipeline");
}

#[test]
fn the_class_of_the_pipeline_says_what_pictures_are_to_the_model() {
    let edit = Edit::new(vec![Image { width: 32, height: 32, rgb: vec![9; 32 * 32 * 3] }]);
    let role = |class: &str| {
        let folder = changed(&[("model_index.json", json!({ "_class_name": class }))]);
        let pipeline = open(folder.path()).unwrap();
        (pipeline.usual_role(), pipeline.role(&edit).unwrap())
    };
    assert_eq!(role("FluxPipeline"), (None, Role::Init));
    assert_eq!(role("FluxKontextPipeline"), (Some(Role::Reference), Role::Reference));
    assert_eq!(role("FluxImg2ImgPipeline"), (None, Role::Init));
    // A request says more.
    let folder = changed(&[("model_index.json", json!({ "_class_name": "FluxKontextPipeline" }))]);
    let begun = Edit {
        role: Some(Role::Init),
        follow: ControlPreprocess::Picture,
        mask: None::<Mask>,
        ..edit.clone()
    };
    assert_eq!(open(folder.path()).unwrap().role(&begun).unwrap(), Role::Init);
}

#[test]
fn a_controlnets_settings_are_read() {
    let own = model().parent().unwrap().join("tiny-additions/controlnet-canny");
    let folder = tempfile::tempdir().unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(own.join("config.json")).unwrap()).unwrap();
    for entry in std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().path()) {
        if !entry.ends_with("config.json") {
            symlink(&entry, folder.path().join(entry.file_name().unwrap())).unwrap();
        }
    }
    let mut put_on = |key: &str, value: Value| {
        config[key] = value;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let mut pipeline = open(&model()).unwrap();
        pipeline
            .set_controlnets(&[folder.path().to_path_buf()])
            .map(|()| pipeline.controlnets().next().unwrap().flux.axes_dim)
    };
    assert_eq!(put_on("axes_dims_rope", json!([8, 12, 12])).unwrap(), [8, 12, 12]);
    for (key, value, back) in [
        ("num_layers", json!(5), json!(1)),
        ("num_mode", json!(7), json!(null)),
        ("_class_name", json!("SD3ControlNetModel"), json!("FluxControlNetModel")),
    ] {
        let error = put_on(key, value).unwrap_err();
        let Error::File { path, problem: FileProblem::Setting { key: named, .. } } = &error else {
            panic!("{error:?}");
        };
        assert_eq!((path.as_path(), named.as_str()), (folder.path().join("config.json").as_path(), key));
        put_on(key, back).unwrap();
    }
}

#[test]
fn a_request_of_one_step_is_drawn_by_every_schedule_that_has_one() {
    let mut pipeline = open(&model()).unwrap();
    for spacing in [Spacing::Uniform, Spacing::Karras, Spacing::Exponential, Spacing::Beta] {
        let schedule = Schedule::from(FlowMatch { spacing, ..FlowMatch::default() });
        let one: Request = circle().steps(1).schedule(schedule);
        assert_eq!(picture(&mut pipeline, &one), picture(&mut pipeline, &circle().steps(1)), "{spacing:?}");
    }
}
