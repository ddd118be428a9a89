// What lies between the products of a layer, each in one pass over memory: RMSNorm, SwiGLU, rotary embedding.
// bfloat16 in and out, float32 inside.
#include <cmath>

#include "pool.h"
#include "vector.h"

namespace min_llm {
namespace {

constexpr int64_t kTaskSize = 1 << 15;  // numbers a task handles: some microseconds

using Numbers = ffi::Buffer<ffi::BF16>;
using Floats = ffi::Buffer<ffi::F32>;

const bf16* data(const Numbers& x) { return static_cast<const bf16*>(x.untyped_data()); }
bf16* data(ffi::Result<Numbers>& x) { return static_cast<bf16*>(x->untyped_data()); }

int64_t rows_of(const Numbers& x) { return x.element_count() / x.dimensions().back(); }

// task(first row, last row) over all rows, in pieces of about kTaskSize numbers.
template <class Task>
void over_rows(ffi::ThreadPool& pool, int64_t rows, int64_t width, const Task& task) {
  const int64_t piece = std::max<int64_t>(1, kTaskSize / width);
  parallel(pool, ceil_div(rows, piece),
           [&](int64_t i) { task(i, i * piece, std::min(rows, (i + 1) * piece)); });
}

ffi::Error rms_norm(ffi::ThreadPool pool, Numbers x, Floats scale, ffi::Result<Numbers> y, ffi::Result<Floats> inverse,
                    float eps) {
  const int64_t d = x.dimensions().back();
  const float* by = scale.typed_data();
  over_rows(pool, rows_of(x), d, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const bf16* row = data(x) + i * d;
      __m512 squares = _mm512_setzero_ps();
      for (int64_t c = 0; c < d; c += 16) {
        const __m512 v = load_bf16(row + c, first16(d - c));
        squares = _mm512_fmadd_ps(v, v, squares);
      }
      const float factor = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / d + eps);
      inverse->typed_data()[i] = factor;
      const __m512 f = _mm512_set1_ps(factor);
      for (int64_t c = 0; c < d; c += 16) {
        const __mmask16 mask = first16(d - c);
        const __m512 n = _mm512_mul_ps(load_bf16(row + c, mask), f);
        store_bf16(data(y) + i * d + c, _mm512_mul_ps(n, _mm512_maskz_loadu_ps(mask, by + c)), mask);
      }
    }
  });
  return ffi::Error::Success();
}

// With n = x · inverse: dx = inverse · (dy · scale − n · mean(dy · scale · n)), dscale = Σ dy · n, summed piece by piece
// so that the order, and with it the last bit, does not depend on which thread did what.
ffi::Error rms_norm_gradient(ffi::ThreadPool pool, Numbers x, Floats scale, Floats inverse, Numbers dy,
                             ffi::Result<Numbers> dx, ffi::Result<Floats> dscale) {
  const int64_t d = x.dimensions().back(), rows = rows_of(x);
  const int64_t pieces = ceil_div(rows, std::max<int64_t>(1, kTaskSize / d));
  const float* by = scale.typed_data();
  float* sums = static_cast<float*>(scratch<40>(pieces * d * sizeof(float)));
  over_rows(pool, rows, d, [&](int64_t piece, int64_t from, int64_t to) {
    float* sum = sums + piece * d;
    std::fill(sum, sum + d, 0.0f);
    for (int64_t i = from; i < to; ++i) {
      const bf16 *row = data(x) + i * d, *dy_row = data(dy) + i * d;
      const __m512 f = _mm512_set1_ps(inverse.typed_data()[i]);
      __m512 dot = _mm512_setzero_ps();
      for (int64_t c = 0; c < d; c += 16) {
        const __mmask16 mask = first16(d - c);
        const __m512 n = _mm512_mul_ps(load_bf16(row + c, mask), f), g = load_bf16(dy_row + c, mask);
        const __m512 product = _mm512_mul_ps(g, n);
        dot = _mm512_fmadd_ps(product, _mm512_maskz_loadu_ps(mask, by + c), dot);
        _mm512_mask_storeu_ps(sum + c, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, sum + c), product));
      }
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / d);
      for (int64_t c = 0; c < d; c += 16) {
        const __mmask16 mask = first16(d - c);
        const __m512 n = _mm512_mul_ps(load_bf16(row + c, mask), f), g = load_bf16(dy_row + c, mask);
        const __m512 scaled = _mm512_mul_ps(g, _mm512_maskz_loadu_ps(mask, by + c));
        store_bf16(data(dx) + i * d + c, _mm512_mul_ps(f, _mm512_fnmadd_ps(n, mean, scaled)), mask);
      }
    }
  });
  float* total = dscale->typed_data();
  std::fill(total, total + d, 0.0f);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    for (int64_t c = 0; c < d; ++c) total[c] += sums[piece * d + c];
  }
  return ffi::Error::Success();
}

