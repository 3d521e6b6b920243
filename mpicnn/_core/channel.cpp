// Operations per channel on arrays seen as (n, channels, inner).

#include "cells.h"

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
// A value is value(place, channel).
template <class T, class F> void column_sums(i64 n, i64 channels, F &&value, T *sums) {
  constexpr i64 width = 64;
  parallel_for<char>(ceil_div(channels, width), 0, [&](i64 task, char *) {
    const i64 begin = task * width, end = std::min(channels, begin + width);
    double partial[width] = {};
    for (i64 i = 0; i < n; ++i)
      for (i64 c = begin; c < end; ++c) partial[c - begin] += double(value(i * channels + c, c));
    for (i64 c = begin; c < end; ++c) sums[c] = T(partial[c - begin]);
  });
}

template <class T, class F> void channel_sums(i64 n, i64 channels, i64 inner, F &&value, T *sums) {
  if (inner == 1) return column_sums(n, channels, [&](i64 i, i64) { return value(i); }, sums);
  parallel_for<char>(channels, 0, [&](i64 c, char *) {
    Sum sum;
    for (i64 i = 0; i < n; ++i) {
      const i64 at = (i * channels + c) * inner;
      sum.add(inner, [&](i64 p) { return value(at + p); });
    }
    sums[c] = T(sum.total());
  });
}

// Two sums over the same values, in double: of distances x - about and of their squares, or of dy
// and of dy * (x - about).
template <class T> struct Pair {
  Cell<double> firsts = {}, seconds = {};
  double first_rest = 0, second_rest = 0;

  // Adds n values. `of_dy` says which sums they are; `dy` is for one of them.
  template <bool of_dy> void add(i64 n, const T *dy, const T *x, T about) {
    i64 i = 0;
    // As above conversions are what takes time: eight values are added before one.
    while (i + lanes <= n) {
      Cell<T> first = {}, second = {};
      for (const i64 end = std::min(n, i + 8 * lanes); i + lanes <= end; i += lanes) {
        const Cell<T> distance = cell(x + i) - about, factor = of_dy ? cell(dy + i) : distance;
        first += factor;
        second += factor * distance;
      }
      firsts += __builtin_convertvector(first, Cell<double>);
      seconds += __builtin_convertvector(second, Cell<double>);
    }
    T first = 0, second = 0;
    for (; i < n; ++i) {
      const T distance = x[i] - about, factor = of_dy ? dy[i] : distance;
      first += factor;
      second += factor * distance;
    }
    first_rest += double(first);
    second_rest += double(second);
  }

  static double total(const Cell<double> &sums, double rest) {
    double sum = rest;
    for (i64 j = 0; j < lanes; ++j) sum += sums[j];
    return sum;
  }
  double first() const { return total(firsts, first_rest); }
  double second() const { return total(seconds, second_rest); }
};

// The mean of some values, as far as it is from `base`, and the sum of squares about it, put
// together from parts as Chan, Golub and LeVeque 1979 do. Distances have digits that means lack.
struct Moments {
  double base = 0, count = 0, mean = 0, squares = 0;

  // Adds n > 0 values, given the sums of their distances from `about` and of the squares of these.
  void add(double n, double about, double distances, double about_squares) {
    if (count == 0) base = about;
    const double all = count + n, own = distances / n, step = (about - base) + own - mean;
    squares += std::max(0.0, about_squares - distances * own) + step * step * (count * n / all);
    mean += step * (n / all);
    count = all;
  }
};

// How many values are taken about one number.
constexpr i64 piece = 2048;

// One channel: rows of `inner` values, `pitch` apart. The squares of each piece are about the mean
// of those before it, those of the first about its own. Where a piece's mean is far from there its
// sums lose digits, but no more than the whole has to spare: its squares count that distance too,
// as those before are a quarter of all or more.
template <class T> Moments channel_moments(i64 n, i64 inner, i64 pitch, const T *from) {
  const i64 most = std::max<i64>(1, piece / std::max<i64>(1, inner));
  Moments moments;
  for (i64 i = 0, rows; i < n; i += rows) {
    rows = std::min({most, std::max<i64>(1, 3 * i), n - i});
    for (i64 p = 0; p < inner; p += piece) {
      const i64 length = std::min(piece, inner - p);
      const T *first = from + i * pitch + p;
      T about = T(moments.base + moments.mean);
      if (moments.count == 0) {
        Sum own;
        own.add(length, [=](i64 q) { return first[q]; });
        about = T(own.total() / double(length));
      }
      Pair<T> sums;
      for (i64 r = 0; r < rows; ++r)
        sums.template add<false>(length, nullptr, first + r * pitch, about);
      moments.add(double(rows * length), about, sums.first(), sums.second());
    }
  }
  return moments;
}

