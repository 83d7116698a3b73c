//! Every layer and model against tensors that the reference implementations gave.
//!
//! Bit for bit where torch, threads and CPU are those of the case, within the tolerance elsewhere; each test says
//! which it was.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tch::{Kind, Tensor};
use tch_flux::Error;
use tch_flux::checkpoint::{Access, Checkpoint};
use tch_flux::parity::{Case, Machine};

fn folder() -> PathBuf {
    crate::support::root().join("fixtures/parity")
}

fn matches(name: &str) {
    let _alone = crate::alone();
    let case = Case::open(folder().join(format!("{name}.safetensors"))).unwrap();
    let theirs = case.machine.clone().expect("a case says where it was made");
    // The run takes the case's threads, so they are no difference.
    let here = Machine { threads: theirs.threads, ..Machine::here() };
    // diffusers computes the same in another order.
    let exact = here.gives_the_bits_of(&theirs) && !case.module.starts_with("diffusers.");
    // Not through `println!`, which a test that passes swallows.
    let how = if exact { "bit for bit" } else { "within the tolerance" };
    std::io::stderr().write_all(format!("{name}: {how}\n").as_bytes()).unwrap();
    let comparisons = case.run().unwrap().expect("the module is known");
    assert!(!comparisons.is_empty(), "{name} compares nothing");
    for comparison in comparisons {
        assert!(comparison.passes(exact), "{name}: {comparison:?}");
    }
}

/// Fast numerics, against the same module in f64: at most 1.1 times the error of the exact ones.
#[test]
fn fast_numerics_are_no_less_accurate() {
    let _alone = crate::alone();
    let mut compared = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let case = Case::open(entry.unwrap().path()).unwrap();
        for accuracy in case.accuracy().unwrap().expect("the module is known") {
            assert!(accuracy.passes(), "{}: {accuracy:?}", case.name());
            compared += usize::from(accuracy.fast != accuracy.exact);
        }
    }
    assert!(compared > 40, "the two forms differ in {compared} outputs");
}

