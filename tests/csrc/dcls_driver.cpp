// The device code of DCLS for the tests: construction of kernels and the sparse path, under the emulation.
#include "cuda_emulation.h"
#include "cuda/dcls_scatter.cuh"
#include "cuda/dcls_separable.cuh"
#include "cuda/dcls_separable_backward.cuh"
#include "cuda/dcls_sparse_ops.cuh"
#include "dtypes.h"

namespace {

using namespace convswap;

// Launches as the .cu files do; the kernel gets its arguments by value.
const auto run = [](const Launch& launch, auto kernel, auto... arguments) {
  if (launch.blocks == 0) return;
  emulation::launch(launch.grid(), launch.threads, launch.shared_bytes, [=] { kernel(arguments...); });
};

template <typename Function>
void with_single_or_double(long long dtype, Function&& function) {
  dtype == 1 ? function(double{}) : function(float{});
}

template <typename T>
std::unique_ptr<T[]> scratch(long long n) {
  std::unique_ptr<T[]> memory(new T[n]);
  std::memset(static_cast<void*>(memory.get()), 0xff, n * sizeof(T));
  return memory;
}

// What the tests hand over: batch, channels, multiplier, then pairs: size, out, stride, before, kernel; normalise,
// right slope; strides of the source's and of the target's four axes.
struct Arguments {
  SparseShape shape;
  SparseImages first, second;

  Arguments(const long long* n, const long long* axes, long long count) {
    shape.batch = n[0];
    shape.channels = n[1];
    shape.multiplier = static_cast<int>(n[2]);
    for (int axis = 0; axis < 2; ++axis) {
      shape.size[axis] = static_cast<int>(n[3 + axis]);
      shape.out[axis] = static_cast<int>(n[5 + axis]);
      shape.stride[axis] = static_cast<int>(n[7 + axis]);
      shape.before[axis] = static_cast<int>(n[9 + axis]);
    }
    shape.grid = make_grid(2, n + 11, axes, n[1] * n[2], count);
    shape.normalise = n[13];
    shape.right_slope = n[14];
    first = {n[15], n[16], n[17], n[18]};
    second = {n[19], n[20], n[21], n[22]};
  }
};

}  // namespace

