// Crops of bytes (n, c, h, w), some of them mirrored, as normalised values (n, height, width, c).
// `windows` are tops, lefts and flips, n of each; `colors` are means and deviations, c of each.
// What lies outside the image is the mean.
extern "C" __global__ void images(const unsigned char *batch, const i64 *windows,
                                  const real *colors, real *out, i64 n, i64 c, i64 h, i64 w,
                                  i64 height, i64 width) {
  const u32 channels = c, items = width * c;
  for (i64 row = blockIdx.x; row < n * height; row += gridDim.x) {
    const i64 image = row / height, line = windows[image] + row % height;
    const i64 left = windows[n + image];
    const bool flip = windows[2 * n + image];
    for (u32 item = threadIdx.x; item < items; item += blockDim.x) {
      const u32 channel = item % channels, x = item / channels;
      const i64 column = left + (flip ? width - 1 - x : x);
      const real mean = colors[channel];
      real value = mean;
      if (line >= 0 && line < h && column >= 0 && column < w)
        value = batch[((image * c + channel) * h + line) * w + column];
      out[row * items + item] = (value - mean) / colors[channels + channel];
    }
  }
}
