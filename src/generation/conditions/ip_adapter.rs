//! Pictures as prompts, which IP-Adapters bring into the drawing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Tensor;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::generation::loader::Loader;
use crate::generation::resident::{Resident, not_loaded};
use crate::generation::{PartKind, configs};
use crate::image::Image;
use crate::models::TransformerParams;
use crate::models::flux1::{ImagePrompt, IpAdapter, IpAdapterParams};
use crate::models::vision::{ClipVision, ClipVisionConfig};

/// Pictures that a drawing shall be like.
#[derive(Debug, Clone, PartialEq)]
pub struct IpAdapterImage {
    /// Which of the pipeline's IP-Adapters: a place in what [`Pipeline::set_ip_adapters`](crate::generation::Pipeline::set_ip_adapters) was given.
    pub adapter: usize,
    /// Of any size; the image encoder sees the middle of each.
    pub images: Vec<Arc<Image>>,
    /// What the negative prompt's drawing is like, where there is true guidance; without any, a black picture.
    pub negative: Vec<Arc<Image>>,
    /// How much is added after the double blocks: one number for all of them, or one for each.
    pub scales: Vec<f64>,
}

/// What must be alike of pictures that are computed together.
pub(in crate::generation) type IpAdapterKey = (usize, usize, usize, Vec<f64>);

impl IpAdapterImage {
    /// Like this picture, by the first IP-Adapter, in full.
    pub fn new(image: Image) -> Self {
        Self { adapter: 0, images: vec![Arc::new(image)], negative: Vec::new(), scales: vec![1.0] }
    }

    pub(in crate::generation) fn check(&self) -> Result<()> {
        let wrong = |text: &str| Err(Error::Request(text.into()));
        if self.images.is_empty() {
            return wrong("an IP-Adapter without a picture");
        }
        if self.scales.is_empty() || self.scales.iter().any(|scale| !scale.is_finite()) {
            return wrong("an IP-Adapter's strengths must be finite numbers, one at least");
        }
        Ok(())
    }

    pub(in crate::generation) fn shape(&self) -> IpAdapterKey {
        (self.adapter, self.images.len(), self.negative.len(), self.scales.clone())
    }
}

/// An IP-Adapter, and its model where it is loaded.
#[derive(Debug)]
struct Adapter {
    path: PathBuf,
    params: IpAdapterParams,
    model: Option<Resident<IpAdapter>>,
}

/// The image encoder of the IP-Adapters.
#[derive(Debug)]
struct Encoder {
    path: PathBuf,
    config: ClipVisionConfig,
    model: Option<Resident<ClipVision>>,
}

impl Encoder {
    fn open(loader: &Loader, path: &Path) -> Result<Self> {
        let checkpoint = loader.open_part(PartKind::ClipVision, path)?;
        let config = match configs::path_beside(path, configs::Kind::CLIP_VISION)? {
            Some(config) => ClipVisionConfig::read(config)?,
            None => ClipVisionConfig::from_shapes(|name| checkpoint.shape(name))?,
        };
        Ok(Self { path: path.to_path_buf(), config, model: None })
    }
}

/// What the image encoder says of a request's pictures: for each [`IpAdapterImage`], `[1, N, D]` of those and of the negative
/// ones.
pub(in crate::generation) type ImageEmbeds = Vec<(Tensor, Option<Tensor>)>;

/// What the transformer attends to beside the text: for the prompt, and for the negative one.
#[derive(Debug, Default)]
pub(in crate::generation) struct ImagePrompts {
    pub(in crate::generation) prompt: Vec<ImagePrompt>,
    pub(in crate::generation) negative: Vec<ImagePrompt>,
}

