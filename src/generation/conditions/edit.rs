//! Pictures that a request begins with: what they are to a model, and what it can be asked to do with them.

use crate::choice::choice;
use crate::error::{Error, ParameterProblem, Result};
use crate::family::{Condition, ModelFamily};
use crate::generation::loader::Loader;
use crate::image::{Image, Mask};
use crate::models::TransformerParams;

choice! {
    /// How pictures come into a drawing.
    pub enum Role {
        /// It is noised and drawn anew from there: image-to-image, and with a mask inpainting. Any model that draws from text
        /// does it.
        Init = "start";
        /// Its patches stand beside those that are drawn, for Kontext to look at.
        Reference = "reference";
        /// What a mask has not chosen is seen by Fill, which draws the rest.
        Fill = "fill";
        /// Edges or depths, which the models of Canny and Depth follow.
        Control = "control";
    }
}

impl Role {
    /// What pictures are to a model of this name. Kontext's weights have the shapes of dev's: only the name tells.
    pub fn of_model(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        let mut drawings = ModelFamily::drawings();
        let reads = drawings.any(|(_, drawing)| name.contains(drawing.references.model_name));
        reads.then_some(Self::Reference)
    }
}

choice! {
    /// What of a picture a drawing follows.
    #[derive(Default)]
    pub enum ControlPreprocess {
        /// The picture as it is: edges or depths already.
        Picture = "picture", default;
        /// Its edges as OpenCV's Canny finds them, on which Canny-dev was trained.
        Canny = "canny";
        /// How far away its pixels are, as [`Parts::depth`](crate::generation::Parts::depth) says, on which Depth-dev was trained.
        Depth = "depth";
    }
}

/// Pictures that a request begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Of any size. Those of [`Role::Reference`] may be several, each of which is resized to one of Kontext's sizes; the
    /// one of any other role is resized to the request's size.
    pub images: Vec<Image>,
    /// What is drawn anew; without it, all of the picture. Of the first picture's size. [`Role::Init`] may have one,
    /// [`Role::Fill`] needs one.
    pub mask: Option<Mask>,
    /// How much of the way from noise to picture [`Role::Init`] walks: 1 forgets the picture, near 0 it stays as it is.
    pub strength: f64,
    /// What they are to the model; `None` takes the only role that its input channels allow, and else [`Role::Init`].
    pub role: Option<Role>,
    /// References stay as large as they are, but for the rest of a division by 16.
    pub keep_size: bool,
    /// What [`Role::Control`] follows of the picture.
    pub follow: ControlPreprocess,
}

impl Edit {
    /// The strength of image-to-image where nothing is said: diffusers' default.
    pub const STRENGTH: f64 = 0.6;

    /// Of these pictures, all of them anew, with the role that the model has for them.
    pub fn new(images: Vec<Image>) -> Self {
        Self {
            images,
            mask: None,
            strength: 1.0,
            role: None,
            keep_size: false,
            follow: ControlPreprocess::Picture,
        }
    }

    pub(in crate::generation) fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        let Some(first) = self.images.first() else { return wrong("no picture to begin with".into()) };
        if !(self.strength > 0.0 && self.strength <= 1.0) {
            let rest = format!(" must be a number above 0 and at most 1, not {}", self.strength);
            return Err(ParameterProblem::of_value("strength", rest).into());
        }
        if let Some(mask) = &self.mask
            && (mask.width, mask.height) != (first.width, first.height)
        {
            let size = |width, height| format!("{width}x{height}");
            return wrong(format!(
                "the mask is {} and the picture {}: they must be of one size",
                size(mask.width, mask.height),
                size(first.width, first.height)
            ));
        }
        if self.mask.as_ref().is_some_and(|mask| !mask.chosen.iter().any(|&pixel| pixel >= Mask::CHOSEN)) {
            return wrong("the mask chooses nothing: what is drawn anew must be white in it".into());
        }
        Ok(())
    }

    /// The first of so many steps that is walked. As diffusers counts it: a strength of 1 walks all.
    pub(in crate::generation) fn first_step(&self, steps: usize) -> usize {
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
        let sizes = ModelFamily::Flux1.reference_sizes().iter().copied();
        let nearest = sizes.min_by(|&a, &b| apart(a).total_cmp(&apart(b)));
        nearest.unwrap_or((1024, 1024))
    }
}

/// What a model can be asked to do with pictures.
#[derive(Debug, Clone, Copy)]
pub(in crate::generation) struct EditRules<'a> {
    transformer: &'a TransformerParams,
    /// What pictures are to the model, where the class of its pipeline tells.
    usual: Option<Role>,
    has_depth_model: bool,
}

impl<'a> EditRules<'a> {
    pub(in crate::generation) fn new(
        loader: &Loader,
        transformer: &'a TransformerParams,
        usual: Option<Role>,
    ) -> Self {
        Self { transformer, usual, has_depth_model: loader.parts.depth.is_some() }
    }

    /// What the pictures of an edit are to this model.
    ///
    /// # Errors
    /// [`Error::Request`] where the edit says something that the model cannot be asked.
    pub(in crate::generation) fn role(&self, edit: &Edit) -> Result<Role> {
        let (only, wanted) = (self.only_role()?, edit.role);
        let role = wanted.or(only).or(self.usual).unwrap_or(Role::Init);
        let wrong = |text: String| Err(Error::Request(text));
        let fits = match only {
            Some(only) => role == only,
            None => matches!(role, Role::Init | Role::Reference),
        };
        let (family, variant) = (self.transformer.family(), self.transformer.variant());
        if !fits {
            let takes = only.map_or("start or reference".into(), |only| only.to_string());
            return wrong(format!(
                "{family} {variant} does not take a picture as {role}: it takes it as {takes}"
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
            _ if edit.follow == ControlPreprocess::Depth && !self.has_depth_model => {
                let expected = "Depth Anything, such as depth-anything-large-hf";
                Err(Error::UnnamedPart { purpose: "a drawing by depths", part: "depth model", expected })
            }
            _ => Ok(role),
        }
    }

    /// The only role that the model's input channels leave, for those that do not draw from text alone.
    ///
    /// # Errors
    /// [`Error::Config`] for channels that no model of the family has.
    pub(in crate::generation) fn only_role(&self) -> Result<Option<Role>> {
        let (channels, drawn) = (self.transformer.in_channels(), self.transformer.out_channels());
        let family = self.transformer.family();
        match family.condition(channels, drawn) {
            Some(Condition::None) => Ok(None),
            Some(Condition::Latent) => Ok(Some(Role::Control)),
            Some(Condition::LatentAndMask) => Ok(Some(Role::Fill)),
            None => Err(Error::Config(format!(
                "no {family} that is known has {channels} input channels where {drawn} are drawn"
            ))),
        }
    }

    /// Whether a request with these pictures says all that the model draws from.
    pub(in crate::generation) fn check(&self, edit: Option<&Edit>) -> Result<()> {
        match (edit, self.only_role()?) {
            (Some(edit), _) => self.role(edit).map(|_| ()),
            (None, None) => Ok(()),
            (None, Some(role)) => {
                let with = if role == Role::Fill { "a picture and a mask" } else { "a picture" };
                let (family, variant) = (self.transformer.family(), self.transformer.variant());
                Err(Error::Request(format!("{family} {variant} draws from {with}: the request has no edit")))
            }
        }
    }

    /// Tokens that these pictures add to the sequence.
    pub(in crate::generation) fn reference_tokens(&self, edit: Option<&Edit>) -> i64 {
        let Some(edit) = edit else { return 0 };
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
}
