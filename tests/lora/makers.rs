//! One test for each maker and form.

use tch::{Kind, Tensor};
use tch_flux::checkpoint::lora::{Component, Maker};
use tch_flux::lora::{merged, merged_bias};

use crate::{assert_close, changed, changed_by, open, parameter, place, wave, weight};

const QKV: &str = "double_blocks.0.img_attn.qkv";
const LINEAR1: &str = "single_blocks.0.linear1";
const ADA_LN: &str = "final_layer.adaLN_modulation.1";
const RANK: i64 = 2;

/// The known pair: `down` `[2, in]` and `up` `[out, 2]`.
fn pair(out: i64, inputs: i64) -> (Tensor, Tensor) {
    (wave(&[RANK, inputs], 100.0), wave(&[out, RANK], 200.0))
}

/// A weight of the transformer with the known pair at a scale.
fn expected(module: &str, scale: f64) -> Tensor {
    let weight = weight(Component::Transformer, module);
    let (down, up) = pair(weight.size()[0], weight.size()[1]);
    weight + up.matmul(&down) * scale
}

fn number(value: f32) -> Tensor {
    Tensor::from_slice(&[value]).squeeze()
}

/// The rows of `up` in the order of a maker that swaps its halves.
fn swapped(up: &Tensor) -> Tensor {
    let mut halves = up.chunk(2, 0);
    halves.reverse();
    Tensor::cat(&halves, 0)
}

#[test]
fn kohya_scales_by_alpha_over_rank() {
    let (down, up) = pair(24, 8);
    let lora = open(&[
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", &down),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", &up),
        ("lora_unet_double_blocks_0_img_attn_qkv.alpha", &number(1.0)),
    ]);
    assert_eq!(lora.maker, Some(Maker::Kohya));
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, QKV), &expected(QKV, 0.5));
    assert_close(&changed_by(&lora, -0.5, Component::Transformer, QKV), &expected(QKV, -0.25));
    assert_eq!(lora.to_string(), "kohya: modules changed: 1 of transformer; LoRA; rank 2; alpha 1");
}

#[test]
fn kohya_names_both_text_encoders() {
    let clip = "text_model.encoder.layers.0.self_attn.q_proj";
    let t5 = "encoder.block.0.layer.0.SelfAttention.q";
    let ((down, up), (down5, up5)) = (pair(6, 6), pair(6, 10));
    let tensors: [(&str, &Tensor); 4] = [
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", &down),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", &up),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight", &down5),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", &up5),
    ];
    assert_close(
        &changed(&tensors, Component::Clip, clip),
        &(weight(Component::Clip, clip) + up.matmul(&down)),
    );
    assert_close(&changed(&tensors, Component::T5, t5), &(weight(Component::T5, t5) + up5.matmul(&down5)));
}

#[test]
fn diffusers_names_q_k_and_v_apart() {
    let (down, up) = pair(24, 8);
    let [q, k, v] = [0, 1, 2].map(|i| up.narrow(0, 8 * i, 8));
    let lora = open(&[
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", &down),
        ("transformer.transformer_blocks.0.attn.to_q.lora_B.weight", &q),
        ("transformer.transformer_blocks.0.attn.to_k.lora_A.weight", &down),
        ("transformer.transformer_blocks.0.attn.to_k.lora_B.weight", &k),
        ("transformer.transformer_blocks.0.attn.to_v.lora_A.weight", &down),
        ("transformer.transformer_blocks.0.attn.to_v.lora_B.weight", &v),
    ]);
    assert_eq!(lora.maker, Some(Maker::Diffusers));
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, QKV), &expected(QKV, 1.0));
}

#[test]
fn diffusers_names_the_entry_of_a_single_block_in_four() {
    let (down, up) = pair(56, 8);
    let rows = [(0, 8), (8, 8), (16, 8), (24, 32)].map(|(start, len)| up.narrow(0, start, len));
    let names = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"];
    let names = names.map(|n| {
        let name = format!("transformer.single_transformer_blocks.0.{n}");
        [format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight")]
    });
    let tensors =
        names.iter().zip(&rows).flat_map(|([a, b], rows)| [(a.as_str(), &down), (b.as_str(), rows)]);
    let tensors: Vec<_> = tensors.collect();
    assert_close(&changed(&tensors, Component::Transformer, LINEAR1), &expected(LINEAR1, 1.0));
}

#[test]
fn diffusers_swaps_the_halves_of_norm_out() {
    let (down, up) = pair(16, 8);
    let bias = wave(&[16], 3.0);
    let tensors: [(&str, &Tensor); 3] = [
        ("transformer.norm_out.linear.lora_A.weight", &down),
        ("transformer.norm_out.linear.lora_B.weight", &swapped(&up)),
        ("transformer.norm_out.linear.diff_b", &swapped(&bias)),
    ];
    let lora = open(&tensors);
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, ADA_LN), &expected(ADA_LN, 1.0));
    let terms = &place(&lora, 0.5, false).unwrap().transformer.linears[ADA_LN];
    let base = parameter(Component::Transformer, &format!("{ADA_LN}.bias"));
    assert_close(&merged_bias(Some(&base), 16, terms).unwrap().unwrap(), &(base + bias * 0.5));
}

