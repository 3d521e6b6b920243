// What CUDA's compiler knows by itself: qualifiers, vector types, indices, functions.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// Blocks run one after another, so what a block shares can be static. It gets a section of its
// own to be filled with NaN before each block.
#define __shared__ static __attribute__((section("standin_shared")))
#define __device__ __attribute__((unused))
#define __global__ __attribute__((unused))
#define __host__
#define __constant__ static
#define __forceinline__ __attribute__((unused))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define STANDIN_VECTOR(T, name, align2, align4)                                            \
    struct __align__(align2) name##2 { T x, y; };                                          \
    struct name##3 { T x, y, z; };                                                         \
    struct __align__(align4) name##4 { T x, y, z, w; };                                    \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }              \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
STANDIN_VECTOR(signed char, char, 2, 4)
STANDIN_VECTOR(unsigned char, uchar, 2, 4)
STANDIN_VECTOR(short, short, 4, 8)
STANDIN_VECTOR(unsigned short, ushort, 4, 8)
STANDIN_VECTOR(int, int, 8, 16)
STANDIN_VECTOR(float, float, 8, 16)
STANDIN_VECTOR(long long, longlong, 16, 16)
STANDIN_VECTOR(unsigned long long, ulonglong, 16, 16)
STANDIN_VECTOR(double, double, 16, 16)
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

// min and max take two of one type on a device; on unlike ones CUDA converts, here it is an error.
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline float rsqrtf(float x) { return float(1 / std::sqrt(double(x))); }
static inline double rsqrt(double x) { return 1 / std::sqrt(x); }
using std::isfinite;
using std::isinf;
using std::isnan;

template <class To, class From> static inline To standin_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &value, sizeof to);
    return to;
}
static inline int __float_as_int(float x) { return standin_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return standin_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return standin_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return standin_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return standin_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return standin_bits<double>(x); }

// Each operation by itself: nothing is fused on the host, so these are the plain ones.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

static inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned((unsigned long long)a * b >> 32);
}
static inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }

template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T value) { *p = value; }
