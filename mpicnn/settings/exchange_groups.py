"""The settings of networks that go out and come in, in groups (see `mpicnn.settings.groups`)."""

from __future__ import annotations

from mpicnn.settings.checks import extents, path, spreads
from mpicnn.settings.option import Options, group, option


@group
class Exported(Options):
    """Say what file a trained network becomes."""

    heading = "file"
    file: str = option(
        None, "file to write: NAME.onnx, or NAME.safetensors with the weights and a description",
        "FILE", positional=True, check=path,
    )  # fmt: skip
    normalise: bool = option(
        False, "have the graph take pixels, uint8 from 0 to 255, and normalise them itself (.onnx)"
    )
    overwrite: bool = option(False, "replace FILE if it exists")


@group
class Imported(Options):
    """Say which file is read, and where the network goes."""

    heading = "files"
    file: str = option(
        None, "network or weights: NAME.onnx, NAME.safetensors, or NAME.pt with a state_dict",
        "FILE", positional=True, check=path,
    )  # fmt: skip
    out: str = option(
        None, "directory to write: network.toml for --model, and a checkpoint for --init", "OUT",
        positional=True, check=path,
    )  # fmt: skip
    overwrite: bool = option(False, "replace an earlier import in OUT")


@group
class ImportedNetwork(Options):
    """Say what the file does not say itself."""

    heading = "network"
    model: str = option(
        "", "network that the weights are of, where the file holds weights alone: a name, FILE.py "
        "or FILE.toml", "MODEL", check=path, unset="as the file says",
    )  # fmt: skip
    input: str = option(
        "", "shape of one image", "CxHxW", check=extents("3x224x224"),
        unset="as the file says, else that for which the network was made",
    )  # fmt: skip
    class_names: str = option(
        "", "text file with the names of the classes, one a line", "FILE.txt", check=path,
        unset="as the file says, else 0, 1, 2, …",
    )  # fmt: skip
    mean: tuple[float, ...] = option(
        (), "mean of each channel by which images are normalised, of pixels from 0 to 255",
        "X,X,X", unset="as the file says, else ImageNet's",
    )  # fmt: skip
    std: tuple[float, ...] = option(
        (), "standard deviation of each channel, likewise", "X,X,X", check=spreads,
        unset="as the file says, else ImageNet's",
    )  # fmt: skip
