// Tensor cores, as nvcuda::wmma has them, for products of 16 by 16 by 16; included by cuda_emulation.h.
//
// The lanes of a warp share the numbers of a fragment in an order that no program can know. Fragments start as NaN, and
// those that were loaded by lanes that do not agree on where from are told by the product.
#pragma once

#include <limits>
#include <type_traits>

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

// Numbers are kept in single precision, in which halves are exact.
template <typename Use, int kRows, int kColumns, int kDepth, typename T, typename Layout = void>
struct fragment {
  static_assert(kRows == 16 && kColumns == 16 && kDepth == 16);
  static constexpr int num_elements = 8;
  float x[num_elements];
  const void* from = nullptr;
  unsigned apart = 0;

  fragment() { std::fill(x, x + num_elements, std::numeric_limits<float>::quiet_NaN()); }
};

}  // namespace nvcuda::wmma

namespace emulation {

// Number e of a lane is this one of the 256, row by row.
inline int fragment_place(int lane, int e) { return e * warpSize + (lane * 5 + 11 * e) % warpSize; }

template <typename T>
void check_fragment(const T* memory, unsigned apart) {
  if (reinterpret_cast<std::uintptr_t>(memory) % 32) fail("a fragment's memory must be aligned to 32 bytes");
  if (apart * sizeof(T) % 16) fail("rows of a fragment must lie a multiple of 16 bytes apart");
}

}  // namespace emulation

namespace nvcuda::wmma {

template <typename Fragment>
void fill_fragment(Fragment& f, float value) {
  std::fill(f.x, f.x + Fragment::num_elements, value);
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, Layout>& f, const T* memory, unsigned apart) {
  emulation::check_fragment(memory, apart);
  for (int e = 0; e < f.num_elements; ++e) {
    const int place = emulation::fragment_place(emulation::lane(), e), row = place / 16, column = place % 16;
    f.x[e] = memory[std::is_same_v<Layout, row_major> ? row * apart + column : column * apart + row];
  }
  f.from = memory;
  f.apart = apart;
}

template <typename Sum, typename A, typename B>
void mma_sync(Sum& sum, const A& a, const B& b, const Sum& before) {
  struct Held {
    const A* a;
    const B* b;
  } held{&a, &b};
  const std::size_t first = emulation::current / warpSize * warpSize;
  if (emulation::count - first < warpSize) emulation::fail("a product of fragments takes a whole warp");
  std::memcpy(emulation::fibers[emulation::current]->slot, &held, sizeof(held));
  emulation::wait_for_warp();
  float left[256], right[256];
  for (int lane = 0; lane < warpSize; ++lane) {
    std::memcpy(&held, emulation::fibers[first + lane]->slot, sizeof(held));
    const bool agree = held.a->from == a.from && held.a->apart == a.apart && held.b->from == b.from &&
                       held.b->apart == b.apart;
    if (!agree) emulation::fail("the lanes of a warp loaded their fragments from different places");
    for (int e = 0; e < 8; ++e) {
      left[emulation::fragment_place(lane, e)] = held.a->x[e];
      right[emulation::fragment_place(lane, e)] = held.b->x[e];
    }
  }
  for (int e = 0; e < 8; ++e) {
    const int place = emulation::fragment_place(emulation::lane(), e), row = place / 16, column = place % 16;
    float total = before.x[e];
    for (int k = 0; k < 16; ++k) total += left[row * 16 + k] * right[k * 16 + column];
    sum.x[e] = total;
  }
  emulation::wait_for_warp();
}

template <typename T>
void store_matrix_sync(T* memory, const fragment<accumulator, 16, 16, 16, T>& f, unsigned apart, layout_t layout) {
  emulation::check_fragment(memory, apart);
  emulation::wait_for_warp();
  for (int e = 0; e < f.num_elements; ++e) {
    const int place = emulation::fragment_place(emulation::lane(), e), row = place / 16, column = place % 16;
    memory[layout == mem_row_major ? row * apart + column : column * apart + row] = f.x[e];
  }
}

}  // namespace nvcuda::wmma
