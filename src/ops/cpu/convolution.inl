// Convolutions as products: the words of the input's pixels are multiplied where they lie, and the weights' words are
// packed once a call.

namespace {

// Rows of a task in a convolution.
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

template <class W>
struct ConvolutionPlan {
  int64_t tap_words, right_words;
  size_t right, zeros, sums;
  ConvolutionPlan(const Product& p) {
    tap_words = p.window->channels / W::NUMBERS;
    right_words = tap_words * p.window->taps * p.window->taps;
    right = aligned(size_t(ceil_div(p.n, NR)) * NR * right_words * 4);
    zeros = aligned(tap_words * 4);
    sums = aligned(size_t(PIXELS) * ceil_div(p.n, NR) * NR * 4);
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

  // The weights of NR outputs: for each tap, the words of the channels.
  void pack_right(int64_t panel) {
    int64_t n0 = panel * NR, count = smaller(NR, p.n - n0), taps = p.window->taps * p.window->taps;
    uint32_t* out = right() + n0 * plan.right_words;
    for (int64_t c = 0; c < plan.tap_words; c++) {
      for (int64_t tap = 0; tap < taps; tap++) {
        uint32_t* words = out + (tap * plan.tap_words + c) * NR;
        for (int64_t j = 0; j < NR; j++) {
          B numbers[W::NUMBERS] = {};
          for (int i = 0; i < W::NUMBERS && j < count; i++) {
            numbers[i] = row<B>(p.w, n0 + j)[(c * W::NUMBERS + i) * taps + tap];
          }
          words[j] = word(W(), numbers, 0, W::NUMBERS);
        }
      }
    }
  }

  void task(int64_t index, int64_t thread) {
    int64_t from = index * PIXELS, count = smaller(PIXELS, p.m - from), width = ceil_div(p.n, NR) * NR;
    float* sums = reinterpret_cast<float*>(scratch + plan.right + plan.zeros + thread * plan.sums);
    const Window& w = *p.window;
    Pixels pixels{p, zeros(), W::NUMBERS == 1 ? 4 : 2};
    for (int64_t tap = 0; tap < w.taps * w.taps; tap++) {
      const char* at[PIXELS];
      for (int64_t i = 0; i < count; i++) {
        int64_t m = from + i, x = m % w.out_width, y = m / w.out_width % w.out_height;
        at[i] = pixels.at(m / (w.out_width * w.out_height), y * w.stride + tap / w.taps - w.pad_top,
                          x * w.stride + tap % w.taps - w.pad_left);
      }
      for (int64_t k0 = 0; k0 < plan.tap_words; k0 += KC) {
        int64_t kc = smaller(KC, plan.tap_words - k0);
        const uint32_t* place[PIXELS];
        for (int64_t i = 0; i < count; i++) place[i] = reinterpret_cast<const uint32_t*>(at[i]) + k0;
        for (int64_t n0 = 0; n0 < p.n; n0 += NR) {
          const uint32_t* b = right() + n0 * plan.right_words + (tap * plan.tap_words + k0) * NR;
          for (int64_t i = 0; i < count; i += MR) {
            some_tile_of_rows<W>(smaller(MR, count - i), kc, place + i, b, sums + i * width + n0, width,
                                 tap == 0 && k0 == 0);
          }
        }
      }
    }
    for (int64_t i = 0; i < count; i++) {
      with_kind(p.c.kind, [&](auto kind) {
        finish_row<decltype(kind)>(p, from + i, 0, p.n, sums + i * width, 1.0f);
      });
    }
  }

  void run(const Pool& pool) {
    std::memset(zeros(), 0, plan.zeros);
    pool.run(ceil_div(p.n, NR), [](void* self, int64_t i, int64_t) {
      static_cast<Convolution*>(self)->pack_right(i);
    }, this);
    pool.run(ceil_div(p.m, PIXELS), [](void* self, int64_t i, int64_t thread) {
      static_cast<Convolution*>(self)->task(i, thread);
    }, this);
  }
};

}  // namespace
