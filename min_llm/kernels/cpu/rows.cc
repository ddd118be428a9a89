// Products of a few rows with a matrix that was packed once: Y[n, m] = X[n, k] W[k, m], for decoding, where n is the
// number of sequences and reading W is the work, and for the longer pieces of a prefill.
//
// W lies in panels of 32 columns (kernels/rows.py), which threads read from beginning to end. Every element of Y is
// one chain of additions in the order of k, in float32, whatever n is and whoever computes it: the bits of a row of Y
// depend on that row of X and on W alone. Sums of int8 products are exact.
#include "fma.h"
#include "pool.h"
#include "team.h"
#include "tiles.h"
#include "vector.h"

namespace min_llm {
namespace {

constexpr int64_t kWideDepth = 256;  // k of a pass in float32: 32 columns of W, 32 KiB, stay in the first-level cache
constexpr int64_t kDeep = 16;        // and steps of tiles

struct Result {
  void* data;
  int64_t rows, columns;
  bool wide;  // float32
  const float *row_scales = nullptr, *column_scales = nullptr;  // what blocks of int32 are multiplied by

  // Where a finished block goes whose first element is (row, column).
  Write write(float* block, int64_t row, int64_t column, int64_t most) const {
    const int64_t bytes = wide ? 4 : 2;
    if (row_scales != nullptr) scale(block, row, column, std::min(most, rows - row));
    return {block, static_cast<char*>(data) + (row * columns + column) * bytes, columns * bytes, wide,
            std::min(most, rows - row), first(columns - column)};
  }

  // int32 to float32 where it stands.
  void scale(float* block, int64_t row, int64_t column, int64_t n) const {
    for (int64_t half = 0; half < kPanel; half += 16) {
      const __m512 of_columns = _mm512_load_ps(column_scales + column + half);
      for (int64_t i = 0; i < n; ++i) {
        float* at = block + i * kPanel + half;
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(at));
        _mm512_store_ps(at, _mm512_mul_ps(_mm512_mul_ps(sum, _mm512_set1_ps(row_scales[row + i])), of_columns));
      }
    }
  }
};

// --- float32: fused multiply-adds

void panel_float32(const float* x, int64_t stride, const float* w, int64_t k, int64_t column, const Result& y) {
  float* sums = static_cast<float*>(scratch<40>(y.rows * kPanel * sizeof(float)));
  std::fill(sums, sums + y.rows * kPanel, 0.0f);
  for (int64_t at = 0; at < k; at += kWideDepth) {
    add_product<true>(x + at, stride, y.rows, w + at * kPanel, std::min(kWideDepth, k - at), sums);
  }
  y.write(sums, 0, column, y.rows).some(y.rows);
}

// --- bfloat16 and int8: tiles

// X where tiles are loaded from.
struct TileRows {
  int64_t steps;                // of k
  const bf16* tiles = nullptr;  // strips of 32 rows (pack_a), or
  Operand in_place;             // row-major, at least as many rows as are read

  Rows at(int64_t row, int64_t step) const {
    if (tiles == nullptr) return rows_in_place(in_place.at(row, step * kStep));
    return packed_rows(tiles + (row / kBlock * steps + step) * 2 * kTileSize);
  }
};

// Tiles for at most 16 rows: one tile of A with those rows alone, which makes its products as much shorter.
template <bool kIntegers>
void panel_of_few(const TileRows& x, const bf16* w, int64_t column, const Result& y) {
  alignas(64) float sums[kTile * kPanel];
  Rows a = x.at(0, 0);
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t s = 0; s < x.steps; ++s, w += 2 * kTileSize, a.upper += a.step) {
    _tile_loadd(4, a.upper, a.stride * 2);
    _tile_loadd(6, w, 64);
    MIN_LLM_TILE_PRODUCT(0, 4, 6)
    _tile_loadd(7, w + kTileSize, 64);
    MIN_LLM_TILE_PRODUCT(1, 4, 7)
  }
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + kTile, kPanel * 4);
  y.write(sums, 0, column, y.rows).some(y.rows);
}