__m512 sigmoid(__m512 x) {
  const __m512 limit = _mm512_set1_ps(80);  // exp16 is made for less than 88
  const __m512 e = exp16(_mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), limit));
  return _mm512_div_ps(_mm512_set1_ps(1), _mm512_add_ps(_mm512_set1_ps(1), e));
}

ffi::Error swiglu(ffi::ThreadPool pool, Numbers gate, Numbers up, ffi::Result<Numbers> out) {
  const int64_t n = gate.element_count();
  over_rows(pool, n, 1, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += 16) {
      const __mmask16 mask = first16(to - i);
      const __m512 g = load_bf16(data(gate) + i, mask), u = load_bf16(data(up) + i, mask);
      store_bf16(data(out) + i, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u), mask);
    }
  });
  return ffi::Error::Success();
}

ffi::Error swiglu_gradient(ffi::ThreadPool pool, Numbers gate, Numbers up, Numbers d_out, ffi::Result<Numbers> d_gate,
                           ffi::Result<Numbers> d_up) {
  const __m512 one = _mm512_set1_ps(1);
  over_rows(pool, gate.element_count(), 1, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += 16) {
      const __mmask16 mask = first16(to - i);
      const __m512 g = load_bf16(data(gate) + i, mask), u = load_bf16(data(up) + i, mask);
      const __m512 d = load_bf16(data(d_out) + i, mask), s = sigmoid(g);
      const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one));
      store_bf16(data(d_gate) + i, _mm512_mul_ps(_mm512_mul_ps(d, u), slope), mask);
      store_bf16(data(d_up) + i, _mm512_mul_ps(d, _mm512_mul_ps(g, s)), mask);
    }
  });
  return ffi::Error::Success();
}

// x [b, s, h, k] turned by the angles of its place: cos and sin [b or 1, s, k / 2]; back: by minus the angles.
ffi::Error rotate(ffi::ThreadPool pool, Numbers x, Floats cos, Floats sin, ffi::Result<Numbers> y, bool back) {
  const auto shape = x.dimensions();
  const int64_t s = shape[1], h = shape[2], k = shape[3], half = k / 2;
  const bool shared = cos.dimensions()[0] == 1;
  const __m512 sign = _mm512_set1_ps(back ? -1 : 1);
  over_rows(pool, shape[0] * s, h * k, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t place = (shared ? i % s : i) * half;
      for (int64_t c = 0; c < half; c += 16) {
        const __mmask16 mask = first16(half - c);
        const __m512 a = _mm512_maskz_loadu_ps(mask, cos.typed_data() + place + c);
        const __m512 b = _mm512_mul_ps(sign, _mm512_maskz_loadu_ps(mask, sin.typed_data() + place + c));
        for (int64_t head = 0; head < h; ++head) {
          const int64_t at = (i * h + head) * k + c;
          const __m512 first_half = load_bf16(data(x) + at, mask), second = load_bf16(data(x) + at + half, mask);
          store_bf16(data(y) + at, _mm512_fnmadd_ps(second, b, _mm512_mul_ps(first_half, a)), mask);
          store_bf16(data(y) + at + half, _mm512_fmadd_ps(first_half, b, _mm512_mul_ps(second, a)), mask);
        }
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rms_norm, rms_norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Floats>()
                                  .Ret<Numbers>()
                                  .Ret<Floats>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rms_norm_gradient, rms_norm_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Numbers>()
                                  .Ret<Numbers>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    min_llm_swiglu, swiglu,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Numbers>().Arg<Numbers>().Ret<Numbers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_swiglu_gradient, swiglu_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Arg<Numbers>()
                                  .Ret<Numbers>()
                                  .Ret<Numbers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rotate, rotate,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Numbers>()
                                  .Attr<bool>("back"));

}  // namespace min_llm
