"""Kernels run on the stand-in as on a GPU, and what a GPU would punish is an error."""

import threading

import numpy as np
import pytest

hostgpu = pytest.importorskip("hostgpu", reason="there is a real GPU")

import cupy  # noqa: E402
from hostgpu.kernel import LaunchError  # noqa: E402
from hostgpu.memory import AddressError  # noqa: E402

SOURCE = r"""
#define FULL 0xffffffffu
typedef long long i64;

__device__ __forceinline__ REAL warp_sum(REAL v) {
  for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(FULL, v, step);
  return v;
}

extern "C" __global__ void scale(const REAL* __restrict__ x, REAL* __restrict__ y, i64 n, REAL f) {
  for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x)
    y[i] = x[i] * f;
}

extern "C" __global__ void __launch_bounds__(256) row_sums(const REAL* x, REAL* sums, int n) {
  __shared__ REAL part[8];
  REAL v = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[blockIdx.x * n + i];
  v = warp_sum(v);
  if (threadIdx.x % warpSize == 0) part[threadIdx.x / warpSize] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = warp_sum(threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0);
    if (threadIdx.x == 0) sums[blockIdx.x] = v;
  }
}

extern "C" __global__ void reverse(REAL* x) {
  extern __shared__ REAL own[];
  REAL* mine = x + blockIdx.x * blockDim.x;
  own[threadIdx.x] = mine[threadIdx.x];
  __syncthreads();
  mine[threadIdx.x] = own[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void race(REAL* x, int step) {
  __shared__ REAL own[64];
  REAL* mine = x + blockIdx.x * blockDim.x;
  own[threadIdx.x] = mine[threadIdx.x];
  mine[threadIdx.x] = own[(threadIdx.x + step) % blockDim.x];
}

extern "C" __global__ void rounds(REAL* x) {
  __shared__ REAL part[2];
  for (int i = 0; i < 3; ++i) {
    REAL v = warp_sum(x[threadIdx.x]);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();  // and another one is missing behind the next line
    x[threadIdx.x] = part[0] + part[1];
  }
}

extern "C" __global__ void lanes(int* out) {
  int lane = threadIdx.x % 32;
  out[threadIdx.x] = __shfl_down_sync(FULL, lane, 3);
  out[64 + threadIdx.x] = __shfl_up_sync(FULL, lane, 3, 8);
  out[128 + threadIdx.x] = __shfl_sync(FULL, threadIdx.x, 5);
  out[192 + threadIdx.x] = __ballot_sync(FULL, lane % 3 == 0);
}

extern "C" __global__ void missed_barrier() {
  if (threadIdx.x) __syncthreads();
}
extern "C" __global__ void two_barriers() {
  if (threadIdx.x) __syncthreads();
  else __syncthreads();
}
extern "C" __global__ void missing_lane() {
  if (threadIdx.x) __syncwarp();
}
extern "C" __global__ void stray_write(REAL* x, int at) { x[at] = 1; }
extern "C" __global__ void four(REAL* x, int at) { *(float4*)(x + at) = make_float4(1, 2, 3, 4); }
extern "C" __global__ void known_length(REAL* x, int at) {
  REAL own[4] = {1, 2, 3, 4};
  x[0] = own[at];
}
"""


@pytest.fixture(scope="module")
def module():
    return cupy.RawModule(code=SOURCE, options=("-DREAL=float",))


