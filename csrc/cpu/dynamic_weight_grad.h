// The gradients of a dynamic convolution to its kernels and to the attention.
//
// A block of the gradient to one sample's kernel is a product of outputs' gradients and pixels. While it is in the
// nearest cache it is added to the gradients of all kernels, and multiplied with them for the attention's.
#pragma once

#include "dynamic_problem.h"

namespace convswap::dynamic {

// Of all blocks of kernels, each with a sum for the attention.
constexpr int64_t MOST_PARTS = 128;

// Lanes are outputs; gradients to outputs are images, `last` being channels_last.
template <typename S, typename T>
void run_weight_grad(const Phase& phase, const Sizes& sizes, const KernelSteps& steps, const Images<T>& source,
                     const S* grad, bool last, const S* kernels, const S* attention, S* to_weight, S* to_attention) {
  using namespace guided;
  const Blocks blocks(sizes.outputs, sizes.kernels, sizeof(T));
  const int64_t K = sizes.kernels, pixels = phase.pixels.count();
  const int64_t terms = static_cast<int64_t>(phase.terms.kernel.size());
  const int64_t lane_blocks = parts(sizes.outputs, blocks.width), panels = sizes.groups * lane_blocks;
  const int64_t term_blocks = parts(terms, blocks.terms);
  const std::vector<T> shares(attention, attention + sizes.batch * K);
  const Scratch<T> grads(panels * sizes.batch * pixels * blocks.width);
  const auto panel_at = [&](int64_t panel, int64_t sample) {
    return grads.get() + (panel * sizes.batch + sample) * pixels * blocks.width;
  };
  const auto first_lane = [&](int64_t panel) { return panel % lane_blocks * blocks.width; };
  const auto lanes_of = [&](int64_t panel) { return std::min(blocks.width, sizes.outputs - first_lane(panel)); };
  torch::stable::parallel_for(0, panels * sizes.batch, grain(pixels * blocks.width), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(LANES_AT_ONCE * pixels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / sizes.batch, sample = task % sizes.batch, all = sizes.all_outputs();
      const int64_t lane = panel / lane_blocks * sizes.outputs + first_lane(panel);
      const S* from = grad + sample * all * pixels + lane * (last ? 1 : pixels);
      run_at_best_level<GetPixels>(from, pixels, last ? all : int64_t{1}, last ? int64_t{1} : pixels, lanes_of(panel),
                                   blocks.width, scratch.get(), panel_at(panel, sample));
    }
  });
  // Samples whose gradients stay in a second level cache, while those of the nearest hold a tile for each of them.
  const int64_t panel_bytes = pixels * blocks.width * static_cast<int64_t>(sizeof(T));
  const int64_t together = std::clamp<int64_t>(STACK_BYTES / panel_bytes, 1, 8), apart = most_sums() * blocks.width;
  // Parts with sums of their own, so that those do not depend on the number of threads.
  const int64_t tasks = panels * term_blocks, all_parts = std::min(tasks, MOST_PARTS);
  const int64_t dots_of_part = sizes.batch * K * Update::DOTS;
  const Scratch<T> dots(all_parts * dots_of_part);
  std::fill_n(dots.get(), all_parts * dots_of_part, T(0));
  torch::stable::parallel_for(0, all_parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t block = blocks.terms * blocks.width;
    const Scratch<T> stacked(K * block), found(K * block), sums(together * apart);
    const Scratch<T> scratch(LANES_AT_ONCE * std::max(blocks.terms, blocks.width));
    for (int64_t part = begin, task = tasks * begin / all_parts; task < tasks * end / all_parts; ++task) {
      while (task >= tasks * (part + 1) / all_parts) ++part;
      const int64_t panel = task / term_blocks, group = panel / lane_blocks, block_of = task % term_blocks;
      const int64_t first = terms * block_of / term_blocks, count = terms * (block_of + 1) / term_blocks - first;
      const int64_t size = count * blocks.width;
      const int64_t at = group * sizes.outputs * steps.output + first_lane(panel) * steps.output;
      const KernelBlock own{phase.terms.kernel.data() + first, count, steps.output, lanes_of(panel), blocks.width};
      T* const part_dots = dots.get() + part * dots_of_part;
      std::fill_n(found.get(), K * size, T(0));
      for (int64_t k = 0; k < K; ++k) {
        run_at_best_level<Stage>(kernels + at + k * steps.kernel, own, scratch.get(), stacked.get() + k * size);
      }
      cut(sizes.batch, together, [&](int64_t sample, int64_t samples) {
        cut(count, most_sums(), [&](int64_t term, int64_t tile) {
          for (int64_t b = 0; b < samples; ++b) {
            const T* image = source.data + (sample + b) * source.sample + group * sizes.inputs * source.channel;
            const Product<T> product{panel_at(panel, sample + b), phase.pixels.source.data(), pixels, image,
                                     phase.terms.source.data() + first + term, sums.get() + b * apart, false};
            run_at_best_level<Multiply>(product, static_cast<int>(tile), static_cast<int>(blocks.vectors));
          }
          const int64_t row = term * blocks.width;
          const Block<T> block{sums.get(), stacked.get() + row, shares.data() + sample * K, apart, K, size,
                               tile * blocks.width, found.get() + row, part_dots + sample * K * Update::DOTS};
          run_at_best_level<Update>(block, samples);
        });
      });
      for (int64_t k = 0; k < K; ++k) {
        run_at_best_level<Unstage>(static_cast<const T*>(found.get() + k * size), own, scratch.get(),
                                   to_weight + at + k * steps.kernel);
      }
    }
  });
  for (int64_t i = 0; i < sizes.batch * K; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < all_parts; ++part) {
      const T* own = dots.get() + part * dots_of_part + i * Update::DOTS;
      for (int64_t l = 0; l < Update::DOTS; ++l) sum += own[l];
    }
    to_attention[i] = static_cast<S>(sum);
  }
}

}  // namespace convswap::dynamic
