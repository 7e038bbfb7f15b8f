// Calling a template for the dtype that a test names by number: 0 float, 1 double, 2 bfloat16, 3 float16.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>

template <typename Function>
void with_dtype(long long dtype, Function&& function) {
  switch (dtype) {
    case 0: return function(float{});
    case 1: return function(double{});
    case 2: return function(c10::BFloat16{});
    case 3: return function(c10::Half{});
    default: throw std::runtime_error("no such dtype");
  }
}
