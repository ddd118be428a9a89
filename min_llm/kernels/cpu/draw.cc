// The next token of every row of logits. What is drawn is said in infer/choose.py and infer/filters.py, the plain form;
// this is the same, pass by pass, with a row in the cache of one core.
#include <cmath>
#include <cstring>
#include <limits>

#include "pool.h"
#include "team.h"
#include "vector.h"

namespace min_llm {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Words = ffi::Buffer<ffi::U32>;

constexpr int64_t kColumns = 256;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// What a row is drawn with: `choose.Rows`.
struct Asked {
  float temperature, top_p, min_p, typical_p;
  uint32_t top_k;

  Asked(const float* reals, const uint32_t* words)
      : temperature(reals[0]), top_p(reals[1]), min_p(reals[2]), typical_p(reals[3]), top_k(words[0]) {}
  bool greedy() const { return temperature < 1e-5f; }
};

struct Best {
  float logit = kNothing;
  int32_t token = -1;  // -1: every token is forbidden, or a logit is NaN or plus infinity
};

// The first token with the largest logit.
Best best_of(const float* logits, int64_t n) {
  __m512 top = _mm512_set1_ps(kNothing);
  __m512i at = _mm512_setzero_si512(), ids = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __mmask16 unknown = 0;
  for (int64_t i = 0; i < n; i += 16, ids = _mm512_add_epi32(ids, _mm512_set1_epi32(16))) {
    const __m512 x = _mm512_mask_loadu_ps(_mm512_set1_ps(kNothing), first16(n - i), logits + i);
    unknown |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __mmask16 higher = _mm512_cmp_ps_mask(x, top, _CMP_GT_OQ);
    top = _mm512_mask_mov_ps(top, higher, x);
    at = _mm512_mask_mov_epi32(at, higher, ids);
  }
  Best best{_mm512_reduce_max_ps(top)};
  const __mmask16 equal = _mm512_cmp_ps_mask(top, _mm512_set1_ps(best.logit), _CMP_EQ_OQ);
  if (unknown == 0 && std::isfinite(best.logit)) best.token = _mm512_mask_reduce_min_epi32(equal, at);
  return best;
}

__m512 exp_of(__m512 x) { return exp16(_mm512_max_ps(x, _mm512_set1_ps(-200))); }  // 0 for minus infinity

// Sums of f(16 numbers) over n, a whole number of 16.
template <class F>
float sum(const float* x, int64_t n, const F& f) {
  __m512 sums = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) sums = _mm512_add_ps(sums, f(_mm512_load_ps(x + i)));
  return _mm512_reduce_add_ps(sums);
}

// Leaves the tokens of the smallest distances (0 to infinity) that weigh the target together; all, where they weigh less.
// `filters._nearest`: the bits of such a float, read as an integer, are in the order of the floats.
template <class Distance, class Weight>
void keep_nearest(float* x, int64_t n, float target, const Distance& distance, const Weight& weight) {
  float* distances = static_cast<float*>(scratch<61>(n * sizeof(float)));
  float* weights = static_cast<float*>(scratch<62>(n * sizeof(float)));
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 at = _mm512_load_ps(x + i);
    _mm512_store_ps(distances + i, distance(at));
    _mm512_store_ps(weights + i, weight(at));
  }
  target = std::max(target, std::numeric_limits<float>::min());  // at least one token
  int32_t low = 0, high = 0x7F800000;                           // the bits of infinity
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    float reach;
    std::memcpy(&reach, &middle, sizeof reach);
    __m512 sums = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
      const __mmask16 within = _mm512_cmp_ps_mask(_mm512_load_ps(distances + i), _mm512_set1_ps(reach), _CMP_LE_OQ);
      sums = _mm512_mask_add_ps(sums, within, sums, _mm512_load_ps(weights + i));
    }
    if (_mm512_reduce_add_ps(sums) >= target) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  float reach;
  std::memcpy(&reach, &low, sizeof reach);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 beyond = _mm512_cmp_ps_mask(_mm512_load_ps(distances + i), _mm512_set1_ps(reach), _CMP_NLE_UQ);
    _mm512_mask_store_ps(x + i, beyond, _mm512_set1_ps(kNothing));
  }
}

