// Queries and keys normalised and rotated, and with the values put where attention reads them, in one pass.

// The widest head is 256 numbers: in f32 that is two packs for each of 32 lanes.
constexpr int HEAD_PACKS = 2;

// A row of `qkv` is `[3, H, d]`; a row of the results is `[H, d]`, one row for each token of the joint sequence, whose
// tokens `start..start + length` are this stream's. Without `v` the values are left alone, and q and k may be those of
// `qkv` itself. `group` lanes, a power of two, work on one head of one token: on its
// query, its key and its value, so that the rotations are read once.
template <typename T>
__device__ void pack_heads(const T* qkv, i64 batch_stride, i64 row_stride, const T* q_scale, const T* k_scale,
                           const float* pe, i64 pe_stride, T* q, T* k, T* v, i64 to_batch_stride, i64 to_row_stride,
                           i64 batch, i64 length, i64 start, i64 heads, i64 width, i64 group) {
  constexpr int N = Pack<T>::N;
  const int lanes = static_cast<int>(group), lane = threadIdx.x % lanes, packs = static_cast<int>(width / N);
  // In 32 bits, since dividing 64 takes longer than what is read does; the host sees to it that they are enough.
  const u32 job = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
  // The lanes of a warp stay together for the sums, also those that have nothing to do.
  const bool busy = job < batch * length * heads;
  const u32 head = job % static_cast<u32>(heads), row = job / static_cast<u32>(heads);
  const i64 token = row % static_cast<u32>(length), sample = row / static_cast<u32>(length);

  const T* from = qkv + sample * batch_stride + token * row_stride + head * width;
  Pack<T> held[3][HEAD_PACKS];
#pragma unroll
  for (int part = 0; part < 3; ++part) {
#pragma unroll
    for (int i = 0; i < HEAD_PACKS; ++i) {
      const int p = i * lanes + lane;
      if (busy && p < packs && (part < 2 || v)) held[part][i] = Pack<T>::load(from + part * heads * width + p * N);
    }
  }
  float rrms[2];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < HEAD_PACKS; ++i) {
      if (!busy || i * lanes + lane >= packs) continue;
#pragma unroll
      for (int j = 0; j < N; ++j) squares = fmaf(held[part][i].get(j), held[part][i].get(j), squares);
    }
    for (int step = lanes / 2; step > 0; step >>= 1) squares += __shfl_xor_sync(0xffffffffu, squares, step);
    rrms[part] = 1.0f / sqrtf(squares / static_cast<float>(width) + 1e-6f);
  }
  if (!busy) return;

  const i64 place = start + token, to = sample * to_batch_stride + place * to_row_stride + head * width;
  // `[d/2, 2, 2]` for each token: four numbers for two neighbours.
  const float* turns = pe + sample * pe_stride + place * width * 2;
#pragma unroll
  for (int i = 0; i < HEAD_PACKS; ++i) {
    const int p = i * lanes + lane;
    if (p >= packs) continue;
    float4 turn[N / 2];
#pragma unroll
    for (int j = 0; j < N / 2; ++j) turn[j] = *reinterpret_cast<const float4*>(turns + (p * N + 2 * j) * 2);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const Pack<T> by = Pack<T>::load((part == 0 ? q_scale : k_scale) + p * N);
      Pack<T> result;
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        const float4 by_turn = turn[j / 2];
        const float a = held[part][i].get(j) * rrms[part] * by.get(j);
        const float b = held[part][i].get(j + 1) * rrms[part] * by.get(j + 1);
        result.set(j, fmaf(by_turn.x, a, by_turn.y * b));
        result.set(j + 1, fmaf(by_turn.z, a, by_turn.w * b));
      }
      result.store((part == 0 ? q : k) + to + p * N);
    }
    if (v) held[2][i].store(v + to + p * N);
  }
}

#define HEADS(T, NAME)                                                                                                \
  extern "C" __global__ void __launch_bounds__(256) pack_heads_##NAME(                                                \
      const T* qkv, i64 batch_stride, i64 row_stride, const T* q_scale, const T* k_scale, const float* pe,            \
      i64 pe_stride, T* q, T* k, T* v, i64 to_batch_stride, i64 to_row_stride, i64 batch, i64 length, i64 start,      \
      i64 heads, i64 width, i64 group) {                                                                              \
    pack_heads<T>(qkv, batch_stride, row_stride, q_scale, k_scale, pe, pe_stride, q, k, v, to_batch_stride,           \
                  to_row_stride, batch, length, start, heads, width, group);                                          \
  }

HEADS(Bf16, bf16)
HEADS(F16, f16)
HEADS(float, f32)