template <bool kIntegers>
void panel_of_many(const TileRows& x, const bf16* w, int64_t column, const Result& y) {
  const int64_t strips = ceil_div(y.rows, kBlock), passes = ceil_div(x.steps, kDeep);
  const int64_t steps = ceil_div(x.steps, passes);
  float* sums = static_cast<float*>(scratch<41>(std::max<int64_t>(2, strips) * kBlock * kBlock * sizeof(float)));
  Write write;
  for (int64_t from = 0; from < x.steps; from += steps) {
    const int64_t here = std::min(steps, x.steps - from);
    for (int64_t s = 0; s < strips; ++s) {
      float* sum = sums + s * kBlock * kBlock;
      multiply<kIntegers>(x.at(s * kBlock, from), w + from * 2 * kTileSize, here, sum, from > 0, write);
      if (from + here == x.steps) write = y.write(sum, s * kBlock, column, kBlock);
    }
  }
  write.some(kBlock);
}

// Panels [from, to) in each piece; as many pieces as the product is worth. `cost` in nanoseconds of one thread.
template <class Panel>
void over_panels(Team& team, int64_t panels, int64_t cost, const Panel& panel) {
  constexpr int64_t kAlone = 4000, kPiece = 100'000;
  const int64_t threads = cost < kAlone ? 1 : team.threads();
  const int64_t pieces = std::min(panels, threads * std::clamp<int64_t>(cost / threads / kPiece, 1, 8));
  team.run(pieces, [&](int64_t i) { panel(panels * i / pieces, panels * (i + 1) / pieces); });
}

// Nanoseconds for reading W and for multiplying, whichever takes longer, at the best speeds of one thread.
int64_t cost(int64_t bytes, int64_t multiplications, int64_t speed) {
  return std::max(bytes / 24, multiplications / speed);
}

template <bool kIntegers>
void over_tiles(Team& team, const TileRows& rows, const bf16* w, int64_t panels, const Result& y) {
  const int64_t panel = rows.steps * 2 * kTileSize, products = y.rows * panels * panel * (kIntegers ? 2 : 1);
  over_panels(team, panels, cost(panels * panel * 2, products, kIntegers ? 800 : 400), [&](int64_t from, int64_t to) {
    TileScope tiles(std::min(y.rows, kTile));
    for (int64_t p = from; p < to; ++p) {
      (y.rows <= kTile ? panel_of_few<kIntegers> : panel_of_many<kIntegers>)(rows, w + p * panel, p * kPanel, y);
    }
  });
}

const float* widened(const ffi::AnyBuffer& x, int64_t n, int64_t k) {
  if (x.element_type() == ffi::F32) return static_cast<const float*>(x.untyped_data());
  const bf16* from = static_cast<const bf16*>(x.untyped_data());
  float* to = static_cast<float*>(scratch<42>(n * k * sizeof(float)));
  for (int64_t i = 0; i < n * k; i += 16) {
    const __mmask16 mask = first16(n * k - i);
    _mm512_mask_storeu_ps(to + i, mask, load_bf16(from + i, mask));
  }
  return to;
}

void rows_float32(Team& team, const ffi::AnyBuffer& x, int64_t k, const float* w, int64_t panels, const Result& y) {
  const float* rows = widened(x, y.rows, k);
  int64_t stride = k;
  if (y.rows > 8 && k % 1024 == 0) {  // rows 4 KiB apart would share a few lines of the first-level cache
    stride = k + 16;
    float* apart = static_cast<float*>(scratch<43>(y.rows * stride * sizeof(float)));
    for (int64_t i = 0; i < y.rows; ++i) std::copy_n(rows + i * k, k, apart + i * stride);
    rows = apart;
  }
  const int64_t ns = cost(panels * k * kPanel * 4, y.rows * k * panels * kPanel, 75);
  over_panels(team, panels, ns, [&](int64_t from, int64_t to) {
    for (int64_t p = from; p < to; ++p) panel_float32(rows, stride, w + p * k * kPanel, k, p * kPanel, y);
  });
}

void rows_bfloat16(Team& team, const ffi::AnyBuffer& x, int64_t k, const bf16* w, int64_t panels, const Result& y) {
  const int64_t n = y.rows, steps = ceil_div(k, kStep), panel = steps * 2 * kTileSize;
  const Operand a{x.untyped_data(), k, false, x.element_type() == ffi::F32};
  const bool few = n <= kTile;
  TileRows rows{steps, nullptr, a};
  if (a.wide || k % kStep != 0 || (!few && n % kBlock != 0)) {
    bf16* to = static_cast<bf16*>(scratch<44>(ceil_div(n, kBlock) * panel * sizeof(bf16)));
    if (few) {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t at = 0; at < k; at += kStep) {
          _mm512_store_si512(to + i * steps * kStep + at, load32(a.at(i, at).data, a.wide, first(k - at)));
        }
      }
      rows.in_place = {to, steps * kStep, false, false};
    } else {
      team.run(ceil_div(n, kBlock), [&](int64_t i) {
        pack_a(a.at(i * kBlock, 0), std::min(kBlock, n - i * kBlock), k, to + i * panel, 0);
      });
      rows.tiles = to;
    }
  }
  over_tiles<false>(team, rows, w, panels, y);
}

