// Products of rows of X with packed panels of W on one thread: what rows.cc and gated.cc share out among threads.
//
// W lies in panels of 32 columns (kernels/rows.py), which are read from beginning to end. Every sum is one chain of
// additions in the order of k, in float32, whatever the number of rows and whoever computes it: the bits of a row depend
// on that row of X and on W alone. Sums of int8 products are exact.
#pragma once

#include <algorithm>
#include <cstring>

#include "fma.h"
#include "pool.h"
#include "tiles.h"
#include "vector.h"

namespace min_llm {

constexpr int64_t kCell = kBlock * kBlock;  // sums of 32 rows of a panel

// A matrix packed for products: one layer's.
struct Weights {
  const char* data;
  int64_t k, panels, panel_bytes;
  const float* scales = nullptr;  // of quantized ones: [panels], and within them as the kind has it

  const char* panel(int64_t p) const { return data + p * panel_bytes; }
};

// Rows of X as they came: padded: there are zeros up to the end of a step of k, and memory up to 16 rows.
struct Source {
  Operand x;
  int64_t rows, k;
  bool padded = false;

  Source part(int64_t from, int64_t to) const { return {x.at(from, 0), to - from, k, padded}; }
  __m512 load(int64_t row, int64_t at) const {
    const Operand here = x.at(row, at);
    const __mmask16 mask = first16(k - at);
    return x.wide ? load16(static_cast<const float*>(here.data), mask) : load16(static_cast<const bf16*>(here.data), mask);
  }
};

// Rows of X as products take them. data: float32, bfloat16 or int8; stride: bytes; scales: of int8.
struct Taken {
  const char* data;
  int64_t rows, stride;
  const float* scales = nullptr;
};

// Lines of the first-level cache between rows, so that 16 rows do not share a few places there.
inline bool spread(int64_t bytes) { return bytes % 1024 != 0; }
inline int64_t spread_stride(int64_t bytes) { return (ceil_div(bytes, 64) | 1) * 64; }

// --- float32: fused multiply-adds

struct Float32 {
  static constexpr int64_t kDepth = 256;  // k of a pass: 32 columns of W, 32 KiB, stay in the first-level cache
  static constexpr int64_t kUnit = 8;     // rows that are best kept together
  static constexpr int64_t kSpeed = 75;   // products in a nanosecond, of one thread

  static constexpr int64_t kMost = 8;     // panels that are multiplied together
  static constexpr int64_t kPace = 24;    // bytes of W in a nanosecond, likewise
  static constexpr bool kScaled = false;  // whether sums are integers, and scaled

  static int64_t panel_bytes(int64_t k) { return k * kPanel * 4; }
  static int64_t panel_scales(int64_t) { return 0; }
  static const char* ready(const Weights& w, int64_t p, int64_t) { return w.panel(p); }
  static bool takes(const Source& s) { return s.x.wide && (s.rows <= 8 || spread(s.x.stride * 4)); }
  static int64_t stride(int64_t k) { return spread_stride(k * 4); }

  static void take(const Source& s, int64_t from, int64_t to, char* space, float*) {
    for (int64_t i = from; i < to; ++i) {
      float* row = reinterpret_cast<float*>(space + i * stride(s.k));
      for (int64_t at = 0; at < s.k; at += 16) _mm512_store_ps(row + at, s.load(i, at));
    }
  }

  template <class Finish>
  static void multiply(const Taken& x, const Weights& w, const char* const* panels, int64_t n, float* sums,
                       const Finish& finish) {
    const int64_t size = ceil_div(x.rows, kBlock) * kCell;
    std::fill(sums, sums + n * size, 0.0f);
    for (int64_t at = 0; at < w.k; at += kDepth) {
      for (int64_t i = 0; i < n; ++i) {
        add_product<true>(reinterpret_cast<const float*>(x.data) + at, x.stride / 4, x.rows,
                          reinterpret_cast<const float*>(panels[i]) + at * kPanel, std::min(kDepth, w.k - at),
                          sums + i * size);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t row = 0; row < x.rows; row += kBlock) finish(i, row, sums + i * size + row * kPanel).some(kBlock);
    }
  }

