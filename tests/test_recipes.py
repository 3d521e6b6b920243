"""The recipes: they read as settings, by name, and say what their sources say."""

import tomllib
from pathlib import Path

import mpi_jobs
import pytest

from mpicnn import models
from mpicnn.errors import UserError
from mpicnn.run.setup import hyper
from mpicnn.settings import definitions as config
from mpicnn.settings import recipes
from mpicnn.settings.definitions import Settings
from mpicnn.text import one_of

TRAIN = ("-m", "mpicnn.train")


def train(*argv: str) -> Settings:
    return config.parse(list(argv), "train", {})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_settings_and_described(name: str, elsewhere: Path) -> None:
    settings = train(name)
    given = {
        key.replace("-", "_"): tuple(value) if isinstance(value, list) else value
        for key, value in tomllib.loads(recipes.text(name)).items()
    }
    assert given and {key: getattr(settings, key) for key in given} == given
    assert settings.model in models.NAMES
    first = recipes.text(name).splitlines()[0]
    assert f"{name:<18}{first.removeprefix('# ')}\n" in recipes.listed()
    assert len(first) <= 78  # with its name a line of the list is no longer than those of --help


def test_flags_go_before_the_recipe(elsewhere: Path) -> None:
    assert train("alexnet-small", "--rate", "0.5", "--no-flip").rate == 0.5
    assert not train("--no-flip", "alexnet-small").flip
    plan = config.parse(["alexnet-imagenet", "--ranks", "4", "--scheme", "b"], "plan", {})
    assert (plan.model, plan.plan, plan.scheme) == ("alexnet-owt-code", "owt", "b")


def test_a_file_goes_before_a_recipe_and_a_directory_does_not(elsewhere: Path) -> None:
    Path("alexnet-small").mkdir()
    assert train("alexnet-small").model == "alexnet-cifar"
    Path("alexnet-small").rmdir()
    Path("alexnet-small").write_text("batch = 3")
    assert train("alexnet-small") == Settings(batch=3)


@pytest.mark.parametrize("name", ["alexnet-smal", "alexnet-small.toml", "no/where.toml", ""])
def test_unknown_name_lists_the_recipes(elsewhere: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        train(name)
    assert str(caught.value).startswith(f"{name!r}: no such file or recipe")
    assert str(caught.value).endswith(one_of(recipes.names()))
    assert "\n" not in str(caught.value)


def test_printed_recipe_is_its_file(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train("--recipes", "alexnet-small")
    assert caught.value.code == 0
    Path("mine.toml").write_text(capsys.readouterr().out)
    assert Path("mine.toml").read_text() == recipes.text("alexnet-small")
    assert train("mine.toml") == train("alexnet-small")
    with pytest.raises(UserError, match="'mine': no such recipe; expected alexnet-imagenet, "):
        train("--recipes", "mine")


@pytest.mark.limit(60)
def test_list_is_printed_once() -> None:
    job = mpi_jobs.run(2, *TRAIN, "--recipes")
    assert (job.code, job.out) == (0, recipes.listed())


# Of layer-params-imagenet-{1gpu,2gpu-data,4gpu-data,4gpu-data-model}.cfg in cuda-convnet2: ranks
# that update by round, batch, rates of convolutions and of fully connected layers.
@pytest.mark.parametrize(
    ("rounds", "batch", "conv", "fc"),
    [(1, 128, 0.01, 0.01), (1, 256, 0.02, 0.02), (1, 512, 0.04, 0.04), (4, 512, 0.04, 0.01)],
)
def test_imagenet_recipe_has_the_rates_of_owt(
    rounds: int, batch: int, conv: float, fc: float
) -> None:
    options = ["--batch", str(batch)]
    if rounds > 1:
        options += ["--fc-update", "round", "--fc-rate", str(1 / rounds)]
    settings = train("alexnet-imagenet", *options)
    found = hyper(settings, steps_per_epoch=10)
    assert found.rate == pytest.approx(conv, rel=1e-12)
    assert found.rate * settings.fc_rate == pytest.approx(fc, rel=1e-12)
    assert (found.decay, found.momentum, found.bias_rate) == (0.0005, 0.9, 2)
    assert found.rate_at(899, 900) == pytest.approx(conv / 250, rel=1e-12)
    assert (settings.epochs, settings.crop, settings.flip) == (90, 224, True)


# Goyal et al. 2017, table 1 and section 2.2: the rate of each batch; its falls and their epochs.
@pytest.mark.parametrize(("batch", "rate"), [(256, 0.1), (1024, 0.4), (8192, 3.2)])
def test_resnet_recipe_has_the_rates_of_its_paper(batch: int, rate: float) -> None:
    found = hyper(train("resnet50-imagenet", "--batch", str(batch)), steps_per_epoch=1)
    rates = [found.rate_at(epoch, 90) for epoch in (4, 29, 30, 59, 60, 79, 80, 89)]
    factors = [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert rates == pytest.approx([rate * each for each in factors], rel=1e-12)
    assert (found.decay, found.momentum, found.nesterov) == (0.0001, 0.9, True)


@pytest.mark.limit(120)
def test_small_recipe_trains_on_the_embedded_images(tmp_path: Path) -> None:
    options = ("alexnet-small", "--epochs", 0.02, "--threads", 1, "--run-dir", tmp_path / "run")
    job = mpi_jobs.run(2, *TRAIN, *options, seconds=60)
    assert job.code == 0, job.err
    assert "owt" in job.out and "2 steps of batch 128" in job.out
