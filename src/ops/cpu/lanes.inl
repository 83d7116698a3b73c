// Vectors of numbers: what the compiler knows of them in every instruction set, and the functions that the kernels take.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef int16_t vs __attribute__((vector_size(4 * LANES)));
typedef int8_t vb __attribute__((vector_size(LANES)));
// The same, anywhere in memory.
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t vb_any __attribute__((vector_size(LANES), aligned(1), may_alias));
// Twice as many small numbers: as bytes they fill half a vector.
typedef int8_t vb2_any __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE vf splat(float x) { return x - vf{}; }
INLINE vu splat(uint32_t x) { return x - vu{}; }
INLINE vi splat(int32_t x) { return x - vi{}; }
INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
INLINE void store(float* p, vf x) { *reinterpret_cast<vf_any*>(p) = x; }
INLINE vf select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
#if defined(__AVX512F__)
INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#else
INLINE vf max(vf a, vf b) { return select(a > b, a, b); }
INLINE vf min(vf a, vf b) { return select(a < b, a, b); }
#endif

// By halves, which loses less than one after the other.
INLINE float sum(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
#endif
}

// bf16 is the upper half of f32; narrowing rounds to the nearest, ties to even, and keeps NaN.
INLINE float wide(uint16_t x) {
  uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
#if defined(__AVX512BF16__)
// What is smaller than the smallest normal number becomes zero.
INLINE vh narrowed(vf x) { return (vh)_mm512_cvtneps_pbh((__m512)x); }
INLINE vu rounded(vf x) { return __builtin_convertvector(narrowed(x), vu); }
#else
INLINE vu rounded(vf x) {
  vu bits = (vu)x;
  vu up = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  vi nan = x != x;
  return ((vu)nan & 0x7fc0u) | (~(vu)nan & up);
}
INLINE vh narrowed(vf x) { return __builtin_convertvector(rounded(x), vh); }
#endif
INLINE uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE vf load(const uint16_t* p) {
  return (vf)(__builtin_convertvector(*reinterpret_cast<const vh_any*>(p), vu) << 16);
}
INLINE void store(uint16_t* p, vf x) { *reinterpret_cast<vh_any*>(p) = narrowed(x); }

// A number's place in a row of either kind.
INLINE float number(const float* p) { return *p; }
INLINE float number(const uint16_t* p) { return wide(*p); }
INLINE void put(float* p, float x) { *p = x; }
INLINE void put(uint16_t* p, float x) { *p = narrow(x); }

// The first `n` numbers of a vector, zeros behind them.
template <class T>
INLINE vf load_some(const T* p, int64_t n) {
  if (n >= LANES) return load(p);
  vf x{};
  for (int i = 0; i < n; i++) x[i] = number(p + i);
  return x;
}
template <class T>
INLINE void store_some(T* p, vf x, int64_t n) {
  if (n >= LANES) return store(p, x);
  for (int i = 0; i < n; i++) put(p + i, x[i]);
}

// Where lane i of a vector comes from, of two that follow one another, when the first's odd blocks of S lanes change
// places with the second's even ones.
template <int S, bool second>
constexpr int source(int i) {
  return second ? (i & S ? LANES + i : i + S) : (i & S ? LANES + i - S : i);
}
// The lanes of these numbers, those of `b` behind those of `a`.
template <int... lanes>
INLINE vu shuffled(vu a, vu b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, lanes...);
#else
  return __builtin_shuffle(a, b, vu{uint32_t(lanes)...});
#endif
}
template <int S, bool second, int... i>
INLINE vu exchanged(vu a, vu b, std::integer_sequence<int, i...>) {
  return shuffled<source<S, second>(i)...>(a, b);
}

