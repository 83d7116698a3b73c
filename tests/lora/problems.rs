//! What does not fit is an error that lists it, and only what is asked for is left out.

use tch::{Kind, Tensor};
use tch_flux::checkpoint::lora::Component;
use tch_flux::{Error, FileProblem};

use crate::support::{Stored, f32s, stored, write_file};
use crate::{assert_close, changed_by, open, open_stored, place, try_open, wave, weight};

const NAME: &str = "diffusion_model.double_blocks.0.img_attn.proj";
const PROJ: &str = "double_blocks.0.img_attn.proj";

/// What opening a file says of which tensor.
fn problem(tensors: &[(&str, &Tensor)]) -> (String, String) {
    let named: Vec<_> = tensors.iter().map(|(n, t)| stored(&format!("{NAME}.{n}"), t, Kind::Float)).collect();
    problem_of(&named)
}

fn problem_of(stored: &[Stored]) -> (String, String) {
    match open_stored(stored).unwrap_err() {
        Error::File { path, problem: FileProblem::Tensor { name, reason } } => {
            assert!(path.ends_with("lora.safetensors"));
            (name.strip_prefix(&format!("{NAME}.")).unwrap().to_string(), reason)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_has_no_place_is_listed_and_left_out_only_on_request() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let lora = open(&[
        ("diffusion_model.double_blocks.0.img_attn.proj.lora_down.weight", &down),
        ("diffusion_model.double_blocks.0.img_attn.proj.lora_up.weight", &up),
        ("diffusion_model.double_blocks.7.img_attn.proj.lora_down.weight", &down),
        ("diffusion_model.double_blocks.7.img_attn.proj.lora_up.weight", &up),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight", &down),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight", &up),
        ("diffusion_model.double_blocks.0.img_attn.wat.lora_up.weight", &up),
        ("transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight", &down),
        ("transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight", &up),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", &down),
    ]);
    let Error::Lora(unplaced) = place(&lora, 1.0, false).unwrap_err() else { panic!("another error") };
    assert_eq!(
        unplaced.unknown,
        [
            "diffusion_model.double_blocks.0.img_attn.wat.lora_up.weight",
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"
        ]
    );
    let name = |s: &str| s.to_string();
    let absent =
        (name("diffusion_model.double_blocks.7.img_attn.proj"), name("double_blocks.7.img_attn.proj.weight"));
    assert_eq!(unplaced.absent, [absent]);
    let qkv = name("diffusion_model.double_blocks.0.img_attn.qkv");
    assert_eq!(unplaced.misshapen, [(qkv, vec![24, 8], vec![8, 8])]);
    assert_eq!(unplaced.twice, [(name("transformer.transformer_blocks.0.attn.to_out.0"), name(NAME))]);
    let text = unplaced.to_string();
    for part in [
        "lora.safetensors",
        "(2): diffusion_model.",
        "changes [8, 8], not [24, 8]",
        "is it made for this model?",
    ] {
        assert!(text.contains(part), "{text}");
    }

    let placed = place(&lora, 1.0, true).unwrap();
    assert_eq!(placed.skipped, *unplaced);
    assert_eq!(placed.transformer.linears.keys().collect::<Vec<_>>(), [PROJ]);
}

#[test]
fn the_models_that_are_not_there_take_nothing() {
    let (down, up) = (wave(&[2, 6], 1.0), wave(&[6, 2], 2.0));
    let lora = open(&[
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", &down),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", &up),
    ]);
    assert_eq!(lora.modules(Component::Clip), 1);
    assert!(matches!(lora.place(&|_, _| None, 1.0, false), Err(Error::Lora(_))));
    assert!(lora.place(&|_, _| None, 1.0, true).unwrap().clip.linears.is_empty());
}

#[test]
fn matrices_that_contradict_each_other_are_named() {
    let (down, up, square) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0), wave(&[8, 8], 3.0));
    let says = |tensors: &[(&str, &Tensor)], key: &str, part: &str| {
        let (name, reason) = problem(tensors);
        assert!(name == key && reason.contains(part), "{name}: {reason}");
    };
    says(&[("lora_A.weight", &down)], "lora_A.weight", "lora_up (lora_B) is not in the file");
    says(&[("lora_B.weight", &up)], "lora_B.weight", "lora_down (lora_A) is not in the file");
    says(
        &[("lora_A.weight", &wave(&[3, 8], 1.0)), ("lora_B.weight", &up)],
        "lora_B.weight",
        "[8, 2] and [3, 8] do not multiply",
    );
    says(
        &[("lora_A.weight", &down.view([2, 8, 1, 1])), ("lora_B.weight", &up)],
        "lora_A.weight",
        "[2, 8, 1, 1], but it must be a matrix",
    );
    says(
        &[("lora_A.weight", &wave(&[0, 8], 1.0)), ("lora_B.weight", &wave(&[8, 0], 1.0))],
        "lora_B.weight",
        "it must be a matrix",
    );
    says(
        &[("lora_A.weight", &down), ("lora_B.weight", &up), ("lora_mid.weight", &square)],
        "lora_mid.weight",
        "core of a convolution",
    );
    says(
        &[("lora_A.weight", &down), ("lora_B.weight", &up), ("lora_B.bias", &wave(&[7], 1.0))],
        "lora_B.bias",
        "8 rows are changed",
    );
    says(
        &[("lora_A.weight", &down), ("lora_B.weight", &up), ("diff", &square)],
        "diff",
        "second change of the same weight",
    );
    says(
        &[
            ("lora_A.weight", &down),
            ("lora_B.weight", &up),
            ("reshape_weight", &Tensor::from_slice(&[8f32, 9.])),
        ],
        "reshape_weight",
        "says [8, 9], but the change is [8, 8]",
    );
    says(&[("lokr_w1", &up), ("lokr_w1_a", &up)], "lokr_w1_a", "is there besides");
    says(&[("lokr_w1", &up)], "lokr_w1", "lokr_w2_a is not in the file");
    says(&[("hada_w1_a", &up), ("hada_w1_b", &down)], "hada_w1_a", "hada_w2_a is not in the file");
    says(&[("diff", &wave(&[8], 1.0))], "diff", "a linear layer's is a matrix");
    says(&[("diff_b", &square)], "diff_b", "a bias is a vector");
    says(
        &[("lora_A.weight", &down), ("lora_B.weight", &up), ("dora_scale", &wave(&[7, 1], 1.0))],
        "dora_scale",
        "not the lengths of the rows of [8, 8]",
    );
    says(&[("dora_scale", &wave(&[8, 1], 1.0))], "dora_scale", "nothing else");
    says(&[("diff_b", &wave(&[8], 1.0)), ("dora_scale", &wave(&[8, 1], 1.0))], "dora_scale", "nothing else");
    says(&[("diff", &square), ("dora_scale", &wave(&[8, 1], 1.0))], "dora_scale", "DoRA is known for");
    says(&[("diff", &square), ("hada_t1", &square)], "hada_t1", "core of a convolution");
}

