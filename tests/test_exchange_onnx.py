"""Networks as ONNX: equal in onnxruntime, and the same when they are read again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_cases import answers, draw, error, images, run, weights

from mpicnn import layers as kinds
from mpicnn.errors import UserError
from mpicnn.exchange import groups
from mpicnn.exchange.network import Network, Pixels, for_any_classes
from mpicnn.exchange.onnx_in import from_onnx
from mpicnn.exchange.onnx_out import WRITERS, to_onnx
from mpicnn.exchange.table import OPERATORS
from mpicnn.layers import Linear
from mpicnn.models import Model
from mpicnn.models.entry import TYPES

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'mpicnn[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SEEDS = range(70, 130)
SAYS_NOTHING = {"ceil_mode", "count_include_pad", "padding"}
"""What may be written in another way that means the same."""


def write(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_are_the_same_in_onnxruntime_and_when_read_again(
    seed: int, tmp_path: Path
) -> None:
    network, rng = draw(seed), np.random.default_rng(seed)
    path = write(tmp_path / "net.onnx", to_onnx(network))
    for count in (1, 3):
        x = images(network.model, rng, count)
        expected = answers(network.model, network.arrays, x)
        # where it takes differences of means, float32 itself is further off than 1e-5
        rounding = error(answers(network.model, network.arrays, x, np.float32), expected)
        assert error(run(path, x), expected) <= max(1e-5, 20 * rounding)

    again = from_onnx(path, "other")
    assert again.model.name == network.model.name
    assert again.classes == network.classes
    assert again.pixels == network.pixels
    described = [model.describe() for model in (network.model, again.model)]
    for before, after in zip(*described, strict=True):
        assert before.keys() == after.keys()
        assert {k for k in before if before[k] != after[k]} <= SAYS_NOTHING
    np.testing.assert_array_equal(answers(again.model, again.arrays, x), expected)


def test_random_networks_have_every_kind_of_layer() -> None:
    drawn = {type(layer) for seed in SEEDS for _, layer in draw(seed).model.layers}
    assert drawn == set(TYPES.values()) == set(WRITERS)


@pytest.mark.parametrize(("o", "c", "count"), [(6, 4, 2), (3, 9, 3), (5, 5, 5), (2, 6, 1)])
def test_groups_are_blocks_of_a_matrix(o: int, c: int, count: int) -> None:
    w = np.random.default_rng(o).standard_normal((o, c // count))
    matrix = groups.whole(w, count)
    assert matrix.shape == (o, c)
    np.testing.assert_array_equal(groups.blocks(matrix, count), w)
    assert groups.blocks(matrix, 7) is None
    said = {"groups": f'{{"fc": {count}}}'}
    layer, arrays = groups.regrouped("fc", Linear(o), {"w": matrix}, said)
    assert layer == Linear(o, groups=count) and arrays["w"].shape == w.shape
    if count > 1:  # learnt on by others, it may be whole
        matrix[0, -1] = 1
        layer, arrays = groups.regrouped("fc", Linear(o), {"w": matrix}, said)
        assert layer == Linear(o) and arrays["w"] is matrix
    for odd in ("[]", "{", '{"fc": "2"}', '{"fc": -1}', '{"other": 2}'):
        assert groups.regrouped("fc", Linear(o), {"w": matrix}, {"groups": odd})[0] == Linear(o)


def test_a_graph_that_normalises_takes_pixels(tmp_path: Path) -> None:
    network, rng = draw(3), np.random.default_rng(3)
    path = write(tmp_path / "net.onnx", to_onnx(network, normalise=True))
    pixels = rng.integers(0, 256, (4, *network.model.input_shape), np.uint8)
    assert network.pixels is not None
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (network.pixels.mean, network.pixels.std))
    expected = answers(network.model, network.arrays, (pixels - mean) / std)
    assert error(run(path, pixels), expected) < 1e-5
    again = from_onnx(path, "net")
    assert again.pixels == network.pixels
    assert again.model.describe() == network.model.describe()


def small(*layers: Any) -> Network:
    """Return a network of some layers, Flatten and a fully connected layer, with weights."""
    named = [(f"layer{n}", layer) for n, layer in enumerate(layers)]
    rows = [("rows", kinds.Flatten()), ("fc", kinds.Linear(3))]
    model = Model("small", (4, 7, 6), (*named, *rows))
    pixels = Pixels((0.0,) * 4, (1.0,) * 4)
    return Network(model, weights(model, np.random.default_rng(0)), ("a", "b", "c"), pixels)


class Own(kinds.ReLU):
    """A layer that no other program knows."""


def test_layers_that_onnx_cannot_express_are_named_all_at_once() -> None:
    with pytest.raises(UserError) as caught:
        to_onnx(small(kinds.LRN(4), kinds.Conv(4, 3), Own()))
    text = str(caught.value)
    assert "layer layer0: LRN of an even size, 4" in text
    assert "layer layer2: Own, a class of your own" in text
    assert "layer1" not in text


@pytest.mark.parametrize("kind", [kinds.MaxPool, kinds.AvgPool])
def test_poolings_that_hang_over_are_the_same(kind: Any, tmp_path: Path) -> None:
    """A last window that would start behind the image is left out, unlike in older ONNX."""
    rng, refused = np.random.default_rng(8), 0
    for _ in range(60):
        size = rng.integers(4, 12, 2)
        settings = {
            "kernel": tuple(rng.integers(1, 4, 2)), "stride": tuple(rng.integers(1, 5, 2)),
            "ceil_mode": True,
        }  # fmt: skip
        settings["padding"] = tuple(int(rng.integers(0, k // 2 + 1)) for k in settings["kernel"])
        if kind is kinds.AvgPool:
            settings["count_include_pad"] = bool(rng.integers(2))
        rows = [("pool", kind(**settings)), ("rows", kinds.Flatten()), ("fc", kinds.Linear(3))]
        model = Model("pools", (2, *map(int, size)), rows)
        network = Network(model, weights(model, rng))
        try:
            made = to_onnx(network)
        except UserError as refusal:
            assert "would start behind the image on one axis" in str(refusal)
            refused += 1
            continue
        path = write(tmp_path / "net.onnx", made)
        x = images(model, rng)
        expected = answers(model, network.arrays, x)
        assert error(run(path, x), expected) < 1e-5, settings
        again = from_onnx(path, "net")
        assert error(answers(again.model, again.arrays, x), expected) < 1e-12, settings
    assert refused <= (20 if kind is kinds.AvgPool else 0)


def edited(tmp_path: Path, change: Callable[[Any], None]) -> Path:
    """Return the file of a small network whose graph was changed."""
    model = to_onnx(small(kinds.Conv(4, 3), kinds.ReLU()))
    change(model)
    return write(tmp_path / "edited.onnx", model)


def set_op(index: int, op: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.node[index].op_type = op
        del model.graph.node[index].attribute[:]

    return change


def as_function(model: Any) -> None:
    """Make a function of the file's own of the second node, as some exporters do of modules."""
    helper, node = onnx.helper, model.graph.node[1]
    inner = helper.make_node(node.op_type, ["x"], ["y"], "inner")
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("own", "Part", ["x"], ["y"], [inner], opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node.op_type, node.domain = "Part", "own"


def test_functions_of_a_file_are_written_out(tmp_path: Path) -> None:
    network = from_onnx(edited(tmp_path, as_function), "net")
    assert [type(layer) for _, layer in network.model.layers][:2] == [kinds.Conv, kinds.ReLU]


def another_output(model: Any) -> None:
    info = onnx.helper.make_tensor_value_info("layer1.out", onnx.TensorProto.FLOAT, "nchw")
    model.graph.output.append(info)


def free_size(model: Any) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "any"


def weights_of_input(model: Any) -> None:
    kept = [each for each in model.graph.initializer if each.name != "fc.w"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    info = onnx.helper.make_tensor_value_info("fc.w", onnx.TensorProto.FLOAT, [3, 80])
    model.graph.input.append(info)


def shared_factor(model: Any) -> None:
    """Have a factor behind a convolution whose output another node reads as it is."""
    graph, helper = model.graph, onnx.helper
    half = np.full((4, 1, 1), 0.5, np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(half, "half"))
    graph.node.insert(1, helper.make_node("Mul", ["layer0.out", "half"], ["halved"], "halve"))
    graph.node.insert(2, helper.make_node("Add", ["layer0.out", "halved"], ["sum"], "join"))
    graph.node[3].input[0] = "sum"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_op(1, "Softplus"), "operator Softplus, node layer1: no layer of mpicnn does this"),
        (set_op(1, "HardSigmoid"), "operator HardSigmoid, node layer1: alpha 0.2 and beta 0.5"),
        (set_op(1, "Erf"), r"operator Erf, node layer1: of anything but x / sqrt\(2\)"),
        (another_output, "gives 2 outputs, expected one"),
        (weights_of_input, "takes 2 inputs, expected one"),
        (free_size, "leaves the size of images open: give it by --input"),
        (shared_factor, "operator Mul, node halve: a factor or shift that no"),
    ],
)
def test_what_cannot_be_read_is_refused_by_operator_and_node(
    change: Callable[[Any], None], expected: str, tmp_path: Path
) -> None:
    path = edited(tmp_path, change)
    with pytest.raises(UserError, match=f"^{path}: {expected}") as caught:
        from_onnx(path, "net")
    assert "\n" not in str(caught.value)
    if change is free_size:
        assert from_onnx(path, "net", (4, 7, 6)).model.input_shape == (4, 7, 6)


