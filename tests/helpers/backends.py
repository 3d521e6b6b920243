"""What tests of all backends have in common."""

import pytest

from mpicnn.ops import available, load


@pytest.fixture(params=available())
def ops(request):
    """Return every backend that works here, in turn."""
    return load(request.param)


def host(a):
    """Return an array as NumPy's, wherever it is."""
    return a.get() if hasattr(a, "get") else a