extern "C" {

const char* scatter(long long dtype, const void* weight, const void* P, void* out, long long dims,
                    const long long* size, const long long* axes, long long kernels, long long count,
                    long long normalise) {
  return emulation::report([&] {
    const Grid grid = make_grid(static_cast<int>(dims), size, axes, kernels, count);
    with_single_or_double(dtype, [&](auto zero) {
      using T = decltype(zero);
      const ScatterPlan plan = plan_scatter(grid, sizeof(T));
      run(plan.launch, dcls_scatter_kernel<T>, static_cast<const T*>(weight), static_cast<const T*>(P),
          static_cast<T*>(out), grid, plan, normalise != 0);
    });
  });
}

const char* scatter_backward(long long dtype, const void* grad, const void* weight, const void* P, void* weight_grad,
                             void* P_grad, long long dims, const long long* size, const long long* axes,
                             long long kernels, long long count, long long normalise, long long right_slope) {
  return emulation::report([&] {
    const Grid grid = make_grid(static_cast<int>(dims), size, axes, kernels, count);
    with_single_or_double(dtype, [&](auto zero) {
      using T = decltype(zero);
      run(scatter_backward_launch(grid), dcls_scatter_backward_kernel<T>, static_cast<const T*>(grad),
          static_cast<const T*>(weight), static_cast<const T*>(P), static_cast<T*>(weight_grad),
          static_cast<T*>(P_grad), grid, normalise != 0, right_slope != 0);
    });
  });
}

const char* separable(long long dtype, const void* weight, const void* P, const void* SIG, void* out, long long dims,
                      const long long* size, const long long* axes, long long kernels, long long count,
                      long long gaussian, double least_sigma, long long most_bytes) {
  return emulation::report([&] {
    const Grid grid = make_separable_grid(static_cast<int>(dims), size, axes, kernels, count);
    with_single_or_double(dtype, [&](auto zero) {
      using T = decltype(zero);
      const SeparablePlan plan = plan_separable(grid, sizeof(T), static_cast<int>(most_bytes));
      run(plan.launch, gaussian ? dcls_separable_kernel<T, true> : dcls_separable_kernel<T, false>,
          static_cast<const T*>(weight), static_cast<const T*>(P), static_cast<const T*>(SIG), static_cast<T*>(out),
          grid, plan, static_cast<T>(least_sigma));
    });
  });
}

const char* separable_backward(long long dtype, const void* grad, const void* weight, const void* P, const void* SIG,
                               void* weight_grad, void* P_grad, void* SIG_grad, long long dims, const long long* size,
                               const long long* axes, long long kernels, long long count, long long gaussian,
                               double least_sigma, long long most_bytes) {
  return emulation::report([&] {
    const Grid grid = make_separable_grid(static_cast<int>(dims), size, axes, kernels, count);
    with_single_or_double(dtype, [&](auto zero) {
      using T = decltype(zero);
      const SeparableBackwardPlan plan = plan_separable_backward(grid, sizeof(T), static_cast<int>(most_bytes));
      run(plan.launch, gaussian ? dcls_separable_backward_kernel<T, true> : dcls_separable_backward_kernel<T, false>,
          static_cast<const T*>(grad), static_cast<const T*>(weight), static_cast<const T*>(P),
          static_cast<const T*>(SIG), static_cast<T*>(weight_grad), static_cast<T*>(P_grad), static_cast<T*>(SIG_grad),
          grid, plan, static_cast<T>(least_sigma));
    });
  });
}

// The convolution, or with `back` its gradient to the input; the source comes first.
const char* sparse_gather(long long dtype, const void* source, const void* weight, const void* P, void* target,
                          const long long* numbers, const long long* axes, long long count, long long back,
                          long long plane_bytes) {
  return emulation::report([&] {
    const Arguments a(numbers, axes, count);
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      const SparseScratch sizes = sparse_scratch(back ? Taps::kMirrored : Taps::kDrawn, a.shape);
      const auto ints = scratch<int>(sizes.ints);
      const auto values = scratch<Sum<T>>(sizes.values);
      const auto call = back ? sparse_input_grad<T, decltype(run)> : sparse_forward<T, decltype(run)>;
      call(run, a.shape, static_cast<const T*>(source), a.first, static_cast<const Sum<T>*>(weight),
           static_cast<const Sum<T>*>(P), static_cast<T*>(target), a.second, ints.get(), values.get(),
           static_cast<int>(plane_bytes));
    });
  });
}

const char* sparse_kernel_grads(long long dtype, const void* grad, const void* input, const void* weight, const void* P,
                                void* weight_grad, void* P_grad, const long long* numbers, const long long* axes,
                                long long count, long long plane_bytes) {
  return emulation::report([&] {
    const Arguments a(numbers, axes, count);
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      using S = Sum<T>;
      const SparseKernelGrad plan =
          sparse_kernel_grad_plan<T>(a.shape, a.first, a.second, static_cast<int>(plane_bytes));
      const SparseScratch sizes = sparse_scratch(Taps::kTouched, a.shape);
      const auto ints = scratch<int>(sizes.ints);
      const auto partial = scratch<S>(sizes.values * plan.parts);
      const auto kernel_grad = scratch<S>(a.shape.grid.kernels * a.shape.grid.cells);
      sparse_kernel_grad<T>(run, a.shape, plan, static_cast<const T*>(grad), static_cast<const T*>(input),
                            static_cast<const S*>(weight), static_cast<const S*>(P), static_cast<S*>(weight_grad),
                            static_cast<S*>(P_grad), ints.get(), partial.get(), kernel_grad.get());
    });
  });
}
}
