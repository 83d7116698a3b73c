//! LoRAs for few steps: ByteDance's Hyper-SD (`Hyper-FLUX.1-dev-8steps-lora`, `-16steps-lora`) and alimama's
//! `FLUX.1-Turbo-Alpha`. Both have a pair of matrices for every linear layer of FLUX.1-dev, under diffusers' names.

use std::collections::BTreeSet;

use tch_flux::checkpoint::Access;
use tch_flux::checkpoint::lora::{Component, Lora, Maker};

use crate::support::{layout, temp, write_sparse};

/// The rank of the published files.
const RANK: i64 = 64;

/// Every linear layer in diffusers' layout: its name, its rows and its columns.
fn layers() -> Vec<(String, i64, i64)> {
    let line = |(name, _, shape): (String, String, Vec<i64>)| {
        let &[rows, columns] = &shape[..] else { return None };
        Some((name.strip_suffix(".weight")?.to_string(), rows, columns))
    };
    layout("flux1-dev.diffusers").into_iter().filter_map(line).collect()
}

#[test]
fn layers_of_this_rank_are_as_large_as_the_published_files() {
    let numbers: i64 = layers().iter().map(|(_, rows, columns)| RANK * (rows + columns)).sum();
    // Hyper-SD's are 1.39 GB in f32, Turbo-Alpha is 694 MB in bf16: no layer is left out.
    assert_eq!(4 * numbers, 1_387_888_640);
    assert_eq!(2 * numbers, 693_944_320);
}

#[test]
fn a_lora_for_few_steps_changes_every_linear_layer_of_dev() {
    let dev = layout("flux1-dev");
    let official: BTreeSet<&str> = dev
        .iter()
        .filter(|(_, _, shape)| shape.len() == 2)
        .filter_map(|(name, ..)| name.strip_suffix(".weight"))
        .collect();
    for (dtype, rank) in [("F32", 1), ("BF16", 2)] {
        let mut lines = Vec::new();
        for (name, rows, columns) in layers() {
            lines.push((format!("transformer.{name}.lora_A.weight"), dtype.to_string(), vec![rank, columns]));
            lines.push((format!("transformer.{name}.lora_B.weight"), dtype.to_string(), vec![rows, rank]));
        }
        assert_eq!(lines.len(), 1008);
        let (_folder, path) = temp("few-steps.safetensors");
        write_sparse(&path, &lines);
        let lora = Lora::open(&path, Access::Map).unwrap();
        assert_eq!(
            (lora.maker, &lora.unknown[..], &lora.twice[..]),
            (Some(Maker::Diffusers), &[][..], &[][..])
        );
        let shape = |model, name: &str| {
            let (.., shape) = dev.iter().find(|(own, ..)| model == Component::Transformer && own == name)?;
            Some(shape.clone())
        };
        let placed = lora.place(&shape, 0.125, false).unwrap();
        assert!(placed.skipped.is_empty() && placed.transformer.parameters.is_empty());
        let changed: BTreeSet<&str> = placed.transformer.linears.keys().map(String::as_str).collect();
        assert_eq!(changed, official);
        // Of the joined layers each part is changed.
        let terms: usize = placed.transformer.linears.values().map(Vec::len).sum();
        assert_eq!(terms, layers().len());
    }
}
