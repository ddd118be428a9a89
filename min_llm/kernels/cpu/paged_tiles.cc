// Attention over pages in bfloat16 tiles (tiles.h): queries and keys meet as Sᵀ = K Qᵀ, so that 16 queries fill the
// lanes of a register and the softmax needs no sum across one.
//
// A query's bits depend on its keys alone: its lane is summed by itself, in the order of places, in passes that begin
// at multiples of kPass; a key that it does not see adds zeros. A decoding token has few rows (the query heads that
// share a key-value head); tiles that are mostly empty are still the faster way, and the only one with equal bits.
#include "paged.h"

namespace min_llm::paged {
namespace {

constexpr int64_t kPass = 64;             // keys whose scores are held at once; more, and the first-level cache is full
constexpr float kHidden = -3e38f;         // a score that is not seen, less than kNothing
constexpr int64_t kCell = kTile * kTile;  // numbers of a tile of C

template <int kTag, class T>
T* room(int64_t n) {
  return static_cast<T*>(scratch<kTag>(n * sizeof(T)));
}

// 2^x to 3 millionths, which is enough for weights that are rounded to bfloat16; exactly 1 at 0.
inline __m512 exp2_16(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(0.00958285322f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0559064254f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240240986f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693124193f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// Pairs of neighbours from two registers: the 16 numbers of `even` and of `odd`, rounded, side by side.
inline __m512i paired(__m512 even, __m512 odd) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// Up to 16 rows of a unit and a group, one a lane.
struct Strip {
  bf16* queries;             // Qᵀ as tiles of B: [steps of depth]
  float* sums;               // [tiles of depth][16][16]
  __m512i from, to;          // keys [from, to) are seen
  int64_t from_all, to_all;  // by every lane
  __m512 largest, total;
};

// Keys of one group that are held at once.
struct Pass {
  int64_t from, keys;          // the first place; how many, in whole steps of 32
  bf16* rows;                  // K [keys][depth, padded to steps of 32]
  bf16* tiles;                 // V as tiles of B: [steps of keys][tiles of depth]
  float *k_scales, *v_scales;  // of int8 [keys]
};

// Keys and values of the next pass on their way into the cache. A processor waits for few lines at once, so they are
// asked for one by one while it computes.
struct Ahead {
  const char *keys, *values;
  const int64_t* places;
  int64_t count, size;  // of keys; bytes of each
  int64_t done = 0;

  void some(int64_t n) {
    for (; n > 0 && done < 2 * count; --n, ++done) {
      fetch(done < count ? keys + places[done] * size : values + places[done - count] * size, size);
    }
  }
};

// Sᵀ of 32 or 64 keys: [keys][16].
template <bool kFour>
void score(const bf16* rows, const bf16* queries, int64_t steps, float* scores) {
  const int64_t row = steps * kStep, stride = row * 2;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kFour) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t s = 0; s < steps; ++s, rows += kStep, queries += kTileSize) {
    _tile_loadd(6, queries, 64);
    _tile_loadd(4, rows, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, rows + kTile * row, stride);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (kFour) {
      _tile_loadd(4, rows + 2 * kTile * row, stride);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(5, rows + 3 * kTile * row, stride);
      _tile_dpbf16ps(3, 5, 6);
    }
  }
  _tile_stored(0, scores, 64);
  _tile_stored(1, scores + kCell, 64);
  if constexpr (kFour) {
    _tile_stored(2, scores + 2 * kCell, 64);
    _tile_stored(3, scores + 3 * kCell, 64);
  }
}

// Scores of keys in int8, in their units.
void scale_up(const Pass& pass, float* scores) {
  for (int64_t key = 0; key < pass.keys; ++key) {
    float* at = scores + key * kTile;
    _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(pass.k_scales[key])));
  }
}

void hide(const Pass& pass, const Strip& strip, float* scores) {
  for (int64_t key = 0; key < pass.keys; ++key) {
    const __m512i place = _mm512_set1_epi32(pass.from + key);
    const __mmask16 seen = _mm512_cmp_epi32_mask(place, strip.from, _MM_CMPINT_NLT) &
                           _mm512_cmp_epi32_mask(place, strip.to, _MM_CMPINT_LT);
    const __m512 x = _mm512_load_ps(scores + key * kTile);
    _mm512_store_ps(scores + key * kTile, _mm512_mask_mov_ps(_mm512_set1_ps(kHidden), seen, x));
  }
}

