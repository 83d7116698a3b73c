// Matrix products whose weights stay as they are in memory: pieces of both matrices are put into the order in which the
// registers want them, a piece that fits a core's cache at a time, and the end of the layer is computed on the sums
// while they are in that cache.

namespace {

using tch_flux::Kind;
using tch_flux::Pool;
using tch_flux::Product;
using tch_flux::Rows;
using tch_flux::Window;

// Columns of the result that a task computes, in a matrix product.
constexpr int NB = 6 * NR;
// Rows of the result that are computed together, so that the left matrix' words stay within a bound.
constexpr int64_t ROWS = 128 * MR;

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE size_t aligned(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

template <class T>
INLINE const T* row(const Rows& rows, int64_t i) {
  return static_cast<const T*>(rows.data) + i * rows.stride;
}
template <class T>
INLINE T* row_mut(const Rows& rows, int64_t i) {
  return const_cast<T*>(row<T>(rows, i));
}

// Calls `f` with the type of a kind of floats.
template <class F>
INLINE void with_kind(int32_t kind, F f) {
  if (kind == tch_flux::BF16) f(uint16_t()); else f(float());
}

// ---- numbers into words

template <class T>
INLINE uint32_t word(F32Words, const T* p, int64_t k, int64_t) {
  float x = number(p + k);
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
template <class T>
INLINE uint32_t word(Bf16Words, const T* p, int64_t k, int64_t end) {
  uint32_t low = narrow(number(p + k)), high = k + 1 < end ? narrow(number(p + k + 1)) : 0;
  return low | high << 16;
}
INLINE uint32_t word(Bf16Words, const uint16_t* p, int64_t k, int64_t end) {
  if (k + 1 >= end) return p[k];
  uint32_t both;
  std::memcpy(&both, p + k, 4);
  return both;
}
INLINE uint32_t word(I16Words, const int8_t* p, int64_t k, int64_t end) {
  uint32_t low = uint16_t(int16_t(p[k])), high = k + 1 < end ? uint16_t(int16_t(p[k + 1])) : 0;
  return low | high << 16;
}
INLINE uint32_t word(I8Words, const int8_t* p, int64_t k, int64_t end) {
  if (k + 4 <= end) {
    uint32_t all;
    std::memcpy(&all, p + k, 4);
    return all;
  }
  uint32_t bits = 0;
  for (int64_t i = k; i < end; i++) bits |= uint32_t(uint8_t(p[i])) << (8 * (i - k));
  return bits;
}

// LANES whole words.
template <class T>
INLINE vu words(F32Words, const T* p) { return (vu)load(p); }
INLINE vu words(Bf16Words, const uint16_t* p) { return *reinterpret_cast<const vu_any*>(p); }
INLINE vu words(Bf16Words, const float* p) {
#if defined(__AVX512BF16__)
  return (vu)_mm512_cvtne2ps_pbh((__m512)load(p + LANES), (__m512)load(p));
#else
  uint16_t narrowed[2 * LANES];
  store(narrowed, load(p));
  store(narrowed + LANES, load(p + LANES));
  return words(Bf16Words(), narrowed);
#endif
}
INLINE vu words(I16Words, const int8_t* p) {
  return (vu)__builtin_convertvector(*reinterpret_cast<const vb2_any*>(p), vs);
}
INLINE vu words(I8Words, const int8_t* p) { return *reinterpret_cast<const vu_any*>(p); }

// How many words ahead memory is asked for: so many rows at once are more than a core foresees.
constexpr int64_t AHEAD = 256;

// Words from `k0` on of `count` ≤ WIDTH rows, so that those of one place stand together: out[kc][WIDTH]. The columns
// from COLUMN on.
template <class W, int WIDTH, int COLUMN = 0, class T>
void pack(const T* rows, int64_t stride, int64_t count, int64_t k0, int64_t kc, int64_t k_end, uint32_t* out) {
  constexpr int G = W::NUMBERS, COLUMNS = WIDTH - COLUMN < LANES ? WIDTH - COLUMN : LANES;
  int64_t k = 0, whole = COLUMN + COLUMNS <= count ? smaller(k_end / G - k0, kc) : 0;
  for (; k + LANES <= whole; k += LANES) {
    vu block[LANES];
#pragma GCC unroll 16
    for (int j = 0; j < LANES; j++) {
      const T* p = rows + (COLUMN + j) * stride + (k0 + k) * G;
      if (j < COLUMNS) __builtin_prefetch(p + AHEAD * G);
      block[j] = j < COLUMNS ? words(W(), p) : vu{};
    }
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) std::memcpy(out + (k + i) * WIDTH + COLUMN, &block[i], COLUMNS * 4);
  }
  for (; k < kc; k++) {
    for (int j = COLUMN; j < COLUMN + COLUMNS; j++) {
      out[k * WIDTH + j] = j < count ? word(W(), rows + j * stride, (k0 + k) * G, k_end) : 0;
    }
  }
  if constexpr (COLUMN + COLUMNS < WIDTH) pack<W, WIDTH, COLUMN + COLUMNS>(rows, stride, count, k0, kc, k_end, out);
}

// ---- the end of a product

// n results of row m, from its sums on.
template <class C, int32_t activation, bool exact, class Bias>
void finish_row(const Product& p, int64_t m, int64_t n0, int64_t n, const float* sums, float a_scale) {
  C* c = row_mut<C>(p.c, m) + n0;
  const Bias* bias = p.bias.data ? row<Bias>(p.bias, 0) + n0 : nullptr;
  const C* factor = p.end.factor.data ? row<C>(p.end.factor, m) + n0 : nullptr;
  const C* residual = p.end.residual.data ? row<C>(p.end.residual, m) + n0 : nullptr;
  const C* gate = p.end.gate.data ? row<C>(p.end.gate, m / p.end.gate_every) + n0 : nullptr;
  for (int64_t j = 0; j < n; j += LANES) {
    int64_t left = n - j;
    vf x = load(sums + j);
    if constexpr (exact) x = __builtin_convertvector((vi)x, vf) * load_some(p.w_scale + n0 + j, left) * a_scale;
    if (bias) x += load_some(bias + j, left);
    x = activate<std::is_same<C, uint16_t>::value>(activation, x);
    if (factor) x *= load_some(factor + j, left);
    if (gate) x *= load_some(gate + j, left);
    if (residual) x += load_some(residual + j, left);
    store_some(c + j, x, left);
  }
}

// The same for `count` rows from m on, whose sums are `stride` apart; `a_scales` of int8 rows.
template <class C, int32_t activation, bool exact, class Bias>
void finish_rows(const Product& p, int64_t m, int64_t count, int64_t n0, int64_t n, const float* sums, int64_t stride,
                 const float* a_scales) {
  for (int64_t i = 0; i < count; i++) {
    finish_row<C, activation, exact, Bias>(p, m + i, n0, n, sums + i * stride, exact ? a_scales[i] : 1.0f);
  }
}

template <class F>
INLINE void with_activation(int32_t activation, F f) {
  switch (activation) {
    case tch_flux::GELU_TANH: return f(std::integral_constant<int32_t, tch_flux::GELU_TANH>());
    case tch_flux::GELU_ERF: return f(std::integral_constant<int32_t, tch_flux::GELU_ERF>());
    case tch_flux::QUICK_GELU: return f(std::integral_constant<int32_t, tch_flux::QUICK_GELU>());
    case tch_flux::SILU: return f(std::integral_constant<int32_t, tch_flux::SILU>());
    default: return f(std::integral_constant<int32_t, tch_flux::NONE>());
  }
}

void finish_rows(const Product& p, int64_t m, int64_t count, int64_t n0, int64_t n, const float* sums, int64_t stride,
                 const float* a_scales = nullptr) {
  with_activation(p.end.activation, [&](auto activation) {
    with_kind(p.c.kind, [&](auto c) {
      with_kind(p.bias.kind, [&](auto bias) {
        typedef decltype(c) C;
        typedef decltype(bias) B;
        constexpr int32_t A = decltype(activation)::value;
        if (p.w_scale) finish_rows<C, A, true, B>(p, m, count, n0, n, sums, stride, a_scales);
        else finish_rows<C, A, false, B>(p, m, count, n0, n, sums, stride, a_scales);
      });
    });
  });
}

// ---- one matrix product

// Activations of one token as int8: its largest number becomes 127. Returns what a unit is worth. Writes whole vectors,
// so up to LANES − 1 bytes behind the row. Of a row with NaN or infinity a unit is worth NaN: no int8 is.
template <class T>
float quantize_row(const T* x, int64_t k, int8_t* out) {
  vf most{}, zeros{};
  for (int64_t i = 0; i < k; i += LANES) {
    vf v = load_some(x + i, k - i);
    most = max(most, max(v, -v));
    zeros += v * 0.0f;
  }
  float largest = 0, zero = 0;
  for (int i = 0; i < LANES; i++) largest = most[i] > largest ? most[i] : largest, zero += zeros[i];
  float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  for (int64_t i = 0; i < k; i += LANES) {
    // Adding 1.5 · 2²³ rounds to the nearest whole number, which is then in the lowest bits.
    vi whole = (vi)(load_some(x + i, k - i) * inverse + 12582912.0f) - 0x4b400000;
    *reinterpret_cast<vb_any*>(out + i) = __builtin_convertvector(whole, vb);
  }
  return largest / 127.0f + zero;
}

template <class W, class>
struct Plan {
  static constexpr bool INTEGER = W::NUMBERS == 4 || std::is_same<W, I16Words>::value;
  int64_t words, rows, blocks, splits, tasks, threads;
  size_t left, scales, per_thread, quantized, right, sums;

  Plan(const Product& p, int64_t threads_) : threads(threads_) {
    words = ceil_div(p.k, W::NUMBERS);
    rows = smaller(ROWS, ceil_div(p.m, MR) * MR);
    blocks = ceil_div(p.n, NB);
    // Few columns: the rows are shared out, too.
    int64_t wanted = ceil_div(2 * threads, blocks), most = ceil_div(rows / MR, 8);
    splits = smaller(wanted, most < 1 ? 1 : most);
    tasks = blocks * splits;
    left = aligned(size_t(rows) * words * 4);
    scales = aligned(rows * 4);
    // Rows one after the other, and what a vector writes behind the last.
    quantized = INTEGER ? aligned(size_t(MR) * p.k + 4 * LANES) : 0;
    right = aligned(size_t(KC) * NB * 4);
    sums = aligned(size_t(ceil_div(rows / MR, splits)) * MR * NB * 4);
    per_thread = quantized + right + sums;
  }
  size_t bytes() const { return left + scales + threads * per_thread; }
};

template <class W, class A, class B>
struct MatrixProduct {
  const Product& p;
  Plan<W, A> plan;
  char* scratch;
  int64_t m0, rows;  // of the present part

  uint32_t* left() const { return reinterpret_cast<uint32_t*>(scratch); }
  float* scales() const { return reinterpret_cast<float*>(scratch + plan.left); }
  char* mine(int64_t thread) const { return scratch + plan.left + plan.scales + thread * plan.per_thread; }
  int64_t panels() const { return ceil_div(rows, MR); }
  // The words of a panel from word k0 on, kc of them.
  uint32_t* panel(int64_t i, int64_t k0, int64_t kc) const {
    return left() + (k0 * panels() + i * kc) * MR;
  }

  // MR rows of the left matrix into words.
  void pack_left(int64_t i, int64_t thread) {
    int64_t first = m0 + i * MR, count = smaller(MR, p.m - first);
    if constexpr (Plan<W, A>::INTEGER) {
      int8_t* bytes = reinterpret_cast<int8_t*>(mine(thread));
      int64_t stride = p.k;
      for (int64_t r = 0; r < count; r++) {
        scales()[i * MR + r] = quantize_row(row<A>(p.a, first + r), p.k, bytes + r * stride);
      }
      for (int64_t k0 = 0; k0 < plan.words; k0 += KC) {
        int64_t kc = smaller(KC, plan.words - k0);
        uint32_t* out = panel(i, k0, kc);
        pack<W, MR>(bytes, stride, count, k0, kc, p.k, out);
        if constexpr (W::NUMBERS == 4) {
          // Without a sign: 128 more, which the sums of the weights' rows take off again.
          for (int64_t k = 0; k < kc * MR; k++) out[k] ^= 0x80808080u;
        }
      }
    } else {
      for (int64_t k0 = 0; k0 < plan.words; k0 += KC) {
        int64_t kc = smaller(KC, plan.words - k0);
        pack<W, MR>(row<A>(p.a, first), p.a.stride, count, k0, kc, p.k, panel(i, k0, kc));
      }
    }
  }

  void task(int64_t index, int64_t thread) {
    // A thread has the same rows in call after call.
    int64_t split = index / plan.blocks, block = index % plan.blocks;
    int64_t per_split = ceil_div(panels(), plan.splits);
    int64_t from = split * per_split, to = smaller(from + per_split, panels());
    if (from >= to) return;
    int64_t n0 = block * NB, columns = smaller(NB, p.n - n0);
    uint32_t* right = reinterpret_cast<uint32_t*>(mine(thread) + plan.quantized);
    float* sums = reinterpret_cast<float*>(mine(thread) + plan.quantized + plan.right);
    for (int64_t k0 = 0; k0 < plan.words; k0 += KC) {
      int64_t kc = smaller(KC, plan.words - k0);
      for (int64_t j = 0; j < columns; j += NR) {
        pack<W, NR>(row<B>(p.w, n0 + j), p.w.stride, smaller(NR, columns - j), k0, kc, p.k, right + j * kc);
      }
      for (int64_t i = from; i < to; i++) {
        int64_t count = smaller(MR, rows - i * MR);
        for (int64_t j = 0; j < columns; j += NR) {
          float* c = sums + (i - from) * MR * NB + j;
          some_tile<W>(count, kc, panel(i, k0, kc), MR, right + j * kc, c, NB, k0 == 0);
        }
      }
    }
    int64_t first = from * MR, count = smaller(to * MR, rows) - first;
    if constexpr (W::NUMBERS == 4) {
      int32_t* exact = reinterpret_cast<int32_t*>(sums);
      for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < columns; j++) exact[i * NB + j] -= 128 * p.w_sum[n0 + j];
    }
    finish_rows(p, m0 + first, count, n0, columns, sums, NB, scales() + first);
  }

  void run(const Pool& pool) {
    for (m0 = 0; m0 < p.m; m0 += plan.rows) {
      rows = smaller(plan.rows, p.m - m0);
      pool.run(panels(), [](void* self, int64_t i, int64_t thread) {
        static_cast<MatrixProduct*>(self)->pack_left(i, thread);
      }, this);
      pool.run(plan.tasks, [](void* self, int64_t i, int64_t thread) {
        static_cast<MatrixProduct*>(self)->task(i, thread);
      }, this);
    }
  }
};

}  // namespace

