// Depthwise convolution with DCLS kernels that are never built: each is drawn on a small grid in the cache, and only
// its non-zero taps, or the cells that its elements' gradients need, are convolved with.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#include "dcls_sparse_cells.h"
#include "dcls_sparse_geometry.h"
#include "dcls_sparse_grid.h"
#include "dcls_sparse_problem.h"
#include "dcls_sparse_taps.h"
#include "padded_plane.h"
#include "simd.h"

namespace convswap::sparse {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What is worth several instruction sets. Templates cannot have them.
#define CONVSWAP_SPARSE_KERNELS(T)                                                                                    \
  CONVSWAP_CLONES void draw(ElementGrid<T>& grid, const Elements<T>& elements, const DrawingRules& rules) {          \
    draw_values(grid, elements, rules);                                                                               \
  }                                                                                                                   \
  CONVSWAP_CLONES void want(ElementGrid<T>& grid, const Elements<T>& elements, const DrawingRules& rules) {          \
    mark_wanted(grid, elements, rules);                                                                               \
  }                                                                                                                   \
  CONVSWAP_CLONES void differentiate(ElementGrid<T>& grid, const WantedCell* cells, int64_t count, bool pairs,        \
                                     const T* sums, const Elements<T>& elements, const DrawingRules& rules,           \
                                     T* weight_grad, T* y_grad, T* x_grad) {                                          \
    clear(grid);                                                                                                      \
    put_gradients(grid, cells, count, pairs, sums);                                                                   \
    gradients_of_elements(grid, elements, rules, weight_grad, y_grad, x_grad);                                        \
  }                                                                                                                   \
  CONVSWAP_CLONES void convolve(const T* plane, const Convolved& shape, const TapLists<T>& lists,                    \
                                const TapGeometry& geometry, int64_t index, T* out, bool accumulate) {                \
    convolve_plane(plane, shape, lists, geometry, index, out, accumulate);                                            \
  }                                                                                                                   \
  CONVSWAP_CLONES void correlate(const T* plane, const Convolved& shape, const GradPlane<T>& grad,                   \
                                 const WantedCell* cells, int64_t count, bool pairs, T* sums) {                       \
    correlate_plane(plane, shape, grad, cells, count, pairs, sums);                                                   \
  }
#define CONVSWAP_SPARSE_COPIES(T, S)                                                                                  \
  CONVSWAP_CLONES void copy_in(const S* image, const ImageSteps& steps, int64_t count, const PlaneLayout& layout,    \
                               T* planes) {                                                                           \
    copy_to_planes(image, steps, count, layout, planes);                                                              \
  }                                                                                                                   \
  CONVSWAP_CLONES void copy_out(const T* planes, int64_t pitch, int64_t size, int64_t count, const ImageSteps& steps, \
                                S* image) {                                                                           \
    copy_from_planes(planes, pitch, size, count, steps, image);                                                       \
  }
CONVSWAP_SPARSE_KERNELS(float)
CONVSWAP_SPARSE_KERNELS(double)
CONVSWAP_SPARSE_COPIES(float, float)
CONVSWAP_SPARSE_COPIES(float, BFloat16)
CONVSWAP_SPARSE_COPIES(float, Half)
CONVSWAP_SPARSE_COPIES(double, double)

constexpr int64_t CHANNELS_AT_ONCE = 16;  // of a channels_last image: what a cache line holds in single precision

// Call `run(T, S)`, T being what is computed in and S what images are stored in.
template <typename F>
void dispatch(const Tensor& image, const F& run) {
  switch (image.scalar_type()) {
    case ScalarType::Float: return run(float{}, float{});
    case ScalarType::Double: return run(double{}, double{});
    case ScalarType::BFloat16: return run(float{}, BFloat16{});
    case ScalarType::Half: return run(float{}, Half{});
    default: STD_TORCH_CHECK(false, "images must be float32, float64, bfloat16 or float16");
  }
}

template <typename T>
std::unique_ptr<T[]> zeros(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]());
}

