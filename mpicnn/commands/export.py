"""Write a trained network as a file that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpicnn.data.write import check_target
from mpicnn.errors import UserError, printable
from mpicnn.exchange.network import Network
from mpicnn.exchange.onnx_out import OPSET, to_onnx
from mpicnn.exchange.tensors import to_safetensors
from mpicnn.job.agreement import from_root
from mpicnn.job.output import say
from mpicnn.run.directory import write_bytes
from mpicnn.run.exchanged import trained
from mpicnn.run.load import find_checkpoint
from mpicnn.run.setup import read_settings
from mpicnn.settings.command_settings import ExportSettings

if TYPE_CHECKING:
    from mpi4py import MPI

MOST_ONNX_BYTES = 2**31 - 1
"""Of a file: protobuf cannot hold more."""


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Write the file and say what is in it; rank 0 does all of it. Collective."""
    settings = read_settings(comm, ExportSettings, argv)
    text = from_root(comm, exported, settings)
    if comm.rank == 0:
        say(None, text, fd=1)


def exported(settings: ExportSettings) -> str:
    """Write the file that the settings ask for, and return what to say of it.

    Raises UserError where there is nothing to export, or it cannot be expressed or written.
    """
    target = Path(settings.file)
    check_target(target, settings.overwrite)
    path = Path(find_checkpoint(Path(settings.run), settings.checkpoint))
    network = trained(path)
    if settings.file.lower().endswith(".onnx"):
        held, what = _onnx(network, settings.normalise), _graph(network, settings.normalise)
    else:
        held, what = to_safetensors(network), f"{len(network.arrays)} arrays and their network"
    write_bytes(target, held)
    return printable(f"{target}: {what}, {len(held) / 1e6:.1f} MB, from {path}")


def _onnx(network: Network, normalise: bool) -> bytes:
    held: bytes = to_onnx(network, normalise).SerializeToString()
    if len(held) > MOST_ONNX_BYTES:
        raise UserError(
            f"{network.model.name}: {len(held)} bytes, and an ONNX file holds {MOST_ONNX_BYTES}; "
            "export FILE.safetensors"
        )
    return held


def _graph(network: Network, normalise: bool) -> str:
    """Return what the graph takes and gives."""
    shape = " x ".join(map(str, network.model.input_shape))
    takes = "uint8, 0 to 255" if normalise else "float32, normalised"
    return (
        f"ONNX, opset {OPSET}: images (batch x {shape}, {takes}) to logits "
        f"(batch x {network.model.classes})"
    )