// Rank 2, a block of channels side by side, row by row; means are told from the first row.
template <class T>
void column_moments(i64 n, i64 channels, const T *x, double *means, double *squares) {
  constexpr i64 width = 64;
  parallel_for<char>(ceil_div(channels, width), 0, [&](i64 task, char *) {
    const i64 begin = task * width, count = std::min(channels - begin, width);
    double mean[width] = {}, square[width] = {};
    for (i64 i = 0; i < n; ++i) {
      const T *first = x + begin, *row = first + i * channels;
      const double share = 1 / double(i + 1);
      for (i64 c = 0; c < count; ++c) {
        const double distance = double(row[c]) - double(first[c]), step = distance - mean[c];
        mean[c] += step * share;
        square[c] += step * (distance - mean[c]);
      }
    }
    for (i64 c = 0; c < count; ++c) {
      means[begin + c] = n ? mean[c] + double(x[begin + c]) : 0;
      squares[begin + c] = square[c];
    }
  });
}

template <class T>
void moments(i64 n, i64 channels, i64 inner, const T *x, double *means, double *squares) {
  if (inner == 1) return column_moments(n, channels, x, means, squares);
  parallel_for<char>(channels, 0, [&](i64 c, char *) {
    const Moments found = channel_moments(n, inner, channels * inner, x + c * inner);
    means[c] = found.base + found.mean;
    squares[c] = found.squares;
  });
}

// The sums of dy and of dy * (x - mean) per channel.
template <class T>
void normalise_sums(i64 n, i64 channels, i64 inner, const T *dy, const T *x, const T *mean, T *sums,
                    T *products) {
  if (inner == 1) {
    column_sums(n, channels, [=](i64 i, i64) { return dy[i]; }, sums);
    column_sums(n, channels, [=](i64 i, i64 c) { return dy[i] * (x[i] - mean[c]); }, products);
    return;
  }
  parallel_for<char>(channels, 0, [&](i64 c, char *) {
    Pair<T> pair;
    for (i64 i = 0; i < n; ++i) {
      const i64 at = (i * channels + c) * inner;
      pair.template add<true>(inner, dy + at, x + at, mean[c]);
    }
    sums[c] = T(pair.first());
    products[c] = T(pair.second());
  });
}

// Calls f(plane, channel) for all planes of n examples.
template <class F> void each_plane(i64 n, i64 channels, i64 inner, F &&f) {
  // As many planes to a task as are worth a thread's while: n may be 1, or a plane one value.
  const i64 planes = n * channels, run = ceil_div(1 << 15, std::max<i64>(1, inner));
  parallel_for<char>(ceil_div(planes, run), 0, [&](i64 task, char *) {
    for (i64 plane = task * run; plane < std::min(planes, (task + 1) * run); ++plane)
      f(plane, plane % channels);
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
  m.def("moments", [](In<T> x, Out<double> means, Out<double> squares) {
    nb::gil_scoped_release unlocked;
    moments<T>(x.shape(0), x.shape(1), x.shape(2), x.data(), means.data(), squares.data());
  });
  m.def("normalise", [](In<T> x, In<T> mean, In<T> scale, In<T> shift, Out<T> y) {
    const i64 inner = x.shape(2);
    nb::gil_scoped_release unlocked;
    each_plane(x.shape(0), x.shape(1), inner, [&](i64 plane, i64 c) {
      const T about = mean.data()[c], factor = scale.data()[c], offset = shift.data()[c];
      const T *from = x.data() + plane * inner;
      T *to = y.data() + plane * inner;
#pragma GCC ivdep  // y may be x
      for (i64 p = 0; p < inner; ++p) to[p] = (from[p] - about) * factor + offset;
    });
  });
  m.def("normalise_sums", [](In<T> dy, In<T> x, In<T> mean, Out<T> sums, Out<T> products) {
    nb::gil_scoped_release unlocked;
    normalise_sums<T>(x.shape(0), x.shape(1), x.shape(2), dy.data(), x.data(), mean.data(),
                      sums.data(), products.data());
  });
  // `factors` are scales, then what is along x, then shifts.
  m.def("normalise_dx", [](In<T> dy, In<T> x, In<T> mean, In<T> factors, Out<T> dx) {
    const i64 channels = x.shape(1), inner = x.shape(2);
    nb::gil_scoped_release unlocked;
    each_plane(x.shape(0), channels, inner, [&](i64 plane, i64 c) {
      const T *factor = factors.data() + c, about = mean.data()[c];
      const T scale = factor[0], along = factor[channels], shift = factor[2 * channels];
      const T *d = dy.data() + plane * inner, *from = x.data() + plane * inner;
      T *to = dx.data() + plane * inner;
#pragma GCC ivdep  // dx may be dy
      for (i64 p = 0; p < inner; ++p) to[p] = d[p] * scale - ((from[p] - about) * along + shift);
    });
  });
}

void bind_channel(nb::module_ &m) {
  bind<float>(m);
  bind<double>(m);
}
