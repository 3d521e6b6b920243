// Rows of logits (n, classes), one block each.

// join() of the values of all threads, known to all of them. Blocks are whole warps.
template <class T, class F> __device__ inline T over_block(T value, F join) {
  __shared__ T parts[32];
  for (int lanes = 16; lanes; lanes /= 2)
    value = join(value, __shfl_xor_sync(0xFFFFFFFFu, value, lanes));
  __syncthreads();  // the last call's parts may still be read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
  for (u32 warp = 1; warp < blockDim.x / 32; ++warp) value = join(value, parts[warp]);
  return value;
}

// The row is read three times, but only once from memory: it stays in the cache.
extern "C" __global__ void __launch_bounds__(1024)
    softmax_xent(const real *logits, const i64 *labels, real *losses, real *dlogits, i64 n,
                 i64 classes) {
  for (i64 row = blockIdx.x; row < n; row += gridDim.x) {
    const real *x = logits + row * classes;
    real largest = x[0], total = 0;
    for (i64 i = threadIdx.x; i < classes; i += blockDim.x) largest = max(largest, x[i]);
    largest = over_block(largest, [](real a, real b) { return max(a, b); });
    for (i64 i = threadIdx.x; i < classes; i += blockDim.x) total += exp(x[i] - largest);
    total = over_block(total, [](real a, real b) { return a + b; });
    const i64 label = labels[row];
    for (i64 i = threadIdx.x; i < classes; i += blockDim.x)
      dlogits[row * classes + i] = exp(x[i] - largest) / total - (i == label ? real(1) : real(0));
    if (threadIdx.x == 0) losses[row] = log(total) - (x[label] - largest);
  }
}

// ranks[row] = the number of logits that are not below the label's, itself one of them.
extern "C" __global__ void __launch_bounds__(1024)
    ranks(const real *logits, const i64 *labels, i64 *ranks, i64 n, i64 classes) {
  for (i64 row = blockIdx.x; row < n; row += gridDim.x) {
    const real *x = logits + row * classes;
    const real own = x[labels[row]];
    int below = 0;
    for (i64 i = threadIdx.x; i < classes; i += blockDim.x) below += x[i] < own;
    below = over_block(below, [](int a, int b) { return a + b; });
    if (threadIdx.x == 0) ranks[row] = classes - below;
  }
}

// How many of `ranks` (n,) are at most k, by one block.
extern "C" __global__ void __launch_bounds__(1024)
    count(const i64 *ranks, i64 *sum, i64 n, i64 k) {
  i64 mine = 0;
  for (i64 i = threadIdx.x; i < n; i += blockDim.x) mine += ranks[i] <= k;
  mine = over_block(mine, [](i64 a, i64 b) { return a + b; });
  if (threadIdx.x == 0) *sum = mine;
}
