//! How numbers are stored, and how they become numbers that libtorch computes with.

mod bitsandbytes;
mod blocks;
mod code;
mod decode;
mod device;
mod fill;
mod float;
mod fp8;
mod int8;
mod lanes;
mod matrix;
#[cfg(test)]
mod tests;

use std::fmt;

use safetensors::Dtype;
use tch::Kind;

pub(crate) use bitsandbytes::{QuantState, four_bit};
pub(crate) use code::Code;
pub(crate) use fill::{Job, Part, Source, decode_all};
pub(crate) use fp8::Fp8;
pub(crate) use int8::Int8;
pub(crate) use matrix::{Piece, Quantized};

/// How a tensor's numbers are written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// One number after the other, each of this type. Whether 8-bit numbers are what they say, or are to be scaled or
    /// looked up, other tensors of the file tell.
    Plain(Dtype),
    /// Blocks of GGUF: a few scales and the numbers in as many bits as the name says.
    Blocks(BlockType),
}

impl Encoding {
    /// The kind of libtorch that holds these numbers as they are, where there is one.
    pub fn kind(self) -> Option<Kind> {
        let Self::Plain(dtype) = self else { return None };
        Some(match dtype {
            Dtype::BOOL => Kind::Bool,
            Dtype::U8 => Kind::Uint8,
            Dtype::I8 => Kind::Int8,
            Dtype::I16 => Kind::Int16,
            Dtype::I32 => Kind::Int,
            Dtype::I64 => Kind::Int64,
            Dtype::F8_E4M3 => Kind::Float8e4m3fn,
            Dtype::F8_E5M2 => Kind::Float8e5m2,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::C64 => Kind::ComplexFloat,
            _ => return None,
        })
    }
}

impl fmt::Display for Encoding {
    /// `BF16`, `F8_E4M3`, `Q4_K`, as the formats spell them.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(block) => write!(f, "{block:?}"),
        }
    }
}

/// The blocks of GGUF that FLUX files use, in ggml's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

impl BlockType {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// Numbers in a block.
    pub const fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            _ => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
        }
    }
}