#if defined(__AMX_TILE__)
#include "tiles.inl"
#endif
#include "convolution.inl"
#include "winograd.inl"

namespace {

// ---- few rows: nothing is packed, and every weight is read once

template <class A, class B>
struct FewRows {
  const Product& p;
  static constexpr int64_t COLUMNS = 16;

  void task(int64_t index) {
    int64_t n0 = index * COLUMNS, n = smaller(COLUMNS, p.n - n0);
    float sums[COLUMNS + LANES] = {};
    for (int64_t m = 0; m < p.m; m++) {
      for (int64_t j = 0; j < n; j++) {
        const A* a = row<A>(p.a, m);
        const B* b = row<B>(p.w, n0 + j);
        vf part[4] = {};
        int64_t k = 0;
        for (; k + 4 * LANES <= p.k; k += 4 * LANES)
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++) part[i] += load(a + k + i * LANES) * load(b + k + i * LANES);
        for (; k < p.k; k += LANES) part[0] += load_some(a + k, p.k - k) * load_some(b + k, p.k - k);
        sums[j] = sum((part[0] + part[1]) + (part[2] + part[3]));
      }
      finish_rows(p, m, 1, n0, n, sums, COLUMNS);
    }
  }

  void run(const Pool& pool) {
    pool.run(ceil_div(p.n, COLUMNS), [](void* self, int64_t i, int64_t) {
      static_cast<FewRows*>(self)->task(i);
    }, this);
  }
};

