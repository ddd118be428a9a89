// Matrix products of bfloat16 in AMX tiles: C[m, n] = Σ_k A[m, k] B[k, n], accumulated in float32.
//
// A tile is 16 rows of 64 bytes. The instruction multiplies a tile of A (16 rows x 32 k) by a tile of B in which two
// neighbouring k lie side by side (16 pairs of k x 16 columns x 2) and adds to a float32 tile of C (16 x 16). Here a
// block of C is 32 x 32: two tiles of A and two of B feed four products, twice as many as loads.
//
// Tiles of int8 are the same with four neighbouring k in the place of two, 64 k in all, and int32 in that of float32.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace min_llm {

using bf16 = uint16_t;

constexpr int64_t kTile = 16;               // rows of a tile, columns of a tile of C
constexpr int64_t kStep = 32;               // k in one product
constexpr int64_t kBlock = 32;              // rows and columns of a block of C
constexpr int64_t kTileSize = kTile * kStep;  // bfloat16 numbers in a tile

// A matrix in memory, row-major, of bfloat16 or float32; element (i, j) of the operand is data[j * stride + i] when
// it is transposed and data[i * stride + j] when it is not.
struct Operand {
  const void* data;
  int64_t stride;
  bool transposed;
  bool wide;  // float32: rounded to bfloat16 on the way into a tile

  Operand at(int64_t i, int64_t j) const {
    const int64_t offset = transposed ? j * stride + i : i * stride + j;
    return {static_cast<const char*>(data) + offset * (wide ? 4 : 2), stride, transposed, wide};
  }
};

// C += A B, by the numbers of the tiles, in a template that has kIntegers. A macro: the instructions take no variables.
#define MIN_LLM_TILE_PRODUCT(c, a, b) \
  if constexpr (kIntegers) {          \
    _tile_dpbssd(c, a, b);            \
  } else {                            \
    _tile_dpbf16ps(c, a, b);          \
  }

// Configures the calling thread's tiles, and puts back what was there: XLA's own kernels keep theirs between calls.
// Tiles 0-3 are of C, 4 and 5 of A, 6 and 7 of B; those of C and A may have fewer than 16 rows.
class TileScope {
 public:
  explicit TileScope(int64_t rows = kTile) {
    _tile_storeconfig(before_);
    alignas(64) uint8_t config[64] = {1};  // palette 1
    for (int t = 0; t < 8; ++t) {
      config[16 + 2 * t] = 64;  // bytes in a row
      config[48 + t] = t < 6 ? rows : kTile;
    }
    _tile_loadconfig(config);
  }
  ~TileScope() {
    if (before_[0] == 0) {
      _tile_release();
    } else {
      _tile_loadconfig(before_);
    }
  }
  TileScope(const TileScope&) = delete;

 private:
  alignas(64) uint8_t before_[64];
};

// 32 consecutive bfloat16 numbers from p; those that the mask leaves out are zero and not read.
inline __m512i load32(const void* p, bool wide, __mmask32 mask) {
  if (!wide) return _mm512_maskz_loadu_epi16(mask, p);
  const float* f = static_cast<const float*>(p);
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), f);
  const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), f + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

inline __mmask32 first(int64_t n) {
  return n >= 32 ? ~__mmask32{0} : (n <= 0 ? 0 : (__mmask32{1} << n) - 1);
}

// Transposes 16 x 16 numbers of 32 bits.
inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Two rows of 32 numbers side by side: pair[0] holds columns 0-15 of both, pair[1] columns 16-31.
inline void interleave_rows(__m512i even, __m512i odd, __m512i pair[2]) {
  static const __m512i low = [] {
    alignas(64) uint16_t index[32];
    for (int i = 0; i < 16; ++i) index[2 * i] = i, index[2 * i + 1] = 32 + i;
    return _mm512_load_si512(index);
  }();
  pair[0] = _mm512_permutex2var_epi16(even, low, odd);
  pair[1] = _mm512_permutex2var_epi16(even, _mm512_add_epi16(low, _mm512_set1_epi16(16)), odd);
}

// 32 rows of the stored matrix, 32 columns wide, interleaved: pairs[half][p] holds rows 2p and 2p + 1.
inline void interleave(const Operand& x, int64_t rows, int64_t columns, __m512i pairs[2][16]) {
  const __mmask32 mask = first(columns);
  const char* data = static_cast<const char*>(x.data);
  const int64_t bytes = x.stride * (x.wide ? 4 : 2);
  for (int p = 0; p < 16; ++p) {
    const __m512i even = load32(data + 2 * p * bytes, x.wide, 2 * p < rows ? mask : 0);
    const __m512i odd = load32(data + (2 * p + 1) * bytes, x.wide, 2 * p + 1 < rows ? mask : 0);
    __m512i pair[2];
    interleave_rows(even, odd, pair);
    pairs[0][p] = pair[0];
    pairs[1][p] = pair[1];
  }
}

// 16 rows of the stored matrix from its row `row` on, 32 columns wide.
inline void rows16(const Operand& x, int64_t row, int64_t rows, int64_t columns, __m512i r[16]) {
  const char* data = static_cast<const char*>(x.data);
  const int64_t bytes = x.stride * (x.wide ? 4 : 2);
  const __mmask32 mask = first(columns);
  for (int i = 0; i < 16; ++i) r[i] = load32(data + (row + i) * bytes, x.wide, row + i < rows ? mask : 0);
}

