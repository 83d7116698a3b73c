// Convolutions as products: the words of the input's pixels are multiplied where they lie, and the weights' words are
// packed once a call.

namespace {

// The most rows of a task in a convolution.
constexpr int64_t PIXELS = 8 * MR;

// Where the numbers of an input's pixels are.
struct Pixels {
  const Product& p;
  const char* zeros;
  int64_t bytes;  // of a number

  // Of the pixel at x and y of an image, as the taps see it; zeros outside of it.
  const char* at(int64_t image, int64_t y, int64_t x) const {
    const Window& w = *p.window;
    if (x < 0 || y < 0 || x >= w.width << w.shift || y >= w.height << w.shift) return zeros;
    int64_t place = (image * w.height + (y >> w.shift)) * w.width + (x >> w.shift);
    return static_cast<const char*>(p.a.data) + place * p.a.stride * bytes;
  }
};

// The weights of the NR outputs of a panel into words: for each tap, those of the channels, and zeros up to `tap_words`.
template <class W, class B>
void pack_taps(const Product& p, int64_t panel, int64_t tap_words, uint32_t* right) {
  int64_t n0 = panel * NR, count = smaller(NR, p.n - n0), taps = p.window->taps * p.window->taps;
  int64_t whole = p.window->channels / W::NUMBERS;
  uint32_t* out = right + n0 * taps * tap_words;
  if (count < NR || whole < tap_words) std::memset(out, 0, size_t(taps) * tap_words * NR * 4);
  for (int64_t j = 0; j < count; j++) {
    const B* w = row<B>(p.w, n0 + j);
    for (int64_t c = 0; c < whole; c++, w += W::NUMBERS * taps) {
      for (int64_t tap = 0; tap < taps; tap++) {
        B numbers[W::NUMBERS];
        for (int i = 0; i < W::NUMBERS; i++) numbers[i] = w[i * taps + tap];
        out[(tap * tap_words + c) * NR + j] = word(W(), numbers, 0, W::NUMBERS);
      }
    }
  }
}

template <class W>
struct ConvolutionPlan {
  int64_t tap_words, right_words, width;
  size_t right, zeros, sums;
  explicit ConvolutionPlan(const Product& p, int64_t = 1) {
    tap_words = p.window->channels / W::NUMBERS;
    width = ceil_div(p.n, NR) * NR;
    zeros = aligned(tap_words * 4);
    right_words = tap_words * p.window->taps * p.window->taps;
    right = aligned(size_t(ceil_div(p.n, NR)) * NR * right_words * 4);
    sums = aligned(size_t(PIXELS) * width * 4);
  }
  size_t bytes(int64_t threads) const { return right + zeros + threads * sums; }
};

template <class W, class B>
struct Convolution {
  const Product& p;
  ConvolutionPlan<W> plan;
  char* scratch;

  uint32_t* right() const { return reinterpret_cast<uint32_t*>(scratch); }
  char* zeros() const { return scratch + plan.right; }

  // A tap's sums, of the pixels' words where they lie.
  void add_tap(int64_t tap, int64_t count, const char* const* at, float* sums) const {
    for (int64_t k0 = 0; k0 < plan.tap_words; k0 += KC) {
      int64_t kc = smaller(KC, plan.tap_words - k0);
      const uint32_t* place[PIXELS];
      for (int64_t i = 0; i < count; i++) place[i] = reinterpret_cast<const uint32_t*>(at[i]) + k0;
      for (int64_t n0 = 0; n0 < p.n; n0 += NR) {
        const uint32_t* b = right() + n0 * plan.right_words + (tap * plan.tap_words + k0) * NR;
        for (int64_t i = 0; i < count; i += MR) {
          some_tile_of_rows<W>(smaller(MR, count - i), kc, place + i, b, sums + i * plan.width + n0, plan.width,
                               tap == 0 && k0 == 0);
        }
      }
    }
  }

