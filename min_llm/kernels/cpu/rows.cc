// Products of a few rows with matrices that were packed once: Y[n, m] = X[n, k] W[k, m], for decoding, where n is the
// number of sequences and reading W is the work, and for the longer pieces of a prefill. Several W of one X in one call.
#include <vector>

#include "shares.h"

namespace min_llm {
namespace {

struct Product {
  Weights w;
  Matrix y;
};

template <class Kind>
void multiply_rows(ffi::ThreadPool& pool, const Source& x, const std::vector<Product>& products) {
  int64_t nanoseconds = 0, panels = 0;
  for (const Product& p : products) nanoseconds += cost<Kind>(x.rows, p.w), panels += p.w.panels;
  const Workers workers(pool, x.rows, nanoseconds);
  if (by_rows(workers, x.rows)) {
    workers.share_rows(x.rows, Kind::kUnit, [&](int64_t from, int64_t to) {
      const Taken rows = taken<Kind, 42>(nullptr, x.part(from, to));
      for (const Product& p : products) multiply_panels<Kind>(rows, p.w, 0, p.w.panels, p.y.from(from));
    });
  } else {
    const Taken rows = taken<Kind, 42>(&workers, x);
    workers.share(panels, [&](int64_t from, int64_t to) {
      for (const Product& p : products) {
        multiply_panels<Kind>(rows, p.w, std::clamp<int64_t>(from, 0, p.w.panels), std::min(to, p.w.panels), p.y);
        from -= p.w.panels, to -= p.w.panels;
      }
    });
  }
}

// operands: packed stacks of all layers, of which only the matrices of `layer` are read, and their scales.
ffi::Error rows(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::RemainingArgs operands,
                ffi::RemainingRets results) {
  const Source source = source_of(x);
  return for_kind(operands, [&](auto kind) {
    using Kind = decltype(kind);
    std::vector<Product> products;
    for (size_t i = 0; i < results.size(); ++i) {
      ffi::Result<ffi::AnyBuffer> y = *results.get<ffi::AnyBuffer>(i);
      products.push_back({weights_of<Kind>(*operands.get<ffi::AnyBuffer>(i), source.k, *layer.typed_data(),
                                           scales_of(operands, results.size(), i)),
                          matrix_of(y)});
    }
    multiply_rows<Kind>(pool, source, products);
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_rows, rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .RemainingRets());

}  // namespace min_llm
