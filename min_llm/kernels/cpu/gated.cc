// The feed-forward network of a layer in one call: Y = (silu(X G) ∘ X U) D with packed G, U and D (Shazeer 2020,
// SwiGLU). What lies between the products never leaves the cache of the thread that made it, where there are many rows.
#include "shares.h"

namespace min_llm {
namespace {

struct Network {
  Weights gate, up, down;
};

// silu(gate) ∘ up of a finished pair of blocks, on its way to memory; a gate alone waits for its other half.
struct Gate {
  const float *gate = nullptr, *up = nullptr;
  char* to = nullptr;
  int64_t stride = 0;  // bytes from row to row
  bool wide = false;
  int64_t rows = 0;

  void some(int64_t n) {
    for (n = std::min(n, rows), rows -= n; n > 0; --n, gate += kPanel, up += kPanel, to += stride) {
      for (int64_t half = 0; half < kPanel; half += 16) {
        const __m512 g = _mm512_load_ps(gate + half), u = _mm512_load_ps(up + half);
        const __m512 v = _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u);
        if (wide) {
          _mm512_storeu_ps(to + half * 4, v);
        } else {
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half * 2), (__m256i)_mm512_cvtneps_pbh(v));
        }
      }
    }
  }
};

// H = silu(X G) ∘ X U for panels [from, to), zeros in the columns that pad the last.
template <class Kind>
void gate_panels(const Taken& x, const Network& net, int64_t from, int64_t to, const Matrix& h) {
  typename Kind::Scope scope(x.rows);
  const int64_t size = ceil_div(x.rows, kBlock) * kCell;  // sums of a panel
  float* sums = static_cast<float*>(scratch<41>(Kind::kMost * size * sizeof(float)));
  const Scaled scaled[2] = {{x.scales, Kind::kScaled ? net.gate.scales : nullptr},
                            {x.scales, Kind::kScaled ? net.up.scales : nullptr}};
  for (const char* panels[Kind::kMost]; from < to;) {
    const int64_t first_panel = from, n = std::min(Kind::kMost / 2, to - from);
    for (int64_t i = 0; i < n; ++i, ++from) {
      panels[2 * i] = Kind::ready(net.gate, from, 2 * i);
      panels[2 * i + 1] = Kind::ready(net.up, from, 2 * i + 1);
    }
    Kind::multiply(x, net.gate, panels, 2 * n, sums, [&](int64_t i, int64_t row, float* block) {
      const int64_t column = (first_panel + i / 2) * kPanel, rows = std::min(kBlock, x.rows - row);
      scaled[i % 2].apply(block, row, column, rows);
      if (i % 2 == 0) return Gate{};
      return Gate{block - size, block, h.at(row, column), h.stride * (h.wide ? 4 : 2), h.wide, rows};
    });
  }
}

// Room for H in scratch of the caller, and as the second product's rows.
template <int kTag>
Matrix hidden(int64_t rows, int64_t panels, bool wide) {
  const int64_t bytes = spread_stride(panels * kPanel * (wide ? 4 : 2));
  void* space = scratch<kTag>(ceil_div(rows, kTile) * kTile * bytes);
  return {static_cast<char*>(space), bytes / (wide ? 4 : 2), panels * kPanel, wide};
}

Source source_of(const Matrix& h, int64_t rows, int64_t k) { return {{h.data, h.stride, false, h.wide}, rows, k, true}; }

template <class Kind>
void run(ffi::ThreadPool& pool, const Source& x, const Network& net, const Matrix& y) {
  const Workers workers(pool, x.rows, cost<Kind>(x.rows, net.gate, 3));
  const int64_t panels = net.gate.panels;
  if (by_rows(workers, x.rows)) {
    workers.share_rows(x.rows, Kind::kUnit, [&](int64_t from, int64_t to) {
      const Matrix h = hidden<43>(to - from, panels, y.wide);
      gate_panels<Kind>(taken<Kind, 42>(nullptr, x.part(from, to)), net, 0, panels, h);
      const Taken rows = taken<Kind, 42>(nullptr, source_of(h, to - from, net.down.k));
      multiply_panels<Kind>(rows, net.down, 0, net.down.panels, y.from(from));
    });
  } else {
    const Matrix h = hidden<43>(x.rows, panels, y.wide);
    Taken rows = taken<Kind, 42>(&workers, x);
    workers.share(panels, [&](int64_t from, int64_t to) { gate_panels<Kind>(rows, net, from, to, h); });
    rows = taken<Kind, 42>(&workers, source_of(h, x.rows, net.down.k));
    workers.share(net.down.panels,
                  [&](int64_t from, int64_t to) { multiply_panels<Kind>(rows, net.down, from, to, y); });
  }
}

// operands: packed stacks G, U and D of all layers, of which only those of `layer` are read, and their scales. hidden:
// columns of G and U.
ffi::Error gated(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::RemainingArgs operands,
                 ffi::Result<ffi::AnyBuffer> y, int64_t hidden) {
  const Source source = min_llm::source_of(x);
  return for_kind(operands, [&](auto kind) {
    using Kind = decltype(kind);
    const auto part = [&](size_t i, int64_t k) {
      return weights_of<Kind>(*operands.get<ffi::AnyBuffer>(i), k, *layer.typed_data(), scales_of(operands, 3, i));
    };
    run<Kind>(pool, source, {part(0, source.k), part(1, source.k), part(2, hidden)}, matrix_of(y));
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_gated, gated,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("hidden"));

}  // namespace min_llm
