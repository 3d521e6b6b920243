// Sums over the rows of a dense (rows, c) array, in two stages and always in the same order: blocks
// add up runs of rows, then one block per few channels adds up what they found.

enum { BLOCK = 256, RUN = 16 };

// The sum of value(row) over rows begin … end - 1 by the threads of this column of the block. A
// thread adds RUN values at a time in T, which keeps as many reads in flight, and these in double.
template <class T, class F> __device__ inline double column_sum(i64 begin, i64 end, F value) {
  double sum = 0;
  for (i64 row = begin + threadIdx.y; row < end; row += RUN * blockDim.y) {
    T part = 0;
#pragma unroll
    for (int k = 0; k < RUN; ++k) {
      const i64 at = row + k * blockDim.y;
      if (at < end) part += value(at);
    }
    sum += part;
  }
  __shared__ double sums[BLOCK];
  double *mine = sums + threadIdx.y * blockDim.x + threadIdx.x;
  *mine = sum;
  for (u32 count = blockDim.y; count > 1;) {
    const u32 half = (count + 1) / 2;
    __syncthreads();
    if (threadIdx.y + half < count) *mine += mine[half * blockDim.x];
    count = half;
  }
  return *mine;
}

template <class F>
__device__ inline void partial_sums(double *partial, real *sums, i64 rows, i64 c,
                                           i64 rows_per_block, F value) {
  const i64 channel = (i64)blockIdx.y * blockDim.x + threadIdx.x;
  const i64 begin = blockIdx.x * rows_per_block;
  const i64 end = channel < c ? min(rows, begin + rows_per_block) : begin;
  const double sum =
      column_sum<real>(begin, end, [&](i64 row) { return value(row * c + channel); });
  if (threadIdx.y || channel >= c) return;
  if (gridDim.x == 1)
    sums[channel] = sum;
  else
    partial[blockIdx.x * c + channel] = sum;
}

// What a single block per channel finds goes to `sums` at once, else to `partial` (blocks, c).
extern "C" __global__ void channel_sums(const real *a, double *partial, real *sums, i64 rows, i64 c,
                                        i64 rows_per_block) {
  partial_sums(partial, sums, rows, c, rows_per_block, [=](i64 i) { return a[i]; });
}

extern "C" __global__ void channel_products(const real *a, const real *b, double *partial,
                                            real *sums, i64 rows, i64 c, i64 rows_per_block) {
  partial_sums(partial, sums, rows, c, rows_per_block, [=](i64 i) { return a[i] * b[i]; });
}

extern "C" __global__ void total_sums(const double *partial, real *sums, i64 rows, i64 c) {
  const i64 channel = (i64)blockIdx.y * blockDim.x + threadIdx.x;
  const double sum = column_sum<double>(0, channel < c ? rows : 0, [=](i64 row) {
    return partial[row * c + channel];
  });
  if (threadIdx.y == 0 && channel < c) sums[channel] = sum;
}
