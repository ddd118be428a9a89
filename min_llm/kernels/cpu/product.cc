// The product of two matrices on CPUs with AMX, called by XLA through its foreign function interface.
//
// A task is a block of rows times a chunk of columns: it packs its chunk of B into tiles, which stay in the
// second-level cache, and goes through the rows of A, which are read where they lie.
#include <sys/syscall.h>
#include <unistd.h>

#include "pool.h"
#include "tiles.h"

namespace min_llm {
namespace {

constexpr int64_t kRows = 512;    // rows of a task that makes several passes: their float32 sums stay in the cache
constexpr int64_t kLongRows = 2048;  // of one that makes a single pass: B is packed as often as there are tasks
constexpr int64_t kDepth = 512;   // k of a pass: 32 columns of B, 32 KiB, stay in the first-level cache
constexpr int64_t kPanels = 8;    // at most so many panels of 32 columns a chunk

struct Product {
  int64_t m, n, k;
  Operand a, b;
  void* c;
  bool wide;  // c is float32

  void run(ffi::ThreadPool& pool) const {
    // Rows are read in place where 32 k are always there; else A is packed first, by all threads.
    const bool in_place = !a.transposed && !a.wide && k % kStep == 0;
    const int64_t strips = ceil_div(m, kBlock), steps = ceil_div(k, kStep);
    bf16* packed = nullptr;
    if (!in_place) {
      packed = static_cast<bf16*>(scratch<0>(strips * steps * 2 * kTileSize * sizeof(bf16)));
      const int64_t size = steps * 2 * kTileSize;
      parallel(pool, ceil_div(strips, kPanels), [&](int64_t i) {
        const int64_t top = i * kPanels * kBlock;
        pack_a(a.at(top, 0), std::min(kPanels * kBlock, m - top), k, packed + i * kPanels * size, size);
      });
    }
    const int64_t panels = ceil_div(n, kBlock);
    // a long product reads A from far away: no more often than there are threads
    const int64_t tasks = k > kDepth ? pool.num_threads() : 2 * pool.num_threads();
    const int64_t chunk = std::min(kPanels, ceil_div(panels, tasks));
    const int64_t chunks = ceil_div(panels, chunk), rows = k > kDepth ? kRows : kLongRows;
    const int64_t blocks = ceil_div(m, rows);
    parallel(pool, chunks * blocks, [&](int64_t task) {
      TileScope tiles;
      block(packed, rows, task / chunks * rows, task % chunks * chunk, chunk);
    });
  }

 private:
  // Rows from `top` on, `chunk` panels from panel `left` on.
  void block(const bf16* packed, int64_t most, int64_t top, int64_t left, int64_t chunk) const {
    const int64_t rows = std::min(most, m - top);
    const int64_t strips = ceil_div(rows, kBlock);
    const int64_t panels = std::min(chunk, ceil_div(n, kBlock) - left);
    const int64_t all_steps = ceil_div(k, kStep);
    const int64_t passes = ceil_div(k, kDepth);
    const int64_t steps = ceil_div(all_steps, passes);  // of a pass
    const int64_t panel_size = steps * 2 * kTileSize;
    bf16* b_tiles = static_cast<bf16*>(scratch<1>(chunk * panel_size * sizeof(bf16)));
    bf16* edge = static_cast<bf16*>(scratch<2>(panel_size * sizeof(bf16)));
    // one pass writes its block at once; several keep float32 sums between them
    const int64_t kept = passes == 1 ? 2 : strips * panels;
    float* sums = static_cast<float*>(scratch<3>(kept * kBlock * kBlock * sizeof(float)));

    const int64_t bytes = wide ? 4 : 2;
    Write write;
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t from = pass * steps, here = std::min(steps, all_steps - from);
      pack_b(b.at(from * kStep, left * kBlock), std::min(k - from * kStep, here * kStep),
             std::min(n - left * kBlock, panels * kBlock), b_tiles, panel_size);
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t row = top + s * kBlock;
        Rows strip;
        if (packed) {
          strip = packed_rows(packed + (row / kBlock * all_steps + from) * 2 * kTileSize);
        } else if (m - row >= kBlock) {
          strip = rows_in_place(a.at(row, from * kStep));
        } else {  // rows beyond the last must not be read
          pack_a(a.at(row, from * kStep), m - row, std::min(k - from * kStep, here * kStep), edge, 0);
          strip = packed_rows(edge);
        }
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t column = (left + p) * kBlock;
          float* sum = passes == 1 ? sums + (s * panels + p) % 2 * kBlock * kBlock : sums + (s * panels + p) * kBlock * kBlock;
          multiply(strip, b_tiles + p * panel_size, here, sum, pass > 0, write);
          if (pass == passes - 1) {
            char* to = static_cast<char*>(c) + (row * n + column) * bytes;
            write = {sum, to, n * bytes, wide, std::min(kBlock, m - row), first(n - column)};
          }
        }
      }
    }
    write.some(kBlock);
  }
};

ffi::Error product(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> c,
                   bool ta, bool tb) {
  const auto da = a.dimensions(), db = b.dimensions();
  const Operand left{a.untyped_data(), da[1], ta, a.element_type() == ffi::F32};
  const Operand right{b.untyped_data(), db[1], tb, b.element_type() == ffi::F32};
  Product{ta ? da[1] : da[0], tb ? db[0] : db[1], ta ? da[0] : da[1], left, right, c->untyped_data(),
          c->element_type() == ffi::F32}
      .run(pool);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(min_llm_product, product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("ta")
                                  .Attr<bool>("tb"));

// Asks Linux for the tile registers, once a process; 0 when they may be used.
extern "C" int min_llm_request_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return static_cast<int>(syscall(SYS_arch_prctl, kRequestPermission, kTileData));
}

}  // namespace min_llm
