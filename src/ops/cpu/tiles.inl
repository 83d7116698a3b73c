// Matrix products in the tiles of AMX: 16 rows of 16 words each, of which a core multiplies two by two at a time. The left
// matrix' rows lie in memory as they are read; the right one's words stand as elsewhere, those of one place of k together.

namespace {

// Rows of a tile, and words of a row.
constexpr int64_t TILE = 16;
// Rows of a panel of the left matrix. One of the right has NR columns.
constexpr int64_t PANEL = 2 * TILE;
static_assert(NR == 2 * TILE, "two tiles side by side");
// Words of k at a time: a panel of the right matrix then fills two thirds of the nearest cache, and stays there while
// the left one's pass by it.
constexpr int64_t DEPTH = 256;
// Columns and rows of the result that a task has at a time: with the left matrix' words they fill the second cache.
constexpr int64_t MOST_COLUMNS = 8 * NR, MOST_ROWS = 16 * PANEL;
// Numbers of a left matrix that is read where it lies, and how far apart its rows may be.
constexpr int64_t IN_PLACE = 512 << 10, WIDE = 2 << 10;
// Bytes of the left matrix' words that are packed together.
constexpr int64_t LEFT = 48 << 20;
// Between two rows of sums there is room, so that the rows of a tile do not all compete for the same places of a cache.
constexpr int64_t SUMS_STRIDE = MOST_COLUMNS + TILE;

// The tiles of this thread, for as long as it lives: 0 to 3 for sums, 4 and 5 for the left matrix, 6 and 7 for the right.
struct Tiles {
  Tiles() {
    struct alignas(64) Shapes {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = TILE * 4, shapes.rows[i] = TILE;
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

// A panel of the left matrix: its rows are `row` bytes from one another, and the words of each step `step` bytes.
struct LeftPanel {
  const void* data;
  int64_t row, step;
};

#define MULTIPLY(c, a, b)                                      \
  do {                                                         \
    if constexpr (W::NUMBERS == 4) _tile_dpbssd(c, a, b);      \
    else _tile_dpbf16ps(c, a, b);                              \
  } while (false)

// c[down · TILE][across · TILE] (+)= a · b over `steps` times TILE words.
template <class W, int down, int across>
void tile_product(int64_t steps, LeftPanel a, const uint32_t* b, float* c, int64_t ldc, bool fresh) {
  // The intrinsics do not say that they read memory.
  asm volatile("" ::: "memory");
  const char* left = static_cast<const char*>(a.data);
  float* below = c + TILE * ldc;
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, ldc * 4);
    if constexpr (across > 1) _tile_loadd(1, c + TILE, ldc * 4);
    if constexpr (down > 1) _tile_loadd(2, below, ldc * 4);
    if constexpr (down > 1 && across > 1) _tile_loadd(3, below + TILE, ldc * 4);
  }
  for (int64_t i = 0; i < steps; i++, left += a.step, b += TILE * NR) {
    // What is read once is not to drive out what is read again.
    _tile_stream_loadd(4, left, a.row);
    _tile_loadd(6, b, NR * 4);
    MULTIPLY(0, 4, 6);
    if constexpr (across > 1) {
      _tile_loadd(7, b + TILE, NR * 4);
      MULTIPLY(1, 4, 7);
    }
    if constexpr (down > 1) {
      _tile_stream_loadd(5, left + TILE * a.row, a.row);
      MULTIPLY(2, 5, 6);
      if constexpr (across > 1) MULTIPLY(3, 5, 7);
    }
  }
  _tile_stored(0, c, ldc * 4);
  if constexpr (across > 1) _tile_stored(1, c + TILE, ldc * 4);
  if constexpr (down > 1) _tile_stored(2, below, ldc * 4);
  if constexpr (down > 1 && across > 1) _tile_stored(3, below + TILE, ldc * 4);
}

#undef MULTIPLY

// The same of so many rows and columns of a panel as are wanted, in whole tiles.
template <class W>
void some_tile_product(int64_t rows, int64_t columns, int64_t steps, LeftPanel a, const uint32_t* b, float* c, int64_t ldc,
                       bool fresh) {
  if (rows > TILE) {
    if (columns > TILE) tile_product<W, 2, 2>(steps, a, b, c, ldc, fresh);
    else tile_product<W, 2, 1>(steps, a, b, c, ldc, fresh);
  } else {
    if (columns > TILE) tile_product<W, 1, 2>(steps, a, b, c, ldc, fresh);
    else tile_product<W, 1, 1>(steps, a, b, c, ldc, fresh);
  }
}

// `steps` times TILE words of a row, zeros behind its end, `stride` words from one step to the next.
template <class W, class T>
void copy_words(const T* x, int64_t k, int64_t k_end, int64_t steps, uint32_t* out, int64_t stride) {
  constexpr int64_t STEP = TILE * W::NUMBERS;
  for (int64_t i = 0; i < steps; i++, k += STEP, out += stride) {
    if (k + STEP <= k_end) {
      *reinterpret_cast<vu_any*>(out) = words(W(), x + k);
      continue;
    }
    for (int64_t w = 0; w < TILE; w++) {
      int64_t at = k + w * W::NUMBERS;
      out[w] = at < k_end ? word(W(), x, at, k_end) : 0;
    }
  }
}

template <class W, class A>
struct TilePlan {
  static constexpr bool INTEGER = W::NUMBERS == 4;
  int64_t words, steps, rows, height, columns, blocks, part, parts, threads;
  // Whether the left matrix' rows are read where they lie, which saves a small product from writing them anew. Those of
  // a large one would compete for the same places of a cache.
  bool in_place;
  size_t left, scales, per_thread, quantized, right, sums;

