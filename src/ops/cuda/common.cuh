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