// A row of X as int8, with zeros up to the end of the last step; returns its scale. Rounds as quant/rounding.py does.
float quantize(const Operand& x, int64_t k, int64_t steps, int8_t* to) {
  const auto load = [&](int64_t at) {
    if (x.wide) return _mm512_maskz_loadu_ps(first16(k - at), static_cast<const float*>(x.data) + at);
    return load_bf16(static_cast<const bf16*>(x.data) + at, first16(k - at));
  };
  __m512i largest = _mm512_castps_si512(_mm512_set1_ps(1e-30f));
  for (int64_t at = 0; at < k; at += 16) {  // compared as integers: not-a-number is the largest of all
    largest = _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(load(at))));
  }
  const int32_t bits = _mm512_reduce_max_epi32(largest);
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  scale *= 1.0f / 127;
  const __m512 inverse = _mm512_set1_ps(1 / scale);
  for (int64_t at = 0; at < steps * 64; at += 16) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(load(at), inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + at), _mm512_cvtsepi32_epi8(rounded));
  }
  return scale;
}

// scales: of the columns of W, [panels][32].
void rows_int8(Team& team, const ffi::AnyBuffer& x, int64_t k, const int8_t* w, const float* scales, int64_t panels,
               Result y) {
  const int64_t n = y.rows, steps = ceil_div(k, 64);
  const int64_t stride = (steps | 1) * 64;  // an odd number of lines, so that rows never share their place in the cache
  int8_t* to = static_cast<int8_t*>(scratch<45>(ceil_div(n, kBlock) * kBlock * stride));
  float* row_scales = static_cast<float*>(scratch<46>(n * sizeof(float)));
  const Operand a{x.untyped_data(), k, false, x.element_type() == ffi::F32};
  const int64_t pieces = std::clamp<int64_t>(n * k / 4096, 1, n);  // of some microseconds
  team.run(pieces, [&](int64_t piece) {
    for (int64_t i = n * piece / pieces; i < n * (piece + 1) / pieces; ++i) {
      row_scales[i] = quantize(a.at(i, 0), k, steps, to + i * stride);
    }
  });
  y.row_scales = row_scales;
  y.column_scales = scales;
  const TileRows rows{steps, nullptr, {to, stride / 2, false, false}};
  over_tiles<true>(team, rows, reinterpret_cast<const bf16*>(w), panels, y);
}

// w: the packed matrices of all layers; only that of `layer` is read.
ffi::Error rows(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::Buffer<ffi::S32> layer,
                ffi::Result<ffi::AnyBuffer> y) {
  const int64_t n = x.dimensions()[0], k = x.dimensions()[1], panels = w.dimensions()[1];
  const int64_t skipped = *layer.typed_data() * (w.element_count() / w.dimensions()[0]);
  const Result to{y->untyped_data(), n, y->dimensions()[1], y->element_type() == ffi::F32};
  Team& team = Team::get(pool.num_threads());
  if (w.element_type() == ffi::F32) {
    rows_float32(team, x, k, static_cast<const float*>(w.untyped_data()) + skipped, panels, to);
  } else {
    rows_bfloat16(team, x, k, static_cast<const bf16*>(w.untyped_data()) + skipped, panels, to);
  }
  return ffi::Error::Success();
}

// The same for int8. scales [layers][panels][32]: of the columns.
ffi::Error rows_of_int8(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::S8> w, ffi::Buffer<ffi::F32> scales,
                        ffi::Buffer<ffi::S32> layer, ffi::Result<ffi::AnyBuffer> y) {
  const int64_t n = x.dimensions()[0], k = x.dimensions()[1], layers = w.dimensions()[0], panels = w.dimensions()[1];
  const int64_t i = *layer.typed_data();
  const Result to{y->untyped_data(), n, y->dimensions()[1], y->element_type() == ffi::F32};
  rows_int8(Team::get(pool.num_threads()), x, k, w.typed_data() + i * (w.element_count() / layers),
            scales.typed_data() + i * panels * kPanel, panels, to);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rows, rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rows_int8, rows_of_int8,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());

}  // namespace min_llm