  void task(int64_t index, int64_t thread) {
    int64_t from = index * PIXELS, count = smaller(PIXELS, p.m - from);
    float* sums = reinterpret_cast<float*>(scratch + plan.right + plan.zeros + thread * plan.sums);
    const Window& w = *p.window;
    Pixels pixels{p, zeros(), W::NUMBERS == 1 ? 4 : 2};
    // Of the first tap.
    struct Place {
      int64_t image, y, x;
    } places[PIXELS];
    for (int64_t i = 0; i < count; i++) {
      int64_t m = from + i, x = m % w.out_width, y = m / w.out_width % w.out_height;
      places[i] = {m / (w.out_width * w.out_height), y * w.stride - w.pad_top, x * w.stride - w.pad_left};
    }
    for (int64_t tap = 0; tap < w.taps * w.taps; tap++) {
      const char* at[PIXELS];
      int64_t down = tap / w.taps, across = tap % w.taps;
      for (int64_t i = 0; i < count; i++) at[i] = pixels.at(places[i].image, places[i].y + down, places[i].x + across);
      add_tap(tap, count, at, sums);
    }
    finish_rows(p, from, count, 0, p.n, sums, plan.width);
  }

  void run(const Pool& pool) {
    std::memset(zeros(), 0, plan.zeros);
    pool.run(ceil_div(p.n, NR), [](void* self, int64_t i, int64_t) {
      auto* run = static_cast<Convolution*>(self);
      pack_taps<W, B>(run->p, i, run->plan.tap_words, run->right());
    }, this);
    pool.run(ceil_div(p.m, PIXELS), [](void* self, int64_t i, int64_t thread) {
      static_cast<Convolution*>(self)->task(i, thread);
    }, this);
  }
};

#if defined(__AMX_TILE__)

// The same in the tiles of AMX: a task's part of the picture is copied with its border, and tiles of 16 pixels beside one
// another are read in it, for each tap from another place.
struct PatchPlan {
  static constexpr int64_t LINES = 256;
  // Words of a panel of weights that stay in the nearest cache.
  static constexpr int64_t NEAR = 8 << 10;
  int64_t tap_words, right_words, across, down, columns, rows, together, width;
  size_t right, patch, sums;

  PatchPlan(const Product& p, int64_t threads) {
    const Window& w = *p.window;
    tap_words = ceil_div(w.channels / 2, TILE) * TILE;
    right_words = tap_words * w.taps * w.taps;
    // Pixels of a task, in either direction.
    across = smaller(PANEL, ceil_div(w.out_width, TILE) * TILE);
    down = smaller(LINES / across, w.out_height);
    while (down > 1 && tasks(w) < 2 * threads) down--;
    columns = (across - 1) * w.stride + w.taps, rows = (down - 1) * w.stride + w.taps;
    // Taps whose products are summed up before the sums leave the tiles.
    together = NEAR / (tap_words * NR);
    together = together < 1 ? 1 : smaller(together, w.taps * w.taps);
    width = ceil_div(p.n, NR) * NR + TILE;
    right = aligned(size_t(ceil_div(p.n, NR)) * NR * right_words * 4);
    patch = aligned(size_t(columns) * rows * tap_words * 4);
    sums = aligned(size_t(across) * down * width * 4);
  }
  int64_t tasks(const Window& w) const {
    return w.batch * ceil_div(w.out_height, down) * ceil_div(w.out_width, across);
  }
  size_t bytes(int64_t threads) const { return right + aligned(tap_words * 4) + threads * (patch + sums); }
};

template <class B>
struct Patches {
  typedef Bf16Words W;
  const Product& p;
  PatchPlan plan;
  char* scratch;

  uint32_t* right() const { return reinterpret_cast<uint32_t*>(scratch); }
  char* zeros() const { return scratch + plan.right; }

  // The pixels from y and x on, where there are none zeros.
  void copy(int64_t image, int64_t y, int64_t x, uint32_t* out) const {
    Pixels pixels{p, zeros(), 2};
    for (int64_t i = 0; i < plan.rows; i++)
      for (int64_t j = 0; j < plan.columns; j++, out += plan.tap_words) {
        auto* pixel = reinterpret_cast<const uint16_t*>(pixels.at(image, y + i, x + j));
        copy_words<W>(pixel, 0, p.window->channels, plan.tap_words / TILE, out, TILE);
      }
  }

