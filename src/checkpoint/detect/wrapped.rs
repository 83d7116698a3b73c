//! What training code puts around a model's names: `module.`, `_orig_mod.`, `model.diffusion_model.`.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use super::foreign;

/// What PyTorch's wrappers put among a model's names, wherever a module is wrapped: torch.compile, FSDP, activation
/// checkpoints, DeepSpeed. No model has such a name of its own.
const AMONG: [&str; 4] =
    ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module."];

/// What files are known to put before a model's names, in any order and depth.
const BEFORE: [&str; 30] = [
    "_orig_mod",
    "autoencoder",
    "clip",
    "clip_l",
    "controlnet",
    "denoiser",
    "diffusion_model",
    "dit",
    "first_stage_model",
    "flow",
    "flux",
    "generator",
    "image_encoder",
    "model",
    "model_state_dict",
    "module",
    "net",
    "network",
    "pipe",
    "state_dict",
    "t5",
    "t5xxl",
    "text",
    "text_encoder",
    "text_encoder_2",
    "text_encoders",
    "transformer",
    "unet",
    "vae",
    "weights",
];

/// A name without the wrappers that may be among it.
pub(crate) fn without_wrappers(name: &str) -> Option<String> {
    if !AMONG.iter().any(|wrapper| name.contains(wrapper)) {
        return None;
    }
    let mut bare = name.to_string();
    for wrapper in AMONG {
        let inner = format!(".{wrapper}");
        while bare.contains(&inner) {
            bare = bare.replace(&inner, ".");
        }
        while let Some(rest) = bare.strip_prefix(wrapper) {
            bare = rest.to_string();
        }
    }
    Some(bare)
}

/// What stands before the names of models in a file, shortest first, and whether it is known to: else it is what stands
/// before every name.
pub(super) fn prefixes(names: &BTreeMap<&str, &[i64]>) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::from([(String::new(), true)]);
    // The names are sorted: what the first and the last begin with, all do.
    let ends = names.keys().next().zip(names.keys().next_back());
    let before_all =
        |prefix: &str| ends.is_some_and(|(first, last)| [first, last].iter().all(|n| n.starts_with(prefix)));
    for name in names.keys() {
        for anchor in last_two(name).and_then(|end| ANCHORS.get(end)).into_iter().flatten() {
            let Some(prefix) = name.strip_suffix(anchor) else { continue };
            let Some(words) = prefix.strip_suffix('.') else { continue };
            if found.contains_key(prefix) {
                continue;
            }
            let known = words.split('.').all(|word| BEFORE.binary_search(&word).is_ok());
            if known || before_all(prefix) {
                found.insert(prefix.to_string(), known);
            }
        }
    }
    found
}

/// The names by which models are known, by their last two words.
static ANCHORS: LazyLock<HashMap<&'static str, Vec<&'static str>>> = LazyLock::new(|| {
    let mut anchors: HashMap<_, Vec<_>> = HashMap::new();
    for anchor in OWN.into_iter().chain(foreign::anchors()) {
        // A name of one word tells too little behind a prefix.
        if let Some(end) = last_two(anchor) {
            anchors.entry(end).or_default().push(anchor);
        }
    }
    anchors
});

/// `key_norm.scale` of `double_blocks.0.img_attn.norm.key_norm.scale`.
fn last_two(name: &str) -> Option<&str> {
    let last = name.rfind('.')?;
    Some(name[..last].rfind('.').map_or(name, |before| &name[before + 1..]))
}

/// The names by which the models are known that are run here.
const OWN: [&str; 26] = [
    "double_blocks.0.img_attn.norm.key_norm.scale",
    "double_blocks.0.img_attn.norm.key_norm.weight",
    "double_stream_modulation_img.lin.weight",
    "double_stream_modulation_img.linear.weight",
    "transformer_blocks.0.attn.norm_added_k.weight",
    "controlnet_blocks.0.weight",
    "ip_adapter_proj_model.proj.weight",
    "encoder.down.0.block.0.conv1.weight",
    "encoder.down_blocks.0.resnets.0.conv1.weight",
    "decoder.layers.2.conv.0.weight",
    "encoder.layers.1.conv.0.weight",
    "1.conv.0.weight",
    "3.conv.0.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "enc.blk.0.attn_q.weight",
    "embeddings.patch_embedding.bias",
    "vision_model.embeddings.patch_embedding.bias",
    "redux_up.weight",
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
    "neck.reassemble_stage.layers.0.projection.weight",
    "vision_model.embeddings.class_embedding",
    "transformer.resblocks.0.attn.in_proj_weight",
    "token_embedding.weight",
    "visual_projection.weight",
    "visual.class_embedding",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_for_the_search() {
        assert!(BEFORE.is_sorted());
    }

    #[test]
    fn wrappers_are_taken_from_wherever_they_stand() {
        let cases = [
            ("_orig_mod.double_blocks.0.img_mod.lin.weight", "double_blocks.0.img_mod.lin.weight"),
            ("double_blocks.0._orig_mod.img_mod.lin.weight", "double_blocks.0.img_mod.lin.weight"),
            ("module._orig_mod._orig_mod.a.weight", "module.a.weight"),
            ("_fsdp_wrapped_module.a._fsdp_wrapped_module._checkpoint_wrapped_module.b.weight", "a.b.weight"),
            ("a._forward_module._orig_mod._forward_module.b", "a.b"),
        ];
        for (wrapped, bare) in cases {
            assert_eq!(without_wrappers(wrapped).as_deref(), Some(bare));
        }
        assert_eq!(without_wrappers("double_blocks.0.img_mod.lin.weight"), None);
        assert_eq!(without_wrappers("my_orig_mod.a").as_deref(), Some("my_orig_mod.a"));
    }

    #[test]
    fn what_is_known_or_stands_before_all_is_a_prefix() {
        let t5 = "encoder.block.0.layer.0.SelfAttention.q.weight";
        let prefixes_of = |names: &[String]| {
            let shape: &[i64] = &[1];
            let names = names.iter().map(|name| (name.as_str(), shape)).collect();
            prefixes(&names).into_keys().filter(|prefix| !prefix.is_empty()).collect::<Vec<_>>()
        };
        for known in ["module.", "model.diffusion_model.", "text_encoders.t5xxl.transformer.", "pipe.dit."] {
            assert_eq!(prefixes_of(&[format!("{known}{t5}"), "other".into()]), [known]);
        }
        assert_eq!(prefixes_of(&[format!("conditioner.embedders.0.{t5}"), "other".into()]), [""; 0]);
        assert_eq!(prefixes_of(&[format!("mine.{t5}"), "mine.other".into()]), ["mine."]);
    }
}
