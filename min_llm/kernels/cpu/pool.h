// Loops shared between the calling thread and XLA's own thread pool.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace min_llm {

namespace ffi = xla::ffi;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// task(i) for every i in [0, n). The caller works too and takes whatever no other thread has begun, so a busy pool
// delays nothing and a nested call cannot deadlock.
template <class Task>
void parallel(ffi::ThreadPool& pool, int64_t n, const Task& task) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  auto work = [shared, n, &task] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < n;) {
      task(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), n) - 1;
  for (int64_t h = 0; h < helpers; ++h) pool.Schedule(std::decay_t<decltype(work)>(work));
  work();
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < n; ++spins) {
    if (spins < 4096) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

// A buffer that a thread keeps from call to call: mapping pages anew costs more than a small product.
template <int kTag>
void* scratch(size_t bytes) {
  struct Block {
    void* data = nullptr;
    size_t size = 0;
    ~Block() { std::free(data); }
  };
  thread_local Block block;
  if (block.size < bytes) {
    std::free(block.data);
    block.size = (bytes + 4095) / 4096 * 4096;
    block.data = std::aligned_alloc(4096, block.size);
  }
  return block.data;
}

}  // namespace min_llm
