// What both kernels of attention over pages share: the call, who sees which keys, and where they lie.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pool.h"
#include "tiles.h"
#include "vector.h"

namespace min_llm::paged {

constexpr int64_t kUnit = 16;       // tokens of a block
constexpr float kNothing = -1e30f;  // the largest score of a query that has seen no key yet

enum class Kind { kFloat32, kBfloat16, kInt8 };

constexpr int64_t bytes_of(Kind kind) { return kind == Kind::kFloat32 ? 4 : kind == Kind::kBfloat16 ? 2 : 1; }

struct Call {
  int64_t heads, groups, depth, page, max_pages, window, singles, units;  // window 0: none
  Kind kind;                  // of the pools
  bool wide;                  // the queries and the result are float32
  const char *keys, *values;  // of this layer
  const float *key_scales, *value_scales;  // of int8: one a key and head
  const int32_t *tables, *row, *index;
  const void* q;
  void* out;

  int64_t size() const { return depth * bytes_of(kind); }  // bytes of a key of one head
  int64_t shared() const { return heads / groups; }
  int64_t first_token(int64_t unit) const { return unit < singles ? unit : singles + (unit - singles) * kUnit; }
  int64_t tokens(int64_t unit) const { return unit < singles ? 1 : kUnit; }

  // The first key that a query at place `index` sees.
  int64_t first_key(int64_t index) const { return window ? std::max<int64_t>(0, index - window + 1) : 0; }

  // Of a unit and a group: the token of a row, and where that row of q and out begins.
  int64_t token_of(int64_t unit, int64_t row) const { return first_token(unit) + row / shared(); }
  int64_t place_of(int64_t unit, int64_t group, int64_t row) const {
    return (token_of(unit, row) * heads + group * shared() + row % shared()) * depth;
  }
};

// The keys that some token of a unit sees: [from, to).
struct Range {
  int64_t from = 0, to = 0;
};

inline Range seen(const Call& call, int64_t unit) {
  Range range;
  const int32_t* index = call.index + call.first_token(unit);
  for (int64_t i = 0; i < call.tokens(unit); ++i) {
    if (index[i] < 0) continue;
    const int64_t from = call.first_key(index[i]);
    range.from = range.to == 0 ? from : std::min(range.from, from);
    range.to = std::max<int64_t>(range.to, index[i] + 1);
  }
  return range;
}

// Where `n` keys of a sequence, from place `from` on, lie in a layer of a pool: the number of each, of its first head,
// counted in heads.
inline void find(const Call& call, const int32_t* table, int64_t from, int64_t n, int64_t* to) {
  int64_t page = from / call.page, place = from % call.page;
  for (int64_t i = 0; i < n; ++i, ++place) {
    if (place == call.page) ++page, place = 0;
    to[i] = (table[page] * call.page + place) * call.groups;
  }
}

// Asks for memory in the second-level cache.
inline void fetch(const char* data, int64_t size) {
  for (int64_t line = 0; line < size; line += 64) _mm_prefetch(data + line, _MM_HINT_T1);
}

// One unit and one group, in bfloat16 tiles (paged_tiles.cc); q is bfloat16 and the pools are bfloat16 or int8.
void attend_in_tiles(const Call& call, int64_t unit, int64_t group);

}  // namespace min_llm::paged