  struct Scope {
    explicit Scope(int64_t) {}
  };
};

// --- bfloat16 and int8: tiles

// c[16][32 wide] = (add: c +) Σ over `steps` of 16 rows or fewer of A times packed B: half of what `multiply` does.
template <bool kIntegers>
void multiply_upper(const Rows& a, const bf16* b, int64_t steps, float* c, bool add) {
  if (add) {
    _tile_loadd(0, c, kBlock * 4);
    _tile_loadd(1, c + kTile, kBlock * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  const bf16* upper = a.upper;
  for (int64_t s = 0; s < steps; ++s, b += 2 * kTileSize, upper += a.step) {
    _tile_loadd(4, upper, a.stride * 2);
    _tile_loadd(6, b, 64);
    MIN_LLM_TILE_PRODUCT(0, 4, 6)
    _tile_loadd(7, b + kTileSize, 64);
    MIN_LLM_TILE_PRODUCT(1, 4, 7)
  }
  _tile_stored(0, c, kBlock * 4);
  _tile_stored(1, c + kTile, kBlock * 4);
}

template <bool kIntegers>
struct Tiles {
  static constexpr int64_t kDeep = 16;  // steps of a pass
  static constexpr int64_t kUnit = kTile;
  static constexpr int64_t kSpeed = kIntegers ? 800 : 400;
  static constexpr int64_t kMost = 8;
  static constexpr int64_t kPace = 24;
  static constexpr bool kScaled = kIntegers;
  static constexpr int64_t kNumbers = kIntegers ? 64 : 32;  // k of a step

  static int64_t panel_bytes(int64_t k) { return ceil_div(k, kNumbers) * 4 * kTileSize; }
  static int64_t panel_scales(int64_t) { return kIntegers ? kPanel : 0; }
  static const char* ready(const Weights& w, int64_t p, int64_t) { return w.panel(p); }
  static int64_t stride(int64_t k) { return spread_stride(ceil_div(k, kNumbers) * 64); }

  template <class Finish>
  static void multiply(const Taken& x, const Weights& w, const char* const* panels, int64_t n, float* sums,
                       const Finish& finish) {
    const int64_t strips = ceil_div(x.rows, kBlock), all = ceil_div(w.k, kNumbers);
    const int64_t steps = x.rows <= kTile ? all : ceil_div(all, ceil_div(all, kDeep));
    decltype(finish(0, 0, sums)) write{};
    for (int64_t from = 0; from < all; from += steps) {
      const int64_t here = std::min(steps, all - from);
      for (int64_t i = 0; i < n; ++i) {
        const bf16* b = reinterpret_cast<const bf16*>(panels[i]) + from * 2 * kTileSize;
        for (int64_t s = 0; s < strips; ++s) {
          float* sum = sums + (i * strips + s) * kCell;
          const bf16* rows = reinterpret_cast<const bf16*>(x.data + s * kBlock * x.stride + from * 64);
          const Rows a = rows_in_place({rows, x.stride / 2, false, false});
          if (x.rows - s * kBlock > kTile) {
            min_llm::multiply<kIntegers>(a, b, here, sum, from > 0, write);
          } else {
            write.some(kBlock);
            multiply_upper<kIntegers>(a, b, here, sum, from > 0);
          }
          if (from + here == all) write = finish(i, s * kBlock, sum);
        }
      }
    }
    write.some(kBlock);
  }

  struct Scope : TileScope {
    explicit Scope(int64_t rows) : TileScope(std::min(rows, kTile)) {}
  };
};

struct Bfloat16 : Tiles<false> {
  static bool takes(const Source& s) {
    if (s.x.wide || (s.rows > kTile && !spread(s.x.stride * 2))) return false;
    return s.padded || (s.k % kStep == 0 && (s.rows <= kTile || s.rows % kTile == 0));
  }

  static void take(const Source& s, int64_t from, int64_t to, char* space, float*) {
    for (int64_t i = from; i < to; ++i) {
      bf16* row = reinterpret_cast<bf16*>(space + i * stride(s.k));
      for (int64_t at = 0; at < s.k; at += kStep) {
        _mm512_store_si512(row + at, load32(s.x.at(i, at).data, s.x.wide, first(s.k - at)));
      }
    }
  }
};

struct Int8 : Tiles<true> {
  static bool takes(const Source&) { return false; }

  // A row as int8, with zeros up to the end of the last step, and its scale. Rounds as quant/rounding.py does.
  static void take(const Source& s, int64_t from, int64_t to, char* space, float* scales) {
    for (int64_t i = from; i < to; ++i) {
      __m512i largest = _mm512_castps_si512(_mm512_set1_ps(1e-30f));
      for (int64_t at = 0; at < s.k; at += 16) {  // compared as integers: not-a-number is the largest of all
        largest = _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(s.load(i, at))));
      }
      const int32_t bits = _mm512_reduce_max_epi32(largest);
      std::memcpy(scales + i, &bits, sizeof bits);
      scales[i] *= 1.0f / 127;
      const __m512 inverse = _mm512_set1_ps(1 / scales[i]);
      for (int64_t at = 0; at < ceil_div(s.k, kNumbers) * kNumbers; at += 16) {
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(s.load(i, at), inverse));
        _mm_store_si128(reinterpret_cast<__m128i*>(space + i * stride(s.k) + at), _mm512_cvtsepi32_epi8(rounded));
      }
    }
  }
};