// Scores become weights, 2^(score · scale - largest), as tiles of A: [steps of keys][16][32]; those of values in int8
// take the values' scales along. Sums of before are scaled down where the largest score has grown.
template <Kind kKind>
void weigh(const Pass& pass, Strip& strip, Ahead& ahead, int64_t cells, float scale, const float* scores,
           bf16* weights) {
  __m512 top[4], sum[4];
  for (int i = 0; i < 4; ++i) top[i] = _mm512_set1_ps(kHidden), sum[i] = _mm512_setzero_ps();
  for (int64_t key = 0; key < pass.keys; key += 4) {
    for (int i = 0; i < 4; ++i) top[i] = _mm512_max_ps(top[i], _mm512_load_ps(scores + (key + i) * kTile));
  }
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 highest = _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
  const __m512 now = _mm512_max_ps(strip.largest, _mm512_mul_ps(highest, factor));
  for (int64_t key = 0; key < pass.keys; key += kStep) {
    __m512i pairs[kTile];
#pragma GCC unroll 16
    for (int64_t p = 0; p < kTile; ++p) {
      ahead.some(2);
      const float* at = scores + (key + 2 * p) * kTile;
      const __m512 even = exp2_16(_mm512_fmsub_ps(_mm512_load_ps(at), factor, now));
      const __m512 odd = exp2_16(_mm512_fmsub_ps(_mm512_load_ps(at + kTile), factor, now));
      sum[p % 2] = _mm512_add_ps(sum[p % 2], even);
      sum[2 + p % 2] = _mm512_add_ps(sum[2 + p % 2], odd);
      if constexpr (kKind == Kind::kInt8) {
        const float* scales = pass.v_scales + key + 2 * p;
        const __m512 of_even = _mm512_set1_ps(scales[0]), of_odd = _mm512_set1_ps(scales[1]);
        pairs[p] = paired(_mm512_mul_ps(even, of_even), _mm512_mul_ps(odd, of_odd));
      } else {
        pairs[p] = paired(even, odd);
      }
    }
    transpose16(pairs);
    store16(pairs, weights + key * kTile);
  }
  const __m512 kept = exp2_16(_mm512_sub_ps(strip.largest, now));
  const __m512 added = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
  strip.total = _mm512_fmadd_ps(strip.total, kept, added);
  strip.largest = now;
  if (_mm512_cmp_ps_mask(kept, _mm512_set1_ps(1), _CMP_EQ_OQ) == 0xffff) return;
  alignas(64) float lanes[kTile];
  _mm512_store_ps(lanes, kept);
  for (int64_t c = 0; c < cells; ++c) {
    for (int64_t i = 0; i < kTile; ++i) {
      float* row = strip.sums + c * kCell + i * kTile;
      _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), _mm512_set1_ps(lanes[i])));
    }
  }
}

// sums[2 or 4 tiles] += P V. v: the first of these tiles, `stride` from step to step.
template <bool kFour>
void add_values(const bf16* weights, const bf16* v, int64_t stride, int64_t steps, float* sums) {
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + kCell, 64);
  if constexpr (kFour) {
    _tile_loadd(2, sums + 2 * kCell, 64);
    _tile_loadd(3, sums + 3 * kCell, 64);
  }
  for (int64_t s = 0; s < steps; ++s, weights += kTileSize, v += stride) {
    _tile_loadd(4, weights, 64);
    _tile_loadd(6, v, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, v + kTileSize, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kFour) {
      _tile_loadd(6, v + 2 * kTileSize, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, v + 3 * kTileSize, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kCell, 64);
  if constexpr (kFour) {
    _tile_stored(2, sums + 2 * kCell, 64);
    _tile_stored(3, sums + 3 * kCell, 64);
  }
}

// 32 numbers of a key or value, as bfloat16; int8 is not rounded by that.
template <Kind kKind>
__m512i load_step(const char* from, int64_t step, __mmask32 mask) {
  if constexpr (kKind == Kind::kBfloat16) return load32(from + step * kStep * 2, false, mask);
  const __m256i x = _mm256_maskz_loadu_epi8(mask, from + step * kStep);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1)));
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// Some of a pass's keys as rows, the others unchanged: nobody sees their scores. places: as `find` gives them.
template <Kind kKind>
void copy_keys(const char* keys, const int64_t* places, Range some, Ahead& ahead, int64_t depth, int64_t steps,
               bf16* to) {
  const __mmask32 last = first(depth - (steps - 1) * kStep);
  for (int64_t key = some.from; key < some.to; ++key) {
    ahead.some(key % 2);
    const char* from = keys + places[key] * depth * bytes_of(kKind);
    for (int64_t s = 0; s < steps; ++s) {
      const __m512i x = load_step<kKind>(from, s, s + 1 < steps ? ~__mmask32{0} : last);
      _mm512_store_si512(to + (key * steps + s) * kStep, x);
    }
  }
}

