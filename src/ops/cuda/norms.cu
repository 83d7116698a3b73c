// LayerNorm without parameters, modulated, and the residual before it: one block of threads for each row, which stays in
// registers between the passes over it. The result is of the input's kind, or fp8 with a scale for each row.

// Packs of a row that one thread holds. The host takes no row that is wider than that many for every thread.
constexpr int HELD = 4;

// Row `r` of the vectors, which are `[B, 1, D]`: one for each sample, of `every` rows.
template <typename T>
__device__ inline const T* vector_of(const T* vectors, i64 stride, u32 row, i64 every) {
  return vectors + row / static_cast<u32>(every) * stride;
}

// out = (1 + scale) * norm(x) + shift. GATED: x becomes x + gate * y first, which is written to `sum`, and normalised as
// it was written, so that both results belong together. `scales` are of fp8 alone.
template <typename T, bool GATED, typename Out>
__device__ void modulate(const T* x, i64 x_stride, const T* y, i64 y_stride, const T* gate, i64 gate_stride, T* sum,
                         const T* scale, i64 scale_stride, const T* shift, i64 shift_stride, Out* out, float* scales,
                         i64 every, i64 width, float eps) {
  constexpr int N = Pack<T>::N;
  const u32 row = blockIdx.x;
  const int packs = static_cast<int>(width / N);
  const T* x_row = x + row * x_stride;
  const T* y_row = GATED ? y + row * y_stride : nullptr;
  const T* gate_row = GATED ? vector_of(gate, gate_stride, row, every) : nullptr;

  float held[HELD][N];
  float total = 0;
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p >= packs) continue;
    Pack<T> mine = Pack<T>::load(x_row + p * N);
    if (GATED) {
      const Pack<T> theirs = Pack<T>::load(y_row + p * N), by = Pack<T>::load(gate_row + p * N);
#pragma unroll
      for (int j = 0; j < N; ++j) mine.set(j, fmaf(by.get(j), theirs.get(j), mine.get(j)));
      mine.store(sum + row * width + p * N);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) total += held[i][j] = mine.get(j);
  }
  const float mean = across_block<Sum>(total) / static_cast<float>(width);

  float squares = 0;
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p >= packs) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float d = held[i][j] - mean;
      squares = fmaf(d, d, squares);
    }
  }
  const float rstd = 1.0f / sqrtf(across_block<Sum>(squares) / static_cast<float>(width) + eps);

  const T* scale_row = vector_of(scale, scale_stride, row, every);
  const T* shift_row = vector_of(shift, shift_stride, row, every);
  Pack<T> results[HELD];
  float most = 0;
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p >= packs) continue;
    const Pack<T> by = Pack<T>::load(scale_row + p * N), plus = Pack<T>::load(shift_row + p * N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      results[i].set(j, fmaf(1.0f + by.get(j), (held[i][j] - mean) * rstd, plus.get(j)));
    }
    most = fmaxf(most, results[i].largest());
  }
  const Store<Out> store(most, scales, row);
#pragma unroll
  for (int i = 0; i < HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p < packs) store.pack(results[i], out + row * width + p * N);
  }
}

// out = x + gate * y, one thread for each pack.
template <typename T>
__device__ void gated_residual(const T* x, i64 x_stride, const T* y, i64 y_stride, const T* gate, i64 gate_stride,
                               T* out, i64 rows, i64 every, i64 width) {
  constexpr int N = Pack<T>::N;
  // In 32 bits, since dividing 64 takes longer than what is read does; the host sees to it that they are enough.
  const u32 packs = static_cast<u32>(width / N), at = blockIdx.x * blockDim.x + threadIdx.x;
  const u32 row = at / packs, column = at % packs * N;
  if (row >= rows) return;
  Pack<T> mine = Pack<T>::load(x + row * x_stride + column);
  const Pack<T> theirs = Pack<T>::load(y + row * y_stride + column);
  const Pack<T> by = Pack<T>::load(vector_of(gate, gate_stride, row, every) + column);
#pragma unroll
  for (int j = 0; j < N; ++j) mine.set(j, fmaf(by.get(j), theirs.get(j), mine.get(j)));
  mine.store(out + row * width + column);
}

#define MODULATE(T, OUT, NAME)                                                                                         \
  extern "C" __global__ void __launch_bounds__(256) modulate_##NAME(                                                   \
      const T* x, i64 x_stride, const T* scale, i64 scale_stride, const T* shift, i64 shift_stride, OUT* out,          \
      float* scales, i64 every, i64 width, float eps) {                                                                \
    modulate<T, false, OUT>(x, x_stride, nullptr, 0, nullptr, 0, nullptr, scale, scale_stride, shift, shift_stride,    \
                            out, scales, every, width, eps);                                                           \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) gated_modulate_##NAME(                                             \
      const T* x, i64 x_stride, const T* y, i64 y_stride, const T* gate, i64 gate_stride, T* sum, const T* scale,      \
      i64 scale_stride, const T* shift, i64 shift_stride, OUT* out, float* scales, i64 every, i64 width, float eps) {  \
    modulate<T, true, OUT>(x, x_stride, y, y_stride, gate, gate_stride, sum, scale, scale_stride, shift, shift_stride, \
                           out, scales, every, width, eps);                                                            \
  }

#define GATED_RESIDUAL(T, NAME)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256) gated_residual_##NAME(                                             \
      const T* x, i64 x_stride, const T* y, i64 y_stride, const T* gate, i64 gate_stride, T* out, i64 rows, i64 every, \
      i64 width) {                                                                                                     \
    gated_residual<T>(x, x_stride, y, y_stride, gate, gate_stride, out, rows, every, width);                           \
  }

MODULATE(Bf16, Bf16, bf16)
MODULATE(F16, F16, f16)
MODULATE(float, float, f32)
GATED_RESIDUAL(Bf16, bf16)
GATED_RESIDUAL(F16, f16)
GATED_RESIDUAL(float, f32)
#if __CUDA_ARCH__ >= 890
MODULATE(Bf16, Fp8, fp8_bf16)
MODULATE(F16, Fp8, fp8_f16)
MODULATE(float, Fp8, fp8_f32)
#endif
