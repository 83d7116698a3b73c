//! Pictures as prompts, which IP-Adapters bring into the drawing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Tensor;

use super::draw::not_loaded;
use super::resident::{self, Resident};
use super::{Pipeline, Request, Weights, configs};
use crate::checkpoint::{Access, Checkpoint, Family};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::models::flux1::{ImagePrompt, IpAdapter, IpAdapterParams};
use crate::models::vision::{ClipVision, ClipVisionConfig};

/// Pictures that a drawing shall be like.
#[derive(Debug, Clone, PartialEq)]
pub struct IpAdapterImage {
    /// Which of the pipeline's IP-Adapters: a place in what [`Pipeline::set_ip_adapters`] was given.
    pub adapter: usize,
    /// Of any size; the image encoder sees the middle of each.
    pub images: Vec<Arc<Image>>,
    /// What the negative prompt's drawing is like, where there is true guidance; without any, a black picture.
    pub negative: Vec<Arc<Image>>,
    /// How much is added after the double blocks: one number for all of them, or one for each.
    pub scales: Vec<f64>,
}

/// What must be alike of pictures that are computed together.
pub(super) type IpAdapterKey = (usize, usize, usize, Vec<f64>);

impl IpAdapterImage {
    /// Like this picture, by the first IP-Adapter, in full.
    pub fn new(image: Image) -> Self {
        Self { adapter: 0, images: vec![Arc::new(image)], negative: Vec::new(), scales: vec![1.0] }
    }

    pub(super) fn check(&self) -> Result<()> {
        let wrong = |text: &str| Err(Error::Request(text.into()));
        if self.images.is_empty() {
            return wrong("an IP-Adapter without a picture");
        }
        if self.scales.is_empty() || self.scales.iter().any(|scale| !scale.is_finite()) {
            return wrong("an IP-Adapter's strengths must be finite numbers, one at least");
        }
        Ok(())
    }

    pub(super) fn shape(&self) -> IpAdapterKey {
        (self.adapter, self.images.len(), self.negative.len(), self.scales.clone())
    }
}

/// An IP-Adapter that is put on.
#[derive(Debug)]
pub(super) struct Adapter {
    path: PathBuf,
    params: IpAdapterParams,
    model: Option<Resident<IpAdapter>>,
}

/// The image encoder of the IP-Adapters.
#[derive(Debug)]
pub(super) struct Encoder {
    path: PathBuf,
    config: ClipVisionConfig,
    model: Option<Resident<ClipVision>>,
}

impl Encoder {
    fn open(path: &Path, access: Access) -> Result<Self> {
        let checkpoint = open_encoder(path, access)?;
        let config = match configs::path_beside(path, configs::Kind::CLIP_VISION)? {
            Some(config) => ClipVisionConfig::read(config)?,
            None => ClipVisionConfig::from_shapes(|name| checkpoint.shape(name))?,
        };
        Ok(Self { path: path.to_path_buf(), config, model: None })
    }
}

/// What the image encoder says of a request's pictures: for each [`IpAdapterImage`], `[1, N, D]` of those and of the negative
/// ones.
pub(super) type ImageEmbeds = Vec<(Tensor, Option<Tensor>)>;

/// What the transformer attends to beside the text: for the prompt, and for the negative one.
#[derive(Debug, Default)]
pub(super) struct ImagePrompts {
    pub(super) prompt: Vec<ImagePrompt>,
    pub(super) negative: Vec<ImagePrompt>,
}

