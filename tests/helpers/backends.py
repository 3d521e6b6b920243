"""What tests of all backends have in common."""

import pytest

from mpicnn.ops import available, load
from mpicnn.ops.window import Window


@pytest.fixture(params=available())
def ops(request):
    """Return every backend that works here, in turn."""
    return load(request.param)


def pool(kernel, stride, padding, *flags):
    """Return the arguments of a pooling, of which padding is the same on both sides."""
    return kernel, Window.of(stride, padding), *flags


def host(a):
    """Return an array as NumPy's, wherever it is."""
    return a.get() if hasattr(a, "get") else a
