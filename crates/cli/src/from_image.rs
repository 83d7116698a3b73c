//! `--from-image`: how a picture was drawn, and what is no longer as it was then.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use tch_flux::Error;
use tch_flux::generation::provenance::{ModelRecord, Provenance};
use tch_flux::image::Image;

use super::input_images;

pub(super) fn read(path: &Path) -> anyhow::Result<Provenance> {
    let (_, texts) = Image::read(path)?;
    let provenance = Provenance::from_texts(&texts).with_context(|| path.display().to_string())?;
    let missing = || match maker(&texts) {
        Some((program, key)) => format!(
            "{}: it is by {program}, whose text {key:?} does not say all that drawing it again needs: give its prompt and \
             settings by flags",
            path.display()
        ),
        None => format!("{}: it does not say how it was drawn; is it ours?", path.display()),
    };
    Ok(provenance.ok_or_else(|| Error::Request(missing()))?)
}

/// Returns the other program that drew a picture, and the key of the text that says so.
fn maker(texts: &BTreeMap<String, String>) -> Option<(&'static str, &'static str)> {
    let parameters = texts.get("parameters").map(String::as_str).unwrap_or_default();
    let has = |key: &str| texts.contains_key(key);
    let is_json = |key: &str| texts.get(key).is_some_and(|text| text.trim_start().starts_with('{'));
    match () {
        () if parameters.contains("sui_image_params") => Some(("SwarmUI", "parameters")),
        () if has("fooocus_scheme") => Some(("Fooocus", "fooocus_scheme")),
        () if has("invokeai_metadata") => Some(("InvokeAI", "invokeai_metadata")),
        () if has("sd-metadata") => Some(("InvokeAI", "sd-metadata")),
        () if is_json("workflow") => Some(("ComfyUI", "workflow")),
        () if is_json("prompt") => Some(("ComfyUI", "prompt")),
        () if texts.get("Software").is_some_and(|name| name == "NovelAI") => Some(("NovelAI", "Comment")),
        () if parameters.contains("Steps: ") => Some(("A1111 or a relative of it", "parameters")),
        () => None,
    }
}

/// Returns a line for each thing that differs from when the picture was drawn: models' files, by their names, and pictures
/// that were read.
pub(super) fn changed(picture: &Path, provenance: &Provenance, now: &ModelRecord) -> Vec<String> {
    let picture = picture.display();
    let before = &provenance.means;
    let names = [(&before.model, &now.model), (&before.autoencoder, &now.autoencoder)];
    let others = names.into_iter().filter(|(before, now)| !before.is_empty() && before != now);
    let others = others.map(|(before, now)| format!("{picture} was drawn with {before}, not with {now}"));
    let checksums = input_images::checksums();
    let inputs =
        provenance.inputs.iter().filter(|(path, sum)| checksums.get(*path).is_some_and(|now| now != *sum));
    let inputs =
        inputs.map(|(path, _)| format!("{} is not what it was when {picture} was drawn", path.display()));
    others.chain(inputs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_other_programs_are_known() {
        for (texts, program) in [
            (&[("prompt", "{\"3\": {}}"), ("workflow", "{}")][..], Some("ComfyUI")),
            (&[("prompt", "{\"3\": {}}")], Some("ComfyUI")),
            (&[("parameters", "a cat\nSteps: 20, Sampler: Euler")], Some("A1111 or a relative of it")),
            (&[("parameters", "{\"sui_image_params\": {}}")], Some("SwarmUI")),
            (&[("parameters", "a cat"), ("fooocus_scheme", "a1111")], Some("Fooocus")),
            (&[("invokeai_metadata", "{}")], Some("InvokeAI")),
            (&[("Software", "NovelAI"), ("Comment", "{}")], Some("NovelAI")),
            (&[("prompt", "a cat")], None),
            (&[("Software", "Photoshop")], None),
            (&[], None),
        ] {
            let texts = texts.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
            assert_eq!(maker(&texts).map(|(program, _)| program), program, "{texts:?}");
        }
    }
}
