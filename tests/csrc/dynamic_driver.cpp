// The dynamic ops with their launches, on host memory.
#include <torch/headeronly/util/BFloat16.h>

#include <stdexcept>

#include "cuda_emulation.h"
#include "cuda/dynamic_ops.cuh"

using namespace convswap;

namespace {

// Those that have code of their own, numbered as in dtypes.h; float16 has that of bfloat16.
template <typename Function>
void with_some_dtype(long long dtype, Function&& function) {
  if (dtype == 0) return function(float{});
  if (dtype == 1) return function(double{});
  if (dtype == 2) return function(c10::BFloat16{});
  throw std::runtime_error("no such dtype");
}

// batch, kernels, groups, inputs, outputs, then pairs: size, kernel, stride, dilation, before, out; then whether the
// weight has its inputs last
Dynamic dynamic(const long long* n) {
  Dynamic d{};
  d.batch = n[0];
  d.kernels = static_cast<int>(n[1]);
  d.groups = static_cast<int>(n[2]);
  d.inputs = static_cast<int>(n[3]);
  d.outputs = static_cast<int>(n[4]);
  for (int i = 0; i < 2; ++i) {
    d.size[i] = static_cast<int>(n[5 + i]);
    d.kernel[i] = static_cast<int>(n[7 + i]);
    d.stride[i] = static_cast<int>(n[9 + i]);
    d.dilation[i] = static_cast<int>(n[11 + i]);
    d.before[i] = static_cast<int>(n[13 + i]);
    d.out[i] = static_cast<int>(n[15 + i]);
  }
  lay_out_weight(d, n[17] != 0);
  return d;
}

// Launches at most so many blocks.
auto runner(long long most) {
  return [most](const Launch& launch, auto kernel, auto... arguments) {
    if (launch.blocks <= 0) return;
    const unsigned grid = static_cast<unsigned>(least<Index>(launch.grid(), most));
    emulation::launch(grid, launch.threads, launch.shared_bytes, [&] { kernel(arguments...); });
  };
}

// Memory of exactly the size that is asked for, full of NaN.
class Scratch {
 public:
  template <typename S>
  S* operator()(Index count, S) {
    kept_.emplace_back(new unsigned char[count * sizeof(S)]);
    std::memset(kept_.back().get(), 0xff, count * sizeof(S));
    return reinterpret_cast<S*>(kept_.back().get());
  }

 private:
  std::vector<std::unique_ptr<unsigned char[]>> kept_;
};

}  // namespace

extern "C" {

// Turned: the gradient to the input, from a gradient as the source. last: whether results have their channels last.
const char* convolve(long long dtype, long long turned, const void* source, const void* weight, const void* attention,
                     const void* bias, long long biased, void* result, const long long* numbers, long long last,
                     long long blocks, long long enough) {
  return emulation::report([&] {
    with_some_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      const Dynamic d = dynamic(numbers);
      run_dynamic_conv2d<T>(runner(blocks), Scratch(), d, view_dynamic(d, turned, last),
                            static_cast<const T*>(source), static_cast<const T*>(weight),
                            static_cast<const T*>(attention), biased ? static_cast<const T*>(bias) : nullptr,
                            static_cast<T*>(result), enough);
    });
  });
}

const char* weight_grad(long long dtype, const void* grad, const void* input, const void* weight, const void* attention,
                        void* weight_result, void* attention_result, const long long* numbers, long long blocks,
                        long long enough) {
  return emulation::report([&] {
    with_some_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      run_dynamic_weight_grad<T>(runner(blocks), Scratch(), dynamic(numbers), static_cast<const T*>(grad),
                                 static_cast<const T*>(input), static_cast<const T*>(weight),
                                 static_cast<const T*>(attention), static_cast<T*>(weight_result),
                                 static_cast<T*>(attention_result), enough);
    });
  });
}
}