constexpr int64_t FEW = 4;

// The thread that asks, without the others.
constexpr Pool ALONE = {[](int64_t count, void (*task)(void*, int64_t, int64_t), void* context) {
  for (int64_t i = 0; i < count; i++) task(context, i, 0);
}, 1};
// Numbers that one thread is done with before the others are awake.
constexpr int64_t QUICK = 16 << 10;
const Pool* worth(int64_t numbers, const Pool* threads) { return numbers < QUICK ? &ALONE : threads; }

// How bf16 and int8 words are multiplied.
#if defined(__AMX_TILE__)
constexpr bool HAS_TILES = true;
template <class W, class A>
using NarrowPlan = TilePlan<W, A>;
template <class W, class A, class B>
using NarrowProduct = TileProduct<W, A, B>;
using NarrowConvolutionPlan = PatchPlan;
template <class B>
using NarrowConvolution = Patches<B>;
#else
constexpr bool HAS_TILES = false;
template <class W, class A>
using NarrowPlan = Plan<W, A>;
template <class W, class A, class B>
using NarrowProduct = MatrixProduct<W, A, B>;
using NarrowConvolutionPlan = ConvolutionPlan<Bf16Words>;
template <class B>
using NarrowConvolution = Convolution<Bf16Words, B>;
#endif

