// The large depthwise ops with their launches, on host memory.
#include "cuda_emulation.h"
#include "cuda/large_depthwise_ops.cuh"
#include "dtypes.h"

using namespace convswap;

namespace {

// batch, channels, multiplier, then pairs: size, kernel, stride, before, out
Depthwise depthwise(const long long* n) {
  Depthwise d{};
  d.batch = n[0];
  d.channels = static_cast<int>(n[1]);
  d.multiplier = static_cast<int>(n[2]);
  for (int i = 0; i < 2; ++i) {
    d.size[i] = static_cast<int>(n[3 + i]);
    d.kernel[i] = static_cast<int>(n[5 + i]);
    d.stride[i] = static_cast<int>(n[7 + i]);
    d.before[i] = static_cast<int>(n[9 + i]);
    d.out[i] = static_cast<int>(n[11 + i]);
  }
  return d;
}

// Launches at most so many blocks.
auto runner(long long most) {
  return [most](const Launch& launch, auto kernel, auto... arguments) {
    const unsigned grid = static_cast<unsigned>(least<Index>(launch.grid(), most));
    emulation::launch(grid, launch.threads, launch.shared_bytes, [&] { kernel(arguments...); });
  };
}

}  // namespace

extern "C" {

const char* forward(long long dtype, const void* input, const void* weight, const void* bias, long long biased,
                    void* output, const long long* numbers, long long blocks, long long shared) {
  return emulation::report([&] {
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      run_large_depthwise_forward(runner(blocks), depthwise(numbers), static_cast<const T*>(input),
                                  static_cast<const T*>(weight), biased ? static_cast<const T*>(bias) : nullptr,
                                  static_cast<T*>(output), static_cast<int>(shared));
    });
  });
}

const char* input_grad(long long dtype, const void* grad, const void* weight, void* result, const long long* numbers,
                       long long blocks, long long shared) {
  return emulation::report([&] {
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      run_large_depthwise_input_grad(runner(blocks), depthwise(numbers), static_cast<const T*>(grad),
                                     static_cast<const T*>(weight), static_cast<T*>(result), static_cast<int>(shared));
    });
  });
}

const char* weight_grad(long long dtype, const void* grad, const void* input, void* result, const long long* numbers,
                        long long blocks, long long shared) {
  return emulation::report([&] {
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      std::unique_ptr<Sum<T>[]> parts;
      const auto scratch = [&](Index count, Sum<T>) {
        parts.reset(new Sum<T>[count]);
        std::fill_n(parts.get(), count, Sum<T>(NAN));
        return parts.get();
      };
      run_large_depthwise_weight_grad(runner(blocks), scratch, depthwise(numbers), static_cast<const T*>(grad),
                                      static_cast<const T*>(input), static_cast<T*>(result), static_cast<int>(shared));
    });
  });
}
}
