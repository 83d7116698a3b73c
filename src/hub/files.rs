//! Which files of a repository the parts are made of.

use std::path::Path;

use crate::checkpoint::{Index, is_index, shards_of, weights_among};
use crate::error::{Error, Result};
use crate::generation::{MODEL_INDEX, PartKind, PartOverrides, Parts, SCHEDULER};

/// What is made of a repository's names, with the files that it needs: of the repository as errors show it, and of the
/// folder of its snapshot.
pub(super) type Plan<'a, T> = dyn Fn(&Path, &Path, &[String]) -> Result<(T, Vec<String>)> + 'a;

/// The parts in a snapshot, but for those that are named, and the files of them; shards are known from their index
/// alone, once it is there. `shown` stands for the repository in errors.
pub(super) fn plan(
    shown: &Path,
    snapshot: &Path,
    names: &[String],
    own: PartOverrides,
) -> Result<(Parts, Vec<String>)> {
    let tops = tops(names);
    let mut needed = Vec::new();
    let listed = |name: &str| names.iter().any(|other| other == name);
    let own_transformer = own.transformer.is_none();
    let scheduler = own.scheduler.clone();
    let in_snapshot = |name: &str| Some(snapshot.join(name)).filter(|_| listed(name));
    let mut parts = own.rest(|part| -> Result<_> {
        let chosen = part.choose(shown, &tops)?;
        needed.extend(files_of(part, chosen, shown, names)?);
        Ok(snapshot.join(chosen))
    })?;
    if scheduler.is_none() {
        parts.scheduler = in_snapshot(SCHEDULER);
        needed.extend(Some(SCHEDULER.to_string()).filter(|name| listed(name)));
        // Which variant the scheduler is for, where the transformer is another one.
        let variant = Some("transformer/config.json".to_string());
        needed.extend(variant.filter(|name| !own_transformer && parts.scheduler.is_some() && listed(name)));
    }
    if own_transformer {
        parts.model_index = in_snapshot(MODEL_INDEX);
        needed.extend(Some(MODEL_INDEX.to_string()).filter(|name| listed(name)));
    }
    // The small ones first: what is wrong with the access shows before the long wait.
    needed.reverse();
    Ok((parts, needed))
}

/// The same of what reads pictures for Redux, in a repository as its official one.
pub(super) fn plan_redux(
    shown: &Path,
    snapshot: &Path,
    names: &[String],
) -> Result<(PartOverrides, Vec<String>)> {
    let tops = tops(names);
    let mut needed = Vec::new();
    let mut place = |part: PartKind| -> Result<_> {
        let chosen = part.choose(shown, &tops)?;
        needed.splice(0..0, files_of(part, chosen, shown, names)?);
        Ok(Some(snapshot.join(chosen)))
    };
    let (redux, image_encoder) = (place(PartKind::Redux)?, place(PartKind::ImageEncoder)?);
    Ok((PartOverrides { redux, image_encoder, ..PartOverrides::default() }, needed))
}

/// The names at the top of a repository, of files and folders.
fn tops(names: &[String]) -> Vec<String> {
    let mut tops: Vec<_> = names.iter().filter_map(|name| name.split('/').next()).map(String::from).collect();
    tops.sort();
    tops.dedup();
    tops
}

/// Calls `each` with every name, and with the shards of those that are an index and are there by then.
pub(super) fn for_each(
    snapshot: &Path,
    needed: &[String],
    each: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    for name in needed {
        each(name)?;
        if is_index(name) {
            let folder = name.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
            for shard in Index::read(&snapshot.join(name))?.shards() {
                each(&format!("{folder}{shard}"))?;
            }
        }
    }
    Ok(())
}

