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

// A product of a warp's fragments: y = a b + 1, transposed, from a in rows and b in columns. The faults, from 1 on:
// lanes load from different places, memory that is not aligned, no accumulator to start with, no wait before another
// lane's numbers are read.
__global__ void product(const float* a, const float* b, float* y, int fault) {
  using namespace nvcuda::wmma;
  CONVSWAP_SHARED(memory);
  float *rows = reinterpret_cast<float*>(memory), *columns = rows + 272, *sums = columns + 256;
  for (int i = threadIdx.x; i < 256; i += 32) {
    rows[i + (fault == 2)] = a[i];
    columns[i % 16 * 16 + i / 16] = b[i];
  }
  __syncwarp();
  fragment<matrix_a, 16, 16, 16, float, row_major> left;
  fragment<matrix_b, 16, 16, 16, float, col_major> right;
  fragment<accumulator, 16, 16, 16, float> sum;
  load_matrix_sync(left, rows + (fault == 1 && threadIdx.x == 7 ? 16 : fault == 2), 16);
  load_matrix_sync(right, columns, 16);
  if (fault != 3) fill_fragment(sum, 1.0f);
  mma_sync(sum, left, right, sum);
  store_matrix_sync(sums, sum, 16, mem_col_major);
  if (fault != 4) __syncwarp();
  for (int i = threadIdx.x; i < 256; i += 32) y[i] = sums[i];
}

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
const char* run_product(const float* a, const float* b, float* y, long long fault, long long threads) {
  return emulation::report([&] { emulation::launch(1, threads, 4 * 784, [&] { product(a, b, y, fault); }); });
}
}
