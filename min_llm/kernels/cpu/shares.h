// How a product's work is shared out: few rows by panels, so that W is read once; many by rows, so that every thread
// keeps its own in its cache from one product to the next.
#pragma once

#include "panels.h"
#include "team.h"

namespace min_llm {

// Who works on a call: our own threads, which are there at once, or for many rows XLA's pool. Its threads look out for
// more work for a while after each piece, and three threads on two processors would wait for each other.
class Workers {
 public:
  // nanoseconds: what the call would take one thread at its best.
  Workers(ffi::ThreadPool& pool, int64_t rows, int64_t nanoseconds)
      : pool_(pool), team_(Team::get(pool.num_threads())), many_(rows >= kMany),
        threads_(nanoseconds < kAlone ? 1 : pool.num_threads()), pieces_(nanoseconds / threads_ / kPiece) {}

  int64_t threads() const { return threads_; }

  // task(from, to) for parts of [0, n), in as many pieces as the call is worth.
  template <class Task>
  void share(int64_t n, const Task& task) const {
    const int64_t pieces = std::min(n, threads_ * std::clamp<int64_t>(pieces_, 1, 8));
    run(pieces, [&](int64_t i) { task(n * i / pieces, n * (i + 1) / pieces); });
  }

  // task(from, to) for an equal share of the rows for each thread, in whole units.
  template <class Task>
  void share_rows(int64_t rows, int64_t unit, const Task& task) const {
    const int64_t units = ceil_div(rows, unit), n = threads_;
    run(n, [&](int64_t i) { task(units * i / n * unit, std::min(rows, units * (i + 1) / n * unit)); });
  }

 private:
  static constexpr int64_t kAlone = 4'000, kPiece = 100'000;  // nanoseconds
  static constexpr int64_t kMany = 64;

  template <class Task>
  void run(int64_t n, const Task& task) const {
    if (many_ && threads_ > 1) {
      parallel(pool_, n, task);
    } else {
      team_.run(n, task);
    }
  }

  ffi::ThreadPool& pool_;
  Team& team_;
  const bool many_;
  const int64_t threads_, pieces_;
};

// What products with `matrices` like w cost one thread: reading them or multiplying, whichever takes longer.
template <class Kind>
int64_t cost(int64_t rows, const Weights& w, int64_t matrices = 1) {
  const int64_t bytes = w.panels * w.panel_bytes, products = rows * w.k * w.panels * kPanel;
  return matrices * std::max(bytes / Kind::kPace, products / Kind::kSpeed);
}

// Whether rows are shared out, not panels: they are many enough that reading W in every thread does not count.
inline bool by_rows(const Workers& workers, int64_t rows) {
  constexpr int64_t kMany = 64;  // of a thread
  return workers.threads() > 1 && rows >= kMany * workers.threads();
}

// A source as products of this kind take it: in place, or copied to scratch of the caller. workers: share the copying;
// null: the caller does it alone.
template <class Kind, int kTag>
Taken taken(const Workers* workers, const Source& source) {
  if (Kind::takes(source)) {
    return {static_cast<const char*>(source.x.data), source.rows, source.x.stride * (source.x.wide ? 4 : 2)};
  }
  const int64_t stride = Kind::stride(source.k), rows = ceil_div(source.rows, kTile) * kTile;
  char* space = static_cast<char*>(scratch<kTag>(rows * stride + rows * sizeof(float)));
  float* scales = reinterpret_cast<float*>(space + rows * stride);
  const auto take = [&](int64_t from, int64_t to) { Kind::take(source, from, to, space, scales); };
  if (workers == nullptr || source.rows * source.k < 4096) {  // some microseconds
    take(0, source.rows);
  } else {
    workers->share(source.rows, take);
  }
  return {space, source.rows, stride, scales};
}

inline Source source_of(const ffi::AnyBuffer& x) {
  const int64_t n = x.dimensions()[0], k = x.dimensions()[1];
  return {{x.untyped_data(), k, false, x.element_type() == ffi::F32}, n, k};
}

inline Matrix matrix_of(ffi::Result<ffi::AnyBuffer>& y) {
  const int64_t columns = y->dimensions()[1];
  return {static_cast<char*>(y->untyped_data()), columns, columns, y->element_type() == ffi::F32};
}

// The matrix of `layer` in a packed stack, with its scales if it is quantized. A layer that is not there is the nearest
// that is, as where XLA slices: nothing else is read.
template <class Kind>
Weights weights_of(const ffi::AnyBuffer& w, int64_t k, int64_t layer, const float* scales) {
  const int64_t panels = w.dimensions()[1], bytes = Kind::panel_bytes(k);
  const int64_t skipped = std::clamp<int64_t>(layer, 0, w.dimensions()[0] - 1) * panels;
  const char* data = static_cast<const char*>(w.untyped_data()) + skipped * bytes;
  return {data, k, panels, bytes, scales == nullptr ? nullptr : scales + skipped * Kind::panel_scales(k)};
}

// Operands of a call: packed stacks, and after them their scales if they are quantized.
inline const float* scales_of(const ffi::RemainingArgs& operands, size_t matrices, size_t i) {
  return operands.size() == matrices ? nullptr : operands.get<ffi::Buffer<ffi::F32>>(matrices + i)->typed_data();
}

// f(kind of the weights).
template <class F>
ffi::Error for_kind(const ffi::RemainingArgs& operands, const F& f) {
  switch (operands.get<ffi::AnyBuffer>(0)->element_type()) {
    case ffi::F32: return f(Float32{});
    case ffi::BF16: return f(Bfloat16{});
    case ffi::S8: return f(Int8{});
    default: return f(Int4{});
  }
}

}  // namespace min_llm
