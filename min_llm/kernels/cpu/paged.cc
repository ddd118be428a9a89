// Attention of tokens over the pages of their sequences (kernels/attention/paged.py), read where they lie.
//
// A unit is a decoding token or a block of 16 tokens of one sequence; a task is a unit and a key-value head, with all
// query heads that share it. Keys are taken kKeys at a time, cut at multiples of kKeys counted from the sequence's
// beginning, with an online softmax over these pieces (Milakov and Gimelshein 2018). What a query does not see adds
// zeros, which change no bit: a query's result does not depend on the unit it comes in, or on the call.
//
// Here in float32; queries in bfloat16 go to paged_tiles.cc, which rounds otherwise and keeps the same promise, unless
// the pools are float32.
#include "fma.h"
#include "paged.h"
#include "team.h"

namespace min_llm::paged {
namespace {

constexpr int64_t kKeys = 64;

template <Kind kKind>
__m512 load16(const void* data, int64_t at, __mmask16 mask) {
  if constexpr (kKind == Kind::kFloat32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + at);
  if constexpr (kKind == Kind::kBfloat16) return load_bf16(static_cast<const bf16*>(data) + at, mask);
  const __m128i x = _mm_maskz_loadu_epi8(mask, static_cast<const int8_t*>(data) + at);
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
}

// 16 keys, turned: to[number][32]. It takes a neighbour in place of those before `first` or from `end` on, whose scores
// nobody uses.
template <Kind kKind>
void turn(const char* keys, const float* scales, const int64_t* places, int64_t first, int64_t end, int64_t depth,
          float* to) {
  for (int64_t at = 0; at < depth; at += 16, to += 16 * kPanel) {
    __m512i r[16];
    const int64_t numbers = std::min<int64_t>(16, depth - at);
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t place = places[std::clamp(i, first, end - 1)];
      const __m512 key = load16<kKind>(keys + place * depth * bytes_of(kKind), at, first16(numbers));
      r[i] = _mm512_castps_si512(kKind == Kind::kInt8 ? _mm512_mul_ps(key, _mm512_set1_ps(scales[place])) : key);
    }
    transpose16(r);
    for (int64_t i = 0; i < numbers; ++i) _mm512_store_si512(to + i * kPanel, r[i]);
  }
}

// Values [first, end) side by side: to[columns][kKeys][32], with zeros beyond depth.
template <Kind kKind>
void gather(const char* values, const float* scales, const int64_t* places, int64_t first, int64_t end, int64_t depth,
            float* to) {
  for (int64_t at = 0; at < depth; at += kPanel, to += kKeys * kPanel) {
    for (int64_t key = first; key < end; ++key) {
      const char* value = values + places[key] * depth * bytes_of(kKind);
      for (int64_t half = 0; half < kPanel; half += 16) {
        const __m512 x = load16<kKind>(value, at + half, first16(depth - at - half));
        const __m512 scaled = kKind == Kind::kInt8 ? _mm512_mul_ps(x, _mm512_set1_ps(scales[places[key]])) : x;
        _mm512_store_ps(to + key * kPanel + half, scaled);
      }
    }
  }
}

// 0 from -104 down; NaN stays NaN (the second operand of max).
__m512 exp_of_negative(__m512 x) { return exp16(_mm512_max_ps(_mm512_set1_ps(-200), x)); }

// Makes weights of a query's scores of kKeys keys, [panels] `stride` apart: exp(score - largest), 0 where it does not
// see the key. Updates the largest score and the sum of all weights; returns the factor for what was summed before.
float weigh(float* scores, int64_t stride, Range visible, float& largest, float& total) {
  constexpr int64_t kParts = kKeys / 16;
  __m512 score[kParts], top = _mm512_set1_ps(largest);
  __mmask16 mask[kParts];
  for (int64_t j = 0; j < kParts; ++j) {
    mask[j] = first16(visible.to - 16 * j) & ~first16(visible.from - 16 * j);
    score[j] = _mm512_load_ps(scores + j / 2 * stride + j % 2 * 16);
    top = _mm512_mask_max_ps(top, mask[j], top, score[j]);
  }
  const __m512 now = _mm512_set1_ps(_mm512_reduce_max_ps(top));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < kParts; ++j) {
    const __m512 weight = _mm512_maskz_mov_ps(mask[j], exp_of_negative(_mm512_sub_ps(score[j], now)));
    _mm512_store_ps(scores + j / 2 * stride + j % 2 * 16, weight);
    sum = _mm512_add_ps(sum, weight);
  }
  const __m512 before = _mm512_set1_ps(largest);
  largest = _mm512_cvtss_f32(now);
  const bool same = largest == _mm512_cvtss_f32(before);  // most often, far from the beginning
  const float kept = same ? 1 : _mm512_cvtss_f32(exp_of_negative(_mm512_sub_ps(before, now)));
  total = total * kept + _mm512_reduce_add_ps(sum);
  return kept;
}

