//! Pictures to files, each as soon as it is finished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch_flux::generation::provenance::{
    ControlRecord, EditRecord, IpAdapterRecord, ModelRecord, Provenance, ReduxRecord,
};
use tch_flux::generation::{Generated, Request};
use tch_flux::image::{Format, Image};

use super::{file_names, image_format, input_images, targets};

/// A picture that was written, or that was not drawn.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PictureFile {
    file: PathBuf,
    prompt: String,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    variation_seed: Option<u64>,
    width: i64,
    height: i64,
    steps: Option<usize>,
    guidance: Option<f64>,
    warnings: Vec<String>,
}

impl PictureFile {
    /// Describes a picture of a request before it is drawn.
    fn planned(request: &Request, image: usize, file: PathBuf) -> Self {
        let images = request.num_images.max(1);
        let (seed, variation) = request.seeds(image % images);
        Self {
            file,
            prompt: request.prompts.get(image / images).cloned().unwrap_or_default(),
            seed,
            variation_seed: variation.map(|variation| variation.seed),
            width: request.width,
            height: request.height,
            steps: request.steps,
            guidance: request.guidance,
            warnings: Vec::new(),
        }
    }

    /// `x.png (seed 7, variation seed 9)`.
    pub(super) fn line(&self) -> String {
        let variation =
            self.variation_seed.map(|seed| format!(", variation seed {seed}")).unwrap_or_default();
        format!("{} (seed {}{variation})", self.file.display(), self.seed)
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The parts of the provenance that a request does not hold.
pub(super) struct Records<'a> {
    pub(super) model: &'a ModelRecord,
    pub(super) edit: Option<&'a EditRecord>,
    pub(super) redux: Option<&'a ReduxRecord>,
    pub(super) controls: &'a [ControlRecord],
    pub(super) ip_adapters: &'a [IpAdapterRecord],
}

impl Records<'_> {
    fn provenance(&self, picture: &Generated) -> Provenance {
        let mut provenance = Provenance::new(self.model, picture);
        if let Some(edit) = self.edit {
            provenance.edit = Some(edit.clone());
        }
        provenance.redux = self.redux.cloned();
        (provenance.controls, provenance.pictured) = (self.controls.to_vec(), self.ip_adapters.to_vec());
        provenance.inputs = input_images::checksums();
        provenance
    }
}

/// How files are written.
#[derive(Clone, Copy)]
pub(super) struct SaveOptions {
    /// Of a JPEG or WebP.
    pub(super) quality: u8,
    /// Whether one that stands there is replaced.
    pub(super) force: bool,
}

/// Writes the pictures of a request to their files.
pub(super) struct Writer<'a> {
    records: Records<'a>,
    options: SaveOptions,
    /// What each picture is, and whether it is written.
    pictures: Vec<(PictureFile, bool)>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        records: Records<'a>,
        request: &Request,
        files: Vec<PathBuf>,
        options: SaveOptions,
    ) -> Self {
        let planned = |(image, file)| (PictureFile::planned(request, image, file), false);
        Self { records, options, pictures: files.into_iter().enumerate().map(planned).collect() }
    }

    /// Writes a picture, and returns its description.
    pub(super) fn write(&mut self, image: usize, picture: &Generated) -> anyhow::Result<PictureFile> {
        let texts = self.records.provenance(picture).texts()?;
        let (written, done) = &mut self.pictures[image];
        let file = save(&written.file, &picture.image, &texts, self.options)?;
        written.warnings.clone_from(&picture.warnings);
        if file != written.file {
            let (meant, file) = (written.file.display(), file.display());
            written.warnings.push(format!("{meant} stands there since: this picture is {file}"));
        }
        (written.file, *done) = (file, true);
        Ok(written.clone())
    }

    pub(super) fn write_preview(&self, image: usize, step: usize, picture: &Image) -> anyhow::Result<()> {
        let file = file_names::preview(&self.pictures[image].0.file, step);
        save(&file, picture, &BTreeMap::new(), self.options).map(|_| ())
    }

    pub(super) fn written(&self) -> Vec<&PictureFile> {
        self.pictures.iter().filter(|(_, done)| *done).map(|(picture, _)| picture).collect()
    }

    pub(super) fn undrawn(&self) -> Vec<&PictureFile> {
        self.pictures.iter().filter(|(_, done)| !done).map(|(picture, _)| picture).collect()
    }

    /// All pictures on one sheet: a row for each prompt, or as square as can be for one. Where one is missing the sheet is
    /// white.
    pub(super) fn write_grid(
        &self,
        file: &Path,
        request: &Request,
        drawn: &[Generated],
    ) -> anyhow::Result<PathBuf> {
        let mut drawn = drawn.iter();
        let (width, height) = (request.width as u32, request.height as u32);
        let white = Image { width, height, rgb: vec![255; 3 * width as usize * height as usize] };
        let cells = self.pictures.iter().map(|(_, done)| match done {
            true => drawn.next().map_or(&white, |picture| &picture.image),
            false => &white,
        });
        let cells: Vec<_> = cells.collect();
        save(file, &Image::grid(&cells, columns(request))?, &BTreeMap::new(), self.options)
    }
}

/// Returns the number of columns of the sheet with all pictures of a request.
fn columns(request: &Request) -> usize {
    match request.prompts.len() {
        1 => (request.num_images as f64).sqrt().ceil() as usize,
        _ => request.num_images,
    }
}

/// The width and height in pixels of the sheet with all pictures of a request.
///
/// # Errors
/// Those of [`Image::grid_size`].
pub(super) fn grid_size(request: &Request) -> tch_flux::Result<(u32, u32)> {
    let side = |side: i64| u32::try_from(side).unwrap_or(u32::MAX);
    let size = (side(request.width), side(request.height));
    Image::grid_size(request.prompts.len() * request.num_images, columns(request), size)
}

/// Writes a picture in the format that the file's name says.
fn save(
    file: &Path,
    picture: &Image,
    texts: &BTreeMap<String, String>,
    SaveOptions { quality, force }: SaveOptions,
) -> anyhow::Result<PathBuf> {
    let bytes = match image_format::format(file)? {
        Format::Png => {
            let mut bytes = Vec::new();
            let written = picture.write_png_to(&mut bytes, texts);
            written.map_err(|source| tch_flux::Error::Io { path: file.into(), source })?;
            bytes
        }
        format => picture.encode(format, quality, texts)?,
    };
    targets::save(file, &bytes, force)
}

/// Returns a line for each prompt of which pictures were not drawn: how many, and with which seeds they can be.
pub(super) fn undrawn_lines(undrawn: &[&PictureFile]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = undrawn;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|picture| picture.prompt == first.prompt).count();
        let (these, others) = rest.split_at(same);
        let seed = |picture: &PictureFile| picture.variation_seed.unwrap_or(picture.seed);
        let name = if first.variation_seed.is_some() { "variation seed" } else { "seed" };
        let seeds = match (seed(first), these.last().map(|last| seed(last))) {
            (first, Some(last)) if first != last => format!("{name}s {first} to {last}"),
            (first, _) => format!("{name} {first}"),
        };
        let pictures = if same == 1 { "1 picture".into() } else { format!("{same} pictures") };
        lines.push(format!("not drawn: {pictures} of {:?}, {seeds}", first.prompt));
        rest = others;
    }
    lines
}