def values(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_a_plain_kernel_and_its_options():
    for real, dtype in (("float", np.float32), ("double", np.float64)):
        scale = cupy.RawModule(code=SOURCE, options=(f"-DREAL={real}",)).get_function("scale")
        x = cupy.asarray(values(1001).astype(dtype))
        y = cupy.empty_like(x)
        scale((3,), (64,), (x, y, np.int64(1000), dtype(2)))
        np.testing.assert_array_equal(y.get()[:1000], 2 * x.get()[:1000])
        assert np.isnan(y.get()[1000])


def test_warps_and_barriers(module):
    x = values(7, 1000)
    sums = cupy.empty(7, np.float32)
    module.get_function("row_sums")((7,), (256,), (cupy.asarray(x), sums, np.int32(1000)))
    # 1000 terms of about 1 in float32: the sum is exact to a few units in its last place
    np.testing.assert_allclose(sums.get(), x.sum(axis=1, dtype=np.float64), atol=1e-4)


def test_dynamic_shared_memory(module):
    x = values(3, 64)
    out = cupy.asarray(x)
    module.get_function("reverse")((3,), (64,), (out,), shared_mem=256)
    np.testing.assert_array_equal(out.get(), x[:, ::-1])
    with pytest.raises(LaunchError, match="shared memory"):
        module.get_function("reverse")((3,), (64,), (out,), shared_mem=49 << 10)


@pytest.mark.parametrize("step", [1, 63])
def test_a_forgotten_barrier_shows(module, step):
    x = values(2, 64)
    out = cupy.asarray(x)
    module.get_function("race")((2,), (64,), (out, np.int32(step)))
    assert not np.array_equal(out.get(), np.roll(x, -step, axis=1))


def test_a_value_overwritten_too_early_shows(module):
    x = cupy.full(64, 1, np.float32)
    module.get_function("rounds")((1,), (64,), (x,))
    assert not (x.get() == 64**3).all()


def test_exchanges_between_lanes(module):
    out = cupy.empty((4, 64), np.int32)
    module.get_function("lanes")((1,), (64,), (out,))
    lane = np.arange(64) % 32
    down = np.where(lane + 3 < 32, lane + 3, lane)
    up = np.where(lane % 8 >= 3, lane - 3, lane)
    ballot = np.array(sum(1 << k for k in range(0, 32, 3)), np.uint32).view(np.int32)
    for row, want in zip(out.get(), (down, up, np.arange(64) // 32 * 32 + 5, ballot), strict=True):
        np.testing.assert_array_equal(row, np.broadcast_to(want, 64))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missed_barrier", "not all threads reach"),
        ("two_barriers", "different barriers"),
        ("missing_lane", "does not take part"),
    ],
)
def test_a_barrier_that_some_miss_is_an_error(module, name, says):
    module.get_function(name)((1,), (32,), ())
    with pytest.raises(LaunchError, match=says):
        cupy.cuda.Device().synchronize()


@pytest.mark.parametrize("at", [-1, 5, 300])
def test_a_write_beside_an_array_is_found(module, at):
    x, y = cupy.zeros(5, np.float32), cupy.zeros(5, np.float32)
    module.get_function("stray_write")((1,), (1,), (x, np.int32(at)))
    with pytest.raises(AddressError, match="stray_write"):
        x.get()
    assert not y.get().any()


def test_misaligned_vectors_and_wrong_indices_are_found(module):
    x = cupy.zeros(9, np.float32)
    module.get_function("four")((1,), (1,), (x, np.int32(4)))
    np.testing.assert_array_equal(x.get()[4:], [1, 2, 3, 4, 0])
    for name in ("four", "known_length"):
        module.get_function(name)((1,), (1,), (x, np.int32(5)))
        with pytest.raises(LaunchError, match=name):
            x.get()


def test_arguments_must_have_the_kernels_types(module):
    scale = module.get_function("scale")
    x = cupy.zeros(4, np.float32)
    good = (x, x, np.int64(4), np.float32(2))
    scale((1,), (4,), good)
    for place, bad in (
        (0, x.get()),
        (0, x.astype(np.float64)),
        (0, x.data.ptr),
        (2, 4),
        (2, np.int32(4)),
        (3, 2.0),
        (3, np.float64(2)),
    ):
        with pytest.raises(TypeError, match=f"argument {place}"):
            scale((1,), (4,), (*good[:place], bad, *good[place + 1 :]))
    with pytest.raises(TypeError, match="takes 4 arguments"):
        scale((1,), (4,), good[:3])
    scale((1,), (4,), (np.uint64(x.data.ptr), *good[1:]))
    with pytest.raises(AddressError):
        scale((1,), (4,), (np.uint64(8), *good[1:]))


@pytest.mark.parametrize(
    ("grid", "block"), [((1, 65536), (1,)), ((1,), (1025,)), ((1,), (32, 32, 2)), ((2**31,), (1,))]
)
def test_limits_of_a_launch(module, grid, block):
    with pytest.raises(LaunchError):
        module.get_function("missed_barrier")(grid, block, ())


def test_what_does_not_compile_is_reported():
    with pytest.raises(cupy.cuda.compiler.CompileException, match="undeclared"):
        cupy.RawModule(code='extern "C" __global__ void f() { undeclared = 1; }').compile()
    with pytest.raises(RuntimeError, match="not found"):
        cupy.RawModule(code=SOURCE, options=("-DREAL=float",)).get_function("nothing")


def test_threads_compile_and_launch_at_once():
    """Each of four ranks compiles a source that is new, and gets its own result."""
    mark = np.random.default_rng().integers(1 << 60)
    results = {}

    def rank(number):
        module = cupy.RawModule(code=f"// {mark}\n{SOURCE}", options=("-DREAL=float",))
        with cupy.cuda.Stream(non_blocking=True):
            x = cupy.full(1000, number, np.float32)
            for _ in range(20):
                module.get_function("scale")((4,), (64,), (x, x, np.int64(1000), np.float32(-1)))
            results[number] = x.get()

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(4)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert all((results[number] == number).all() for number in range(4))
