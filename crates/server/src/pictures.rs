//! The pictures of a request: as they come, and what becomes of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::able::{Led, Plan};
use super::asked::Asked;
use super::coding;
use super::problem::Problem;
use super::state::{Charge, Shared};
use super::upload::{self, Bounds};
use tch_flux::generation::{Control, Edit, IpAdapterImage, Redux, ReduxImage, Request, Role};
use tch_flux::image::{self, DecodeError, Image, Mask};

/// Base64 as people send it: with what fills it up to four letters, or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// No picture's file has fewer bytes.
const SHORTEST: usize = 10;

/// Pictures by their fields: files, base64, or data URIs.
#[derive(Debug, Default)]
pub(super) struct Sources(BTreeMap<&'static str, Vec<Bytes>>);

impl Sources {
    /// Those of a field.
    pub(super) fn of(&mut self, name: &'static str) -> &mut Vec<Bytes> {
        self.0.entry(name).or_default()
    }

    pub(super) fn is_empty_of(&self, name: &str) -> bool {
        self.0.get(name).is_none_or(Vec::is_empty)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts(self.0.iter().map(|(name, files)| (*name, files.len())).collect())
    }
}

/// How many pictures each field has.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<&'static str, usize>);

impl Counts {
    pub(super) fn of(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// The request with its pictures, decoded as far as the bounds let them be.
pub(super) async fn put_on(
    shared: &Shared,
    request: Request,
    asked: &Asked,
    sources: Sources,
    plan: Plan,
    charge: &Arc<Charge>,
) -> Result<Request, Problem> {
    if sources.0.values().all(Vec::is_empty) {
        return Ok(request);
    }
    let most = shared.options.image_bytes;
    let bounds = Bounds { pixels: shared.options.image_pixels, charge: charge.clone() };
    let asked = asked.clone();
    let work = move || Decoder { sources, bounds, most }.put_on(request, &asked, plan);
    coding::aside(&shared.coders, work).await
}

struct Decoder {
    sources: Sources,
    bounds: Bounds,
    /// Bytes of a picture's file.
    most: usize,
}

impl Decoder {
    fn put_on(&mut self, mut request: Request, asked: &Asked, plan: Plan) -> Result<Request, Problem> {
        if let Some(role) = plan.role {
            let edit = self.edit(asked, role)?;
            request.edit = Some(Arc::new(edit));
        }
        let controls = self.images("control_image")?.into_iter().zip(plan.led);
        let control = |(image, led): (Image, Led)| {
            let Led { net, strength, mode, start, end } = led;
            Control { net, image: Arc::new(image), strength, mode, start, end, canny: asked.control.canny }
        };
        request.controls = controls.map(control).collect();
        request.pictured = self.pictured(plan.liked)?;
        let images = self.images("redux_image")?.into_iter().zip(plan.seen);
        let images: Vec<_> =
            images.map(|(image, (strength, pooled))| ReduxImage { image, strength, pooled }).collect();
        if !images.is_empty() {
            let (mix, without_text) = (asked.look.mix.unwrap_or_default(), asked.look.without_text);
            request.redux = Some(Arc::new(Redux { images, mix, without_text }));
        }
        Ok(request)
    }

    fn edit(&mut self, asked: &Asked, role: Role) -> Result<Edit, Problem> {
        let images = self.images("image")?;
        let mask = self.mask()?;
        if let (Some(mask), Some(first)) = (&mask, images.first())
            && (mask.width, mask.height) != (first.width, first.height)
        {
            let (mask, first) = ((mask.width, mask.height), (first.width, first.height));
            let text = format!("the mask is {}x{}, but the picture {}x{}", mask.0, mask.1, first.0, first.1);
            return Err(Problem::invalid("invalid_mask", text).param("mask"));
        }
        let strength = asked.strength.unwrap_or(Edit::STRENGTH);
        let (keep_size, follow) = (asked.keep_size, asked.follow);
        Ok(Edit { mask, strength, role: Some(role), keep_size, follow, ..Edit::new(images) })
    }

    /// One IP-Adapter has all pictures; of several, each has its own.
    fn pictured(&mut self, liked: Vec<(usize, Vec<f64>)>) -> Result<Vec<IpAdapterImage>, Problem> {
        let shared = |images: Vec<Image>| images.into_iter().map(Arc::new).collect::<Vec<_>>();
        let images = shared(self.images("ip_adapter_image")?);
        let negative = shared(self.images("negative_ip_adapter_image")?);
        let several = liked.len() > 1;
        let pictured = |(i, (adapter, scales)): (usize, (usize, Vec<f64>))| {
            let images = if several { images.get(i).cloned().into_iter().collect() } else { images.clone() };
            IpAdapterImage { adapter, images, negative: negative.clone(), scales }
        };
        Ok(liked.into_iter().enumerate().map(pictured).collect())
    }

    fn images(&mut self, name: &'static str) -> Result<Vec<Image>, Problem> {
        let files = std::mem::take(self.sources.of(name));
        files.into_iter().map(|file| upload::image(&self.file(name, file)?, name, &mut self.bounds)).collect()
    }

    fn mask(&mut self) -> Result<Option<Mask>, Problem> {
        let files = std::mem::take(self.sources.of("mask"));
        files
            .into_iter()
            .next()
            .map(|file| upload::mask(&self.file("mask", file)?, &mut self.bounds))
            .transpose()
    }

    /// The file itself.
    fn file(&self, name: &str, source: Bytes) -> Result<Bytes, Problem> {
        let wrong = |text: &str| Problem::invalid("invalid_image", format!("{name}: {text}")).param(name);
        if upload::is_file(&source) {
            return Ok(source);
        }
        let text = match source.strip_prefix(b"data:") {
            Some(uri) => {
                let comma = uri.iter().position(|byte| *byte == b',');
                let (about, data) =
                    comma.map_or((&b""[..], &b""[..]), |comma| (&uri[..comma], &uri[comma + 1..]));
                if !about.to_ascii_lowercase().ends_with(b";base64") {
                    return Err(wrong("a data URI of a picture is `data:image/png;base64,…`"));
                }
                data
            }
            None if source.starts_with(b"http:") || source.starts_with(b"https:") => {
                return Err(wrong("addresses are not fetched: send the picture itself, in base64"));
            }
            None => &source[..],
        };
        let text = text.trim_ascii();
        // What has the letters of base64 and is no picture is said to be none by the decoder.
        match BASE64.decode(text) {
            Ok(file) if file.len() > self.most => {
                let text = format!("{name} is longer than {} bytes", self.most);
                let status = axum::http::StatusCode::PAYLOAD_TOO_LARGE;
                Err(Problem::http(status, "part_too_large", text).param(name))
            }
            // A word may have the letters of base64, and a picture is longer than a word.
            Ok(file) if (1..SHORTEST).contains(&file.len()) && !upload::is_file(&file) => {
                Err(wrong("it is text: a picture is wanted: a PNG, JPEG or WebP, or one in base64"))
            }
            Ok(file) => Ok(file.into()),
            // What is no base64 is a file, which is said by its name if it has one.
            Err(_) => Err(match image::describe(&source) {
                problem @ DecodeError::OtherFormat { .. } => upload::wrong(name, &problem),
                _ => wrong("this is no PNG, JPEG or WebP, nor one in base64"),
            }),
        }
    }
}
