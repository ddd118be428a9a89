// How a product's work is shared out: few rows by panels, so that W is read once; many by rows, so that every thread
// keeps its own in its cache from one product to the next.
#pragma once

#include "panels.h"
#include "team.h"

namespace min_llm {

constexpr int64_t kManyRows = 64;  // of a thread

inline bool by_rows(const Team& team, int64_t rows) { return team.threads() > 1 && rows >= kManyRows * team.threads(); }

// task(from, to) for a share of the rows for each thread.
template <class Task>
void over_rows(Team& team, int64_t rows, int64_t unit, const Task& task) {
  const int64_t units = ceil_div(rows, unit), n = team.threads();
  team.run(n, [&](int64_t i) { task(units * i / n * unit, std::min(rows, units * (i + 1) / n * unit)); });
}

// task(from, to) for panels in as many pieces as the product is worth.
template <class Kind, class Task>
void over_panels(Team& team, int64_t rows, const Weights& w, const Task& task) {
  constexpr int64_t kAlone = 4000, kPiece = 100'000;  // nanoseconds
  const int64_t bytes = w.panels * w.panel_bytes;
  const int64_t cost = std::max(bytes / 24, rows * w.k * w.panels * kPanel / Kind::kSpeed);  // of one thread at its best
  const int64_t threads = cost < kAlone ? 1 : team.threads();
  const int64_t pieces = std::min(w.panels, threads * std::clamp<int64_t>(cost / threads / kPiece, 1, 8));
  team.run(pieces, [&](int64_t i) { task(w.panels * i / pieces, w.panels * (i + 1) / pieces); });
}

// A source as products of this kind take it: in place, or copied to scratch of the caller. team: shares the copying;
// null: the caller does it alone.
template <class Kind, int kTag>
Taken taken(Team* team, const Source& source) {
  if (Kind::takes(source)) {
    return {static_cast<const char*>(source.x.data), source.rows, source.x.stride * (source.x.wide ? 4 : 2)};
  }
  const int64_t stride = Kind::stride(source.k), rows = ceil_div(source.rows, kTile) * kTile;
  char* space = static_cast<char*>(scratch<kTag>(rows * stride + rows * sizeof(float)));
  float* scales = reinterpret_cast<float*>(space + rows * stride);
  const auto take = [&](int64_t from, int64_t to) { Kind::take(source, from, to, space, scales); };
  if (team == nullptr) {
    take(0, source.rows);
  } else {
    const int64_t pieces = std::clamp<int64_t>(source.rows * source.k / 4096, 1, source.rows);  // some microseconds
    team->run(pieces, [&](int64_t i) { take(source.rows * i / pieces, source.rows * (i + 1) / pieces); });
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

// The matrix of `layer` in a packed stack; scales: of int8, [layers][panels][32].
template <class Kind>
Weights weights_of(const ffi::AnyBuffer& w, int64_t k, int64_t layer, const float* scales = nullptr) {
  const int64_t panels = w.dimensions()[1];
  Weights all = Kind::weights(static_cast<const char*>(w.untyped_data()), k, panels);
  all.data += layer * panels * all.panel_bytes;
  if (scales != nullptr) all.scales = scales + layer * panels * kPanel;
  return all;
}

}  // namespace min_llm
