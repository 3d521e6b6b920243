"""Which rank computes on what, and how what it computes gets to the others."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
from mpi4py import MPI
from oracle import run_ranks

from mpicnn.comm import transport
from mpicnn.comm.mesh import Mesh
from mpicnn.comm.wire import Wire
from mpicnn.devices import choice as devices
from mpicnn.devices.choice import assigned, gpu
from mpicnn.errors import DeviceError, UserError
from mpicnn.settings.groups import DeviceChoice


@pytest.mark.parametrize(
    ("rule", "gpus", "expected"),
    [
        ("cpu", 2, [None, None, None]),
        ("auto", 0, [None, None, None]),
        ("auto", 2, [0, 1, 0]),
        ("gpu", 2, [0, 1, 0]),
        ("gpu", 1, [0, 0, 0]),
        ("gpu:1", 2, [1, 1, 1]),
        ("gpu:0,cpu", 1, [0, None, None]),
        ("cpu,gpu:1,auto", 2, [None, 1, 0]),
    ],
)
def test_every_rank_of_a_host_has_its_device(monkeypatch, rule, gpus, expected):
    monkeypatch.setattr(gpu, "count", lambda: gpus)
    assert [assigned(rule, local) for local in range(3)] == expected


@pytest.mark.parametrize(
    ("rule", "gpus", "message"),
    [
        ("gpu", 0, "device gpu: .* shows no GPUs to this rank"),
        ("gpu:1", 1, "device gpu:1: .* shows 1 GPU to this rank; use --device cpu"),
        ("cpu,gpu:9", 4, "device gpu:9: .* shows 4 GPUs"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(monkeypatch, rule, gpus, message):
    monkeypatch.setattr(gpu, "count", lambda: gpus)
    with pytest.raises(DeviceError, match=message) as caught:
        assigned(rule, 1)
    assert caught.value.code == 69


def test_a_driver_that_cupy_cannot_use_is_told(monkeypatch, tmp_path):
    def missing():
        raise DeviceError("device gpu: No module named 'cupy'")

    driver = tmp_path / "version"
    monkeypatch.setattr(gpu, "DRIVER", driver)
    monkeypatch.setattr(gpu, "count", missing)
    assert gpu.unusable() == ""
    driver.touch()
    assert gpu.unusable() == "device gpu: No module named 'cupy'"
    told = "ranks compute on cores beside an NVIDIA driver: device gpu: No module named 'cupy'"
    notes = [
        devices.choose_device(
            MPI.COMM_SELF, DeviceChoice(device=rule, backend="numpy", threads=1), "float32", {}
        ).notes
        for rule in ("auto", "cpu")
    ]
    assert notes == [(told,), ()]
    monkeypatch.setattr(gpu, "count", lambda: 2)
    assert gpu.unusable() == ""


def test_without_cupy_auto_takes_the_cores(monkeypatch):
    def missing():
        raise DeviceError("device gpu: No module named 'cupy'")

    monkeypatch.setattr(gpu, "count", missing)
    assert assigned("auto", 0) is None
    assert assigned("gpu:0,cpu", 1) is None
    with pytest.raises(DeviceError, match="cupy"):
        assigned("gpu", 0)


def chosen(monkeypatch, identities, asked, aware=False, nccl=""):
    """Return what every rank takes as its wires, and the way's names."""
    monkeypatch.setattr(transport, "cuda_aware", lambda environ: aware)
    monkeypatch.setattr(transport, "_nccl_missing", lambda: nccl)
    monkeypatch.setattr(transport, "_over_mpi", lambda aware: "aware" if aware else "staged")
    monkeypatch.setattr(transport, "_nccl", lambda environ: "nccl")

    def main(comm):
        return transport.choose_wires(Mesh(comm), identities[comm.Get_rank()], asked, {})

    found = run_ranks(len(identities), main)
    ways = {way for _, way in found}
    assert len(ways) == 1
    return [wires for wires, _ in found], ways.pop()


TWO = ["a", "b"]
HOST, AWARE = "MPI by way of host memory", "MPI on GPU memory"


