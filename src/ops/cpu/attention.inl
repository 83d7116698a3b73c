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
// Tokens of a task of the packing.
constexpr int64_t TOKENS = 16;
constexpr int64_t WIDEST = 512;
// Bytes of the packed heads that are in memory at once, unless one head takes more.
constexpr int64_t PACKED = 48 << 20;

// How keys and values stand in memory, and how they are multiplied: a panel of keys by a panel of queries, and the values
// of some keys by their probabilities.
template <class W>
struct InRegisters {
  typedef W Words;
  static constexpr bool IN_TILES = false;
  static constexpr int64_t KEY_PANEL = MR, STEP = W::NUMBERS;
  static_assert(KEYS % MR == 0 && KEYS % 2 == 0, "whole panels and whole words");
  static int64_t words(int64_t width) { return width / W::NUMBERS; }
  static int64_t values(int64_t length, int64_t width) { return ceil_div(length, W::NUMBERS) * width; }
  static int64_t results(int64_t width) { return ceil_div(width, MR) * MR; }

  // Key `i` of its panel.
  static void put_key(const float* x, int64_t width, int64_t i, uint32_t* panel) {
    for (int64_t w = 0; w < width / W::NUMBERS; w++) panel[w * MR + i] = word(W(), x, w * W::NUMBERS, width);
  }
  static void put_value(const float* x, int64_t width, int64_t key, uint32_t* values) {
    if constexpr (W::NUMBERS == 1) {
      std::memcpy(values + key * width, x, width * 4);
    } else {
      uint16_t* v = reinterpret_cast<uint16_t*>(values + key / 2 * width) + key % 2;
      for (int64_t j = 0; j < width; j++) v[2 * j] = narrow(x[j]);
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
  static constexpr bool IN_TILES = true;
  static constexpr int64_t KEY_PANEL = PANEL, STEP = TILE * W::NUMBERS;
  static_assert(KEYS % PANEL == 0 && KEYS % STEP == 0, "whole panels and whole steps");
  static int64_t words(int64_t width) { return ceil_div(width, STEP) * TILE; }
  static int64_t values(int64_t length, int64_t width) { return ceil_div(length, STEP) * results(width) * TILE; }
  static int64_t results(int64_t width) { return ceil_div(width, TILE) * TILE; }

  static void put_key(const float* x, int64_t width, int64_t i, uint32_t* panel) {
    copy_words<W>(x, 0, width, ceil_div(width, STEP), panel + i * TILE, PANEL * TILE);
  }
  static void put_value(const float* x, int64_t width, int64_t key, uint32_t* values) {
    uint16_t* v = reinterpret_cast<uint16_t*>(values + key / STEP * results(width) * TILE) + key % STEP;
    for (int64_t j = 0; j < width; j++) v[j * STEP] = narrow(x[j]);
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
  size_t rotation, scores, probabilities, results, per_thread;

  explicit AttentionPlan(const Attention& p) {
    words = L::words(p.width);
    query_panels = ceil_div(p.length, NR);
    key_panels = ceil_div(p.length, L::KEY_PANEL);
    queries = size_t(query_panels) * words * NR;
    keys = size_t(key_panels) * words * L::KEY_PANEL;
    values = L::values(p.length, p.width);
    rotation = 2 * p.width * 4 + 2 * WIDEST * 4;
    scores = size_t(KEYS) * NR * 4;
    probabilities = size_t(KEYS) * NR * 4;
    results = size_t(L::results(p.width)) * NR * 4;
    per_thread = aligned(rotation + scores + probabilities + results);
    int64_t head = (queries + keys + values) * 4, groups = ceil_div(head * p.heads, PACKED);
    group = ceil_div(p.heads, smaller(groups, p.heads));
  }
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
  void turn(const float* x, const float* scale, float factor, const float* straight, const float* crossed,
            float* y) const {
    float normed[WIDEST];
    if (scale) {
      vf squares{};
      for (int64_t i = 0; i < p.width; i += LANES) {
        vf v = load_some(x + i, p.width - i);
        squares += v * v;
      }
      float rrms = 1.0f / std::sqrt(sum(squares) / float(p.width) + p.eps);
      for (int64_t i = 0; i < p.width; i++) normed[i] = x[i] * rrms * scale[i];
    } else {
      std::memcpy(normed, x, p.width * 4);
    }
    if (straight) {
      for (int64_t i = 0; i < p.width; i += 2) {
        y[i] = (straight[i] * normed[i] + crossed[i] * normed[i + 1]) * factor;
        y[i + 1] = (straight[i + 1] * normed[i + 1] + crossed[i + 1] * normed[i]) * factor;
      }
    } else {
      for (int64_t i = 0; i < p.width; i++) y[i] = normed[i] * factor;
    }
  }

  template <class T>
  void pack_token(const Stream& s, int64_t i, float* memory) {
    int64_t at = s.start + i, width = p.width;
    float *straight = nullptr, *crossed = nullptr, *x = memory + 2 * width, *y = x + WIDEST;
    if (p.pe) {
      straight = memory, crossed = memory + width;
      const float* pe = p.pe + at * 2 * width;
      for (int64_t j = 0; j < width / 2; j++, pe += 4) {
        straight[2 * j] = pe[0], crossed[2 * j] = pe[1], crossed[2 * j + 1] = pe[2], straight[2 * j + 1] = pe[3];
      }
    }
    const T* qkv = row<T>(s.qkv, i);
    for (int64_t head = 0; head < heads; head++) {
      auto numbers = [&](int64_t part) {
        const T* from = qkv + (part * p.heads + first + head) * width;
        for (int64_t j = 0; j < width; j += LANES) store(x + j, load_some(from + j, width - j));
      };
      numbers(0);
      // The softmax is taken to the base 2.
      turn(x, s.q_scale, p.scale * 1.4426950408889634f, straight, crossed, y);
      uint32_t* q = queries(head) + (at / NR) * plan.words * NR + at % NR;
      for (int64_t w = 0; w < plan.words; w++) {
        q[w * NR] = w * W::NUMBERS < width ? word(W(), y, w * W::NUMBERS, width) : 0;
      }
      numbers(1);
      turn(x, s.k_scale, 1.0f, straight, crossed, y);
      L::put_key(y, width, at % L::KEY_PANEL, keys(head) + at / L::KEY_PANEL * plan.words * L::KEY_PANEL);
      numbers(2);
      L::put_value(x, width, at, values(head));
    }
  }

  void pack_task(int64_t index, int64_t thread) {
    for (int64_t i = 0; i < p.stream_count; i++) {
      const Stream& s = p.streams[i];
      int64_t tasks = ceil_div(s.length, TOKENS);
      if (index >= tasks) {
        index -= tasks;
        continue;
      }
      for (int64_t t = index * TOKENS; t < smaller((index + 1) * TOKENS, s.length); t++) {
        with_kind(s.qkv.kind, [&](auto kind) { pack_token<decltype(kind)>(s, t, mine(thread)); });
      }
      return;
    }
  }

  // What stands behind the last token.
  void clear_ends(int64_t head) {
    uint32_t* q = queries(head) + (plan.query_panels - 1) * plan.words * NR;
    for (int64_t w = 0; w < plan.words; w++)
      for (int64_t i = p.length - (plan.query_panels - 1) * NR; i < NR; i++) q[w * NR + i] = 0;
    int64_t panel = (plan.key_panels - 1) * L::KEY_PANEL;
    std::memset(keys(head) + panel * plan.words, 0, size_t(plan.words) * L::KEY_PANEL * 4);
    size_t last = L::values(p.length % L::STEP == 0 ? 0 : p.length % L::STEP, p.width);
    std::memset(values(head) + plan.values - last, 0, last * 4);
  }

  void task(int64_t index, int64_t thread) {
    int64_t head = index / plan.query_panels, panel = index % plan.query_panels;
    Hold<L::IN_TILES> hold;
    (void)hold;
    int64_t columns = smaller(NR, p.length - panel * NR);
    const uint32_t* q = queries(head) + panel * plan.words * NR;
    float* scores = mine(thread) + plan.rotation / 4;
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
            vf first = exp2(load(score) - most[v]);
            sums[v] += first;
            vu packed = (vu)first;
            if constexpr (W::NUMBERS == 2) {
              vf second{};
              if (2 * w + 1 < count) second = exp2(load(score + NR) - most[v]);
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
    float inverse[NR];
    for (int v = 0; v < NV; v++) store(inverse + v * LANES, 1.0f / total[v]);
    for (int64_t i = 0; i < columns; i++) {
      with_kind(p.out.kind, [&](auto kind) {
        typedef decltype(kind) T;
        T* out = row_mut<T>(p.out, panel * NR + i) + (first + head) * p.width;
        for (int64_t j = 0; j < p.width; j++) put(out + j, results[j * NR + i] * inverse[i]);
      });
    }
  }

  void run(const Pool& pool) {
    int64_t packs = 0;
    for (int64_t i = 0; i < p.stream_count; i++) packs += ceil_div(p.streams[i].length, TOKENS);
    for (first = 0; first < p.heads; first += plan.group) {
      heads = smaller(plan.group, p.heads - first);
      for (int64_t head = 0; head < heads; head++) clear_ends(head);
      pool.run(packs, [](void* self, int64_t i, int64_t thread) {
        static_cast<AttentionRun*>(self)->pack_task(i, thread);
      }, this);
      pool.run(heads * plan.query_panels, [](void* self, int64_t i, int64_t thread) {
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
