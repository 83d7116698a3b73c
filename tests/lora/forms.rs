//! DoRA, the official control LoRAs, FLUX.2's names, and the alphas in diffusers' header.

use tch::nn::{Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::Access;
use tch_flux::checkpoint::lora::{Component, Lora, Maker};
use tch_flux::layers::LinearLora;
use tch_flux::lora::{LoraBranch, grown_columns, merged, merged_bias};

use crate::support::{framed, header, stored, temp, write_file};
use crate::{assert_close, base, changed, changed_by, open, open_stored, parameter, place, wave, weight};

const QKV: &str = "double_blocks.0.img_attn.qkv";
const PROJ: &str = "double_blocks.0.img_attn.proj";

/// Lengths of rows (axis 1) or columns (axis 0).
fn lengths(weight: &Tensor, axis: i64) -> Tensor {
    weight.square().sum_dim_intlist([axis].as_slice(), true, None).sqrt()
}

#[test]
fn dora_sets_the_lengths_of_rows() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[24, 2], 2.0));
    let magnitude = wave(&[24, 1], 3.0).abs() + 1;
    let lora = open(&[
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", &down),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", &up),
        ("lora_unet_double_blocks_0_img_attn_qkv.alpha", &Tensor::from_slice(&[1f32])),
        ("lora_unet_double_blocks_0_img_attn_qkv.dora_scale", &magnitude),
    ]);
    let base = weight(Component::Transformer, QKV);
    let sum = &base + up.matmul(&down) * 0.5;
    let whole = &sum * &magnitude / lengths(&sum, 1);
    let found = changed_by(&lora, 1.0, Component::Transformer, QKV);
    assert_close(&found, &whole);
    assert_close(&lengths(&found, 1), &magnitude);
    assert_close(&changed_by(&lora, 0.25, Component::Transformer, QKV), &(&base + (&whole - &base) * 0.25));
    assert!(lora.to_string().contains("LoRA with DoRA; rank 2; alpha 1"), "{lora}");
}

#[test]
fn dora_sets_the_lengths_of_columns_where_they_are_given() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let magnitude = wave(&[1, 8], 3.0).abs() + 1;
    let tensors: [(&str, &Tensor); 3] = [
        ("diffusion_model.double_blocks.0.img_attn.proj.lora_down.weight", &down),
        ("diffusion_model.double_blocks.0.img_attn.proj.lora_up.weight", &up),
        ("diffusion_model.double_blocks.0.img_attn.proj.dora_scale", &magnitude),
    ];
    let sum = weight(Component::Transformer, PROJ) + up.matmul(&down);
    assert_close(&changed(&tensors, Component::Transformer, PROJ), &(&sum * &magnitude / lengths(&sum, 0)));
}

#[test]
fn peft_dora_changes_the_rows_of_one_projection() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let magnitude = wave(&[8], 3.0).abs() + 1;
    let found = changed(
        &[
            ("transformer.transformer_blocks.0.attn.to_v.lora_A.weight", &down),
            ("transformer.transformer_blocks.0.attn.to_v.lora_B.weight", &up),
            ("transformer.transformer_blocks.0.attn.to_v.lora_magnitude_vector", &magnitude),
        ],
        Component::Transformer,
        QKV,
    );
    let base = weight(Component::Transformer, QKV);
    let v = base.narrow(0, 16, 8) + up.matmul(&down);
    let v = &v * magnitude.unsqueeze(1) / lengths(&v, 1);
    assert_close(&found, &Tensor::cat(&[base.narrow(0, 0, 16), v], 0));
}

