//! Keeps pictures that are fetched by an address: in memory, for a limited time, limited in number and bytes.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

use crate::options::Options;
use tch_flux::image::Format;

/// Pictures by their ids.
pub(crate) struct ImageStore {
    lifetime: Duration,
    count: usize,
    bytes: usize,
    /// From the oldest to the newest.
    images: Mutex<VecDeque<StoredImage>>,
}

/// A picture's file.
#[derive(Clone)]
pub(crate) struct StoredImage {
    id: String,
    pub(crate) format: Format,
    pub(crate) picture: Bytes,
    expires: Instant,
}

impl StoredImage {
    /// Returns how long the picture is still kept.
    pub(crate) fn time_left(&self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }
}

impl ImageStore {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            lifetime: options.url_lifetime,
            count: options.url_count,
            bytes: options.url_bytes,
            images: Mutex::default(),
        }
    }

    /// Keeps the pictures of one response and returns their ids; the oldest ones make room. Returns `None` where they are too
    /// many or too large to be kept together.
    pub(crate) fn put(&self, pictures: Vec<Bytes>, format: Format) -> Option<Vec<String>> {
        let new_bytes: usize = pictures.iter().map(Bytes::len).sum();
        if pictures.len() > self.count || new_bytes > self.bytes {
            return None;
        }
        let expires = Instant::now() + self.lifetime;
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        remove_expired(&mut images);
        let mut bytes: usize = images.iter().map(|image| image.picture.len()).sum();
        while images.len() + pictures.len() > self.count || bytes + new_bytes > self.bytes {
            bytes -= images.pop_front()?.picture.len();
        }
        let store = |picture| {
            let id = random_id();
            images.push_back(StoredImage { id: id.clone(), format, picture, expires });
            id
        };
        Some(pictures.into_iter().map(store).collect())
    }

    pub(crate) fn get(&self, id: &str) -> Option<StoredImage> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        remove_expired(&mut images);
        images.iter().find(|image| image.id == id).cloned()
    }

    pub(crate) fn bytes(&self) -> usize {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        remove_expired(&mut images);
        images.iter().map(|image| image.picture.len()).sum()
    }
}

fn remove_expired(images: &mut VecDeque<StoredImage>) {
    while images.front().is_some_and(|oldest| oldest.time_left().is_zero()) {
        images.pop_front();
    }
}

/// Returns 128 random bits, which nobody can guess.
pub(crate) fn random_id() -> String {
    let mut bytes = [0; 16];
    // A system without random numbers could not have started a process.
    getrandom::fill(&mut bytes).expect("the system gives random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
