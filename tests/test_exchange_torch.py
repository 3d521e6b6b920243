"""What PyTorch writes of torchvision's networks: imported, they answer as they do there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import torchvision
from exchange_cases import answers, error

from mpicnn.errors import UserError
from mpicnn.exchange.network import Network
from mpicnn.exchange.onnx_in import from_onnx
from mpicnn.exchange.tensors import from_tensors
from mpicnn.layers import BatchNorm

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'mpicnn[onnx]'")

CLASSES = 7
# name: the size of the images
NETWORKS = {
    "alexnet": 224, "resnet18": 33, "resnet50": 33, "resnext50_32x4d": 33,
    "densenet121": 33, "googlenet": 33, "mobilenet_v2": 33, "squeezenet1_0": 65,
    "squeezenet1_1": 65, "mnasnet0_5": 33, "efficientnet_b0": 33, "regnet_y_400mf": 33,
}  # fmt: skip
REFUSED = {
    "mobilenet_v3_small": "operator HardSigmoid, node /features/",
    "shufflenet_v2_x0_5": "operator Transpose, node /stage2/",
}
OURS = {
    "vgg11": "vgg11", "resnet18": "resnet18", "resnet50": "resnet50", "googlenet": "googlenet",
    "densenet121": "densenet121", "mobilenet_v2": "mobilenet-v2", "squeezenet1_1": "squeezenet",
}  # fmt: skip
"""Networks of ours by what torchvision calls them."""


@pytest.fixture(scope="module")
def torch() -> Any:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def vision(torch: Any) -> Any:
    return torchvision("models")


def drawn(torch: Any, net: Any) -> Any:
    """Return a network in evaluation whose statistics and factors are none of 0 and 1."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return net.eval()


def build(torch: Any, vision: Any, name: str) -> Any:
    """Return torchvision's network with few outputs, and few features where they are many."""
    torch.manual_seed(3)
    settings = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net = getattr(vision, name)(num_classes=CLASSES, **settings)
    if name == "alexnet":
        linear = torch.nn.Linear
        wide = [at for at, layer in enumerate(net.classifier) if isinstance(layer, linear)]
        features = net.classifier[wide[0]].in_features
        net.classifier[wide[0]] = linear(features, 32)
        net.classifier[wide[1]] = linear(32, 32)
        net.classifier[wide[2]] = linear(32, CLASSES)
    return drawn(torch, net)


def export(torch: Any, net: Any, x: Any, path: Path, **settings: Any) -> Path:
    """Have PyTorch write a network for any batch: by its older exporter, or by `dynamo`."""
    if settings.setdefault("dynamo", False):
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        batch = torch.export.Dim("batch")
        settings |= {"dynamic_shapes": ({0: batch},), "external_data": False, "verbose": False}
    else:
        settings |= {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), **settings)
    return path


def compare(torch: Any, net: Any, network: Network, x: Any) -> None:
    """Check that logits are the same to 1e-5 of the largest, of all examples."""
    with torch.no_grad():
        expected = net(x).numpy()
    assert expected.std() > 1e-3, "nothing would be compared"
    assert error(answers(network.model, network.arrays, x.numpy()), expected) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvisions_networks_as_onnx(name: str, torch: Any, vision: Any, tmp_path: Path) -> None:
    size = NETWORKS[name]
    net, x = build(torch, vision, name), torch.randn(2, 3, size, size)
    path = export(torch, net, x, tmp_path / f"{name}.onnx")
    compare(torch, net, from_onnx(path, name), x)


@pytest.mark.parametrize("name", REFUSED)
def test_torchvisions_networks_that_are_refused(
    name: str, torch: Any, vision: Any, tmp_path: Path
) -> None:
    net = build(torch, vision, name)
    path = export(torch, net, torch.randn(2, 3, 33, 33), tmp_path / f"{name}.onnx")
    with pytest.raises(UserError, match=f"^{path}: {REFUSED[name]}") as caught:
        from_onnx(path, name)
    assert "\n" not in str(caught.value)


def test_a_network_that_normalises_channel_by_channel(
    torch: Any, vision: Any, tmp_path: Path
) -> None:
    """As the pretrained GoogLeNet does: its images are for another network's normalisation."""
    net, x = build(torch, vision, "googlenet"), torch.randn(2, 3, 33, 33)
    net.transform_input = True
    network = from_onnx(export(torch, net, x, tmp_path / "net.onnx"), "net")
    assert network.inside is not None
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (network.inside.mean, network.inside.std))
    with torch.no_grad():
        expected = net(x).numpy()
    found = answers(network.model, network.arrays, (x.numpy() - mean) / std)
    assert error(found, expected) < 1e-5


