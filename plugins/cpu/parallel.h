// Loops over the threads of OpenMP's pool, which is torch's too: a second pool would have to share
// the processor with torch's threads, which spin for a while after each of its loops.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace legokv::cpu {

// Calls body(item, thread) for every item, early ones first; thread is below num_threads.
template <typename Body>
void parallel_for(int64_t num_items, int num_threads, const Body& body) {
  if (num_threads == 1 || num_items <= 1) {
    for (int64_t item = 0; item < num_items; ++item) body(item, 0);
    return;
  }
  // All threads even for fewer items: another team size makes OpenMP rebuild its pool.
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
  for (int64_t item = 0; item < num_items; ++item) body(item, omp_get_thread_num());
}

}  // namespace legokv::cpu
