//! LoRAs of many makers against the weights that diffusers and peft make of the same files.
//!
//! `scripts/with-libtorch --reference` brings them and says in `TCH_FLUX_PYTHON` where they are.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};
use tch_flux::checkpoint::lora::{Component, Lora, Terms};
use tch_flux::checkpoint::{Access, Checkpoint, FLUX1_DIFFUSERS, FLUX2_DIFFUSERS};
use tch_flux::lora::{grown_columns, merged, merged_bias};

/// One file, and what it made of the models' weights.
#[derive(Deserialize)]
struct Case {
    name: String,
    lora: String,
    strength: f64,
    /// By model: the files of the weights before and after.
    models: BTreeMap<String, (String, String)>,
}

type Weights = BTreeMap<String, Tensor>;

/// The weights of a file under their official names.
fn weights(path: &Path, model: Component, flux2: bool) -> Weights {
    let file = Checkpoint::open(path, Access::Read).unwrap();
    let file = match model {
        Component::Transformer => file.renamed(if flux2 { &FLUX2_DIFFUSERS } else { &FLUX1_DIFFUSERS }),
        Component::Clip | Component::T5 => file.official(),
    };
    file.names().map(|name| (name.to_string(), file.tensor(name).unwrap())).collect()
}

fn with_terms(name: &str, before: &Tensor, terms: &Terms) -> Tensor {
    if let Some(terms) = terms.parameters.get(name) {
        return merged(before, terms).unwrap();
    }
    let (module, parameter) = name.rsplit_once('.').unwrap();
    match (terms.linears.get(module), parameter) {
        (Some(terms), "weight") => merged(before, terms).unwrap(),
        (Some(terms), "bias") => merged_bias(Some(before), before.size()[0], terms).unwrap().unwrap(),
        _ => before.shallow_clone(),
    }
}

fn compare(folder: &Path, case: &Case) {
    let lora = Lora::open(folder.join(&case.lora), Access::Read).unwrap();
    let models = [("transformer", Component::Transformer), ("clip", Component::Clip)];
    let models = models.iter().filter_map(|(name, model)| Some((*model, case.models.get(*name)?)));
    let mut before: BTreeMap<Component, Weights> = BTreeMap::new();
    let mut after: BTreeMap<Component, Weights> = BTreeMap::new();
    for (model, (first, second)) in models {
        let flux2 = case.name.starts_with("flux2");
        before.insert(model, weights(&folder.join(first), model, flux2));
        after.insert(model, weights(&folder.join(second), model, flux2));
    }
    if let (Some(columns), Some(weights)) = (lora.img_in_columns(), before.get_mut(&Component::Transformer)) {
        let grown = grown_columns(&weights["img_in.weight"], columns).unwrap();
        weights.insert("img_in.weight".into(), grown);
    }
    let shape = |model, name: &str| Some(before.get(&model)?.get(name)?.size());
    let placed = lora.place(&shape, case.strength, false).unwrap();
    for (model, after) in &after {
        let terms = if *model == Component::Clip { &placed.clip } else { &placed.transformer };
        for (name, expected) in after {
            let found = with_terms(name, &before[model][name], terms);
            assert_eq!((found.size(), found.kind()), (expected.size(), Kind::Float), "{}: {name}", case.name);
            let scale = f64::try_from(expected.abs().max()).unwrap().max(1.0);
            let difference = f64::try_from((found - expected).abs().max()).unwrap() / scale;
            assert!(difference < 1e-6, "{}: {name} differs by {difference}", case.name);
        }
    }
    println!("{lora}: {} as in the reference", case.name);
}

#[test]
fn merged_weights_are_those_of_diffusers_and_peft() {
    let Some(mut python) = crate::support::require::python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = python
        .current_dir(crate::support::root())
        .arg("scripts/compare_lora.py")
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases = std::fs::read_to_string(folder.path().join("cases.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() >= 20, "{} cases", cases.len());
    cases.iter().for_each(|case| compare(folder.path(), case));
}
