//! Whether the settings of a server can take effect.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tch_flux::Error;

use super::checks;
use super::config::Serve;
use super::units::{Pixels, Size};

/// Bytes of a JSON body with a prompt of a few words.
const MIN_JSON: usize = 64;
/// Bytes of a small picture.
const MIN_BODY: usize = 1024;
/// Bytes of a piece of an answer.
const MIN_ANSWERS: usize = 64 << 10;
/// Pixels of the smallest picture that is drawn.
const MIN_PIXELS: u64 = 64 * 64;
/// In less, nothing can come in time.
const MIN_TIME: Duration = Duration::from_millis(1);

impl Serve {
    /// Refuses what could never take effect.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.address()?;
        self.log_filter()?;
        self.key()?;
        self.threads
            .map_or(Ok(()), |threads| self.checked("threads", checks::threads(threads)).map(|_| ()))?;
        self.each("cors-origin", &self.cors_origin, checks::origin)?;
        self.each("allowed-host", &self.allowed_host, checks::host)?;
        self.each("public-url", &self.public_url, checks::public_url)?;
        self.each("model-name", &self.model_name, checks::name)?;
        self.each("model-alias", &self.model_alias, checks::name)?;
        self.checked("cors-origin", checks::origins(self.cors_origin.as_deref().unwrap_or_default()))?;
        let tile = self.vae_tile.filter(|tile| *tile < 64);
        tile.map_or(Ok(()), |tile| {
            self.checked("vae-tile", Err(format!("{tile} pixels: at least 64 are needed")))
        })?;
        let most = 1 << 20;
        let counts = [
            ("max-connections", self.max_connections, 1),
            ("queue", self.queue, 0),
            ("url-count", self.url_count, 0),
        ];
        for (name, count, least) in counts {
            if let Some(count) = count.filter(|count| !(least..=most).contains(count)) {
                self.checked(name, Err::<(), _>(format!("{count} is not from {least} to {most}")))?;
            }
        }
        let times = [
            ("header-timeout", self.header_timeout),
            ("body-timeout", self.body_timeout),
            ("body-pause", self.body_pause),
            ("write-timeout", self.write_timeout),
            ("job-timeout", self.job_timeout),
            ("stream-keep-alive", self.stream_keep_alive),
            ("url-lifetime", self.url_lifetime),
        ];
        for (name, time) in times {
            if time.is_some_and(|time| time.0 < MIN_TIME) {
                self.checked(name, Err::<(), _>("no time at all: nothing could ever be in time".into()))?;
            }
        }
        self.check_sizes()
    }

    /// Refuses sizes that are smaller than any request, and those that another setting keeps from ever being reached.
    fn check_sizes(&self) -> anyhow::Result<()> {
        let sizes = [
            ("max-json-bytes", self.max_json_bytes, MIN_JSON),
            ("max-edit-bytes", self.max_edit_bytes, MIN_BODY),
            ("max-image-bytes", self.max_image_bytes, MIN_BODY),
            ("max-upload-bytes", self.max_upload_bytes, MIN_BODY),
            ("max-answer-bytes", self.max_answer_bytes, MIN_ANSWERS),
            ("url-bytes", self.url_bytes, MIN_BODY),
        ];
        for (name, size, least) in sizes {
            if let Some(Size(size)) = size.filter(|size| size.0 < least) {
                self.checked(name, Err::<(), _>(format!("{size} bytes: at least {least} are needed")))?;
            }
        }
        if let Some(Pixels(pixels)) = self.max_image_pixels.filter(|pixels| pixels.0 < MIN_PIXELS) {
            let text = format!("{pixels} pixels: at least {MIN_PIXELS} are needed, a picture of 64 by 64");
            self.checked("max-image-pixels", Err::<(), _>(text))?;
        }
        let d = tch_flux_server::Options::default();
        let size = |size: Option<Size>, default: usize| size.map_or(default, |size| size.0);
        let (edit, upload) =
            (size(self.max_edit_bytes, d.edit_bytes), size(self.max_upload_bytes, d.upload_bytes));
        let within = [
            ("max-image-bytes", self.max_image_bytes, "max-edit-bytes", edit, "a body with one"),
            ("max-edit-bytes", self.max_edit_bytes, "max-upload-bytes", upload, "all uploads together"),
            ("max-json-bytes", self.max_json_bytes, "max-upload-bytes", upload, "all uploads together"),
        ];
        for (name, size, other, most, what) in within {
            if let Some(Size(size)) = size.filter(|size| size.0 > most) {
                let text = format!("{size} bytes can never come: {what} may have {most}, which {other} says");
                self.checked(name, Err::<(), _>(text))?;
            }
        }
        Ok(())
    }

    fn each<'a, T>(
        &self,
        name: &str,
        texts: &'a Option<T>,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> anyhow::Result<()>
    where
        &'a T: Texts<'a>,
    {
        let texts = texts.as_ref().map(Texts::texts).unwrap_or_default();
        texts.into_iter().try_for_each(|text| self.checked(name, check(text)))
    }

    /// Returns the key that clients must send, from its flag or its file.
    pub(super) fn key(&self) -> anyhow::Result<Option<String>> {
        let (name, key) = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => ("api-key", key.clone()),
            (None, Some(path)) => {
                ("api-key-file", read_key(path).with_context(|| self.sources.name("api-key-file"))?)
            }
            (None, None) => return Ok(None),
        };
        self.checked(name, checks::key(&key))?;
        Ok(Some(key))
    }
}

/// A text, or several.
trait Texts<'a> {
    fn texts(self) -> Vec<&'a str>;
}

impl<'a> Texts<'a> for &'a String {
    fn texts(self) -> Vec<&'a str> {
        vec![self]
    }
}

impl<'a> Texts<'a> for &'a Vec<String> {
    fn texts(self) -> Vec<&'a str> {
        self.iter().map(String::as_str).collect()
    }
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    // Some editors begin a file with a mark that is no part of its text.
    let text = std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes));
    let text = text.map_err(|_| {
        Error::Request(format!("{}: it is no text in UTF-8, as which a key is to be saved", path.display()))
    })?;
    Ok(text.trim().to_string())
}
