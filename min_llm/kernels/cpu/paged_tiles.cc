// Attention over pages in bfloat16 tiles (tiles.h): queries and keys meet as Sᵀ = K Qᵀ, so that 16 queries fill the
// lanes of a register and the softmax needs no sum across one.
//
// A query's bits depend on its keys alone: its lane is summed by itself, in the order of places, in passes that begin
// at multiples of kPass; a key that it does not see adds zeros. A decoding token has few rows (the query heads that
// share a key-value head); tiles that are mostly empty are still the faster way, and the only one with equal bits.
#include "paged.h"

namespace min_llm::paged {
namespace {

constexpr int64_t kPass = 128;           // keys whose scores are held at once
constexpr float kHidden = -3e38f;        // a score that is not seen, less than kNothing
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
  static const __m512i order = [] {
    alignas(64) uint16_t index[32];
    for (int i = 0; i < 16; ++i) index[2 * i] = i, index[2 * i + 1] = 16 + i;
    return _mm512_load_si512(index);
  }();
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// 16 queries: Qᵀ as tiles of B, and what each lane sees.
struct Strip {
  bf16* queries;     // [steps of depth][16 pairs][16][2]
  float* sums;       // [tiles of depth][16][16]
  __m512i from, to;  // keys [from, to) are seen
  int64_t from_all, to_all;  // by every lane
  __m512 largest, total;
};

struct Pass {
  int64_t from, keys;  // the first place; how many, in whole steps of 32
  const bf16* rows;    // K [keys][depth, padded to steps of 32]
  const bf16* tiles;   // V as tiles of B: [steps of keys][tiles of depth]
};

// Sᵀ [keys][16].
void score(const Pass& pass, const bf16* queries, int64_t steps, float* scores) {
  for (int64_t key = 0; key < pass.keys; key += 2 * kTile) {
    const bf16* rows = pass.rows + key * steps * kStep;
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t s = 0; s < steps; ++s) {
      _tile_loadd(6, queries + s * kTileSize, 64);
      _tile_loadd(4, rows + s * kStep, steps * kStep * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, rows + (kTile * steps + s) * kStep, steps * kStep * 2);
      _tile_dpbf16ps(1, 5, 6);
    }
    _tile_stored(0, scores + key * kTile, 64);
    _tile_stored(1, scores + (key + kTile) * kTile, 64);
  }
}

void hide(const Pass& pass, const Strip& strip, float* scores) {
  for (int64_t key = 0; key < pass.keys; ++key) {
    const __m512i place = _mm512_set1_epi32(pass.from + key);
    const __mmask16 seen =
        _mm512_cmp_epi32_mask(place, strip.from, _MM_CMPINT_NLT) & _mm512_cmp_epi32_mask(place, strip.to, _MM_CMPINT_LT);
    const __m512 x = _mm512_load_ps(scores + key * kTile);
    _mm512_store_ps(scores + key * kTile, _mm512_mask_mov_ps(_mm512_set1_ps(kHidden), seen, x));
  }
}

// Scores become weights, 2^(score · scale - largest), as tiles of A: [steps of keys][16][32]. Sums of before are
// scaled down where the largest score has grown.
void weigh(const Pass& pass, Strip& strip, int64_t cells, float scale, const float* scores, bf16* weights) {
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
    for (int64_t p = 0; p < kTile; ++p) {
      const float* at = scores + (key + 2 * p) * kTile;
      const __m512 even = exp2_16(_mm512_fmsub_ps(_mm512_load_ps(at), factor, now));
      const __m512 odd = exp2_16(_mm512_fmsub_ps(_mm512_load_ps(at + kTile), factor, now));
      sum[p % 2] = _mm512_add_ps(sum[p % 2], even);
      sum[2 + p % 2] = _mm512_add_ps(sum[2 + p % 2], odd);
      pairs[p] = paired(even, odd);
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

// Keys [first, end) as rows, the others unchanged: nobody sees their scores.
void copy_keys(const bf16* keys, const int64_t* places, int64_t first_key, int64_t end, int64_t depth, int64_t steps,
               bf16* to) {
  for (int64_t key = first_key; key < end; ++key) {
    for (int64_t at = 0; at < depth; at += kStep) {
      const __m512i x = load32(keys + places[key] * depth + at, false, first(depth - at));
      _mm512_store_si512(to + key * steps * kStep + at, x);
    }
  }
}

// Values [first, end) as tiles of B, with zeros for the others and beyond depth.
void pack_values(const bf16* values, const int64_t* places, int64_t first_key, int64_t end, int64_t keys, int64_t depth,
                 int64_t steps, bf16* to) {
  const auto load = [&](int64_t key, int64_t at) {
    if (key < first_key || key >= end) return _mm512_setzero_si512();
    return load32(values + places[key] * depth + at, false, first(depth - at));
  };
  for (int64_t key = 0; key < keys; key += 2) {
    bf16* row = to + key / kStep * 2 * steps * kTileSize + key % kStep * kTile;
    for (int64_t at = 0; at < depth; at += kStep, row += 2 * kTileSize) {
      __m512i pair[2];
      interleave_rows(load(key, at), load(key + 1, at), pair);
      _mm512_store_si512(row, pair[0]);
      _mm512_store_si512(row + kTileSize, pair[1]);
    }
  }
}

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
  for (int64_t i = 0; i < std::min(kTile, rows - top); ++i) {
    const __m512 inverse = _mm512_set1_ps(total[i] > 0 ? 1 / total[i] : 0);
    bf16* to = static_cast<bf16*>(call.out) + call.place_of(unit, group, top + i);
    for (int64_t at = 0; at < call.depth; at += kTile) {
      const __m512 sum = _mm512_load_ps(strip.sums + (at + i) * kTile);
      const __m512 x = _mm512_fmadd_ps(sum, inverse, _mm512_setzero_ps());  // + 0: a zero has no sign
      store_bf16(to + at, x, first16(call.depth - at));
    }
  }
}

}  // namespace

void attend_in_tiles(const Call& call, int64_t unit, int64_t group) {
  const TileScope tiles;
  const int64_t depth = call.depth, rows = call.tokens(unit) * call.shared();
  const int64_t steps = ceil_div(depth, kStep), cells = 2 * steps, count = ceil_div(rows, kTile);
  const float scale = 1.44269504f / std::sqrt(static_cast<float>(depth));
  const int32_t* table = call.tables + call.row[call.first_token(unit)] * call.max_pages;
  const bf16* keys = reinterpret_cast<const bf16*>(call.keys) + group * depth;
  const bf16* values = reinterpret_cast<const bf16*>(call.values) + group * depth;
  const Range range = seen(call, unit);
  int64_t places[kPass], next[kPass];

  Strip* strips = room<60, Strip>(count);
  bf16* queries = room<61, bf16>(count * steps * kTileSize);
  float* sums = room<62, float>(count * cells * kCell);
  bf16* k = room<63, bf16>(kPass * steps * kStep);
  bf16* v = room<64, bf16>(kPass * steps * kStep);
  float* scores = room<65, float>(kPass * kTile);
  bf16* weights = room<66, bf16>(kPass * kTile);
  for (int64_t i = 0; i < count; ++i) {
    strips[i].queries = queries + i * steps * kTileSize;
    strips[i].sums = sums + i * cells * kCell;
    begin(call, unit, group, i * kTile, rows, steps, strips[i]);
  }

  int64_t from = range.from / kPass * kPass;
  find(call, table, range.from, std::min(from + kPass, range.to) - range.from, next + range.from - from);
  for (; from < range.to; from += kPass) {
    const int64_t first = std::max<int64_t>(0, range.from - from), end = std::min(kPass, range.to - from);
    const int64_t end_next = std::min(kPass, range.to - from - end);
    std::copy(next + first, next + end, places + first);
    find(call, table, from + end, end_next, next);
    for (int64_t key = 0; key < end_next; ++key) {
      fetch(reinterpret_cast<const char*>(keys + next[key] * depth), call.size());
    }
    copy_keys(keys, places, first, end, depth, steps, k);
    for (int64_t key = 0; key < end_next; ++key) {
      fetch(reinterpret_cast<const char*>(values + next[key] * depth), call.size());
    }
    const Pass pass{from, ceil_div(end, kStep) * kStep, k, v};
    pack_values(values, places, first, end, pass.keys, depth, steps, v);
    for (int64_t i = 0; i < count; ++i) {
      Strip& strip = strips[i];
      score(pass, strip.queries, steps, scores);
      if (from < strip.from_all || from + pass.keys > strip.to_all) hide(pass, strip, scores);
      weigh(pass, strip, cells, scale, scores, weights);
      for (int64_t c = 0; c < cells; c += 4) {
        (cells - c >= 4 ? add_values<true> : add_values<false>)(weights, v + c * kTileSize, cells * kTileSize,
                                                                 pass.keys / kStep, strip.sums + c * kCell);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) finish(call, unit, group, i * kTile, rows, strips[i]);
}

}  // namespace min_llm::paged
