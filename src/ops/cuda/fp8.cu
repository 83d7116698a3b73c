// Rows as e4m3fn with a scale for each: one block of threads for each row, which is read once where it fits the
// registers.

#if __CUDA_ARCH__ >= 890

constexpr int FP8_HELD = 8;

// GELU with tanh: x / (1 + exp(-2u)) is x / 2 * (1 + tanh(u)).
__device__ inline float gelu(float x) {
  const float u = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
  return __fdividef(x, 1.0f + __expf(-2.0f * u));
}

// The row `[x, gelu(y)]`; a width of 0 stands for nothing. GELU is rounded as if it were written.
template <typename T>
struct Joined {
  const T *x, *y;
  int x_packs;
  __device__ Pack<T> load(int p) const {
    constexpr int N = Pack<T>::N;
    if (p < x_packs) return Pack<T>::load(x + p * N);
    Pack<T> pack = Pack<T>::load(y + (p - x_packs) * N);
#pragma unroll
    for (int j = 0; j < N; ++j) pack.set(j, gelu(pack.get(j)));
    return pack;
  }
};

template <typename T>
__device__ void quantize_rows(const T* x, i64 x_stride, i64 x_width, const T* y, i64 y_stride, i64 y_width, Fp8* out,
                              float* scales) {
  constexpr int N = Pack<T>::N;
  const i64 row = blockIdx.x, width = x_width + y_width;
  const int packs = static_cast<int>(width / N);
  const Joined<T> from{x + row * x_stride, y + row * y_stride, static_cast<int>(x_width / N)};
  Fp8* to = out + row * width;

  Pack<T> held[FP8_HELD];
  float most = 0;
#pragma unroll
  for (int i = 0; i < FP8_HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p >= packs) continue;
    held[i] = from.load(p);
    most = fmaxf(most, held[i].largest());
  }
  for (int p = FP8_HELD * blockDim.x + threadIdx.x; p < packs; p += blockDim.x) {
    most = fmaxf(most, from.load(p).largest());
  }
  const Store<Fp8> store(most, scales, row);
#pragma unroll
  for (int i = 0; i < FP8_HELD; ++i) {
    const int p = i * blockDim.x + threadIdx.x;
    if (p < packs) store.pack(held[i], to + p * N);
  }
  for (int p = FP8_HELD * blockDim.x + threadIdx.x; p < packs; p += blockDim.x) {
    store.pack(from.load(p), to + p * N);
  }
}

#define FP8(T, NAME)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                    \
      quantize_rows_##NAME(const T* x, i64 x_stride, i64 x_width, const T* y, i64 y_stride, i64 y_width, Fp8* out,     \
                           float* scales) {                                                                            \
    quantize_rows<T>(x, x_stride, x_width, y, y_stride, y_width, out, scales);                                         \
  }

FP8(Bf16, bf16)
FP8(F16, f16)
FP8(float, f32)

#endif