/// The official control LoRAs: biases of the second matrix, whole norms, and an `img_in` for twice the channels.
#[test]
fn a_control_lora_runs_as_the_official_layer_does() {
    let (down, up, bias) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0), wave(&[8], 3.0));
    let norm = wave(&[4], 4.0);
    let lora = open(&[
        ("img_in.lora_A.weight", &down),
        ("img_in.lora_B.weight", &up),
        ("img_in.lora_B.bias", &bias),
        ("double_blocks.0.img_attn.norm.query_norm.scale", &norm),
    ]);
    assert_eq!(lora.maker, Some(Maker::Official));
    assert_eq!(lora.img_in_columns(), Some(8));
    let base = base();
    let grown = grown_columns(&weight(Component::Transformer, "img_in"), 8).unwrap();
    let shape = |model, name: &str| match name {
        "img_in.weight" => Some(grown.size()),
        _ => Some(base.get(&(model, name))?.size()),
    };
    let placed = lora.place(&shape, 0.85, false).unwrap().transformer;

    let vs = VarStore::new(Device::Cpu);
    let official = LinearLora::new(vs.root(), 8, 8, true, 2, true, 0.85);
    for (name, values) in [
        ("weight", &grown),
        ("bias", &parameter(Component::Transformer, "img_in.bias")),
        ("lora_A.weight", &down),
        ("lora_B.weight", &up),
        ("lora_B.bias", &bias),
    ] {
        vs.variables()[name].shallow_clone().set_data(values);
    }
    let x = wave(&[2, 3, 8], 9.0);
    let terms = &placed.linears["img_in"];
    let beside = LoraBranch::new(terms, &|| Ok(grown.shallow_clone()), Device::Cpu, Kind::Float).unwrap();
    let bias_of_base = parameter(Component::Transformer, "img_in.bias");
    let y = beside.forward(&x, x.linear(&grown, Some(&bias_of_base)), &|x| x.linear::<&Tensor>(&grown, None));
    assert!(y == official.forward(&x), "the bits are the official ones");

    let merged_weight = merged(&grown, terms).unwrap();
    let bias = merged_bias(Some(&bias_of_base), 8, terms).unwrap();
    assert_close(&x.linear(&merged_weight, bias.as_ref()), &y);
    let name = "double_blocks.0.img_attn.norm.query_norm.scale";
    let replaced = merged(&parameter(Component::Transformer, name), &placed.parameters[name]).unwrap();
    assert!(replaced == norm, "a whole norm is replaced at any strength");
}

#[test]
fn a_control_lora_does_not_fit_an_img_in_that_has_not_grown() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let lora = open(&[("img_in.lora_A.weight", &down), ("img_in.lora_B.weight", &up)]);
    let error = place(&lora, 1.0, false).unwrap_err().to_string();
    assert!(error.contains("img_in changes [8, 8], not [8, 4]"), "{error}");
}

#[test]
fn a_lora_for_fewer_inputs_changes_the_first_of_a_grown_img_in() {
    let base = weight(Component::Transformer, "img_in");
    let grown = grown_columns(&base, 8).unwrap();
    let (down, up) = (wave(&[2, 4], 1.0), wave(&[8, 2], 2.0));
    let (ones, w1, w2) = (wave(&[1, 4], 3.0), wave(&[2, 2], 4.0), wave(&[4, 2], 5.0));
    let up1 = wave(&[8, 1], 6.0);
    for (tensors, delta) in [
        (vec![("lora_A.weight", &down), ("lora_B.weight", &up)], up.matmul(&down)),
        (vec![("diff", &base)], base.shallow_clone()),
        (vec![("lokr_w1", &w1), ("lokr_w2", &w2)], w1.kron(&w2)),
        (
            vec![("hada_w1_a", &up), ("hada_w1_b", &down), ("hada_w2_a", &up1), ("hada_w2_b", &ones)],
            up.matmul(&down) * up1.matmul(&ones),
        ),
    ] {
        let named: Vec<_> =
            tensors.iter().map(|(n, t)| (format!("transformer.x_embedder.{n}"), *t)).collect();
        let lora = open(&named.iter().map(|(n, t)| (n.as_str(), *t)).collect::<Vec<_>>());
        let shape = |_, name: &str| (name == "img_in.weight").then(|| grown.size());
        let placed = lora.place(&shape, 1.0, false).unwrap().transformer;
        let found = merged(&grown, &placed.linears["img_in"]).unwrap();
        assert_close(&found, &grown_columns(&(&base + delta), 8).unwrap());
    }
}

