// The activation of hybrid dense layers with its launches, on host memory.
#include <limits>

#include "cuda_emulation.h"
#include "cuda/hybrid_activation.cuh"
#include "dtypes.h"

using namespace convswap;

namespace {

// Launches at most so many blocks.
auto runner(long long most) {
  return [most](const Launch& launch, auto kernel, auto... arguments) {
    if (launch.blocks <= 0) return;
    const unsigned grid = static_cast<unsigned>(least<Index>(launch.grid(), most));
    emulation::launch(grid, launch.threads, launch.shared_bytes, [&] { kernel(arguments...); });
  };
}

template <typename T>
constexpr Sum<T> largest() {
  return static_cast<Sum<T>>(std::numeric_limits<T>::max());
}

}  // namespace

extern "C" {

const char* forward(long long dtype, const void* z, const void* muls, const void* powers, void* y, long long runs,
                    long long channels, long long pixels, long long blocks) {
  return emulation::report([&] {
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      run_hybrid_activation<T>(runner(blocks), Hybrid{runs, channels, pixels}, largest<T>(), static_cast<const T*>(z),
                               static_cast<const T*>(muls), static_cast<const T*>(powers), static_cast<T*>(y));
    });
  });
}

const char* backward(long long dtype, const void* grad, const void* z, const void* muls, const void* powers,
                     void* z_grad, void* muls_grad, void* powers_grad, long long runs, long long channels,
                     long long pixels, long long blocks, long long enough) {
  return emulation::report([&] {
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      std::unique_ptr<unsigned char[]> kept;
      const auto scratch = [&](Index count) {
        kept.reset(new unsigned char[count * sizeof(double)]);
        std::memset(kept.get(), 0xff, count * sizeof(double));
        return reinterpret_cast<double*>(kept.get());
      };
      run_hybrid_backward<T>(runner(blocks), scratch, Hybrid{runs, channels, pixels}, largest<T>(),
                             static_cast<const T*>(grad), static_cast<const T*>(z), static_cast<const T*>(muls),
                             static_cast<const T*>(powers), static_cast<T*>(z_grad), static_cast<T*>(muls_grad),
                             static_cast<T*>(powers_grad), enough);
    });
  });
}
}
