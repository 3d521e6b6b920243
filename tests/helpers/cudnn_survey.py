"""Count cuDNN's engines for the convolutions of named networks on a GPU that is only described.

`python cudnn_survey.py OUT.json PRECISION NETWORK…` writes a list of (network, layer, kind, number
of engines). It takes the real CuPy and cuDNN and builds every engine's plan, as on the GPU, up to
loading the code onto it.
"""

import json
import sys
from itertools import islice
from pathlib import Path

import cudnn

from mpicnn import models
from mpicnn.layers import Conv
from mpicnn.ops import _cudnn
from mpicnn.ops._cuda_shape import ConvShape
from mpicnn.ops.window import Window

# What cuDNN asks of a device, with an H200's values.
H200 = {
    "deviceName": "NVIDIA H200", "deviceId": 0, "deviceVer": 900, "driverVer": 12080,
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
    "oversizedSharedMemoryPerBlock": 233472, "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048, "pciDeviceId": 9013, "isTccDriver": 0, "supportCoopLaunch": 1,
    "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "memoryBusWidth": 6144,
    "l2CacheSize": 62914560, "cudaDeviceId": 0, "totalGlobalMem": 150754820096,
}  # fmt: skip
BATCH = 64
MOST = 50  # more than any has


def natural(name):
    """Return image shape and number of classes of the data a network was made for."""
    if name.startswith(("default", "lenet5")):
        return (1, 28, 28), 10
    if name.startswith("alexnet") and not name.startswith("alexnet-cifar"):
        return (3, 224, 224), 1000
    return (3, 64, 64) if name == "vgg11" else (3, 32, 32), 10


def survey(name, precision):
    """Yield layer, kind and number of engines for every convolution of a network."""
    device = cudnn.create_device_properties(json.dumps(H200))
    model = models.load(name, *natural(name))
    for (layer_name, layer), fed in zip(model.layers, model.fed, strict=True):
        if not isinstance(layer, Conv):
            continue
        w = layer.params(fed)["w"].shape
        window = Window.of(layer.stride, layer.padding, layer.dilation, layer.groups)
        whole = ConvShape.of("x", (BATCH, *fed), w, window)
        for kind in _cudnn.KINDS:
            bf16 = precision == "bf16"
            bias = kind == "forward" and not bf16
            found = 0
            for shape in dict.fromkeys(
                (_cudnn.in_eights(kind, whole), whole) if bf16 else (whole,)
            ):
                graph = _cudnn.describe(kind, shape, precision, bias, device_property=device)
                found += len(list(islice(_cudnn.plans(graph, precision, True), MOST)))
            yield layer_name, kind, found


if __name__ == "__main__":
    out, precision, *names = sys.argv[1:]
    rows = [(name, *row) for name in names for row in survey(name, precision)]
    Path(out).write_text(json.dumps(rows))
