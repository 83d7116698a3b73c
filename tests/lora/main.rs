//! LoRA files of every maker: from one known pair of matrices the same change is written in each maker's form, opened,
//! placed and merged, and the weights are those that the pair gives directly.

mod branch;
mod few_steps;
mod forms;
mod makers;
mod names;
mod problems;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::Access;
use tch_flux::checkpoint::lora::{Component, Lora, Placed};
use tch_flux::lora::merged;

use crate::support::{Stored, stored, temp, write_file};

/// The weights that the LoRAs here are for: one block of each kind, 8 wide, and a layer of each text encoder.
pub fn base() -> BTreeMap<(Component, &'static str), Tensor> {
    let shapes: [(Component, &str, &[i64]); 24] = [
        (Component::Transformer, "img_in.weight", &[8, 4]),
        (Component::Transformer, "img_in.bias", &[8]),
        (Component::Transformer, "double_blocks.0.img_mod.lin.weight", &[48, 8]),
        (Component::Transformer, "double_blocks.0.img_attn.qkv.weight", &[24, 8]),
        (Component::Transformer, "double_blocks.0.img_attn.qkv.bias", &[24]),
        (Component::Transformer, "double_blocks.0.img_attn.proj.weight", &[8, 8]),
        (Component::Transformer, "double_blocks.0.img_attn.norm.query_norm.scale", &[4]),
        (Component::Transformer, "double_blocks.0.img_mlp.0.weight", &[32, 8]),
        (Component::Transformer, "double_blocks.0.txt_attn.qkv.weight", &[24, 8]),
        (Component::Transformer, "double_blocks.0.txt_attn.proj.weight", &[8, 8]),
        (Component::Transformer, "double_blocks.0.txt_mlp.2.weight", &[8, 32]),
        (Component::Transformer, "single_blocks.0.linear1.weight", &[56, 8]),
        (Component::Transformer, "single_blocks.0.linear1.bias", &[56]),
        (Component::Transformer, "single_blocks.0.linear2.weight", &[8, 40]),
        (Component::Transformer, "single_blocks.0.modulation.lin.weight", &[24, 8]),
        (Component::Transformer, "final_layer.linear.weight", &[4, 8]),
        (Component::Transformer, "final_layer.adaLN_modulation.1.weight", &[16, 8]),
        (Component::Transformer, "final_layer.adaLN_modulation.1.bias", &[16]),
        (Component::Transformer, "double_stream_modulation_img.lin.weight", &[48, 8]),
        (Component::Clip, "text_model.encoder.layers.0.self_attn.q_proj.weight", &[6, 6]),
        (Component::Clip, "text_model.encoder.layers.0.mlp.fc1.weight", &[12, 6]),
        (Component::Clip, "text_model.final_layer_norm.bias", &[6]),
        (Component::T5, "encoder.block.0.layer.0.SelfAttention.q.weight", &[6, 10]),
        (Component::T5, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", &[14, 10]),
    ];
    let weights = shapes.iter().zip(1..);
    weights.map(|((model, name, shape), seed)| ((*model, *name), wave(shape, f64::from(seed)))).collect()
}

/// Numbers between −1 and 1 that look like none of the others.
pub fn wave(shape: &[i64], seed: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    ((Tensor::arange(n, (Kind::Double, Device::Cpu)) + 1) * (0.7 + seed / 13.0))
        .sin()
        .to_kind(Kind::Float)
        .view(shape)
}

/// A file of these tensors, opened.
pub fn open(tensors: &[(&str, &Tensor)]) -> Lora {
    try_open(tensors).unwrap()
}

pub fn try_open(tensors: &[(&str, &Tensor)]) -> tch_flux::Result<Lora> {
    let stored: Vec<Stored> = tensors.iter().map(|(name, t)| stored(name, t, Kind::Float)).collect();
    open_stored(&stored)
}

/// Read, not mapped: the folder is gone when this returns.
pub fn open_stored(stored: &[Stored]) -> tch_flux::Result<Lora> {
    let (_folder, path) = temp("lora.safetensors");
    write_file(&path, stored);
    Lora::open(&path, Access::Read)
}

pub fn place(lora: &Lora, strength: f64, partial: bool) -> tch_flux::Result<Placed> {
    let base = base();
    let shape = |model, name: &str| Some(base.get(&(model, name))?.size());
    lora.place(&shape, strength, partial)
}

/// The weight of a module with the LoRA at full strength.
pub fn changed(tensors: &[(&str, &Tensor)], model: Component, module: &str) -> Tensor {
    changed_by(&open(tensors), 1.0, model, module)
}

pub fn changed_by(lora: &Lora, strength: f64, model: Component, module: &str) -> Tensor {
    let placed = place(lora, strength, false).unwrap();
    let terms = match model {
        Component::Transformer => &placed.transformer,
        Component::Clip => &placed.clip,
        Component::T5 => &placed.t5,
    };
    merged(&weight(model, module), &terms.linears[module]).unwrap()
}

/// A weight without any LoRA.
pub fn weight(model: Component, module: &str) -> Tensor {
    parameter(model, &format!("{module}.weight"))
}

pub fn parameter(model: Component, name: &str) -> Tensor {
    let found = base().into_iter().find(|(key, _)| *key == (model, name)).map(|(_, tensor)| tensor);
    found.unwrap_or_else(|| panic!("no {name} here"))
}

/// Equal but for the last bits of f32.
pub fn assert_close(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size());
    let difference = f64::try_from((found - expected).abs().max()).unwrap();
    assert!(difference < 2e-6, "they differ by {difference}");
}
