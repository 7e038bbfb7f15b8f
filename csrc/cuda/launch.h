// What the host side of every CUDA op needs: the device and its stream, and tensors as kernels take them.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#if defined(__CUDACC__)

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "common.cuh"

#define CONVSWAP_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(convswap, CUDA, m)

namespace convswap {

// Launches kernels on the device of a tensor, which is the current one meanwhile, on its current stream.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <typename... Parameters, typename... Arguments>
  void operator()(const Launch& launch, void (*kernel)(Parameters...), Arguments... arguments) const {
    if (launch.blocks <= 0) return;
    if (launch.shared_bytes > kSharedBytes) {
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.shared_bytes));
    }
    kernel<<<launch.grid(), launch.threads, launch.shared_bytes, stream_>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace convswap

#else  // compiled as C++, after tests/csrc/cuda_emulation.h: the same ops on the CPU, for tests

#include "common.cuh"

#define CONVSWAP_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(convswap, CPU, m)

namespace convswap {

struct OnDevice {
  explicit OnDevice(const torch::stable::Tensor&) {}

  template <typename... Parameters, typename... Arguments>
  void operator()(const Launch& launch, void (*kernel)(Parameters...), Arguments... arguments) const {
    if (launch.blocks <= 0) return;
    emulation::launch(launch.grid(), launch.threads, launch.shared_bytes, [&] { kernel(arguments...); });
  }
};

}  // namespace convswap

#endif

namespace convswap {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The tensor stored in C order.
inline Tensor in_order(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Whether a tensor of images or volumes is stored with its channels last, and not in C order as well.
inline bool is_channels_last(const Tensor& tensor) {
  const int64_t dim = tensor.dim();
  if (dim < 4 || dim > 5 || tensor.is_contiguous()) return false;
  int64_t expected = 1;
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t axis = i == 0 ? 1 : i == dim - 1 ? 0 : dim - i;
    if (tensor.size(axis) != 1 && tensor.stride(axis) != expected) return false;
    expected *= tensor.size(axis);
  }
  return true;
}

// The tensor stored with its channels last, or else in C order.
inline Tensor in_format(const Tensor& tensor, bool last) {
  if (!last) return in_order(tensor);
  if (is_channels_last(tensor)) return tensor;
  return torch::stable::contiguous(tensor,
                                   tensor.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d);
}

// Calls f with a zero of the tensor's element type.
template <typename Function>
void with_element(const Tensor& tensor, const char* name, Function&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(c10::BFloat16{});
    case ScalarType::Half: return f(c10::Half{});
    default: STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16, convert it");
  }
}

}  // namespace convswap
