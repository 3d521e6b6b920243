"""The commands as a user runs them, on one and several ranks, with right and with wrong input."""

import json
import re
import signal
import time
from pathlib import Path

import data_samples
import mpi_jobs
import numpy as np
import pytest
from PIL import Image

from mpicnn.checkpoint import read_meta, read_tensors
from mpicnn.data.file import open_dataset
from mpicnn.data.write import writing
from mpicnn.run.metrics import read_rows
from mpicnn.settings import recipes

TRAIN = ("-m", "mpicnn.train")
STEPS_PER_EPOCH = 5  # of the 37 images below, in batches of 8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.h5"
    return data_samples.sample(path, train=37, test=11, shape=(1, 12, 12)).path


@pytest.fixture
def train(tmp_path, images):
    """Run a short training in double precision; of several ranks' tests only one runs it."""

    def run(ranks, *options, **extra):
        fixed = ("--data", images, "--batch", 8, "--precision", "float64", "--threads", 1)
        return mpi_jobs.run(ranks, *TRAIN, *fixed, *options, seconds=60, **extra)

    return run


def error_of(job, code=2):
    """Return the one line that a wrong input is answered with."""
    assert job.code == code, job.err
    lines = [line for line in job.err.splitlines() if line.startswith("mpicnn: error: ")]
    assert len(lines) == 1, job.err
    assert "Traceback" not in job.err
    return lines[0]


@pytest.mark.limit(120)
def test_a_run_leaves_what_evaluation_and_prediction_need(train, tmp_path, images):
    run = tmp_path / "run"
    job = train(2, "--run-dir", run, "--epochs", 2, "--plan", "owt")
    assert job.code == 0, job.err
    for text in ("2 ranks", "default, ", "owt, 10 steps of batch 8", "communication", "top-1"):
        assert text in job.out
    rows = read_rows(run / "metrics.csv")
    assert [row.step for row in rows if row.split == "test"] == [
        STEPS_PER_EPOCH,
        2 * STEPS_PER_EPOCH,
    ]
    assert {p.name for p in run.iterdir()} == {
        "checkpoints", "config.toml", "plan.toml", "metrics.csv", "log.txt",
    }  # fmt: skip

    job = mpi_jobs.run(3, "-m", "mpicnn.evaluate", run)
    assert job.code == 0, job.err
    scores = re.search(r"loss ([\d.]+), top-1 ([\d.]+) %", job.out)
    assert float(scores[1]) == pytest.approx(rows[-1].loss, abs=1e-4)
    assert float(scores[2]) == pytest.approx(100 * rows[-1].top1, abs=1e-2)

    picture = tmp_path / "picture.png"
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(picture)
    job = mpi_jobs.run(2, "-m", "mpicnn.predict", run, picture, "--top", 2)
    assert job.code == 0, job.err
    odds = [float(n) for n in re.findall(r"([\d.]+) %", job.out)]
    assert job.out.startswith(f"{picture}: ") and len(odds) == 2 and odds[0] >= odds[1]
    assert picture.name in error_of(
        mpi_jobs.run(0, "-m", "mpicnn.predict", run, tmp_path / "no" / picture.name)
    )


