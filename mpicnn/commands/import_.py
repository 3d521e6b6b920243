"""Read a network of another program, as a directory for `--model` and `--init`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from mpicnn.errors import UserError, escaped
from mpicnn.exchange.network import Network
from mpicnn.exchange.onnx_in import from_onnx
from mpicnn.exchange.pixels import Pixels, assumed
from mpicnn.exchange.tensors import from_tensors
from mpicnn.job.agreement import from_root
from mpicnn.job.output import say
from mpicnn.run.exchanged import NETWORK, Extras, check_directory, save
from mpicnn.run.setup import read_settings
from mpicnn.settings.command_settings import ImportSettings
from mpicnn.text import counted

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Read the file, write the directory and say what is in it; rank 0 does all. Collective."""
    settings = read_settings(comm, ImportSettings, argv)
    text = from_root(comm, imported, settings)
    if comm.rank == 0:
        say(None, text, fd=1)


def imported(settings: ImportSettings) -> str:
    """Write the network that the settings name, and return what to say of it.

    Raises UserError where the file cannot be read, something in it cannot be expressed, or the
    directory cannot be written.
    """
    source, out = Path(settings.file), Path(settings.out)
    check_directory(out, settings.overwrite)
    size = tuple(map(int, settings.input.split("x"))) if settings.input else None
    if source.suffix.lower() == ".onnx":
        name = "".join(c for c in source.stem if c.isprintable()) or "network"
        network = from_onnx(source, name, size)
    else:
        network = from_tensors(source, settings.model, size)
    pixels, whence = _pixels(network, settings)
    extras = Extras(_classes(network, settings.class_names), pixels)
    checkpoint = save(network, extras, out)
    return "\n".join(map(escaped, _told(network, source, whence, out, checkpoint)))


def _told(network: Network, source: Path, whence: str, out: Path, checkpoint: Path) -> list[str]:
    model = network.model
    specs = model.param_specs().values()
    network_file, start = (quote(str(path)) for path in (out / NETWORK, out))
    shape = " x ".join(map(str, model.input_shape))
    return [
        f"{source}: {model.name}, {sum(prod(each.shape) for each in specs):,} parameters",
        f"  model  {out / NETWORK}: {counted(len(model.layers), 'layer')}, images of {shape}, "
        f"{model.classes} classes",
        f"  init   {checkpoint}",
        f"  images {whence}",
        *(f"  note   {note}" for note in network.notes),
        f"  next   python -m mpicnn.train --data FILE.h5 --model {network_file} --init {start}",
    ]


def _pixels(network: Network, settings: ImportSettings) -> tuple[Pixels, str]:
    """Return how images are normalised, and who says so."""
    channels = network.model.input_shape[0]
    if settings.mean:
        found, said = Pixels(settings.mean, settings.std), "as --mean and --std say"
    elif network.pixels is not None:
        found, said = network.pixels, "as the file says"
    else:
        found, said = assumed(channels, network.inside)
    if len(found.mean) != channels:
        raise UserError(
            f"mean and std: {len(found.mean)} numbers, but images have {channels} channels"
        )
    if network.inside is not None:
        found, said = found.then(network.inside), f"{said}; with what the graph does itself"
    mean, std = (" ".join(f"{v:.6g}" for v in values) for values in (found.mean, found.std))
    return found, f"mean {mean}, std {std}: {said}"


def _classes(network: Network, file: str) -> tuple[str, ...]:
    """Return the names of the classes."""
    count = network.model.classes
    if not file:
        return network.classes or tuple(map(str, range(count)))
    try:
        names = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise UserError(f"{file}: {reason}; expected the names of classes, one a line") from None
    if len(names) != count:
        raise UserError(f"{file}: {len(names)} names, but the network has {count} classes")
    return tuple(names)
