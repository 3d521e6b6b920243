// Normalisation of rows (sets, rows, c): every column of a set has numbers of its own, (sets, c).
// One set is all rows of a batch, or sets are its examples.

enum { BLOCK = 256, RUN = 16 };

// The mean of some values, as far as it is from one of their column, and the sum of squares about
// it. Distances have digits that means lack.
struct Moments {
  double count, mean, squares;

  // As Chan, Golub and LeVeque 1979 put them together.
  __device__ void merge(const Moments &other) {
    if (other.count == 0) return;
    const double all = count + other.count;
    const double step = other.mean - mean, share = other.count / all;
    mean += step * share;
    squares += other.squares + step * step * (count * share);
    count = all;
  }
};

// Two sums.
struct Sums {
  double first, second;

  __device__ void merge(const Sums &other) {
    first += other.first;
    second += other.second;
  }
};

// What the threads of this column of the block have, together; only those with threadIdx.y = 0 may
// use it.
template <class Found> __device__ inline Found together(const Found &own) {
  __shared__ Found all[BLOCK];
  Found *mine = all + threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // an earlier set's may still be read
  *mine = own;
  for (u32 count = blockDim.y; count > 1;) {
    const u32 half = (count + 1) / 2;
    __syncthreads();
    if (threadIdx.y + half < count) mine->merge(mine[half * blockDim.x]);
    count = half;
  }
  return *mine;
}

// Calls add(found, place, step, count) for the threads' runs of places, and result(column, found)
// with what a set's block found in a column. Where several blocks share it that goes to `partial`
// (sets, blocks, c), for `total`.
template <class Found, class Add, class Result>
__device__ inline void reduce(Found *partial, i64 sets, i64 rows, i64 c, i64 rows_per_block,
                              Add add, Result result) {
  const i64 channel = (i64)blockIdx.y * blockDim.x + threadIdx.x;
  const i64 begin = blockIdx.x * rows_per_block;
  const i64 end = channel < c ? min(rows, begin + rows_per_block) : begin;
  for (i64 set = blockIdx.z; set < sets; set += gridDim.z) {
    Found found = {};
    for (i64 row = begin + threadIdx.y; row < end; row += RUN * blockDim.y)
      add(found, (set * rows + row) * c + channel, blockDim.y * c,
          (end - row + blockDim.y - 1) / blockDim.y);
    found = together(found);
    if (threadIdx.y || channel >= c) continue;
    if (gridDim.x == 1)
      result(set * c + channel, found);
    else
      partial[(set * gridDim.x + blockIdx.x) * c + channel] = found;
  }
}

template <class Found, class Result>
__device__ inline void total(const Found *partial, i64 sets, i64 parts, i64 c, Result result) {
  const i64 channel = (i64)blockIdx.y * blockDim.x + threadIdx.x;
  for (i64 set = blockIdx.z; set < sets; set += gridDim.z) {
    Found found = {};
    if (channel < c)
      for (i64 part = threadIdx.y; part < parts; part += blockDim.y)
        found.merge(partial[(set * parts + part) * c + channel]);
    found = together(found);
    if (threadIdx.y == 0 && channel < c) result(set * c + channel, found);
  }
}

// A run's squares are about its own mean: it stays in registers. Means are told from a column's
// first value in a set.
extern "C" __global__ void moments(const real *x, Moments *partial, double *means, double *squares,
                                   i64 sets, i64 rows, i64 c, i64 rows_per_block) {
  const i64 all = rows * c;
  const auto add = [=](Moments &found, i64 at, i64 step, i64 count) {
    real values[RUN], sum = 0, distances = 0, about_squares = 0;
#pragma unroll
    for (int k = 0; k < RUN; ++k) {
      values[k] = k < count ? x[at + k * step] : real(0);
      sum += values[k];
    }
    const i64 n = min(count, (i64)RUN);
    const real about = sum / n;
#pragma unroll
    for (int k = 0; k < RUN; ++k) {
      const real distance = k < count ? values[k] - about : real(0);
      distances += distance;
      about_squares += distance * distance;
    }
    // the mean was rounded
    const double off = (double)distances / n;
    const double mean = ((double)about - x[at / all * all + at % c]) + off;
    found.merge({(double)n, mean, max(0.0, about_squares - distances * off)});
  };
  reduce(partial, sets, rows, c, rows_per_block, add, [=](i64 i, const Moments &found) {
    means[i] = x[i / c * all + i % c] + found.mean;
    squares[i] = found.squares;
  });
}

