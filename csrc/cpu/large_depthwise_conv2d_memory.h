// Scratch memory, and the planes of tensors as lanes.
#pragma once

#include <array>
#include <cstring>
#include <memory>
#include <new>

#include "large_depthwise_conv2d_kernels.h"

namespace convswap::lanes {

constexpr int64_t CACHED_BYTES = 512 * 1024;  // of scratch memory at a time: to stay in a second level cache

// Memory for vectors, aligned as they are.
class Scratch {
 public:
  Scratch(int64_t vectors, const Kernels& k)
      : bytes_(k.bytes), size_(std::max<int64_t>(vectors, 1) * k.bytes),
        data_(static_cast<char*>(::operator new(size_, std::align_val_t(64)))) {}
  char* at(int64_t vector) const { return data_.get() + vector * bytes_; }
  void clear() const { std::memset(data_.get(), 0, size_); }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  int64_t bytes_, size_;
  std::unique_ptr<char, Free> data_;
};

// The channels of a group of lanes.
struct Group {
  std::array<int64_t, 16> channel;
  int count;  // lanes in use; the others repeat the first

  // Group number `group` of `channels` lanes. Lane l is channel l * step / repeat + offset.
  Group(const Kernels& k, int64_t group, int64_t channels, int64_t step, int64_t repeat, int64_t offset) {
    const int64_t first = group * k.lanes;
    count = static_cast<int>(std::min<int64_t>(k.lanes, channels - first));
    for (int l = 0; l < 16; l++) channel[l] = (first + (l < count ? l : 0)) * step / repeat + offset;
  }
};

// Planes (images, channels, height, width) in memory, contiguous or channels_last.
struct Planes {
  char* data;
  int64_t channels, height, width;
  bool last;

  // The pixels of an image from a row on.
  Lanes lanes(const Kernels& k, const Group& group, int64_t image, int64_t row) const {
    Lanes found{};
    found.step = last ? channels : 1;
    found.count = group.count;
    found.adjacent = last && group.channel[group.count - 1] - group.channel[0] == group.count - 1;
    const int64_t start = image * channels * height * width + row * width * found.step;
    for (int l = 0; l < 16; l++) {
      found.lane[l] = data + (start + group.channel[l] * (last ? 1 : height * width)) * k.element;
    }
    return found;
  }
};

}  // namespace convswap::lanes
