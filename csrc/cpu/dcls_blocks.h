// Elements of DCLS kernels in blocks that stay in the cache.
#pragma once

#include <cstdint>

#include "dcls_grid.h"
#include "simd.h"

namespace convswap {

// The elements start to start + length - 1, which are neighbours in memory but may belong to several kernels.
struct Block {
  int64_t start;
  int length;

  // Calls use(kernel, first, last) for each kernel, whose elements are first to last - 1 of the block.
  template <typename F>
  CONVSWAP_INLINE void for_kernels(int64_t count, const F& use) const {
    int64_t kernel = start / count, rest = count - start % count;
    for (int first = 0; first < length; ++kernel, rest = count) {
      const int last = rest < length - first ? first + static_cast<int>(rest) : length;
      use(kernel, first, last);
      first = last;
    }
  }
};

// Calls use(block) for the elements of the kernels begin to end - 1, in blocks of at most LENGTH.
template <int LENGTH, typename F>
CONVSWAP_INLINE void for_blocks(const Grid& grid, int64_t begin, int64_t end, const F& use) {
  for (int64_t start = begin * grid.count; start < end * grid.count; start += LENGTH) {
    const int64_t rest = end * grid.count - start;
    use(Block{start, rest < LENGTH ? static_cast<int>(rest) : LENGTH});
  }
}

}  // namespace convswap