  // Sums of two tiles of pixels, over some taps.
  template <int down, int across>
  void add(int64_t tap, int64_t end, const uint32_t* const (&at)[2], const uint32_t* b, float* const (&c)[2]) const {
    asm volatile("" ::: "memory");
    int64_t ldc = plan.width * 4, row = plan.tap_words * p.window->stride * 4;
    if (tap == 0) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, c[0], ldc);
      if constexpr (across > 1) _tile_loadd(1, c[0] + TILE, ldc);
      if constexpr (down > 1) _tile_loadd(2, c[1], ldc);
      if constexpr (down > 1 && across > 1) _tile_loadd(3, c[1] + TILE, ldc);
    }
    for (; tap < end; tap++) {
      int64_t place = (tap / p.window->taps * plan.columns + tap % p.window->taps) * plan.tap_words;
      for (int64_t k = 0; k < plan.tap_words; k += TILE, b += TILE * NR) {
        _tile_loadd(4, at[0] + place + k, row);
        _tile_loadd(6, b, NR * 4);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (across > 1) {
          _tile_loadd(7, b + TILE, NR * 4);
          _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (down > 1) {
          _tile_loadd(5, at[1] + place + k, row);
          _tile_dpbf16ps(2, 5, 6);
          if constexpr (across > 1) _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    _tile_stored(0, c[0], ldc);
    if constexpr (across > 1) _tile_stored(1, c[0] + TILE, ldc);
    if constexpr (down > 1) _tile_stored(2, c[1], ldc);
    if constexpr (down > 1 && across > 1) _tile_stored(3, c[1] + TILE, ldc);
  }

  void task(int64_t index, int64_t thread) {
    Tiles hold;
    const Window& w = *p.window;
    char* mine = zeros() + aligned(plan.tap_words * 4) + thread * (plan.patch + plan.sums);
    uint32_t* patch = reinterpret_cast<uint32_t*>(mine);
    float* sums = reinterpret_cast<float*>(mine + plan.patch);
    int64_t per_row = ceil_div(w.out_width, plan.across), per_image = per_row * ceil_div(w.out_height, plan.down);
    int64_t image = index / per_image, y = index % per_image / per_row * plan.down, x = index % per_row * plan.across;
    int64_t down = smaller(plan.down, w.out_height - y), per_line = plan.across / TILE, tiles = down * per_line;
    copy(image, y * w.stride - w.pad_top, x * w.stride - w.pad_left, patch);
    auto place = [&](int64_t i) {
      return patch + (i / per_line * plan.columns + i % per_line * TILE) * w.stride * plan.tap_words;
    };
    auto sum = [&](int64_t i) { return sums + i * TILE * plan.width; };
    for (int64_t tap = 0; tap < w.taps * w.taps; tap += plan.together) {
      int64_t end = smaller(tap + plan.together, w.taps * w.taps);
      for (int64_t n0 = 0; n0 < p.n; n0 += NR) {
        const uint32_t* b = right() + n0 * plan.right_words + tap * plan.tap_words * NR;
        for (int64_t i = 0; i < tiles; i += 2) {
          int64_t next = smaller(i + 1, tiles - 1);
          const uint32_t* const at[2] = {place(i), place(next)};
          float* const c[2] = {sum(i) + n0, sum(next) + n0};
          if (next > i) {
            if (p.n - n0 > TILE) add<2, 2>(tap, end, at, b, c);
            else add<2, 1>(tap, end, at, b, c);
          } else {
            if (p.n - n0 > TILE) add<1, 2>(tap, end, at, b, c);
            else add<1, 1>(tap, end, at, b, c);
          }
        }
      }
    }
    for (int64_t i = 0; i < tiles; i++) {
      int64_t first = x + i % per_line * TILE, count = smaller(TILE, w.out_width - first);
      int64_t m = (image * w.out_height + y + i / per_line) * w.out_width + first;
      if (count > 0) finish_rows(p, m, count, 0, p.n, sum(i), plan.width);
    }
  }

  void run(const Pool& pool) {
    std::memset(zeros(), 0, plan.tap_words * 4);
    pool.run(ceil_div(p.n, NR), [](void* self, int64_t i, int64_t) {
      auto* run = static_cast<Patches*>(self);
      pack_taps<W, B>(run->p, i, run->plan.tap_words, run->right());
    }, this);
    pool.run(plan.tasks(*p.window), [](void* self, int64_t i, int64_t thread) {
      static_cast<Patches*>(self)->task(i, thread);
    }, this);
  }
};

#endif

}  // namespace
