// The activation of hybrid dense layers, and its gradients, over numbers that are neighbours in memory.
#pragma once

#include <limits>

#include "guided_numbers.h"
#include "hybrid_power.h"

namespace convswap::hybrid {

using guided::BFloat16;
using guided::Half;

constexpr double LEAST = 1e-8, MOST_POWER = 10;

// Numbers are computed with in vectors of doubles, doubles themselves one at a time.
template <int BYTES, typename S>
using Lanes = std::conditional_t<std::is_same_v<S, double>, double, Vec<double, BYTES>>;

// The greatest finite number that is stored.
template <typename S>
constexpr double most() {
  if constexpr (std::is_same_v<S, BFloat16>) return 0x1.fep127;
  else if constexpr (std::is_same_v<S, Half>) return 65504;
  else return std::numeric_limits<S>::max();
}

template <int BYTES, typename S>
CONVSWAP_INLINE Lanes<BYTES, S> read(const S* from) {
  if constexpr (std::is_same_v<S, double>) return *from;
  else return __builtin_convertvector(guided::widened<BYTES / 2>(from), Lanes<BYTES, S>);
}

template <int BYTES, typename S>
CONVSWAP_INLINE void write(S* to, Lanes<BYTES, S> value) {
  if constexpr (std::is_same_v<S, double>) *to = value;
  else guided::put<BYTES / 2>(to, __builtin_convertvector(value, Vec<float, BYTES / 2>));
}

// Of a channel, or of as many as there are lanes.
template <typename D>
struct Channel {
  D factor, exponent, inside;  // what is inside the clips is 1, else 0

  CONVSWAP_INLINE Channel(D factor, D power) : factor(factor), exponent(power) {
    exponent = choose(exponent < -MOST_POWER, D{} - MOST_POWER, exponent);
    exponent = choose(exponent > MOST_POWER, D{} + MOST_POWER, exponent);
    inside = choose(exponent == power, D{} + 1, D{});
  }
};

template <typename D>
CONVSWAP_INLINE D absolute(D value) {
  return as_bits<D>(as_bits<Whole<D>>(value) & std::numeric_limits<int64_t>::max());
}

template <typename D>
CONVSWAP_INLINE D with_sign_of(D value, D other) {
  constexpr int64_t sign = std::numeric_limits<int64_t>::min();
  return as_bits<D>((as_bits<Whole<D>>(value) & ~sign) | (as_bits<Whole<D>>(other) & sign));
}

// What a number is made of. It fits if it is one and not greater than the type that is computed in can hold.
template <typename S, typename D>
struct Parts {
  D base, raised, log2, size;

  CONVSWAP_INLINE Parts(D z, const Channel<D>& channel) {
    base = choose(z > 0, z, D{}) + LEAST;
    const Power<D> power = power_of(base, channel.exponent);
    // In single precision, which half is computed in, what is beyond is infinite, whatever it is multiplied with.
    constexpr double beyond = most<guided::Computed<S>>(), infinity = std::numeric_limits<double>::infinity();
    raised = choose(power.raised > beyond, D{} + infinity, power.raised);
    const auto number = z == z;
    raised = choose(number, raised, choose(channel.exponent == 0, D{} + 1, z));  // as pow has it
    log2 = choose(number, power.log2, z);
    size = absolute(channel.factor) * raised;
  }
};

template <typename S, typename D>
CONVSWAP_INLINE D activated(D z, const Channel<D>& channel) {
  const Parts<S, D> parts(z, channel);
  const D size = choose(parts.size > most<S>(), D{} + most<S>(), parts.size);
  return with_sign_of(choose(size == size, size, D{}), z);
}

template <typename S, typename D>
CONVSWAP_INLINE D bounded(D value) {
  value = choose(value > most<S>(), D{} + most<S>(), value);
  return choose(value < -most<S>(), D{} - most<S>(), value);
}

template <typename D>
struct Gradients {
  D z, factor, exponent;
};

// As exact as the type that is computed in.
template <typename D>
CONVSWAP_INLINE D quotient(D above, D below) {
  if constexpr (std::is_same_v<D, double>) {
    return above / below;
  } else {
    using F = Vec<float, sizeof(D) / 2>;
    return __builtin_convertvector(__builtin_convertvector(above, F) / __builtin_convertvector(below, F), D);
  }
}

template <typename S, typename D>
CONVSWAP_INLINE Gradients<D> gradients_of(D grad, D z, const Channel<D>& channel) {
  constexpr double ln2 = 0.69314718055994531;
  const Parts<S, D> parts(z, channel);
  const auto fits = parts.size <= most<S>();
  const auto product = [&](D derivative) { return bounded<S>(grad * choose(fits, derivative, D{})); };
  const D sign = with_sign_of(D{} + 1, z);
  const D turned = choose(channel.factor > 0, sign, choose(channel.factor < 0, -sign, D{}));
  D raised = turned * parts.raised;  // a number of the type that is computed in
  if constexpr (!std::is_same_v<S, guided::Computed<S>>) raised = bounded<S>(raised);
  const D slope = choose(z > 0, bounded<S>(parts.size * quotient(channel.exponent, parts.base)), D{});
  D along = sign * channel.inside * parts.size * (parts.log2 * ln2);
  along = choose(along == along, bounded<S>(along), D{});  // 0 times infinity
  return {product(slope), product(raised), product(along)};
}

// Sums of doubles are of parts so small that they stay finite.
template <typename S>
constexpr double SHARE = std::is_same_v<S, double> ? 0x1p-64 : 1;

template <int BYTES, typename S>
constexpr int64_t AT_ONCE = sizeof(Lanes<BYTES, S>) / sizeof(double);

// The numbers of one channel, or of `count` channels with one number each.
template <bool ONE_CHANNEL>
struct Forward {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const S* z, const double* muls, const double* powers, int64_t count, S* out) {
    using D = Lanes<BYTES, S>;
    constexpr int64_t L = AT_ONCE<BYTES, S>;
    const Channel<D> same(D{} + *muls, D{} + *powers);
    const auto channels = [&](const double* m, const double* p) {
      if constexpr (ONE_CHANNEL) return same;
      else return Channel<D>(load<D>(m), load<D>(p));
    };
    int64_t i = 0;
    for (; i + L <= count; i += L) {
      write<BYTES>(out + i, activated<S>(read<BYTES>(z + i), channels(muls + i, powers + i)));
    }
    if (i == count) return;
    S last[L] = {};
    double m[L] = {}, p[L] = {};
    const int64_t left = count - i;
    __builtin_memcpy(last, z + i, left * sizeof(S));
    if constexpr (!ONE_CHANNEL) {
      __builtin_memcpy(m, muls + i, left * sizeof(double));
      __builtin_memcpy(p, powers + i, left * sizeof(double));
    }
    write<BYTES>(last, activated<S>(read<BYTES>(static_cast<const S*>(last)), channels(m, p)));
    __builtin_memcpy(out + i, last, left * sizeof(S));
  }
};

