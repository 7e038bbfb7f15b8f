// CUDA's execution model on one CPU thread, to run and check device code where there is no GPU.
//
// Include it before any .cuh. The threads of a block are fibers, which give way only at a barrier or a shuffle, so a
// run is deterministic; `emulation::order` picks one of many orders of threads and of blocks, and a kernel whose result
// depends on it lacks a barrier. A thread that ends, or waits at another barrier, while others wait is an error. Shared
// memory is exactly as large as the launch says and starts as NaN. Compile with -fsanitize=address,undefined to find
// accesses out of bounds and vectors that are not aligned.
//
// Left out on purpose: atomics, as results have to be deterministic.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __syncthreads() emulation::wait_for_block(__FILE__, __LINE__)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

using std::max;
using std::min;

namespace emulation {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kMostSharedBytes = 227 * 1024;
constexpr std::size_t kSharedAlignment = 32;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

// A line of the source where threads wait for each other. No string: every thread stores one at every barrier.
struct Barrier {
  const char* file = "";
  int line = 0;
  bool operator==(const Barrier& other) const {
    return line == other.line && (file == other.file || !std::strcmp(file, other.file));
  }
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state;
  dim3 index;
  Barrier barrier;          // where it waits
  unsigned char slot[16];   // what it holds out to its warp
};

// 0: ascending, 1: descending, from 2 on: shuffled anew between barriers, and each warp runs up to a barrier of the
// block before another does.
inline int order = 0;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::size_t count, current;
inline ucontext_t scheduler;
inline std::function<void()> kernel;
struct FreeShared {
  void operator()(unsigned char* memory) const { operator delete[](memory, std::align_val_t{kSharedAlignment}); }
};
inline std::unique_ptr<unsigned char[], FreeShared> shared;
inline std::string failure;

inline unsigned char* shared_memory() { return shared.get(); }

inline void give_way(State state) {
  fibers[current]->state = state;
  swapcontext(&fibers[current]->context, &scheduler);
}

// Called by a thread of a kernel; an exception must not leave its stack.
[[noreturn]] inline void fail(const std::string& message) {
  failure = message;
  setcontext(&scheduler);
  std::abort();
}

inline void wait_for_block(const char* file, int line) {
  fibers[current]->barrier = {file, line};
  give_way(State::kAtBlock);
}

inline void wait_for_warp() { give_way(State::kAtWarp); }

// Waits for the whole warp, then gives what another lane holds out.
template <typename T>
T exchange(unsigned mask, T value, int lane) {
  static_assert(sizeof(T) <= sizeof(Fiber::slot));
  const std::size_t first = current / warpSize * warpSize;
  const std::size_t lanes = std::min<std::size_t>(warpSize, count - first);
  const unsigned all = lanes == warpSize ? ~0u : (1u << lanes) - 1;
  if (mask != all) fail("the mask of a shuffle must name the lanes of the warp");
  if (lane < 0 || static_cast<std::size_t>(lane) >= lanes) fail("shuffle from a lane that the warp does not have");
  std::memcpy(fibers[current]->slot, &value, sizeof(T));
  wait_for_warp();
  T other;
  std::memcpy(&other, fibers[first + lane]->slot, sizeof(T));
  wait_for_warp();
  return other;
}

inline int lane() { return static_cast<int>(current % warpSize); }

// The orders that are tried: item i of n, in the given round.
inline std::vector<std::size_t> ordered(std::size_t n, std::uint64_t round) {
  std::vector<std::size_t> items(n);
  for (std::size_t i = 0; i < n; ++i) items[i] = order == 1 ? n - 1 - i : i;
  if (order < 2) return items;
  std::uint64_t seed = 0x9e3779b97f4a7c15ull * (round * 64 + order + 1);
  for (std::size_t i = n; i > 1; --i) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(items[i - 1], items[(seed >> 33) % i]);
  }
  return items;
}

inline void fiber_main() {
  kernel();
  fibers[current]->state = State::kDone;
}