template <Kind kKind>
void attend_as(const Call& call, int64_t unit, int64_t group) {
  const int64_t depth = call.depth, shared = call.shared(), tokens = call.tokens(unit), token = call.first_token(unit);
  const int64_t rows = tokens * shared, columns = ceil_div(depth, kPanel);
  const Range range = seen(call, unit);
  const int32_t* table = call.tables + call.row[token] * call.max_pages;
  const char *keys = call.keys + group * call.size(), *values = call.values + group * call.size();
  const float *key_scales = call.key_scales + group, *value_scales = call.value_scales + group;
  int64_t places[kKeys], next[kKeys];

  float* queries = static_cast<float*>(scratch<50>((rows * depth + 16) * sizeof(float)));  // [rows][depth], scaled
  float* turned = static_cast<float*>(scratch<51>(kKeys * depth * sizeof(float)));         // Kᵀ: [panels][depth][32]
  float* straight =  // V: [columns][kKeys][32]
      static_cast<float*>(scratch<52>(kKeys * columns * kPanel * sizeof(float)));
  float* weights = static_cast<float*>(scratch<53>(rows * kKeys * sizeof(float)));         // [panels][rows][32]
  float* sums = static_cast<float*>(scratch<54>(rows * columns * kPanel * sizeof(float)));  // [columns][rows][32]
  float* largest = static_cast<float*>(scratch<55>(2 * rows * sizeof(float)));
  float* total = largest + rows;
  std::fill(sums, sums + rows * columns * kPanel, 0.0f);
  std::fill(largest, largest + rows, kNothing);
  std::fill(total, total + rows, 0.0f);

  const __m512 scale = _mm512_set1_ps(1 / std::sqrt(static_cast<float>(depth)));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t from = call.place_of(unit, group, row);
    for (int64_t at = 0; at < depth; at += 16) {
      const __mmask16 mask = first16(depth - at);
      const __m512 x = (call.wide ? load16<Kind::kFloat32> : load16<Kind::kBfloat16>)(call.q, from + at, mask);
      _mm512_mask_storeu_ps(queries + row * depth + at, mask, _mm512_mul_ps(x, scale));
    }
  }

  int64_t from = range.from / kKeys * kKeys;
  find(call, table, range.from, std::min(from + kKeys, range.to) - range.from, next + range.from - from);
  for (; from < range.to; from += kKeys) {
    const int64_t first = std::max<int64_t>(0, range.from - from), end = std::min(kKeys, range.to - from);
    const int64_t end_next = std::min(kKeys, range.to - from - end);
    std::copy(next + first, next + end, places + first);
    find(call, table, from + end, end_next, next);
    for (int64_t key = 0; key < end_next; ++key) fetch(keys + next[key] * call.size(), call.size());
    for (int64_t key = first / 16 * 16; key < end; key += 16) {
      float* to = turned + key / kPanel * depth * kPanel + key % kPanel;
      turn<kKind>(keys, key_scales, places + key, first - key, std::min<int64_t>(16, end - key), depth, to);
    }
    for (int64_t key = 0; key < end_next; ++key) fetch(values + next[key] * call.size(), call.size());
    gather<kKind>(values, value_scales, places, first, end, depth, straight);
    std::fill(weights, weights + rows * kKeys, 0.0f);
    for (int64_t key = first / kPanel * kPanel; key < end; key += kPanel) {
      add_product<false>(queries, depth, rows, turned + key * depth, depth, weights + key * rows);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t index = call.index[token + t];
      const Range visible{std::max<int64_t>(0, call.first_key(index) - from), index + 1 - from};
      for (int64_t row = t * shared; row < (t + 1) * shared; ++row) {
        const float kept = weigh(weights + row * kPanel, rows * kPanel, visible, largest[row], total[row]);
        for (int64_t c = 0; kept != 1 && c < columns; ++c) {
          float* part = sums + (c * rows + row) * kPanel;
          const __m512 factor = _mm512_set1_ps(kept);
          _mm512_store_ps(part, _mm512_mul_ps(_mm512_load_ps(part), factor));
          _mm512_store_ps(part + 16, _mm512_mul_ps(_mm512_load_ps(part + 16), factor));
        }
      }
    }
    for (int64_t panel = first / kPanel * kPanel; panel < end; panel += kPanel) {
      const int64_t key = std::max(first, panel), n = std::min(panel + kPanel, end) - key;
      for (int64_t c = 0; c < columns; ++c) {
        const float* w = straight + (c * kKeys + key) * kPanel;
        add_product<false>(weights + panel * rows + key - panel, kPanel, rows, w, n, sums + c * rows * kPanel);
      }
    }
  }

  for (int64_t row = 0; row < rows; ++row) {
    const __m512 inverse = _mm512_set1_ps(total[row] > 0 ? 1 / total[row] : 0);
    const int64_t to = call.place_of(unit, group, row);
    for (int64_t at = 0; at < depth; at += 16) {
      const __m512 sum = _mm512_load_ps(sums + (at / kPanel * rows + row) * kPanel + at % kPanel);
      const __m512 x = _mm512_fmadd_ps(sum, inverse, _mm512_setzero_ps());  // + 0: a zero has no sign
      if (call.wide) {
        _mm512_mask_storeu_ps(static_cast<float*>(call.out) + to + at, first16(depth - at), x);
      } else {
        store_bf16(static_cast<bf16*>(call.out) + to + at, x, first16(depth - at));
      }
    }
  }
}