// Some of a pass's values as tiles of B, with zeros for the others and beyond depth. Of 32 numbers of the depth, the
// first tile has numbers 0-3, 8-11, 16-19 and 24-27, the second one the others: that order costs least.
template <Kind kKind>
void pack_values(const char* values, const int64_t* places, Range some, Ahead& ahead, int64_t keys, int64_t depth,
                 int64_t steps, bf16* to) {
  const __mmask32 last = first(depth - (steps - 1) * kStep);
  for (int64_t key = 0; key < keys; key += 2) {
    ahead.some(1);
    const bool has_even = key >= some.from && key < some.to, has_odd = key + 1 >= some.from && key + 1 < some.to;
    const char* even = values + (has_even ? places[key] * depth * bytes_of(kKind) : 0);
    const char* odd = values + (has_odd ? places[key + 1] * depth * bytes_of(kKind) : 0);
    const __mmask32 even_mask = has_even ? ~__mmask32{0} : 0, odd_mask = has_odd ? ~__mmask32{0} : 0;
    bf16* row = to + key / kStep * 2 * steps * kTileSize + key % kStep * kTile;
    for (int64_t s = 0; s < steps; ++s, row += 2 * kTileSize) {
      const __mmask32 mask = s + 1 < steps ? ~__mmask32{0} : last;
      const __m512i a = load_step<kKind>(even, s, mask & even_mask), b = load_step<kKind>(odd, s, mask & odd_mask);
      _mm512_store_si512(row, _mm512_unpacklo_epi16(a, b));
      _mm512_store_si512(row + kTileSize, _mm512_unpackhi_epi16(a, b));
    }
  }
}

void copy_scales(const float* scales, const int64_t* places, Range some, float* to) {
  std::fill(to, to + kPass, 0.0f);
  for (int64_t key = some.from; key < some.to; ++key) to[key] = scales[places[key]];
}

// Rows of a unit and a group from `top` on.
void begin(const Call& call, int64_t unit, int64_t group, int64_t top, int64_t rows, int64_t steps, Strip& strip) {
  alignas(64) int32_t from[kTile], to[kTile];
  for (int64_t i = 0; i < kTile; ++i) {  // lanes beyond the rows see what the last one sees; nobody reads them
    const int64_t index = call.index[call.token_of(unit, std::min(top + i, rows - 1))];
    from[i] = call.first_key(index), to[i] = index + 1;
  }
  strip.from = _mm512_load_si512(from), strip.to = _mm512_load_si512(to);
  strip.from_all = *std::max_element(from, from + kTile), strip.to_all = *std::min_element(to, to + kTile);
  strip.largest = _mm512_set1_ps(kNothing), strip.total = _mm512_setzero_ps();
  std::fill(strip.sums, strip.sums + 2 * steps * kCell, 0.0f);
  for (int64_t s = 0; s < steps; ++s) {
    __m512i r[kTile];
    for (int64_t i = 0; i < kTile; ++i) {
      const __mmask32 mask = top + i < rows ? first(call.depth - s * kStep) : 0;
      const int64_t place = mask ? call.place_of(unit, group, top + i) : 0;
      r[i] = load32(static_cast<const bf16*>(call.q) + place + s * kStep, false, mask);
    }
    transpose16(r);
    store16(r, strip.queries + s * kTileSize);
  }
}

