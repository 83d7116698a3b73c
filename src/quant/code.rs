//! The recipe that turns a tensor's stored bytes into numbers.

use std::fmt;
use std::ops::Range;

use tch::Kind;

use super::{BlockType, Encoding};

/// What bitsandbytes multiplies its eight bits by, after it has multiplied them by the row's greatest number.
pub(super) const RECIPROCAL_OF_127: f32 = 7.874_015_718_698_502e-3_f64 as f32;

/// How the bytes of one tensor become numbers: complete, with the scales that other tensors of the file hold.
///
/// Every number is computed in f32, and rounded once, to the nearest even, where it is wanted in fewer bits. An f64 is
/// rounded to f32 first, as torch does it, unless an f64 is wanted. NaN stays NaN.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Code {
    /// One float after the other: f64, f32, f16, bf16, e4m3fn or e5m2.
    Plain(Kind),
    /// Floats of eight bits, each to be multiplied by its row's scale.
    Scaled {
        /// e4m3fn or e5m2.
        kind: Kind,
        /// One scale for each row.
        scale: Vec<f32>,
        /// Numbers in a row; all of them where there is one scale.
        row: usize,
    },
    /// GGUF.
    Blocks(BlockType),
    /// nf4 and fp4 of bitsandbytes: indices of four bits, the upper half of a byte first, into a table, each number to
    /// be multiplied by its block's greatest.
    FourBit {
        /// What the indices mean.
        table: [f32; 16],
        /// The greatest number of each block.
        absmax: Vec<f32>,
        /// Numbers in a block, an even count.
        block: usize,
    },
    /// int8 of bitsandbytes: integers from -127 to 127, which stand for the row's greatest number.
    Int8 {
        /// The greatest number of each row, `SCB`.
        scale: Vec<f32>,
        /// Numbers in a row.
        row: usize,
    },
}

impl Code {
    /// The recipe for numbers that need nothing but their own bytes, where they are floats.
    pub(crate) fn of(encoding: Encoding) -> Option<Self> {
        match encoding {
            Encoding::Blocks(block) => Some(Self::Blocks(block)),
            Encoding::Plain(_) => encoding.kind().map(Self::Plain).filter(|code| code.check_kind().is_ok()),
        }
    }

    /// The fewest numbers that can be decoded by themselves, and their bytes.
    pub(crate) fn unit(&self) -> (usize, usize) {
        match self {
            Self::Plain(kind) | Self::Scaled { kind, .. } => (1, kind.elt_size_in_bytes()),
            Self::Blocks(block) => (block.elements(), block.bytes()),
            Self::FourBit { .. } => (2, 1),
            Self::Int8 { .. } => (1, 1),
        }
    }

    /// The recipe for a run of whole rows or blocks alone, counted from its own first number.
    pub(crate) fn of_run(self, elements: &Range<usize>) -> Self {
        match self {
            Self::Scaled { kind, scale, .. } if scale.len() == 1 => {
                Self::Scaled { kind, scale, row: elements.len() }
            }
            Self::Scaled { kind, scale, row } => {
                let rows = elements.start / row.max(1)..elements.end.div_ceil(row.max(1));
                Self::Scaled { kind, scale: scale.get(rows).unwrap_or_default().to_vec(), row }
            }
            other => other,
        }
    }

    /// The bytes that hold `elements` numbers.
    pub(crate) fn bytes(&self, elements: usize) -> usize {
        let (unit, bytes) = self.unit();
        elements.div_ceil(unit).saturating_mul(bytes)
    }

    /// Why this is no recipe for a tensor of `elements` numbers in `bytes` bytes.
    pub(crate) fn check(&self, elements: usize, bytes: usize) -> Result<(), String> {
        self.check_kind()?;
        let needed = self.bytes(elements);
        if needed != bytes {
            return Err(format!("{elements} numbers take {needed} bytes, not {bytes}"));
        }
        let (what, count, each) = match self {
            Self::Plain(_) => return Ok(()),
            Self::Blocks(block) if !elements.is_multiple_of(block.elements()) => {
                let reason = format!("{elements} numbers are no whole blocks of {}", block.elements());
                return Err(reason);
            }
            Self::Blocks(_) => return Ok(()),
            Self::FourBit { block, .. } if block % 2 == 1 => return Err(format!("a block of {block}")),
            Self::FourBit { absmax, block, .. } => ("blocks", absmax.len(), *block),
            Self::Scaled { scale, row, .. } | Self::Int8 { scale, row } => ("rows", scale.len(), *row),
        };
        if each == 0 || elements.div_ceil(each) != count {
            return Err(format!("{count} scales for {elements} numbers in {what} of {each}"));
        }
        Ok(())
    }

    fn check_kind(&self) -> Result<(), String> {
        use Kind::{BFloat16, Double, Float, Float8e4m3fn, Float8e5m2, Half};
        match self {
            Self::Plain(Double | Float | Half | BFloat16 | Float8e4m3fn | Float8e5m2) => Ok(()),
            Self::Scaled { kind: Float8e4m3fn | Float8e5m2, .. } => Ok(()),
            Self::Plain(kind) | Self::Scaled { kind, .. } => {
                Err(format!("{kind:?} are no numbers to decode"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Code {
    /// `Q4_K`, `Float8e4m3fn with scales`, `4 bits in blocks of 64`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Plain(kind) => write!(f, "{kind:?}"),
            Self::Scaled { kind, .. } => write!(f, "{kind:?} with scales"),
            Self::Blocks(block) => write!(f, "{block:?}"),
            Self::FourBit { block, .. } => write!(f, "4 bits in blocks of {block}"),
            Self::Int8 { .. } => write!(f, "8 bits in rows"),
        }
    }
}