#[test]
fn flux2_has_official_and_diffusers_names() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[48, 2], 2.0));
    let module = "double_stream_modulation_img.lin";
    let expected = weight(Component::Transformer, module) + up.matmul(&down);
    for prefix in [
        "diffusion_model.double_stream_modulation_img.lin",
        "transformer.double_stream_modulation_img.linear",
        "lora_unet_double_stream_modulation_img_lin",
        "lycoris_double_stream_modulation_img_linear",
    ] {
        let (a, b) = (format!("{prefix}.lora_A.weight"), format!("{prefix}.lora_B.weight"));
        let tensors: [(&str, &Tensor); 2] = [(&a, &down), (&b, &up)];
        assert_close(&changed(&tensors, Component::Transformer, module), &expected);
    }
    let up = wave(&[56, 2], 2.0);
    let linear1 = "single_blocks.0.linear1";
    let found = changed(
        &[
            ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight", &down),
            ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_B.weight", &up),
        ],
        Component::Transformer,
        linear1,
    );
    assert_close(&found, &(weight(Component::Transformer, linear1) + up.matmul(&down)));
}

#[test]
fn diffusers_gives_the_alphas_in_the_header() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let name = "transformer.transformer_blocks.0.attn.to_out.0";
    let tensors = [("A", &down), ("B", &up)];
    let tensors = tensors.map(|(m, t)| stored(&format!("{name}.lora_{m}.weight"), t, Kind::Float));
    let lines: Vec<_> = tensors.iter().map(|(n, d, s, _)| (n.clone(), d.clone(), s.clone())).collect();
    let settings = r#"{"transformer.lora_alpha": 6, "transformer.r": 2, "text_encoder.lora_alpha": 9}"#;
    let metadata = serde_json::json!({ "lora_adapter_metadata": settings });
    let json = header(&lines).0.replacen('{', &format!("{{\"__metadata__\":{metadata},"), 1);
    let data: Vec<u8> = tensors.iter().flat_map(|(.., bytes)| bytes.clone()).collect();
    let (_folder, path) = temp("pytorch_lora_weights.safetensors");
    std::fs::write(&path, framed(json, &data)).unwrap();
    let lora = Lora::open(&path, Access::Read).unwrap();
    let expected = weight(Component::Transformer, PROJ) + up.matmul(&down) * 3;
    assert_close(&changed_by(&lora, 1.0, Component::Transformer, PROJ), &expected);
}

/// Its numbers are those of the file, whichever of the two kinds of fp8 they are in, alphas and lengths included.
#[test]
fn a_lora_in_fp8_is_the_same_numbers_in_f32() {
    let name = "lora_unet_double_blocks_0_img_attn_proj";
    let parts = [
        ("lora_down.weight", wave(&[2, 8], 1.0)),
        ("lora_up.weight", wave(&[8, 2], 2.0)),
        ("alpha", Tensor::from_slice(&[3f32])),
        ("dora_scale", wave(&[8, 1], 3.0).abs() + 1),
    ];
    for (kind, dtype) in [(Kind::Float8e4m3fn, "F8_E4M3"), (Kind::Float8e5m2, "F8_E5M2")] {
        for count in [2, 3, 4] {
            let fp8 = |(part, tensor): &(&str, Tensor)| {
                let bytes = tensor.to_kind(kind).view_dtype(Kind::Uint8).contiguous().view([-1]);
                (format!("{name}.{part}"), dtype.to_string(), tensor.size(), Vec::try_from(bytes).unwrap())
            };
            let lora = open_stored(&parts[..count].iter().map(fp8).collect::<Vec<_>>()).unwrap();
            let named: Vec<(String, Tensor)> = parts[..count]
                .iter()
                .map(|(part, t)| (format!("{name}.{part}"), t.to_kind(kind).to_kind(Kind::Float)))
                .collect();
            let wide = open(&named.iter().map(|(name, t)| (name.as_str(), t)).collect::<Vec<_>>());
            assert_eq!(lora.to_string(), wide.to_string());
            let [a, b] = [&lora, &wide].map(|lora| changed_by(lora, 0.7, Component::Transformer, PROJ));
            assert!(a.equal(&b) && !a.equal(&weight(Component::Transformer, PROJ)), "{dtype}, {count} parts");
        }
    }
}

