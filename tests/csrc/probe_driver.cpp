// Kernels with one fault each, and one without: what the emulation has to tell apart.
#include "cuda_emulation.h"
#include "cuda/common.cuh"
#include "dtypes.h"

namespace {

// Reverses the values of a block of 64 threads.
__global__ void reverse(const float* in, float* out, bool barrier) {
  CONVSWAP_SHARED(memory);
  float* line = reinterpret_cast<float*>(memory);
  line[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  if (barrier) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = line[63 - threadIdx.x];
}

__global__ void total(const float* in, float* out) {
  float value = in[blockIdx.x * 64 + threadIdx.x];
  for (int bits = 16; bits; bits /= 2) value += __shfl_xor_sync(~0u, value, bits);
  float half = __shfl_down_sync(~0u, static_cast<float>(threadIdx.x), 1);
  if (threadIdx.x % 32 == 0) out[blockIdx.x * 2 + threadIdx.x / 32] = value + half;
}

__global__ void leave_early() {
  if (threadIdx.x > 4) return;
  __syncthreads();
}

__global__ void part_ways() {
  if (threadIdx.x > 4) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void overrun(float* out) { out[threadIdx.x] = 0; }

__global__ void overrun_shared(float* out) {
  CONVSWAP_SHARED(memory);
  out[threadIdx.x] = reinterpret_cast<float*>(memory)[threadIdx.x];
}

struct alignas(16) Four {
  float v[4];
};

__global__ void crooked(const float* in, float* out) { out[0] = reinterpret_cast<const Four*>(in + 1)->v[0]; }

}  // namespace

extern "C" {

const char* run_reverse(const float* in, float* out, long long blocks, long long barrier) {
  return emulation::report([&] { emulation::launch(blocks, 64, 256, [&] { reverse(in, out, barrier); }); });
}
const char* run_total(const float* in, float* out, long long blocks) {
  return emulation::report([&] { emulation::launch(blocks, 64, 0, [&] { total(in, out); }); });
}
const char* run_leave_early() {
  return emulation::report([&] { emulation::launch(1, 8, 0, [&] { leave_early(); }); });
}
const char* run_part_ways() {
  return emulation::report([&] { emulation::launch(1, 8, 0, [&] { part_ways(); }); });
}
const char* run_overrun(float* out, long long threads) {
  return emulation::report([&] { emulation::launch(1, threads, 0, [&] { overrun(out); }); });
}
const char* run_overrun_shared(float* out, long long threads) {
  return emulation::report([&] { emulation::launch(1, threads, 16, [&] { overrun_shared(out); }); });
}
const char* run_crooked(const float* in, float* out) {
  return emulation::report([&] { emulation::launch(1, 1, 0, [&] { crooked(in, out); }); });
}
const char* run_too_large(long long grid_y, long long threads, long long bytes) {
  return emulation::report([&] { emulation::launch(dim3(1, grid_y), threads, bytes, [] {}); });
}
}
