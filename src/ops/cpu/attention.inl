// Attention over packed words: queries and keys are normalised and rotated on their way into the order that the
// registers want, and the scores of a panel of queries are never in memory as a whole.
//
// All is transposed: scores are [keys, queries] and results [width, queries], so that the softmax runs over the lanes of
// a vector side by side.

namespace {

using tch_flux::Attention;
using tch_flux::Stream;

// Keys whose scores are computed together.
constexpr int64_t KEYS = 192;
constexpr int64_t WIDEST = 512;
// Bytes of the packed heads that are in memory at once, unless one head takes more.
constexpr int64_t PACKED = 48 << 20;

// How keys and values stand in memory, and how they are multiplied: a panel of keys by a panel of queries, and the values
// of some keys by their probabilities.
template <class W>
struct InRegisters {
  typedef W Words;
  // What a task holds on to.
  struct Hold {};
  static constexpr int64_t KEY_PANEL = MR, STEP = W::NUMBERS;
  static_assert(KEYS % MR == 0 && KEYS % 2 == 0, "whole panels and whole words");
  static int64_t words(int64_t width) { return width / W::NUMBERS; }
  static int64_t values(int64_t length, int64_t width) { return ceil_div(length, W::NUMBERS) * width; }
  static int64_t results(int64_t width) { return ceil_div(width, MR) * MR; }

  // The keys, or values, of NR tokens from `token` on, `count` of which there are; behind them stand zeros.
  static void put_keys(const float* x, int64_t width, int64_t token, int64_t count, uint32_t* keys) {
    int64_t words = width / W::NUMBERS;
    for (int64_t i = 0; i < count; i++) {
      uint32_t* panel = keys + (token + i) / MR * words * MR + (token + i) % MR;
      for (int64_t w = 0; w < words; w++) panel[w * MR] = word(W(), x + i * width, w * W::NUMBERS, width);
    }
  }
  static void put_values(const float* x, int64_t width, int64_t token, int64_t count, uint32_t* values) {
    if constexpr (W::NUMBERS == 1) {
      std::memcpy(values + token * width, x, count * width * 4);
    } else {
      for (int64_t i = 0; i < count; i += 2, x += 2 * width)
        for (int64_t j = 0; j < width; j++) {
          values[(token + i) / 2 * width + j] = narrow(x[j]) | uint32_t(narrow(x[width + j])) << 16;
        }
    }
  }

  static void score(int64_t, int64_t, int64_t words, const uint32_t* keys, const uint32_t* queries, float* scores) {
    tile<W, MR>(words, keys, MR, queries, scores, NR, true);
  }
  static void sum_up(int64_t width, int64_t, int64_t key0, int64_t count, const uint32_t* values,
                     const uint32_t* probabilities, float* results, bool fresh) {
    const uint32_t* value = values + key0 / W::NUMBERS * width;
    for (int64_t i = 0; i < width; i += MR) {
      some_tile<W>(smaller(MR, width - i), ceil_div(count, W::NUMBERS), value + i, width, probabilities, results + i * NR,
                   NR, fresh);
    }
  }
};

#if defined(__AMX_TILE__)
// Keys and values are the left matrices: a row of the one is a token, and of the other a place in the head.
struct InTiles {
  typedef Bf16Words Words, W;
  typedef Tiles Hold;
  static constexpr int64_t KEY_PANEL = PANEL, STEP = TILE * W::NUMBERS;
  static_assert(KEYS % PANEL == 0 && KEYS % STEP == 0, "whole panels and whole steps");
  static_assert(NR == PANEL && NR == STEP && LANES == TILE, "tokens that are packed together");
  static int64_t words(int64_t width) { return ceil_div(width, STEP) * TILE; }
  static int64_t values(int64_t length, int64_t width) { return ceil_div(length, STEP) * results(width) * TILE; }
  static int64_t results(int64_t width) { return ceil_div(width, TILE) * TILE; }

  static void put_keys(const float* x, int64_t width, int64_t token, int64_t count, uint32_t* keys) {
    for (int64_t i = 0; i < count; i++) {
      uint32_t* panel = keys + token * words(width) + i * TILE;
      copy_words<W>(x + i * width, 0, width, ceil_div(width, STEP), panel, PANEL * TILE);
    }
  }
  static void put_values(const float* x, int64_t width, int64_t token, int64_t, uint32_t* values) {
    uint32_t* out = values + token / STEP * results(width) * TILE;
    for (int64_t j = 0; j < width; j += LANES) {
      vu block[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) {
        const float* pair = x + 2 * i * width + j;
        block[i] = rounded(load_some(pair, width - j)) | rounded(load_some(pair + width, width - j)) << 16;
      }
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) *reinterpret_cast<vu_any*>(out + (j + i) * TILE) = block[i];
    }
  }

