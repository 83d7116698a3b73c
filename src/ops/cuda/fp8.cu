// Rows as e4m3fn with a scale for each: one block of threads for each row, which is read once where it fits the
// registers. The conversion is an instruction of SM 8.9, so before that there is no such kernel.

#if __CUDA_ARCH__ >= 890

constexpr int FP8_HELD = 8;
// The largest number of e4m3fn.
constexpr float FP8_MOST = 448.0f;

template <typename T>
__device__ inline float largest(const Pack<T>& pack) {
  float most = 0;
#pragma unroll
  for (int j = 0; j < Pack<T>::N; ++j) most = fmaxf(most, fabsf(pack.get(j)));
  return most;
}

// Two numbers at a time; the first of the instruction's operands goes to the upper byte.
template <typename T>
__device__ inline void store_fp8(const Pack<T>& pack, float inverse, u8* to) {
#pragma unroll
  for (int j = 0; j < Pack<T>::N; j += 2) {
    u16 both;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(both)
        : "f"(pack.get(j + 1) * inverse), "f"(pack.get(j) * inverse));
    *reinterpret_cast<u16*>(to + j) = both;
  }
}

template <typename T>
__device__ void quantize_rows(const T* x, i64 x_stride, u8* out, float* scales, i64 width) {
  constexpr int N = Pack<T>::N;
  const i64 row = blockIdx.x;
  const int packs = static_cast<int>(width / N);
  const T* from = x + row * x_stride;
  u8* to = out + row * width;

  Pack<T> held[FP8_HELD];
  float most = 0;
#pragma unroll
  for (int i = 0; i < FP8_HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p >= packs) continue;
    held[i] = Pack<T>::load(from + p * N);
    most = fmaxf(most, largest(held[i]));
  }
  for (int p = FP8_HELD * blockDim.x + threadIdx.x; p < packs; p += blockDim.x) {
    most = fmaxf(most, largest(Pack<T>::load(from + p * N)));
  }
  most = across_block<Max>(most);
  // A row of zeros has no scale; 1 keeps it zero.
  const float scale = most > 0 ? most / FP8_MOST : 1.0f;
  if (threadIdx.x == 0) scales[row] = scale;

  const float inverse = 1.0f / scale;
#pragma unroll
  for (int i = 0; i < FP8_HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p < packs) store_fp8(held[i], inverse, to + p * N);
  }
  for (int p = FP8_HELD * blockDim.x + threadIdx.x; p < packs; p += blockDim.x) {
    store_fp8(Pack<T>::load(from + p * N), inverse, to + p * N);
  }
}

#define FP8(T, NAME)                                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                                         \
      quantize_rows_##NAME(const T* x, i64 x_stride, u8* out, float* scales, i64 width) {                   \
    quantize_rows<T>(x, x_stride, out, scales, width);                                                      \
  }

FP8(Bf16, bf16)
FP8(F16, f16)
FP8(float, f32)

#endif
