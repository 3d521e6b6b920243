// Operations per channel on arrays seen as (n, channels, inner).

#include "common.h"

// A sum in double. Interleaved partial sums, as a single one would wait for itself; they are kept
// from row to row, as rows may be short.
struct Sum {
  static constexpr i64 width = 16;
  double partial[width] = {};

  template <class F> void add(i64 n, F &&value) {
    i64 i = 0;
    // Conversions are what takes the time: four values are added before one.
    for (; i + 4 * width <= n; i += 4 * width)
      for (i64 j = 0; j < width; ++j)
        partial[j] += double((value(i + j) + value(i + j + width)) +
                             (value(i + j + 2 * width) + value(i + j + 3 * width)));
    for (; i + width <= n; i += width)
      for (i64 j = 0; j < width; ++j) partial[j] += double(value(i + j));
    for (i64 j = 0; i < n; ++i, ++j) partial[j] += double(value(i));
  }

  double total() const {
    double sum = 0;
    for (double part : partial) sum += part;
    return sum;
  }
};

// Rank 2, where a channel's values lie apart: whole rows are added, a block of channels to a task.
template <class T, class F> void column_sums(i64 n, i64 channels, F &&value, T *sums) {
  constexpr i64 width = 64;
  parallel_for<char>(ceil_div(channels, width), 0, [&](i64 task, char *) {
    const i64 begin = task * width, end = std::min(channels, begin + width);
    double partial[width] = {};
    for (i64 i = 0; i < n; ++i)
      for (i64 c = begin; c < end; ++c) partial[c - begin] += double(value(i * channels + c));
    for (i64 c = begin; c < end; ++c) sums[c] = T(partial[c - begin]);
  });
}

template <class T, class F> void channel_sums(i64 n, i64 channels, i64 inner, F &&value, T *sums) {
  if (inner == 1) return column_sums(n, channels, value, sums);
  parallel_for<char>(channels, 0, [&](i64 c, char *) {
    Sum sum;
    for (i64 i = 0; i < n; ++i) {
      const i64 at = (i * channels + c) * inner;
      sum.add(inner, [&](i64 p) { return value(at + p); });
    }
    sums[c] = T(sum.total());
  });
}

template <class T> static void bind(nb::module_ &m) {
  m.def("channel_sums", [](In<T> a, Out<T> sums) {
    const T *from = a.data();
    nb::gil_scoped_release unlocked;
    channel_sums<T>(a.shape(0), a.shape(1), a.shape(2), [=](i64 i) { return from[i]; },
                    sums.data());
  });
  m.def("channel_sums", [](In<T> a, In<T> b, Out<T> sums) {
    const T *left = a.data(), *right = b.data();
    nb::gil_scoped_release unlocked;
    channel_sums<T>(a.shape(0), a.shape(1), a.shape(2),
                    [=](i64 i) { return double(left[i]) * double(right[i]); }, sums.data());
  });
  m.def("scale_shift", [](In<T> x, In<T> scale, In<T> shift, Out<T> y) {
    const i64 channels = x.shape(1), inner = x.shape(2), planes = x.shape(0) * channels;
    nb::gil_scoped_release unlocked;
    // As many planes to a task as are worth a thread's while: n may be 1, or a plane one value.
    const i64 run = ceil_div(1 << 15, std::max<i64>(1, inner));
    parallel_for<char>(ceil_div(planes, run), 0, [&](i64 task, char *) {
      for (i64 plane = task * run; plane < std::min(planes, (task + 1) * run); ++plane) {
        const T factor = scale.data()[plane % channels], offset = shift.data()[plane % channels];
        const T *from = x.data() + plane * inner;
        T *to = y.data() + plane * inner;
        for (i64 p = 0; p < inner; ++p) to[p] = from[p] * factor + offset;
      }
    });
  });
}

void bind_channel(nb::module_ &m) {
  bind<float>(m);
  bind<double>(m);
}
