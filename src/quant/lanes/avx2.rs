//! Thirty-two numbers in four registers of 256 bits.

use std::arch::x86_64::*;

use super::Lanes;

/// The processor has AVX2, and the conversions of f16.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(());

/// Intrinsics for a value of [`Avx2`].
macro_rules! with_avx2 {
    ($($call:tt)*) => {
        // SAFETY: an `Avx2` exists only where the processor has these instructions. What is read and written through a
        // pointer is an array of as many bytes as the instruction takes.
        unsafe { $($call)* }
    };
}

impl Avx2 {
    pub(in super::super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }

    /// Runs `work`, and compiles it and all that is inlined into it for such a processor.
    pub(in super::super) fn run(self, work: impl FnOnce()) {
        #[target_feature(enable = "avx2,f16c")]
        fn run(work: impl FnOnce()) {
            work();
        }
        with_avx2! { run(work) }
    }

    /// Eight bytes each, in the lower half of a register.
    #[inline(always)]
    fn quarters(self, bytes: __m256i) -> [__m128i; 4] {
        with_avx2! {
            let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            [low, _mm_unpackhi_epi64(low, low), high, _mm_unpackhi_epi64(high, high)]
        }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; 16]) -> __m128i {
        with_avx2! { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, bytes: &mut [u8; 32], register: __m256i) {
        with_avx2! { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), register) }
    }

    #[inline(always)]
    fn without_payload(self, numbers: __m256) -> __m256 {
        with_avx2! {
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(numbers, numbers);
            _mm256_blendv_ps(numbers, _mm256_set1_ps(f32::NAN), is_nan)
        }
    }

    /// The nearest bf16, in the lower words.
    #[inline(always)]
    fn rounded(self, numbers: __m256) -> __m256i {
        with_avx2! {
            let bits = _mm256_castps_si256(numbers);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let sum = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
            _mm256_srli_epi32::<16>(sum)
        }
    }
}

/// The same for each quarter `i`. A macro, since a closure might not be inlined, and then not be compiled for AVX2.
macro_rules! each {
    ($i:ident => $($body:tt)*) => {
        with_avx2! { [
            { let $i = 0; $($body)* },
            { let $i = 1; $($body)* },
            { let $i = 2; $($body)* },
            { let $i = 3; $($body)* },
        ] }
    };
}

impl Lanes for Avx2 {
    type F = [__m256; 4];
    type B = __m256i;
    type Table = [__m256; 2];

    #[inline(always)]
    fn splat(self, number: f32) -> Self::F {
        with_avx2! { [_mm256_set1_ps(number); 4] }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => _mm256_mul_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => _mm256_add_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each!(i => _mm256_sub_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> Self::B {
        with_avx2! { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 16]) -> Self::B {
        with_avx2! {
            let bytes = self.load(bytes);
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn pairs(self, bytes: &[u8; 16]) -> Self::B {
        with_avx2! {
            let words = _mm256_cvtepu8_epi16(self.load(bytes));
            let both = _mm256_or_si256(_mm256_srli_epi16::<4>(words), _mm256_slli_epi16::<8>(words));
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn where_set(self, bits: u32, value: u8) -> Self::B {
        with_avx2! {
            // Byte `i` of the four to the eight lanes that it is for.
            let spread = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), spread);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
            _mm256_and_si256(is_set, _mm256_set1_epi8(value as i8))
        }
    }

    #[inline(always)]
    fn take(self, a: Self::B, mask: u8, from: usize, to: usize) -> Self::B {
        with_avx2! {
            let bits = _mm256_and_si256(a, _mm256_set1_epi8((mask << from) as i8));
            let count = _mm_cvtsi32_si128(from.abs_diff(to) as i32);
            if from > to { _mm256_srl_epi16(bits, count) } else { _mm256_sll_epi16(bits, count) }
        }
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        with_avx2! { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    fn minus(self, a: Self::B, b: u8) -> Self::B {
        with_avx2! { _mm256_sub_epi8(a, _mm256_set1_epi8(b as i8)) }
    }

    #[inline(always)]
    fn pick(self, table: &[u8; 16], at: Self::B) -> Self::B {
        with_avx2! { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(self.load(table)), at) }
    }

    #[inline(always)]
    fn to_float(self, a: Self::B) -> Self::F {
        let quarters = self.quarters(a);
        each!(i => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(quarters[i])))
    }

    #[inline(always)]
    fn table(self, numbers: &[f32; 16]) -> Self::Table {
        with_avx2! { [_mm256_loadu_ps(numbers.as_ptr()), _mm256_loadu_ps(numbers[8..].as_ptr())] }
    }

    #[inline(always)]
    fn to_table(self, bytes: &[u8; 16]) -> Self::Table {
        with_avx2! {
            let (low, high) = (self.load(bytes), _mm_unpackhi_epi64(self.load(bytes), self.load(bytes)));
            [_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high))]
        }
    }

    #[inline(always)]
    fn times(self, table: Self::Table, first: f32, others: f32) -> Self::Table {
        with_avx2! {
            [_mm256_mul_ps(table[0], _mm256_set1_ps(first)), _mm256_mul_ps(table[1], _mm256_set1_ps(others))]
        }
    }

    #[inline(always)]
    fn lookup(self, table: Self::Table, at: Self::B) -> Self::F {
        let quarters = self.quarters(at);
        each!(i =>
            let at = _mm256_cvtepu8_epi32(quarters[i]);
            let low = _mm256_permutevar8x32_ps(table[0], at);
            let high = _mm256_permutevar8x32_ps(table[1], at);
            // The sign says which.
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(at)))
        )
    }