// As above; what belongs to a channel is added to `sums` (of muls) and `more` (of powers).
template <bool ONE_CHANNEL>
struct Backward {
  template <int BYTES, typename S>
  static CONVSWAP_INLINE void run(const S* grad, const S* z, const double* muls, const double* powers, int64_t count,
                                  S* out, double* sums, double* more) {
    using D = Lanes<BYTES, S>;
    constexpr int64_t L = AT_ONCE<BYTES, S>;
    const Channel<D> same(D{} + *muls, D{} + *powers);
    D all{}, all_more{};
    const auto block = [&](const S* g, const S* from, const double* m, const double* p, S* to, double* s, double* t) {
      if constexpr (ONE_CHANNEL) {
        const Gradients<D> found = gradients_of<S>(read<BYTES>(g), read<BYTES>(from), same);
        write<BYTES>(to, found.z);
        all += found.factor * SHARE<S>;
        all_more += found.exponent * SHARE<S>;
      } else {
        const Channel<D> channels(load<D>(m), load<D>(p));
        const Gradients<D> found = gradients_of<S>(read<BYTES>(g), read<BYTES>(from), channels);
        write<BYTES>(to, found.z);
        store(s, load<D>(s) + found.factor * SHARE<S>);
        store(t, load<D>(t) + found.exponent * SHARE<S>);
      }
    };
    int64_t i = 0;
    for (; i + L <= count; i += L) {
      block(grad + i, z + i, muls + i, powers + i, out + i, sums + i, more + i);
    }
    if (i < count) {
      S g[L] = {}, from[L] = {}, to[L];
      double m[L] = {}, p[L] = {}, s[L] = {}, t[L] = {};
      const int64_t left = count - i;
      __builtin_memcpy(g, grad + i, left * sizeof(S));
      __builtin_memcpy(from, z + i, left * sizeof(S));
      if constexpr (!ONE_CHANNEL) {
        __builtin_memcpy(m, muls + i, left * sizeof(double));
        __builtin_memcpy(p, powers + i, left * sizeof(double));
      }
      block(g, from, m, p, to, s, t);
      __builtin_memcpy(out + i, to, left * sizeof(S));
      if constexpr (!ONE_CHANNEL) {
        for (int64_t k = 0; k < left; ++k) sums[i + k] += s[k], more[i + k] += t[k];
      }
    }
    if constexpr (ONE_CHANNEL) {
      if constexpr (std::is_same_v<S, double>) {
        *sums += all, *more += all_more;
      } else {
        for (int64_t lane = 0; lane < L; ++lane) *sums += all[lane], *more += all_more[lane];
      }
    }
  }
};

}  // namespace convswap::hybrid
