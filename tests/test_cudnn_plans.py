"""cuDNN has engines for the named networks: the real library, for a GPU that is only described.

This says that the graphs are what cuDNN takes and that plans can be built, not that they compute
the right thing or fast. It is skipped where CuPy or cuDNN is not installed.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from mpicnn import models

SURVEY = Path(__file__).parent / "helpers" / "cudnn_survey.py"
STANDIN = Path(__file__).parent / "standin"
PACKAGES = ("cupy-cuda12x", "nvidia-cudnn-cu12", "nvidia-cudnn-frontend")
SMALL = ("alexnet-owt", "marques-50-500", "cuda-convnet")  # a compiler makes some for bf16

# The driver's functions that cuDNN looks up before a plan is built. Those that load a kernel are
# said to succeed: so a kernel is compiled as on the GPU, and then goes nowhere.
LOADING = (
    "cuKernelGetFunction", "cuLibraryGetKernel", "cuLibraryLoadData", "cuLibraryLoadFromFile",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleLoadDataEx",
)  # fmt: skip
SETTING = (
    "cuFuncGetAttribute", "cuFuncSetAttribute", "cuKernelGetAttribute", "cuKernelSetAttribute",
    "cuLibraryUnload", "cuModuleUnload", "cuOccupancyMaxPotentialClusterSize",
)  # fmt: skip
FAILING = (
    "cuCtxGetCurrent", "cuCtxGetLimit", "cuCtxPopCurrent", "cuCtxPushCurrent", "cuDeviceGet",
    "cuDeviceGetAttribute", "cuDeviceGetCount", "cuDriverGetVersion", "cuGetErrorName",
    "cuGetErrorString", "cuGetProcAddress", "cuInit", "cuLaunchCooperativeKernel",
    "cuLaunchKernel", "cuLaunchKernelEx", "cuLinkAddData", "cuLinkComplete", "cuLinkCreate",
    "cuLinkDestroy", "cuStreamGetCtx", "cuTensorMapEncodeIm2col", "cuTensorMapEncodeTiled",
)  # fmt: skip


def missing():
    """Return what keeps cuDNN from being asked, or an empty text."""
    for package in PACKAGES:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"{package} is not installed"
    return "" if shutil.which("cc") else "there is no C compiler"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Return the folders of CUDA's libraries; the first has a driver for no GPU."""
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.c"
    lines = [f"int {name}(void **found) {{ *found = (void *)16; return 0; }}" for name in LOADING]
    lines += [f"int {name}(void) {{ return 0; }}" for name in SETTING]
    lines += [f"int {name}(void) {{ return 100; }}" for name in FAILING]
    source.write_text("\n".join(lines))
    library = folder / "libcuda.so.1"
    make = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source]
    subprocess.run(make, check=True)
    spec = find_spec("nvidia")
    found = [
        path for place in spec.submodule_search_locations for path in Path(place).glob("*/lib")
    ]
    return [folder, *found]


def survey(libraries, out, precision, *names):
    paths = [path for path in sys.path if path and Path(path) != STANDIN]
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    job = [sys.executable, SURVEY, out, precision, *names]
    done = subprocess.run(job, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(row) for row in json.loads(out.read_text())]


@pytest.mark.limit(300)
@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_every_convolution_has_an_engine(libraries, tmp_path, precision):
    names = SMALL if precision == "bf16" else models.NAMES
    rows = survey(libraries, tmp_path / "rows.json", precision, *names)
    assert {row[0] for row in rows} == set(names)
    without = {row[:3] for row in rows if row[3] == 0}
    assert not without
