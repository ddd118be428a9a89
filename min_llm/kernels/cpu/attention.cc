// Grouped-query attention on CPUs with AMX, forward and backward (FlashAttention, Dao et al. 2022): the scores exist one
// piece at a time, in the caches. Arrays keep the layout that the projections give them, [batch, place, head, K].
#include <cmath>
#include <limits>

#include "pool.h"
#include "tiles.h"
#include "vector.h"

namespace min_llm {
namespace {

constexpr int64_t kKeys = 512;      // keys whose scores are held at once
constexpr int64_t kQueries = 256;   // queries of a piece of the backward pass
constexpr int64_t kCell = kBlock * kBlock;

int64_t padded(int64_t n) { return ceil_div(n, kBlock) * kBlock; }

// Which keys a query sees (kernels/mask.py): causal, a window, equal segments.
struct Mask {
  bool causal;
  int64_t window;  // 0: none
  const int32_t *q_segments, *kv_segments;  // of this row of the batch, or null
  int64_t queries, keys;

  // The range of keys that queries [from, to) can see.
  int64_t first_key(int64_t from) const { return window ? std::max<int64_t>(0, from - window + 1) : 0; }
  int64_t last_key(int64_t to) const { return causal ? std::min(keys, to) : keys; }

  // Whether every query of a block sees every key of a block.
  bool all(int64_t query, int64_t key) const {
    return !q_segments && key + kBlock <= keys && query + kBlock <= queries &&
           (!causal || key + kBlock - 1 <= query) && (!window || query + kBlock - 1 - key < window);
  }

  // The visible ones of 16 keys from `key` on, for one query.
  __mmask16 keys16(int64_t query, int64_t key) const {
    __mmask16 seen = first16(keys - key);
    if (causal) seen &= first16(query - key + 1);
    if (window) seen &= ~first16(query - window + 1 - key);
    if (q_segments) {
      const __m512i other = _mm512_maskz_loadu_epi32(seen, kv_segments + key);
      seen = _mm512_mask_cmpeq_epi32_mask(seen, other, _mm512_set1_epi32(q_segments[query]));
    }
    return seen;
  }

  // Those of 16 queries from `query` on that see one key.
  __mmask16 queries16(int64_t query, int64_t key) const {
    if (key >= keys) return 0;
    __mmask16 seen = first16(queries - query);
    if (causal) seen &= ~first16(key - query);
    if (window) seen &= first16(key + window - query);
    if (q_segments) {
      const __m512i other = _mm512_maskz_loadu_epi32(seen, q_segments + query);
      seen = _mm512_mask_cmpeq_epi32_mask(seen, other, _mm512_set1_epi32(kv_segments[key]));
    }
    return seen;
  }
};

struct Shape {
  int64_t batch, s, t, heads, groups, k;
  bool causal;
  int64_t window;
  const int32_t *q_segments, *kv_segments;

