"""How a device's speed is found: on examples enough for its own time to show."""

import numpy as np
import pytest

from mpicnn.devices import calibration as calibrate
from mpicnn.layers import Conv

LAYER, SHAPE = Conv(64, 3, padding=1), (64, 32, 32)
FLOPS = 2 * 64 * 64 * 9 * 32 * 32  # of one example


@pytest.mark.parametrize(
    ("start", "rate", "counts"),
    [
        (0, 1e11, [52]),  # a core: WORK keeps it busy long enough
        (1e-4, 1e14, [52, 416, 1000]),  # a GPU, that takes longer to start than to compute
        (1.0, 1e14, [52]),
    ],
)
def test_a_fast_device_is_timed_on_more_examples(monkeypatch, start, rate, counts):
    asked = []

    def timed(ops, layer, shape, dtype, count):
        asked.append(count)
        return start + count * FLOPS / rate

    monkeypatch.setattr(calibrate, "_pass", timed)
    found = calibrate._time(None, LAYER, SHAPE, np.float32, 1000)
    assert asked == counts
    assert found == pytest.approx(start / counts[-1] + FLOPS / rate)


def test_few_examples_are_timed_as_they_are(monkeypatch):
    monkeypatch.setattr(calibrate, "_pass", lambda *args: 1e-6 * args[-1])
    assert calibrate._time(None, LAYER, SHAPE, np.float32, 3) == pytest.approx(1e-6)
