// Before and after products: operands rounded to bf16, results made of it, a bias added, ReLU.

__device__ inline bf16 as_bf16(float x) { return to_bf16(x); }
__device__ inline bf16 as_bf16(bf16 x) { return x; }

// y (y_rows, y_columns) = x (rows, columns) rounded, and 0 where x ends before y. A thread writes 8
// values.
template <class In>
__device__ void filled_rows(const In *x, i64 rows, i64 columns, bf16 *y, i64 y_rows,
                            i64 y_columns) {
  enum { WIDEST = 16 / sizeof(In) };
  i64 groups = (y_columns + 7) / 8;
  for (i64 i = first_item(); i < y_rows * groups; i += item_step()) {
    i64 row = i / groups, first = i % groups * 8;
    const In *from = x + row * columns + first;
    bf16 *to = y + row * y_columns + first;
    Pack<bf16, 8> eight;
    if (row < rows && first + 8 <= columns && packable<WIDEST>(from)) {
      for (int part = 0; part < 8; part += WIDEST) {
        Pack<In, WIDEST> some = load<WIDEST>(from + part);
        for (int j = 0; j < WIDEST; j++) eight.v[part + j] = as_bf16(some.v[j]);
      }
    } else {
      for (int j = 0; j < 8; j++)
        eight.v[j] = row < rows && first + j < columns ? as_bf16(from[j]) : (bf16)0;
    }
    if (first + 8 <= y_columns && packable<8>(to)) {
      store(to, eight);
    } else {
      for (int j = 0; j < 8 && first + j < y_columns; j++) to[j] = eight.v[j];
    }
  }
}

extern "C" __global__ void bf16_rows(const float *x, i64 rows, i64 columns, bf16 *y, i64 y_rows,
                                     i64 y_columns) {
  filled_rows(x, rows, columns, y, y_rows, y_columns);
}

extern "C" __global__ void bf16_filled(const bf16 *x, i64 rows, i64 columns, bf16 *y, i64 y_rows,
                                       i64 y_columns) {
  filled_rows(x, rows, columns, y, y_rows, y_columns);
}

// Finish the rows of y with `N` columns at once; a thread stays in its columns.
template <int N>
__device__ void finish_rows(real *y, const real *b, real least, i64 rows, i64 columns) {
  i64 packs = columns / N, threads = item_step(), thread = first_item();
  i64 across = packs < threads ? packs : threads, down = threads / across;
  if (thread >= across * down) return;
  for (i64 pack = thread % across; pack < packs; pack += across) {
    Pack<real, N> bias = load<N>(b + pack * N);
    for (i64 row = thread / across; row < rows; row += down) {
      real *at = y + row * columns + pack * N;
      Pack<real, N> sum = load<N>(at);
      for (int j = 0; j < N; j++) {
        sum.v[j] += bias.v[j];
        if (sum.v[j] < least) sum.v[j] = least;  // NaN stays
      }
      store(at, sum);
    }
  }
}

// y (rows, columns) += b (columns,), and nothing below `least`
extern "C" __global__ void finish(real *y, const real *b, real least, i64 rows, i64 columns) {
  if (columns % WIDE == 0 && packable<WIDE>(y) && packable<WIDE>(b))
    finish_rows<WIDE>(y, b, least, rows, columns);
  else
    finish_rows<1>(y, b, least, rows, columns);
}

// Finish rows of bf16 as `finish_rows` does those of y.
template <int N>
__device__ void finish_bf16_rows(const bf16 *x, i64 x_columns, const float *b, bool biased,
                                 float least, float *y, i64 rows, i64 columns) {
  i64 packs = columns / N, threads = item_step(), thread = first_item();
  i64 across = packs < threads ? packs : threads, down = threads / across;
  if (thread >= across * down) return;
  for (i64 pack = thread % across; pack < packs; pack += across) {
    Pack<float, N> bias = {};
    if (biased) bias = load<N>(b + pack * N);
    for (i64 row = thread / across; row < rows; row += down) {
      Pack<bf16, N> bits = load<N>(x + row * x_columns + pack * N);
      Pack<float, N> sum;
      for (int j = 0; j < N; j++) {
        sum.v[j] = from_bf16(bits.v[j]);
        if (biased) sum.v[j] += bias.v[j];
        if (sum.v[j] < least) sum.v[j] = least;  // NaN stays
      }
      store(y + row * columns + pack * N, sum);
    }
  }
}

// y (rows, columns) = the values of x, of which a line may be longer, + b (columns,), if `biased`,
// and nothing below `least`
extern "C" __global__ void finish_bf16(const bf16 *x, i64 x_columns, const float *b, i64 biased,
                                       float least, float *y, i64 rows, i64 columns) {
  bool wide = columns % 4 == 0 && x_columns % 4 == 0 && packable<4>(x) && packable<4>(y) &&
              (!biased || packable<4>(b));
  if (wide)
    finish_bf16_rows<4>(x, x_columns, b, biased, least, y, rows, columns);
  else
    finish_bf16_rows<1>(x, x_columns, b, biased, least, y, rows, columns);
}
