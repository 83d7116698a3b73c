//! The pictures of a request as they come: files, base64 or data URIs.

use std::collections::BTreeMap;

use axum::body::Bytes;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::api_error::ApiError;
use crate::decode::{DecodeLimits, decode_image, decode_mask, invalid_image, is_image_file};
use tch_flux::image::{self, DecodeError, Image, Mask};

/// Base64 with padding or without it: clients send both.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Fewer bytes are no picture's file.
const MIN_FILE_BYTES: usize = 10;

/// The pictures of a request by their fields.
#[derive(Debug, Default)]
pub(crate) struct Uploads(BTreeMap<&'static str, Vec<Bytes>>);

impl Uploads {
    /// Returns the pictures of a field, to be changed.
    pub(crate) fn files_mut(&mut self, name: &'static str) -> &mut Vec<Bytes> {
        self.0.entry(name).or_default()
    }

    /// Whether a field has no picture.
    pub(crate) fn has_none(&self, name: &str) -> bool {
        self.0.get(name).is_none_or(Vec::is_empty)
    }

    /// Whether no field has a picture.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.values().all(Vec::is_empty)
    }

    pub(crate) fn counts(&self) -> UploadCounts {
        UploadCounts(self.0.iter().map(|(name, files)| (*name, files.len())).collect())
    }
}

/// The number of pictures of each field.
#[derive(Debug, Default)]
pub(crate) struct UploadCounts(BTreeMap<&'static str, usize>);

impl UploadCounts {
    pub(crate) fn get(&self, name: &str) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// Decodes the pictures of one request.
pub(crate) struct UploadDecoder {
    pub(crate) uploads: Uploads,
    pub(crate) limits: DecodeLimits,
    /// The most bytes of a picture's file.
    pub(crate) max_file_bytes: usize,
}

impl UploadDecoder {
    /// Decodes the pictures of a field.
    pub(crate) fn images(&mut self, name: &'static str) -> Result<Vec<Image>, ApiError> {
        let files = std::mem::take(self.uploads.files_mut(name));
        files.into_iter().map(|file| decode_image(&self.file(name, file)?, name, &mut self.limits)).collect()
    }

    /// Decodes the mask, if there is one.
    pub(crate) fn mask(&mut self) -> Result<Option<Mask>, ApiError> {
        let files = std::mem::take(self.uploads.files_mut("mask"));
        files
            .into_iter()
            .next()
            .map(|file| decode_mask(&self.file("mask", file)?, &mut self.limits))
            .transpose()
    }

    /// Returns the bytes of a picture's file.
    fn file(&self, name: &str, source: Bytes) -> Result<Bytes, ApiError> {
        let invalid = |text: &str| ApiError::invalid("invalid_image", format!("{name}: {text}")).param(name);
        if is_image_file(&source) {
            return Ok(source);
        }
        let text = match source.strip_prefix(b"data:") {
            Some(uri) => {
                let comma = uri.iter().position(|byte| *byte == b',');
                let (header, data) =
                    comma.map_or((&b""[..], &b""[..]), |comma| (&uri[..comma], &uri[comma + 1..]));
                if !header.to_ascii_lowercase().ends_with(b";base64") {
                    return Err(invalid("a data URI of a picture is `data:image/png;base64,…`"));
                }
                data
            }
            None if source.starts_with(b"http:") || source.starts_with(b"https:") => {
                return Err(invalid("addresses are not fetched: send the picture itself, in base64"));
            }
            None => &source[..],
        };
        let text = text.trim_ascii();
        // Of base64 that is no picture, the decoder says what it is instead.
        match BASE64.decode(text) {
            Ok(file) if file.len() > self.max_file_bytes => {
                let text = format!("{name} is longer than {} bytes", self.max_file_bytes);
                let status = axum::http::StatusCode::PAYLOAD_TOO_LARGE;
                Err(ApiError::http(status, "part_too_large", text).param(name))
            }
            // A word consists of base64's letters, too, but it is shorter than a picture.
            Ok(file) if (1..MIN_FILE_BYTES).contains(&file.len()) && !is_image_file(&file) => {
                Err(invalid("it is text: a picture is wanted: a PNG, JPEG or WebP, or one in base64"))
            }
            Ok(file) => Ok(file.into()),
            // What is not base64 is a file, which is called by its format if it is known.
            Err(_) => Err(match image::describe(&source) {
                error @ DecodeError::OtherFormat { .. } => invalid_image(name, &error),
                _ => invalid("this is no PNG, JPEG or WebP, nor one in base64"),
            }),
        }
    }
}