inline void store16(const __m512i r[16], bf16* tile) {
  for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + i * kStep, r[i]);
}

// 32 k of 32 columns of B as two tiles. Beyond k and columns there are zeros.
inline void pack_b_step(const Operand& b, int64_t k, int64_t columns, bf16* to) {
  __m512i pairs[2][16];
  if (b.transposed) {
    for (int half = 0; half < 2; ++half) {
      rows16(b, half * kTile, columns, k, pairs[half]);
      transpose16(pairs[half]);
    }
  } else {
    interleave(b, k, columns, pairs);
  }
  store16(pairs[0], to);
  store16(pairs[1], to + kTileSize);
}

// `columns` of B, k deep, as tiles: to[panel of 32 columns][step of 32 k][half]; a panel is `size` numbers.
inline void pack_b(const Operand& b, int64_t k, int64_t columns, bf16* to, int64_t size) {
  for (int64_t at = 0; at < k; at += kStep) {  // along the rows of memory
    bf16* out = to + at / kStep * 2 * kTileSize;
    for (int64_t left = 0; left < columns; left += kBlock, out += size) {
      pack_b_step(b.at(at, left), k - at, columns - left, out);
    }
  }
}

// 32 k of 32 rows of A as two tiles. Beyond rows and k there are zeros.
inline void pack_a_step(const Operand& a, int64_t rows, int64_t k, bf16* to) {
  __m512i pairs[2][16];
  if (a.transposed) {
    interleave(a, k, rows, pairs);
    transpose16(pairs[0]);
    transpose16(pairs[1]);
  } else {
    rows16(a, 0, rows, k, pairs[0]);
    rows16(a, kTile, rows, k, pairs[1]);
  }
  store16(pairs[0], to);
  store16(pairs[1], to + kTileSize);
}

// `rows` of A, k deep, as tiles: to[strip of 32 rows][step of 32 k][half]; a strip is `size` numbers.
inline void pack_a(const Operand& a, int64_t rows, int64_t k, bf16* to, int64_t size) {
  for (int64_t at = 0; at < k; at += kStep) {
    bf16* out = to + at / kStep * 2 * kTileSize;
    for (int64_t top = 0; top < rows; top += kBlock, out += size) {
      pack_a_step(a.at(top, at), rows - top, k - at, out);
    }
  }
}

// 32 rows of A where the products read them: packed tiles, or the matrix itself.
struct Rows {
  const bf16 *upper, *lower;  // the first tile of rows 0-15 and of rows 16-31
  int64_t stride;             // bfloat16 numbers from a row of a tile to the next
  int64_t step;               // and from a tile to that of the next 32 k
};

inline Rows packed_rows(const bf16* tiles) { return {tiles, tiles + kTileSize, kStep, 2 * kTileSize}; }

inline Rows rows_in_place(const Operand& a) {
  const bf16* data = static_cast<const bf16*>(a.data);
  return {data, data + kTile * a.stride, a.stride, kStep};
}

// A finished block c[32][32] on its way to a row-major matrix of bfloat16 or float32, as much of it as exists there.
// Rows are written a few at a time between the products of the next block, which hides them.
struct Write {
  const float* c = nullptr;
  char* to = nullptr;
  int64_t stride = 0;  // bytes from row to row
  bool wide = false;   // float32
  int64_t rows = 0;
  __mmask32 mask = 0;

  void some(int64_t n) {
    for (n = std::min(n, rows), rows -= n; n > 0; --n, c += kBlock, to += stride) {
      const __m512 low = _mm512_load_ps(c), high = _mm512_load_ps(c + 16);
      if (wide) {
        _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), low);
        _mm512_mask_storeu_ps(to + 64, static_cast<__mmask16>(mask >> 16), high);
      } else {
        _mm512_mask_storeu_epi16(to, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
    }
  }
};

// c[32][32] = (add: c +) Σ over `steps` steps of A times packed B. Finishes `before`, a `Write` or the like, which is
// another block.
// kIntegers: the tiles, taken for bfloat16 by whoever counts their bytes, hold int8, and c int32.
template <bool kIntegers = false, class Before>
void multiply(const Rows& a, const bf16* b, int64_t steps, float* c, bool add, Before& before) {
  const int64_t row = kBlock * 4;  // bytes
  float *c10 = c + kTile * kBlock, *c01 = c + kTile, *c11 = c10 + kTile;
  if (add) {
    _tile_loadd(0, c, row);
    _tile_loadd(1, c01, row);
    _tile_loadd(2, c10, row);
    _tile_loadd(3, c11, row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const bf16 *upper = a.upper, *lower = a.lower;
  const int64_t share = (before.rows + steps - 1) / steps;
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(4, upper, a.stride * 2);
    _tile_loadd(6, b, 64);
    MIN_LLM_TILE_PRODUCT(0, 4, 6)
    _tile_loadd(7, b + kTileSize, 64);
    MIN_LLM_TILE_PRODUCT(1, 4, 7)
    _tile_loadd(5, lower, a.stride * 2);
    MIN_LLM_TILE_PRODUCT(2, 5, 6)
    MIN_LLM_TILE_PRODUCT(3, 5, 7)
    upper += a.step;
    lower += a.step;
    b += 2 * kTileSize;
    before.some(share);
  }
  _tile_stored(0, c, row);
  _tile_stored(1, c01, row);
  _tile_stored(2, c10, row);
  _tile_stored(3, c11, row);
}

}  // namespace min_llm