// The words that a product is computed in.
enum Words { AS_F32, AS_BF16, AS_I16, AS_I8 };
Words words_of(const Product& p) {
  // A convolution reads the input's words where they lie.
  if (p.window) return p.a.kind == tch_flux::BF16 ? AS_BF16 : AS_F32;
  if (p.words != tch_flux::OWN_WORDS) return Words(p.words - 1);
  if (p.w.kind == tch_flux::I8) return HAS_INT8 ? AS_I8 : AS_I16;
  bool narrow = p.a.kind == tch_flux::BF16 && p.w.kind == tch_flux::BF16;
  return HAS_BF16 && narrow ? AS_BF16 : AS_F32;
}

bool few(const Product& p) { return p.m <= FEW && p.w.kind != tch_flux::I8 && !p.window; }

// Threads that a product is worth: to call them and to wait for the last takes some microseconds.
int64_t worth(const Product& p, int64_t threads) {
  constexpr int64_t MULTIPLIED = 1 << 20, IN_TILES = 4 << 20, OF_FEW_ROWS = 128 << 10;
  Words words = words_of(p);
  bool tiles = HAS_TILES && (words == AS_BF16 || words == AS_I8);
  int64_t least = few(p) ? OF_FEW_ROWS : tiles ? IN_TILES : MULTIPLIED;
  return p.m * p.n * p.k < least ? 1 : threads;
}