// Rows become columns: of LANES vectors, block by block of half the size.
template <int S = LANES / 2>
INLINE void transpose(vu (&x)[LANES]) {
  if constexpr (S > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
      if (i & S) continue;
      vu a = x[i], b = x[i + S];
      x[i] = exchanged<S, false>(a, b, std::make_integer_sequence<int, LANES>());
      x[i + S] = exchanged<S, true>(a, b, std::make_integer_sequence<int, LANES>());
    }
    transpose<S / 2>(x);
  }
}

// y · 2^n; the whole numbers n lie in the lowest bits of `shifted`, to which 1.5 · 2²³ was added.
INLINE vf scaled(vf y, vf shifted) {
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)y, (__m512)(shifted - 12582912.0f));
#else
  // Two factors, since the smallest and the largest powers are no single f32.
  vi n = (vi)shifted - 0x4b400000;
  vi half = n >> 1;
  return y * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
#endif
}

// 2^x, within two units of the last place; 0 far below and infinity far above.
INLINE vf exp2(vf x) {
  // In this order NaN stays NaN.
  vf bounded = min(splat(129.0f), max(splat(-150.0f), x));
  // Adding 1.5 · 2²³ rounds to the nearest whole number.
  vf shifted = bounded + 12582912.0f;
  vf t = bounded - (shifted - 12582912.0f);
  // The Taylor series, which on −½..½ is off by less than f32 can tell.
  vf y = splat(1.5252733804059838e-5f);
  y = y * t + 1.5403530393381609e-4f;
  y = y * t + 1.3333558146428443e-3f;
  y = y * t + 9.6181291076284772e-3f;
  y = y * t + 5.5504108664821580e-2f;
  y = y * t + 2.4022650695910071e-1f;
  y = y * t + 6.9314718055994531e-1f;
  y = y * t + 1.0f;
  return scaled(y, shifted);
}

// 2^x below 128, to five digits.
INLINE vf rough_exp2(vf x) {
  vf bounded = max(splat(-150.0f), x);
  vf shifted = bounded + 12582912.0f;
  vf t = bounded - (shifted - 12582912.0f);
  // Of all polynomials of this degree the one that is off by the least part of the result on −½..½.
  vf y = splat(0.00957010191f);
  y = y * t + 0.0559178603f;
  y = y * t + 0.240247448f;
  y = y * t + 0.693121815f;
  y = y * t + 0.999999261f;
  return scaled(y, shifted);
}

// e^x, likewise. Taking n · ln 2 off in two pieces loses less than multiplying x by 1 / ln 2.
INLINE vf exp(vf x) {
  vf bounded = min(splat(89.0f), max(splat(-104.0f), x));
  vf shifted = bounded * 1.4426950408889634f + 12582912.0f;
  vf n = shifted - 12582912.0f;
  vf t = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  vf y = splat(1.984126984126984e-4f);
  y = y * t + 1.3888888888888889e-3f;
  y = y * t + 8.3333333333333333e-3f;
  y = y * t + 4.1666666666666667e-2f;
  y = y * t + 1.6666666666666667e-1f;
  y = y * t + 0.5f;
  y = y * t + 1.0f;
  y = y * t + 1.0f;
  return scaled(y, shifted);
}

// x · sigmoid(y); roughly, for results that are rounded to bf16.
template <bool rough>
INLINE vf gated(vf x, vf y) {
#if defined(__AVX512F__)
  // A division takes as long as the exponential; an estimate of 14 bits and a step of Newton's does as well. Infinity
  // would become NaN, so the denominator stays below it; in this order NaN stays NaN.
  vf e = rough ? rough_exp2(min(splat(115.0f), y * -1.4426950408889634f)) : exp(min(splat(80.0f), -y));
  vf inverse = (vf)_mm512_rcp14_ps((__m512)(1.0f + e));
  if constexpr (rough) return x * inverse;
  return x * (inverse * (2.0f - (1.0f + e) * inverse));
#else
  return x / (1.0f + (rough ? rough_exp2(min(splat(115.0f), y * -1.4426950408889634f)) : exp(-y)));
#endif
}