#[test]
fn swapped_halves_hold_for_loha_lokr_and_whole_differences() {
    let base = weight(Component::Transformer, ADA_LN);
    let (down, up) = pair(16, 8);
    let ones = (
        Tensor::ones([16, 1], (Kind::Float, tch::Device::Cpu)),
        Tensor::ones([1, 8], (Kind::Float, tch::Device::Cpu)),
    );
    let loha = changed(
        &[
            ("lycoris_norm_out_linear.hada_w1_a", &swapped(&up)),
            ("lycoris_norm_out_linear.hada_w1_b", &down),
            ("lycoris_norm_out_linear.hada_w2_a", &ones.0),
            ("lycoris_norm_out_linear.hada_w2_b", &ones.1),
        ],
        Component::Transformer,
        ADA_LN,
    );
    assert_close(&loha, &expected(ADA_LN, 1.0));
    let diff = changed(
        &[("transformer.norm_out.linear.diff", &swapped(&up.matmul(&down)))],
        Component::Transformer,
        ADA_LN,
    );
    assert_close(&diff, &expected(ADA_LN, 1.0));
    let (w1, w2) = (wave(&[4, 2], 1.0), wave(&[4, 4], 2.0));
    let lokr = changed(
        &[("lycoris_norm_out_linear.lokr_w1", &w1), ("lycoris_norm_out_linear.lokr_w2", &w2)],
        Component::Transformer,
        ADA_LN,
    );
    assert_close(&lokr, &(base + swapped(&w1.kron(&w2))));
}

#[test]
fn peft_gives_the_alphas_beside_the_matrices() {
    let (folder, path) = crate::support::temp("adapter_model.safetensors");
    let (down, up) = pair(8, 8);
    let name = "base_model.model.transformer_blocks.0.attn.to_out.0";
    let stored = [("A", &down), ("B", &up)];
    let stored =
        stored.map(|(m, t)| crate::support::stored(&format!("{name}.lora_{m}.weight"), t, Kind::Float));
    crate::support::write_file(&path, &stored);
    let proj = "double_blocks.0.img_attn.proj";
    for (settings, scale) in [
        (r#"{"lora_alpha": 6, "r": 2}"#, 3.0),
        (r#"{"lora_alpha": 6, "r": 2, "use_rslora": true, "alpha_pattern": null}"#, 6.0 / 2f64.sqrt()),
        (r#"{"lora_alpha": 6, "r": 2, "alpha_pattern": {"to_out.0": 1}}"#, 0.5),
        (r#"{"lora_alpha": 6, "r": 2, "alpha_pattern": {"^transformer_blocks.0.attn.to_out.0": 1}}"#, 0.5),
        (r#"{"lora_alpha": 6, "r": 2, "alpha_pattern": {"^attn.to_out.0": 1, "out.0": 1}}"#, 3.0),
    ] {
        std::fs::write(folder.path().join("adapter_config.json"), settings).unwrap();
        let lora = tch_flux::checkpoint::lora::Lora::open(folder.path(), Default::default()).unwrap();
        assert_close(&changed_by(&lora, 1.0, Component::Transformer, proj), &expected(proj, scale));
    }
}

#[test]
fn fal_puts_base_model_before_official_names() {
    let (down, up) = pair(24, 8);
    let lora = open(&[
        ("base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight", &down),
        ("base_model.model.double_blocks.0.img_attn.qkv.lora_B.weight", &up),
    ]);
    assert_eq!(lora.maker, Some(Maker::Fal));
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, QKV), &expected(QKV, 1.0));
}

#[test]
fn ai_toolkit_puts_diffusion_model_before_official_names() {
    let (down, up) = pair(24, 8);
    let lora = open(&[
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", &down),
        ("diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight", &up),
    ]);
    assert_eq!(lora.maker, Some(Maker::AiToolkit));
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, QKV), &expected(QKV, 1.0));
}

#[test]
fn comfyui_names_the_text_encoders_too_and_whole_differences() {
    let (down, up) = pair(12, 6);
    let (delta, bias) = (wave(&[56, 8], 5.0), wave(&[56], 6.0));
    let scale = wave(&[4], 7.0);
    let lora = open(&[
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_down.weight", &down),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight", &up),
        ("diffusion_model.single_blocks.0.linear1.diff", &delta),
        ("diffusion_model.single_blocks.0.linear1.diff_b", &bias),
        ("diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.diff", &scale),
    ]);
    assert_eq!(lora.maker, Some(Maker::ComfyUi));
    let fc1 = "text_model.encoder.layers.0.mlp.fc1";
    let clip = changed_by(&lora, 1.0, Component::Clip, fc1);
    assert_close(&clip, &(weight(Component::Clip, fc1) + up.matmul(&down)));
    let linear1 = changed_by(&lora, 2.0, Component::Transformer, LINEAR1);
    assert_close(&linear1, &(weight(Component::Transformer, LINEAR1) + delta * 2));
    let placed = place(&lora, 2.0, false).unwrap().transformer;
    let base = parameter(Component::Transformer, "single_blocks.0.linear1.bias");
    let found = merged_bias(Some(&base), 56, &placed.linears[LINEAR1]).unwrap().unwrap();
    assert_close(&found, &(base + bias * 2));
    let norm = "double_blocks.0.img_attn.norm.query_norm.scale";
    let base = parameter(Component::Transformer, norm);
    assert_close(&merged(&base, &placed.parameters[norm]).unwrap(), &(base + scale * 2));
}

