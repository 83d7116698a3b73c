//! `--from-image`: how a picture was drawn, and what is no longer as it was then.

use std::path::Path;

use anyhow::Context;
use tch_flux::Error;
use tch_flux::generation::provenance::{Means, Recipe};
use tch_flux::image::Image;

use super::pictures;

pub(super) fn read(path: &Path) -> anyhow::Result<Recipe> {
    let (_, texts) = Image::read(path)?;
    let recipe = Recipe::from_texts(&texts).with_context(|| path.display().to_string())?;
    let missing = || format!("{}: it does not say how it was drawn; is it ours?", path.display());
    Ok(recipe.ok_or_else(|| Error::Request(missing()))?)
}

/// What is not as it was when the picture was drawn: the models' files, by their names, and the pictures that were read.
pub(super) fn changed(picture: &Path, recipe: &Recipe, now: &Means) -> Vec<String> {
    let picture = picture.display();
    let before = &recipe.means;
    let names = [(&before.model, &now.model), (&before.autoencoder, &now.autoencoder)];
    let others = names.into_iter().filter(|(before, now)| !before.is_empty() && before != now);
    let others = others.map(|(before, now)| format!("{picture} was drawn with {before}, not with {now}"));
    let seen = pictures::seen();
    let inputs = recipe.inputs.iter().filter(|(path, sum)| seen.get(*path).is_some_and(|now| now != *sum));
    let inputs =
        inputs.map(|(path, _)| format!("{} is not what it was when {picture} was drawn", path.display()));
    others.chain(inputs).collect()
}