template <bool rough>
INLINE vf gelu_tanh(vf x) {
  // ½ (1 + tanh u) is sigmoid(2u).
  vf u2 = x * (1.5957691216057308f + 0.07135481282848735f * x * x);
  return gated<rough>(x, u2);
}

INLINE vf gelu_erf(vf x) {
  vf y;
  for (int i = 0; i < LANES; i++) y[i] = 0.5f * x[i] * std::erfc(-0.70710678118654752f * x[i]);
  return y;
}

template <bool rough>
INLINE vf activate(int32_t activation, vf x) {
  switch (activation) {
    case tch_flux::GELU_TANH: return gelu_tanh<rough>(x);
    case tch_flux::GELU_ERF: return gelu_erf(x);
    case tch_flux::QUICK_GELU: return gated<rough>(x, x * 1.702f);
    case tch_flux::SILU: return gated<rough>(x, x);
    default: return x;
  }
}

// What a 32-bit word of the packed matrices holds, and how it is multiplied: `dot` adds to each lane of `sums` the
// product of the words of `a` and `b`, PIECE words at most before the sums are added to
// others, or SHORT ones where there are not so many. Every kind runs in every instruction set, so that all can be tested in each.
struct F32Words {
  typedef vf Sums;
  static constexpr int NUMBERS = 1, PIECE = 128, SHORT = 16;
  static INLINE vf dot(vf sums, vu a, vu b) { return sums + (vf)a * (vf)b; }
};

// Two bf16, the first in the lower half.
struct Bf16Words {
  typedef vf Sums;
  static constexpr int NUMBERS = 2, PIECE = 1 << 20, SHORT = PIECE;
#if defined(__AVX512BF16__)
  static INLINE vf dot(vf sums, vu a, vu b) {
    return (vf)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
  }
#else
  static INLINE vf dot(vf sums, vu a, vu b) {
    sums += (vf)(a << 16) * (vf)(b << 16);
    return sums + (vf)(a & 0xffff0000u) * (vf)(b & 0xffff0000u);
  }
#endif
};

