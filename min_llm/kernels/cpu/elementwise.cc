// What lies between the products of a layer, each in one pass over memory: RMSNorm, LayerNorm, SwiGLU, GELU,
// rotary embedding.
// bfloat16 in and out (norms also float32), float32 inside.
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

// n · scale + bias with n = (x − mean) · inverse. RMSNorm (kCentred false) has mean 0 and no bias; `mean` and `bias` are
// not read then.
// A row's sums have an order of their own, whatever the other rows.
template <bool kCentred, class Number>
void norm(ffi::ThreadPool& pool, const Number* x, int64_t rows, int64_t d, const float* by, const float* bias,
          Number* y, float* mean, float* inverse, float eps) {
  over_rows(pool, rows, d, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const Number* row = x + i * d;
      __m512 m = _mm512_setzero_ps();
      if constexpr (kCentred) {
        for (int64_t c = 0; c < d; c += 16) m = _mm512_add_ps(m, load16(row + c, first16(d - c)));
        mean[i] = _mm512_reduce_add_ps(m) / d;
        m = _mm512_set1_ps(mean[i]);
      }
      __m512 squares = _mm512_setzero_ps();
      for (int64_t c = 0; c < d; c += 16) {
        const __mmask16 mask = first16(d - c);
        const __m512 v = _mm512_maskz_sub_ps(mask, load16(row + c, mask), m);
        squares = _mm512_fmadd_ps(v, v, squares);
      }
      inverse[i] = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / d + eps);
      const __m512 f = _mm512_set1_ps(inverse[i]);
      for (int64_t c = 0; c < d; c += 16) {
        const __mmask16 mask = first16(d - c);
        const __m512 n = _mm512_mul_ps(_mm512_sub_ps(load16(row + c, mask), m), f);
        const __m512 shift = kCentred ? _mm512_maskz_loadu_ps(mask, bias + c) : _mm512_setzero_ps();
        store16(y + i * d + c, _mm512_fmadd_ps(n, _mm512_maskz_loadu_ps(mask, by + c), shift), mask);
      }
    }
  });
}

// `norm` of bfloat16 or float32 numbers.
template <bool kCentred>
ffi::Error any_norm(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const Floats& scale, const float* bias,
                    ffi::Result<ffi::AnyBuffer>& y, float* mean, float* inverse, float eps) {
  const int64_t d = x.dimensions().back(), rows = x.element_count() / d;
  const auto run = [&](const auto* from, auto* to) {
    norm<kCentred>(pool, from, rows, d, scale.typed_data(), bias, to, mean, inverse, eps);
  };
  if (x.element_type() == ffi::F32) {
    run(static_cast<const float*>(x.untyped_data()), static_cast<float*>(y->untyped_data()));
  } else {
    run(static_cast<const bf16*>(x.untyped_data()), static_cast<bf16*>(y->untyped_data()));
  }
  return ffi::Error::Success();
}

// With g = dy · scale: dx = inverse · (g − mean(g) − n · mean(g · n)), dscale = Σ dy · n, dbias = Σ dy; without the mean
// of g and dbias for RMSNorm. Sums are made piece by piece, so that the order, and with it the last bit, does not depend
// on which thread did what.
template <bool kCentred>
void norm_gradient(ffi::ThreadPool& pool, const Numbers& x, const Floats& scale, const float* mean,
                   const float* inverse, const Numbers& dy, bf16* dx, float* dscale, float* dbias) {
  const int64_t d = x.dimensions().back(), rows = rows_of(x), width = kCentred ? 2 * d : d;
  const int64_t pieces = ceil_div(rows, std::max<int64_t>(1, kTaskSize / d));
  const float* by = scale.typed_data();
  float* sums = static_cast<float*>(scratch<40>(pieces * width * sizeof(float)));
  over_rows(pool, rows, d, [&](int64_t piece, int64_t from, int64_t to) {
    float* sum = sums + piece * width;
    std::fill(sum, sum + width, 0.0f);
    for (int64_t i = from; i < to; ++i) {
      const bf16 *row = data(x) + i * d, *dy_row = data(dy) + i * d;
      const __m512 f = _mm512_set1_ps(inverse[i]), m = _mm512_set1_ps(kCentred ? mean[i] : 0);
      const auto normed = [&](int64_t c, __mmask16 mask) {
        return _mm512_mul_ps(_mm512_sub_ps(load_bf16(row + c, mask), m), f);
      };
      const auto add = [](float* to, __m512 value, __mmask16 mask) {
        _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), value));
      };
      __m512 dot = _mm512_setzero_ps(), plain = _mm512_setzero_ps();
      for (int64_t c = 0; c < d; c += 16) {
        const __mmask16 mask = first16(d - c);
        const __m512 g = load_bf16(dy_row + c, mask), product = _mm512_mul_ps(g, normed(c, mask));
        const __m512 s = _mm512_maskz_loadu_ps(mask, by + c);
        dot = _mm512_fmadd_ps(product, s, dot);
        add(sum + c, product, mask);
        if constexpr (kCentred) {
          plain = _mm512_fmadd_ps(g, s, plain);
          add(sum + d + c, g, mask);
        }
      }
      const __m512 along = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / d);
      const __m512 shift = _mm512_set1_ps(kCentred ? _mm512_reduce_add_ps(plain) / d : 0);
      for (int64_t c = 0; c < d; c += 16) {
        const __mmask16 mask = first16(d - c);
        const __m512 g = _mm512_fmsub_ps(load_bf16(dy_row + c, mask), _mm512_maskz_loadu_ps(mask, by + c), shift);
        store_bf16(dx + i * d + c, _mm512_mul_ps(f, _mm512_fnmadd_ps(normed(c, mask), along, g)), mask);
      }
    }
  });
  std::fill(dscale, dscale + d, 0.0f);
  if constexpr (kCentred) std::fill(dbias, dbias + d, 0.0f);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const float* sum = sums + piece * width;
    for (int64_t c = 0; c < d; ++c) dscale[c] += sum[c];
    if constexpr (kCentred) {
      for (int64_t c = 0; c < d; ++c) dbias[c] += sum[d + c];
    }
  }
}