  static void score(int64_t count, int64_t columns, int64_t words, const uint32_t* keys, const uint32_t* queries,
                    float* scores) {
    some_tile_product<W>(count, columns, words / TILE, {keys, TILE * 4, PANEL * TILE * 4}, queries, scores, NR, true);
  }
  static void sum_up(int64_t width, int64_t columns, int64_t key0, int64_t count, const uint32_t* values,
                     const uint32_t* probabilities, float* results_, bool fresh) {
    int64_t rows = results(width);
    const uint32_t* value = values + key0 / STEP * rows * TILE;
    for (int64_t i = 0; i < rows; i += PANEL) {
      some_tile_product<W>(rows - i, columns, ceil_div(count, STEP), {value + i * TILE, TILE * 4, rows * TILE * 4},
                           probabilities, results_ + i * NR, NR, fresh);
    }
  }
};
#endif

template <class L>
struct AttentionPlan {
  int64_t words, query_panels, key_panels;
  int64_t group;  // heads that are packed, and then attended to, together
  size_t queries, keys, values;  // of one head, in words
  size_t tokens, scores, probabilities, results, per_thread;

  explicit AttentionPlan(const Attention& p) {
    words = L::words(p.width);
    query_panels = ceil_div(p.length, NR);
    key_panels = ceil_div(p.length, L::KEY_PANEL);
    queries = size_t(query_panels) * words * NR;
    keys = size_t(key_panels) * words * L::KEY_PANEL;
    values = L::values(p.length, p.width);
    tokens = size_t(NR) * p.width * 4;
    scores = size_t(KEYS) * NR * 4;
    probabilities = size_t(KEYS) * NR * 4;
    // Whole vectors are read of them.
    results = size_t(ceil_div(L::results(p.width), LANES) * LANES) * NR * 4;
    per_thread = aligned(tokens) + aligned(scores + probabilities + results);
    int64_t head = (queries + keys + values) * 4, groups = ceil_div(head * p.heads, PACKED);
    group = ceil_div(p.heads, smaller(groups, p.heads));
  }
  // A thread has the same heads in both parts of the work, so that keys and values stay in its cache; or, where those of
  // all heads do, the same tokens, which it has in the products before and after, too.
  bool by_tokens() const { return packed() <= 1 << 20; }
  int64_t head(int64_t index, int64_t heads, int64_t panels) const { return by_tokens() ? index % heads : index / panels; }
  int64_t panel(int64_t index, int64_t heads, int64_t panels) const { return by_tokens() ? index / heads : index % panels; }
  size_t packed() const { return aligned((queries + keys + values) * group * 4); }
};

template <class L>
struct AttentionRun {
  typedef typename L::Words W;
  const Attention& p;
  AttentionPlan<L> plan;
  char* scratch;
  int64_t first, heads;  // of the present group

  // Of a head of the group.
  uint32_t* queries(int64_t head) const { return reinterpret_cast<uint32_t*>(scratch) + plan.queries * head; }
  uint32_t* keys(int64_t head) const { return queries(plan.group) + plan.keys * head; }
  uint32_t* values(int64_t head) const { return keys(plan.group) + plan.values * head; }
  float* mine(int64_t thread) const {
    return reinterpret_cast<float*>(scratch + plan.packed() + thread * plan.per_thread);
  }

