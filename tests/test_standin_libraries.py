"""The stand-in's cuBLAS and cuDNN compute what they should and refuse what those refuse."""

import numpy as np
import pytest

hostgpu = pytest.importorskip("hostgpu", reason="there is a real GPU")

import cudnn  # noqa: E402
import cupy  # noqa: E402
from cupy.cuda import cublas  # noqa: E402
from hostgpu import numerics  # noqa: E402
from hostgpu.memory import AddressError  # noqa: E402

from mpicnn.ops import numpy as reference  # noqa: E402
from mpicnn.ops.window import Window  # noqa: E402

FLOAT, DOUBLE, BF16 = 0, 1, 14


def values(*shape, dtype=np.float32):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def error(found, exact):
    """The largest error in units of the largest value."""
    return np.abs(found - exact).max() / np.abs(exact).max()


def gemm(a, b, kind, compute, beta=0.0, c=None):
    """The product of row-major matrices, which cuBLAS sees transposed."""
    (m, k), n = a.shape, b.shape[1]
    one, scale = (np.array(value, a.dtype if kind == DOUBLE else "f4") for value in (1, beta))
    a, b = cupy.asarray(a), cupy.asarray(b)
    c = cupy.empty((m, n), one.dtype) if c is None else cupy.asarray(c)
    cublas.gemmEx(
        cupy.cuda.get_cublas_handle(), cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_N, n, m, k,
        one.ctypes.data, b.data.ptr, kind, n, a.data.ptr, kind, k, scale.ctypes.data,
        c.data.ptr, DOUBLE if kind == DOUBLE else FLOAT, n, compute, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return c.get()


def test_products_are_as_precise_as_their_type():
    a, b = values(31, 200), values(200, 17)
    exact = a.astype(np.float64) @ b
    plain = error(gemm(a, b, FLOAT, cublas.CUBLAS_COMPUTE_32F), exact)
    tf32 = error(gemm(a, b, FLOAT, cublas.CUBLAS_COMPUTE_32F_FAST_TF32), exact)
    bf16 = error(
        gemm(numerics.to_bf16(a), numerics.to_bf16(b), BF16, cublas.CUBLAS_COMPUTE_32F), exact
    )
    # half a unit in the last place is 2^-24, 2^-11 and 2^-8 for each operand; random signs help
    assert plain < 1e-6 < 1e-5 < tf32 < 1e-3 < bf16 < 1e-2
    double = gemm(a.astype("f8"), b.astype("f8"), DOUBLE, cublas.CUBLAS_COMPUTE_64F)
    assert error(double, exact) < 1e-14


def test_a_product_is_added_to_what_is_there():
    a, b, c = values(3, 5), values(5, 4), values(3, 4) + 1
    found = gemm(a, b, FLOAT, cublas.CUBLAS_COMPUTE_32F, beta=1, c=c)
    assert error(found, a.astype(np.float64) @ b + c) < 1e-6


def test_products_check_types_and_addresses():
    a, b = values(3, 5), values(5, 4)
    with pytest.raises(cublas.CUBLASError, match="NOT_SUPPORTED"):
        gemm(a, b, FLOAT, cublas.CUBLAS_COMPUTE_64F)
    with pytest.raises(AddressError):
        gemm(a[:, :1].repeat(5, 1)[:2], values(5, 4000)[:, :4], DOUBLE, cublas.CUBLAS_COMPUTE_64F)


def test_bf16_is_rounded_to_even():
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000], np.uint32)
    want = [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x7F80]
    np.testing.assert_array_equal(numerics.to_bf16(bits.view(np.float32)), want)
    assert np.isnan(numerics.from_bf16(numerics.to_bf16(np.array([np.nan], np.float32)))).all()


NOTE = cudnn.numerical_note
TYPE = cudnn.data_type