  TilePlan(const Product& p, int64_t threads_) : threads(threads_) {
    words = ceil_div(p.k, W::NUMBERS), steps = ceil_div(words, TILE);
    // Those of a product of int8 become int8 first.
    in_place = !INTEGER && std::is_same<A, uint16_t>::value && words % TILE == 0 && p.m * p.k <= IN_PLACE && p.a.stride <= WIDE;
    int64_t most = LEFT / (steps * TILE * 4);
    rows = smaller(most > ROWS ? most / PANEL * PANEL : ROWS, ceil_div(p.m, PANEL) * PANEL);
    // Each thread has rows of its own, the same in call after call; or all threads have all rows.
    parts = in_place ? smaller(threads, rows / PANEL) : 1;
    part = ceil_div(rows, parts * PANEL) * PANEL;
    int64_t pieces = ceil_div(part, MOST_ROWS);
    height = ceil_div(part, pieces * PANEL) * PANEL;
    // Few columns: every thread gets some.
    blocks = ceil_div(p.n, MOST_COLUMNS);
    if (parts * blocks < 4 * threads) blocks = smaller(ceil_div(p.n, NR), ceil_div(ceil_div(4 * threads, parts), blocks) * blocks);
    columns = ceil_div(ceil_div(p.n, blocks), NR) * NR;
    blocks = ceil_div(p.n, columns);
    left = aligned(size_t(in_place ? PANEL : rows) * steps * TILE * 4);
    scales = aligned(rows * 4);
    // A row, and what a vector writes behind it.
    quantized = INTEGER ? aligned(p.k + LANES) : 0;
    right = aligned(size_t(columns) * (pieces > 1 ? steps * TILE : DEPTH) * 4);
    sums = aligned(size_t(height) * SUMS_STRIDE * 4);
    per_thread = quantized + right + sums;
  }
  size_t bytes() const { return left + scales + threads * per_thread; }
};

template <class W, class A, class B>
struct TileProduct {
  const Product& p;
  TilePlan<W, A> plan;
  char* scratch;
  int64_t m0, rows;  // of the present part

  uint32_t* left() const { return reinterpret_cast<uint32_t*>(scratch); }
  float* scales() const { return reinterpret_cast<float*>(scratch + plan.left); }
  char* mine(int64_t thread) const { return scratch + plan.left + plan.scales + thread * plan.per_thread; }
  int64_t panels() const { return ceil_div(rows, PANEL); }
  // Behind the last row there may be no memory.
  bool lies_there(int64_t i) const { return plan.in_place && (i + 1) * PANEL <= rows; }
  // The words of a panel that is packed, from step s0 on, `steps` of them.
  uint32_t* panel(int64_t i, int64_t s0, int64_t steps) const {
    return plan.in_place ? left() + s0 * PANEL * TILE : left() + (s0 * panels() + i * steps) * PANEL * TILE;
  }
  LeftPanel left_panel(int64_t r, int64_t s0, int64_t steps) const {
    if (!lies_there(r / PANEL)) return {panel(r / PANEL, s0, steps), TILE * 4, PANEL * TILE * 4};
    return {row<A>(p.a, m0 + r) + s0 * TILE * W::NUMBERS, p.a.stride * int64_t(sizeof(A)), TILE * 4};
  }

