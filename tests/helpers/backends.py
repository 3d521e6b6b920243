"""What tests of all backends have in common."""

import importlib

import pytest

from mpicnn.ops import available, load
from mpicnn.ops.window import Window


@pytest.fixture(params=available())
def ops(request):
    """Return every backend that works here, in turn."""
    return load(request.param)


@pytest.fixture
def fresh():
    """Forget what is compiled and what was fastest, before and after."""
    from mpicnn.ops import _cuda_conv, _cudnn

    caches = _cuda_conv._fastest, _cudnn.library
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def pool(kernel, stride, padding, *flags):
    """Return the arguments of a pooling, of which padding is the same on both sides."""
    return kernel, Window.of(stride, padding), *flags


def host(a):
    """Return an array as NumPy's, wherever it is."""
    return a.get() if hasattr(a, "get") else a


def torchvision(part):
    """Return a module of torchvision; skip the test where it is not installed."""
    torch = pytest.importorskip("torch")
    name = f"torchvision.{part}"
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        # It is built for another PyTorch than this one, and cannot load its compiled operators.
        # What is compared needs none; declared, they are not missed.
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", boxes)
        return importlib.import_module(name)