class Convolution:
    """A graph of one convolution, its arrays, and how to run its plans."""

    def __init__(self, kind, groups=1, io=TYPE.FLOAT, bias=False):
        self.window = {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2]}
        x, w = values(2, 8 * groups, 9, 7), values(16 * groups, 8, 3, 3)
        window = Window.of(*map(tuple, self.window.values()), groups)
        y = reference.conv2d(x, w, None, window)
        dy = values(*y.shape) + 1
        operands = {"fprop": (x, w), "dgrad": (dy, w), "wgrad": (x, dy)}[kind]
        doubles = [a.astype(np.float64) for a in operands]
        self.exact = {
            "fprop": lambda: reference.conv2d(*doubles, None, window),
            "dgrad": lambda: reference.conv2d_dx(*doubles, x.shape, window),
            "wgrad": lambda: reference.conv2d_dw(*doubles, w.shape, window),
        }[kind]()
        self.handle = cudnn.create_handle()
        graph = self.graph = cudnn.pygraph(
            io_data_type=io,
            intermediate_data_type=TYPE.FLOAT,
            compute_data_type=TYPE.FLOAT,
            handle=self.handle,
        )
        first, second = (
            graph.tensor(dim=list(a.shape), stride=steps(a.shape), uid=uid)
            for uid, a in enumerate(operands)
        )
        call = getattr(graph, f"conv_{kind}")
        out = call(first, second, **self.window)
        self.places = {uid: self.put(a, io) for uid, a in enumerate(operands)}
        if bias:
            b = values(y.shape[1])
            self.exact = self.exact + b.reshape(-1, 1, 1)
            dims = [1, y.shape[1], 1, 1]
            tensor = graph.tensor(dim=dims, stride=steps(dims), uid=3, data_type=TYPE.FLOAT)
            out = graph.bias(input=out, bias=tensor)
            self.places[3] = cupy.asarray(b)
        out.set_output(True).set_uid(2).set_data_type(TYPE.FLOAT)
        out.set_dim(list(self.exact.shape)).set_stride(steps(self.exact.shape))
        n, c, h, w = self.exact.shape
        self.out = self.places[2] = cupy.empty((n, h, w, c), np.float32)
        self.tensor = out

    def put(self, a, io):
        last = np.ascontiguousarray(a.transpose(0, 2, 3, 1))
        return cupy.asarray(numerics.to_bf16(last) if io is TYPE.BFLOAT16 else last)

    def plan(self, *deselected):
        """Make the graph ready."""
        self.graph.validate()
        self.graph.build_operation_graph()
        self.graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        self.graph.deselect_numeric_notes(list(deselected))
        return self

    def run(self, index):
        """Run a plan and return the largest relative error."""
        scratch = cupy.empty(self.graph.get_workspace_size_plan_at_index(index), np.uint8)
        places = {uid: int(a.data.ptr) for uid, a in self.places.items()}
        self.graph.execute_plan_at_index(places, int(scratch.data.ptr), index, self.handle)
        return error(self.out.get().transpose(0, 3, 1, 2), self.exact)

    def built(self):
        """The plans that can be built, by name."""
        found = {}
        for index in range(self.graph.get_execution_plan_count()):
            try:
                self.graph.build_plan_at_index(index)
            except cudnn.cudnnGraphNotSupportedError:
                continue
            found[self.graph.get_plan_name_at_index(index)] = index
        return found


def steps(shape):
    _, c, h, w = shape
    return [h * w * c, 1, w * c, c]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["fprop", "dgrad", "wgrad"])
def test_convolutions_in_full_precision(kind, groups):
    graph = Convolution(kind, groups).plan(NOTE.TENSOR_CORE, NOTE.NONDETERMINISTIC)
    # products of float32 summed over up to 500 positions, in float32
    assert graph.run(graph.built()["eng6_plain"]) < 1e-6


@pytest.mark.parametrize("kind", ["fprop", "dgrad", "wgrad"])
def test_plans_show_what_they_are(kind):
    graph = Convolution(kind).plan()
    plans = graph.built()
    assert "eng0_unbuildable" not in plans and "eng3_huge" in plans
    assert 1e-5 < graph.run(plans["eng2_tf32"]) < 1e-3
    if kind != "fprop":
        graph.run(plans["eng4_unsteady"])
        first = graph.out.get()
        graph.run(plans["eng4_unsteady"])
        assert not np.array_equal(graph.out.get(), first)
    graph.graph.deselect_workspace_greater_than(1 << 30)
    with pytest.raises(cudnn.cudnnGraphNotSupportedError):
        graph.graph.build_plan_at_index(plans["eng3_huge"])


def test_bf16_has_one_plan_for_float32_and_several_for_bf16():
    plain = Convolution("wgrad", io=TYPE.BFLOAT16)
    assert len(plain.plan().built()) == 1
    short = Convolution("wgrad", io=TYPE.BFLOAT16)
    short.tensor.set_data_type(TYPE.BFLOAT16)
    short.out = short.places[2] = cupy.empty(short.out.shape, np.uint16)
    plans = short.plan().built()
    assert len(plans) > 8 and "eng2_reduced" in plans
    for name in ("eng1_bf16", "eng9_plain"):
        short.run(plans[name])
        found = numerics.from_bf16(short.out.get()).transpose(0, 3, 1, 2)
        assert 1e-4 < error(found, short.exact) < 2e-2


def test_bf16_and_bias():
    graph = Convolution("fprop", io=TYPE.BFLOAT16, bias=True).plan()
    assert 1e-4 < graph.run(graph.built()["eng1_bf16"]) < 1e-2


def test_graphs_are_checked():
    graph = Convolution("dgrad")
    graph.tensor.set_dim([])
    with pytest.raises(ValueError, match="not possible"):
        graph.graph.validate()
    graph = Convolution("fprop")
    graph.tensor.set_dim([2, 16, 9, 9])
    with pytest.raises(RuntimeError, match="spatial"):
        graph.plan()
    graph = Convolution("fprop")
    graph.tensor.set_output(False)
    with pytest.raises(ValueError, match="set_output"):
        graph.plan()
    graph = Convolution("fprop")
    graph.tensor.set_uid(0)
    with pytest.raises(RuntimeError, match="uid 0"):
        graph.plan()
    with pytest.raises(RuntimeError, match="must be"):
        Convolution("fprop").graph.build_operation_graph()


def test_execution_checks_addresses():
    graph = Convolution("fprop").plan()
    index = graph.built()["eng6_plain"]
    size = graph.places[0].size
    graph.places[0] = cupy.empty(size - 1, np.float32)
    with pytest.raises(AddressError, match="do not fit"):
        graph.run(index)
    graph.places[0] = cupy.empty(size + 1, np.float32)[1:]
    with pytest.raises(AddressError, match="aligned"):
        graph.run(index)
    del graph.places[0]
    with pytest.raises(RuntimeError, match="pointers for"):
        graph.run(index)
