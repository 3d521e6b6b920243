// Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3), of dense
// (rows, c) memory. A block takes TILE consecutive values, whatever rows they are in, and shares
// what is summed over the windows, with a margin on either side, through shared memory.

enum { BLOCK = 256, EACH = 4, TILE = BLOCK * EACH };
// Blocks that share a multiprocessor: while some wait for each other, others read. With floats it
// is full, and nothing is spilled.
enum { OCCUPANCY = 32 / sizeof(real) };

// scale**-beta. Square roots are several times faster than powers: the papers' beta is worth a
// branch.
__device__ inline real inverse_power(real scale, real beta) {
  if (beta != real(0.75)) return pow(scale, -beta);
  const real root = rsqrt(scale);
  return root * sqrt(root);
}

// Calls visit(at, sum) for every value of the array, where sum is that of term(i) over the channels
// from `before` in front of the value to `after` behind it. SIZE is before + after + 1, or 0 where
// that is not known at compile time.
template <int SIZE, class Term, class Visit>
__device__ inline void window_sums(i64 n, int c, int before, int after, Term term,
                                          Visit visit) {
  extern __shared__ double memory[];
  real *terms = reinterpret_cast<real *>(memory) + before;  // terms[i] of value tile + i
  const int size = SIZE ? SIZE : before + after + 1;
  const i64 step = (i64)gridDim.x * TILE;
  const int channel_step = step % c;
  i64 tile = (i64)blockIdx.x * TILE;
  int channel[EACH];
  for (int k = 0; k < EACH; ++k) channel[k] = (tile + threadIdx.x + k * BLOCK) % c;
  for (; tile < n; tile += step) {
    __syncthreads();  // the last tile's terms may still be read
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      const int i = threadIdx.x + k * BLOCK;
      if (tile + i < n) terms[i] = term(tile + i);
    }
    for (int i = threadIdx.x; i < before + after; i += BLOCK) {
      const int margin = i < before ? i - before : TILE + i - before;
      if (tile + margin >= 0 && tile + margin < n) terms[margin] = term(tile + margin);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
      const int i = threadIdx.x + k * BLOCK;
      real sum = 0;
#pragma unroll(SIZE ? SIZE : 4)
      for (int j = 0; j < size; ++j) {
        const int other = channel[k] + j - before;
        if (other >= 0 && other < c) sum += terms[i + j - before];
      }
      if (tile + i < n) visit(tile + i, sum);
      channel[k] += channel_step;
      if (channel[k] >= c) channel[k] -= c;
    }
  }
}

template <int SIZE>
__device__ inline void forward(const real *x, real *y, real *scale, i64 n, int c, int before,
                                      int after, real weight, real beta, real k) {
  window_sums<SIZE>(
      n, c, before, after, [=](i64 i) { return x[i] * x[i]; },
      [=](i64 i, real sum) {
        const real divisor = k + weight * sum;
        scale[i] = divisor;
        y[i] = x[i] * inverse_power(divisor, beta);
      });
}

// dx_i = dy_i scale_i**-beta - 2 alpha beta / size x_i (sum of dy_j y_j / scale_j over the windows j
// that hold i: the mirrored window)
template <int SIZE>
__device__ inline void backward(const real *dy, const real *x, const real *y,
                                       const real *scale, real *dx, i64 n, int c, int before,
                                       int after, real weight, real beta) {
  window_sums<SIZE>(
      n, c, before, after, [=](i64 i) { return dy[i] * y[i] / scale[i]; },
      [=](i64 i, real sum) {
        dx[i] = dy[i] * inverse_power(scale[i], beta) - 2 * beta * weight * x[i] * sum;
      });
}

// weight = alpha / size
extern "C" __global__ void __launch_bounds__(BLOCK, OCCUPANCY)
lrn(const real *x, real *y, real *scale, i64 n, i64 c, i64 before, i64 after, real weight,
    real beta, real k) {
  if (before == 2 && after == 2)
    forward<5>(x, y, scale, n, c, 2, 2, weight, beta, k);
  else
    forward<0>(x, y, scale, n, c, before, after, weight, beta, k);
}

extern "C" __global__ void __launch_bounds__(BLOCK, OCCUPANCY)
lrn_dx(const real *dy, const real *x, const real *y, const real *scale, real *dx, i64 n, i64 c,
       i64 before, i64 after, real weight, real beta) {
  if (before == 2 && after == 2)
    backward<5>(dy, x, y, scale, dx, n, c, 2, 2, weight, beta);
  else
    backward<0>(dy, x, y, scale, dx, n, c, before, after, weight, beta);
}
