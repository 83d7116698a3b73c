//! The kernels as C++ declares them (`kernels.h`, `dispatch.cpp`).

use std::ffi::{c_char, c_void};

use tch::Kind;

/// The widest head of an attention.
pub(super) const WIDEST: i64 = 512;

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) data: *mut c_void,
    pub(super) stride: i64,
    pub(super) kind: i32,
}

impl Rows {
    pub(super) const NONE: Self = Self { data: std::ptr::null_mut(), stride: 0, kind: 0 };
}

/// The number of a kind.
pub(super) fn kind(kind: Kind) -> i32 {
    match kind {
        Kind::BFloat16 => 1,
        Kind::Int8 => 2,
        _ => 0,
    }
}

#[repr(C)]
pub(super) struct Window {
    pub(super) batch: i64,
    pub(super) height: i64,
    pub(super) width: i64,
    pub(super) out_height: i64,
    pub(super) out_width: i64,
    pub(super) channels: i64,
    pub(super) taps: i64,
    pub(super) stride: i64,
    pub(super) pad_top: i64,
    pub(super) pad_left: i64,
    pub(super) shift: i32,
}

#[repr(C)]
pub(super) struct Epilogue {
    pub(super) activation: i32,
    pub(super) factor: Rows,
    pub(super) residual: Rows,
    pub(super) gate: Rows,
    pub(super) gate_every: i64,
}

#[repr(C)]
pub(super) struct Product {
    pub(super) m: i64,
    pub(super) n: i64,
    pub(super) k: i64,
    pub(super) a: Rows,
    pub(super) w: Rows,
    pub(super) w_scale: *const f32,
    pub(super) w_sum: *const i32,
    pub(super) bias: Rows,
    pub(super) c: Rows,
    pub(super) end: Epilogue,
    pub(super) window: *const Window,
    pub(super) words: i32,
}

#[repr(C)]
pub(super) struct Modulate {
    pub(super) rows: i64,
    pub(super) width: i64,
    pub(super) every: i64,
    pub(super) eps: f32,
    pub(super) x: Rows,
    pub(super) scale: Rows,
    pub(super) shift: Rows,
    pub(super) out: Rows,
    pub(super) rms: i32,
}

#[repr(C)]
pub(super) struct Stream {
    pub(super) qkv: Rows,
    pub(super) q_scale: *const c_void,
    pub(super) k_scale: *const c_void,
    pub(super) start: i64,
    pub(super) length: i64,
}

#[repr(C)]
pub(super) struct Attention {
    pub(super) heads: i64,
    pub(super) width: i64,
    pub(super) length: i64,
    pub(super) from: i64,
    pub(super) eps: f32,
    pub(super) scale: f32,
    pub(super) streams: *const Stream,
    pub(super) stream_count: i64,
    pub(super) pe: *const f32,
    pub(super) words: i32,
    pub(super) out: Rows,
}

#[repr(C)]
pub(super) struct GroupNorm {
    pub(super) batch: i64,
    pub(super) pixels: i64,
    pub(super) channels: i64,
    pub(super) groups: i64,
    pub(super) eps: f32,
    pub(super) x: Rows,
    pub(super) weight: Rows,
    pub(super) bias: Rows,
    pub(super) out: Rows,
    pub(super) silu: i32,
}

/// A build; behind these three, functions that only C++ calls.
#[repr(C)]
pub(super) struct Kernels {
    pub(super) name: *const c_char,
    pub(super) has_bf16_products: i32,
    pub(super) has_int8_products: i32,
    functions: [*const c_void; 8],
}

// SAFETY: constants of the program.
unsafe impl Sync for Kernels {}

unsafe extern "C" {
    pub(super) fn tch_flux_kernels(name: *const c_char) -> *const Kernels;
    pub(super) fn tch_flux_product_scratch(kernels: *const Kernels, product: *const Product) -> usize;
    pub(super) fn tch_flux_product(kernels: *const Kernels, product: *const Product, scratch: *mut c_void);
    pub(super) fn tch_flux_attention_scratch(kernels: *const Kernels, attention: *const Attention) -> usize;
    pub(super) fn tch_flux_attention(
        kernels: *const Kernels,
        attention: *const Attention,
        scratch: *mut c_void,
    );
    pub(super) fn tch_flux_modulate(kernels: *const Kernels, modulate: *const Modulate);
    pub(super) fn tch_flux_finish(kernels: *const Kernels, product: *const Product);
    pub(super) fn tch_flux_group_norm_scratch(kernels: *const Kernels, group_norm: *const GroupNorm)
    -> usize;
    pub(super) fn tch_flux_group_norm(
        kernels: *const Kernels,
        group_norm: *const GroupNorm,
        scratch: *mut c_void,
    );
}
