// Tells ThreadSanitizer what a fiber is and what a barrier orders; does nothing without
// LEGOKV_TSAN.
#pragma once

#include <vector>

#ifdef LEGOKV_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace legokv::host {

#ifdef LEGOKV_TSAN

// Consecutive barriers use two marks in turn: a thread ahead by one barrier must not hide from the
// others what it did after the barrier that they are still leaving.
class RaceDetector {
 public:
  void create_threads(int threads) {
    scheduler_ = __tsan_get_current_fiber();
    for (int i = 0; i < threads; ++i) threads_.push_back(__tsan_create_fiber(0));
    warp_marks_.resize(threads / 32 * 2 + 2);
  }
  void join_threads() {
    for (void* thread : threads_) {
      switch_to(thread);
      __tsan_release(&end_);
      switch_to(scheduler_);
      __tsan_acquire(&end_);
      __tsan_destroy_fiber(thread);
    }
  }
  void switch_to_thread(int thread) { switch_to(threads_[thread]); }
  void switch_to_scheduler() { switch_to(scheduler_); }
  void release_start() { __tsan_release(&start_); }
  void acquire_start() { __tsan_acquire(&start_); }
  void release_block(int meeting) { __tsan_release(&block_marks_[meeting % 2]); }
  void acquire_block(int meeting) { __tsan_acquire(&block_marks_[meeting % 2]); }
  void release_warp(int warp, int meeting) { __tsan_release(&warp_marks_[warp * 2 + meeting % 2]); }
  void acquire_warp(int warp, int meeting) { __tsan_acquire(&warp_marks_[warp * 2 + meeting % 2]); }

 private:
  static void switch_to(void* thread) {
    __tsan_switch_to_fiber(thread, __tsan_switch_to_fiber_no_sync);
  }
  void* scheduler_ = nullptr;
  std::vector<void*> threads_;
  char start_ = 0, end_ = 0;
  char block_marks_[2] = {};
  std::vector<char> warp_marks_;
};

#else

struct RaceDetector {
  void create_threads(int) {}
  void join_threads() {}
  void switch_to_thread(int) {}
  void switch_to_scheduler() {}
  void release_start() {}
  void acquire_start() {}
  void release_block(int) {}
  void acquire_block(int) {}
  void release_warp(int, int) {}
  void acquire_warp(int, int) {}
};

#endif

}  // namespace legokv::host
