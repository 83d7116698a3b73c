// Norms, with what follows them, in one pass.

namespace {

using tch_flux::GroupNorm;
using tch_flux::Modulate;

template <class T>
void modulate_row(const Modulate& p, int64_t i) {
  const T* x = row<T>(p.x, i);
  const T* scale = row<T>(p.scale, i / p.every);
  T* out = row_mut<T>(p.out, i);
  vf sums{};
  for (int64_t j = 0; j < p.width && !p.rms; j += LANES) sums += load_some(x + j, p.width - j);
  float mean = sum(sums) / float(p.width);
  vf squares{};
  for (int64_t j = 0; j < p.width; j += LANES) {
    int64_t left = p.width - j;
    vf d = load_some(x + j, left) - mean;
    if (left < LANES)
      for (int64_t l = left; l < LANES; l++) d[l] = 0;
    squares += d * d;
  }
  float rstd = 1.0f / std::sqrt(sum(squares) / float(p.width) + p.eps);
  for (int64_t j = 0; j < p.width; j += LANES) {
    int64_t left = p.width - j;
    vf y = (load_some(x + j, left) - mean) * rstd;
    vf s = load_some(scale + j, left);
    if (p.rms) y *= s;
    else y = y * (s + 1.0f) + load_some(row<T>(p.shift, i / p.every) + j, left);
    store_some(out + j, y, left);
  }
}

void modulate(const Modulate* modulate, const Pool* threads) {
  const Pool* pool = worth(modulate->rows * modulate->width, threads);
  pool->run(ceil_div(modulate->rows, 8), [](void* self, int64_t i, int64_t) {
    const Modulate& p = *static_cast<const Modulate*>(self);
    for (int64_t m = i * 8; m < smaller(i * 8 + 8, p.rows); m++) {
      with_kind(p.x.kind, [&](auto kind) { modulate_row<decltype(kind)>(p, m); });
    }
  }, const_cast<Modulate*>(modulate));
}

// Pixels of a task.
constexpr int64_t CHUNK = 256;

// Mean and sum of squared distances to it, of a channel in a chunk of pixels.
struct Moments {
  double mean, squares;
};

struct GroupNormRun {
  const GroupNorm& p;
  char* scratch;

  int64_t chunks() const { return ceil_div(p.pixels, CHUNK); }
  int64_t per_group() const { return p.channels / p.groups; }
  Moments* moments() const { return reinterpret_cast<Moments*>(scratch); }
  // For each image and channel what it is multiplied by, and then what is added.
  float* factors(int64_t image) const {
    return reinterpret_cast<float*>(moments() + p.batch * chunks() * p.channels) + image * 2 * p.channels;
  }

  // `wide` vectors of channels of a chunk: its numbers stay in the nearest cache for the second look.
  template <class T, int wide>
  void measure_some(const T* x, int64_t count, int64_t channels, Moments* out) const {
    vf means[wide] = {}, rests[wide] = {}, squares[wide] = {};
    for (int64_t i = 0; i < count; i++)
      for (int v = 0; v < wide; v++) means[v] += load_some(x + i * p.x.stride + v * LANES, channels - v * LANES);
    for (int v = 0; v < wide; v++) means[v] /= float(count);
    for (int64_t i = 0; i < count; i++)
      for (int v = 0; v < wide; v++) {
        vf d = load_some(x + i * p.x.stride + v * LANES, channels - v * LANES) - means[v];
        rests[v] += d;
        squares[v] += d * d;
      }
    for (int64_t c = 0; c < smaller(wide * LANES, channels); c++) {
      // What rounding left of the distances belongs to the mean.
      double rest = double(rests[c / LANES][c % LANES]) / double(count);
      out[c] = {means[c / LANES][c % LANES] + rest, squares[c / LANES][c % LANES] - rest * rest * double(count)};
    }
  }

  template <class T>
  void measure(int64_t index) const {
    constexpr int WIDE = 4;
    int64_t image = index / chunks(), first = index % chunks() * CHUNK, count = smaller(CHUNK, p.pixels - first);
    const T* x = row<T>(p.x, image * p.pixels + first);
    Moments* out = moments() + index * p.channels;
    int64_t c = 0;
    for (; c + WIDE * LANES <= p.channels; c += WIDE * LANES) measure_some<T, WIDE>(x + c, count, WIDE * LANES, out + c);
    for (; c < p.channels; c += LANES) measure_some<T, 1>(x + c, count, p.channels - c, out + c);
  }

  void combine(int64_t index) const {
    int64_t image = index / p.groups, g = index % p.groups, from = g * per_group(), to = from + per_group();
    double n = 0, mean = 0, squares = 0;
    for (int64_t chunk = 0; chunk < chunks(); chunk++) {
      double count = double(smaller(CHUNK, p.pixels - chunk * CHUNK));
      for (int64_t c = from; c < to; c++) {
        const Moments& part = moments()[(image * chunks() + chunk) * p.channels + c];
        double all = n + count, distance = part.mean - mean;
        squares += part.squares + distance * distance * n * count / all;
        mean += distance * count / all;
        n = all;
      }
    }
    double rstd = 1.0 / std::sqrt(squares / n + p.eps);
    float* factor = factors(image);
    for (int64_t c = from; c < to; c++) {
      auto at = [&](const Rows& rows) {
        return rows.kind == tch_flux::BF16 ? wide(row<uint16_t>(rows, 0)[c]) : row<float>(rows, 0)[c];
      };
      double exact = rstd * at(p.weight);
      factor[c] = float(exact), factor[p.channels + c] = float(at(p.bias) - mean * exact);
    }
  }

  template <class T>
  void apply(int64_t index) const {
    int64_t image = index / chunks(), first = index % chunks() * CHUNK, count = smaller(CHUNK, p.pixels - first);
    const float *factor = factors(image), *term = factor + p.channels;
    for (int64_t m = image * p.pixels + first; m < image * p.pixels + first + count; m++) {
      const T* x = row<T>(p.x, m);
      T* out = row_mut<T>(p.out, m);
      for (int64_t c = 0; c < p.channels; c += LANES) {
        int64_t left = p.channels - c;
        vf y = load_some(x + c, left) * load_some(factor + c, left) + load_some(term + c, left);
        store_some(out + c, p.silu ? gated<std::is_same<T, uint16_t>::value>(y, y) : y, left);
      }
    }
  }

  void run(const Pool& pool) {
    pool.run(p.batch * chunks(), [](void* self, int64_t i, int64_t) {
      auto* run = static_cast<GroupNormRun*>(self);
      with_kind(run->p.x.kind, [&](auto kind) { run->template measure<decltype(kind)>(i); });
    }, this);
    pool.run(p.batch * p.groups, [](void* self, int64_t i, int64_t) { static_cast<GroupNormRun*>(self)->combine(i); }, this);
    pool.run(p.batch * chunks(), [](void* self, int64_t i, int64_t) {
      auto* run = static_cast<GroupNormRun*>(self);
      with_kind(run->p.x.kind, [&](auto kind) { run->template apply<decltype(kind)>(i); });
    }, this);
  }
};

size_t group_norm_scratch(const GroupNorm* p, int64_t) {
  return aligned(p->batch * p->channels * (ceil_div(p->pixels, CHUNK) * sizeof(Moments) + 2 * 4));
}

void group_norm(const GroupNorm* group_norm, const Pool* pool, void* scratch) {
  const GroupNorm& p = *group_norm;
  GroupNormRun{p, static_cast<char*>(scratch)}.run(*worth(p.batch * p.pixels * p.channels, pool));
}

}  // namespace