// Four bits with a scale for 32 k of a column, made bfloat16 a panel at a time on the way into the cache: what reads
// W is then a quarter as long, and activations stay as they are.
struct Int4 : Bfloat16 {
  static constexpr int64_t kMost = 2;
  static constexpr int64_t kPace = 8;
  static constexpr int64_t kBytes = 512;  // of a step of 32 k

  static int64_t panel_bytes(int64_t k) { return ceil_div(k, kStep) * kBytes; }
  static int64_t panel_scales(int64_t k) { return ceil_div(k, kStep) * kPanel; }

  // [tile][16 pairs of k][16 bytes]: byte i holds k i % 2 of columns i / 2 and, above it, 8 + i / 2; 8 is 0.
  static const char* ready(const Weights& w, int64_t p, int64_t slot) {
    const int64_t steps = ceil_div(w.k, kStep);
    bf16* space = static_cast<bf16*>(scratch<45>(kMost * steps * 2 * kTileSize * sizeof(bf16)));
    bf16* const start = space + slot * steps * 2 * kTileSize;
    bf16* to = start;
    const char* from = w.panel(p);
    const float* scales = w.scales + p * panel_scales(w.k);
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512 zero = _mm512_set1_ps(-8);
    for (int64_t half = 0; half < 2 * steps; ++half, scales += kTile) {
      const __m512 of_columns = _mm512_loadu_ps(scales);
      const __m512 low = _mm512_permutexvar_ps(twice, of_columns);
      const __m512 high = _mm512_permutexvar_ps(_mm512_add_epi32(twice, _mm512_set1_epi32(8)), of_columns);
      const __m512 low_zero = _mm512_mul_ps(low, zero), high_zero = _mm512_mul_ps(high, zero);
      for (int64_t pair = 0; pair < kTile; ++pair, from += 16, to += kStep) {
        const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        const __m512 a = _mm512_cvtepi32_ps(_mm512_and_si512(both, _mm512_set1_epi32(15)));
        const __m512 b = _mm512_cvtepi32_ps(_mm512_srli_epi32(both, 4));
        const __m512 x = _mm512_fmadd_ps(a, low, low_zero), y = _mm512_fmadd_ps(b, high, high_zero);
        _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(y, x));
      }
    }
    return reinterpret_cast<const char*>(start);
  }
};

// --- what finished blocks become

// A row-major matrix of float32 or bfloat16, of `columns` columns.
struct Matrix {
  char* data;
  int64_t stride, columns;  // stride: numbers
  bool wide;

  char* at(int64_t row, int64_t column) const { return data + (row * stride + column) * (wide ? 4 : 2); }
  Matrix from(int64_t row) const { return {at(row, 0), stride, columns, wide}; }
};

// Blocks of int32 made float32 by both scales, where they stand; blocks of float32 stay as they are.
struct Scaled {
  const float *rows = nullptr, *columns = nullptr;

  void apply(float* block, int64_t row, int64_t column, int64_t n) const {
    if (columns == nullptr) return;
    for (int64_t half = 0; half < kPanel; half += 16) {
      const __m512 of_columns = _mm512_load_ps(columns + column + half);
      for (int64_t i = 0; i < n; ++i) {
        float* at = block + i * kPanel + half;
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(at));
        _mm512_store_ps(at, _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(rows[row + i])), of_columns));
      }
    }
  }
};

// Y = X W for panels [from, to).
template <class Kind>
void multiply_panels(const Taken& x, const Weights& w, int64_t from, int64_t to, const Matrix& y) {
  typename Kind::Scope scope(x.rows);
  float* sums = static_cast<float*>(scratch<41>(Kind::kMost * ceil_div(x.rows, kBlock) * kCell * sizeof(float)));
  const Scaled scaled{x.scales, Kind::kScaled ? w.scales : nullptr};
  for (const char* panels[Kind::kMost]; from < to;) {
    const int64_t first_panel = from, n = std::min(Kind::kMost, to - from);
    for (int64_t i = 0; i < n; ++i) panels[i] = Kind::ready(w, from++, i);
    Kind::multiply(x, w, panels, n, sums, [&](int64_t i, int64_t row, float* block) {
      const int64_t column = (first_panel + i) * kPanel, rows = std::min(kBlock, x.rows - row);
      scaled.apply(block, row, column, rows);
      return Write{block, y.at(row, column), y.stride * (y.wide ? 4 : 2), y.wide, rows, first(y.columns - column)};
    });
  }
}

}  // namespace min_llm