  template <class T>
  void pack_row(const T* x, int64_t r) {
    constexpr int64_t STEPS = DEPTH / TILE;
    for (int64_t s0 = 0; s0 < plan.steps; s0 += STEPS) {
      int64_t steps = smaller(STEPS, plan.steps - s0);
      uint32_t* out = panel(r / PANEL, s0, steps) + r % PANEL * TILE;
      copy_words<W>(x, s0 * TILE * W::NUMBERS, p.k, steps, out, PANEL * TILE);
    }
  }

  // PANEL rows of the left matrix into words.
  void pack_left(int64_t i, int64_t thread) {
    if (lies_there(i)) return;
    for (int64_t r = i * PANEL; r < smaller((i + 1) * PANEL, rows); r++) {
      const A* x = row<A>(p.a, m0 + r);
      if constexpr (TilePlan<W, A>::INTEGER) {
        int8_t* bytes = reinterpret_cast<int8_t*>(mine(thread));
        scales()[r] = quantize_row(x, p.k, bytes);
        pack_row(bytes, r);
      } else {
        pack_row(x, r);
      }
    }
  }

  // The words from step s0 on of up to NR columns.
  void pack_right(int64_t n, int64_t columns, int64_t s0, int64_t steps, uint32_t* out) const {
    int64_t some = smaller(steps * TILE, plan.words - s0 * TILE);
    pack<W, NR>(row<B>(p.w, n), p.w.stride, columns, s0 * TILE, some, p.k, out);
    std::memset(out + some * NR, 0, (steps * TILE - some) * NR * 4);
  }

  void task(int64_t index, int64_t thread) {
    constexpr int64_t STEPS = DEPTH / TILE;
    Tiles tiles;
    int64_t n0 = index % plan.blocks * plan.columns, columns = smaller(plan.columns, p.n - n0);
    int64_t first = index / plan.blocks * plan.part, end = smaller(first + plan.part, rows);
    uint32_t* right = reinterpret_cast<uint32_t*>(mine(thread) + plan.quantized);
    float* sums = reinterpret_cast<float*>(mine(thread) + plan.quantized + plan.right);
    bool keep = plan.part > plan.height;
    for (int64_t from = first; from < end; from += plan.height) {
      int64_t to = smaller(from + plan.height, end);
      for (int64_t s0 = 0; s0 < plan.steps; s0 += STEPS) {
        int64_t steps = smaller(STEPS, plan.steps - s0);
        for (int64_t j = 0; j < columns; j += NR) {
          int64_t some = smaller(NR, columns - j);
          uint32_t* b = right + (keep ? s0 * plan.columns + j * steps : 0) * TILE;
          if (from == first) pack_right(n0 + j, some, s0, steps, b);
          for (int64_t r = from; r < to; r += PANEL) {
            LeftPanel a = left_panel(r, s0, steps);
            some_tile_product<W>(to - r, some, steps, a, b, sums + (r - from) * SUMS_STRIDE + j, SUMS_STRIDE, s0 == 0);
          }
        }
      }
      finish_rows(p, m0 + from, to - from, n0, columns, sums, SUMS_STRIDE, scales() + from);
    }
  }

  void run(const Pool& pool) {
    for (m0 = 0; m0 < p.m; m0 += plan.rows) {
      rows = smaller(plan.rows, p.m - m0);
      if (plan.in_place) pack_left(panels() - 1, 0);
      else pool.run(panels(), [](void* self, int64_t i, int64_t thread) {
        static_cast<TileProduct*>(self)->pack_left(i, thread);
      }, this);
      pool.run(plan.parts * plan.blocks, [](void* self, int64_t i, int64_t thread) {
        static_cast<TileProduct*>(self)->task(i, thread);
      }, this);
    }
  }
};

}  // namespace