@pytest.mark.limit(180)
def test_a_resumed_run_on_other_ranks_is_the_same_run(train, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (
        "--momentum", 0.8, "--schedule", "constant", "--keep", 9, "--crop", 12, "--crop-area",
        "0.3,1", "--flip", "--contrast", 0.4, "--erase", 0.5, "--mixup", 0.4, "--cutmix", 1,
    )  # fmt: skip
    assert train(0, "--run-dir", whole, "--epochs", 2, *options).code == 0
    first = train(2, "--run-dir", parts, "--epochs", 0.6, *options, "--plan", "filter")
    assert first.code == 0, first.err
    # The second part takes its settings from the run, and divides the work in another way.
    second = train(
        3, "--run-dir", parts, "--resume", "--epochs", 2, "--plan", "owt", "--shares", "2,1,0",
        "--sync", "sharded",
    )  # fmt: skip
    assert second.code == 0, second.err
    assert "from step 3" in second.out
    one = read_tensors(whole / "checkpoints" / "step-00000010.h5")
    other = read_tensors(parts / "checkpoints" / "step-00000010.h5")
    assert one.keys() == other.keys()
    for name, array in one.items():
        error = np.linalg.norm(other[name] - array) / max(np.linalg.norm(array), 1e-300)
        assert error <= 1e-12, f"{name}: {error:.2e}"
    train_rows = [r.step for r in read_rows(parts / "metrics.csv") if r.split == "train"]
    assert train_rows == sorted(set(train_rows)) and train_rows[-1] == 10
    before = (parts / "metrics.csv").read_text()
    third = train(0, "--run-dir", parts, "--resume", "--shares", "equal")
    assert third.code == 0, third.err
    assert "note: the run has ended already, after 10 steps; give it more --epochs" in third.out
    assert "one step, ms" not in third.out and (parts / "metrics.csv").read_text() == before


@pytest.mark.limit(120)
def test_a_signal_saves_and_leaves_with_a_code_of_its_own(tmp_path, images):
    run = tmp_path / "run"
    options = ("--data", images, "--batch", 8, "--epochs", 100_000, "--run-dir", run)
    process = mpi_jobs.start(2, *TRAIN, *options, "--evaluate-every", 0, "--threads", 1)
    metrics, end = run / "metrics.csv", time.monotonic() + 30
    while time.monotonic() < end and not (metrics.exists() and read_rows(metrics)):
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    job = mpi_jobs.finish(process, 30)
    assert job.code == 75, job.err
    assert "stopped by SIGUSR1" in job.out
    saved = max((run / "checkpoints").iterdir())
    assert read_meta(saved)["step"] == int(saved.stem.removeprefix("step-")) > 0


@pytest.mark.limit(120)
def test_a_diverging_run_ends_and_keeps_its_last_finite_checkpoint(train, tmp_path):
    run = tmp_path / "run"
    job = train(2, "--run-dir", run, "--epochs", 50, "--rate", 30, "--checkpoint-every", 0.2)
    line = error_of(job)
    assert "is not finite" in line and "lower the rate (30)" in line
    for path in (run / "checkpoints").iterdir():
        assert all(np.isfinite(a).all() for a in read_tensors(path).values())


@pytest.mark.limit(120)
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(train, tmp_path):
    run = tmp_path / "run"
    assert train(0, "--run-dir", run, "--epochs", 2, "--keep", 2).code == 0
    newest = run / "checkpoints" / "step-00000010.h5"
    data = bytearray(newest.read_bytes())
    at = len(data) // 2
    data[at] ^= 0x40
    newest.write_bytes(data)
    job = train(2, "--run-dir", run, "--resume", "--epochs", 2.2)
    assert job.code == 0, job.err
    assert "mpicnn: warning: " in job.err and newest.name in job.err
    assert "from step 5" in job.out


WRONG = {
    "unknown flag": (("--epohcs", 1), "--epohcs: no such option"),
    "mistyped value": (("--batch", "twelve"), "batch"),
    "not a number": (("--rate", "nan"), "rate"),
    "negative": (("--rate", -0.1), "rate"),
    "no such model": (("--model", "resnet-9000"), "unknown network 'resnet-9000'"),
    "no such plan": (("--plan", "owl"), "no preset 'owl'"),
    "no such data": (("--data", "nowhere.h5"), "nowhere.h5: no such file"),
    "batch below ranks": (("--batch", 1), "batch 1: fewer examples than the 2 ranks"),
    "shares for other ranks": (("--shares", "1,1,1"), "3 shares given, expected one for each of 2"),
    "no work for anyone": (("--shares", "0,0"), "shares"),
    "grid of other size": (("--grid", "3x2"), "grid 3x2 has 6 places, but 2 ranks run"),
    "kernel above image": (("--model", "alexnet"), "network alexnet, layer pool1: MaxPool: kernel"),
    "crop above image": (("--crop", 13), "crop of 13 x 13 does not fit"),
    "columns below ranks": (
        ("--plan", "owt", "--shares", "1,1", "--model", "{one}"), "cannot be shared",
    ),
    "rounds without fc": (("--scheme", "c", "--plan", "owt", "--model", "{conv}"), "scheme (c)"),
    "rounds without a scheme": (
        ("--plan", "owt", "--fc-update", "round"), "fc-update round: scheme (a) has one round",
    ),
    "more rounds than examples": (
        ("--plan", "owt", "--scheme", "c", "--fc-update", "round", "--batch", 2),
        "batch 2 leaves 1 of the 2 rounds of scheme (c) without examples",
    ),
    "no GPU": (("--device", "cpu,gpu:7"), "error: rank 1: device gpu"),
    "no TF32": (("--precision", "tf32", "--device", "cpu"), "has no "),
    "no device of that kind": (("--device", "gpu:0,tpu"), "--device 'gpu:0,tpu': expected auto"),
    "no NCCL on CPUs": (("--transport", "nccl"), "transport nccl: a rank computes on a CPU"),
    "run directory is a file": (("--run-dir", "{one}"), "exists already"),
    "run directory below a file": (("--run-dir", "{one}/run"), "cannot be made"),
    "plan file": (("--plan", "nowhere.toml"), "plan nowhere.toml: cannot be read"),
    "calibration of something else": (
        ("--shares", "measured", "--calibration", "{one}"), "not a calibration",
    ),
}  # fmt: skip

LINEAR = '[[layer]]\ntype = "linear"\no = {}\n'
ONE = '[[layer]]\ntype = "flatten"\n' + LINEAR.format(1) + LINEAR.format('"classes"')
CONV = '[[layer]]\ntype = "conv"\no = "classes"\nkernel = 12\n[[layer]]\ntype = "flatten"\n'


MISSING = ("no GPU", "no TF32")
"""What is wrong with the machine: exit code 69 (`EX_UNAVAILABLE`)."""


@pytest.mark.limit(60)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(train, tmp_path, case):
    files = {"one": tmp_path / "one.toml", "conv": tmp_path / "conv.toml"}
    files["one"].write_text(ONE)
    files["conv"].write_text(CONV)
    options, message = WRONG[case]
    options = [str(option).format(**files) for option in options]
    before = sorted(tmp_path.iterdir())
    fresh = () if "--run-dir" in options else ("--run-dir", tmp_path / "run")
    job = train(2, *fresh, *options)
    assert message in error_of(job, 69 if case in MISSING else 2)
    assert sorted(tmp_path.iterdir()) == before
    assert job.seconds < 20


@pytest.mark.limit(60)
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scheme", "b", "--plan", "owt", "--model", "{conv}"), "conv has none; use scheme a"),
        (("--crop", 21, "--pad", 4), "crop of 21 x 21 does not fit images of 12 x 12 padded by 4"),
        (("{recipe}",), "recipe.toml: bacth: no such setting; did you mean batch"),
        (("alexnet-smal",), "'alexnet-smal': no such file or recipe"),
        (("--fc-update", "round"), "scheme (a) has one round a step"),
        (("--fc-update", "round", "--micro-batches", 2), "a whole batch; use micro-batches 1"),
    ],
    ids=["no fc", "crop", "key of a recipe", "recipe", "one round", "micro-batches"],
)
def test_wrong_input_is_one_line_on_any_number_of_ranks(train, tmp_path, ranks, options, message):
    files = {"conv": tmp_path / "conv.toml", "recipe": tmp_path / "recipe.toml"}
    files["conv"].write_text(CONV)
    files["recipe"].write_text(recipes.text("alexnet-small") + "bacth = 3\n")
    options = [str(option).format(**files) for option in options]
    assert message in error_of(train(ranks, "--run-dir", tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.limit(60)
def test_fewer_examples_than_rounds_leave_rounds_out(train, tmp_path):
    runs = {ranks: tmp_path / str(ranks) for ranks in (1, 3)}
    options = ("--batch", 4, "--epochs", 0.1, "--plan", "owt", "--scheme", "c")
    for ranks, run in runs.items():
        assert train(ranks, "--run-dir", run, *options).code == 0
    one, three = (read_rows(run / "metrics.csv")[-1].loss for run in runs.values())
    assert three == pytest.approx(one, rel=1e-12)  # sums of float64 in another order


@pytest.mark.limit(60)
def test_fc_rate_is_that_of_fc_weights_alone(train, tmp_path):
    # OWT's on four GPUs: convolutions 0.04, fully connected layers 0.01. One step from equal
    # weights, so that gradients are equal too.
    rates = {"both": (0.04, 0.25), "high": (0.04, 1), "low": (0.01, 1)}
    after = {}
    for name, (rate, fc_rate) in rates.items():
        options = ("--rate", rate, "--fc-rate", fc_rate, "--epochs", 0.2, "--plan", "owt")
        assert train(2, "--run-dir", tmp_path / name, *options).code == 0
        after[name] = read_tensors(tmp_path / name / "checkpoints" / "step-00000001.h5")
    for key, array in after["both"].items():
        right, wrong = ("low", "high") if "/fc" in key else ("high", "low")
        # The product of rate and fc-rate is rounded, and nothing else differs.
        np.testing.assert_allclose(array, after[right][key], rtol=1e-14, err_msg=key)
        assert not np.allclose(array, after[wrong][key], rtol=1e-6, atol=0), key


@pytest.mark.limit(120)
def test_an_existing_run_is_not_overwritten(train, tmp_path):
    run = tmp_path / "run"
    assert train(0, "--run-dir", run, "--epochs", 0.2).code == 0
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "give --resume" in error_of(train(2, "--run-dir", run))
    other = train(2, "--run-dir", run, "--resume", "--rate", 0.5)
    assert "rate: 0.01 before, 0.5 now" in error_of(other)
    other = train(2, "--run-dir", run, "--resume", "--model", "lenet5", "--crop", 11)
    assert "crop: 0 before, 11 now" in error_of(other)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept


@pytest.mark.limit(120)
def test_fc_weights_that_change_by_round_tie_a_run_to_its_rounds(train, tmp_path):
    run = tmp_path / "run"
    options = ("--run-dir", run, "--fc-update", "round", "--fc-rate", 0.5, "--scheme", "c")
    assert train(2, *options, "--plan", "owt", "--epochs", 0.4).code == 0
    assert train(2, "--run-dir", run, "--resume", "--epochs", 0.8).code == 0
    other = train(3, "--run-dir", run, "--resume", "--epochs", 1.2)
    assert "goes on with the scheme, ranks and shares it began with" in error_of(other)


@pytest.mark.limit(120)
def test_a_run_goes_on_with_the_settings_in_its_checkpoint(train, tmp_path):
    """Whatever became of config.toml: lost, cut short where a line ends, or edited."""
    run = tmp_path / "run"
    assert train(0, "--run-dir", run, "--epochs", 0.2, "--momentum", 0.7, "--flip").code == 0
    config = run / "config.toml"
    text = config.read_text()
    go_on = ("-m", "mpicnn.train", "--resume", "--run-dir", run, "--epochs", 0.4)
    before = "momentum: 0.7 before, {} now"
    wrong = {
        text.partition("momentum")[0]: before.format(0.9),
        text.replace("momentum = 0.7", "momentum = 0.6"): before.format(0.6),
        text[: text.index("momentum") + 10]: "config.toml: ",
    }
    for damaged, said in wrong.items():
        config.write_text(damaged)
        assert said in error_of(mpi_jobs.run(0, *go_on))
    config.unlink()
    job = mpi_jobs.run(2, *go_on)
    assert job.code == 0, job.err
    assert "from step 1" in job.out
    now = text.replace("epochs = 0.2 ", "epochs = 0.4 ").replace("resume = false", "resume = true ")
    assert config.read_text() == now


@pytest.mark.limit(120)
def test_classes_are_known_by_name_and_images_normalised_as_in_training(train, tmp_path, images):
    """The same images as dimmed ones in a file of other order, whose own mean is another."""
    run = tmp_path / "run"
    assert train(2, "--run-dir", run, "--epochs", 2).code == 0
    shown = evaluated(mpi_jobs.run(2, "-m", "mpicnn.evaluate", run))
    order = np.array([2, 0, 3, 1])
    classes, labels, pixels = examples_of(images)
    bright = np.full((50, 1, 12, 12), 255, np.uint8)  # of training alone: they move the mean
    other = tmp_path / "other.h5"
    places = np.argsort(order)
    split = {"train": np.zeros(len(bright), np.int64), "test": places[labels]}
    names = [classes[i] for i in order]
    write(other, names, split, {"train": bright, "test": pixels})
    assert evaluated(mpi_jobs.run(2, "-m", "mpicnn.evaluate", run, "--data", other)) == shown
    write(other, [*names[:3], "emu"], split, {"train": bright, "test": pixels})
    refused = mpi_jobs.run(2, "-m", "mpicnn.evaluate", run, "--data", other)
    assert "has classes that the network does not know: emu" in error_of(refused)


def evaluated(job):
    """Return what an evaluation printed of the score."""
    assert job.code == 0, job.err
    return re.search(r"loss .* top-5 [\d.]+ %", job.out)[0]


def examples_of(path):
    """Return class names, labels and images of a file's test examples."""
    with open_dataset(str(path)) as data:
        split = data.split("test")
        return list(data.classes), split.labels, split.read(np.arange(len(split)))


def write(path, classes, labels, images):
    """Write a data set, in place of one that is there."""
    path.unlink(missing_ok=True)
    with writing(path, classes, images["test"].shape[1:], labels, None) as writer:
        for split, pixels in images.items():
            writer.append(split, pixels)


@pytest.mark.limit(60)
def test_help_and_version_are_said_once():
    job = mpi_jobs.run(2, *TRAIN, "--help")
    assert job.code == 0 and job.out.count("usage:") == 1
    for command in ("evaluate", "predict", "plan"):
        job = mpi_jobs.run(0, "-m", f"mpicnn.{command}", "--help")
        assert job.code == 0 and f"python -m mpicnn.{command}" in job.out


@pytest.mark.limit(60)
def test_calibration_is_measured_saved_and_used_again(train, tmp_path):
    file = tmp_path / "speeds.json"
    options = ("--plan", "filter", "--shares", "measured", "--calibration", file, "--epochs", 0.2)
    assert train(2, "--run-dir", tmp_path / "a", *options).code == 0
    text = file.read_text()
    assert train(2, "--run-dir", tmp_path / "b", *options).code == 0
    assert file.read_text() == text
    plans = [(tmp_path / run / "plan.toml").read_text() for run in "ab"]
    assert plans[0] == plans[1]
    job = train(3, "--run-dir", tmp_path / "c", *options)
    assert "number of ranks: 2 when measured, 3 now; add --recalibrate" in error_of(job)
    assert file.read_text() == text
    assert not Path(tmp_path / "c").exists()
    job = train(3, "--run-dir", tmp_path / "c", *options, "--recalibrate")
    assert job.code == 0
    assert f"calibration {file}: number of ranks: 2 when measured, 3 now; measured anew" in job.err
    assert len(json.loads(file.read_text())["ranks"]) == 3
