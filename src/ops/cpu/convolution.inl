// Convolutions as products: the words of the input's pixels are multiplied where they lie, and the weights' words are
// packed once a call.

namespace {

// Whether these words are multiplied in tiles, where they are.
#if defined(__AMX_TILE__)
template <class W>
constexpr bool IN_TILES = std::is_same<W, Bf16Words>::value;
#else
template <class W>
constexpr bool IN_TILES = false;
#endif

// What a task holds on to: the tiles, where it multiplies in them.
template <bool tiles>
struct Hold {};
#if defined(__AMX_TILE__)
template <>
struct Hold<true> : Tiles {};
#endif

// The most rows of a task in a convolution.
template <class W>
constexpr int64_t PIXELS = IN_TILES<W> ? 256 : 8 * MR;

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

template <class W>
struct ConvolutionPlan {
  int64_t tap_words, right_words, pixels, width;
  size_t right, zeros, left, sums;
  ConvolutionPlan(const Product& p, int64_t threads) {
    tap_words = p.window->channels / W::NUMBERS;
    pixels = PIXELS<W>;
    width = ceil_div(p.n, NR) * NR;
    left = 0;
    zeros = aligned(tap_words * 4);
#if defined(__AMX_TILE__)
    if constexpr (IN_TILES<W>) {
      tap_words = ceil_div(tap_words, TILE) * TILE;
      // Small pictures: every thread gets something to do.
      while (pixels > PANEL && p.m < 2 * threads * pixels) pixels -= PANEL;
      left = aligned(size_t(pixels) * smaller(tap_words, DEPTH) * 4);
      width += TILE;
    }
#endif
    right_words = tap_words * p.window->taps * p.window->taps;
    right = aligned(size_t(ceil_div(p.n, NR)) * NR * right_words * 4);
    sums = aligned(size_t(pixels) * width * 4);
  }
  size_t bytes(int64_t threads) const { return right + zeros + threads * (left + sums); }
};

template <class W, class B>
struct Convolution {
  const Product& p;
  ConvolutionPlan<W> plan;
  char* scratch;

  uint32_t* right() const { return reinterpret_cast<uint32_t*>(scratch); }
  char* zeros() const { return scratch + plan.right; }

  // The weights of NR outputs: for each tap, the words of the channels.
  void pack_right(int64_t panel) {
    int64_t n0 = panel * NR, count = smaller(NR, p.n - n0), taps = p.window->taps * p.window->taps;
    uint32_t* out = right() + n0 * plan.right_words;
    int64_t whole = p.window->channels / W::NUMBERS;
    if (count < NR || whole < plan.tap_words) std::memset(out, 0, size_t(plan.right_words) * NR * 4);
    for (int64_t j = 0; j < count; j++) {
      const B* w = row<B>(p.w, n0 + j);
      for (int64_t c = 0; c < whole; c++, w += W::NUMBERS * taps) {
        for (int64_t tap = 0; tap < taps; tap++) {
          B numbers[W::NUMBERS];
          for (int i = 0; i < W::NUMBERS; i++) numbers[i] = w[i * taps + tap];
          out[(tap * plan.tap_words + c) * NR + j] = word(W(), numbers, 0, W::NUMBERS);
        }
      }
    }
  }

#if defined(__AMX_TILE__)
  // A tap's sums, of the pixels' words side by side in rows of their own.
  void add_tap(int64_t tap, int64_t count, const char* const* at, uint32_t* left, float* sums) const {
    for (int64_t k0 = 0; k0 < plan.tap_words; k0 += DEPTH) {
      int64_t steps = smaller(DEPTH, plan.tap_words - k0) / TILE;
      for (int64_t i = 0; i < count; i++) {
        uint32_t* out = left + (i / PANEL * PANEL * steps + i % PANEL) * TILE;
        copy_words<W>(reinterpret_cast<const uint16_t*>(at[i]), k0 * W::NUMBERS, p.window->channels, steps, out,
                      PANEL * TILE);
      }
      for (int64_t n0 = 0; n0 < p.n; n0 += NR) {
        const uint32_t* b = right() + n0 * plan.right_words + (tap * plan.tap_words + k0) * NR;
        for (int64_t i = 0; i < count; i += PANEL) {
          LeftPanel a{left + i * steps * TILE, TILE * 4, PANEL * TILE * 4};
          some_tile_product<W>(count - i, p.n - n0, steps, a, b, sums + i * plan.width + n0, plan.width,
                               tap == 0 && k0 == 0);
        }
      }
    }
  }
#endif

  // The same, of the pixels' words where they lie.
  void add_tap_in_place(int64_t tap, int64_t count, const char* const* at, float* sums) const {
    for (int64_t k0 = 0; k0 < plan.tap_words; k0 += KC) {
      int64_t kc = smaller(KC, plan.tap_words - k0);
      const uint32_t* place[PIXELS<W>];
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
    Hold<IN_TILES<W>> hold;
    (void)hold;
    int64_t from = index * plan.pixels, count = smaller(plan.pixels, p.m - from);
    char* mine = scratch + plan.right + plan.zeros + thread * (plan.left + plan.sums);
    float* sums = reinterpret_cast<float*>(mine + plan.left);
    const Window& w = *p.window;
    Pixels pixels{p, zeros(), W::NUMBERS == 1 ? 4 : 2};
    // Of the first tap.
    struct Place {
      int64_t image, y, x;
    } places[PIXELS<W>];
    for (int64_t i = 0; i < count; i++) {
      int64_t m = from + i, x = m % w.out_width, y = m / w.out_width % w.out_height;
      places[i] = {m / (w.out_width * w.out_height), y * w.stride - w.pad_top, x * w.stride - w.pad_left};
    }
    for (int64_t tap = 0; tap < w.taps * w.taps; tap++) {
      const char* at[PIXELS<W>];
      int64_t down = tap / w.taps, across = tap % w.taps;
      for (int64_t i = 0; i < count; i++) at[i] = pixels.at(places[i].image, places[i].y + down, places[i].x + across);
      if constexpr (IN_TILES<W>) add_tap(tap, count, at, reinterpret_cast<uint32_t*>(mine), sums);
      else add_tap_in_place(tap, count, at, sums);
    }
    finish_rows(p, from, count, 0, p.n, sums, plan.width);
  }

  void run(const Pool& pool) {
    std::memset(zeros(), 0, plan.zeros);
    pool.run(ceil_div(p.n, NR), [](void* self, int64_t i, int64_t) {
      static_cast<Convolution*>(self)->pack_right(i);
    }, this);
    pool.run(ceil_div(p.m, plan.pixels), [](void* self, int64_t i, int64_t thread) {
      static_cast<Convolution*>(self)->task(i, thread);
    }, this);
  }
};

}  // namespace