#[test]
fn an_alpha_is_one_finite_number() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    for (alpha, part) in [
        (Tensor::from_slice(&[1f32, 2.0]), "one number"),
        (Tensor::from_slice(&[f32::NAN]), "NaN"),
        (Tensor::from_slice(&[f32::INFINITY]), "inf"),
    ] {
        let (name, reason) = problem(&[("lora_A.weight", &down), ("lora_B.weight", &up), ("alpha", &alpha)]);
        assert!(name == "alpha" && reason.contains(part), "{name}: {reason}");
    }
}

#[test]
fn shapes_whose_product_overflows_are_refused() {
    let key = |name: &str| format!("{NAME}.{name}");
    let huge = |name: &str| (key(name), "F32".into(), vec![1 << 62, 2, 0], Vec::new());
    let matrices =
        [f32s(&key("lora_A.weight"), &[1, 8], &[0.0; 8]), f32s(&key("lora_B.weight"), &[8, 1], &[0.0; 8])];
    for part in ["alpha", "dora_scale", "lora_B.bias"] {
        let (name, _) = problem_of(&[&matrices[..], &[huge(part)]].concat());
        assert_eq!(name, part);
    }
    assert_eq!(problem_of(&[huge("diff")]).0, "diff");
}

#[test]
fn numbers_of_another_kind_are_refused() {
    let down = (format!("{NAME}.lora_A.weight"), "I8".into(), vec![2, 8], vec![0; 16]);
    let up = f32s(&format!("{NAME}.lora_B.weight"), &[8, 2], &[0.0; 16]);
    let (name, reason) = problem_of(&[down, up]);
    assert!(name == "lora_A.weight" && reason.contains("I8"), "{name}: {reason}");
}

#[test]
fn bf16_matrices_are_added_in_f32() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let names = [("lora_A", &down), ("lora_B", &up)];
    let stored = names.map(|(n, t)| stored(&format!("{NAME}.{n}.weight"), t, Kind::BFloat16));
    let lora = open_stored(&stored).unwrap();
    let rounded = |t: &Tensor| t.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let expected = weight(Component::Transformer, PROJ) + rounded(&up).matmul(&rounded(&down));
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, PROJ), &expected);
}

#[test]
fn another_models_file_is_no_lora() {
    let scale = wave(&[4], 1.0);
    let error =
        try_open(&[("double_blocks.0.img_attn.norm.key_norm.scale", &scale)]).unwrap_err().to_string();
    assert!(error.contains("this holds no LoRA: this is FLUX.1"), "{error}");
    let error = try_open(&[("nothing.known", &scale)]).unwrap_err().to_string();
    assert!(error.contains("it holds nothing.known"), "{error}");
}

#[test]
fn settings_that_cannot_be_followed_are_errors() {
    let (folder, path) = crate::support::temp("adapter_model.safetensors");
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let names = [("lora_A", &down), ("lora_B", &up)];
    write_file(&path, &names.map(|(n, t)| stored(&format!("{NAME}.{n}.weight"), t, Kind::Float)));
    for (settings, part) in [
        ("{", "EOF"),
        (r#"{"lora_alpha": "many"}"#, "invalid type"),
        (r#"{"lora_alpha": 2, "r": 0}"#, "not above 0"),
        (r#"{"lora_alpha": 2, "r": -2}"#, "not above 0"),
        (r#"{"alpha_pattern": {".*to_q": 2}}"#, "regular expression"),
    ] {
        std::fs::write(folder.path().join("adapter_config.json"), settings).unwrap();
        let error = tch_flux::checkpoint::lora::Lora::open(&path, Default::default()).unwrap_err();
        assert!(matches!(&error, Error::File { problem: FileProblem::Settings { .. }, .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_strength_is_a_number() {
    let diff = wave(&[8, 8], 1.0);
    let name = format!("{NAME}.diff");
    let lora = open(&[(&name, &diff)]);
    assert!(matches!(place(&lora, f64::NAN, true), Err(Error::Request(_))));
}
