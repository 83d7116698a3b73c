//! The models of a pipeline, and what several of them do together.

use tch::{Kind, Tensor};

use super::autoencoder::Autoencoder;
use super::conditions::control::ControlNets;
use super::conditions::depth::DepthModel;
use super::conditions::edit::EditRules;
use super::conditions::edit_inputs;
use super::conditions::ip_adapter::{ImageEmbeds, IpAdapters};
use super::conditions::redux::{self, ReduxEncoder};
use super::drawing::Conditioning;
use super::loader::Loader;
use super::loras::{LoraFile, Loras};
use super::opened::is_tiny;
use super::preview::Previewer;
use super::text::{Encoded, Text, TextEncoders};
use super::transformer::Transformer;
use super::{PartKind, Request, Role, configs};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::models::TransformerParams;

/// Every model of a pipeline. Each is loaded when it is first needed.
#[derive(Debug)]
pub(super) struct Models {
    pub(super) text: TextEncoders,
    pub(super) redux: ReduxEncoder,
    pub(super) ip_adapters: IpAdapters,
    pub(super) transformer: Transformer,
    pub(super) controlnets: ControlNets,
    pub(super) depth: DepthModel,
    pub(super) autoencoder: Autoencoder,
    pub(super) previewer: Previewer,
    pub(super) loras: Loras,
}

/// The file of a part, opened under the official names.
#[derive(Debug)]
pub(super) struct OpenPart {
    pub(super) part: PartKind,
    pub(super) checkpoint: Checkpoint,
    /// The kind of its weights in memory.
    pub(super) kind: Kind,
}

impl Models {
    /// Reads the tokenizers.
    pub(super) fn open(loader: &Loader, params: TransformerParams) -> Result<Self> {
        Ok(Self {
            text: TextEncoders::open(&loader.parts)?,
            redux: ReduxEncoder::default(),
            ip_adapters: IpAdapters::default(),
            transformer: Transformer::new(params),
            controlnets: ControlNets::default(),
            depth: DepthModel::default(),
            autoencoder: Autoencoder::default(),
            previewer: Previewer::default(),
            loras: Loras::default(),
        })
    }

    /// Lets go of every model.
    pub(super) fn release(&mut self) {
        self.release_encoders();
        self.ip_adapters.release();
        self.transformer.release();
        self.controlnets.release();
        self.depth.release();
        self.autoencoder.release();
        self.previewer.release();
    }

    /// Lets go of what encodes prompts, and pictures for prompts.
    pub(super) fn release_encoders(&mut self) {
        self.text.release();
        self.redux.release();
        self.ip_adapters.release_encoder();
    }

    /// Whether a part is in memory, so that it takes no more of it; of several, whether all are.
    pub(super) fn is_loaded(&self, part: PartKind) -> bool {
        match part {
            PartKind::Transformer => self.transformer.is_loaded(),
            PartKind::Autoencoder => self.autoencoder.is_loaded(),
            PartKind::PreviewDecoder => self.previewer.is_loaded(),
            PartKind::ImageEncoder | PartKind::Redux => self.redux.is_loaded(),
            PartKind::ControlNet => self.controlnets.are_loaded(),
            PartKind::IpAdapter | PartKind::ClipVision => self.ip_adapters.are_loaded(),
            other => self.text.is_loaded(other),
        }
    }

    /// Places LoRAs on the models in place of those from before; returns a line for all that was left out.
    pub(super) fn set_loras(&mut self, loader: &Loader, files: &[LoraFile]) -> Result<Vec<String>> {
        let (loras, params, skipped) = Loras::place(loader, files)?;
        self.loras = loras;
        self.transformer.adapt(&self.loras, params)?;
        self.text.adapt(&self.loras)?;
        Ok(skipped)
    }

    /// Encodes the prompts of a request, with the pictures of Redux behind each. The negative prompt stands alone, as in
    /// diffusers and in ComfyUI.
    pub(super) fn encode_prompts(&mut self, loader: &Loader, request: &Request) -> Result<Vec<Text>> {
        let redux = request.redux.as_deref();
        let tokens = redux.map(|redux| self.redux.encode(loader, redux)).transpose()?;
        let mut encode =
            |for_clip: &str, for_t5: &str| self.text.encode(loader, &self.loras, (for_clip, for_t5), request);
        let mut text = |prompt: &String| {
            let mut encoded = match redux {
                Some(redux) if redux.without_text => no_text(loader, &self.transformer.params, request)?,
                _ => encode(prompt, request.prompt_2.as_deref().unwrap_or(prompt))?,
            };
            if let (Some(redux), Some(tokens)) = (redux, &tokens) {
                let vec = encoded.vec.ok_or(Error::MissingPooledText)?;
                let (txt, vec) = redux::mix((encoded.txt, vec), redux, tokens)?;
                encoded = Encoded { txt, vec: Some(vec), warnings: encoded.warnings };
            }
            let negative = request.scale().and(request.negative_prompt.as_deref());
            let negative = negative.map(|negative| encode(negative, negative)).transpose()?;
            Ok(Text { prompt: encoded, negative })
        };
        request.prompts.iter().map(&mut text).collect()
    }