#[test]
fn the_bias_of_a_text_encoders_norm_is_a_parameter_of_its_own() {
    let delta = wave(&[6], 5.0);
    let lora = open(&[("text_encoders.clip_l.transformer.text_model.final_layer_norm.diff_b", &delta)]);
    let placed = place(&lora, 1.0, false).unwrap().clip;
    let name = "text_model.final_layer_norm.bias";
    let base = parameter(Component::Clip, name);
    assert_close(&merged(&base, &placed.parameters[name]).unwrap(), &(base + delta));
}

#[test]
fn onetrainer_writes_diffusers_names_with_underscores() {
    let (down, up) = pair(56, 8);
    let t5 = "encoder.block.0.layer.1.DenseReluDense.wi_0";
    let (down5, up5) = pair(14, 10);
    let mlp = up.narrow(0, 24, 32);
    let lora = open(&[
        ("lora_transformer_single_transformer_blocks_0_proj_mlp.lora_down.weight", &down),
        ("lora_transformer_single_transformer_blocks_0_proj_mlp.lora_up.weight", &mlp),
        ("lora_transformer_single_transformer_blocks_0_proj_mlp.alpha", &number(4.0)),
        ("lora_te2_encoder_block_0_layer_1_DenseReluDense_wi_0.lora_down.weight", &down5),
        ("lora_te2_encoder_block_0_layer_1_DenseReluDense_wi_0.lora_up.weight", &up5),
    ]);
    assert_eq!(lora.maker, Some(Maker::OneTrainer));
    let found = changed_by(&lora, 1.0, Component::Transformer, LINEAR1);
    let all = expected(LINEAR1, 2.0);
    let base = weight(Component::Transformer, LINEAR1);
    assert_close(&found, &Tensor::cat(&[base.narrow(0, 0, 24), all.narrow(0, 24, 32)], 0));
    let found = changed_by(&lora, 1.0, Component::T5, t5);
    assert_close(&found, &(weight(Component::T5, t5) + up5.matmul(&down5)));
}

#[test]
fn onetrainer_counts_the_parts_of_joined_layers_in_its_other_format() {
    let (down, up) = pair(24, 8);
    let k = up.narrow(0, 8, 8);
    let found = changed(
        &[
            ("transformer.double_blocks.0.img_attn.qkv.1.lora_down.weight", &down),
            ("transformer.double_blocks.0.img_attn.qkv.1.lora_up.weight", &k),
        ],
        Component::Transformer,
        QKV,
    );
    let (base, all) = (weight(Component::Transformer, QKV), expected(QKV, 1.0));
    let parts = [base.narrow(0, 0, 8), all.narrow(0, 8, 8), base.narrow(0, 16, 8)];
    assert_close(&found, &Tensor::cat(&parts, 0));
}