template <typename T>
std::unique_ptr<T[]> uninitialised(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// Items that are worth a thread of their own.
int64_t grain(int64_t work_per_item) { return std::max<int64_t>(1, 100000 / std::max<int64_t>(1, work_per_item)); }

// A unit is a run of channels; its kernels are drawn once for all images that a thread has of it.
template <typename T, typename S>
void run_forward(const Problem& problem, const Images& input, Images& out) {
  const ForwardPlan<T> plan(problem.rows, problem.columns);
  const int64_t multiplier = problem.multiplier, batch = input.batch, size = plan.layout.size();
  const int64_t at_once = input.channels_last ? CHANNELS_AT_ONCE : multiplier;  // outputs of a unit
  const int64_t together = input.channels_last ? CHANNELS_AT_ONCE : 1;          // that are written together
  const int64_t units = (problem.outputs + at_once - 1) / at_once;
  const S* from = input.tensor.const_data_ptr<S>();
  S* to = out.tensor.mutable_data_ptr<S>();
  const int64_t work = at_once * problem.count * problem.rows.outputs * problem.columns.outputs;
  torch::stable::parallel_for(0, units * batch, grain(work), [&](int64_t begin, int64_t end) {
    const auto planes = zeros<T>(size * together), outs = uninitialised<T>(plan.out_size * together);
    ElementGrid<T> grid(problem.rows.kernel, problem.columns.kernel, problem.count);
    TapLists<T> lists(at_once, problem.most_taps(), plan.taps.count);
    int64_t drawn = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t unit = item / batch, image = item % batch;
      const int64_t first = unit * at_once, last = std::min(first + at_once, problem.outputs);
      if (unit != drawn) {
        for (int64_t o = first; o < last; ++o) {
          draw(grid, problem.elements<T>(o), problem.rules);
          list_taps(grid, plan.taps, plan.layout.pitch(), o - first, lists);
        }
        drawn = unit;
      }
      const int64_t channel = first / multiplier;
      copy_in(from + input.offset(image, channel), input.steps, (last - 1) / multiplier + 1 - channel, plan.layout,
              planes.get());
      for (int64_t o = first; o < last; ++o) {
        const int64_t place = (o - first) % together;
        convolve(planes.get() + (o / multiplier - channel) * size, plan.shape, lists, plan.taps, o - first,
                 outs.get() + place * plan.out_size, false);
        if (place + 1 == together || o + 1 == last) {
          copy_out(outs.get(), plan.shape.out_pitch, plan.out_size, place + 1, out.steps,
                   to + out.offset(image, o - place));
        }
      }
    }
  });
}

template <typename T, typename S>
void run_input_grad(const Problem& problem, const Images& grad, Images& out) {
  using Pass = typename TransposedPlan<T>::Pass;
  const TransposedPlan<T> plan(problem.rows, problem.columns);
  const int64_t multiplier = problem.multiplier, batch = grad.batch, size = plan.layout.size();
  const int64_t at_once = grad.channels_last ? CHANNELS_AT_ONCE : 1;  // channels of a unit
  const int64_t units = (out.channels + at_once - 1) / at_once;
  const S* from = grad.tensor.const_data_ptr<S>();
  S* to = out.tensor.mutable_data_ptr<S>();
  const int64_t work = at_once * multiplier * problem.count * problem.rows.size * problem.columns.size;
  torch::stable::parallel_for(0, units * batch, grain(work), [&](int64_t begin, int64_t end) {
    const int64_t passes = static_cast<int64_t>(plan.passes.size());
    const auto planes = zeros<T>(size * at_once), outs = uninitialised<T>(plan.out_size * at_once * passes);
    ElementGrid<T> grid(problem.rows.kernel, problem.columns.kernel, problem.count);
    std::vector<TapLists<T>> lists;
    for (const Pass& pass : plan.passes) {
      lists.emplace_back(at_once * multiplier, problem.most_taps(), pass.taps.count);
    }
    int64_t drawn = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t unit = item / batch, image = item % batch;
      const int64_t first = unit * at_once, last = std::min(first + at_once, out.channels);
      const int64_t first_output = first * multiplier, last_output = last * multiplier;
      if (unit != drawn) {
        for (int64_t o = first_output; o < last_output; ++o) {
          draw(grid, problem.elements<T>(o), problem.rules);
          for (int64_t p = 0; p < passes; ++p) {
            list_taps(grid, plan.passes[p].taps, plan.layout.pitch(), o - first_output, lists[p]);
          }
        }
        drawn = unit;
      }
      for (int64_t start = first_output; start < last_output; start += at_once) {
        const int64_t loaded = std::min(at_once, last_output - start);
        copy_in(from + grad.offset(image, start), grad.steps, loaded, plan.layout, planes.get());
        for (int64_t o = start; o < start + loaded; ++o) {
          T* own = outs.get() + (o / multiplier - first) * plan.out_size;
          for (int64_t p = 0; p < passes; ++p, own += plan.out_size * at_once) {
            const Pass& pass = plan.passes[p];
            convolve(planes.get() + (o - start) * size, pass.shape, lists[p], pass.taps, o - first_output, own,
                     o % multiplier != 0);
          }
        }
      }
      for (int64_t p = 0; p < passes; ++p) {
        const Pass& pass = plan.passes[p];
        const int64_t down = problem.rows.stride, across = problem.columns.stride;
        const ImageSteps steps{pass.shape.rows, pass.shape.columns, out.steps.row * down, out.steps.column * across,
                               out.steps.channel};
        copy_out(outs.get() + p * plan.out_size * at_once, pass.shape.out_pitch, plan.out_size, last - first, steps,
                 to + out.offset(image, first) + pass.first_row * out.steps.row +
                     pass.first_column * out.steps.column);
      }
    }
  });
}

