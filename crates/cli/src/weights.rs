//! What the weights of a model's parts are, in words and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tch_flux::generation::Weights;

use super::bytes::human_bytes;
use super::device::kind_name;

/// Returns a line such as `transformer: Q4_K 6.80 GB on the disk; Q4_K 6.80 GB in memory; computed in bf16`.
pub(super) fn describe(weights: &Weights) -> String {
    let list = |types: &BTreeMap<String, u64>| {
        let mut types: Vec<_> = types.iter().collect();
        types.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        types
            .iter()
            .map(|(name, bytes)| format!("{name} {}", human_bytes(**bytes)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Weights { part, on_disk, in_memory, arithmetic, from_base, .. } = weights;
    let (on_disk, in_memory, kind) = (list(on_disk), list(in_memory), kind_name(*arithmetic));
    let base = match &from_base[..] {
        [] => String::new(),
        names => format!("; from the base: {}", names.join(", ")),
    };
    format!("{part}: {on_disk} on the disk; {in_memory} in memory; computed in {kind}{base}")
}

/// Returns the same as JSON.
pub(super) fn to_json(weights: &Weights) -> Value {
    let Weights { part, file, on_disk, in_memory, arithmetic, from_base, .. } = weights;
    json!({
        "part": part.label(), "file": file, "on_disk": on_disk, "in_memory": in_memory,
        "arithmetic": kind_name(*arithmetic), "from_base": from_base,
    })
}
