"""Every GPU kernel is accepted by NVIDIA's compiler, for old and new GPUs. Nothing is run."""

import ctypes
import re
from ctypes.util import find_library
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = files("mpicnn.ops") / "_cuda"
FILES = sorted(f.name for f in FOLDER.iterdir() if f.name.endswith(".cu") and f.name != "common.cu")


def library():
    """Return NVRTC, from its package or from the system, or None."""
    found = find_spec("nvidia.cuda_nvrtc") if find_spec("nvidia") else None
    for folder in found.submodule_search_locations if found else ():
        for path in sorted(Path(folder, "lib").glob("libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    name = find_library("nvrtc")
    return ctypes.CDLL(name) if name else None


NVRTC = library()
if NVRTC is None:
    pytest.skip("NVRTC is not here: pip install nvidia-cuda-nvrtc-cu12", allow_module_level=True)


def architectures():
    count = ctypes.c_int()
    assert NVRTC.nvrtcGetNumSupportedArchs(ctypes.byref(count)) == 0
    numbers = (ctypes.c_int * count.value)()
    assert NVRTC.nvrtcGetSupportedArchs(numbers) == 0
    return list(numbers)


def text_of(program, what):
    """Return the "ProgramLog" or the "PTX" of a program."""
    size = ctypes.c_size_t()
    getattr(NVRTC, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(NVRTC, f"nvrtcGet{what}")(program, text)
    return text.value.decode()


def compiled(code, *options):
    """Return the PTX of a source; raises ValueError with the compiler's words."""
    program = ctypes.c_void_p()
    NVRTC.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if NVRTC.nvrtcCompileProgram(program, len(options), given):
            raise ValueError(text_of(program, "ProgramLog"))
        return text_of(program, "PTX")
    finally:
        NVRTC.nvrtcDestroyProgram(ctypes.byref(program))


@pytest.mark.parametrize("arch", (70, 80, 90))
@pytest.mark.parametrize("real", ("float", "double"))
@pytest.mark.parametrize("file", FILES)
def test_kernels_compile(file, real, arch):
    if arch not in architectures():
        pytest.skip(f"this NVRTC does not compile for sm_{arch}")
    code = "\n".join((FOLDER / name).read_text("utf-8") for name in ("common.cu", file))
    # -DREAL is given by ops/_cuda_arrays.py, the last two are what CuPy adds
    ptx = compiled(code, f"-DREAL={real}", f"-arch=compute_{arch}", "-std=c++17", "-ftz=true")
    declared = re.findall(
        r'extern "C" __global__ void\s+(?:__launch_bounds__\(.*\)\s+)?(\w+)\(', code
    )
    assert declared
    assert sorted(re.findall(r"\.visible \.entry (\w+)\(", ptx)) == sorted(declared)
    # an array that is indexed at run time would lie in slow memory
    assert ".local" not in ptx


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="undefined"):
        compiled('extern "C" __global__ void f(int *p) { *p = missing; }')
