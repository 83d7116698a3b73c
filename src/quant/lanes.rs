//! Thirty-two numbers at a time, in what the processor has for it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

/// What there is to compute with.
#[derive(Clone, Copy)]
pub(super) enum Processor {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Plain(plain::Plain),
}

impl Processor {
    /// The ways that this processor knows, the best first.
    pub(super) fn ways() -> impl Iterator<Item = Self> {
        let plain = [Some(Self::Plain(plain::Plain))];
        #[cfg(target_arch = "x86_64")]
        let ways = [avx512::Avx512::detect().map(Self::Avx512), avx2::Avx2::detect().map(Self::Avx2)];
        #[cfg(not(target_arch = "x86_64"))]
        let ways = [];
        ways.into_iter().chain(plain).flatten()
    }

    pub(super) fn best() -> Self {
        Self::ways().next().unwrap_or(Self::Plain(plain::Plain))
    }
}

/// What a processor does with thirty-two numbers. A value of the type is the proof that it can.
///
/// The results are the same bits whichever it is, but for the payload of NaN.
pub(super) trait Lanes: Copy {
    /// Thirty-two numbers of f32.
    type F: Copy;
    /// Thirty-two bytes.
    type B: Copy;
    /// Sixteen numbers of f32.
    type Table: Copy;

    /// The same number everywhere.
    fn splat(self, number: f32) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;

    fn bytes(self, bytes: &[u8; 32]) -> Self::B;
    /// The lower halves of sixteen bytes, then the upper ones.
    fn halves(self, bytes: &[u8; 16]) -> Self::B;
    /// The upper half of a byte, then the lower one, then those of the next byte.
    fn pairs(self, bytes: &[u8; 16]) -> Self::B;
    /// `value` where the lane's bit is set, else 0.
    fn where_set(self, bits: u32, value: u8) -> Self::B;
    /// The bits of `mask`, moved from bit `from` to bit `to`, of which none leaves its byte.
    fn take(self, a: Self::B, mask: u8, from: usize, to: usize) -> Self::B;
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    fn minus(self, a: Self::B, b: u8) -> Self::B;
    /// What stands in the table at these places, below 16.
    fn pick(self, table: &[u8; 16], at: Self::B) -> Self::B;
    /// Of bytes with a sign.
    fn to_float(self, a: Self::B) -> Self::F;

    fn table(self, numbers: &[f32; 16]) -> Self::Table;
    /// Of bytes with a sign.
    fn to_table(self, bytes: &[u8; 16]) -> Self::Table;
    /// The first eight multiplied by one number, the others by another.
    fn times(self, table: Self::Table, first: f32, others: f32) -> Self::Table;
    /// What stands in the table at these places, below 16.
    fn lookup(self, table: Self::Table, at: Self::B) -> Self::F;
    /// For the first sixteen what stands at one place, for the others what stands at another.
    fn spread(self, table: Self::Table, first: usize, others: usize) -> Self::F;

    /// Two of f16.
    fn halves_of(self, bytes: [u8; 4]) -> [f32; 2];

    // Every NaN that is read becomes one whose lower bits are 0.
    fn read_f32(self, bytes: &[u8; 128]) -> Self::F;
    fn read_bf16(self, bytes: &[u8; 64]) -> Self::F;
    fn read_f16(self, bytes: &[u8; 64]) -> Self::F;
    fn read_e5m2(self, bytes: &[u8; 32]) -> Self::F;
    fn read_e4m3(self, bytes: &[u8; 32]) -> Self::F;

    fn write_f32(self, numbers: Self::F, bytes: &mut [u8; 128]);
    /// The lower bits of a NaN must be 0, else it may become a number.
    fn write_bf16(self, numbers: Self::F, bytes: &mut [u8; 64]);
    fn write_f16(self, numbers: Self::F, bytes: &mut [u8; 64]);
}

/// What numbers are written as, thirty-two at a time.
pub(super) trait Output {
    /// The bytes of thirty-two.
    const BYTES: usize;
    fn put<L: Lanes>(l: L, numbers: L::F, out: &mut [u8]);
}

/// f32.
pub(super) struct F32;
/// bf16.
pub(super) struct Bf16;
/// f16.
pub(super) struct F16;

impl Output for F32 {
    const BYTES: usize = 128;

    #[inline(always)]
    fn put<L: Lanes>(l: L, numbers: L::F, out: &mut [u8]) {
        if let Some(out) = out.first_chunk_mut() {
            l.write_f32(numbers, out);
        }
    }
}

impl Output for Bf16 {
    const BYTES: usize = 64;

    #[inline(always)]
    fn put<L: Lanes>(l: L, numbers: L::F, out: &mut [u8]) {
        if let Some(out) = out.first_chunk_mut() {
            l.write_bf16(numbers, out);
        }
    }
}

impl Output for F16 {
    const BYTES: usize = 64;

    #[inline(always)]
    fn put<L: Lanes>(l: L, numbers: L::F, out: &mut [u8]) {
        if let Some(out) = out.first_chunk_mut() {
            l.write_f16(numbers, out);
        }
    }
}
