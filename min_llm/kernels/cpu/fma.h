// Products in float32 by fused multiply-adds: a few rows times 32 columns, with the sums in registers.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

namespace min_llm {

constexpr int64_t kPanel = 32;     // columns
constexpr int64_t kMostRows = 14;  // 28 accumulators of 32 registers
constexpr int64_t kNear = 16;      // rows of w that are fetched ahead into the first-level cache
constexpr int64_t kFar = 256;      // and into the second

// What memory is asked for meanwhile: two lines at `at`, which moves by `pace` bytes with every row of w.
struct Ahead {
  const char* at;
  int64_t pace;
};

// sums[kRows][32] += x[kRows][depth] w[depth][32], each sum one chain of additions in the order of depth.
template <bool kFetch, int kRows>
void add_rows(const float* x, int64_t stride, const float* w, int64_t depth, float* sums, Ahead far) {
  __m512 low[kRows], high[kRows];
  for (int i = 0; i < kRows; ++i) {
    low[i] = _mm512_load_ps(sums + i * kPanel);
    high[i] = _mm512_load_ps(sums + i * kPanel + 16);
  }
  for (int64_t at = 0; at < depth; ++at, w += kPanel) {
    const __m512 w0 = _mm512_load_ps(w), w1 = _mm512_load_ps(w + 16);
    if constexpr (kFetch) {
      _mm_prefetch(w + kNear * kPanel, _MM_HINT_T0);
      _mm_prefetch(w + kNear * kPanel + 16, _MM_HINT_T0);
      _mm_prefetch(far.at, _MM_HINT_T1);
      _mm_prefetch(far.at + 64, _MM_HINT_T1);
      far.at += far.pace;
    }
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const __m512 v = _mm512_set1_ps(x[i * stride + at]);
      low[i] = _mm512_fmadd_ps(v, w0, low[i]);
      high[i] = _mm512_fmadd_ps(v, w1, high[i]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    _mm512_store_ps(sums + i * kPanel, low[i]);
    _mm512_store_ps(sums + i * kPanel + 16, high[i]);
  }
}

template <bool kFetch, size_t... kIndex>
constexpr auto add_rows_of(std::index_sequence<kIndex...>) {
  using AddRows = void (*)(const float*, int64_t, const float*, int64_t, float*, Ahead);
  return std::array<AddRows, sizeof...(kIndex)>{add_rows<kFetch, kIndex + 1>...};
}

// sums[rows][32] += x[rows][depth] w[depth][32], for any number of rows. kFetch: w comes from far away, and what
// follows it in memory is wanted next. Every block of rows fetches its share of that, so that memory is never idle.
template <bool kFetch>
void add_product(const float* x, int64_t stride, int64_t rows, const float* w, int64_t depth, float* sums) {
  static constexpr auto kAddRows = add_rows_of<kFetch>(std::make_index_sequence<kMostRows>());
  const int64_t blocks = (rows + kMostRows - 1) / kMostRows, pace = kPanel * 4 / blocks;
  const char* far = reinterpret_cast<const char*>(w + kFar * kPanel);
  for (int64_t b = 0, row = 0; b < blocks; ++b) {
    const int64_t some = (rows - row + blocks - b - 1) / (blocks - b);
    kAddRows[some - 1](x + row * stride, stride, w, depth, sums + row * kPanel, {far + b * depth * pace, pace});
    row += some;
  }
}

}  // namespace min_llm
