//! The modules that a change can go to, under every name that they have, as data.

use std::sync::LazyLock;

use super::target::{Component, Holder, Slot, Target};
use crate::checkpoint::names::{Rename, fill, numbers, transformer_diffusers};
use crate::family::ModelFamily;

/// One name of one module, `{}` for each number.
struct Entry {
    /// As it is written with dots.
    name: String,
    /// As it is written with underscores.
    flat: String,
    official: String,
    model: Component,
    slot: Slot,
    holder: Holder,
}

/// The module of this name, with dots or with underscores, in the given model or in any.
pub(super) fn find(model: Option<Component>, name: &str) -> Option<Target> {
    ENTRIES.iter().filter(|e| model.is_none_or(|m| m == e.model)).find_map(|entry| {
        let numbers = numbers(&entry.name, name).or_else(|| numbers(&entry.flat, name))?;
        let module = fill(&entry.official, &numbers);
        Some(Target { model: entry.model, module, slot: entry.slot, holder: entry.holder })
    })
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(entries);

fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut add = |name: &str, official: &str, model, slot, holder| {
        if !entries.iter().any(|e| e.name == name && e.model == model) {
            let (name, official) = (name.to_string(), official.to_string());
            entries.push(Entry { flat: name.replace('.', "_"), name, official, model, slot, holder });
        }
    };
    // Of a name that two families have, the earlier one's rule counts.
    let rules = ModelFamily::ALL.iter().rev().flat_map(|&family| transformer_diffusers(family).0);
    for rule in rules {
        let mut transformer = |name: &str, official: &str, slot, holder| {
            add(official, official, Component::Transformer, Slot::Whole, holder);
            add(name, official, Component::Transformer, slot, holder);
        };
        match rule {
            Rename::Same(name, official) => transformer(name, official, Slot::Whole, Holder::Linear),
            Rename::SwapHalves(name, official) => transformer(name, official, Slot::Swapped, Holder::Linear),
            Rename::Concat(names, official) => {
                for (name, slot) in names.iter().zip([Slot::Q, Slot::K, Slot::V, Slot::Rest]) {
                    transformer(name, official, slot, Holder::Linear);
                }
            }
            Rename::Tensor(name, official) => {
                let (name, official) = (name.strip_suffix(".weight"), official.strip_suffix(".scale"));
                if let (Some(name), Some(official)) = (name, official) {
                    transformer(name, official, Slot::Whole, Holder::Norm);
                }
            }
            Rename::Reversed(..)
            | Rename::Shifted(..)
            | Rename::Pointwise(..)
            | Rename::Split(..)
            | Rename::Transposed(..) => {}
        }
    }
    for (name, official, slot) in OTHERS {
        add(name, official, Component::Transformer, *slot, Holder::Linear);
    }
    for (name, holder) in CLIP {
        add(
            &format!("text_model.{name}"),
            &format!("text_model.{name}"),
            Component::Clip,
            Slot::Whole,
            *holder,
        );
        add(name, &format!("text_model.{name}"), Component::Clip, Slot::Whole, *holder);
    }
    for (name, holder) in T5 {
        add(name, name, Component::T5, Slot::Whole, *holder);
    }
    entries
}

