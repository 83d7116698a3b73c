//! Pictures that are fetched by an address: in memory, bounded in number and bytes, for a while.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

use super::options::Options;
use tch_flux::image::Format;

pub(super) struct Shelf {
    lifetime: Duration,
    count: usize,
    bytes: usize,
    /// From the oldest to the newest.
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Clone)]
pub(super) struct Kept {
    id: String,
    pub(super) format: Format,
    pub(super) picture: Bytes,
    until: Instant,
}

impl Kept {
    /// For how long yet.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

impl Shelf {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            lifetime: options.url_lifetime,
            count: options.url_count,
            bytes: options.url_bytes,
            kept: Mutex::default(),
        }
    }

    /// Keeps the pictures of one answer and says their ids; the oldest make room. `None` where they are too many or too
    /// large to be kept together.
    pub(super) fn put(&self, pictures: Vec<Bytes>, format: Format) -> Option<Vec<String>> {
        let new: usize = pictures.iter().map(Bytes::len).sum();
        if pictures.len() > self.count || new > self.bytes {
            return None;
        }
        let until = Instant::now() + self.lifetime;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut kept);
        let mut bytes: usize = kept.iter().map(|kept| kept.picture.len()).sum();
        while kept.len() + pictures.len() > self.count || bytes + new > self.bytes {
            bytes -= kept.pop_front()?.picture.len();
        }
        let keep = |picture| {
            let id = random_id();
            kept.push_back(Kept { id: id.clone(), format, picture, until });
            id
        };
        Some(pictures.into_iter().map(keep).collect())
    }

    pub(super) fn get(&self, id: &str) -> Option<Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut kept);
        kept.iter().find(|kept| kept.id == id).cloned()
    }

    pub(super) fn bytes(&self) -> usize {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        forget_old(&mut kept);
        kept.iter().map(|kept| kept.picture.len()).sum()
    }
}

fn forget_old(kept: &mut VecDeque<Kept>) {
    while kept.front().is_some_and(|oldest| oldest.left().is_zero()) {
        kept.pop_front();
    }
}

/// 128 bits that nobody guesses.
pub(super) fn random_id() -> String {
    let mut bytes = [0; 16];
    // A system without random numbers could not have started a process.
    getrandom::fill(&mut bytes).expect("the system gives random numbers");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