size_t product_scratch(const Product* p, int64_t threads_) {
  int64_t threads = worth(*p, threads_);
  if (few(*p)) return 0;
  Words words = words_of(*p);
  if (p->window) {
    if (winograd(*p)) return WinogradPlan(*p, threads).bytes();
    if (words == AS_F32) return ConvolutionPlan<F32Words>(*p).bytes(threads);
    return NarrowConvolutionPlan(*p, threads).bytes(threads);
  }
  size_t bytes = 0;
  with_kind(p->a.kind, [&](auto a) {
    typedef decltype(a) A;
    switch (words) {
      case AS_F32: bytes = Plan<F32Words, A>(*p, threads).bytes(); break;
      case AS_BF16: bytes = NarrowPlan<Bf16Words, A>(*p, threads).bytes(); break;
      case AS_I16: bytes = Plan<I16Words, A>(*p, threads).bytes(); break;
      default: bytes = NarrowPlan<I8Words, A>(*p, threads).bytes();
    }
  });
  return bytes;
}

template <template <class, class, class> class Run, template <class, class> class Plan, class W, class A, class B>
void multiply(const Product& p, const Pool& pool, void* scratch) {
  Run<W, A, B>{p, Plan<W, A>(p, pool.threads), static_cast<char*>(scratch), 0, 0}.run(pool);
}

