//! For which family of models a LoRA was made that is not FLUX.1's, as data.

use Sign::{All, Any, Beyond, Columns, Ratio};

/// What the keys of a family's LoRAs show.
enum Sign {
    /// Some key holds one of these.
    Any(&'static [&'static str]),
    /// Some key holds all of these.
    All(&'static [&'static str]),
    /// A first matrix of a module whose name holds the first has so many columns.
    Columns(&'static str, i64),
    /// Modules whose names hold this, followed by a number that is no lower, and so many columns in the first matrices of
    /// those.
    Beyond(&'static str, u32, i64),
    /// The second matrix of a module whose name holds this has so many times as many rows as the first has columns.
    Ratio(&'static str, i64),
}

/// A tensor's name and shape.
type Tensor<'a> = (&'a str, Option<Vec<i64>>);

/// The family's name, where one fits.
pub(super) fn made_for<'a, I: Iterator<Item = Tensor<'a>>>(tensors: &dyn Fn() -> I) -> Option<&'static str> {
    let any = |test: &dyn Fn(&str) -> bool| tensors().any(|(name, _)| test(name));
    let is_first = |name: &str| name.contains("lora_A") || name.contains("lora_down");
    let is_second = |name: &str| name.contains("lora_B") || name.contains("lora_up");
    let size = |module: &str, is: &dyn Fn(&str) -> bool, axis: usize| {
        let fits = |(name, _): &Tensor| name.contains(module) && is(name);
        tensors().find(fits).and_then(|(_, shape)| shape?.get(axis).copied())
    };
    let number = |name: &str, before: &str| -> Option<u32> {
        let rest = &name[name.find(before)? + before.len()..];
        rest[..rest.find(|c: char| !c.is_ascii_digit())?].parse().ok()
    };
    let shows = |sign: &Sign| match sign {
        Beyond(before, least, columns) => tensors().any(|(name, shape)| {
            is_first(name)
                && number(name, before).is_some_and(|number| number >= *least)
                && shape.is_some_and(|shape| shape.get(1) == Some(columns))
        }),
        Any(texts) => any(&|name| texts.iter().any(|text| name.contains(text))),
        All(texts) => any(&|name| texts.iter().all(|text| name.contains(text))),
        Columns(module, columns) => size(module, &is_first, 1) == Some(*columns),
        Ratio(module, times) => {
            let (rows, columns) = (size(module, &is_second, 0), size(module, &is_first, 1));
            rows.zip(columns).is_some_and(|(rows, columns)| columns > 0 && rows == times * columns)
        }
    };
    FAMILIES.iter().find(|(_, signs)| signs.iter().any(shows)).map(|(family, _)| *family)
}

/// The first that fits is the answer.
static FAMILIES: &[(&str, &[Sign])] = &[
    ("Chroma", &[Any(&["distilled_guidance_layer"])]),
    (
        "FLUX.3",
        &[Any(&["mode_blocks.image", "mode_blocks_image", "early_stream_modulations", "txt_mode_blocks"])],
    ),
    (
        "FLUX.2",
        &[
            Any(&[
                "double_stream_modulation",
                "single_stream_modulation",
                "to_qkv_mlp_proj",
                "ff.linear_in",
                "ff_linear_in",
            ]),
            Ratio("single_blocks.0.linear1", 9),
            Ratio("single_blocks_0_linear1", 9),
            Ratio("double_blocks.0.img_mlp.0", 6),
            Ratio("double_blocks_0_img_mlp_0", 6),
        ],
    ),
    (
        "Qwen-Image",
        &[Any(&[
            "img_mlp.net.",
            "img_mlp_net_",
            "txt_mlp.net.",
            "txt_mlp_net_",
            ".img_mod.1.",
            "_img_mod_1.",
        ])],
    ),
    (
        "HunyuanVideo or HunyuanImage",
        &[
            Any(&["individual_token_refiner", "token_refiner"]),
            All(&["double_blocks.", ".img_attn_qkv."]),
            Any(&["img_mod.linear.", "img_mod_linear.", "img_mlp.fc1.", "img_mlp_fc1."]),
        ],
    ),
    (
        "Stable Diffusion 3",
        &[
            Any(&["joint_blocks"]),
            Columns("transformer_blocks.0.attn.add_k_proj", 1536),
            Columns("transformer_blocks.0.attn.add_k_proj", 2432),
            Columns("transformer_blocks.0.attn.to_q", 1536),
            Columns("transformer_blocks.0.attn.to_q", 2432),
        ],
    ),
    ("HiDream", &[Any(&["double_stream_blocks"])]),
    ("AuraFlow", &[Any(&["double_layers", "joint_transformer_blocks"])]),
    (
        "Stable Diffusion XL",
        &[
            Any(&[
                "_blocks_1_attentions_0_transformer_blocks_1_",
                "_blocks.1.attentions.0.transformer_blocks.1.",
                "_blocks_4_1_transformer_blocks_1_",
                "_blocks.4.1.transformer_blocks.1.",
                "lora_te2_text_model",
            ]),
            Columns("attentions_0_transformer_blocks_0_attn2_to_k", 2048),
            Columns("attentions.0.transformer_blocks.0.attn2.to_k", 2048),
            Columns("_1_transformer_blocks_0_attn2_to_k", 2048),
            Columns(".1.transformer_blocks.0.attn2.to_k", 2048),
        ],
    ),
    (
        "Stable Diffusion 1.5 or 2",
        &[Any(&[
            "down_blocks_",
            "down_blocks.",
            "up_blocks_",
            "up_blocks.",
            "lora_unet_input_blocks",
            "lora_unet_mid_block",
            "input_blocks.",
        ])],
    ),
    (
        "Z-Image or Lumina 2",
        &[Any(&[
            "layers.0.attention.",
            "layers_0_attention_",
            "noise_refiner",
            "context_refiner",
            "cap_embedder",
        ])],
    ),
    ("Kandinsky 5", &[Any(&["visual_transformer_blocks"])]),
    // Its blocks are those of FLUX.1 in diffusers' names, and as wide, but there are 60, where FLUX.1 has 19.
    (
        "Qwen-Image",
        &[
            Beyond("transformer.transformer_blocks.", 19, 3072),
            Beyond("diffusion_model.transformer_blocks.", 19, 3072),
            Beyond("base_model.model.transformer_blocks.", 19, 3072),
            Beyond("lora_unet_transformer_blocks_", 19, 3072),
            Beyond("lycoris_transformer_blocks_", 19, 3072),
        ],
    ),
    (
        "LTX-Video, PixArt, Sana, Cosmos, CogVideoX or Mochi",
        &[Any(&[
            "transformer_blocks.0.attn1.",
            "transformer_blocks_0_attn1_",
            "transformer_blocks.0.attn2.",
            "transformer_blocks_0_attn2_",
        ])],
    ),
    // Behind those whose names end alike.
    (
        "Wan",
        &[
            All(&["blocks.0.", "cross_attn."]),
            All(&["blocks_0_", "cross_attn_"]),
            All(&["blocks.0.", ".self_attn.q."]),
            Any(&["blocks.0.attn1.to_", "blocks_0_attn1_to_"]),
        ],
    ),
    ("a language model", &[Any(&["model.layers.0.self_attn.", "model.layers.0.mlp."])]),
];