impl ImagePrompts {
    /// Those of several drawings, side by side.
    pub(in crate::generation) fn cat(all: &[&Self]) -> Result<Self> {
        let joined = |of: fn(&Self) -> &Vec<ImagePrompt>| {
            let count = all.first().map_or(0, |first| of(first).len());
            let prompt = |i: usize| {
                let prompts: Vec<_> = all.iter().filter_map(|one| of(one).get(i)).collect();
                ImagePrompt::cat(&prompts)
            };
            (0..count).map(prompt).collect::<Result<Vec<_>>>()
        };
        Ok(Self { prompt: joined(|one| &one.prompt)?, negative: joined(|one| &one.negative)? })
    }
}

/// The IP-Adapters of a pipeline, with their image encoder.
#[derive(Debug, Default)]
pub(in crate::generation) struct IpAdapters {
    adapters: Vec<Adapter>,
    encoder: Option<Encoder>,
}

impl IpAdapters {
    /// Opens these IP-Adapters and their image encoder, in place of those that were there.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] for one that is no IP-Adapter, or none of this transformer and
    /// image encoder. Those from before then stay.
    pub(in crate::generation) fn set(
        &mut self,
        loader: &Loader,
        paths: &[PathBuf],
        image_encoder: Option<&Path>,
        transformer: &TransformerParams,
    ) -> Result<()> {
        let encoder = image_encoder.map(|path| Encoder::open(loader, path)).transpose()?;
        if encoder.is_none() && !paths.is_empty() {
            let expected = "the image encoder openai/clip-vit-large-patch14";
            let part = PartKind::ClipVision.name();
            return Err(Error::UnnamedPart { purpose: "an IP-Adapter", part, expected });
        }
        let adapter = |path: &PathBuf| {
            let checkpoint = loader.open_part(PartKind::IpAdapter, path)?;
            let params = IpAdapterParams::from_shapes(|name| checkpoint.shape(name))?;
            params.check_fits(transformer.flux1()?).map_err(|error| match error {
                Error::Config(problem) => Error::Config(format!("{}: {problem}", path.display())),
                other => other,
            })?;
            match &encoder {
                Some(encoder) if encoder.config.projection_dim != params.clip_embeddings_dim => {
                    Err(Error::Config(format!(
                        "{}: the IP-Adapter reads vectors of {} numbers, and {} makes {}",
                        path.display(),
                        params.clip_embeddings_dim,
                        encoder.path.display(),
                        encoder.config.projection_dim
                    )))
                }
                _ => Ok(Adapter { path: path.clone(), params, model: None }),
            }
        };
        let adapters = paths.iter().map(adapter).collect::<Result<Vec<_>>>()?;
        (self.adapters, self.encoder) = (adapters, encoder);
        loader.keep_only(PartKind::IpAdapter, paths);
        Ok(())
    }

    /// The sizes of the IP-Adapters.
    pub(in crate::generation) fn params(&self) -> impl Iterator<Item = &IpAdapterParams> {
        self.adapters.iter().map(|adapter| &adapter.params)
    }