macro_rules! cases {
    ($($name:ident => $test:ident,)*) => {
        $(#[test] fn $test() { matches(stringify!($name)); })*

        #[test]
        fn every_case_in_the_folder_is_a_test() {
            let listed: BTreeSet<String> = [$(stringify!($name).to_string()),*].into();
            let there: BTreeSet<String> = std::fs::read_dir(folder())
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            assert_eq!(listed, there);
        }
    };
}

cases! {
    diffusers_sampler_euler_f32 => euler_walks_as_diffusers_does,
    diffusers_sampler_heun_f32 => heun_walks_as_diffusers_does,
    diffusers_sampler_dpmpp_2m_f32 => dpmpp_2m_walks_as_diffusers_does,
    diffusers_sampler_lcm_f32 => lcm_walks_as_diffusers_does,
    ae_attn_block_bf16 => ae_attn_block_matches_official_bf16,
    ae_attn_block_f32 => ae_attn_block_matches_official_f32,
    ae_resnet_block_bf16 => ae_resnet_block_matches_official_bf16,
    ae_resnet_block_f32 => ae_resnet_block_matches_official_f32,
    apply_rope_bf16 => apply_rope_matches_official_bf16,
    apply_rope_f32 => apply_rope_matches_official_f32,
    attention_bf16 => attention_matches_official_bf16,
    attention_f32 => attention_matches_official_f32,
    autoencoder_f32 => autoencoder_matches_official_f32,
    bicubic_antialias_0 => growing_bicubic_antialias_matches_torch,
    bicubic_antialias_1 => shrinking_bicubic_antialias_matches_torch,
    clip_text_bf16 => clip_text_matches_transformers_bf16,
    clip_text_f32 => clip_text_matches_transformers_f32,
    clip_vision_bf16 => clip_vision_matches_transformers_bf16,
    clip_vision_f32 => clip_vision_matches_transformers_f32,
    controlnet_instantx_bf16 => controlnet_instantx_matches_diffusers_bf16,
    controlnet_instantx_f32 => controlnet_instantx_matches_diffusers_f32,
    controlnet_union_bf16 => controlnet_union_matches_diffusers_bf16,
    controlnet_union_f32 => controlnet_union_matches_diffusers_f32,
    controlnet_xlabs_bf16 => controlnet_xlabs_matches_diffusers_bf16,
    controlnet_xlabs_f32 => controlnet_xlabs_matches_diffusers_f32,
    denoise_bf16 => denoise_matches_official_bf16,
    denoise_channel_cond_f32 => denoise_channel_cond_matches_official_f32,
    denoise_f32 => denoise_matches_official_f32,
    denoise_kontext_bf16 => denoise_kontext_matches_official_bf16,
    denoise_kontext_f32 => denoise_kontext_matches_official_f32,
    depth_anything_bf16 => depth_anything_matches_transformers_bf16,
    depth_anything_f32 => depth_anything_matches_transformers_f32,
    depth_pixels => depth_pixels_match_transformers,
    diffusers_flux_f32 => diffusers_flux_matches_diffusers_f32,
    diffusers_tiny_autoencoder_bf16 => tiny_autoencoder_matches_diffusers_bf16,
    diffusers_tiny_autoencoder_f32 => tiny_autoencoder_matches_diffusers_f32,
    dinov2_bf16 => dinov2_matches_transformers_bf16,
    dinov2_f32 => dinov2_matches_transformers_f32,
    double_stream_block_bf16 => double_stream_block_matches_official_bf16,
    double_stream_block_f32 => double_stream_block_matches_official_f32,
    embed_nd => embed_nd_matches_official,
    flux_dev_bf16 => flux_dev_matches_official_bf16,
    flux_dev_f32 => flux_dev_matches_official_f32,
    flux_fill_bf16 => flux_fill_matches_official_bf16,
    flux_fill_f32 => flux_fill_matches_official_f32,
    flux_ip_adapters_bf16 => flux_ip_adapters_matches_diffusers_bf16,
    flux_ip_adapters_f32 => flux_ip_adapters_matches_diffusers_f32,
    flux_lora_f32 => flux_lora_wrapper_matches_official_f32,
    flux_residuals_bf16 => flux_residuals_matches_diffusers_bf16,
    flux_residuals_f32 => flux_residuals_matches_diffusers_f32,
    flux_residuals_repeat_bf16 => flux_residuals_repeat_matches_diffusers_bf16,
    flux_residuals_repeat_f32 => flux_residuals_repeat_matches_diffusers_f32,
    flux_schnell_bf16 => flux_schnell_matches_official_bf16,
    flux_schnell_f32 => flux_schnell_matches_official_f32,
    get_noise_0 => get_noise_0_matches_official,
    get_noise_1 => get_noise_1_matches_official,
    get_noise_2 => get_noise_2_matches_official,
    get_noise_legacy_0 => get_noise_legacy_0_matches_official,
    get_noise_legacy_1 => get_noise_legacy_1_matches_official,
    get_schedule_0 => get_schedule_0_matches_official,
    get_schedule_1 => get_schedule_1_matches_official,
    get_schedule_2 => get_schedule_2_matches_official,
    last_layer_bf16 => last_layer_matches_official_bf16,
    last_layer_f32 => last_layer_matches_official_f32,
    mlp_embedder_bf16 => mlp_embedder_matches_official_bf16,
    mlp_embedder_f32 => mlp_embedder_matches_official_f32,
    modulation_double_bf16 => modulation_double_matches_official_bf16,
    modulation_double_f32 => modulation_double_matches_official_f32,
    modulation_single_bf16 => modulation_single_matches_official_bf16,
    modulation_single_f32 => modulation_single_matches_official_f32,
    prepare => prepare_matches_official,
    qk_norm_bf16 => qk_norm_matches_official_bf16,
    qk_norm_f32 => qk_norm_matches_official_f32,
    redux_image_encoder_bf16 => redux_image_encoder_matches_diffusers_bf16,
    redux_image_encoder_f32 => redux_image_encoder_matches_diffusers_f32,
    rms_norm_bf16 => rms_norm_matches_official_bf16,
    rms_norm_f32 => rms_norm_matches_official_f32,
    rope_a => rope_a_matches_official,
    rope_b => rope_b_matches_official,
    self_attention_bias_bf16 => self_attention_bias_matches_official_bf16,
    self_attention_bias_f32 => self_attention_bias_matches_official_f32,
    self_attention_nobias_bf16 => self_attention_nobias_matches_official_bf16,
    self_attention_nobias_f32 => self_attention_nobias_matches_official_f32,
    siglip_vision_bf16 => siglip_vision_matches_transformers_bf16,
    siglip_vision_f32 => siglip_vision_matches_transformers_f32,
    single_stream_block_bf16 => single_stream_block_matches_official_bf16,
    single_stream_block_f32 => single_stream_block_matches_official_f32,
    t5_encoder_bf16 => t5_encoder_matches_transformers_bf16,
    t5_encoder_f32 => t5_encoder_matches_transformers_f32,
    timestep_embedding_bf16 => timestep_embedding_matches_official_bf16,
    timestep_embedding_even_f32 => timestep_embedding_even_matches_official_f32,
    timestep_embedding_int => timestep_embedding_int_matches_official,
    timestep_embedding_odd_f32 => timestep_embedding_odd_matches_official_f32,
    timestep_embedding_period => timestep_embedding_period_matches_official,
    unpack => unpack_matches_official,
}

/// A copy of a case with other tensors in it, and with one more.
fn changed(
    name: &str,
    change: impl Fn(&str, Tensor) -> Tensor,
    more: Option<(&str, Tensor)>,
    run: impl FnOnce(Case),
) {
    let _alone = crate::alone();
    let path = folder().join(format!("{name}.safetensors"));
    let stored = Checkpoint::open(&path, Access::Read).unwrap();
    let metadata = stored.headers()[0].metadata.clone().into_iter().collect();
    let tensors: Vec<(String, Tensor, Vec<u8>)> = stored
        .names()
        .map(|name| (name, change(name, stored.tensor(name).unwrap()).contiguous()))
        .chain(more)
        .map(|(name, tensor)| {
            let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            (name.to_string(), tensor, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, tensor, bytes)| {
        let dtype = if tensor.kind() == Kind::BFloat16 { Dtype::BF16 } else { Dtype::F32 };
        let shape = tensor.size().iter().map(|&d| d as usize).collect();
        (name.clone(), TensorView::new(dtype, shape, bytes).unwrap())
    });
    let temporary = tempfile::tempdir().unwrap();
    let copy = temporary.path().join("case.safetensors");
    safetensors::serialize_to_file(views, Some(metadata), &copy).unwrap();
    run(Case::open(copy).unwrap());
}

#[test]
fn inputs_that_do_not_fit_a_layer_are_an_error_and_not_a_panic() {
    let narrow = |name: &str, x: Tensor| if name == "in.x" { x.narrow(-1, 0, 3) } else { x };
    changed("mlp_embedder_f32", narrow, None, |case| {
        assert!(matches!(case.run(), Err(Error::Case(_))));
    });
}

#[test]
fn the_weights_keep_their_kind_beside_larger_inputs_of_another() {
    // More numbers in f32 than the bf16 weights have: were the weights loaded as f32, the output would be none of bf16.
    let more = ("in.unused", Tensor::zeros([1 << 20], (Kind::Float, tch::Device::Cpu)));
    changed(
        "self_attention_bias_bf16",
        |_, x| x,
        Some(more),
        |case| {
            let compared = case.run().unwrap().expect("the module is known");
            assert_eq!(compared.len(), 1);
            assert!(compared.iter().all(|comparison| comparison.passes(false)), "{compared:?}");
        },
    );
}