// Two int16.
struct I16Words {
  typedef vi Sums;
  static constexpr int NUMBERS = 2, PIECE = 1 << 20, SHORT = PIECE;
#if defined(__AVX512BW__)
  static INLINE vi dot(vi sums, vu a, vu b) { return sums + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
  static INLINE vi dot(vi sums, vu a, vu b) { return sums + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#elif defined(__SSE2__)
  static INLINE vi dot(vi sums, vu a, vu b) { return sums + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#else
  static INLINE vi dot(vi sums, vu a, vu b) {
    return sums + (((vi)a << 16) >> 16) * (((vi)b << 16) >> 16) + ((vi)a >> 16) * ((vi)b >> 16);
  }
#endif
};

// Four int8; those of `a` have 128 added and no sign.
struct I8Words {
  typedef vi Sums;
  static constexpr int NUMBERS = 4, PIECE = 1 << 20, SHORT = PIECE;
#if defined(__AVX512VNNI__)
  static INLINE vi dot(vi sums, vu a, vu b) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
  }
#else
  static INLINE vi dot(vi sums, vu a, vu b) {
    for (int i = 0; i < 4; i++) sums += (vi)((a >> (8 * i)) & 0xffu) * (((vi)b << (24 - 8 * i)) >> 24);
    return sums;
  }
#endif
};

// What the instruction set multiplies fastest.
#if defined(__AVX512BF16__)
constexpr bool HAS_BF16 = true;
#else
constexpr bool HAS_BF16 = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool HAS_INT8 = true;
#else
constexpr bool HAS_INT8 = false;
#endif

// A tile of the result: MR rows of NR numbers, held in registers while KC words are multiplied.
#if defined(__AVX512F__)
constexpr int MR = 12, KC = 256;
#elif defined(__AVX2__) || defined(__SSE2__)
constexpr int MR = 6, KC = 384;
#else
constexpr int MR = 8, KC = 256;
#endif
constexpr int NV = 2, NR = NV * LANES;

// Sums of a piece of k on top of those of the pieces before. Each piece starts from zero: adding few large sums loses
// less than adding many small products to a large one.
template <class Sums>
INLINE void add(float* c, Sums sums, bool fresh) {
  store(c, (vf)(fresh ? sums : (Sums)load(c) + sums));
}

// c[rows][NR] (+)= aᵀ · b over the words from k to kc, of W: `lda` words of a lie from one place of k to the next.
template <class W, int rows>
INLINE void piece(int64_t k, int64_t kc, const uint32_t* __restrict a, int64_t lda, const uint32_t* __restrict b,
                 float* __restrict c, int64_t ldc, bool fresh) {
  typedef typename W::Sums Sums;
  Sums sums[rows][NV];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sums[i][j] = Sums{};
  for (; k < kc; k++) {
    vu right[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) right[j] = *reinterpret_cast<const vu_any*>(b + k * NR + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      vu left = splat(a[k * lda + i]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sums[i][j] = W::dot(sums[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) add(c + i * ldc + j * LANES, sums[i][j], fresh);
}

// The same, with the words of each row of a one after the other at a place of its own.
template <class W, int rows>
INLINE void piece_of_rows(int64_t k, int64_t kc, const uint32_t* const* a, const uint32_t* __restrict b, float* __restrict c,
                         int64_t ldc, bool fresh) {
  typedef typename W::Sums Sums;
  Sums sums[rows][NV];
  const uint32_t* at[rows];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
    at[i] = a[i];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) sums[i][j] = Sums{};
  }
  for (; k < kc; k++) {
    vu right[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) right[j] = *reinterpret_cast<const vu_any*>(b + k * NR + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      uint32_t word;
      std::memcpy(&word, at[i] + k, 4);
      vu left = splat(word);
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) sums[i][j] = W::dot(sums[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) add(c + i * ldc + j * LANES, sums[i][j], fresh);
}

template <class W, int rows>
INLINE void tile(int64_t kc, const uint32_t* a, int64_t lda, const uint32_t* b, float* c, int64_t ldc, bool fresh) {
  int64_t length = kc < W::PIECE ? W::SHORT : W::PIECE;
  for (int64_t k = 0; k < kc; k += length) {
    piece<W, rows>(k, k + length < kc ? k + length : kc, a, lda, b, c, ldc, fresh && k == 0);
  }
}
template <class W, int rows>
INLINE void tile_of_rows(int64_t kc, const uint32_t* const* a, const uint32_t* b, float* c, int64_t ldc, bool fresh) {
  // A convolution adds the taps up on top of this, so its pieces are shorter.
  int64_t length = kc < W::PIECE ? W::SHORT : W::PIECE / 4;
  for (int64_t k = 0; k < kc; k += length) {
    piece_of_rows<W, rows>(k, k + length < kc ? k + length : kc, a, b, c, ldc, fresh && k == 0);
  }
}

// A tile of up to MR rows.
template <class W, int rows = MR>
INLINE void some_tile(int64_t count, int64_t kc, const uint32_t* a, int64_t lda, const uint32_t* b, float* c,
                      int64_t ldc, bool fresh) {
  if constexpr (rows > 0) {
    if (count == rows) return tile<W, rows>(kc, a, lda, b, c, ldc, fresh);
    return some_tile<W, rows - 1>(count, kc, a, lda, b, c, ldc, fresh);
  }
}
template <class W, int rows = MR>
INLINE void some_tile_of_rows(int64_t count, int64_t kc, const uint32_t* const* a, const uint32_t* b, float* c,
                              int64_t ldc, bool fresh) {
  if constexpr (rows > 0) {
    if (count == rows) return tile_of_rows<W, rows>(kc, a, b, c, ldc, fresh);
    return some_tile_of_rows<W, rows - 1>(count, kc, a, b, c, ldc, fresh);
  }
}

}  // namespace