void finish(const Call& call, int64_t unit, int64_t group, int64_t top, int64_t rows, const Strip& strip) {
  alignas(64) float total[kTile];
  _mm512_store_ps(total, strip.total);
  // back to the order of the depth, from that of pack_values
  const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i eight = _mm512_set1_epi32(8);
  for (int64_t i = 0; i < std::min(kTile, rows - top); ++i) {
    const __m512 inverse = _mm512_set1_ps(total[i] > 0 ? 1 / total[i] : 0);
    bf16* to = static_cast<bf16*>(call.out) + call.place_of(unit, group, top + i);
    for (int64_t at = 0; at < call.depth; at += kStep) {
      const float* sum = strip.sums + (at + i) * kTile;
      const __m512 x = _mm512_load_ps(sum), y = _mm512_load_ps(sum + kCell), zero = _mm512_setzero_ps();
      const __m512 low = _mm512_fmadd_ps(_mm512_permutex2var_ps(x, order, y), inverse, zero);  // + 0: no sign of zero
      const __m512 high = _mm512_fmadd_ps(_mm512_permutex2var_ps(x, _mm512_add_epi32(order, eight), y), inverse, zero);
      _mm512_mask_storeu_epi16(to + at, first(call.depth - at), (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
}

template <Kind kKind>
void attend(const Call& call, int64_t unit, int64_t group) {
  const TileScope tiles;
  const int64_t depth = call.depth, rows = call.tokens(unit) * call.shared();
  const int64_t steps = ceil_div(depth, kStep), cells = 2 * steps, count = ceil_div(rows, kTile);
  const float scale = 1.44269504f / std::sqrt(static_cast<float>(depth));
  const int32_t* table = call.tables + call.row[call.first_token(unit)] * call.max_pages;
  const char *keys = call.keys + group * call.size(), *values = call.values + group * call.size();
  const Range range = seen(call, unit);
  int64_t places[kPass], next[kPass];

  Strip* strips = room<60, Strip>(count);
  bf16* queries = room<61, bf16>(count * steps * kTileSize);
  float* sums = room<62, float>(count * cells * kCell);
  alignas(64) float scores[kPass * kTile], k_scales[kPass], v_scales[kPass];
  alignas(64) bf16 weights[kPass * kTile];
  Pass pass{0, 0, room<63, bf16>(kPass * steps * kStep), room<64, bf16>(kPass * steps * kStep), k_scales, v_scales};
  for (int64_t i = 0; i < count; ++i) {
    strips[i].queries = queries + i * steps * kTileSize, strips[i].sums = sums + i * cells * kCell;
    begin(call, unit, group, i * kTile, rows, steps, strips[i]);
  }

  pass.from = range.from / kPass * kPass;
  find(call, table, range.from, std::min(pass.from + kPass, range.to) - range.from, next + range.from - pass.from);
  for (; pass.from < range.to; pass.from += kPass) {
    const Range some{std::max<int64_t>(0, range.from - pass.from), std::min(kPass, range.to - pass.from)};
    const int64_t more = std::min(kPass, range.to - pass.from - some.to);
    pass.keys = ceil_div(some.to, kStep) * kStep;
    std::copy(next + some.from, next + some.to, places + some.from);
    find(call, table, pass.from + some.to, more, next);
    // blocks find most keys in the cache, where the blocks before had them
    Ahead ahead{keys, values, next, call.tokens(unit) == 1 ? more : 0, call.size()};
    copy_keys<kKind>(keys, places, some, ahead, depth, steps, pass.rows);
    pack_values<kKind>(values, places, some, ahead, pass.keys, depth, steps, pass.tiles);
    if constexpr (kKind == Kind::kInt8) {
      copy_scales(call.key_scales + group, places, some, k_scales);
      copy_scales(call.value_scales + group, places, some, v_scales);
    }
    for (Strip* strip = strips; strip < strips + count; ++strip) {
      (pass.keys > kStep ? score<true> : score<false>)(pass.rows, strip->queries, steps, scores);
      if constexpr (kKind == Kind::kInt8) scale_up(pass, scores);
      if (pass.from < strip->from_all || pass.from + pass.keys > strip->to_all) hide(pass, *strip, scores);
      weigh<kKind>(pass, *strip, ahead, cells, scale, scores, weights);
      for (int64_t c = 0; c < cells; c += 4) {
        (cells - c >= 4 ? add_values<true> : add_values<false>)(weights, pass.tiles + c * kTileSize, cells * kTileSize,
                                                                 pass.keys / kStep, strip->sums + c * kCell);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) finish(call, unit, group, i * kTile, rows, strips[i]);
}

}  // namespace

void attend_in_tiles(const Call& call, int64_t unit, int64_t group) {
  (call.kind == Kind::kInt8 ? attend<Kind::kInt8> : attend<Kind::kBfloat16>)(call, unit, group);
}

}  // namespace min_llm::paged
