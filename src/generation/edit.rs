//! Pictures that a request begins with.

use tch::Tensor;

use super::ip_adapter::ImagePrompts;
use super::{Conditions, ControlPreprocess, Edit, Pipeline, Request, Role};
use crate::error::{Error, Result};
use crate::family::ModelFamily;
use crate::image::{Image, Mask};
use crate::math;

/// What a picture is begun with, as patches `[B, L, C]`.
pub(super) struct InitLatents {
    patches: Tensor,
    /// 1 where it is drawn anew, 0 where it is kept.
    mask: Option<Tensor>,
}

impl InitLatents {
    /// Those of several pictures, side by side.
    pub(super) fn together(starts: &[&Self]) -> Result<Self> {
        let patches: Vec<_> = starts.iter().map(|start| &start.patches).collect();
        let masks: Option<Vec<_>> = starts.iter().map(|start| start.mask.as_ref()).collect();
        let mask = masks.map(|masks| math::cat(&masks, 0)).transpose()?;
        Ok(Self { patches: math::cat(&patches, 0)?, mask })
    }

    /// What the picture is at a time, under this noise.
    ///
    /// Source: diffusers 0.42.1, `FlowMatchEulerDiscreteScheduler.scale_noise`.
    pub(super) fn noised(&self, noise: &Tensor, time: f64) -> Result<Tensor> {
        Ok(noise.f_mul_scalar(time)?.f_add(&self.patches.f_mul_scalar(1.0 - time)?)?)
    }

    /// The patches, and the picture's own where the mask keeps it.
    ///
    /// Source: diffusers 0.42.1, `pipelines/flux/pipeline_flux_inpaint.py`, the end of the loop.
    pub(super) fn keep_unmasked(&self, img: &Tensor, noise: &Tensor, time: f64) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => {
                let kept = mask.f_neg()?.f_add_scalar(1.0)?.f_mul(&self.noised(noise, time)?)?;
                Ok(kept.f_add(&mask.f_mul(img)?)?)
            }
            None => Ok(img.shallow_clone()),
        }
    }
}

/// What a drawing begins with beside its prompt.
#[derive(Default)]
pub(super) struct EditConditions {
    pub(super) start: Option<InitLatents>,
    pub(super) conditions: Conditions,
    /// What ControlNets follow, in the order of [`Request::controls`].
    pub(super) controls: Vec<Tensor>,
    /// What the transformer attends to beside the text.
    pub(super) image_prompts: ImagePrompts,
}