/// Names that only LoRA files use.
const OTHERS: &[(&str, &str, Slot)] = &[
    // XLabs.
    ("double_blocks.{}.processor.qkv_lora1", "double_blocks.{}.img_attn.qkv", Slot::Whole),
    ("double_blocks.{}.processor.qkv_lora2", "double_blocks.{}.txt_attn.qkv", Slot::Whole),
    ("double_blocks.{}.processor.proj_lora1", "double_blocks.{}.img_attn.proj", Slot::Whole),
    ("double_blocks.{}.processor.proj_lora2", "double_blocks.{}.txt_attn.proj", Slot::Whole),
    ("single_blocks.{}.processor.qkv_lora", "single_blocks.{}.linear1", Slot::Qkv),
    ("single_blocks.{}.processor.proj_lora", "single_blocks.{}.linear2", Slot::Whole),
    // ComfyUI.
    ("single_blocks.{}.linear1_qkv", "single_blocks.{}.linear1", Slot::Qkv),
    // OneTrainer's OMI format.
    ("double_blocks.{}.img_attn.qkv.0", "double_blocks.{}.img_attn.qkv", Slot::Q),
    ("double_blocks.{}.img_attn.qkv.1", "double_blocks.{}.img_attn.qkv", Slot::K),
    ("double_blocks.{}.img_attn.qkv.2", "double_blocks.{}.img_attn.qkv", Slot::V),
    ("double_blocks.{}.txt_attn.qkv.0", "double_blocks.{}.txt_attn.qkv", Slot::Q),
    ("double_blocks.{}.txt_attn.qkv.1", "double_blocks.{}.txt_attn.qkv", Slot::K),
    ("double_blocks.{}.txt_attn.qkv.2", "double_blocks.{}.txt_attn.qkv", Slot::V),
    ("single_blocks.{}.linear1.0", "single_blocks.{}.linear1", Slot::Q),
    ("single_blocks.{}.linear1.1", "single_blocks.{}.linear1", Slot::K),
    ("single_blocks.{}.linear1.2", "single_blocks.{}.linear1", Slot::V),
    ("single_blocks.{}.linear1.3", "single_blocks.{}.linear1", Slot::Rest),
    // diffusers, after `fuse_qkv_projections`.
    ("transformer_blocks.{}.attn.to_qkv", "double_blocks.{}.img_attn.qkv", Slot::Whole),
    ("transformer_blocks.{}.attn.to_added_qkv", "double_blocks.{}.txt_attn.qkv", Slot::Whole),
    ("single_transformer_blocks.{}.attn.to_qkv", "single_blocks.{}.linear1", Slot::Qkv),
];

/// The modules of CLIP, after `text_model.`, which some writers leave out.
const CLIP: &[(&str, Holder)] = &[
    ("encoder.layers.{}.self_attn.q_proj", Holder::Linear),
    ("encoder.layers.{}.self_attn.k_proj", Holder::Linear),
    ("encoder.layers.{}.self_attn.v_proj", Holder::Linear),
    ("encoder.layers.{}.self_attn.out_proj", Holder::Linear),
    ("encoder.layers.{}.mlp.fc1", Holder::Linear),
    ("encoder.layers.{}.mlp.fc2", Holder::Linear),
    ("encoder.layers.{}.layer_norm1", Holder::Other),
    ("encoder.layers.{}.layer_norm2", Holder::Other),
    ("final_layer_norm", Holder::Other),
    ("embeddings.token_embedding", Holder::Other),
    ("embeddings.position_embedding", Holder::Other),
];

const T5: &[(&str, Holder)] = &[
    ("encoder.block.{}.layer.0.SelfAttention.q", Holder::Linear),
    ("encoder.block.{}.layer.0.SelfAttention.k", Holder::Linear),
    ("encoder.block.{}.layer.0.SelfAttention.v", Holder::Linear),
    ("encoder.block.{}.layer.0.SelfAttention.o", Holder::Linear),
    ("encoder.block.{}.layer.0.SelfAttention.relative_attention_bias", Holder::Other),
    ("encoder.block.{}.layer.0.layer_norm", Holder::Other),
    ("encoder.block.{}.layer.1.DenseReluDense.wi_0", Holder::Linear),
    ("encoder.block.{}.layer.1.DenseReluDense.wi_1", Holder::Linear),
    ("encoder.block.{}.layer.1.DenseReluDense.wo", Holder::Linear),
    ("encoder.block.{}.layer.1.layer_norm", Holder::Other),
    ("encoder.final_layer_norm", Holder::Other),
    ("shared", Holder::Other),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_leave_no_name_with_two_meanings() {
        let entries = entries();
        for a in &entries {
            for b in entries.iter().filter(|b| b.model == a.model && b.flat == a.flat) {
                assert_eq!((&a.official, a.slot), (&b.official, b.slot), "{}", a.flat);
            }
        }
    }
}
