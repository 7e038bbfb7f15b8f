// The ops that draw DCLS elements of learned width, and their gradients.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "dcls_grid.h"
#include "dcls_lanes.h"
#include "dcls_separable_draw.h"
#include "dcls_separable_gradients.h"
#include "simd.h"

namespace {

using namespace convswap;
using torch::stable::Tensor;

struct Draw {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(
      const T* weight, const T* P, const T* SIG, T* kernels, const Grid& whole, WideOptions options, int64_t begin,
      int64_t end) {
    const Grid grid = whole;
    draw_wide<Together<T, BYTES>, CellsTogether<T, BYTES>>(weight, P, SIG, kernels, grid, options, begin, end);
  }
};

struct Gradients {
  template <int BYTES, typename T>
  static CONVSWAP_INLINE void run(
      const T* grad, const T* weight, const T* P, const T* SIG, T* weight_grad, T* P_grad, T* SIG_grad,
      const Grid& whole, WideOptions options, int64_t begin, int64_t end) {
    const Grid grid = whole;
    wide_gradients<Together<T, BYTES>, CellsTogether<T, BYTES>>(
        grad, weight, P, SIG, weight_grad, P_grad, SIG_grad, grid, options, begin, end);
  }
};

template <typename T>
void draw_all(
    const Tensor& weight, const Tensor& P, const Tensor& SIG, Tensor& kernels, const Grid& grid, WideOptions options) {
  const T *w = weight.const_data_ptr<T>(), *p = P.const_data_ptr<T>(), *s = SIG.const_data_ptr<T>();
  T* const out = kernels.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, grid.kernels, grain(grid), [&](int64_t begin, int64_t end) {
    if (grid.count == 0) {
      std::memset(out + begin * grid.cells, 0, (end - begin) * grid.cells * sizeof(T));
    } else {
      run_best<T, Draw>(w, p, s, out, grid, options, begin, end);
    }
  });
}

template <typename T>
void gradients_all(
    const Tensor& grad, const Tensor& weight, const Tensor& P, const Tensor& SIG, Tensor& weight_grad, Tensor& P_grad,
    Tensor& SIG_grad, const Grid& grid, WideOptions options) {
  const T *g = grad.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
  const T *p = P.const_data_ptr<T>(), *s = SIG.const_data_ptr<T>();
  T *const dw = weight_grad.mutable_data_ptr<T>(), *const dp = P_grad.mutable_data_ptr<T>();
  T* const ds = SIG_grad.mutable_data_ptr<T>();
  if (grid.elements == 0) return;
  torch::stable::parallel_for(0, grid.kernels, grain(grid), [&](int64_t begin, int64_t end) {
    run_best<T, Gradients>(g, w, p, s, dw, dp, ds, grid, options, begin, end);
  });
}

void check_widths(const char* op, const Tensor& P, const Tensor& SIG) {
  STD_TORCH_CHECK(SIG.scalar_type() == P.scalar_type(), op, ": SIG must have the dtype of P");
  bool fits = SIG.dim() == 4;
  for (int64_t i = 0; fits && i < 4; ++i) fits = SIG.size(i) == P.size(i);
  STD_TORCH_CHECK(
      fits, op, ": SIG must have the shape of P, (", P.size(0), ", ", P.size(1), ", ", P.size(2), ", ", P.size(3), ")");
}

Tensor dcls_separable(
    Tensor weight, Tensor P, Tensor SIG, std::vector<int64_t> size, std::vector<int64_t> axes, bool gaussian,
    double least_sigma) {
  const Grid grid = checked_grid("dcls_separable", weight, P, size, axes);
  check_widths("dcls_separable", P, SIG);
  std::vector<int64_t> shape{weight.size(0), weight.size(1)};
  shape.insert(shape.end(), size.begin(), size.end());
  Tensor kernels = torch::stable::new_empty(weight, shape);
  const WideOptions options{gaussian, least_sigma};
  weight = torch::stable::contiguous(weight);
  P = torch::stable::contiguous(P);
  SIG = torch::stable::contiguous(SIG);
  if (weight.scalar_type() == torch::headeronly::ScalarType::Float) {
    draw_all<float>(weight, P, SIG, kernels, grid, options);
  } else {
    draw_all<double>(weight, P, SIG, kernels, grid, options);
  }
  return kernels;
}

std::tuple<Tensor, Tensor, Tensor> dcls_separable_backward(
    Tensor grad, Tensor weight, Tensor P, Tensor SIG, std::vector<int64_t> axes, bool gaussian, double least_sigma) {
  const Grid grid = checked_grid("dcls_separable_backward", grad, weight, P, axes);
  check_widths("dcls_separable_backward", P, SIG);
  const WideOptions options{gaussian, least_sigma};
  grad = torch::stable::contiguous(grad);
  weight = torch::stable::contiguous(weight);
  P = torch::stable::contiguous(P);
  SIG = torch::stable::contiguous(SIG);
  Tensor weight_grad = torch::stable::empty_like(weight), P_grad = torch::stable::empty_like(P);
  Tensor SIG_grad = torch::stable::empty_like(SIG);
  if (weight.scalar_type() == torch::headeronly::ScalarType::Float) {
    gradients_all<float>(grad, weight, P, SIG, weight_grad, P_grad, SIG_grad, grid, options);
  } else {
    gradients_all<double>(grad, weight, P, SIG, weight_grad, P_grad, SIG_grad, grid, options);
  }
  return {weight_grad, P_grad, SIG_grad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m) {
  m.impl("dcls_separable", TORCH_BOX(&dcls_separable));
  m.impl("dcls_separable_backward", TORCH_BOX(&dcls_separable_backward));
}