  // Normalises and rotates one head of one token: `x` in, `y` out, both of `width` numbers.
  template <class T>
  void turn(const T* x, const void* scale_, float factor, const float* pe, float* y) const {
    const T* scale = static_cast<const T*>(scale_);
    int64_t width = p.width;
    float rrms = 1.0f;
    if (scale) {
      vf squares{};
      for (int64_t j = 0; j < width; j += LANES) {
        vf v = load_some(x + j, width - j);
        squares += v * v;
      }
      rrms = 1.0f / std::sqrt(sum(squares) / float(width) + p.eps);
    }
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) {
      vf v = load(x + j);
      if (scale) v = v * rrms * load(scale + j);
      if (pe) v = rotated(v, pe + 2 * j);
      store(y + j, v * factor);
    }
    for (; j < width; j++) y[j] = scale ? number(x + j) * rrms * number(scale + j) : number(x + j);
    for (j = width / LANES * LANES; j < width; j += 2) {
      float a = y[j], b = j + 1 < width ? y[j + 1] : 0;
      if (pe) {
        const float* turned = pe + 2 * j;
        y[j] = (turned[0] * a + turned[1] * b) * factor;
        y[j + 1] = (turned[3] * b + turned[2] * a) * factor;
      } else {
        y[j] = a * factor;
        if (j + 1 < width) y[j + 1] = b * factor;
      }
    }
  }

  // Pairs of neighbours by their matrices: [LANES / 2][2][2].
  static INLINE vf rotated(vf x, const float* pe) {
    vu first = (vu)load(pe), second = (vu)load(pe + LANES);
    vf straight = (vf)picked<0, 3>(first, second, std::make_integer_sequence<int, LANES>());
    vf crossed = (vf)picked<1, 2>(first, second, std::make_integer_sequence<int, LANES>());
    vf other = (vf)swapped((vu)x, std::make_integer_sequence<int, LANES>());
    return straight * x + crossed * other;
  }
  template <int even, int odd, int... i>
  static INLINE vu picked(vu a, vu b, std::integer_sequence<int, i...>) {
    return shuffled<(i / 2 * 4 + (i % 2 ? odd : even))...>(a, b);
  }
  template <int... i>
  static INLINE vu swapped(vu x, std::integer_sequence<int, i...>) {
    return shuffled<(i ^ 1)...>(x, x);
  }

  // Panels of queries whose results are wanted: the last ones.
  int64_t wanted_panels() const { return plan.query_panels - p.from / NR; }

  // One head of the tokens of a panel into words.
  void pack_task(int64_t index, int64_t thread) {
    int64_t head = plan.head(index, heads, plan.query_panels);
    int64_t from = plan.panel(index, heads, plan.query_panels) * NR, width = p.width;
    int64_t count = smaller(NR, p.length - from);
    float* tokens = mine(thread);
    if (count < NR) std::memset(tokens, 0, plan.tokens);
    // The part of each token's numbers, and what becomes of them.
    auto read = [&](int64_t part, auto turned) {
      for (int64_t i = 0; i < p.stream_count; i++) {
        const Stream& s = p.streams[i];
        int64_t first = from > s.start ? from : s.start, end = smaller(from + count, s.start + s.length);
        with_kind(s.qkv.kind, [&](auto kind) {
          for (int64_t at = first; at < end; at++) {
            const auto* x = row<decltype(kind)>(s.qkv, at - s.start) + (part * p.heads + this->first + head) * width;
            turned(s, at, x, tokens + (at - from) * width);
          }
        });
      }
    };
    auto pe = [&](int64_t at) { return p.pe ? p.pe + at * 2 * width : nullptr; };
    if (from + NR > p.from) {
      // The softmax is taken to the base 2.
      read(0, [&](const Stream& s, int64_t at, const auto* x, float* y) {
        turn(x, s.q_scale, p.scale * 1.4426950408889634f, pe(at), y);
      });
      uint32_t* q = queries(head) + from * plan.words;
      int64_t some = ceil_div(width, W::NUMBERS);
      pack<W, NR>(tokens, width, NR, 0, some, width, q);
      std::memset(q + some * NR, 0, size_t(plan.words - some) * NR * 4);
    }
    read(1, [&](const Stream& s, int64_t at, const auto* x, float* y) { turn(x, s.k_scale, 1.0f, pe(at), y); });
    L::put_keys(tokens, width, from, count, keys(head));
    read(2, [&](const Stream&, int64_t, const auto* x, float* y) {
      int64_t j = 0;
      for (; j + LANES <= width; j += LANES) store(y + j, load(x + j));
      for (; j < width; j++) y[j] = number(x + j);
    });
    L::put_values(tokens, width, from, count, values(head));
  }

  // Of numbers up to 0, as exactly as the words hold it.
  static INLINE vf exponential(vf x) {
    if constexpr (W::NUMBERS == 1) return exp2(x);
    else return rough_exp2(x);
  }

  void task(int64_t index, int64_t thread) {
    int64_t head = plan.head(index, heads, wanted_panels());
    int64_t panel = plan.query_panels - wanted_panels() + plan.panel(index, heads, wanted_panels());
    typename L::Hold hold;
    (void)hold;
    int64_t columns = smaller(NR, p.length - panel * NR);
    const uint32_t* q = queries(head) + panel * plan.words * NR;
    float* scores = mine(thread) + aligned(plan.tokens) / 4;
    uint32_t* probabilities = reinterpret_cast<uint32_t*>(scores + plan.scores / 4);
    float* results = scores + plan.scores / 4 + plan.probabilities / 4;
    vf largest[NV], total[NV];
    for (int v = 0; v < NV; v++) largest[v] = splat(-INFINITY), total[v] = vf{};
    for (int64_t key0 = 0; key0 < p.length; key0 += KEYS) {
      int64_t count = smaller(KEYS, p.length - key0);
      for (int64_t i = 0; i < count; i += L::KEY_PANEL) {
        const uint32_t* k = keys(head) + (key0 + i) * plan.words;
        L::score(count - i, columns, plan.words, k, q, scores + i * NR);
      }
      vf most[NV], factor[NV], block[NV];
      for (int v = 0; v < NV; v++) most[v] = largest[v];
      for (int64_t i = 0; i < count; i++)
        for (int v = 0; v < NV; v++) most[v] = max(most[v], load(scores + i * NR + v * LANES));
      for (int v = 0; v < NV; v++) {
        factor[v] = exp2(largest[v] - most[v]);
        largest[v] = most[v];
        block[v] = vf{};
      }
      int64_t words = ceil_div(count, W::NUMBERS);
      // Sums of sums: one long row of additions would round more than the products do.
      constexpr int64_t PART = 16;
      for (int64_t part = 0; part < words; part += PART) {
        vf sums[NV] = {};
        for (int64_t w = part; w < smaller(part + PART, words); w++) {
          for (int v = 0; v < NV; v++) {
            float* score = scores + w * W::NUMBERS * NR + v * LANES;
            vf first = exponential(load(score) - most[v]);
            sums[v] += first;
            vu packed = (vu)first;
            if constexpr (W::NUMBERS == 2) {
              vf second{};
              if (2 * w + 1 < count) second = exponential(load(score + NR) - most[v]);
              sums[v] += second;
              packed = rounded(first) | rounded(second) << 16;
            }
            *reinterpret_cast<vu_any*>(probabilities + w * NR + v * LANES) = packed;
          }
        }
        for (int v = 0; v < NV; v++) block[v] += sums[v];
      }
      for (int v = 0; v < NV; v++) total[v] = total[v] * factor[v] + block[v];
      if (key0 > 0) {
        for (int64_t i = 0; i < p.width; i++)
          for (int v = 0; v < NV; v++) {
            float* at = results + i * NR + v * LANES;
            store(at, load(at) * factor[v]);
          }
      }
      int64_t whole = ceil_div(count, L::STEP) * L::STEP / W::NUMBERS;
      std::memset(probabilities + words * NR, 0, size_t(whole - words) * NR * 4);
      L::sum_up(p.width, columns, key0, count, values(head), probabilities, results, key0 == 0);
    }
    for (int v = 0; v < NV; v++) {
      vf inverse = 1.0f / total[v];
      int64_t token = panel * NR + v * LANES, some = smaller(LANES, columns - v * LANES);
      int64_t skipped = p.from > token ? p.from - token : 0;
      for (int64_t j = 0; j < p.width; j += LANES) {
        vu block[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) block[i] = (vu)(load(results + (j + i) * NR + v * LANES) * inverse);
        transpose(block);
        with_kind(p.out.kind, [&](auto kind) {
          typedef decltype(kind) T;
          for (int64_t i = skipped; i < some; i++) {
            store_some(row_mut<T>(p.out, token + i - p.from) + (first + head) * p.width + j, (vf)block[i], p.width - j);
          }
        });
      }
    }
  }

  void run(const Pool& pool) {
    for (first = 0; first < p.heads; first += plan.group) {
      heads = smaller(plan.group, p.heads - first);
      pool.run(heads * plan.query_panels, [](void* self, int64_t i, int64_t thread) {
        static_cast<AttentionRun*>(self)->pack_task(i, thread);
      }, this);
      pool.run(heads * wanted_panels(), [](void* self, int64_t i, int64_t thread) {
        static_cast<AttentionRun*>(self)->task(i, thread);
      }, this);
    }
  }
};

#if defined(__AMX_TILE__)
typedef InTiles InNarrow;
#else
typedef InRegisters<Bf16Words> InNarrow;
#endif

template <class F>
auto with_layout(const Attention& p, F f) {
  bool narrow = p.words == tch_flux::BF16_WORDS || (p.words == tch_flux::OWN_WORDS && HAS_BF16 && p.out.kind == tch_flux::BF16);
  if (narrow && p.width % 2 == 0) return f(InNarrow());
  return f(InRegisters<F32Words>());
}

size_t attention_scratch(const Attention* attention, int64_t threads) {
  return with_layout(*attention, [&](auto layout) {
    AttentionPlan<decltype(layout)> plan(*attention);
    return plan.packed() + threads * plan.per_thread;
  });
}

void attention(const Attention* attention, const Pool* pool, void* scratch) {
  with_layout(*attention, [&](auto layout) {
    typedef decltype(layout) L;
    AttentionRun<L>{*attention, AttentionPlan<L>(*attention), static_cast<char*>(scratch), 0, 0}.run(*pool);
    return 0;
  });
}

}  // namespace
