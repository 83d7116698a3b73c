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

void modulate(const Modulate* modulate, const Pool* pool) {
  pool->run(ceil_div(modulate->rows, 8), [](void* self, int64_t i, int64_t) {
    const Modulate& p = *static_cast<const Modulate*>(self);
    for (int64_t m = i * 8; m < smaller(i * 8 + 8, p.rows); m++) {
      with_kind(p.x.kind, [&](auto kind) { modulate_row<decltype(kind)>(p, m); });
    }
  }, const_cast<Modulate*>(modulate));
}

// Pixels of a task.
constexpr int64_t CHUNK = 256;

// Mean and sum of squared distances to it, of a group in a chunk of pixels.
struct Moments {
  double mean, squares;
};

struct GroupNormRun {
  const GroupNorm& p;
  char* scratch;

  int64_t chunks() const { return ceil_div(p.pixels, CHUNK); }
  int64_t per_group() const { return p.channels / p.groups; }
  Moments* moments() const { return reinterpret_cast<Moments*>(scratch); }
  // For each image and channel, what it is multiplied by and what is then added.
  float* factors() const { return reinterpret_cast<float*>(moments() + p.batch * chunks() * p.groups); }

  template <class T>
  void measure(int64_t index) {
    int64_t image = index / chunks(), first = index % chunks() * CHUNK, count = smaller(CHUNK, p.pixels - first);
    for (int64_t g = 0; g < p.groups; g++) {
      auto each = [&](auto f) {
        for (int64_t i = 0; i < count; i++) {
          const T* x = row<T>(p.x, image * p.pixels + first + i) + g * per_group();
          for (int64_t c = 0; c < per_group(); c++) f(number(x + c));
        }
      };
      float total = 0;
      each([&](float x) { total += x; });
      float n = float(count * per_group()), mean = total / n, squares = 0;
      each([&](float x) { squares += (x - mean) * (x - mean); });
      moments()[index * p.groups + g] = {mean, squares};
    }
  }

  void combine(int64_t index) {
    int64_t image = index / p.groups, g = index % p.groups;
    double n = 0, mean = 0, squares = 0;
    for (int64_t chunk = 0; chunk < chunks(); chunk++) {
      const Moments& part = moments()[(image * chunks() + chunk) * p.groups + g];
      double count = double(smaller(CHUNK, p.pixels - chunk * CHUNK) * per_group()), all = n + count;
      double distance = part.mean - mean;
      squares += part.squares + distance * distance * n * count / all;
      mean += distance * count / all;
      n = all;
    }
    double rstd = 1.0 / std::sqrt(squares / n + p.eps);
    for (int64_t c = g * per_group(); c < (g + 1) * per_group(); c++) {
      auto at = [&](const Rows& rows) {
        return rows.kind == tch_flux::BF16 ? wide(row<uint16_t>(rows, 0)[c]) : row<float>(rows, 0)[c];
      };
      double factor = rstd * at(p.weight);
      float* pair = factors() + (image * p.channels + c) * 2;
      pair[0] = float(factor), pair[1] = float(at(p.bias) - mean * factor);
    }
  }

  template <class T>
  void apply(int64_t index) {
    int64_t image = index / chunks(), first = index % chunks() * CHUNK, count = smaller(CHUNK, p.pixels - first);
    for (int64_t c = 0; c < p.channels; c += LANES) {
      int64_t left = p.channels - c;
      vf factor{}, term{};
      for (int l = 0; l < LANES && l < left; l++) {
        const float* pair = factors() + (image * p.channels + c + l) * 2;
        factor[l] = pair[0], term[l] = pair[1];
      }
      for (int64_t i = 0; i < count; i++) {
        int64_t m = image * p.pixels + first + i;
        vf y = load_some(row<T>(p.x, m) + c, left) * factor + term;
        store_some(row_mut<T>(p.out, m) + c, p.silu ? gated(y, y) : y, left);
      }
    }
  }

  void run(const Pool& pool) {
    pool.run(p.batch * chunks(), [](void* self, int64_t i, int64_t) {
      auto* run = static_cast<GroupNormRun*>(self);
      with_kind(run->p.x.kind, [&](auto kind) { run->measure<decltype(kind)>(i); });
    }, this);
    pool.run(p.batch * p.groups, [](void* self, int64_t i, int64_t) { static_cast<GroupNormRun*>(self)->combine(i); }, this);
    pool.run(p.batch * chunks(), [](void* self, int64_t i, int64_t) {
      auto* run = static_cast<GroupNormRun*>(self);
      with_kind(run->p.x.kind, [&](auto kind) { run->apply<decltype(kind)>(i); });
    }, this);
  }
};

size_t group_norm_scratch(const GroupNorm* p, int64_t) {
  return aligned(p->batch * (ceil_div(p->pixels, CHUNK) * p->groups * sizeof(Moments) + p->channels * 2 * 4));
}

void group_norm(const GroupNorm* group_norm, const Pool* pool, void* scratch) {
  GroupNormRun{*group_norm, static_cast<char*>(scratch)}.run(*pool);
}

}  // namespace
