// Queries and keys normalised and rotated, and with the values put where attention reads them, in one pass.

// The widest head is 256 numbers: in f32 that is two packs for each of 32 lanes.
constexpr int HEAD_PACKS = 2;

// A row of `qkv` is `[3, H, d]`; a row of the results is `[H, d]`, one row for each token of the joint sequence, whose
// tokens `start..start + length` are this stream's. `group` lanes, a power of two, work on one head of one token.
template <typename T>
__device__ void pack_heads(const T* qkv, i64 batch_stride, i64 row_stride, const T* q_scale, const T* k_scale,
                           const float* pe, i64 pe_stride, T* q, T* k, T* v, i64 batch, i64 length, i64 start,
                           i64 total, i64 heads, i64 width, i64 group) {
  constexpr int N = Pack<T>::N;
  const int lanes = static_cast<int>(group), lane = threadIdx.x % lanes, packs = static_cast<int>(width / N);
  // In 32 bits, since dividing 64 takes longer than what is read does; the host sees to it that they are enough.
  const u32 job = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes, slots = static_cast<u32>(3 * heads);
  // The lanes of a warp stay together for the sums, also those that have nothing to do.
  const bool busy = job < batch * length * slots;
  const u32 slot = job % slots, row = job / slots;
  const i64 token = row % static_cast<u32>(length), sample = row / static_cast<u32>(length);
  const u32 part = slot / static_cast<u32>(heads), head = slot % static_cast<u32>(heads);

  const T* from = qkv + sample * batch_stride + token * row_stride + slot * width;
  float held[HEAD_PACKS][N];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < HEAD_PACKS; ++i) {
    const int p = i * lanes + lane;
    if (!busy || p >= packs) continue;
    const Pack<T> mine = Pack<T>::load(from + p * N);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      held[i][j] = mine.get(j);
      squares = fmaf(held[i][j], held[i][j], squares);
    }
  }
  for (int step = lanes / 2; step > 0; step >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, step);
  if (!busy) return;

  const i64 place = start + token;
  T* to = (part == 0 ? q : part == 1 ? k : v) + ((sample * total + place) * heads + head) * width;
  const T* scale = part == 0 ? q_scale : k_scale;
  const float rrms = 1.0f / sqrtf(squares / static_cast<float>(width) + 1e-6f);
  // `[d/2, 2, 2]` for each token: four numbers for two neighbours.
  const float* turns = pe + sample * pe_stride + place * width * 2;
#pragma unroll
  for (int i = 0; i < HEAD_PACKS; ++i) {
    const int p = i * lanes + lane;
    if (p >= packs) continue;
    Pack<T> result;
    if (part == 2) {
#pragma unroll
      for (int j = 0; j < N; ++j) result.set(j, held[i][j]);
    } else {
      const Pack<T> by = Pack<T>::load(scale + p * N);
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        const float4 turn = *reinterpret_cast<const float4*>(turns + (p * N + j) * 2);
        const float a = held[i][j] * rrms * by.get(j), b = held[i][j + 1] * rrms * by.get(j + 1);
        result.set(j, fmaf(turn.x, a, turn.y * b));
        result.set(j + 1, fmaf(turn.z, a, turn.w * b));
      }
    }
    result.store(to + p * N);
  }
}

#define HEADS(T, NAME)                                                                                                \
  extern "C" __global__ void __launch_bounds__(256) pack_heads_##NAME(                                                \
      const T* qkv, i64 batch_stride, i64 row_stride, const T* q_scale, const T* k_scale, const float* pe,            \
      i64 pe_stride, T* q, T* k, T* v, i64 batch, i64 length, i64 start, i64 total, i64 heads, i64 width, i64 group) { \
    pack_heads<T>(qkv, batch_stride, row_stride, q_scale, k_scale, pe, pe_stride, q, k, v, batch, length, start,      \
                  total, heads, width, group);                                                                        \
  }

HEADS(Bf16, bf16)
HEADS(F16, f16)
HEADS(float, f32)