// Logits at the row's temperature, the largest 0, of the tokens that its filters leave; minus infinity for the others and
// up to n, a whole number of columns. What a greedy row leaves is its best token.
void keep(const float* logits, int64_t vocabulary, const Best& best, const Asked& asked, float* to, int64_t n) {
  if (asked.greedy()) {
    std::fill(to, to + n, kNothing);
    if (best.token >= 0) to[best.token] = 0;
    return;
  }
  const __m512 peak = _mm512_set1_ps(best.logit), by = _mm512_set1_ps(asked.temperature);
  const __m512 least = _mm512_set1_ps(std::log(asked.min_p)), nothing = _mm512_set1_ps(kNothing);
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 x = _mm512_mask_loadu_ps(nothing, first16(vocabulary - i), logits + i);
    const __m512 scaled = _mm512_div_ps(_mm512_sub_ps(x, peak), by);
    _mm512_store_ps(to + i, _mm512_mask_mov_ps(nothing, _mm512_cmp_ps_mask(scaled, least, _CMP_GE_OQ), scaled));
  }
  const auto negative = [](__m512 x) { return _mm512_sub_ps(_mm512_setzero_ps(), x); };
  if (asked.typical_p < 1) {
    const float total = sum(to, n, exp_of);
    const float mean = sum(to, n, [](__m512 x) {
      const __m512 w = exp_of(x);
      return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_GT_OQ), w, x);
    }) / total;
    keep_nearest(to, n, asked.typical_p * total,
                 [&](__m512 x) { return _mm512_abs_ps(_mm512_sub_ps(x, _mm512_set1_ps(mean))); }, exp_of);
  }
  if (asked.top_k > 0) {
    keep_nearest(to, n, static_cast<float>(asked.top_k), negative, [](__m512) { return _mm512_set1_ps(1); });
  }
  if (asked.top_p < 1) keep_nearest(to, n, asked.top_p * sum(to, n, exp_of), negative, exp_of);
}

// The first of n weights, `stride` apart, that is positive and at which the running sum exceeds `uniform` of the total.
int64_t inverted(const float* weights, int64_t n, int64_t stride, float uniform) {
  float total = 0;
  for (int64_t i = 0; i < n; ++i) total += weights[i * stride];
  float running = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float weight = weights[i * stride];
    running += weight;
    if (weight > 0) last = i;
    if (weight > 0 && running > uniform * total) return i;
  }
  return last;
}

// A token drawn by weight exp(x): a column of the vocabulary by its sum, then a token in it (`choose.pick`).
int32_t pick(float* x, int64_t n, const float uniforms[2]) {
  alignas(64) float columns[kColumns] = {};
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 weight = exp_of(_mm512_load_ps(x + i));
    _mm512_store_ps(x + i, weight);
    _mm512_store_ps(columns + i % kColumns, _mm512_add_ps(_mm512_load_ps(columns + i % kColumns), weight));
  }
  const int64_t column = inverted(columns, kColumns, 1, uniforms[0]);
  return inverted(x + column, n / kColumns, kColumns, uniforms[1]) * kColumns + column;
}

// For every row, on a thread each: f(row, its logits, the best of them, what it asks for).
template <class F>
void each(ffi::ThreadPool& pool, const Floats& logits, const Floats& reals, const Words& words, const F& f) {
  const int64_t rows = logits.dimensions()[0], v = logits.dimensions()[1];
  Team::get(pool.num_threads()).run(rows, [&](int64_t i) {
    const float* row = logits.typed_data() + i * v;
    f(i, row, best_of(row, v),
      Asked(reals.typed_data() + i * reals.dimensions()[1], words.typed_data() + i * words.dimensions()[1]));
  });
}

ffi::Error draw(ffi::ThreadPool pool, Floats logits, Floats reals, Words words, Floats uniforms,
                ffi::Result<ffi::Buffer<ffi::S32>> tokens) {
  const int64_t v = logits.dimensions()[1], n = ceil_div(v, kColumns) * kColumns;
  each(pool, logits, reals, words, [&](int64_t i, const float* row, const Best& best, const Asked& asked) {
    int32_t token = best.token;
    if (token >= 0 && !asked.greedy()) {
      float* kept = static_cast<float*>(scratch<60>(n * sizeof(float)));
      keep(row, v, best, asked, kept, n);
      token = pick(kept, n, uniforms.typed_data() + 2 * i);
    }
    tokens->typed_data()[i] = token;
  });
  return ffi::Error::Success();
}

ffi::Error kept(ffi::ThreadPool pool, Floats logits, Floats reals, Words words, ffi::Result<Floats> to) {
  const int64_t v = logits.dimensions()[1], n = ceil_div(v, kColumns) * kColumns;
  each(pool, logits, reals, words, [&](int64_t i, const float* row, const Best& best, const Asked& asked) {
    float* kept = static_cast<float*>(scratch<60>(n * sizeof(float)));
    keep(row, v, best, asked, kept, n);
    std::copy_n(kept, v, to->typed_data() + i * v);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_draw, draw,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Words>()
                                  .Arg<Floats>()
                                  .Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_kept, kept,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Words>()
                                  .Ret<Floats>());

}  // namespace min_llm