#[test]
fn simpletuner_lokr_of_two_whole_matrices_ignores_its_alpha() {
    let (w1, w2) = (wave(&[2, 2], 1.0), wave(&[4, 4], 2.0));
    let tensors: [(&str, &Tensor); 3] = [
        ("lycoris_transformer_blocks_0_attn_to_k.lokr_w1", &w1),
        ("lycoris_transformer_blocks_0_attn_to_k.lokr_w2", &w2),
        ("lycoris_transformer_blocks_0_attn_to_k.alpha", &number(1e9)),
    ];
    let lora = open(&tensors);
    assert_eq!(lora.maker, Some(Maker::SimpleTuner));
    let base = weight(Component::Transformer, QKV);
    let k = base.narrow(0, 8, 8) + w1.kron(&w2);
    let parts = [base.narrow(0, 0, 8), k, base.narrow(0, 16, 8)];
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, QKV), &Tensor::cat(&parts, 0));
}

#[test]
fn simpletuner_lokr_divides_alpha_by_the_rank_of_its_second_factor() {
    let proj = "double_blocks.0.img_attn.proj";
    let (w1_a, w1_b) = (wave(&[2, 3], 1.0), wave(&[3, 4], 2.0));
    let (w2_a, w2_b) = (wave(&[4, 2], 3.0), wave(&[2, 2], 4.0));
    let found = changed(
        &[
            ("lycoris_transformer_blocks_0_attn_to_out_0.lokr_w1_a", &w1_a),
            ("lycoris_transformer_blocks_0_attn_to_out_0.lokr_w1_b", &w1_b),
            ("lycoris_transformer_blocks_0_attn_to_out_0.lokr_w2_a", &w2_a),
            ("lycoris_transformer_blocks_0_attn_to_out_0.lokr_w2_b", &w2_b),
            ("lycoris_transformer_blocks_0_attn_to_out_0.alpha", &number(1.0)),
        ],
        Component::Transformer,
        proj,
    );
    let delta = w1_a.matmul(&w1_b).kron(&w2_a.matmul(&w2_b)) * 0.5;
    assert_close(&found, &(weight(Component::Transformer, proj) + delta));
}

#[test]
fn simpletuner_loha_multiplies_two_products() {
    let (down, up) = pair(24, 8);
    let (other_up, other_down) = (wave(&[24, RANK], 7.0), wave(&[RANK, 8], 8.0));
    let found = changed(
        &[
            ("lycoris_double_blocks_0_img_attn_qkv.hada_w1_a", &up),
            ("lycoris_double_blocks_0_img_attn_qkv.hada_w1_b", &down),
            ("lycoris_double_blocks_0_img_attn_qkv.hada_w2_a", &other_up),
            ("lycoris_double_blocks_0_img_attn_qkv.hada_w2_b", &other_down),
            ("lycoris_double_blocks_0_img_attn_qkv.alpha", &number(1.0)),
        ],
        Component::Transformer,
        QKV,
    );
    let delta = up.matmul(&down) * other_up.matmul(&other_down) * 0.5;
    assert_close(&found, &(weight(Component::Transformer, QKV) + delta));
}

#[test]
fn xlabs_counts_the_streams_and_joins_the_single_blocks_q_k_and_v() {
    let ((down, up), (single_down, single_up)) = (pair(24, 8), pair(56, 8));
    let rows = single_up.narrow(0, 0, 24);
    let txt = "double_blocks.0.txt_attn.qkv";
    let lora = open(&[
        ("double_blocks.0.processor.qkv_lora1.down.weight", &down),
        ("double_blocks.0.processor.qkv_lora1.up.weight", &up),
        ("double_blocks.0.processor.qkv_lora2.down.weight", &down),
        ("double_blocks.0.processor.qkv_lora2.up.weight", &(&up * 3)),
        ("single_blocks.0.processor.qkv_lora.down.weight", &single_down),
        ("single_blocks.0.processor.qkv_lora.up.weight", &rows),
    ]);
    assert_eq!(lora.maker, Some(Maker::XLabs));
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, QKV), &expected(QKV, 1.0));
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, txt), &expected(txt, 3.0));
    let found = changed_by(&lora, 1.0, Component::Transformer, LINEAR1);
    let (base, all) = (weight(Component::Transformer, LINEAR1), expected(LINEAR1, 1.0));
    assert_close(&found, &Tensor::cat(&[all.narrow(0, 0, 24), base.narrow(0, 24, 32)], 0));
}
