//! Thirty-two numbers in two registers of 512 bits.

use std::arch::x86_64::*;

use super::Lanes;

/// The processor has AVX-512 with the instructions for bytes and for shorter registers.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(());

/// The places of the upper words of 32 numbers.
const UPPER: [u16; 32] = {
    let mut upper = [0; 32];
    let mut i = 0;
    while i < 32 {
        upper[i] = 2 * i as u16 + 1;
        i += 1;
    }
    upper
};

/// Intrinsics for a value of [`Avx512`].
macro_rules! with_avx512 {
    ($($call:tt)*) => {
        // SAFETY: an `Avx512` exists only where the processor has these instructions. What is read and written through
        // a pointer is an array of as many bytes as the instruction takes, or the half of one of twice as many.
        unsafe { $($call)* }
    };
}

impl Avx512 {
    pub(in super::super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// Runs `work`, and compiles it and all that is inlined into it for such a processor.
    pub(in super::super) fn run(self, work: impl FnOnce()) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,f16c")]
        fn run(work: impl FnOnce()) {
            work();
        }
        with_avx512! { run(work) }
    }

    #[inline(always)]
    fn without_payload(self, n: __m512) -> __m512 {
        with_avx512! {
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(n, n);
            _mm512_mask_mov_ps(n, is_nan, _mm512_set1_ps(f32::NAN))
        }
    }

    #[inline(always)]
    fn widened(self, halves: __m512i) -> [__m512; 2] {
        with_avx512! {
            let (low, high) = (_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves));
            [_mm512_cvtph_ps(low), _mm512_cvtph_ps(high)]
        }
    }

    /// So that the upper words are the nearest bf16.
    #[inline(always)]
    fn rounded(self, numbers: __m512) -> __m512i {
        with_avx512! {
            let bits = _mm512_castps_si512(numbers);
            let is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
            let sum = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
            _mm512_mask_add_epi32(sum, is_odd, sum, _mm512_set1_epi32(1))
        }
    }
}

impl Lanes for Avx512 {
    type F = [__m512; 2];
    type B = __m256i;
    type Table = __m512;