/// The files that are read of a part: `chosen` itself, or what is needed in the folder of that name.
fn files_of(part: PartKind, chosen: &str, shown: &Path, names: &[String]) -> Result<Vec<String>> {
    let listed = |name: &str| names.iter().any(|n| n == name);
    let config = |folder: &str| Some(format!("{folder}/config.json")).filter(|name| listed(name));
    if listed(chosen) {
        // The size of pictures that an autoencoder was trained for is said there alone.
        let config = if part == PartKind::Autoencoder { config("vae") } else { None };
        let files = shards_of(shown, chosen, names)?.into_iter().map(String::from);
        return Ok(files.chain(config).collect());
    }
    let inside: Vec<String> = names
        .iter()
        .filter_map(|name| name.strip_prefix(chosen)?.strip_prefix('/'))
        .map(String::from)
        .collect();
    let (what, forms): (_, &[&[&str]]) = match part {
        PartKind::ClipTokenizer => ("CLIP tokenizer", &[&["tokenizer.json"], &["vocab.json", "merges.txt"]]),
        PartKind::T5Tokenizer => ("T5 tokenizer", &[&["tokenizer.json"], &["spiece.model"]]),
        _ => {
            let weights = weights_among(&shown.join(chosen), &inside)?;
            let files = weights.iter().map(|name| format!("{chosen}/{name}"));
            return Ok(files.chain(config(chosen)).collect());
        }
    };
    let whole = |form: &&&[&str]| form.iter().all(|file| inside.iter().any(|name| name == file));
    match forms.iter().find(whole) {
        Some(form) => Ok(form.iter().map(|file| format!("{chosen}/{file}")).collect()),
        None => {
            let expected = forms.iter().map(|form| form.join(" with ")).collect::<Vec<_>>().join(" or ");
            Err(Error::MissingPart { path: shown.join(chosen), part: what, expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(names: &[&str], own: PartOverrides) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        plan(Path::new("owner/name"), Path::new("snapshot"), &names, own).map(|(_, needed)| needed)
    }

    /// What the official repository of FLUX.1 lists.
    const OFFICIAL: [&str; 29] = [
        ".gitattributes",
        "LICENSE.md",
        "README.md",
        "ae.safetensors",
        "dev_grid.jpg",
        "flux1-dev.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder_2/config.json",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "text_encoder_2/model.safetensors.index.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "tokenizer_2/special_tokens_map.json",
        "tokenizer_2/spiece.model",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];

    #[test]
    fn of_two_spellings_of_the_same_weights_one_is_fetched_and_nothing_that_is_not_read() {
        assert_eq!(
            needed(&OFFICIAL, PartOverrides::default()).unwrap(),
            [
                "model_index.json",
                "scheduler/scheduler_config.json",
                "tokenizer_2/tokenizer.json",
                "tokenizer/merges.txt",
                "tokenizer/vocab.json",
                "text_encoder_2/config.json",
                "text_encoder_2/model.safetensors.index.json",
                "text_encoder/config.json",
                "text_encoder/model.safetensors",
                "vae/config.json",
                "ae.safetensors",
                "flux1-dev.safetensors",
            ]
        );
    }

    #[test]
    fn without_the_single_files_those_of_diffusers_are_fetched() {
        let names: Vec<_> =
            OFFICIAL.into_iter().filter(|n| n.contains('/') || !n.ends_with("safetensors")).collect();
        let needed = needed(&names, PartOverrides::default()).unwrap();
        assert_eq!(
            needed[9..],
            [
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors",
                "transformer/config.json",
                "transformer/diffusion_pytorch_model.safetensors.index.json",
            ]
        );
    }

    #[test]
    fn variants_shards_and_sidecars_are_judged_as_in_a_folder() {
        let rest: Vec<_> = OFFICIAL
            .into_iter()
            .filter(|name| !name.starts_with("flux1-") && !name.starts_with("transformer/"))
            .collect();
        let transformer = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| format!("transformer/{name}")).collect();
            let names: Vec<&str> = rest.iter().copied().chain(names.iter().map(String::as_str)).collect();
            let needed = needed(&names, PartOverrides::default())?;
            let own =
                needed.into_iter().filter_map(|name| name.strip_prefix("transformer/").map(String::from));
            Ok::<_, Error>(own.collect::<Vec<_>>())
        };
        let (one, two) = ("m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors");
        let index = "m.safetensors.index.fp16.json";
        let sidecars = ["._m.fp16-00001-of-00002.safetensors", "._m.safetensors.index.fp16.json"];
        assert_eq!(transformer(&[&sidecars[..], &[one, two, index]].concat()).unwrap(), [index]);
        assert_eq!(transformer(&[&sidecars[..], &[one, two]].concat()).unwrap(), [two, one]);
        assert!(transformer(&[two]).unwrap_err().to_string().contains("numbers 1 are missing"));
        // At the top of the repository.
        let tops = ["flux1-x-1-of-2.gguf", "flux1-x-2-of-2.gguf"];
        let needed = needed(&[&rest[..], &tops].concat(), PartOverrides::default()).unwrap();
        assert_eq!(needed[needed.len() - 2..], [tops[1], tops[0]]);
    }

    #[test]
    fn the_shards_of_every_index_are_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let index = "m.safetensors.index.fp16.json";
        std::fs::write(folder.path().join(index), r#"{"weight_map": {"a": "one", "b": "two"}}"#).unwrap();
        let mut fetched = Vec::new();
        let needed = [index.to_string(), "config.json".into()];
        for_each(folder.path(), &needed, &mut |name| {
            fetched.push(name.to_string());
            Ok(())
        })
        .unwrap();
        assert_eq!(fetched, [index, "one", "two", "config.json"]);
    }

    #[test]
    fn a_part_that_is_named_is_neither_fetched_nor_missed() {
        let own = PartOverrides { transformer: Some("mine.safetensors".into()), ..PartOverrides::default() };
        let names: Vec<_> =
            OFFICIAL.into_iter().filter(|n| !n.starts_with("flux1-") && !n.starts_with("trans")).collect();
        let needed = needed(&names, own).unwrap();
        assert_eq!(needed.last().unwrap(), "ae.safetensors");
    }

    #[test]
    fn of_redux_the_two_models_are_fetched_and_none_of_the_others() {
        let names = [
            "README.md",
            "feature_extractor/preprocessor_config.json",
            "flux1-redux-dev.safetensors",
            "image_embedder/config.json",
            "image_embedder/diffusion_pytorch_model.safetensors",
            "image_encoder/config.json",
            "image_encoder/model.safetensors",
            "model_index.json",
        ]
        .map(String::from);
        let plan = |names: &[String]| plan_redux(Path::new("owner/name"), Path::new("snapshot"), names);
        let (own, needed) = plan(&names).unwrap();
        assert_eq!(own.redux.as_deref(), Some(Path::new("snapshot/flux1-redux-dev.safetensors")));
        assert_eq!(own.image_encoder.as_deref(), Some(Path::new("snapshot/image_encoder")));
        let encoder = ["image_encoder/model.safetensors", "image_encoder/config.json"];
        assert!(encoder.iter().all(|name| needed.iter().any(|needed| needed == name)), "{needed:?}");
        assert_eq!((needed.len(), needed.last().unwrap().as_str()), (3, "flux1-redux-dev.safetensors"));
        let error = plan(&names[..5]).unwrap_err().to_string();
        assert_eq!(error, "owner/name: no image encoder; expected image_encoder");
    }

    #[test]
    fn a_repository_without_a_part_is_refused_before_anything_is_fetched() {
        let without = |start: &str| {
            let names: Vec<_> = OFFICIAL.into_iter().filter(|name| !name.starts_with(start)).collect();
            needed(&names, PartOverrides::default()).unwrap_err().to_string()
        };
        assert_eq!(without("text_encoder/"), "owner/name: no CLIP text model; expected text_encoder");
        assert_eq!(
            without("tokenizer/v"),
            "owner/name/tokenizer: no CLIP tokenizer; expected tokenizer.json or vocab.json with merges.txt"
        );
    }
}