def test_batch_norm_stays_where_the_exporter_is_told_so(
    torch: Any, vision: Any, tmp_path: Path
) -> None:
    net, x = build(torch, vision, "resnet18"), torch.randn(2, 3, 33, 33)
    mode = torch.onnx.TrainingMode.PRESERVE
    path = export(torch, net, x, tmp_path / "net.onnx", training=mode, do_constant_folding=False)
    network = from_onnx(path, "net")
    names = [name for name, layer in network.model.layers if isinstance(layer, BatchNorm)]
    assert len(names) == 20
    assert {"bn1", "layer1_0_bn1", "layer4_1_bn2", "layer2_0_downsample_1"} <= set(names)
    compare(torch, net, network, x)


def every_kind(torch: Any) -> Any:
    """Return a network of the modules that exporters write in several operators, or in others."""
    nn = torch.nn

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)

        def forward(self, x: Any) -> Any:
            gate = x.mean((2, 3), keepdim=True)
            return x * self.up(torch.relu(self.down(gate))).sigmoid()

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(12, 4, 1, bias=False)

        def forward(self, x: Any) -> Any:
            return x + torch.cat([self.left(x), self.right(x)], 1)

    return drawn(
        torch,
        nn.Sequential(
            nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(3, 12, 3, stride=2), nn.BatchNorm2d(12),
            nn.SiLU(), nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=4), nn.GroupNorm(3, 12),
            nn.GELU(), Branches(), nn.Hardswish(), Gated(), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.LeakyReLU(0.1), nn.BatchNorm2d(12), nn.ReLU6(), nn.AvgPool2d(2, 1, 1), nn.Tanh(),
            nn.Conv2d(12, 6, 1), nn.GroupNorm(6, 6, affine=True), nn.Dropout(0.5),
            nn.Flatten(), nn.Linear(6 * 42, 20), nn.BatchNorm1d(20), nn.PReLU(),
            nn.Linear(20, CLASSES, bias=False),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        *({"opset_version": opset} for opset in (11, 20)),
        {"dynamo": True, "opset_version": 18},
        {"dynamo": True, "optimize": False},
        {"opset_version": 17, "do_constant_folding": False},
    ],
    ids=str,
)
def test_every_kind_of_module_by_every_exporter(
    settings: dict[str, Any], torch: Any, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    net, x = every_kind(torch), torch.randn(4, 3, 20, 19)
    path = export(torch, net, x[:2], tmp_path / "net.onnx", **settings)
    compare(torch, net, from_onnx(path, "net"), x)


@pytest.mark.parametrize("name", OURS)
def test_torchvisions_state_dicts(name: str, torch: Any, vision: Any, tmp_path: Path) -> None:
    """Our network of that name, with the weights by name or order, answers as theirs does."""
    net, size = build(torch, vision, name), (3, NETWORKS.get(name, 32), NETWORKS.get(name, 32))
    if name == "vgg11":  # smaller: 25,088 features at 224 pixels are 512 at 32
        net.avgpool = torch.nn.Identity()
        net.classifier[0] = torch.nn.Linear(512, 4096)
    held = net.state_dict()
    path = tmp_path / "net.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in held.items()}}, path)
    network = from_tensors(path, OURS[name], size)
    assert network.model.classes == CLASSES
    compare(torch, net, network, torch.randn(2, *size))

    # here arrays are in the order of their names
    save = pytest.importorskip("safetensors.torch").save_file
    save({n: t.contiguous() for n, t in held.items()}, tmp_path / "net.safetensors")
    again = from_tensors(tmp_path / "net.safetensors", OURS[name], size)
    assert again.arrays.keys() == network.arrays.keys()
    for full, array in network.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[full])


def test_what_is_no_state_dict_is_refused(torch: Any, tmp_path: Path) -> None:
    """Nothing of a file is executed: a module is code."""
    for number, held in enumerate((torch.nn.Linear(2, 3), [1, 2], {"a": 1}, {})):
        path = tmp_path / f"{number}.pt"
        torch.save(held, path)
        with pytest.raises(UserError, match=f"^{path}: not a state_dict") as caught:
            from_tensors(path, "lenet5")
        assert "\n" not in str(caught.value)


def test_a_state_dict_of_another_network_is_refused(torch: Any, tmp_path: Path) -> None:
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 16, 3), torch.nn.Linear(8, 4)]
    path = tmp_path / "net.pt"
    torch.save(torch.nn.Sequential(*layers).state_dict(), path)
    with pytest.raises(UserError, match="has arrays of 3 layers, lenet5 has 5, and their names"):
        from_tensors(path, "lenet5")
    (tmp_path / "net.py").write_text(
        "from mpicnn.layers import *\n"
        "def model(shape, classes):\n"
        "    return [('a', Conv(16, 3)), ('b', Conv(16, 5)), ('f', Flatten()),\n"
        "            ('c', Linear(classes))]\n"
    )
    with pytest.raises(UserError, match="b.w is 16 x 16 x 3 x 3, but 16 x 16 x 5 x 5 in net"):
        from_tensors(path, str(tmp_path / "net.py"), (3, 9, 9))
