//! Pictures that are near to another.

use serde::{Deserialize, Serialize};

/// Another noise, and how near to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Variation {
    /// The first picture's; the following ones count on from it, and the request's own seed then stays.
    pub seed: u64,
    /// 0 is the request's own noise, 1 the other one, and between both the noises on the great circle through them.
    pub strength: f64,
}