impl ImagePrompts {
    /// Those of several drawings, side by side.
    pub(super) fn together(all: &[&Self]) -> Result<Self> {
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

impl Pipeline {
    /// Puts these IP-Adapters on, in place of those that were: files in XLabs' layout. `image_encoder` is CLIP's vision
    /// model, a file or a folder with `config.json` beside. Headers are read; the weights are loaded when a request first
    /// asks for them.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] for one that is no IP-Adapter, or none of this transformer and
    /// image encoder. The IP-Adapters from before then stay.
    pub fn set_ip_adapters(&mut self, paths: &[PathBuf], image_encoder: Option<&Path>) -> Result<()> {
        let access = self.settings.access;
        let encoder = image_encoder.map(|path| Encoder::open(path, access)).transpose()?;
        if encoder.is_none() && !paths.is_empty() {
            let text = "an IP-Adapter needs an image encoder: CLIP's vision model (openai/clip-vit-large-patch14; \
                 --ip-image-encoder)";
            return Err(Error::Request(text.into()));
        }
        let adapter = |path: &PathBuf| {
            let checkpoint = open_adapter(path, access)?;
            let params = IpAdapterParams::from_shapes(|name| checkpoint.shape(name))?;
            params.check_fits(&self.params).map_err(|error| match error {
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
        (self.ip_adapters, self.image_encoder) = (adapters, encoder);
        self.owned.take();
        Ok(())
    }

    /// The sizes of the IP-Adapters.
    pub fn ip_adapters(&self) -> impl Iterator<Item = &IpAdapterParams> {
        self.ip_adapters.iter().map(|adapter| &adapter.params)
    }

    /// Where the IP-Adapters lie, in the order of [`Pipeline::ip_adapters`].
    pub fn ip_adapter_paths(&self) -> impl Iterator<Item = &Path> {
        self.ip_adapters.iter().map(|adapter| adapter.path.as_path())
    }

    /// Lets go of the IP-Adapters' models.
    pub(super) fn release_ip_adapters(&mut self) {
        self.ip_adapters.iter_mut().for_each(|adapter| adapter.model = None);
    }

    pub(super) fn release_image_encoder(&mut self) {
        self.image_encoder.iter_mut().for_each(|encoder| encoder.model = None);
    }

    pub(super) fn check_pictured(&self, request: &Request) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        for IpAdapterImage { adapter, scales, .. } in &request.pictured {
            let count = self.ip_adapters.len();
            let Some(Adapter { params, .. }) = self.ip_adapters.get(*adapter) else {
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

    /// What the image encoder says of a request's pictures.
    pub(super) fn encode_ip_adapter_images(&mut self, request: &Request) -> Result<ImageEmbeds> {
        if request.pictured.is_empty() {
            return Ok(ImageEmbeds::new());
        }
        let kind = self.text_kind();
        let encoder = self.image_encoder.as_mut().ok_or_else(not_loaded)?;
        if encoder.model.is_none() {
            let checkpoint = open_encoder(&encoder.path, self.settings.access)?;
            let build = |vs: tch::nn::Path| ClipVision::new(vs, &encoder.config);
            encoder.model = Some(Resident::load(&self.settings, kind, checkpoint, build)?);
        }
        let resident = encoder.model.as_ref().ok_or_else(not_loaded)?;
        resident.checkpoint.check_unchanged()?;
        let see = |images: &[&Image]| {
            let vector = |image: &&Image| {
                let pixels = resident.model.preprocess(image)?.f_to_device(self.settings.device)?;
                resident.model.forward(&pixels)
            };
            let vectors = images.iter().map(vector).collect::<Result<Vec<_>>>()?;
            Ok::<_, Error>(Tensor::f_cat(&vectors, 0)?.f_unsqueeze(0)?.f_to_kind(self.kind)?) // [1, N, D]
        };
        let black = Image { width: 1, height: 1, rgb: vec![0; 3] };
        let pictured = |one: &IpAdapterImage| {
            let own: Vec<&Image> = one.images.iter().map(Arc::as_ref).collect();
            let mut negative: Vec<&Image> = one.negative.iter().map(Arc::as_ref).collect();
            if negative.is_empty() {
                negative.push(&black);
            }
            Ok((see(&own)?, request.scale().map(|_| see(&negative)).transpose()?))
        };
        request.pictured.iter().map(pictured).collect()
    }

    /// What the transformer attends to of what was seen.
    pub(super) fn image_prompts(&mut self, request: &Request, seen: &ImageEmbeds) -> Result<ImagePrompts> {
        let mut all = ImagePrompts::default();
        for (one, (own, negative)) in request.pictured.iter().zip(seen) {
            let adapter = self.ip_adapters.get_mut(one.adapter).ok_or_else(not_loaded)?;
            if adapter.model.is_none() {
                let checkpoint = open_adapter(&adapter.path, self.settings.access)?;
                let build = |vs: tch::nn::Path| IpAdapter::new(vs, &adapter.params);
                adapter.model = Some(Resident::load(&self.settings, self.kind, checkpoint, build)?);
            }
            let resident = adapter.model.as_ref().ok_or_else(not_loaded)?;
            resident.checkpoint.check_unchanged()?;
            let prompt = |seen| resident.model.prompt(seen, self.params.num_heads, &one.scales);
            all.prompt.push(prompt(own)?);
            all.negative.extend(negative.as_ref().map(prompt).transpose()?);
        }
        Ok(all)
    }

    /// The files of the IP-Adapters.
    pub(super) fn open_ip_adapters(&self) -> Result<Vec<Checkpoint>> {
        self.ip_adapters.iter().map(|adapter| open_adapter(&adapter.path, self.settings.access)).collect()
    }

    /// The file of the IP-Adapters' image encoder, where they have one.
    pub(super) fn open_ip_image_encoder(&self) -> Result<Option<Checkpoint>> {
        let access = self.settings.access;
        self.image_encoder.as_ref().map(|encoder| open_encoder(&encoder.path, access)).transpose()
    }

    /// What becomes of the weights of the IP-Adapters and of their image encoder.
    pub(super) fn pictured_weights(&self) -> Result<Vec<Weights>> {
        let (access, keep) = (self.settings.access, self.settings.keep_quantized);
        let adapter = |adapter: &Checkpoint| Weights::of("IP-Adapter", adapter, self.kind, self.kind, keep);
        let encoder = |encoder: &Encoder| {
            let (checkpoint, kind) = (open_encoder(&encoder.path, access)?, self.text_kind());
            Ok(Weights::of("CLIP vision model", &checkpoint, kind, kind, false))
        };
        let adapters = self.open_ip_adapters()?.iter().map(adapter).collect::<Vec<_>>();
        let encoder = self.image_encoder.iter().map(encoder).collect::<Result<Vec<_>>>()?;
        Ok(adapters.into_iter().chain(encoder).collect())
    }

    /// Which of these are in memory.
    pub(super) fn resident_pictured(&self) -> impl Iterator<Item = bool> {
        let adapters = self.ip_adapters.iter().map(|adapter| adapter.model.is_some());
        adapters.chain(self.image_encoder.iter().map(|encoder| encoder.model.is_some()))
    }
}

fn open_adapter(path: &Path, access: Access) -> Result<Checkpoint> {
    resident::open(path, access, resident::IP_ADAPTER, |family| *family == Family::IpAdapter)
}

/// CLIP's vision model, alone or in a file with its text model.
fn open_encoder(path: &Path, access: Access) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path, access)?;
    // In a whole CLIP, the text model is what is recognised.
    let classes = ["vision_model.embeddings.class_embedding", "visual.class_embedding"];
    let has_class =
        |prefix: &str| classes.iter().any(|name| checkpoint.shape(&format!("{prefix}{name}")).is_some());
    let prefixes = checkpoint.contained().into_iter().map(|model| model.prefix);
    match prefixes.chain([String::new()]).find(|prefix| has_class(prefix)) {
        Some(prefix) => Ok(checkpoint.part(&prefix, &Family::ClipVision)),
        None => Err(resident::other_model(&checkpoint, resident::CLIP_VISION)),
    }
}