/// Kontext was trained on pictures of these sizes.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/util.py`, `PREFERED_KONTEXT_RESOLUTIONS`.
const KONTEXT_SIZES: [(u32, u32); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

/// From which changes of brightness on there may be an edge, and is one.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/modules/image_embedders.py`, `CannyImageEncoder`.
pub(super) const CANNY: (i32, i32) = (50, 200);

/// Pixels of an edge of the latent.
const LATENT: i64 = 8;

impl Edit {
    /// The first of so many steps that is walked. As diffusers counts it: a strength of 1 walks all.
    pub(super) fn first_step(&self, steps: usize) -> usize {
        (steps as f64 - (steps as f64 * self.strength).min(steps as f64)).max(0.0) as usize
    }

    /// The size that a reference is resized to: of Kontext's the one whose sides are most alike, or its own.
    pub fn reference_size(&self, image: &Image) -> (u32, u32) {
        if self.keep_size {
            let side = |pixels: u32| (pixels / 16 * 16).max(16);
            return (side(image.width), side(image.height));
        }
        let shape = |(width, height): (u32, u32)| f64::from(width) / f64::from(height);
        let own = shape((image.width.max(1), image.height.max(1)));
        let apart = |size: (u32, u32)| (shape(size) - own).abs();
        let nearest = KONTEXT_SIZES.into_iter().min_by(|&a, &b| apart(a).total_cmp(&apart(b)));
        nearest.unwrap_or((1024, 1024))
    }
}

impl Pipeline {
    /// What the pictures of an edit are to this model.
    ///
    /// # Errors
    /// [`Error::Request`] where the edit says something that the model cannot be asked.
    pub fn role(&self, edit: &Edit) -> Result<Role> {
        let (only, wanted) = (self.only_role()?, edit.role);
        let role = wanted.or(only).or(self.usual_role()).unwrap_or(Role::Start);
        let wrong = |text: String| Err(Error::Request(text));
        let fits = match only {
            Some(only) => role == only,
            None => matches!(role, Role::Start | Role::Reference),
        };
        let variant = self.params.variant();
        if !fits {
            let takes = only.map_or("start or reference".into(), |only| only.to_string());
            return wrong(format!(
                "FLUX.1 {variant} does not take a picture as {role}: it takes it as {takes}"
            ));
        }
        if edit.images.len() > 1 && role != Role::Reference {
            let count = edit.images.len();
            return wrong(format!("one picture is taken as {role}, not {count}; references may be several"));
        }
        match (role, edit.mask.is_some()) {
            (Role::Fill, false) => wrong("Fill needs a mask of what it shall draw".into()),
            (Role::Reference | Role::Control, true) => {
                wrong(format!("a picture as {role} has no mask and no room around it: all is drawn anew"))
            }
            _ if edit.follow != ControlPreprocess::Picture && role != Role::Control => {
                wrong(format!("edges and depths are for a picture as control, not as {role}"))
            }
            _ if edit.follow == ControlPreprocess::Depth && self.parts.depth.is_none() => {
                let expected = "Depth Anything, such as depth-anything-large-hf";
                Err(Error::UnnamedPart { purpose: "a drawing by depths", part: "depth model", expected })
            }
            _ => Ok(role),
        }
    }

    /// What pictures are to a model of this kind, where the class of its pipeline tells
    /// ([`Parts::model_index`](super::Parts::model_index)).
    pub fn usual_role(&self) -> Option<Role> {
        self.folder.role
    }

    /// The only role that the model's input channels leave, for those that do not draw from text alone.
    ///
    /// # Errors
    /// [`Error::Config`] for channels that no FLUX.1 has.
    pub fn only_role(&self) -> Result<Option<Role>> {
        let (channels, drawn) = (self.params.in_channels, self.params.out_channels);
        match channels {
            _ if channels == drawn => Ok(None),
            _ if channels == 2 * drawn => Ok(Some(Role::Control)),
            // The picture's patches, and a number of the mask for each of their pixels.
            _ if channels == 2 * drawn + 4 * LATENT * LATENT => Ok(Some(Role::Fill)),
            _ => Err(Error::Config(format!(
                "no FLUX.1 that is known has {channels} input channels where {drawn} are drawn"
            ))),
        }
    }

    /// Whether a request says all that the model draws from.
    pub(super) fn check_given(&self, request: &Request) -> Result<()> {
        self.check_controls(request)?;
        self.check_pictured(request)?;
        match (request.edit.as_deref(), self.only_role()?) {
            (Some(edit), _) => self.role(edit).map(|_| ()),
            (None, None) => Ok(()),
            (None, Some(role)) => {
                let with = if role == Role::Fill { "a picture and a mask" } else { "a picture" };
                let variant = self.params.variant();
                Err(Error::Request(format!("FLUX.1 {variant} draws from {with}: the request has no edit")))
            }
        }
    }

    /// The pictures that a request begins with, encoded.
    pub(super) fn given(&self, request: &Request) -> Result<EditConditions> {
        let mut given =
            EditConditions { controls: self.embedded_controls(request)?, ..EditConditions::default() };
        let Some(edit) = request.edit.as_deref() else { return Ok(given) };
        let role = self.role(edit)?;
        let [first, ..] = &edit.images[..] else {
            return Err(Error::Request("no picture to begin with".into()));
        };
        let (width, height) = (request.width as u32, request.height as u32);
        let picture = |image: &Image| image.resize(width, height).to_tensor();
        match role {
            Role::Start => {
                let latent = self.encode_picture(&picture(first)?)?;
                let size = latent.size();
                let mask = edit.mask.as_ref().map(|mask| {
                    // As diffusers: each number of the latent takes the mask's pixel at its corner.
                    let mask = self.mask(mask, (width, height))?;
                    let mask = mask.f_upsample_nearest2d([size[2], size[3]], None, None)?;
                    ModelFamily::Flux1
                        .latent()
                        .pack(&mask.f_repeat([1, size[1], 1, 1])?.f_to_kind(self.kind)?)
                });
                given.start = Some(InitLatents { patches: self.patches(&latent)?, mask: mask.transpose()? });
            }
            Role::Reference => given.conditions.img_cond_seq = Some(self.references(edit)?),
            Role::Control => {
                let image = first.resize(width, height);
                let followed = match edit.follow {
                    ControlPreprocess::Picture => image.to_tensor()?,
                    ControlPreprocess::Canny => image.canny(CANNY.0, CANNY.1).to_tensor()?,
                    ControlPreprocess::Depth => self.depths(&image)?,
                };
                let latent = self.encode_picture(&followed)?;
                given.conditions.img_cond = Some(self.patches(&latent)?);
            }
            Role::Fill => {
                let Some(mask) = &edit.mask else { return Err(Error::Request("Fill needs a mask".into())) };
                let mask = self.mask(mask, (width, height))?;
                let seen = picture(first)?.f_to_device(self.settings.device)?.f_mul(&(1.0 - &mask))?;
                let patches = self.patches(&self.encode_picture(&seen)?)?;
                let mask = fold(&mask)?.f_to_kind(self.kind)?;
                given.conditions.img_cond = Some(Tensor::f_cat(&[patches, mask], -1)?);
            }
        }
        Ok(given)
    }

    /// The patches of all references, one after the other, and their positions. The first lies over the picture, one
    /// layer behind it; each further one beside or below those before it, wherever the whole stays more of a square.
    ///
    /// Source: of one, `black-forest-labs/flux` at 802fb47, `src/flux/sampling.py`, `prepare_kontext`; of several, what
    /// ComfyUI does by default.
    fn references(&self, edit: &Edit) -> Result<(Tensor, Tensor)> {
        let (mut all, mut ids) = (Vec::new(), Vec::new());
        let (mut height, mut width) = (0, 0);
        for image in &edit.images {
            let (w, h) = edit.reference_size(image);
            let latent = self.encode_picture(&image.resize(w, h).to_tensor()?)?;
            let (h, w) = (latent.size()[2], latent.size()[3]);
            let beside = h + height > w + width;
            let (down, across) = if beside { (0, width) } else { (height, 0) };
            (height, width) = (height.max(down + h), width.max(across + w));
            let place = Tensor::from_slice(&[1.0, down as f32 / 2.0, across as f32 / 2.0]);
            ids.push(ModelFamily::Flux1.latent().image_ids(1, h, w).f_add(&place)?);
            all.push(self.patches(&latent)?);
        }
        let ids = Tensor::f_cat(&ids, 1)?.f_to_device(self.settings.device)?;
        Ok((Tensor::f_cat(&all, 1)?, ids))
    }

    /// How far away the pixels of a picture are, `[1, 3, H, W]` in −1..1.
    fn depths(&self, image: &Image) -> Result<Tensor> {
        let Some(depth) = &self.depth else {
            return Err(Error::Config("the depth model is not loaded".into()));
        };
        depth.checkpoint.check_unchanged()?;
        let depths = depth.model.map(image)?;
        if !bool::try_from(depths.isfinite().all())? {
            let hint = "the depth model's file is damaged";
            return Err(Error::NotFinite { what: "the depths", hint });
        }
        Ok(depths)
    }

    /// Pixels `[1, 3, H, W]` to the latent `[1, 16, H/8, W/8]`.
    pub(super) fn encode_picture(&self, pixels: &Tensor) -> Result<Tensor> {
        let autoencoder = self.autoencoder()?;
        autoencoder.checkpoint.check_unchanged()?;
        let x = pixels.f_to_device(self.settings.device)?.f_to_kind(autoencoder.kind)?;
        autoencoder.model.encode(&x, self.settings.vae_tile)
    }

    pub(super) fn patches(&self, latent: &Tensor) -> Result<Tensor> {
        ModelFamily::Flux1.latent().pack(&latent.f_to_kind(self.kind)?)
    }

    fn mask(&self, mask: &Mask, (width, height): (u32, u32)) -> Result<Tensor> {
        Ok(mask.resize(width, height).to_tensor()?.f_to_device(self.settings.device)?)
    }

    /// Tokens that a request's pictures add to the sequence.
    pub(super) fn reference_tokens(&self, request: &Request) -> i64 {
        let Some(edit) = request.edit.as_deref() else { return 0 };
        if !self.role(edit).is_ok_and(|role| role == Role::Reference) {
            return 0;
        }
        let tokens = |image| {
            let (width, height) = edit.reference_size(image);
            i64::from(width / 16) * i64::from(height / 16)
        };
        edit.images.iter().map(tokens).sum()
    }
}

/// A mask `[1, 1, H, W]` as Fill reads it: the 8 × 8 pixels of each number of the latent become channels, and those
/// patches.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/sampling.py`, `prepare_fill`.
fn fold(mask: &Tensor) -> Result<Tensor> {
    let (h, w) = (mask.size()[2] / LATENT, mask.size()[3] / LATENT);
    let mask = mask.f_reshape([1, h, LATENT, w, LATENT])?.permute([0, 2, 4, 1, 3]);
    ModelFamily::Flux1.latent().pack(&mask.f_reshape([1, LATENT * LATENT, h, w])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(width: u32, height: u32) -> Image {
        Image { width, height, rgb: vec![0; 3 * (width * height) as usize] }
    }

    #[test]
    fn a_reference_takes_the_size_of_the_nearest_shape_or_keeps_its_own() {
        let edit = Edit::new(Vec::new());
        let sizes = [(64, 64), (500, 1200), (1200, 500), (1, 100), (1920, 1080)];
        let taken = sizes.map(|(width, height)| edit.reference_size(&sized(width, height)));
        assert_eq!(taken, [(1024, 1024), (672, 1568), (1568, 672), (672, 1568), (1392, 752)]);
        let kept = Edit { keep_size: true, ..Edit::new(Vec::new()) };
        assert_eq!(kept.reference_size(&sized(70, 50)), (64, 48));
        assert_eq!(kept.reference_size(&sized(9, 200)), (16, 192));
    }

    #[test]
    fn a_mask_is_folded_as_the_official_code_does_it() {
        // Each pixel is its own number: which becomes which channel of which patch can be read off.
        let (h, w) = (32, 48);
        let mask = Tensor::arange(h * w, (tch::Kind::Float, tch::Device::Cpu)).reshape([1, 1, h, w]);
        let folded = fold(&mask).unwrap();
        assert_eq!(folded.size(), [1, (h / 16) * (w / 16), 256]);
        for (patch, channel) in [(0, 0), (4, 37), (5, 255), (2, 130)] {
            let (row, column) = (patch / (w / 16), patch % (w / 16));
            let (in_latent, corner) = (channel / 4, channel % 4);
            let y = row * 16 + corner / 2 * 8 + in_latent / 8;
            let x = column * 16 + corner % 2 * 8 + in_latent % 8;
            assert_eq!(folded.double_value(&[0, patch, channel]), (y * w + x) as f64, "{patch} {channel}");
        }
    }
}
