// Convolutions of 3×3 taps in f32 with 16 multiplications for 4 results instead of 36: Winograd's F(2×2, 3×3). The sums
// are over the channels alone, so that their rounding errors are no larger than those of the plain order.

namespace {

// Columns of the result whose sums a task has at a time.
constexpr int64_t COLUMNS = 4 * NR;
constexpr int SPOTS = 16;

// Whether a convolution runs in this way.
bool winograd(const Product& p) {
  return p.window->taps == 3 && p.window->stride == 1 && p.a.kind == tch_flux::F32;
}

struct WinogradPlan {
  int64_t across, down, tiles, per_task, channels;
  int64_t threads;
  size_t right, zeros, left, sums;

  WinogradPlan(const Product& p, int64_t threads_) : threads(threads_) {
    const Window& w = *p.window;
    across = ceil_div(w.out_width, 2), down = ceil_div(w.out_height, 2);
    tiles = w.batch * across * down;
    channels = w.channels;
    per_task = 8 * MR;
    // Small pictures: every thread gets something to do.
    while (per_task > MR && tiles < 2 * threads * per_task) per_task -= MR;
    right = aligned(size_t(ceil_div(p.n, NR)) * NR * SPOTS * channels * 4);
    zeros = aligned((channels + LANES) * 4);
    left = aligned((size_t(SPOTS) * per_task * channels + LANES) * 4);
    sums = aligned(size_t(SPOTS) * per_task * COLUMNS * 4);
  }
  size_t bytes() const { return right + zeros + threads * (left + sums); }
};

template <class B>
struct Winograd {
  const Product& p;
  WinogradPlan plan;
  char* scratch;

  // [panel][spot][channel][NR]
  float* right() const { return reinterpret_cast<float*>(scratch); }
  char* zeros() const { return scratch + plan.right; }
  // [spot][tile][channel]
  float* left(int64_t thread) const {
    return reinterpret_cast<float*>(scratch + plan.right + plan.zeros + thread * (plan.left + plan.sums));
  }
  // [spot][tile][COLUMNS]
  float* sums(int64_t thread) const { return left(thread) + plan.left / 4; }

  // G g Gᵀ of the weights of NR outputs.
  void transform_right(int64_t panel) {
    int64_t n0 = panel * NR, count = smaller(NR, p.n - n0);
    float* out = right() + n0 * SPOTS * plan.channels;
    float taps[9][NR] = {};
    auto half = [](vf a, vf b, vf c, vf* to) {
      vf outer = (a + c) * 0.5f, inner = b * 0.5f;
      to[0] = a, to[1] = outer + inner, to[2] = outer - inner, to[3] = c;
    };
    for (int64_t c = 0; c < plan.channels; c++) {
      for (int64_t j = 0; j < count; j++) {
        const B* w = row<B>(p.w, n0 + j) + c * 9;
        for (int i = 0; i < 9; i++) taps[i][j] = number(w + i);
      }
      for (int v = 0; v < NV; v++) {
        vf rows[3][4];
        auto tap = [&](int i) { return load(taps[i] + v * LANES); };
        for (int x = 0; x < 3; x++) half(tap(x), tap(3 + x), tap(6 + x), rows[x]);
        for (int y = 0; y < 4; y++) {
          vf spots[4];
          half(rows[0][y], rows[1][y], rows[2][y], spots);
          for (int x = 0; x < 4; x++) store(out + ((y * 4 + x) * plan.channels + c) * NR + v * LANES, spots[x]);
        }
      }
    }
  }

  struct Place {
    int64_t image, y, x;  // of the first of the 4 results
  };
  Place place(int64_t tile) const {
    return {tile / (plan.across * plan.down), tile / plan.across % plan.down * 2, tile % plan.across * 2};
  }