def test_all_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        set_op(0, "LpPool")(model)
        model.graph.node[0].attribute.append(onnx.helper.make_attribute("kernel_shape", [2, 2]))
        del model.graph.node[0].input[1:]
        graph = model.graph
        graph.node.append(onnx.helper.make_node("Elu", ["images"], ["logits"], "other"))
        graph.node[3].output[0] = "unread"

    with pytest.raises(UserError, match="node layer0: .*; operator Elu, node other: "):
        from_onnx(edited(tmp_path, change), "net")


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    with pytest.raises(UserError, match=f"^{path}: no such file"):
        from_onnx(path, "no")
    path.write_bytes(b"\x00 not a graph \xff" * 9)
    with pytest.raises(UserError, match=f"^{path}: not a valid ONNX file") as caught:
        from_onnx(path, "no")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("groups", "count"), [(1, 1), (2, 0)])
def test_a_last_layer_in_groups_keeps_its_number_of_classes(groups: int, count: int) -> None:
    """Another number may not divide into them."""
    layers = [("rows", kinds.Flatten()), ("fc", kinds.Linear(4, groups=groups))]
    text = for_any_classes(Model("net", (2, 3, 1), layers))
    assert (text.count('o = "classes"'), text.count("o = 4")) == (count, 1 - count)


def test_a_missing_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for use in (lambda: from_onnx(tmp_path / "a.onnx", "a"), lambda: to_onnx(small(kinds.ReLU()))):
        with pytest.raises(UserError, match=r"the package onnx.*pip install 'mpicnn\[onnx\]'"):
            use()


def test_the_guide_lists_the_operators_that_are_read() -> None:
    guide = Path(__file__).parents[1] / "docs" / "user-guide.md"
    rows = [f"| `{op}` | {each.becomes} | {each.refused} |" for op, each in OPERATORS.items()]
    assert "\n".join(rows) in guide.read_text(encoding="utf-8")
