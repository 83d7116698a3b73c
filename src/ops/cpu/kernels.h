// What the builds of kernels.inl for the several instruction sets offer, and how they are called. Plain C: nothing here
// may be compiled twice under one name with different instructions.

#pragma once

#include <cstddef>
#include <cstdint>

namespace tch_flux {

// Kinds of numbers in memory. The arithmetic is always f32, or int32 where weights are int8.
enum Kind : int32_t { F32 = 0, BF16 = 1, I8 = 2 };

enum Activation : int32_t { NONE = 0, GELU_TANH = 1, GELU_ERF = 2, QUICK_GELU = 3, SILU = 4 };

// What packed words hold: the build's own choice, or one that a test asks for.
enum Words : int32_t { OWN_WORDS = 0, F32_WORDS = 1, BF16_WORDS = 2, I16_WORDS = 3, I8_WORDS = 4 };

// Rows of numbers that are dense in themselves, `stride` numbers from one to the next.
struct Rows {
  const void* data;
  int64_t stride;
  int32_t kind;
};

// Where the rows of a convolution's left matrix come from: an output pixel's row is its `taps`² neighbours' channels,
// one after the other. The input is [height, width, channels]; `shift` is 1 where it is doubled in both directions
// first (nearest neighbour), else 0; zeros lie around it. The input is F32, or BF16 with an even count of channels, and
// the weight [n, channels, taps, taps], as libtorch has it.
struct Window {
  int64_t batch, height, width;          // of the input as it lies in memory
  int64_t out_height, out_width;
  int64_t channels;
  int64_t taps, stride, pad_top, pad_left;
  int32_t shift;
};

// What becomes of a sum: residual[m, n] + gate[n] · act(sum) · factor[m, n]; what is null is left out.
struct End {
  int32_t activation;
  Rows factor, residual;
  Rows gate;                // a row for each `gate_every` rows of the result
  int64_t gate_every;
};

// c[m, n] = end(Σ_k a[m, k] · w[n, k] + bias[n])
struct Product {
  int64_t m, n, k;
  Rows a;                   // with a window, its pixels
  Rows w;                   // [n, k], F32, BF16 or I8
  const float* w_scale;     // [n], for I8
  const int32_t* w_sum;     // [n], for I8: the sum of each row
  Rows bias;                // one row
  Rows c;                   // F32 or BF16
  End end;
  const Window* window;     // null for an ordinary matrix
  int32_t words;
};

// out = (1 + scale) · norm(x) + shift over rows of `width`; scale and shift have a row for each `every` rows of x.
struct Modulate {
  int64_t rows, width, every;
  float eps;
  Rows x, scale, shift, out;
  int32_t rms;              // root mean square instead of mean and variance, and `scale` alone is multiplied
};

// Queries, keys and values of one stream on their way into the joint attention.
struct Stream {
  Rows qkv;                 // [length, 3 · heads · width]
  const void *q_scale, *k_scale;  // [width], of the same kind; null where nothing is normalised
  int64_t start, length;    // where in the joint sequence
};

// Each token's queries attend to all keys; results are computed of the tokens from `from` on.
struct Attention {
  int64_t heads, width, length, from;
  float eps, scale;
  const Stream* streams;
  int64_t stream_count;
  const float* pe;          // [length, width / 2, 2, 2]; null for none
  int32_t words;            // F32_WORDS, or BF16_WORDS: q, k, v and the probabilities are rounded to bf16
  Rows out;                 // [length - from, heads · width]
};

// Group norm over [pixels, channels] and, where asked, SiLU.
struct GroupNorm {
  int64_t batch, pixels, channels, groups;
  float eps;
  Rows x, weight, bias, out;
  int32_t silu;
};

// Runs `task(context, i, thread)` for every i below `count`, on the threads of the pool; `thread` is below `threads`.
struct Pool {
  void (*run)(int64_t count, void (*task)(void* context, int64_t i, int64_t thread), void* context);
  int64_t threads;
};

// Runs `task(context, i, thread)` for every i below `count`, on at most so many threads, of which this is the first.
void share(int64_t count, int64_t most, void (*task)(void* context, int64_t i, int64_t thread), void* context);

struct Kernels {
  const char* name;
  int32_t has_bf16_products, has_int8_products;
  // Bytes of scratch memory that a call takes.
  size_t (*product_scratch)(const Product*, int64_t threads);
  void (*product)(const Product*, const Pool*, void* scratch);
  size_t (*attention_scratch)(const Attention*, int64_t threads);
  void (*attention)(const Attention*, const Pool*, void* scratch);
  void (*modulate)(const Modulate*, const Pool*);
  // The end of a product whose sums are `product->a`: the same meaning, without the multiplication.
  void (*finish)(const Product*, const Pool*);
  size_t (*group_norm_scratch)(const GroupNorm*, int64_t threads);
  void (*group_norm)(const GroupNorm*, const Pool*, void* scratch);
};

}  // namespace tch_flux
