//! IP-Adapters and the pictures that they take as prompts, as flags.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tch_flux::Error;
use tch_flux::generation::provenance::IpAdapterRecord;
use tch_flux::generation::{self, Pipeline};
use tch_flux::image::Image;

use super::input_images::read;
use super::targets::Input;

#[derive(Args)]
pub(super) struct IpAdapterArgs {
    /// An IP-Adapter in XLabs' layout; may be given several times, each with its --ip-image.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    ip_adapter: Vec<PathBuf>,
    /// What the picture shall be like, PNG, JPEG or WebP; of one IP-Adapter there may be several.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    ip_image: Vec<PathBuf>,
    /// What the negative prompt's picture is like. [default: a black one]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    ip_negative_image: Vec<PathBuf>,
    /// How much of the IP-Adapter is added, or that for each double block, with commas between; once for all, or for each
    /// IP-Adapter. [default: 1]
    #[arg(long, value_name = "X[,X…]", value_parser = parse_scales, hide_short_help = true)]
    ip_strength: Vec<Scales>,
    /// The IP-Adapter's image encoder: CLIP-L's vision model or a whole CLIP, a file or a folder.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    ip_image_encoder: Option<PathBuf>,
}

/// For all double blocks, or for each.
#[derive(Clone)]
struct Scales(Vec<f64>);

impl IpAdapterArgs {
    /// Returns the files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let named = |flag| move |path: &PathBuf| Input::new(flag, path);
        let adapters = self.ip_adapter.iter().map(named("--ip-adapter"));
        let images = self.ip_image.iter().map(named("--ip-image"));
        let negative = self.ip_negative_image.iter().map(named("--ip-negative-image"));
        let encoder = self.ip_image_encoder.iter().map(named("--ip-image-encoder"));
        adapters.chain(images).chain(negative).chain(encoder).collect()
    }

    /// Returns what the flags ask for, and without them what a picture was drawn with before.
    pub(super) fn records(&self, before: Vec<IpAdapterRecord>) -> anyhow::Result<Vec<IpAdapterRecord>> {
        let wrong = |text: String| Err(Error::Request(text).into());
        let (adapters, pictures) = (self.ip_adapter.len(), self.ip_image.len());
        let mut all = before;
        if pictures > 0 && all.iter().any(|record| record.images.is_empty()) {
            self.set_files(&mut all)?;
        } else if adapters > 0 || pictures > 0 {
            if adapters == 0 || pictures == 0 || (adapters > 1 && adapters != pictures) {
                return wrong(format!(
                    "{adapters} --ip-adapter and {pictures} --ip-image: one for each IP-Adapter, or several for one"
                ));
            }
            let encoder = all.first().and_then(|record| record.image_encoder.clone());
            let Some(image_encoder) = self.ip_image_encoder.clone().or(encoder) else {
                return wrong("an IP-Adapter needs --ip-image-encoder: CLIP-L's vision model".into());
            };
            let images = |i: usize| match adapters {
                1 => self.ip_image.clone(),
                _ => vec![self.ip_image[i].clone()],
            };
            let record = |(i, path): (usize, &PathBuf)| IpAdapterRecord {
                ip_adapter: path.clone(),
                image_encoder: Some(image_encoder.clone()),
                images: images(i),
                negative: Vec::new(),
                scales: vec![1.0],
            };
            all = self.ip_adapter.iter().enumerate().map(record).collect();
        }
        let given = self.ip_strength.len();
        if all.is_empty() && (given > 0 || !self.ip_negative_image.is_empty()) {
            return wrong("no picture as a prompt: give --ip-adapter and --ip-image".into());
        }
        if !matches!(given, 0 | 1) && given != all.len() {
            return wrong(format!("{given} --ip-strength for {} --ip-adapter", all.len()));
        }
        for (i, record) in all.iter_mut().enumerate() {
            if let Some(Scales(scales)) = self.ip_strength.get(if given == 1 { 0 } else { i }) {
                record.scales = scales.clone();
            }
            if let Some(encoder) = &self.ip_image_encoder {
                record.image_encoder = Some(encoder.clone());
            }
            if !self.ip_negative_image.is_empty() {
                record.negative = self.ip_negative_image.clone();
            }
        }
        Ok(all)
    }

    /// Names the files in the records of a picture that came from a server, which does not know them.
    fn set_files(&self, before: &mut [IpAdapterRecord]) -> anyhow::Result<()> {
        let (adapters, pictures) = (self.ip_adapter.len(), self.ip_image.len());
        let fits = before.len() == 1 || pictures == before.len();
        if !fits || (adapters > 0 && adapters != before.len()) {
            let text = format!(
                "{adapters} --ip-adapter and {pictures} --ip-image, but that picture was drawn with {} IP-Adapters",
                before.len()
            );
            return Err(Error::Request(text).into());
        }
        let several = before.len() > 1;
        for (i, record) in before.iter_mut().enumerate() {
            record.images = if several { vec![self.ip_image[i].clone()] } else { self.ip_image.clone() };
            if let Some(adapter) = self.ip_adapter.get(i) {
                record.ip_adapter.clone_from(adapter);
            }
        }
        Ok(())
    }
}

/// Loads the IP-Adapters into the pipeline, and reads their pictures.
pub(super) fn load(
    pipeline: &mut Pipeline,
    records: &[IpAdapterRecord],
) -> anyhow::Result<Vec<generation::IpAdapterImage>> {
    if records.iter().any(|record| record.images.is_empty()) {
        let text = "that picture does not say by name which ones it is like: give --ip-adapter, --ip-image-encoder and \
                    --ip-image";
        return Err(Error::Request(text.into()).into());
    }
    let adapters: Vec<PathBuf> = records.iter().map(|record| record.ip_adapter.clone()).collect();
    pipeline
        .set_ip_adapters(&adapters, records.first().and_then(|record| record.image_encoder.as_deref()))?;
    let pictures = |paths: &[PathBuf]| -> anyhow::Result<Vec<Arc<Image>>> {
        paths.iter().map(|path| Ok(Arc::new(read(path)?))).collect()
    };
    let ip_adapter_image = |(adapter, record): (usize, &IpAdapterRecord)| {
        Ok(generation::IpAdapterImage {
            adapter,
            images: pictures(&record.images)?,
            negative: pictures(&record.negative)?,
            scales: record.scales.clone(),
        })
    };
    records.iter().enumerate().map(ip_adapter_image).collect()
}

fn parse_scales(text: &str) -> Result<Scales, String> {
    let scales: Result<Vec<f64>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    scales.map(Scales).map_err(|problem| format!("expected numbers with commas between: {problem}"))
}