    /// Whether the autoencoder encodes any of a request's pictures.
    pub(super) fn encodes(&self, request: &Request) -> bool {
        let needs_latent = |control| self.controlnets.needs_latent(control);
        request.edit.is_some() || request.controls.iter().any(needs_latent)
    }

    /// Encodes what a request's pictures are drawn from beside its prompts.
    pub(super) fn conditioning(
        &mut self,
        loader: &Loader,
        request: &Request,
        embeds: &ImageEmbeds,
        usual_role: Option<Role>,
    ) -> Result<Conditioning> {
        let params = &self.transformer.params;
        let image_prompts = self.ip_adapters.prompts(loader, &request.pictured, embeds, params)?;
        let size = (request.width as u32, request.height as u32);
        let controls = self.controlnets.embed(loader, &self.autoencoder, &request.controls, size)?;
        let mut conditioning = Conditioning { controls, image_prompts, ..Conditioning::default() };
        if let Some(edit) = request.edit.as_deref() {
            let role = EditRules::new(loader, params, usual_role).role(edit)?;
            let encoded = edit_inputs::encode(loader, &self.autoencoder, &self.depth, (edit, role), size)?;
            (conditioning.init, conditioning.conditions) = encoded;
        }
        Ok(conditioning)
    }

    /// Makes a preview of patches `[1, L, C]`.
    pub(super) fn preview(&self, loader: &Loader, patches: &Tensor, request: &Request) -> Result<Image> {
        self.previewer.preview(loader, &self.autoencoder, patches, (request.height, request.width))
    }

    /// Returns every part that has weights; the transformer is the first.
    pub(super) fn open_parts(&self, loader: &Loader) -> Result<Vec<OpenPart>> {
        let (kind, text) = (loader.kind, loader.text_kind());
        let open = |part, checkpoint, kind| OpenPart { part, checkpoint, kind };
        let autoencoder = |part, checkpoint| {
            let kind = loader.autoencoder_kind(&checkpoint);
            open(part, checkpoint, kind)
        };
        let mut parts = vec![open(PartKind::Transformer, loader.open_transformer()?.0, kind)];
        let encoders = TextEncoders::open_parts(loader)?.into_iter();
        parts.extend(encoders.map(|(part, checkpoint)| open(part, checkpoint, text)));
        parts.push(autoencoder(PartKind::Autoencoder, loader.open_autoencoder()?));
        let decoder = loader.open_preview_decoder()?;
        parts.extend(decoder.map(|(checkpoint, _)| autoencoder(PartKind::PreviewDecoder, checkpoint)));
        if loader.parts.redux.is_some() && loader.parts.image_encoder.is_some() {
            parts.push(open(PartKind::ImageEncoder, loader.open_image_encoder()?, text));
            parts.push(open(PartKind::Redux, loader.open_redux()?, text));
        }
        if let Some(path) = &loader.parts.depth {
            parts.push(open(PartKind::Depth, loader.open_part(PartKind::Depth, path)?, Kind::Float));
        }
        let controlnets = self.controlnets.open(loader)?.into_iter();
        parts.extend(controlnets.map(|checkpoint| open(PartKind::ControlNet, checkpoint, kind)));
        let adapters = self.ip_adapters.open(loader)?.into_iter();
        parts.extend(adapters.map(|checkpoint| open(PartKind::IpAdapter, checkpoint, kind)));
        let encoder = self.ip_adapters.open_encoder(loader)?;
        parts.extend(encoder.map(|checkpoint| open(PartKind::ClipVision, checkpoint, text)));
        Ok(parts)
    }

    /// What the settings beside the weights say that is not obeyed, in words. All of them are read.
    pub(super) fn config_warnings(&self, loader: &Loader) -> Result<Vec<String>> {
        let parts = &loader.parts;
        let mut warnings =
            configs::transformer(loader.family, &parts.transformer, &loader.open_transformer()?.0)?.1;
        TextEncoders::check_configs(loader)?;
        let autoencoder = (loader.open_autoencoder()?, parts.autoencoder.as_path());
        for (checkpoint, path) in [Some(autoencoder), loader.open_preview_decoder()?].into_iter().flatten() {
            warnings.extend(match is_tiny(&checkpoint) {
                true => configs::tiny_autoencoder(path, &checkpoint)?.1,
                false => configs::autoencoder(loader.family, path, &checkpoint)?.1,
            });
        }
        for (path, net) in self.controlnets.paths().zip(self.controlnets.open(loader)?) {
            warnings.extend(configs::controlnet(path, &net)?.1);
        }
        Ok(warnings)
    }
}

/// What stands for text where there is none: zeros.
fn no_text(loader: &Loader, transformer: &TransformerParams, request: &Request) -> Result<Encoded> {
    let options = (loader.kind, loader.settings.device);
    let length = request.max_sequence_length.unwrap_or(512) as i64;
    let txt = Tensor::f_zeros([1, length, transformer.context_in_dim()], options)?;
    let vec = transformer.vec_in_dim().map(|width| Tensor::f_zeros([1, width], options)).transpose()?;
    Ok(Encoded { txt, vec, warnings: Vec::new() })
}