  // Bᵀ d B of the 4×4 pixels under a tile.
  void transform_left(int64_t tile, float* out) const {
    Pixels pixels{p, zeros(), 4};
    Place at = place(tile);
    const float* d[4][4];
    for (int y = 0; y < 4; y++)
      for (int x = 0; x < 4; x++) {
        const char* pixel = pixels.at(at.image, at.y + y - p.window->pad_top, at.x + x - p.window->pad_left);
        d[y][x] = reinterpret_cast<const float*>(pixel);
      }
    for (int64_t c = 0; c < plan.channels; c += LANES) {
      int64_t left = plan.channels - c;
      vf rows[4][4];
#pragma GCC unroll 4
      for (int x = 0; x < 4; x++) {
        vf d0 = load_some(d[0][x] + c, left), d1 = load_some(d[1][x] + c, left);
        vf d2 = load_some(d[2][x] + c, left), d3 = load_some(d[3][x] + c, left);
        rows[0][x] = d0 - d2, rows[1][x] = d1 + d2, rows[2][x] = d2 - d1, rows[3][x] = d1 - d3;
      }
#pragma GCC unroll 4
      for (int y = 0; y < 4; y++) {
        vf* r = rows[y];
        vf spots[4] = {r[0] - r[2], r[1] + r[2], r[2] - r[1], r[1] - r[3]};
#pragma GCC unroll 4
        for (int x = 0; x < 4; x++) {
          store_some(out + (y * 4 + x) * plan.per_task * plan.channels + c, spots[x], left);
        }
      }
    }
  }

  // Aᵀ m A: the 4 results of a tile in some columns, and their end.
  void finish_tile(int64_t tile, int64_t n0, int64_t columns, const float* sums) const {
    float out[4][COLUMNS];
    for (int64_t j = 0; j < columns; j += LANES) {
      vf rows[2][4];
#pragma GCC unroll 4
      for (int x = 0; x < 4; x++) {
        auto m = [&](int y) { return load(sums + (y * 4 + x) * plan.per_task * COLUMNS + j); };
        vf middle = m(1), next = m(2);
        rows[0][x] = m(0) + middle + next, rows[1][x] = middle - next - m(3);
      }
      for (int y = 0; y < 2; y++) {
        vf* r = rows[y];
        store(out[y * 2] + j, r[0] + r[1] + r[2]);
        store(out[y * 2 + 1] + j, r[1] - r[2] - r[3]);
      }
    }
    const Window& w = *p.window;
    Place at = place(tile);
    for (int i = 0; i < 4; i++) {
      int64_t y = at.y + i / 2, x = at.x + i % 2;
      if (y >= w.out_height || x >= w.out_width) continue;
      int64_t m = (at.image * w.out_height + y) * w.out_width + x;
      finish_rows(p, m, 1, n0, columns, out[i], COLUMNS);
    }
  }

  void task(int64_t index, int64_t thread) {
    int64_t from = index * plan.per_task, count = smaller(plan.per_task, plan.tiles - from), c = plan.channels;
    float *v = left(thread), *m = sums(thread);
    for (int64_t i = 0; i < count; i++) transform_left(from + i, v + i * c);
    // Evenly, so that no part is short.
    int64_t most = ceil_div(c, ceil_div(c, KC));
    for (int64_t n0 = 0; n0 < p.n; n0 += COLUMNS) {
      int64_t columns = smaller(COLUMNS, p.n - n0);
      for (int64_t spot = 0; spot < SPOTS; spot++) {
        for (int64_t j = 0; j < columns; j += NR) {
          for (int64_t k0 = 0; k0 < c; k0 += most) {
            const float* b = right() + ((n0 + j) * SPOTS + spot * NR) * c + k0 * NR;
            for (int64_t i = 0; i < count; i += MR) {
              const uint32_t* rows[MR];
              int64_t some = smaller(MR, count - i);
              for (int64_t r = 0; r < some; r++) {
                rows[r] = reinterpret_cast<const uint32_t*>(v + (spot * plan.per_task + i + r) * c + k0);
              }
              some_tile_of_rows<F32Words>(some, smaller(most, c - k0), rows, reinterpret_cast<const uint32_t*>(b),
                                          m + (spot * plan.per_task + i) * COLUMNS + j, COLUMNS, k0 == 0);
            }
          }
        }
      }
      for (int64_t i = 0; i < count; i++) finish_tile(from + i, n0, columns, m + i * COLUMNS);
    }
  }

  void run(const Pool& pool) {
    std::memset(zeros(), 0, plan.zeros);
    pool.run(ceil_div(p.n, NR), [](void* self, int64_t i, int64_t) {
      static_cast<Winograd*>(self)->transform_right(i);
    }, this);
    pool.run(ceil_div(plan.tiles, plan.per_task), [](void* self, int64_t i, int64_t thread) {
      static_cast<Winograd*>(self)->task(i, thread);
    }, this);
  }
};

}  // namespace