template <typename T, typename S>
void run_kernel_grad(const Problem& problem, const Images& grad, const Images& input, Tensor& weight_grad,
                     Tensor& P_grad) {
  const ForwardPlan<T> plan(problem.rows, problem.columns);
  const int64_t multiplier = problem.multiplier, size = plan.layout.size(), all = problem.outputs * problem.count;
  const int64_t at_once = input.channels_last ? CHANNELS_AT_ONCE : multiplier;
  const int64_t together = input.channels_last ? CHANNELS_AT_ONCE : 1;
  const int64_t units = (problem.outputs + at_once - 1) / at_once;
  const PlaneLayout grad_layout{problem.rows.outputs + 2, 1, plan.shape.out_pitch, 1, 0};
  const S *from = input.tensor.const_data_ptr<S>(), *grads = grad.tensor.const_data_ptr<S>();
  T *to_weight = weight_grad.mutable_data_ptr<T>(), *to_P = P_grad.mutable_data_ptr<T>();
  const bool pairs = plan.taps.pairs;
  const int64_t work = at_once * problem.count * problem.rows.outputs * problem.columns.outputs * input.batch;
  torch::stable::parallel_for(0, units, grain(work), [&](int64_t begin, int64_t end) {
    const auto planes = zeros<T>(size * together), grad_planes = zeros<T>(grad_layout.size() * together);
    ElementGrid<T> grid(problem.rows.kernel, problem.columns.kernel, problem.count);
    std::vector<WantedCell> cells(at_once * problem.rows.kernel * problem.columns.kernel);
    std::vector<int64_t> first_cell, first_sum;  // of each output of the unit
    std::vector<T> sums;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit * at_once, last = std::min(first + at_once, problem.outputs);
      const int64_t channel = first / multiplier;
      first_cell.assign(1, 0);
      first_sum.assign(1, 0);
      for (int64_t o = first; o < last; ++o) {
        want(grid, problem.elements<T>(o), problem.rules);
        const int64_t before = first_cell.back();
        const int64_t listed = before + list_wanted(grid, plan.taps, plan.layout.pitch(), cells.data() + before);
        first_sum.push_back(first_sum.back() + sums_for(listed - before, pairs) * LANES<T>);
        first_cell.push_back(listed);
      }
      sums.assign(first_sum.back(), static_cast<T>(0));
      for (int64_t image = 0; image < input.batch; ++image) {
        copy_in(from + input.offset(image, channel), input.steps, (last - 1) / multiplier + 1 - channel, plan.layout,
                planes.get());
        for (int64_t o = first; o < last; ++o) {
          const int64_t place = (o - first) % together, k = o - first;
          if (place == 0) {
            copy_in(grads + grad.offset(image, o), grad.steps, std::min(together, last - o), grad_layout,
                    grad_planes.get());
          }
          const T* rows = grad_planes.get() + place * grad_layout.size() + grad_layout.pitch();
          correlate(planes.get() + (o / multiplier - channel) * size, plan.shape,
                    GradPlane<T>{rows, problem.rows.outputs, grad_layout.pitch()}, cells.data() + first_cell[k],
                    first_cell[k + 1] - first_cell[k], pairs, sums.data() + first_sum[k]);
        }
      }
      for (int64_t o = first; o < last; ++o) {
        const int64_t k = o - first, own = o * problem.count;
        differentiate(grid, cells.data() + first_cell[k], first_cell[k + 1] - first_cell[k], pairs,
                      sums.data() + first_sum[k], problem.elements<T>(o), problem.rules, to_weight + own,
                      to_P + problem.row_of_y * all + own, to_P + problem.row_of_x * all + own);
      }
    }
  });
}

