// Dropout with the masks of mpicnn/rng.py, drawn and applied in one pass.

#include "common.h"

#include <nanobind/stl/pair.h>

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) of `lanes` counters side by side.
constexpr i64 lanes = 16;

struct Words {
  std::uint32_t x[4][lanes];
};

static void philox(Words &words, std::uint32_t k0, std::uint32_t k1) {
  auto &x = words.x;
  for (int round = 0; round < 10; ++round) {
    for (i64 i = 0; i < lanes; ++i) {
      const std::uint64_t p0 = std::uint64_t(x[0][i]) * 0xD2511F53u;
      const std::uint64_t p1 = std::uint64_t(x[2][i]) * 0xCD9E8D57u;
      x[0][i] = std::uint32_t(p1 >> 32) ^ x[1][i] ^ k0;
      x[2][i] = std::uint32_t(p0 >> 32) ^ x[3][i] ^ k1;
      x[1][i] = std::uint32_t(p1);
      x[3][i] = std::uint32_t(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// One row: feature f is lane f % 4 of the counter (f // 4, position, step, layer).
template <class T>
void dropout_row(i64 features, i64 first, std::uint32_t position, std::uint32_t step,
                 std::uint32_t layer, std::pair<std::uint32_t, std::uint32_t> key,
                 std::uint64_t threshold, T kept, const T *x, T *y, T *mask) {
  for (i64 quad = first / 4; quad * 4 < first + features; quad += lanes) {
    Words words;
    for (i64 i = 0; i < lanes; ++i) {
      words.x[0][i] = std::uint32_t(quad + i);
      words.x[1][i] = position;
      words.x[2][i] = step;
      words.x[3][i] = layer;
    }
    philox(words, key.first, key.second);
    T drawn[4 * lanes];
    for (i64 i = 0; i < lanes; ++i)
      for (i64 lane = 0; lane < 4; ++lane)
        drawn[4 * i + lane] = words.x[lane][i] >= threshold ? kept : T(0);
    const i64 begin = std::max(first, quad * 4), end = std::min(first + features, (quad + lanes) * 4);
    for (i64 f = begin; f < end; ++f) {
      mask[f - first] = drawn[f - quad * 4];
      y[f - first] = x[f - first] * drawn[f - quad * 4];
    }
  }
}

template <class T> static void bind(nb::module_ &m) {
  m.def("dropout", [](In<T> x, In<i64> positions, i64 first, i64 step, i64 layer,
                      std::pair<std::uint32_t, std::uint32_t> key, std::uint64_t threshold, T kept,
                      Out<T> y, Out<T> mask) {
    const i64 features = x.shape(1);
    nb::gil_scoped_release unlocked;
    parallel_for<char>(i64(x.shape(0)), 0, [&](i64 i, char *) {
      const i64 at = i * features;
      dropout_row<T>(features, first, std::uint32_t(positions.data()[i]), std::uint32_t(step),
                     std::uint32_t(layer), key, threshold, kept, x.data() + at, y.data() + at,
                     mask.data() + at);
    });
  });
}

void bind_dropout(nb::module_ &m) {
  bind<float>(m);
  bind<double>(m);
}