    /// Where the IP-Adapters lie.
    pub(in crate::generation) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.adapters.iter().map(|adapter| adapter.path.as_path())
    }

    /// The files of the IP-Adapters.
    pub(in crate::generation) fn open(&self, loader: &Loader) -> Result<Vec<Checkpoint>> {
        self.paths().map(|path| loader.open_part(PartKind::IpAdapter, path)).collect()
    }

    /// The file of the image encoder, where there is one.
    pub(in crate::generation) fn open_encoder(&self, loader: &Loader) -> Result<Option<Checkpoint>> {
        let open = |encoder: &Encoder| loader.open_part(PartKind::ClipVision, &encoder.path);
        self.encoder.as_ref().map(open).transpose()
    }

    /// Whether all of these are in memory.
    pub(in crate::generation) fn are_loaded(&self) -> bool {
        self.adapters.iter().all(|adapter| adapter.model.is_some())
            && self.encoder.iter().all(|encoder| encoder.model.is_some())
    }

    /// Lets go of the IP-Adapters' models.
    pub(in crate::generation) fn release(&mut self) {
        self.adapters.iter_mut().for_each(|adapter| adapter.model = None);
    }

    /// Lets go of the image encoder's model.
    pub(in crate::generation) fn release_encoder(&mut self) {
        self.encoder.iter_mut().for_each(|encoder| encoder.model = None);
    }

    /// Whether pictures are for IP-Adapters that are there, with as many strengths as they have blocks.
    pub(in crate::generation) fn check(&self, images: &[IpAdapterImage]) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        for IpAdapterImage { adapter, scales, .. } in images {
            let count = self.adapters.len();
            let Some(Adapter { params, .. }) = self.adapters.get(*adapter) else {
                return wrong(format!("there is no IP-Adapter of number {adapter}: {count} are put on"));
            };
            if scales.len() != 1 && scales.len() != params.depth {
                let (count, depth) = (scales.len(), params.depth);
                return wrong(format!(
                    "{count} strengths of an IP-Adapter: one for all {depth} double blocks, or one for each"
                ));
            }
        }
        Ok(())
    }

    /// What the image encoder says of pictures; of the negative ones, where there is true guidance.
    pub(in crate::generation) fn encode(
        &mut self,
        loader: &Loader,
        images: &[IpAdapterImage],
        is_guided: bool,
    ) -> Result<ImageEmbeds> {
        if images.is_empty() {
            return Ok(ImageEmbeds::new());
        }
        let encoder = self.encoder.as_mut().ok_or_else(not_loaded)?;
        if encoder.model.is_none() {
            let checkpoint = loader.open_part(PartKind::ClipVision, &encoder.path)?;
            let build = |vs: tch::nn::Path| ClipVision::new(vs, &encoder.config);
            encoder.model = Some(loader.load(loader.text_kind(), checkpoint, build)?);
        }
        let clip = encoder.model.as_ref().ok_or_else(not_loaded)?.model()?;
        let embeds = |images: &[&Image]| {
            let embed = |image: &&Image| {
                let pixels = clip.preprocess(image)?.f_to_device(loader.settings.device)?;
                clip.forward(&pixels)
            };
            let embeds = images.iter().map(embed).collect::<Result<Vec<_>>>()?;
            Ok::<_, Error>(Tensor::f_cat(&embeds, 0)?.f_unsqueeze(0)?.f_to_kind(loader.kind)?) // [1, N, D]
        };
        let black = Image { width: 1, height: 1, rgb: vec![0; 3] };
        let encode = |image: &IpAdapterImage| {
            let images: Vec<&Image> = image.images.iter().map(Arc::as_ref).collect();
            let mut negative: Vec<&Image> = image.negative.iter().map(Arc::as_ref).collect();
            if negative.is_empty() {
                negative.push(&black);
            }
            Ok((embeds(&images)?, is_guided.then(|| embeds(&negative)).transpose()?))
        };
        images.iter().map(encode).collect()
    }

    /// What the transformer attends to of what the image encoder said of these pictures.
    pub(in crate::generation) fn prompts(
        &mut self,
        loader: &Loader,
        images: &[IpAdapterImage],
        embeds: &ImageEmbeds,
        transformer: &TransformerParams,
    ) -> Result<ImagePrompts> {
        let mut prompts = ImagePrompts::default();
        for (image, (embeds, negative)) in images.iter().zip(embeds) {
            let adapter = self.adapters.get_mut(image.adapter).ok_or_else(not_loaded)?;
            if adapter.model.is_none() {
                let checkpoint = loader.open_part(PartKind::IpAdapter, &adapter.path)?;
                let build = |vs: tch::nn::Path| IpAdapter::new(vs, &adapter.params);
                adapter.model = Some(loader.load(loader.kind, checkpoint, build)?);
            }
            let adapter = adapter.model.as_ref().ok_or_else(not_loaded)?.model()?;
            let prompt = |embeds| adapter.prompt(embeds, transformer.flux1()?.num_heads, &image.scales);
            prompts.prompt.push(prompt(embeds)?);
            prompts.negative.extend(negative.as_ref().map(prompt).transpose()?);
        }
        Ok(prompts)
    }
}
