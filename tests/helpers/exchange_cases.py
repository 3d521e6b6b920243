"""Networks with weights for files of other formats, and what they answer."""

from __future__ import annotations

import math

import numpy as np
from random_cases import draw_graph, draw_model

from mpicnn.exchange.network import Network, Pixels
from mpicnn.layers.base import Context
from mpicnn.ops import load

OPS = load("numpy")


def answers(model, arrays, x, dtype=np.float64):
    """Return the logits of x (n, c, h, w) in evaluation, layer by layer."""
    values = [x.astype(dtype)]
    for number, ((name, layer), sources) in enumerate(
        zip(model.layers, model.sources, strict=True)
    ):
        held = {
            full.rpartition(".")[2]: array.astype(dtype)
            for full, array in arrays.items()
            if full.rpartition(".")[0] == name
        }
        fed = [values[source] for source in sources]
        channels = (0, model.shapes[number + 1][0])
        context = Context(False, 0, 0, number, len(x), np.arange(len(x)), channels)
        y, _ = layer.forward(OPS, fed if layer.joins else fed[0], held, context)
        values.append(y)
    return values[-1]


def weights(model, rng):
    """Return arrays of float32 for a network, of the size of He's, and no statistics of 0 or 1."""
    arrays = {}
    for name, spec in (model.param_specs() | model.buffer_specs()).items():
        values = rng.standard_normal(spec.shape)
        key = name.rpartition(".")[2]
        if key == "var":
            values = 0.5 + rng.random(spec.shape)
        elif key == "gamma":
            values = 1 + 0.2 * values
        elif key == "w":
            values *= math.sqrt(2 / spec.fan_in)
        else:
            values *= 0.3
        arrays[name] = values.astype(np.float32)
    return arrays


def draw(seed):
    """Return a random network with weights, class names and a normalisation of its images."""
    rng = np.random.default_rng(seed)
    build = draw_model if rng.random() < 0.4 else draw_graph
    model = build(rng, bool(rng.random() < 0.6))
    classes = tuple(f"class {n}" for n in range(model.classes))
    channels = model.input_shape[0]
    mean, std = 100 + 50 * rng.random(channels), 40 + 30 * rng.random(channels)
    pixels = Pixels(tuple(mean.tolist()), tuple(std.tolist()))
    return Network(model, weights(model, rng), classes, pixels)


def images(model, rng, count=3):
    """Return normalised images for a network: float32 (count, c, h, w)."""
    return rng.standard_normal((count, *model.input_shape)).astype(np.float32)


def error(found, expected):
    """Return the largest difference, relative to the largest number expected."""
    return float(np.abs(found - expected).max() / max(1e-30, np.abs(expected).max()))


def run(path, x):
    """Return what onnxruntime makes of x by the graph in a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    (first,) = session.get_inputs()
    return session.run(None, {first.name: x})[0]
