// Threads of our own for calls of a few microseconds: waking a thread of XLA's pool takes longer than they last.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace min_llm {

// One job at a time, shared by the calling thread and helpers. After a job a helper looks out for the next one for
// kPatience, longer than what lies between the products of a decoding step, and then sleeps.
class Team {
 public:
  // The process's only one, made when first needed and never destroyed: its threads run until the process ends.
  static Team& get(int64_t threads) {
    static Team& team = *new Team(threads);
    return team;
  }

  // task(i) for every i in [0, n). A second caller meanwhile runs its job alone.
  template <class Task>
  void run(int64_t n, const Task& task) {
    std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
    if (n == 1 || threads_ == 1 || !turn.try_lock()) {
      for (int64_t i = 0; i < n; ++i) task(i);
      return;
    }
    call_ = [](const void* task, int64_t i) { (*static_cast<const Task*>(task))(i); };
    task_ = &task;
    size_ = n;
    done_.store(0, std::memory_order_relaxed);
    left_.store(n);
    if (asleep_.load() > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    while (take()) {
    }
    for (int spins = 0; done_.load(std::memory_order_acquire) < n; ++spins) {
      if (spins < 4096) {
        _mm_pause();
      } else {
        std::this_thread::yield();  // a helper that has begun may be waiting for this very processor
      }
    }
  }

 private:
  static constexpr uint64_t kPatience = 100'000;  // cycles of the time-stamp counter, about 50 µs

  explicit Team(int64_t threads) : threads_(threads) {
    for (int64_t i = 1; i < threads; ++i) std::thread([this] { help(); }).detach();
  }

  // One task of the current job, if any is left. Whoever lowers left_ from above 0 keeps the job from ending before the
  // task is done, so what describes the job stands still meanwhile.
  bool take() {
    int64_t left = left_.load(std::memory_order_acquire);
    while (left > 0) {
      if (left_.compare_exchange_weak(left, left - 1, std::memory_order_acquire)) {
        call_(task_, size_ - left);
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  void help() {
    for (uint64_t since = __rdtsc();;) {
      if (take()) {
        since = __rdtsc();
      } else if (__rdtsc() - since < kPatience) {
        _mm_pause();
      } else {
        std::unique_lock<std::mutex> lock(sleep_);
        asleep_.fetch_add(1);
        wake_.wait(lock, [this] { return left_.load() > 0; });
        asleep_.fetch_sub(1);
        since = __rdtsc();
      }
    }
  }

  const int64_t threads_;
  std::mutex turn_;  // of callers
  void (*call_)(const void* task, int64_t i) = nullptr;
  const void* task_ = nullptr;
  int64_t size_ = 0;
  alignas(64) std::atomic<int64_t> left_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<int64_t> asleep_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
};

}  // namespace min_llm