@pytest.mark.parametrize(
    ("identities", "asked", "aware", "nccl", "expected", "way"),
    [
        (["", ""], "auto", True, "", [Wire, Wire], "MPI"),
        (["a"], "auto", True, "", [Wire], "MPI"),
        (TWO, "auto", False, "", ["nccl", "nccl"], "NCCL"),
        (TWO, "auto", False, "no library", ["staged", "staged"], HOST),
        (TWO, "auto", True, "no library", ["aware", "aware"], AWARE),
        (["a", "a"], "auto", False, "", ["staged", "staged"], HOST),
        (["a", "", "b"], "auto", False, "", ["staged", Wire, "staged"], HOST),
        (["a", "", "b"], "auto", True, "", ["aware", Wire, "aware"], AWARE),
        (TWO, "host", True, "", ["staged", "staged"], HOST),
        (TWO, "mpi", False, "", ["aware", "aware"], AWARE),
        (TWO, "nccl", False, "", ["nccl", "nccl"], "NCCL"),
    ],
)
def test_arrays_travel_one_way_in_the_whole_job(
    monkeypatch, identities, asked, aware, nccl, expected, way
):
    assert chosen(monkeypatch, identities, asked, aware, nccl) == (expected, way)


@pytest.mark.parametrize(
    ("identities", "nccl", "message"),
    [
        (["a"], "", "only one rank"),
        (["a", ""], "", "computes on a CPU"),
        (["a", "b", "a"], "", "share a GPU"),
        (TWO, "CuPy finds no NCCL", "finds no NCCL"),
    ],
)
def test_nccl_where_it_does_not_fit_is_refused(monkeypatch, identities, nccl, message):
    with pytest.raises(UserError, match=f"transport nccl: .*{message}"):
        chosen(monkeypatch, identities, "nccl", nccl=nccl)


def test_crays_mpi_is_asked_by_its_variable():
    assert transport.cuda_aware({"MPICH_GPU_SUPPORT_ENABLED": "1"})
    assert not transport.cuda_aware({"MPICH_GPU_SUPPORT_ENABLED": "0"})


@pytest.mark.parametrize(
    ("library", "expected"), [("MPICH Version: 5.0.2", AWARE), ("Open MPI v5.0.11", HOST)]
)
def test_collectives_of_open_mpi_go_by_host_memory(monkeypatch, library, expected):
    monkeypatch.setattr(MPI, "Get_library_version", lambda: library)
    _, way = chosen(monkeypatch, TWO, "auto", aware=True, nccl="no library")
    assert way == expected
    assert chosen(monkeypatch, TWO, "mpi", aware=True)[1] == AWARE


def test_a_gpu_without_cudnn_is_told(monkeypatch):
    cudnn = pytest.importorskip("mpicnn.ops._cudnn", reason="CuPy is not installed")
    assert list(devices._notes(DeviceChoice(), 0, np)) == []
    monkeypatch.setattr(cudnn, "library", lambda *place: None)
    (told,) = devices._notes(DeviceChoice(), 0, np)
    assert told.startswith("cuDNN Frontend finds no cuDNN, so convolutions go by columns")
    monkeypatch.setattr(cudnn, "cudnn", None)
    (told,) = devices._notes(DeviceChoice(), 0, np)
    assert told == (
        "cuDNN Frontend is not installed, so convolutions go by columns, which is slower; install "
        "the extra gpu (gpu13 for CUDA 13)"
    )


NOT_BUILT = "the native kernels were not built; install a C++ compiler and reinstall mpicnn"
OTHER_VERSION = "core.so was built from another version of mpicnn; install it again"


@pytest.mark.parametrize(("core", "why"), [(None, NOT_BUILT), (0, OTHER_VERSION)])
@pytest.mark.parametrize("asked", ["auto", "numpy"])
def test_why_layers_run_in_numpy_is_told(monkeypatch, asked, core, why):
    module = ModuleType("_mpicnn_core")
    module.ABI, module.__file__, module.__spec__ = core, "core.so", ModuleSpec("core", None)
    monkeypatch.setitem(sys.modules, "_mpicnn_core", None if core is None else module)
    for name in (
        "native",
        *(f"_native_{part}" for part in ("channels", "contract", "core", "pool")),
    ):
        monkeypatch.delitem(sys.modules, f"mpicnn.ops.{name}", raising=False)
    machine = DeviceChoice(device="cpu", backend=asked, threads=1)
    notes = devices.choose_device(MPI.COMM_SELF, machine, "float32", {}).notes
    assert notes == ((f"layers run in NumPy, which is slower: {why}",) if asked == "auto" else ())


def test_a_device_is_the_cpu_unless_said_otherwise():
    device = devices.Device(np)
    assert (device.name, device.threads, device.wires, device.way) == ("cpu", 1, Wire, "MPI")
