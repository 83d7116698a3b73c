//! What the flags of `generate` make: the request, the files that are read, and those that are written.

use std::path::{Path, PathBuf};

use tch_flux::Error;
use tch_flux::generation::Request;
use tch_flux::generation::params::parameter;
use tch_flux::generation::provenance::Provenance;

use super::Generate;
use super::edit_input::EditInput;
use crate::file_names::{self, FileNames};
use crate::prompts::PromptReader;
use crate::targets::{self, Input, Target};
use crate::{image_format, writer};

/// No call draws more pictures: each has a name, and nobody waits for so many.
const MAX_PICTURES: usize = 1_000_000;

impl Generate {
    /// Returns the request. Where no flag and no picture says its size, that is left to the model.
    pub(super) fn request(&self, provenance: Option<&Provenance>) -> anyhow::Result<Request> {
        let mut request = match provenance {
            Some(provenance) => provenance.request.clone(),
            None => {
                Request { prompts: Vec::new(), seed: Request::random_seed(), ..Request::new("", 1024, 1024) }
            }
        };
        let mut reader = PromptReader::default();
        if let Some(prompt) = &self.positional {
            request.prompts = reader.read(std::slice::from_ref(prompt))?;
        } else if !self.prompt.is_empty() {
            request.prompts = reader.read(&self.prompt)?;
        } else if let Some(file) = &self.prompt_file {
            request.prompts = reader.read_file(file)?;
        }
        if request.prompts.is_empty() && self.redux.has_pictures() {
            request.prompts.push(String::new());
        }
        if request.prompts.is_empty() {
            let text = "nothing to draw: give a PROMPT, --prompt, --prompt-file or --from-image";
            return Err(Error::Request(text.into()).into());
        }
        let has_pictures = |key: &str| {
            let is_repeated = provenance.is_some_and(|provenance| match key {
                "redux_image" => provenance.redux.is_some(),
                "control_image" => !provenance.controls.is_empty(),
                _ => !provenance.pictured.is_empty(),
            });
            is_repeated
                || !self.parameters.files(key).is_empty()
                || (key == "redux_image" && self.redux.has_pictures())
        };
        let mut values = self.parameters.values.clone();
        values.check_rules(has_pictures).map_err(Error::from)?;
        for key in ["prompt_2", "negative_prompt"] {
            let text = values.text(key).map(str::to_string);
            if let (Some(parameter), Some(text)) = (parameter(key), reader.read_optional(text.as_ref())?) {
                values.insert(parameter, text.into()).map_err(Error::from)?;
            }
        }
        request.apply(&values);
        if request.negative_prompt.is_some() {
            // diffusers' documentation of true guidance takes 4.
            request.true_cfg_scale = request.true_cfg_scale.or(Some(4.0));
        }
        if request.prompts.len().checked_mul(request.num_images).is_none_or(|images| images > MAX_PICTURES) {
            let text =
                format!("more than {MAX_PICTURES} pictures in one call: ask for fewer by --num-images");
            return Err(Error::Request(text).into());
        }
        Ok(request)
    }

    /// Returns all files that are read, as far as flags or the picture that is repeated name them.
    pub(super) fn inputs(&self, edit: Option<&EditInput>, provenance: Option<&Provenance>) -> Vec<Input> {
        let mut inputs = Vec::new();
        inputs.extend(self.from_image.iter().map(|path| Input::new("--from-image", path)));
        inputs.extend(self.prompt_file.iter().map(|path| Input::new("--prompt-file", path)));
        if let Some(EditInput { record, .. }) = edit {
            inputs.extend(record.images.iter().map(|path| Input::new("--image", path)));
            inputs.extend(record.mask.iter().map(|path| Input::new("--mask", path)));
        }
        inputs.extend(self.lora.iter().map(|lora| Input::new("--lora", &lora.path)));
        inputs.extend(self.model.inputs());
        inputs.extend(self.redux.inputs());
        inputs.extend(self.parameters.inputs());
        inputs.extend(self.control.inputs());
        inputs.extend(self.ip_adapter.inputs());
        if let Some(provenance) = provenance {
            let flag = "--from-image";
            inputs.extend(provenance.means.loras.iter().map(|lora| Input::new(flag, &lora.path)));
            inputs.extend(provenance.inputs.keys().map(|path| Input::new(flag, path)));
        }
        inputs
    }

    /// Returns the pictures' files and all files that are going to be written, once it is checked that they can be.
    pub(super) fn targets(
        &self,
        request: &Request,
        previews: &[usize],
        inputs: &[Input],
    ) -> anyhow::Result<(Vec<PathBuf>, Vec<Target>)> {
        let taken = |path: &Path| path.symlink_metadata().is_ok();
        let names = FileNames::new(self.output.as_deref(), request)?;
        let files = names.assign(request, previews, self.force, &taken);
        let target = |flag| move |path| Target { path, flag };
        let mut targets: Vec<Target> = files.iter().cloned().map(target("--output")).collect();
        targets.extend(self.grid.clone().map(target("--grid")));
        let previews =
            files.iter().flat_map(|file| previews.iter().map(|&step| file_names::preview(file, step)));
        targets.extend(previews.map(target("--previews")));
        targets::check(&targets, inputs, self.force)?;
        Ok((files, targets))
    }

    /// Checks that the formats that the files' names say can hold pictures and a sheet of this size.
    pub(super) fn check_sizes(&self, request: &Request) -> tch_flux::Result<()> {
        let side = |side: i64| u32::try_from(side).unwrap_or(u32::MAX);
        if let Some(file) = &self.output {
            image_format::check_size(file, (side(request.width), side(request.height)))?;
        }
        match &self.grid {
            Some(file) => image_format::check_size(file, writer::grid_size(request)?),
            None => Ok(()),
        }
    }

    /// Returns the quality to write with, where any of the files is of a format that has one.
    pub(super) fn quality(&self) -> Result<u8, Error> {
        let pattern = self.output.clone().unwrap_or_else(|| PathBuf::from("x.png"));
        let names = [Some(&pattern), self.grid.as_ref()];
        image_format::quality(self.output_quality, names.into_iter().flatten().map(PathBuf::as_path))
    }
}
