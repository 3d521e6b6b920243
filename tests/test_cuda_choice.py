"""Which way of convolving the GPU backend takes: what is tried, for how long, and what refuses."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

cuda = pytest.importorskip("mpicnn.ops.cuda", reason="CuPy is not installed", exc_type=ImportError)
cupy = pytest.importorskip("cupy")

from mpicnn.ops import _cuda_conv, _cudnn, _cudnn_engines  # noqa: E402
from mpicnn.ops._cuda_shape import ConvShape  # noqa: E402
from mpicnn.ops.window import Window  # noqa: E402

# x, w, window
EIGHTS = (3, 16, 9, 7), (24, 16, 3, 3), Window.of((1, 1), (1, 1))
EMPTY = (2, 0, 8, 8), (4, 0, 3, 3), Window.of((1, 1), (1, 1))


def test_without_cudnn_columns_do_everything(monkeypatch, fresh):
    monkeypatch.setattr(_cudnn, "cudnn", None)
    assert cuda.conv2d_methods(*EIGHTS, "float32") == ("columns",) * 3
    assert cuda.conv2d_methods(*EMPTY, "float32") == ("none",) * 3


def test_with_cudnn_its_engines_are_named_and_built_once(monkeypatch, fresh):
    pytest.importorskip("cudnn", reason="cuDNN Frontend is not installed")
    built = []
    describe = _cudnn.describe

    def counted(*args, **kwargs):
        built.append(args)
        return describe(*args, **kwargs)

    monkeypatch.setattr(_cudnn, "describe", counted)
    # columns are slow, so that an engine is chosen
    monkeypatch.setattr(_cuda_conv, "_seconds", lambda way, *_: hasattr(way, "func"))
    names = cuda.conv2d_methods(*EIGHTS, "float32")
    assert all(name.startswith("cudnn ") for name in names)
    before = len(built)
    assert before >= 3
    assert cuda.conv2d_methods(*EIGHTS, "float32") == names
    assert len(built) == before
    assert cuda.conv2d_methods(*EIGHTS, "float64") == ("columns",) * 3
    assert len(built) == before
    cuda.set_precision("tf32")
    cuda.conv2d_methods(*EIGHTS, "float32")
    assert len(built) > before


def test_the_fastest_way_that_works_is_used(monkeypatch):
    calls = []

    def fails(*_):
        raise RuntimeError("no such engine after all")

    ways = {name: lambda *_, name=name: calls.append(name) for name in ("slow", "fast", "as fast")}
    seconds = {"slow": 2.0, "fast": 1.02, "as fast": 1.0}
    times = {id(way): seconds[name] for name, way in ways.items()}
    with monkeypatch.context() as patch:
        patch.setattr(_cuda_conv, "_seconds", lambda way, *_: times[id(way)])
        fastest = _cuda_conv.Fastest(ways)
        fastest()
        fastest()
    assert (fastest.name, calls) == ("fast", ["fast", "fast"])
    fastest = _cuda_conv.Fastest({"broken": fails, "columns": ways["slow"]})
    fastest()
    assert fastest.name == "columns"


@pytest.mark.parametrize("seed", range(30))
def test_a_way_that_is_hopeless_runs_once_or_twice(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    names = [f"way {i}" for i in range(rng.integers(2, 9))]
    warm = {name: 10 ** rng.uniform(-5, 1) for name in names}
    cold = {name: warm[name] + rng.uniform(0, 0.4) for name in names}  # kernels are loaded
    broken = {name for name in names[:-1] if rng.random() < 0.2}
    ran = {name: [] for name in names}

    def seconds(way, _, runs):
        ran[way].append(runs)
        if way in broken:
            return float("inf")
        return (warm if sum(ran[way]) > runs else cold)[way]

    monkeypatch.setattr(_cuda_conv, "_seconds", seconds)
    decided = []
    fastest = _cuda_conv.Fastest({name: name for name in names}, lambda: decided.append(1))
    fastest._decide(())
    best = min(taken for name, taken in warm.items() if name not in broken)
    chosen = warm[fastest.name] if best < 0.05 or sum(ran[fastest.name]) > 1 else best
    assert fastest.name not in broken and chosen <= 1.05 * best and decided == [1]
    for name in names:
        assert sum(ran[name]) <= 6
        if name in broken or warm[name] > 3 * (best + 0.4) + 0.5:
            assert ran[name] == [1]
        elif warm[name] > 3 * best or best > 0.05:
            assert sum(ran[name]) <= 2


def test_where_nothing_works_columns_say_why():
    def fails(*_, why):
        raise RuntimeError(why)

    ways = {why: functools.partial(fails, why=why) for why in ("no engine", "no memory")}
    with pytest.raises(RuntimeError, match="no memory"):
        _cuda_conv.Fastest(ways)()


def test_scratch_memory_of_what_was_only_tried_is_given_back(fresh, monkeypatch):
    cudnn = pytest.importorskip("cudnn", reason="cuDNN Frontend is not installed")
    seconds, tried = _cuda_conv._seconds, []

    def plain_wins(way, arguments, runs):
        assert seconds(way, arguments, runs) < float("inf")
        tried.append(getattr(way, "workspace", 0))
        return tried[-1] > 0 if "plain" not in getattr(way, "name", "") else 0.0

    if not hasattr(cudnn, "_plans"):
        pytest.skip("the stand-in's engines are known by name")
    monkeypatch.setattr(_cuda_conv, "_seconds", plain_wins)
    x, w, y = (cupy.ones(s, "float32") for s in ((2, 8, 6, 6), (8, 8, 3, 3), (2, 8, 4, 4)))
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    names = cuda.conv2d_methods(x.shape, w.shape, Window.of((1, 1), (0, 0)), "float32")
    assert all("plain" in name for name in names) and max(tried) == 4096
    assert pool.used_bytes() - before == 1024  # 1000, as the pool counts
    cuda.conv2d_dx(y, w, x.shape, Window.of((1, 1), (0, 0)))
    assert pool.used_bytes() - before == 1024


def test_every_refusal_of_cudnn_is_taken(fresh, monkeypatch):
    cudnn = pytest.importorskip("cudnn", reason="cuDNN Frontend is not installed")
    refusal = cudnn.cudnnGraphNotSupportedError
    assert not issubclass(refusal, (RuntimeError, ValueError, MemoryError))  # why it is listed

    def refuses(*_, **__):
        raise refusal("CUDNN_STATUS_NOT_SUPPORTED")

    with monkeypatch.context() as patch:
        patch.setattr(cudnn.pygraph, "execute_plan_at_index", refuses)
        assert cuda.conv2d_methods(*EIGHTS, "float32") == ("columns",) * 3
    for name in ("conv_fprop", "conv_dgrad", "conv_wgrad", "deselect_numeric_notes"):
        _cuda_conv._fastest.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(cudnn.pygraph, name, refuses)
            found = cuda.conv2d_methods(*EIGHTS, "float32")
        assert "columns" in found
    _cudnn.library.cache_clear()
    _cuda_conv._fastest.cache_clear()
    monkeypatch.setattr(cudnn, "create_handle", refuses)
    assert cuda.conv2d_methods(*EIGHTS, "float32") == ("columns",) * 3


def test_in_bf16_eight_engines_are_tried(fresh, monkeypatch):
    pytest.importorskip("cudnn", reason="cuDNN Frontend is not installed")
    cuda.set_precision("bf16")
    library = _cudnn.library(*_cudnn.place())
    for channels in (16, 6):
        x, w = (2, channels, 7, 6), (9, channels, 3, 3)
        shape = ConvShape.of("x", x, w, Window.of((1, 1), (1, 1)))
        for kind in _cudnn.KINDS:
            made = list(_cudnn_engines.engines(library, kind, shape, "bf16", True, False))
            assert len({engine.name for engine in made}) == len(made) == 8
            # 9 outputs are filled up too, but for the forward pass
            filled = sum("in eights" in engine.name for engine in made)
            assert filled == (0 if channels == 16 and kind == "forward" else 4)
            assert not any("reduced" in engine.name for engine in made)


def test_no_more_plans_are_built_once_that_has_taken_long(monkeypatch):
    built, now = [], [0.0]

    class Graph:
        def __getattr__(self, name):
            return lambda *_: 5

        def build_plan_at_index(self, index):
            now[0] += 2.0
            if index == 0:
                raise RuntimeError("not for this device")
            built.append(index)

    monkeypatch.setattr(_cudnn, "perf_counter", lambda: now[0])
    # the second one is built in any case, and then 4 s have gone
    assert list(_cudnn.plans(Graph(), "bf16", True)) == built == [1]
    monkeypatch.setattr(_cudnn, "perf_counter", lambda: 0.0)
    built.clear()
    assert list(_cudnn.plans(Graph(), "bf16", True)) == built == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [ImportError, OSError, AssertionError])
def test_a_frontend_that_does_not_load_leaves_columns_and_says_why(tmp_path, error):
    (tmp_path / "cudnn.py").write_text(f"raise {error.__name__}('Found 2 libcudnn.so.x')")
    code = "from mpicnn.ops import _cudnn; print(_cudnn.missing(), _cudnn.REFUSALS)"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    job = [sys.executable, "-c", code]
    done = subprocess.run(
        job, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = "is not installed" if error is ImportError else "imported (Found 2 libcudnn.so.x)"
    assert f"cuDNN Frontend {expected}" in done.stdout.replace("cannot be ", "")