Tensor forward(Tensor input, Tensor weight, Tensor P, std::vector<int64_t> size, std::vector<int64_t> axes,
               bool normalise, bool right_slope, std::vector<int64_t> stride, std::vector<int64_t> padding) {
  STD_TORCH_CHECK(input.dim() == 4, "input must be (batch, channels, height, width), got ",
                  shape_of(input));
  const Images images(input);
  const Problem problem = make_problem(weight, P, input.scalar_type(), images.channels, images.steps.height,
                                       images.steps.width, size, axes, normalise, right_slope, stride, padding);
  Images out = empty_images({images.batch, problem.outputs, problem.rows.outputs, problem.columns.outputs}, images);
  dispatch(input, [&](auto t, auto s) { run_forward<decltype(t), decltype(s)>(problem, images, out); });
  return out.tensor;
}

Tensor input_grad(Tensor grad, Tensor weight, Tensor P, std::vector<int64_t> input_size, std::vector<int64_t> size,
                  std::vector<int64_t> axes, bool normalise, bool right_slope, std::vector<int64_t> stride,
                  std::vector<int64_t> padding) {
  STD_TORCH_CHECK(input_size.size() == 3, "input_size must be channels, height, width; got ", input_size.size(),
                  " numbers");
  const Problem problem = make_problem(weight, P, grad.scalar_type(), input_size[0], input_size[1], input_size[2], size,
                                       axes, normalise, right_slope, stride, padding);
  check_grad(grad, problem);
  const Images grads(grad);
  Images out = empty_images({grads.batch, input_size[0], input_size[1], input_size[2]}, grads);
  dispatch(grad, [&](auto t, auto s) { run_input_grad<decltype(t), decltype(s)>(problem, grads, out); });
  return out.tensor;
}

std::tuple<Tensor, Tensor> kernel_grad(Tensor grad, Tensor input, Tensor weight, Tensor P, std::vector<int64_t> size,
                                       std::vector<int64_t> axes, bool normalise, bool right_slope,
                                       std::vector<int64_t> stride, std::vector<int64_t> padding) {
  STD_TORCH_CHECK(input.dim() == 4, "input must be (batch, channels, height, width), got ",
                  shape_of(input));
  const Problem problem = make_problem(weight, P, input.scalar_type(), input.size(1), input.size(2), input.size(3),
                                       size, axes, normalise, right_slope, stride, padding);
  check_grad(grad, problem);
  STD_TORCH_CHECK(grad.size(0) == input.size(0) && grad.scalar_type() == input.scalar_type(),
                  "grad and input must have the same batch and dtype, got ", shape_of(grad), " and ", shape_of(input));
  const Images images(input), grads(grad);
  Tensor weight_grad = torch::stable::empty_like(problem.weight), P_grad = torch::stable::empty_like(problem.P);
  dispatch(input, [&](auto t, auto s) {
    run_kernel_grad<decltype(t), decltype(s)>(problem, grads, images, weight_grad, P_grad);
  });
  return {weight_grad, P_grad};
}

}  // namespace convswap::sparse

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("dcls_sparse_depthwise_conv2d", TORCH_BOX(&convswap::sparse::forward));
  m.impl("dcls_sparse_depthwise_conv2d_input_grad", TORCH_BOX(&convswap::sparse::input_grad));
  m.impl("dcls_sparse_depthwise_conv2d_kernel_grad", TORCH_BOX(&convswap::sparse::kernel_grad));
}
