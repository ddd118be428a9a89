// The loss of a row of logits and its gradient, which replaces the logits in memory.
#include <cmath>
#include <limits>

#include "pool.h"
#include "vector.h"

namespace min_llm {
namespace {

// Reads a row three times and writes it once; a row of 128K logits is 256 KiB and stays in the second-level cache.
float row_loss(bf16* row, int64_t n, int64_t target, float weight) {
  __m512 top = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first16(n - i);
    top = _mm512_mask_max_ps(top, mask, top, load_bf16(row + i, mask));
  }
  const float largest = _mm512_reduce_max_ps(top);
  const __m512 shift = _mm512_set1_ps(largest);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first16(n - i);
    const __m512 e = exp16(_mm512_sub_ps(load_bf16(row + i, mask), shift));
    sum = _mm512_mask_add_ps(sum, mask, sum, e);
  }
  const float lse = largest + std::log(_mm512_reduce_add_ps(sum));
  const uint32_t bits = static_cast<uint32_t>(row[target]) << 16;
  float picked;
  std::memcpy(&picked, &bits, sizeof picked);
  const __m512 minus = _mm512_set1_ps(lse), scale = _mm512_set1_ps(weight);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 mask = first16(n - i);
    store_bf16(row + i, _mm512_mul_ps(exp16(_mm512_sub_ps(load_bf16(row + i, mask), minus)), scale), mask);
  }
  const __m512 at_target = _mm512_set1_ps((std::exp(picked - lse) - 1) * weight);
  store_bf16(row + target, at_target, 1);
  return lse - picked;
}

ffi::Error cross_entropy(ffi::ThreadPool pool, ffi::Buffer<ffi::BF16, 2> logits, ffi::Buffer<ffi::S32, 1> targets,
                         ffi::Buffer<ffi::F32, 1> weights, ffi::Result<ffi::Buffer<ffi::F32, 1>> nll,
                         ffi::Result<ffi::Buffer<ffi::BF16, 2>> gradient) {
  const int64_t rows = logits.dimensions()[0], n = logits.dimensions()[1];
  bf16* data = static_cast<bf16*>(gradient->untyped_data());
  const bf16* given = static_cast<const bf16*>(logits.untyped_data());
  constexpr int64_t kRows = 16;
  parallel(pool, ceil_div(rows, kRows), [&](int64_t task) {
    for (int64_t i = task * kRows; i < std::min(rows, (task + 1) * kRows); ++i) {
      if (data != given) std::memcpy(data + i * n, given + i * n, n * sizeof(bf16));
      const int64_t target = std::clamp<int64_t>(targets.typed_data()[i], 0, n - 1);
      nll->typed_data()[i] = row_loss(data + i * n, n, target, weights.typed_data()[i]);
    }
  });
  return ffi::Error::Success();
}

using Values = ffi::Buffer<ffi::F32, 1>;
using Matrix = ffi::Buffer<ffi::BF16, 2>;
using Indices = ffi::Buffer<ffi::S32, 1>;

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    min_llm_cross_entropy, cross_entropy,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Matrix>().Arg<Indices>().Arg<Values>().Ret<Values>().Ret<Matrix>());

}  // namespace min_llm
