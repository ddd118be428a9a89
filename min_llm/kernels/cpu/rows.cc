// Products of a few rows with a matrix that was packed once: Y[n, m] = X[n, k] W[k, m], for decoding, where n is the
// number of sequences and reading W is the work, and for the longer pieces of a prefill.
#include "shares.h"

namespace min_llm {
namespace {

template <class Kind>
void multiply_rows(ffi::ThreadPool& pool, const Source& x, const Weights& w, const Matrix& y) {
  const Workers workers(pool, cost<Kind>(x.rows, w));
  if (by_rows(workers, x.rows)) {
    workers.share_rows(x.rows, Kind::kUnit, [&](int64_t from, int64_t to) {
      multiply_panels<Kind>(taken<Kind, 42>(nullptr, x.part(from, to)), w, 0, w.panels, y.from(from));
    });
  } else {
    const Taken rows = taken<Kind, 42>(&workers, x);
    workers.share(w.panels, [&](int64_t from, int64_t to) { multiply_panels<Kind>(rows, w, from, to, y); });
  }
}

// w: the packed matrices of all layers; only that of `layer` is read.
ffi::Error rows(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::Buffer<ffi::S32> layer,
                ffi::Result<ffi::AnyBuffer> y) {
  const Source source = source_of(x);
  if (w.element_type() == ffi::F32) {
    multiply_rows<Float32>(pool, source, weights_of<Float32>(w, source.k, *layer.typed_data()), matrix_of(y));
  } else {
    multiply_rows<Bfloat16>(pool, source, weights_of<Bfloat16>(w, source.k, *layer.typed_data()), matrix_of(y));
  }
  return ffi::Error::Success();
}

ffi::Error rows_of_int8(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::Buffer<ffi::F32> scales,
                        ffi::Buffer<ffi::S32> layer, ffi::Result<ffi::AnyBuffer> y) {
  const Source source = source_of(x);
  const Weights weights = weights_of<Int8>(w, source.k, *layer.typed_data(), scales.typed_data());
  multiply_rows<Int8>(pool, source, weights, matrix_of(y));
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
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());

}  // namespace min_llm