ffi::Error rms_norm(ffi::ThreadPool pool, ffi::AnyBuffer x, Floats scale, ffi::Result<ffi::AnyBuffer> y,
                    ffi::Result<Floats> inverse, float eps) {
  return any_norm<false>(pool, x, scale, nullptr, y, nullptr, inverse->typed_data(), eps);
}

ffi::Error rms_norm_gradient(ffi::ThreadPool pool, Numbers x, Floats scale, Floats inverse, Numbers dy,
                             ffi::Result<Numbers> dx, ffi::Result<Floats> dscale) {
  norm_gradient<false>(pool, x, scale, nullptr, inverse.typed_data(), dy, data(dx), dscale->typed_data(), nullptr);
  return ffi::Error::Success();
}

ffi::Error layer_norm(ffi::ThreadPool pool, ffi::AnyBuffer x, Floats scale, Floats bias,
                      ffi::Result<ffi::AnyBuffer> y, ffi::Result<Floats> mean, ffi::Result<Floats> inverse, float eps) {
  return any_norm<true>(pool, x, scale, bias.typed_data(), y, mean->typed_data(), inverse->typed_data(), eps);
}

ffi::Error layer_norm_gradient(ffi::ThreadPool pool, Numbers x, Floats scale, Floats mean, Floats inverse, Numbers dy,
                               ffi::Result<Numbers> dx, ffi::Result<Floats> dscale, ffi::Result<Floats> dbias) {
  norm_gradient<true>(pool, x, scale, mean.typed_data(), inverse.typed_data(), dy, data(dx), dscale->typed_data(),
                      dbias->typed_data());
  return ffi::Error::Success();
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

// GELU in its tanh form is x · sigmoid(2u), u = √(2/π) · (x + 0.044715 x³), since (1 + tanh u) / 2 = sigmoid(2u).
constexpr float kGelu = 1.5957691216f, kCubic = 0.044715f;

__m512 gelu_gate(__m512 x, __m512 squared) {
  const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(kCubic), squared, _mm512_set1_ps(1));
  return sigmoid(_mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(kGelu), x), inner));
}

ffi::Error gelu(ffi::ThreadPool pool, Numbers x, ffi::Result<Numbers> y) {
  over_rows(pool, x.element_count(), 1, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += 16) {
      const __mmask16 mask = first16(to - i);
      const __m512 v = load_bf16(data(x) + i, mask);
      store_bf16(data(y) + i, _mm512_mul_ps(v, gelu_gate(v, _mm512_mul_ps(v, v))), mask);
    }
  });
  return ffi::Error::Success();
}

// With s = sigmoid(2u): s + x · s · (1 − s) · (2u)'. From |x| = 100 on s is 0 or 1; x is held there so that (2u)' stays
// finite.
ffi::Error gelu_gradient(ffi::ThreadPool pool, Numbers x, Numbers dy, ffi::Result<Numbers> dx) {
  const __m512 one = _mm512_set1_ps(1), lowest = _mm512_set1_ps(-100), highest = _mm512_set1_ps(100);
  over_rows(pool, x.element_count(), 1, [&](int64_t, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i += 16) {
      const __mmask16 mask = first16(to - i);
      const __m512 v = _mm512_min_ps(_mm512_max_ps(load_bf16(data(x) + i, mask), lowest), highest);
      const __m512 squared = _mm512_mul_ps(v, v), s = gelu_gate(v, squared);
      const __m512 slope = _mm512_mul_ps(_mm512_set1_ps(kGelu),
                                         _mm512_fmadd_ps(_mm512_set1_ps(3 * kCubic), squared, one));
      const __m512 bend = _mm512_mul_ps(_mm512_mul_ps(v, slope), _mm512_mul_ps(s, _mm512_sub_ps(one, s)));
      store_bf16(data(dx) + i, _mm512_mul_ps(load_bf16(data(dy) + i, mask), _mm512_add_ps(s, bend)), mask);
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
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Ret<ffi::AnyBuffer>()
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_layer_norm, layer_norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_layer_norm_gradient, layer_norm_gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Numbers>()
                                  .Ret<Numbers>()
                                  .Ret<Floats>()
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_gelu, gelu,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Numbers>().Ret<Numbers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    min_llm_gelu_gradient, gelu_gradient,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Numbers>().Arg<Numbers>().Ret<Numbers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rotate, rotate,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Numbers>()
                                  .Attr<bool>("back"));

}  // namespace min_llm
