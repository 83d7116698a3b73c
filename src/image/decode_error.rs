//! Why a file is no picture that is read.

use std::path::Path;

use super::Format;
use crate::error::{Error, FileProblem};

/// Why a file is no picture that is read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The file is in another format.
    #[error("it is {kind}: {advice}")]
    OtherFormat {
        /// Which, with its article.
        kind: String,
        /// What would help.
        advice: &'static str,
    },
    /// The file begins as none that is known here.
    #[error("it is no PNG, JPEG or WebP; it begins with the bytes {start}")]
    Unknown {
        /// Its first bytes in hexadecimal.
        start: String,
    },
    /// A kind of its format that is not read.
    #[error("it is a {} with {what}, which is not read: save it as an ordinary PNG, JPEG or WebP", format.title())]
    Unsupported {
        /// The format.
        format: Format,
        /// What is not read.
        what: &'static str,
    },
    /// The file is damaged or incomplete.
    #[error("the {} is damaged or incomplete: {reason}", format.title())]
    Damaged {
        /// The format.
        format: Format,
        /// What is wrong with it.
        reason: String,
    },
    /// The picture is larger than it may be, or has no pixels.
    #[error("{0}")]
    Size(String),
    /// A mask in which light pixels are chosen is transparent somewhere.
    #[error(
        "it has transparent pixels, which may mean either: save it without, white where it is drawn anew"
    )]
    TransparentMask,
}

impl DecodeError {
    /// The error of the file that has this name.
    pub fn of_file(self, path: impl AsRef<Path>) -> Error {
        Error::file(path)(FileProblem::Image { reason: self.to_string() })
    }
}
