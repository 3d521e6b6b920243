// What all kernels share; its text is put before each file. No header is included, which
// makes compiling quick. REAL is float or double.

typedef long long i64;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef REAL real;

// How many reals are 16 bytes, the widest access of a thread.
enum { WIDE = 16 / sizeof(real) };

// N values that are read and written at once.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <int N, class T> __device__ inline bool packable(const T *p) {
  return (u64)p % sizeof(Pack<T, N>) == 0;
}

template <int N, class T> __device__ inline Pack<T, N> load(const T *p) {
  return *reinterpret_cast<const Pack<T, N> *>(p);
}

template <int N, class T> __device__ inline void store(T *p, const Pack<T, N> &values) {
  *reinterpret_cast<Pack<T, N> *>(p) = values;
}

__device__ inline i64 first_item() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline i64 item_step() { return (i64)gridDim.x * blockDim.x; }

// bf16 is the upper half of a float.
typedef unsigned short bf16;

__device__ inline float from_bf16(bf16 x) { return __uint_as_float((u32)x << 16); }

// The nearest bf16, the even one of two; NaN stays NaN.
__device__ inline bf16 to_bf16(float x) {
  u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40;
  return (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
}