inline std::string named(const dim3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

inline std::string named(const Barrier& at) { return std::string(at.file) + ":" + std::to_string(at.line); }

// Whether the threads from first to end are a warp that waits for itself; then they go on.
inline bool release_warp(std::size_t first, std::size_t end) {
  for (std::size_t i = first; i < end; ++i) {
    if (fibers[i]->state != State::kAtWarp) return false;
  }
  for (std::size_t i = first; i < end; ++i) fibers[i]->state = State::kReady;
  return true;
}

// Lets waiting threads go on: whole warps first, then the whole block. False if there is nobody to let go.
inline bool release() {
  bool moved = false;
  for (std::size_t first = 0; first < count; first += warpSize) {
    moved = release_warp(first, std::min(first + warpSize, count)) || moved;
  }
  if (moved) return true;
  std::size_t waiting = 0, done = 0;
  for (std::size_t i = 0; i < count; ++i) {
    waiting += fibers[i]->state == State::kAtBlock && fibers[i]->barrier == fibers[0]->barrier;
    done += fibers[i]->state == State::kDone;
  }
  if (done == count) return false;
  if (waiting < count) {
    std::string told = "block " + named(blockIdx) + ": threads do not meet";
    for (std::size_t i = 0, listed = 0; i < count && listed < 8; ++i) {
      if (i && fibers[i]->state == fibers[i - 1]->state && fibers[i]->barrier == fibers[i - 1]->barrier) continue;
      const State state = fibers[i]->state;
      told += "; from thread " + named(fibers[i]->index) + " on: ";
      const std::string barrier = "at " + named(fibers[i]->barrier);
      told += state == State::kDone ? "ended" : state == State::kAtWarp ? "in a shuffle" : barrier;
      ++listed;
    }
    throw std::runtime_error(told);
  }
  for (std::size_t i = 0; i < count; ++i) fibers[i]->state = State::kReady;
  return true;
}

inline void run_block(std::size_t shared_bytes) {
  shared.reset(new (std::align_val_t{kSharedAlignment}) unsigned char[shared_bytes]);
  std::memset(shared.get(), 0xff, shared_bytes);
  for (std::size_t i = 0; i < count; ++i) {
    Fiber& fiber = *fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, fiber_main, 0);
    fiber.state = State::kReady;
    fiber.barrier = {};
    const unsigned n = static_cast<unsigned>(i);
    fiber.index = dim3(n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y);
  }
  std::uint64_t round = 0;
  const auto resume = [](std::size_t i) {
    if (fibers[i]->state != State::kReady) return;
    current = i;
    threadIdx = fibers[i]->index;
    swapcontext(&scheduler, &fibers[i]->context);
    if (failure.empty()) return;
    throw std::runtime_error("block " + named(blockIdx) + ", thread " + named(threadIdx) + ": " + failure);
  };
  do {
    if (order < 2) {
      for (std::size_t i : ordered(count, ++round)) resume(i);
      continue;
    }
    for (std::size_t warp : ordered((count + warpSize - 1) / warpSize, ++round)) {
      const std::size_t first = warp * warpSize, end = std::min(first + warpSize, count);
      do {
        for (std::size_t i : ordered(end - first, ++round)) resume(first + i);
      } while (release_warp(first, end));
    }
  } while (release());
}

// kernel<<<grid, block, shared_bytes>>>(...), written launch(grid, block, shared_bytes, [&] { kernel(...); }).
inline void launch(dim3 grid, dim3 block, std::size_t shared_bytes, std::function<void()> body) {
  count = std::size_t{block.x} * block.y * block.z;
  const bool fits = grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (!fits || !count || count > 1024 || block.z > 64 || shared_bytes > kMostSharedBytes) {
    throw std::runtime_error("a GPU refuses to launch " + named(grid) + " blocks of " + named(block) +
                             " threads with " + std::to_string(shared_bytes) + " bytes of shared memory");
  }
  while (fibers.size() < count) fibers.push_back(std::make_unique<Fiber>());
  kernel = std::move(body);
  gridDim = grid;
  blockDim = block;
  for (std::size_t i : ordered(std::size_t{grid.x} * grid.y * grid.z, 0)) {
    blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    run_block(shared_bytes);
  }
}

// For the extern "C" functions of a driver: null, or what went wrong.
inline const char* report(const std::function<void()>& body) {
  static std::string message;
  failure.clear();
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    fibers.clear();  // some were left in the middle
    return message.c_str();
  }
}

}  // namespace emulation

// The driver's order of threads and blocks; tests/csrc/emulation.py calls it.
extern "C" __attribute__((used, visibility("default"))) inline void emulation_set_order(int order) {
  emulation::order = order;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int lane = emulation::lane();
  return emulation::exchange(mask, value, lane / width * width + (source & (width - 1)));
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  const int lane = emulation::lane(), source = lane ^ bits;
  return emulation::exchange(mask, value, source / width <= lane / width ? source : lane);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int lane = emulation::lane(), source = lane + static_cast<int>(delta);
  return emulation::exchange(mask, value, source / width == lane / width ? source : lane);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int lane = emulation::lane(), source = lane % width - static_cast<int>(delta);
  return emulation::exchange(mask, value, source >= 0 ? lane - static_cast<int>(delta) : lane);
}

inline void __syncwarp(unsigned = ~0u) { emulation::wait_for_warp(); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}

#include "cuda_wmma.h"