  int64_t q_row() const { return heads * k; }    // from a place to the next
  int64_t kv_row() const { return groups * k; }
  int64_t q_at(int64_t b, int64_t h) const { return (b * s * heads + h) * k; }
  int64_t kv_at(int64_t b, int64_t g) const { return (b * t * groups + g) * k; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(k)); }
  Mask mask(int64_t b) const {
    return {causal, window, q_segments ? q_segments + b * s : nullptr,
            kv_segments ? kv_segments + b * t : nullptr, s, t};
  }
};

Operand rows_of(const bf16* data, int64_t stride) { return {data, stride, false, false}; }
Operand columns_of(const bf16* data, int64_t stride) { return {data, stride, true, false}; }

template <int kTag>
bf16* tiles_of(int64_t rows, int64_t columns) {
  return static_cast<bf16*>(scratch<kTag>(padded(rows) * padded(columns) * sizeof(bf16)));
}

template <int kTag>
float* floats(int64_t n) {
  return static_cast<float*>(scratch<kTag>(n * sizeof(float)));
}

// One head of one row of the batch: out and the log-sum-exp of every query.
void forward_head(const Shape& shape, int64_t b, int64_t h, const bf16* q, const bf16* k, const bf16* v, bf16* out,
                  float* lse) {
  const int64_t g = h / (shape.heads / shape.groups), depth = shape.k, steps = depth / kStep;
  const Mask mask = shape.mask(b);
  q += shape.q_at(b, h), out += shape.q_at(b, h), k += shape.kv_at(b, g), v += shape.kv_at(b, g);
  lse += (b * shape.heads + h) * shape.s;
  const int64_t k_panel = steps * 2 * kTileSize, v_panel = padded(shape.t) / kStep * 2 * kTileSize;
  bf16* k_tiles = tiles_of<10>(shape.t, depth);  // Kᵀ: [panel of keys][step of depth]
  bf16* v_tiles = tiles_of<11>(shape.t, depth);  // V: [panel of depth][step of keys]
  pack_b(columns_of(k, shape.kv_row()), depth, shape.t, k_tiles, k_panel);
  pack_b(rows_of(v, shape.kv_row()), shape.t, depth, v_tiles, v_panel);
  bf16* q_tiles = tiles_of<12>(kBlock, depth);
  float* scores = floats<13>(kKeys * kBlock);  // [block of keys][32][32]
  bf16* weights = static_cast<bf16*>(scratch<14>(kKeys * kBlock * sizeof(bf16)));  // as tiles of A
  float* sums = floats<15>(depth * kBlock);    // [panel of depth][32][32]
  const __m512 scale = _mm512_set1_ps(shape.scale());

  for (int64_t query = 0; query < shape.s; query += kBlock) {
    const int64_t rows = std::min(kBlock, shape.s - query);
    pack_a(rows_of(q + query * shape.q_row(), shape.q_row()), rows, depth, q_tiles, 0);
    float largest[kBlock], total[kBlock];
    std::fill(largest, largest + kBlock, -std::numeric_limits<float>::infinity());
    std::fill(total, total + kBlock, 0.0f);
    bool begun = false;
    const int64_t stop = mask.last_key(query + rows);
    for (int64_t from = mask.first_key(query) / kBlock * kBlock; from < stop; from += kKeys) {
      const int64_t blocks = ceil_div(std::min(kKeys, stop - from), kBlock);
      Write nothing;
      for (int64_t j = 0; j < blocks; ++j) {
        multiply(packed_rows(q_tiles), k_tiles + (from / kBlock + j) * k_panel, steps, scores + j * kCell, false,
                 nothing);
      }
      for (int64_t i = 0; i < kBlock; ++i) {
        float* row = scores + i * kBlock;
        __m512 top = _mm512_set1_ps(largest[i]);
        if (i < rows) {
          for (int64_t j = 0; j < blocks; ++j) {
            const int64_t key = from + j * kBlock;
            float* cell = row + j * kCell;
            if (mask.all(query, key)) {
              top = _mm512_max_ps(top, _mm512_max_ps(_mm512_load_ps(cell), _mm512_load_ps(cell + 16)));
            } else {
              const __mmask16 left = mask.keys16(query + i, key), right = mask.keys16(query + i, key + 16);
              const __m512 hidden = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
              const __m512 low = _mm512_mask_mov_ps(hidden, left, _mm512_load_ps(cell));
              const __m512 high = _mm512_mask_mov_ps(hidden, right, _mm512_load_ps(cell + 16));
              _mm512_store_ps(cell, low);
              _mm512_store_ps(cell + 16, high);
              top = _mm512_max_ps(top, _mm512_max_ps(low, high));
            }
          }
        }
        const float before = largest[i], now = _mm512_reduce_max_ps(top);
        const bool any = now > -std::numeric_limits<float>::infinity();
        __m512 sum = _mm512_setzero_ps();
        bf16* to = weights + i / kTile * kTileSize + i % kTile * kStep;
        const __m512 shift = _mm512_mul_ps(_mm512_set1_ps(any ? now : 0), scale);
        for (int64_t j = 0; j < blocks; ++j, to += 2 * kTileSize) {
          const float* cell = row + j * kCell;
          __m512 low = _mm512_setzero_ps(), high = low;
          if (i < rows) {
            low = exp16(_mm512_max_ps(_mm512_fmsub_ps(_mm512_load_ps(cell), scale, shift), _mm512_set1_ps(-200)));
            high = exp16(_mm512_max_ps(_mm512_fmsub_ps(_mm512_load_ps(cell + 16), scale, shift), _mm512_set1_ps(-200)));
          }
          sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
          _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
        const float kept = begun && before > -std::numeric_limits<float>::infinity()
                               ? std::exp((before - now) * shape.scale())
                               : 0;
        largest[i] = now;
        total[i] = total[i] * kept + _mm512_reduce_add_ps(sum);
        if (begun && kept != 1) {
          for (int64_t p = 0; p < steps; ++p) {
            float* old = sums + p * kCell + i * kBlock;
            _mm512_store_ps(old, _mm512_mul_ps(_mm512_load_ps(old), _mm512_set1_ps(kept)));
            _mm512_store_ps(old + 16, _mm512_mul_ps(_mm512_load_ps(old + 16), _mm512_set1_ps(kept)));
          }
        }
      }
      for (int64_t p = 0; p < steps; ++p) {
        multiply(packed_rows(weights), v_tiles + p * v_panel + from / kStep * 2 * kTileSize, blocks,
                 sums + p * kCell, begun, nothing);
      }
      begun = true;
    }
    for (int64_t i = 0; i < rows; ++i) {
      const __m512 inverse = _mm512_set1_ps(total[i] > 0 ? 1 / total[i] : 0);
      for (int64_t p = 0; p < steps; ++p) {
        const float* sum = sums + p * kCell + i * kBlock;
        bf16* to = out + (query + i) * shape.q_row() + p * kBlock;
        store_bf16(to, _mm512_mul_ps(_mm512_load_ps(sum), inverse));
        store_bf16(to + 16, _mm512_mul_ps(_mm512_load_ps(sum + 16), inverse));
      }
      lse[query + i] = total[i] > 0 ? largest[i] * shape.scale() + std::log(total[i])
                                    : std::numeric_limits<float>::infinity();
    }
  }
}

struct Gradients {
  bf16 *dq, *dk, *dv;
};

// One key-value head of one row of the batch, with all its query heads. Scores are recomputed, transposed, Sᵀ = K Qᵀ,
// so that Pᵀ and dSᵀ come out as the left operands of dV = Pᵀ dO and dK = dSᵀ Q; dQᵀ = Kᵀ dSᵀ is turned at the end.
void backward_group(const Shape& shape, int64_t b, int64_t g, const bf16* q, const bf16* k, const bf16* v,
                    const bf16* out, const float* lse, const bf16* d_out, Gradients to) {
  const int64_t depth = shape.k, steps = depth / kStep, shared = shape.heads / shape.groups;
  const int64_t key_blocks = ceil_div(shape.t, kBlock);
  const Mask mask = shape.mask(b);
  k += shape.kv_at(b, g), v += shape.kv_at(b, g), to.dk += shape.kv_at(b, g), to.dv += shape.kv_at(b, g);
  const int64_t strip = steps * 2 * kTileSize;  // 32 keys or queries, as deep as a head
  bf16* k_rows = tiles_of<20>(shape.t, depth);
  bf16* v_rows = tiles_of<21>(shape.t, depth);
  bf16* k_turned = tiles_of<22>(shape.t, depth);  // Kᵀ as rows of A: [strip of depth][step of keys]
  const int64_t turned_strip = key_blocks * 2 * kTileSize;
  pack_a(rows_of(k, shape.kv_row()), shape.t, depth, k_rows, strip);
  pack_a(rows_of(v, shape.kv_row()), shape.t, depth, v_rows, strip);
  pack_a(columns_of(k, shape.kv_row()), depth, shape.t, k_turned, turned_strip);
  float* dk = floats<23>(key_blocks * steps * kCell);  // [block of keys][panel of depth][32][32]
  float* dv = floats<24>(key_blocks * steps * kCell);
  std::fill(dk, dk + key_blocks * steps * kCell, 0.0f);
  std::fill(dv, dv + key_blocks * steps * kCell, 0.0f);
  // of a piece of queries:
  bf16* q_turned = tiles_of<25>(kQueries, depth);  // Qᵀ: [panel of queries][step of depth]
  bf16* do_turned = tiles_of<26>(kQueries, depth);
  bf16* q_tiles = tiles_of<27>(kQueries, depth);  // Q: [panel of depth][step of queries]
  bf16* do_tiles = tiles_of<28>(kQueries, depth);
  const int64_t piece_panel = kQueries / kStep * 2 * kTileSize;
  bf16* p_strip = static_cast<bf16*>(scratch<29>(kBlock * kQueries * sizeof(bf16)));   // Pᵀ as tiles of A
  bf16* ds_strip = static_cast<bf16*>(scratch<30>(kBlock * kQueries * sizeof(bf16)));  // dSᵀ as tiles of A
  bf16* ds_tiles = static_cast<bf16*>(  // dSᵀ as tiles of B: [panel of queries][step of keys]
      scratch<31>(key_blocks * kBlock * kQueries * sizeof(bf16)));
  float* score = floats<32>(2 * kCell);
  float *lse_piece = floats<33>(kQueries), *delta = floats<34>(kQueries);
  const __m512 scale = _mm512_set1_ps(shape.scale());
  Write nothing;

  for (int64_t r = 0; r < shared; ++r) {
    const int64_t h = g * shared + r;
    const bf16 *q_head = q + shape.q_at(b, h), *o_head = out + shape.q_at(b, h), *do_head = d_out + shape.q_at(b, h);
    for (int64_t query = 0; query < shape.s; query += kQueries) {
      const int64_t count = std::min(kQueries, shape.s - query), panels = ceil_div(count, kBlock);
      const int64_t at = query * shape.q_row();
      pack_b(columns_of(q_head + at, shape.q_row()), depth, count, q_turned, strip);
      pack_b(columns_of(do_head + at, shape.q_row()), depth, count, do_turned, strip);
      pack_b(rows_of(q_head + at, shape.q_row()), count, depth, q_tiles, piece_panel);
      pack_b(rows_of(do_head + at, shape.q_row()), count, depth, do_tiles, piece_panel);
      for (int64_t i = 0; i < kQueries; ++i) {
        __m512 dot = _mm512_setzero_ps();
        for (int64_t c = 0; i < count && c < depth; c += 16) {
          const int64_t place = at + i * shape.q_row() + c;
          dot = _mm512_fmadd_ps(load_bf16(o_head + place), load_bf16(do_head + place), dot);
        }
        delta[i] = _mm512_reduce_add_ps(dot);
        lse_piece[i] = i < count ? lse[(b * shape.heads + h) * shape.s + query + i] : 0;
      }
      const int64_t first = mask.first_key(query) / kBlock, last = ceil_div(mask.last_key(query + count), kBlock);
      for (int64_t j = first; j < last; ++j) {
        const int64_t key = j * kBlock;
        // queries before the key see nothing of it, nor do those beyond the window
        const int64_t from = mask.causal ? std::max<int64_t>(0, key - query) / kBlock : 0;
        const int64_t seen = mask.window ? std::min(count, key + kBlock - 1 + mask.window - query) : count;
        const int64_t until = std::min(panels, ceil_div(seen, kBlock));
        for (int64_t p = 0; p < panels; ++p) {
          bf16* p_tile = p_strip + p * 2 * kTileSize;
          bf16* ds_tile = ds_strip + p * 2 * kTileSize;
          bf16* ds_b = ds_tiles + (p * key_blocks + j) * 2 * kTileSize;
          if (p < from || p >= until) {
            std::fill(ds_b, ds_b + 2 * kTileSize, 0);
            continue;
          }
          float* dp = score + kCell;
          multiply(packed_rows(k_rows + j * strip), q_turned + p * strip, steps, score, false, nothing);
          multiply(packed_rows(v_rows + j * strip), do_turned + p * strip, steps, dp, false, nothing);
          const bool all = mask.all(query + p * kBlock, key);
          const __m512 l0 = _mm512_load_ps(lse_piece + p * kBlock), l1 = _mm512_load_ps(lse_piece + p * kBlock + 16);
          const __m512 d0 = _mm512_load_ps(delta + p * kBlock), d1 = _mm512_load_ps(delta + p * kBlock + 16);
          __m512i even = _mm512_setzero_si512();
          for (int64_t i = 0; i < kBlock; ++i) {
            __mmask16 left = 0xffff, right = 0xffff;
            if (!all) {
              left = mask.queries16(query + p * kBlock, key + i);
              right = mask.queries16(query + p * kBlock + 16, key + i);
            }
            const float* s_row = score + i * kBlock;
            const float* dp_row = dp + i * kBlock;
            const __m512 w0 = _mm512_maskz_mov_ps(left, exp16(_mm512_fmsub_ps(_mm512_load_ps(s_row), scale, l0)));
            const __m512 w1 =
                _mm512_maskz_mov_ps(right, exp16(_mm512_fmsub_ps(_mm512_load_ps(s_row + 16), scale, l1)));
            const __m512 g0 = _mm512_mul_ps(_mm512_mul_ps(w0, scale), _mm512_sub_ps(_mm512_load_ps(dp_row), d0));
            const __m512 g1 = _mm512_mul_ps(_mm512_mul_ps(w1, scale), _mm512_sub_ps(_mm512_load_ps(dp_row + 16), d1));
            const int64_t place = i / kTile * kTileSize + i % kTile * kStep;
            const __m512i ds = (__m512i)_mm512_cvtne2ps_pbh(g1, g0);
            _mm512_store_si512(p_tile + place, (__m512i)_mm512_cvtne2ps_pbh(w1, w0));
            _mm512_store_si512(ds_tile + place, ds);
            if (i % 2 == 0) {
              even = ds;
            } else {
              __m512i pair[2];
              interleave_rows(even, ds, pair);
              _mm512_store_si512(ds_b + i / 2 * kStep, pair[0]);
              _mm512_store_si512(ds_b + kTileSize + i / 2 * kStep, pair[1]);
            }
          }
        }
        if (from >= until) continue;
        for (int64_t p = 0; p < steps; ++p) {
          const int64_t skip = from * 2 * kTileSize, cell = (j * steps + p) * kCell;
          multiply(packed_rows(p_strip + skip), do_tiles + p * piece_panel + skip, until - from, dv + cell, true, nothing);
          multiply(packed_rows(ds_strip + skip), q_tiles + p * piece_panel + skip, until - from, dk + cell, true, nothing);
        }
      }
      for (int64_t p = 0; p < panels; ++p) {
        for (int64_t c = 0; c < steps; ++c) {  // dQᵀ: 32 of the depth x 32 queries
          multiply(packed_rows(k_turned + c * turned_strip + first * 2 * kTileSize),
                   ds_tiles + (p * key_blocks + first) * 2 * kTileSize, last - first, score, false, nothing);
          for (int64_t i = 0; i < std::min(kBlock, count - p * kBlock); i += kTile) {
            for (int64_t half = 0; half < kBlock; half += kTile) {
              __m512i cell[16];
              for (int64_t row = 0; row < kTile; ++row) cell[row] = _mm512_load_si512(score + (half + row) * kBlock + i);
              transpose16(cell);
              for (int64_t row = 0; row < std::min(kTile, count - p * kBlock - i); ++row) {
                bf16* place = to.dq + shape.q_at(b, h) + at + (p * kBlock + i + row) * shape.q_row() + c * kBlock + half;
                store_bf16(place, _mm512_castsi512_ps(cell[row]));
              }
            }
          }
        }
      }
    }
  }
  for (int64_t j = 0; j < key_blocks; ++j) {
    for (int64_t p = 0; p < steps; ++p) {
      const int64_t rows = std::min(kBlock, shape.t - j * kBlock), place = j * kBlock * shape.kv_row() + p * kBlock;
      const int64_t row = shape.kv_row() * 2, cell = (j * steps + p) * kCell;
      Write{dk + cell, reinterpret_cast<char*>(to.dk + place), row, false, rows, first(kBlock)}.some(rows);
      Write{dv + cell, reinterpret_cast<char*>(to.dv + place), row, false, rows, first(kBlock)}.some(rows);
    }
  }
}

using Tensor = ffi::Buffer<ffi::BF16, 4>;
using Segments = ffi::Buffer<ffi::S32, 2>;
using Sums = ffi::Buffer<ffi::F32, 3>;

Shape shape_of(const Tensor& q, const Tensor& k, const Segments& q_segments, const Segments& kv_segments, bool causal,
               int64_t window) {
  const auto a = q.dimensions(), b = k.dimensions();
  const bool packed = q_segments.element_count() > 0;  // [0, 0] stands for none
  return {a[0], a[1], b[1], a[2], b[2], a[3], causal, window, packed ? q_segments.typed_data() : nullptr,
          packed ? kv_segments.typed_data() : nullptr};
}

const bf16* data(const Tensor& x) { return static_cast<const bf16*>(x.untyped_data()); }
bf16* data(ffi::Result<Tensor>& x) { return static_cast<bf16*>(x->untyped_data()); }

ffi::Error forward(ffi::ThreadPool pool, Tensor q, Tensor k, Tensor v, Segments q_segments, Segments kv_segments,
                   ffi::Result<Tensor> out, ffi::Result<Sums> lse, bool causal, int64_t window) {
  const Shape shape = shape_of(q, k, q_segments, kv_segments, causal, window);
  parallel(pool, shape.batch * shape.heads, [&](int64_t i) {
    TileScope tiles;
    forward_head(shape, i / shape.heads, i % shape.heads, data(q), data(k), data(v), data(out), lse->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, Tensor q, Tensor k, Tensor v, Segments q_segments, Segments kv_segments,
                    Tensor out, Sums lse, Tensor d_out, ffi::Result<Tensor> dq,
                    ffi::Result<Tensor> dk, ffi::Result<Tensor> dv, bool causal, int64_t window) {
  const Shape shape = shape_of(q, k, q_segments, kv_segments, causal, window);
  parallel(pool, shape.batch * shape.groups, [&](int64_t i) {
    TileScope tiles;
    backward_group(shape, i / shape.groups, i % shape.groups, data(q), data(k), data(v), data(out), lse.typed_data(),
                   data(d_out), {data(dq), data(dk), data(dv)});
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_attention, forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Arg<Segments>()
                                  .Arg<Segments>()
                                  .Ret<Tensor>()
                                  .Ret<Sums>()
                                  .Attr<bool>("causal")
                                  .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_attention_gradient, backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Arg<Tensor>()
                                  .Arg<Segments>()
                                  .Arg<Segments>()
                                  .Arg<Tensor>()
                                  .Arg<Sums>()
                                  .Arg<Tensor>()
                                  .Ret<Tensor>()
                                  .Ret<Tensor>()
                                  .Ret<Tensor>()
                                  .Attr<bool>("causal")
                                  .Attr<int64_t>("window"));

}  // namespace min_llm
