//! IP-Adapters and the pictures that they take as prompts, as flags.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tch_flux::Error;
use tch_flux::generation::provenance::IpAdapterRecord;
use tch_flux::generation::{self, Pipeline};
use tch_flux::image::Image;

use super::input_images::read;
use super::parameter_args::ParameterArgs;
use super::targets::Input;

#[derive(Args)]
pub(super) struct IpAdapterArgs {
    /// An IP-Adapter in XLabs' layout; may be given several times, each with its --ip-image.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    ip_adapter: Vec<PathBuf>,
    /// The IP-Adapter's image encoder: CLIP-L's vision model or a whole CLIP, a file or a folder.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    ip_image_encoder: Option<PathBuf>,
}

impl IpAdapterArgs {
    /// Returns the files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let named = |flag| move |path: &PathBuf| Input::new(flag, path);
        let adapters = self.ip_adapter.iter().map(named("--ip-adapter"));
        let encoder = self.ip_image_encoder.iter().map(named("--ip-image-encoder"));
        adapters.chain(encoder).collect()
    }

    /// Returns what the flags ask for, and without them what a picture was drawn with before.
    pub(super) fn records(
        &self,
        parameters: &ParameterArgs<false>,
        before: Vec<IpAdapterRecord>,
    ) -> anyhow::Result<Vec<IpAdapterRecord>> {
        let wrong = |text: String| Err(Error::Request(text).into());
        let (files, negative) =
            (parameters.files("ip_adapter_image"), parameters.files("negative_ip_adapter_image"));
        let (adapters, pictures) = (self.ip_adapter.len(), files.len());
        let mut all = before;
        if pictures > 0 && all.iter().any(|record| record.images.is_empty()) {
            self.set_files(files, &mut all)?;
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
                1 => files.to_vec(),
                _ => vec![files[i].clone()],
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
        let scales = parameters.values.scales();
        if !matches!(scales.len(), 0 | 1) && scales.len() != all.len() {
            return wrong(format!("{} --ip-strength for {} --ip-adapter", scales.len(), all.len()));
        }
        for (i, record) in all.iter_mut().enumerate() {
            if let Some(scales) = scales.get(if scales.len() == 1 { 0 } else { i }) {
                record.scales = scales.clone();
            }
            if let Some(encoder) = &self.ip_image_encoder {
                record.image_encoder = Some(encoder.clone());
            }
            if !negative.is_empty() {
                record.negative = negative.to_vec();
            }
        }
        Ok(all)
    }

    /// Names the files in the records of a picture that came from a server, which does not know them.
    fn set_files(&self, files: &[PathBuf], before: &mut [IpAdapterRecord]) -> anyhow::Result<()> {
        let (adapters, pictures) = (self.ip_adapter.len(), files.len());
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
            record.images = if several { vec![files[i].clone()] } else { files.to_vec() };
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
