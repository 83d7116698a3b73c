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
static_assert(KEYS % MR == 0 && KEYS % 2 == 0, "whole panels and whole words");
// Tokens of a task of the packing.
constexpr int64_t TOKENS = 16;
constexpr int64_t WIDEST = 512;
// Bytes of the packed heads that are in memory at once, unless one head takes more.
constexpr int64_t PACKED = 48 << 20;

template <class W>
struct AttentionPlan {
  int64_t words, query_panels, key_panels, value_rows;
  int64_t group;  // heads that are packed, and then attended to, together
  size_t queries, keys, values;  // of one head, in words
  size_t rotation, scores, probabilities, results, per_thread;

  explicit AttentionPlan(const Attention& p) {
    words = p.width / W::NUMBERS;
    query_panels = ceil_div(p.length, NR);
    key_panels = ceil_div(p.length, MR);
    value_rows = ceil_div(p.length, W::NUMBERS);
    queries = size_t(query_panels) * words * NR;
    keys = size_t(key_panels) * words * MR;
    values = size_t(value_rows) * p.width;
    rotation = 2 * p.width * 4 + 2 * WIDEST * 4;
    scores = size_t(KEYS) * NR * 4;
    probabilities = size_t(KEYS) * NR * 4;
    results = size_t(ceil_div(p.width, MR)) * MR * NR * 4;
    per_thread = aligned(rotation + scores + probabilities + results);
    int64_t head = (queries + keys + values) * 4, groups = ceil_div(head * p.heads, PACKED);
    group = ceil_div(p.heads, smaller(groups, p.heads));
  }
  size_t packed() const { return aligned((queries + keys + values) * group * 4); }
};

template <class W>
struct AttentionRun {
  const Attention& p;
  AttentionPlan<W> plan;
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
      for (int64_t w = 0; w < plan.words; w++) q[w * NR] = word(W(), y, w * W::NUMBERS, width);
      numbers(1);
      turn(x, s.k_scale, 1.0f, straight, crossed, y);
      uint32_t* k = keys(head) + (at / MR) * plan.words * MR + at % MR;
      for (int64_t w = 0; w < plan.words; w++) k[w * MR] = word(W(), y, w * W::NUMBERS, width);
      numbers(2);
      if constexpr (W::NUMBERS == 1) {
        std::memcpy(values(head) + at * width, x, width * 4);
      } else {
        uint16_t* v = reinterpret_cast<uint16_t*>(values(head) + at / 2 * width) + at % 2;
        for (int64_t j = 0; j < width; j++) v[2 * j] = narrow(x[j]);
      }
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
    auto clear = [&](uint32_t* panels, int64_t panel) {
      if (p.length % panel == 0) return;
      uint32_t* last = panels + (p.length / panel) * plan.words * panel;
      for (int64_t w = 0; w < plan.words; w++)
        for (int64_t i = p.length % panel; i < panel; i++) last[w * panel + i] = 0;
    };
    clear(queries(head), NR);
    clear(keys(head), MR);
    if (p.length % W::NUMBERS != 0) std::memset(values(head) + (plan.value_rows - 1) * p.width, 0, p.width * 4);
  }

  void task(int64_t index, int64_t thread) {
    int64_t head = index / plan.query_panels, panel = index % plan.query_panels;
    const uint32_t* q = queries(head) + panel * plan.words * NR;
    float* scores = mine(thread) + plan.rotation / 4;
    uint32_t* probabilities = reinterpret_cast<uint32_t*>(scores + plan.scores / 4);
    float* results = scores + plan.scores / 4 + plan.probabilities / 4;
    vf largest[NV], total[NV];
    for (int v = 0; v < NV; v++) largest[v] = splat(-INFINITY), total[v] = vf{};
    for (int64_t key0 = 0; key0 < p.length; key0 += KEYS) {
      int64_t count = smaller(KEYS, p.length - key0);
      for (int64_t i = 0; i < count; i += MR) {
        const uint32_t* k = keys(head) + (key0 + i) / MR * plan.words * MR;
        tile<W, MR>(plan.words, k, MR, q, scores + i * NR, NR, true);
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
      const uint32_t* value = values(head) + key0 / W::NUMBERS * p.width;
      for (int64_t i = 0; i < p.width; i += MR) {
        some_tile<W>(smaller(MR, p.width - i), words, value + i, p.width, probabilities, results + i * NR, NR, key0 == 0);
      }
    }
    float inverse[NR];
    for (int v = 0; v < NV; v++) store(inverse + v * LANES, 1.0f / total[v]);
    for (int64_t i = 0; i < smaller(NR, p.length - panel * NR); i++) {
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
      pool.run(heads, [](void* self, int64_t head, int64_t) {
        static_cast<AttentionRun*>(self)->clear_ends(head);
      }, this);
      pool.run(packs, [](void* self, int64_t i, int64_t thread) {
        static_cast<AttentionRun*>(self)->pack_task(i, thread);
      }, this);
      pool.run(heads * plan.query_panels, [](void* self, int64_t i, int64_t thread) {
        static_cast<AttentionRun*>(self)->task(i, thread);
      }, this);
    }
  }
};

template <class F>
auto with_words(const Attention& p, F f) {
  bool narrow = p.words == tch_flux::BF16_WORDS || (p.words == tch_flux::OWN_WORDS && HAS_BF16 && p.out.kind == tch_flux::BF16);
  if (narrow && p.width % 2 == 0) return f(Bf16Words());
  return f(F32Words());
}

size_t attention_scratch(const Attention* attention, int64_t threads) {
  return with_words(*attention, [&](auto words) {
    AttentionPlan<decltype(words)> plan(*attention);
    return plan.packed() + threads * plan.per_thread;
  });
}

void attention(const Attention* attention, const Pool* pool, void* scratch) {
  with_words(*attention, [&](auto words) {
    typedef decltype(words) W;
    AttentionRun<W>{*attention, AttentionPlan<W>(*attention), static_cast<char*>(scratch), 0, 0}.run(*pool);
    return 0;
  });
}

}  // namespace