extern "C" __global__ void total_moments(const real *x, const Moments *partial, double *means,
                                         double *squares, i64 sets, i64 parts, i64 c, i64 rows) {
  total(partial, sets, parts, c, [=](i64 i, const Moments &found) {
    means[i] = x[i / c * rows * c + i % c] + found.mean;
    squares[i] = found.squares;
  });
}

extern "C" __global__ void normalise_sums(const real *dy, const real *x, const real *mean,
                                          Sums *partial, real *sums, real *products, i64 sets,
                                          i64 rows, i64 c, i64 rows_per_block) {
  const i64 all = rows * c;
  const auto add = [=](Sums &found, i64 at, i64 step, i64 count) {
    const real about = mean[at / all * c + at % c];
    real first = 0, second = 0;
#pragma unroll
    for (int k = 0; k < RUN; ++k)
      if (k < count) {
        const real d = dy[at + k * step];
        first += d;
        second += d * (x[at + k * step] - about);
      }
    found.merge({first, second});
  };
  reduce(partial, sets, rows, c, rows_per_block, add, [=](i64 i, const Sums &found) {
    sums[i] = found.first;
    products[i] = found.second;
  });
}

extern "C" __global__ void total_normalise_sums(const real *dy, const Sums *partial, real *sums,
                                                real *products, i64 sets, i64 parts, i64 c,
                                                i64 rows) {
  total(partial, sets, parts, c, [=](i64 i, const Sums &found) {
    sums[i] = found.first;
    products[i] = found.second;
  });
}

// A thread keeps N columns and goes down the rows of a set: make(column) reads what all of them
// need and gives what is called for the place of every N values.
template <int N, class Make>
__device__ inline void each_row(i64 sets, i64 rows, i64 c, Make make) {
  const i64 row_step = (i64)gridDim.x * blockDim.y;
  for (i64 set = blockIdx.z; set < sets; set += gridDim.z)
    for (i64 i = ((i64)blockIdx.y * blockDim.x + threadIdx.x) * N; i < c;
         i += (i64)gridDim.y * blockDim.x * N) {
      const auto f = make(set * c + i);
#pragma unroll 4
      for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += row_step)
        f((set * rows + row) * c + i);
    }
}

template <int N>
__device__ inline void normalised(const real *x, const real *mean, const real *scale,
                                  const real *shift, real *y, i64 sets, i64 rows, i64 c) {
  each_row<N>(sets, rows, c, [=](i64 column) {
    const Pack<real, N> about = load<N>(mean + column), a = load<N>(scale + column),
                        b = load<N>(shift + column);
    return [=](i64 at) {
      Pack<real, N> p = load<N>(x + at);
      for (int l = 0; l < N; ++l) p.v[l] = (p.v[l] - about.v[l]) * a.v[l] + b.v[l];
      store<N>(y + at, p);
    };
  });
}

extern "C" __global__ void normalise(const real *x, const real *mean, const real *scale,
                                     const real *shift, real *y, i64 sets, i64 rows, i64 c) {
  if (c % WIDE == 0 && packable<WIDE>(x) && packable<WIDE>(mean) && packable<WIDE>(scale) &&
      packable<WIDE>(shift) && packable<WIDE>(y))
    normalised<WIDE>(x, mean, scale, shift, y, sets, rows, c);
  else
    normalised<1>(x, mean, scale, shift, y, sets, rows, c);
}

template <int N>
__device__ inline void gradient(const real *dy, const real *x, const real *mean,
                                const real *factors, real *dx, i64 sets, i64 rows, i64 c) {
  each_row<N>(sets, rows, c, [=](i64 column) {
    const i64 next = sets * c;
    const Pack<real, N> about = load<N>(mean + column), scale = load<N>(factors + column),
                        along = load<N>(factors + next + column),
                        shift = load<N>(factors + 2 * next + column);
    return [=](i64 at) {
      Pack<real, N> d = load<N>(dy + at);
      const Pack<real, N> p = load<N>(x + at);
      for (int l = 0; l < N; ++l)
        d.v[l] = d.v[l] * scale.v[l] - ((p.v[l] - about.v[l]) * along.v[l] + shift.v[l]);
      store<N>(dx + at, d);
    };
  });
}

// `factors` are scales, then what is along x, then shifts.
extern "C" __global__ void normalise_dx(const real *dy, const real *x, const real *mean,
                                        const real *factors, real *dx, i64 sets, i64 rows, i64 c) {
  if (c % WIDE == 0 && packable<WIDE>(dy) && packable<WIDE>(x) && packable<WIDE>(mean) &&
      packable<WIDE>(factors) && packable<WIDE>(dx))
    gradient<WIDE>(dy, x, mean, factors, dx, sets, rows, c);
  else
    gradient<1>(dy, x, mean, factors, dx, sets, rows, c);
}
