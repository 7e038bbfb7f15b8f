// The guided ops with their launches, on host memory.
#include <torch/headeronly/util/BFloat16.h>

#include <stdexcept>

#include "cuda_emulation.h"
#include "cuda/guided_ops.cuh"

using namespace convswap;

namespace {

// One whose sums are of its own type and one whose are not, numbered as in dtypes.h: each takes the compiler as long as
// the tests take.
template <typename Function>
void with_some_dtype(long long dtype, Function&& function) {
  if (dtype == 1) return function(double{});
  if (dtype == 2) return function(c10::BFloat16{});
  throw std::runtime_error("no such dtype");
}

// batch, groups, inputs, outputs, then pairs: size, kernel, stride, dilation, before, out; then whether kernels lie as
// the channelwise op has them
Guided guided(const long long* n) {
  Guided d{};
  d.batch = n[0];
  d.groups = static_cast<int>(n[1]);
  d.inputs = static_cast<int>(n[2]);
  d.outputs = static_cast<int>(n[3]);
  for (int i = 0; i < 2; ++i) {
    d.size[i] = static_cast<int>(n[4 + i]);
    d.kernel[i] = static_cast<int>(n[6 + i]);
    d.stride[i] = static_cast<int>(n[8 + i]);
    d.dilation[i] = static_cast<int>(n[10 + i]);
    d.before[i] = static_cast<int>(n[12 + i]);
    d.out[i] = static_cast<int>(n[14 + i]);
  }
  if (n[16]) {
    lay_out_by_output(d);
  } else {
    lay_out_by_input(d);
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
                    void* output, const long long* numbers, long long blocks, long long enough) {
  return emulation::report([&] {
    with_some_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      run_guided_forward<T, 4>(runner(blocks), guided(numbers), static_cast<const T*>(input),
                               static_cast<const T*>(weight), biased ? static_cast<const T*>(bias) : nullptr,
                               static_cast<T*>(output), enough);
    });
  });
}

const char* input_grad(long long dtype, const void* grad, const void* weight, void* result, const long long* numbers,
                       long long blocks, long long enough) {
  return emulation::report([&] {
    with_some_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      run_guided_input_grad<T, 4>(runner(blocks), guided(numbers), static_cast<const T*>(grad),
                                  static_cast<const T*>(weight), static_cast<T*>(result), enough);
    });
  });
}

const char* weight_grad(long long dtype, const void* grad, const void* input, void* result, const long long* numbers,
                        long long blocks, long long enough) {
  return emulation::report([&] {
    with_some_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      run_guided_weight_grad<T, 4>(runner(blocks), guided(numbers), static_cast<const T*>(grad),
                                   static_cast<const T*>(input), static_cast<T*>(result), enough);
    });
  });
}

// quotients[i] and digits[i] of numbers[i], as a thread that decodes an item gets them.
const char* divide(const long long* numbers, long long count, long long value, long long* quotients,
                   long long* digits) {
  return emulation::report([&] {
    const Divisor divisor(value);
    for (long long i = 0; i < count; ++i) {
      if (numbers[i] >> 31) {
        quotients[i] = numbers[i];
        digits[i] = divisor.take(quotients[i]);
      } else {
        unsigned rest = static_cast<unsigned>(numbers[i]);
        digits[i] = divisor.take(rest);
        quotients[i] = rest;
      }
    }
  });
}
}
