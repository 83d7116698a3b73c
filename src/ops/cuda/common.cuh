// What the kernels share. NVRTC has none of CUDA's headers at hand, so the narrow kinds are bits and the conversions are
// instructions. Every kernel takes 64-bit integers, f32 and pointers, so that the host can hand over each in 8 bytes.

typedef long long i64;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

struct Bf16 {
  u16 bits;
};
struct F16 {
  u16 bits;
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
__device__ inline float widen(F16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

__device__ inline void narrow(float x, float& out) { out = x; }
__device__ inline void narrow(float x, Bf16& out) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
__device__ inline void narrow(float x, F16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }

// 16 bytes of numbers, read and written at once.
template <typename T>
struct Pack {
  static constexpr int N = 16 / sizeof(T);
  union {
    uint4 raw;
    T of[N];
  };
  __device__ Pack() {}
  __device__ static Pack load(const T* from) {
    Pack pack;
    pack.raw = *reinterpret_cast<const uint4*>(from);
    return pack;
  }
  __device__ void store(T* to) const { *reinterpret_cast<uint4*>(to) = raw; }
  __device__ float get(int i) const { return widen(of[i]); }
  __device__ void set(int i, float x) { narrow(x, of[i]); }
  __device__ float largest() const {
    float most = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) most = fmaxf(most, fabsf(get(i)));
    return most;
  }
};

struct Sum {
  static __device__ float of(float a, float b) { return a + b; }
};
struct Max {
  static __device__ float of(float a, float b) { return fmaxf(a, b); }
};

// Over all threads of a block of whole warps; every thread has the result. 0 must not change it.
template <typename Op>
__device__ inline float across_block(float x) {
  __shared__ float parts[32];
  for (int step = 16; step > 0; step >>= 1) x = Op::of(x, __shfl_xor_sync(0xffffffffu, x, step));
  const int warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = parts[0];
  for (int i = 1; i < warps; ++i) x = Op::of(x, parts[i]);
  // The next call writes to `parts` again.
  __syncthreads();
  return x;
}

// How a row is written whose largest number in this thread is `most`: as it is.
template <typename Out>
struct Store {
  __device__ Store(float, float*, u32) {}
  __device__ void pack(const Pack<Out>& pack, Out* to) const { pack.store(to); }
};

#if __CUDA_ARCH__ >= 890

// e4m3fn. The conversion is an instruction of SM 8.9, so before that there is no such kernel.
struct Fp8 {
  u8 bits;
};

// Or as fp8 with a scale, so that its largest number is the largest of e4m3fn.
template <>
struct Store<Fp8> {
  float inverse;
  __device__ Store(float most, float* scales, u32 row) {
    most = across_block<Max>(most);
    // A row of zeros has no scale; 1 keeps it zero.
    const float scale = most > 0 ? most / 448.0f : 1.0f;
    if (threadIdx.x == 0) scales[row] = scale;
    inverse = 1.0f / scale;
  }
  // Two numbers at a time; the first of the instruction's operands goes to the upper byte.
  template <typename T>
  __device__ void pack(const Pack<T>& pack, Fp8* to) const {
    union {
      u16 pairs[Pack<T>::N / 2];
      u32 words[Pack<T>::N / 4];
    };
#pragma unroll
    for (int j = 0; j < Pack<T>::N; j += 2) {
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
          : "=h"(pairs[j / 2])
          : "f"(pack.get(j + 1) * inverse), "f"(pack.get(j) * inverse));
    }
    if constexpr (Pack<T>::N == 8) {
      *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
      *reinterpret_cast<u32*>(to) = words[0];
    }
  }
};

#endif