    #[inline(always)]
    fn spread(self, table: Self::Table, first: usize, others: usize) -> Self::F {
        with_avx2! {
            let at = |i: usize| _mm256_permutevar8x32_ps(table[i / 8], _mm256_set1_epi32(i as i32 % 8));
            let (first, others) = (at(first), at(others));
            [first, first, others, others]
        }
    }

    #[inline(always)]
    fn halves_of(self, bytes: [u8; 4]) -> [f32; 2] {
        with_avx2! {
            let two = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes(bytes)));
            let two = _mm_blendv_ps(two, _mm_set1_ps(f32::NAN), _mm_cmpunord_ps(two, two));
            [_mm_cvtss_f32(two), _mm_cvtss_f32(_mm_movehdup_ps(two))]
        }
    }

    #[inline(always)]
    fn read_f32(self, bytes: &[u8; 128]) -> Self::F {
        let quarters = bytes.as_chunks::<32>().0;
        each!(i => self.without_payload(_mm256_loadu_ps(quarters[i].as_ptr().cast())))
    }

    #[inline(always)]
    fn read_bf16(self, bytes: &[u8; 64]) -> Self::F {
        let quarters = bytes.as_chunks::<16>().0;
        each!(i =>
            let wide = _mm256_cvtepu16_epi32(self.load(&quarters[i]));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        )
    }

    #[inline(always)]
    fn read_f16(self, bytes: &[u8; 64]) -> Self::F {
        let quarters = bytes.as_chunks::<16>().0;
        each!(i => self.without_payload(_mm256_cvtph_ps(self.load(&quarters[i]))))
    }

    #[inline(always)]
    fn read_e5m2(self, bytes: &[u8; 32]) -> Self::F {
        let quarters = self.quarters(self.bytes(bytes));
        each!(i => _mm256_cvtph_ps(_mm_slli_epi16::<8>(_mm_cvtepu8_epi16(quarters[i]))))
    }

    /// As an f16, an e4m3fn is 2^-8 of what it stands for, subnormal or not.
    #[inline(always)]
    fn read_e4m3(self, bytes: &[u8; 32]) -> Self::F {
        let quarters = self.quarters(self.bytes(bytes));
        each!(i =>
            let shifted = _mm_slli_epi16::<7>(_mm_cvtepi8_epi16(quarters[i]));
            let nan = _mm_set1_epi16(0x3f80);
            let is_nan = _mm_cmpeq_epi16(_mm_and_si128(shifted, nan), nan);
            let half = _mm_and_si128(shifted, _mm_set1_epi16(0xbf80_u16 as i16));
            let half = _mm_or_si128(half, _mm_and_si128(is_nan, _mm_set1_epi16(0x7e00)));
            _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0))
        )
    }

    #[inline(always)]
    fn write_f32(self, numbers: Self::F, bytes: &mut [u8; 128]) {
        for (bytes, numbers) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(numbers) {
            self.store(bytes, with_avx2! { _mm256_castps_si256(numbers) });
        }
    }

    #[inline(always)]
    fn write_bf16(self, numbers: Self::F, bytes: &mut [u8; 64]) {
        let [a, b, c, d] = numbers;
        let words = [self.rounded(a), self.rounded(b), self.rounded(c), self.rounded(d)];
        for (bytes, words) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(words.as_chunks::<2>().0) {
            // Packing takes the lower halves of both before the upper ones.
            self.store(
                bytes,
                with_avx2! {
                    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(words[0], words[1]))
                },
            );
        }
    }

    #[inline(always)]
    fn write_f16(self, numbers: Self::F, bytes: &mut [u8; 64]) {
        let words = each!(i => _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(numbers[i]));
        for (bytes, words) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(words.as_chunks::<2>().0) {
            self.store(bytes, with_avx2! { _mm256_set_m128i(words[1], words[0]) });
        }
    }
}
