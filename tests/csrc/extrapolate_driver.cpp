// Padding by extrapolation and its transpose with their launches, on host memory.
#include "cuda_emulation.h"
#include "cuda/extrapolate_pad.cuh"
#include "dtypes.h"

using namespace convswap;

namespace {

// Launches at most so many blocks.
auto runner(long long most) {
  return [most](const Launch& launch, auto kernel, auto... arguments) {
    const unsigned grid = static_cast<unsigned>(least<Index>(launch.grid(), most));
    emulation::launch(grid, launch.threads, launch.shared_bytes, [&] { kernel(arguments...); });
  };
}

}  // namespace

extern "C" {

// numbers: outer, inner, then for three axes size of the image, padding and order, both before and after. off: how many
// numbers the source is away from an aligned place. wide: places are counted in 64 bits.
const char* extrapolate(long long dtype, const void* source, void* result, const long long* numbers, long long off,
                        long long back, long long wide, long long blocks) {
  return emulation::report([&] {
    int image[3], pad[3][2], order[3][2];
    for (int axis = 0; axis < 3; ++axis) {
      const long long* n = numbers + 2 + 5 * axis;
      image[axis] = static_cast<int>(n[0]);
      for (int side = 0; side < 2; ++side) {
        pad[axis][side] = static_cast<int>(n[1 + side]);
        order[axis][side] = static_cast<int>(n[3 + side]);
      }
    }
    Extrapolate e = plan_extrapolate(numbers[0], image, numbers[1], pad, order, back);
    e.small = e.small && !wide;
    with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      std::unique_ptr<Sum<T>[]> weights;
      const auto scratch = [&](Index count) {
        weights.reset(new Sum<T>[count]);
        std::fill_n(weights.get(), count, Sum<T>(NAN));
        return weights.get();
      };
      run_extrapolate(runner(blocks), scratch, e, back, static_cast<const T*>(source) + off, static_cast<T*>(result));
    });
  });
}
}
