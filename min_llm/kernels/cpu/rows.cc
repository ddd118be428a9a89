// Products of a few rows with a matrix that was packed once: Y[n, m] = X[n, k] W[k, m], for decoding, where n is the
// number of sequences and reading W is the work, and for the longer pieces of a prefill.
//
// W lies in panels of 32 columns (kernels/rows.py), which threads read from beginning to end. Every element of Y is
// one chain of additions in the order of k, in float32, whatever n is and whoever computes it: the bits of a row of Y
// depend on that row of X and on W alone.
#include "fma.h"
#include "pool.h"
#include "team.h"
#include "tiles.h"
#include "vector.h"

namespace min_llm {
namespace {

constexpr int64_t kWideDepth = 256;  // k of a pass in float32: 32 columns of W, 32 KiB, stay in the first-level cache
constexpr int64_t kDepth = 512;      // and in bfloat16

struct Result {
  void* data;
  int64_t rows, columns;
  bool wide;  // float32

  // Where a finished block goes whose first element is (row, column).
  Write write(const float* block, int64_t row, int64_t column, int64_t most) const {
    const int64_t bytes = wide ? 4 : 2;
    return {block, static_cast<char*>(data) + (row * columns + column) * bytes, columns * bytes, wide,
            std::min(most, rows - row), first(columns - column)};
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

// --- bfloat16: tiles

// X as bfloat16 where tiles are loaded from.
struct TileRows {
  int64_t k;
  const bf16* tiles = nullptr;  // strips of 32 rows (pack_a), or
  Operand in_place;             // row-major, at least as many rows as are read

  Rows at(int64_t row, int64_t step) const {
    if (tiles == nullptr) return rows_in_place(in_place.at(row, step * kStep));
    return packed_rows(tiles + (row / kBlock * ceil_div(k, kStep) + step) * 2 * kTileSize);
  }
};

// Tiles for at most 16 rows: one tile of A with those rows alone, which makes its products as much shorter.
void panel_of_few(const TileRows& x, const bf16* w, int64_t column, const Result& y) {
  alignas(64) float sums[kTile * kPanel];
  const int64_t steps = ceil_div(x.k, kStep);
  Rows a = x.at(0, 0);
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t s = 0; s < steps; ++s, w += 2 * kTileSize, a.upper += a.step) {
    _tile_loadd(4, a.upper, a.stride * 2);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + kTileSize, 64);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + kTile, kPanel * 4);
  y.write(sums, 0, column, y.rows).some(y.rows);
}

void panel_bfloat16(const TileRows& x, const bf16* w, int64_t column, const Result& y) {
  const int64_t strips = ceil_div(y.rows, kBlock), all_steps = ceil_div(x.k, kStep);
  const int64_t passes = ceil_div(x.k, kDepth), steps = ceil_div(all_steps, passes);
  float* sums = static_cast<float*>(scratch<41>(std::max<int64_t>(2, strips) * kBlock * kBlock * sizeof(float)));
  Write write;
  for (int64_t from = 0; from < all_steps; from += steps) {
    const int64_t here = std::min(steps, all_steps - from);
    for (int64_t s = 0; s < strips; ++s) {
      float* sum = sums + s * kBlock * kBlock;
      multiply(x.at(s * kBlock, from), w + from * 2 * kTileSize, here, sum, from > 0, write);
      if (from + here == all_steps) write = y.write(sum, s * kBlock, column, kBlock);
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
  TileRows rows{k, nullptr, a};
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
  const int64_t ns = cost(panels * panel * 2, n * k * panels * kPanel, 400);
  over_panels(team, panels, ns, [&](int64_t from, int64_t to) {
    TileScope tiles(std::min(n, kTile));
    for (int64_t p = from; p < to; ++p) {
      (few ? panel_of_few : panel_bfloat16)(rows, w + p * panel, p * kPanel, y);
    }
  });
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

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rows, rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());

}  // namespace min_llm