    #[inline(always)]
    fn splat(self, number: f32) -> Self::F {
        with_avx512! { [_mm512_set1_ps(number); 2] }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        with_avx512! { [_mm512_mul_ps(a[0], b[0]), _mm512_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        with_avx512! { [_mm512_add_ps(a[0], b[0]), _mm512_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        with_avx512! { [_mm512_sub_ps(a[0], b[0]), _mm512_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> Self::B {
        with_avx512! { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 16]) -> Self::B {
        with_avx512! {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn pairs(self, bytes: &[u8; 16]) -> Self::B {
        with_avx512! {
            let words = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes.as_ptr().cast()));
            let both = _mm256_or_si256(_mm256_srli_epi16::<4>(words), _mm256_slli_epi16::<8>(words));
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn where_set(self, bits: u32, value: u8) -> Self::B {
        with_avx512! { _mm256_maskz_set1_epi8(bits, value as i8) }
    }

    #[inline(always)]
    fn take(self, a: Self::B, mask: u8, from: usize, to: usize) -> Self::B {
        with_avx512! {
            let bits = _mm256_and_si256(a, _mm256_set1_epi8((mask << from) as i8));
            let count = _mm_cvtsi32_si128(from.abs_diff(to) as i32);
            if from > to { _mm256_srl_epi16(bits, count) } else { _mm256_sll_epi16(bits, count) }
        }
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        with_avx512! { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    fn minus(self, a: Self::B, b: u8) -> Self::B {
        with_avx512! { _mm256_sub_epi8(a, _mm256_set1_epi8(b as i8)) }
    }

    #[inline(always)]
    fn pick(self, table: &[u8; 16], at: Self::B) -> Self::B {
        with_avx512! {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), at)
        }
    }

    #[inline(always)]
    fn to_float(self, a: Self::B) -> Self::F {
        with_avx512! {
            let low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(a));
            let high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(a));
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    fn table(self, numbers: &[f32; 16]) -> Self::Table {
        with_avx512! { _mm512_loadu_ps(numbers.as_ptr()) }
    }

    #[inline(always)]
    fn to_table(self, bytes: &[u8; 16]) -> Self::Table {
        with_avx512! { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn times(self, table: Self::Table, first: f32, others: f32) -> Self::Table {
        with_avx512! {
            _mm512_mul_ps(table, _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(first), _mm512_set1_ps(others)))
        }
    }

    #[inline(always)]
    fn lookup(self, table: Self::Table, at: Self::B) -> Self::F {
        with_avx512! {
            let low = _mm512_cvtepu8_epi32(_mm256_castsi256_si128(at));
            let high = _mm512_cvtepu8_epi32(_mm256_extracti128_si256::<1>(at));
            [_mm512_permutexvar_ps(low, table), _mm512_permutexvar_ps(high, table)]
        }
    }

    #[inline(always)]
    fn spread(self, table: Self::Table, first: usize, others: usize) -> Self::F {
        with_avx512! {
            let first = _mm512_permutexvar_ps(_mm512_set1_epi32(first as i32), table);
            [first, _mm512_permutexvar_ps(_mm512_set1_epi32(others as i32), table)]
        }
    }

    #[inline(always)]
    fn halves_of(self, bytes: [u8; 4]) -> [f32; 2] {
        with_avx512! {
            let two = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes(bytes)));
            let two = _mm_mask_mov_ps(two, _mm_cmp_ps_mask::<_CMP_UNORD_Q>(two, two), _mm_set1_ps(f32::NAN));
            [_mm_cvtss_f32(two), _mm_cvtss_f32(_mm_movehdup_ps(two))]
        }
    }

    #[inline(always)]
    fn read_f32(self, bytes: &[u8; 128]) -> Self::F {
        with_avx512! {
            let (low, high) = (bytes.as_ptr(), bytes[64..].as_ptr());
            [self.without_payload(_mm512_loadu_ps(low.cast())), self.without_payload(_mm512_loadu_ps(high.cast()))]
        }
    }

    #[inline(always)]
    fn read_bf16(self, bytes: &[u8; 64]) -> Self::F {
        with_avx512! {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes[32..].as_ptr().cast()));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(low)), _mm512_castsi512_ps(_mm512_slli_epi32::<16>(high))]
        }
    }

    #[inline(always)]
    fn read_f16(self, bytes: &[u8; 64]) -> Self::F {
        with_avx512! {
            let low = _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast()));
            let high = _mm512_cvtph_ps(_mm256_loadu_si256(bytes[32..].as_ptr().cast()));
            [self.without_payload(low), self.without_payload(high)]
        }
    }

    #[inline(always)]
    fn read_e5m2(self, bytes: &[u8; 32]) -> Self::F {
        with_avx512! {
            let wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.as_ptr().cast()));
            self.widened(_mm512_slli_epi16::<8>(wide))
        }
    }

    /// As an f16, an e4m3fn is 2^-8 of what it stands for, subnormal or not.
    #[inline(always)]
    fn read_e4m3(self, bytes: &[u8; 32]) -> Self::F {
        with_avx512! {
            let wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes.as_ptr().cast()));
            let nan = _mm512_set1_epi16(0x3f80);
            let shifted = _mm512_slli_epi16::<7>(wide);
            let is_nan = _mm512_cmpeq_epi16_mask(_mm512_and_si512(shifted, nan), nan);
            let half = _mm512_and_si512(shifted, _mm512_set1_epi16(0xbf80_u16 as i16));
            let half = _mm512_mask_mov_epi16(half, is_nan, _mm512_set1_epi16(0x7e00));
            let [low, high] = self.widened(half);
            let scale = _mm512_set1_ps(256.0);
            [_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)]
        }
    }

    #[inline(always)]
    fn write_f32(self, numbers: Self::F, bytes: &mut [u8; 128]) {
        with_avx512! {
            _mm512_storeu_ps(bytes.as_mut_ptr().cast(), numbers[0]);
            _mm512_storeu_ps(bytes[64..].as_mut_ptr().cast(), numbers[1]);
        }
    }

    #[inline(always)]
    fn write_bf16(self, numbers: Self::F, bytes: &mut [u8; 64]) {
        with_avx512! {
            let [low, high] = [self.rounded(numbers[0]), self.rounded(numbers[1])];
            // The upper word of each.
            let upper = _mm512_loadu_si512(UPPER.as_ptr().cast());
            _mm512_storeu_si512(bytes.as_mut_ptr().cast(), _mm512_permutex2var_epi16(low, upper, high))
        }
    }

    #[inline(always)]
    fn write_f16(self, numbers: Self::F, bytes: &mut [u8; 64]) {
        with_avx512! {
            let low = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(numbers[0]);
            let high = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(numbers[1]);
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), low);
            _mm256_storeu_si256(bytes[32..].as_mut_ptr().cast(), high);
        }
    }
}