/// As ComfyUI reads it: what a change is multiplied by is its alpha over its rank, whatever that gives.
#[test]
fn an_alpha_of_0_switches_its_layer_off_and_a_negative_one_turns_it_round() {
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let (other, wide) = ("lora_unet_double_blocks_0_img_mlp_0", wave(&[32, 2], 3.0));
    let with = |alpha: f32| {
        let alpha = Tensor::from_slice(&[alpha]).view([0i64; 0]);
        let name = "lora_unet_double_blocks_0_img_attn_proj";
        let parts = [
            (format!("{name}.lora_down.weight"), &down),
            (format!("{name}.lora_up.weight"), &up),
            (format!("{name}.alpha"), &alpha),
            (format!("{other}.lora_down.weight"), &down),
            (format!("{other}.lora_up.weight"), &wide),
        ];
        place(&open(&parts.each_ref().map(|(name, t)| (name.as_str(), *t))), 1.0, false).unwrap().transformer
    };
    for alpha in [0.0, -0.0] {
        let off = with(alpha);
        assert_eq!(
            off.linears.keys().collect::<Vec<_>>(),
            ["double_blocks.0.img_mlp.0"],
            "the other one stays"
        );
    }
    let base = weight(Component::Transformer, PROJ);
    for alpha in [-4.0, 1e-3, 7.5, 1000.0] {
        let expected = &base + up.matmul(&down) * f64::from(alpha) / 2.0;
        let found = merged(&base, &with(alpha).linears[PROJ]).unwrap();
        let scale = f64::try_from(expected.abs().max()).unwrap().max(1.0);
        assert_close(&(found / scale), &(expected / scale));
    }
}

/// What is switched off must fit nevertheless, and the lengths of DoRA are set whatever the alpha.
#[test]
fn an_alpha_of_0_excuses_no_misfit_and_leaves_doras_lengths() {
    let alpha = Tensor::from_slice(&[0f32]);
    let name = "lora_unet_double_blocks_0_img_attn_proj";
    let lora = |up: &Tensor, magnitude: Option<&Tensor>| {
        let (a, b) = (format!("{name}.lora_down.weight"), format!("{name}.lora_up.weight"));
        let (c, d) = (format!("{name}.alpha"), format!("{name}.dora_scale"));
        let mut parts =
            vec![(a.as_str(), wave(&[2, 8], 1.0)), (b.as_str(), up.copy()), (c.as_str(), alpha.copy())];
        parts.extend(magnitude.map(|magnitude| (d.as_str(), magnitude.copy())));
        open(&parts.iter().map(|(name, t)| (*name, t)).collect::<Vec<_>>())
    };
    assert!(place(&lora(&wave(&[9, 2], 2.0), None), 1.0, false).is_err());
    let magnitude = wave(&[8, 1], 3.0).abs() + 1;
    let found = changed_by(&lora(&wave(&[8, 2], 2.0), Some(&magnitude)), 1.0, Component::Transformer, PROJ);
    assert_close(&lengths(&found, 1), &magnitude);
}

#[test]
fn an_alpha_of_0_in_pefts_settings_switches_its_layers_off() {
    let (folder, path) = temp("adapter_model.safetensors");
    let (down, up) = (wave(&[2, 8], 1.0), wave(&[8, 2], 2.0));
    let (proj, mlp) = ("transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_add_out");
    let mut tensors = Vec::new();
    for module in [proj, mlp] {
        for (part, tensor) in [("A", &down), ("B", &up)] {
            let name = format!("base_model.model.{module}.lora_{part}.weight");
            tensors.push(stored(&name, tensor, Kind::Float));
        }
    }
    write_file(&path, &tensors);
    let changed = |settings: &str| {
        std::fs::write(folder.path().join("adapter_config.json"), settings).unwrap();
        let lora = Lora::open(&path, Access::Read).unwrap();
        place(&lora, 1.0, false).unwrap().transformer.linears.into_keys().collect::<Vec<_>>()
    };
    assert!(changed(r#"{"lora_alpha": 0, "r": 2}"#).is_empty());
    let pattern = r#"{"lora_alpha": 2, "r": 2, "alpha_pattern": {"attn.to_out.0": 0}}"#;
    assert_eq!(changed(pattern), ["double_blocks.0.txt_attn.proj"]);
}