void attend_in_float32(const Call& call, int64_t unit, int64_t group) {
  const auto attend = call.kind == Kind::kFloat32    ? attend_as<Kind::kFloat32>
                      : call.kind == Kind::kBfloat16 ? attend_as<Kind::kBfloat16>
                                                     : attend_as<Kind::kInt8>;
  attend(call, unit, group);
}

using Integers = ffi::Buffer<ffi::S32>;
using Scales = ffi::Buffer<ffi::F32>;

// scales [layers][pages][page][groups]: of int8; empty for others.
ffi::Error run(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer keys, ffi::AnyBuffer values, Scales key_scales,
               Scales value_scales, Integers layer, Integers tables, Integers row, Integers index, Integers window,
               ffi::Result<ffi::AnyBuffer> out, int64_t singles) {
  const auto shape = keys.dimensions();  // [layers, pages, page, groups, depth]
  const ffi::DataType type = keys.element_type();
  const Kind kind = type == ffi::F32 ? Kind::kFloat32 : type == ffi::BF16 ? Kind::kBfloat16 : Kind::kInt8;
  const int64_t tokens = q.dimensions()[0], groups = shape[3], depth = shape[4];
  const int64_t heads = std::clamp<int64_t>(*layer.typed_data(), 0, shape[0] - 1) * shape[1] * shape[2] * groups;
  const int64_t skip = heads * depth * bytes_of(kind), skip_scales = kind == Kind::kInt8 ? heads : 0;
  const Call call{q.dimensions()[1], groups, depth, shape[2], tables.dimensions()[1], *window.typed_data(), singles,
                  singles + (tokens - singles) / kUnit, kind, q.element_type() == ffi::F32,
                  static_cast<const char*>(keys.untyped_data()) + skip,
                  static_cast<const char*>(values.untyped_data()) + skip, key_scales.typed_data() + skip_scales,
                  value_scales.typed_data() + skip_scales, tables.typed_data(), row.typed_data(), index.typed_data(),
                  q.untyped_data(), out->untyped_data()};
  int64_t work = 0;  // pairs of a unit and a key
  for (int64_t unit = 0; unit < call.units; ++unit) {
    const Range range = seen(call, unit);
    work += (range.to - range.from) * call.tokens(unit);
  }
  constexpr int64_t kAlone = 1 << 15;  // multiplications, some microseconds: no other thread is asked
  const auto attend = call.wide || kind == Kind::kFloat32 ? attend_in_float32 : attend_in_tiles;
  const auto task = [&](int64_t i) { attend(call, call.units - 1 - i / groups, i % groups); };  // blocks come first
  const int64_t tasks = call.units * groups;
  if (work * call.heads * depth < kAlone) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
  } else if (call.units > call.singles) {  // among products of many rows, which use the pool too (shares.h)
    parallel(pool, tasks, task);
  } else {
    Team::get(pool.num_threads()).run(tasks, task);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace min_llm::paged

namespace min_llm {

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_paged, paged::run,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<paged::Scales>()
                                  .Arg<paged::Scales>()
                                  .Arg<paged::Integers>()
                                  .Arg<paged::Integers>()
                                  .Arg<paged::Integers>()
                                  .Arg<paged::Integers>()
                                  .Arg<paged::Integers>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("singles"));

}  // namespace min_llm