void product(const Product* product, const Pool* threads, void* scratch) {
  const Product& p = *product;
  const Pool* pool = worth(p, threads->threads) == 1 ? &ALONE : threads;
  Words words = words_of(p);
  if (few(p)) {
    with_kind(p.a.kind, [&](auto a) {
      with_kind(p.w.kind, [&](auto b) { FewRows<decltype(a), decltype(b)>{p}.run(*pool); });
    });
  } else if (p.window) {
    with_kind(p.w.kind, [&](auto b) {
      char* memory = static_cast<char*>(scratch);
      if (winograd(p)) return Winograd<decltype(b)>{p, WinogradPlan(p, pool->threads), memory}.run(*pool);
      typedef decltype(b) B;
      if (words == AS_F32) Convolution<F32Words, B>{p, ConvolutionPlan<F32Words>(p), memory}.run(*pool);
      else NarrowConvolution<B>{p, NarrowConvolutionPlan(p, pool->threads), memory}.run(*pool);
    });
  } else {
    with_kind(p.a.kind, [&](auto a) {
      typedef decltype(a) A;
      if (words == AS_I8) return multiply<NarrowProduct, NarrowPlan, I8Words, A, int8_t>(p, *pool, scratch);
      if (words == AS_I16) return multiply<MatrixProduct, Plan, I16Words, A, int8_t>(p, *pool, scratch);
      with_kind(p.w.kind, [&](auto b) {
        typedef decltype(b) B;
        if (words == AS_BF16) multiply<NarrowProduct, NarrowPlan, Bf16Words, A, B>(p, *pool, scratch);
        else multiply<MatrixProduct, Plan, F32Words, A, B>(p, *pool, scratch);
      });
    });
  }
}

// ---- the end alone

template <class A>
struct Finish {
  const Product& p;
  void task(int64_t m) {
    const A* a = row<A>(p.a, m);
    float numbers[256 + LANES];
    for (int64_t n0 = 0; n0 < p.n; n0 += 256) {
      int64_t n = smaller(256, p.n - n0);
      for (int64_t j = 0; j < n; j += LANES) store(numbers + j, load_some(a + n0 + j, n - j));
      finish_rows(p, m, 1, n0, n, numbers, n);
    }
  }
};

void finish(const Product* product, const Pool* threads) {
  const Pool* pool = worth(product->m * product->n, threads);
  with_kind(product->a.kind, [&](auto a) {
    Finish<decltype(a)> all{*product};
    pool->run(product->m, [](void* self, int64_t m, int64_t) { static_cast<Finish<decltype(a)>*>(self)->task(m); }, &all);
  });
}

}  // namespace
