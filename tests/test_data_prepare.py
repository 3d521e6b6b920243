"""Preparing image files: the whole new file or none, on any number of ranks."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import mpi_jobs
import numpy as np
import pytest
from data_samples import (
    command,
    contents,
    cut_one,
    idx_bytes,
    idx_directory,
    picture_folder,
    refused,
)
from PIL import Image

from mpicnn.data import prepare as preparing
from mpicnn.data import write
from mpicnn.data.prepare import rounds
from mpicnn.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "in")


def test_existing_file_is_kept(folder: Path, tmp_path: Path) -> None:
    source, out = idx_directory(tmp_path / "idx"), tmp_path / "a.h5"
    out.write_text("precious")
    refused("a.h5: exists; give --overwrite", out, "idx", source, out)
    cut_one(folder)
    refused("no whole image", out, "folder", folder, out, "--overwrite")
    assert out.read_text() == "precious"
    command("prepare", "idx", source, out, "--overwrite")
    assert len(contents(out)[1]["train"]) == 17


def test_targets_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = idx_directory(tmp_path / "idx")
    refused("a directory; expected", tmp_path / "x", "idx", source, tmp_path)
    refused("none: no such directory", tmp_path / "x", "idx", source, tmp_path / "none/a.h5")
    monkeypatch.setattr(write, "OTHER_BYTES", 2**62)
    refused("bytes free; expected", tmp_path / "a.h5", "idx", source, tmp_path / "a.h5")
    monkeypatch.setattr(write, "MOST_MEMORY_BYTES", 339)
    out = tmp_path / "a.h5"
    refused("340 bytes of images in a split; --gzip", out, "idx", source, out, "--gzip", 1)


def test_disk_that_gets_full(tmp_path: Path) -> None:
    """The size of files is limited instead of the disk: the same error from the same call."""
    source, out = idx_directory(tmp_path / "idx"), tmp_path / "a.h5"
    big = np.zeros((20_000, 5, 4), np.uint8)
    (source / "train-images-idx3-ubyte").write_bytes(idx_bytes(big))
    labels = np.arange(20_000, dtype=np.uint64) % 3
    (source / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels.astype(np.uint8)))
    limit = "import resource, signal\nimport mpicnn.job.launch\n"  # MPI starts without the limit
    limit += "from mpicnn.commands import start\n"
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)\nstart('data')\n"
    job = mpi_jobs.run(0, "-c", limit, "prepare", "idx", source, out)
    assert job.code == 2
    assert re.fullmatch(r".*a.h5: could not be written \(.*File too large.*\)\n", job.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx"]


def test_many_rounds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("prepare", "folder", folder, tmp_path / "a.h5")
    monkeypatch.setattr(preparing, "BLOCK_BYTES", 200)  # Two images of 90 bytes.
    command("prepare", "folder", folder, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_rounds_give_every_image_to_one_rank(ranks: int) -> None:
    for count in (1, 2, 20, 21, 23):
        edges = list(rounds(count, 3 * ranks, ranks))
        shares = [np.arange(a, b) for each in edges for a, b in zip(each, each[1:], strict=False)]
        assert np.concatenate(shares).tolist() == list(range(count))
        assert max(len(share) for share in shares) <= 3


def test_ranks_share_the_work(folder: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one.h5", tmp_path / "three.h5"
    command("prepare", "folder", folder, one)
    job = mpi_jobs.run(3, "-m", "mpicnn.data", "prepare", "folder", folder, three)
    assert (job.code, job.err) == (0, "")
    assert job.out.count("images  3 x 6 x 5") == 1
    assert one.read_bytes() == three.read_bytes()


def test_all_broken_images_are_named_or_skipped(folder: Path, tmp_path: Path) -> None:
    """Two of them on different ranks; without them, the file is as if they were removed."""
    removed, out = tmp_path / "removed.h5", tmp_path / "a.h5"
    broken = [folder / "train/B/0.png", folder / "train/a/3.png"]
    shutil.copytree(folder, tmp_path / "whole")
    for path in broken:
        path.unlink()
    command("prepare", "folder", folder, removed)
    shutil.rmtree(folder)
    (tmp_path / "whole").rename(folder)
    broken[0].write_bytes(b"")
    cut_one(folder)  # The eighth of nine: in the last rank's share.
    prepare = ("-m", "mpicnn.data", "prepare", "folder", folder, out)
    job = mpi_jobs.run(3, *prepare)
    assert job.code == 2
    assert job.err.splitlines() == [
        f"mpicnn: broken: {broken[0]}: no whole image (an empty file)",
        f"mpicnn: broken: {broken[1]}: no whole image (image file is truncated)",
        f"mpicnn: error: {folder}: 2 of 12 images cannot be read, named above;"
        " mend or remove them, or give --skip-broken to go on without",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "removed.h5"]
    job = mpi_jobs.run(3, *prepare, "--skip-broken")
    assert (job.code, job.err) == (0, "")
    assert "read    10 images\n" in job.out
    assert f"skipped 2 that cannot be read: listed in {out}.broken.txt\n" in job.out
    assert out.read_bytes() == removed.read_bytes()
    listed = Path(f"{out}.broken.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [str(path) for path in broken]
    for path in broken:
        path.unlink()
    command("prepare", "folder", folder, out, "--overwrite")
    assert not Path(f"{out}.broken.txt").exists()  # it would be about images that are not missed


def test_many_broken_images_are_listed_in_a_file(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for k in range(10):
        (folder / f"train/a/x{k}.png").write_bytes(b"no image")
    odd = os.fsencode(folder) + b"/test/a/x\xe9\n.png"
    Path(os.fsdecode(odd)).touch()
    out, listed = tmp_path / "a.h5", tmp_path / "a.h5.broken.txt"
    with pytest.raises(UserError, match=f"11 of 23 images cannot be read, all in {listed}; mend"):
        command("prepare", "folder", folder, out)
    shown = capfd.readouterr().err
    assert shown.count("mpicnn: broken: ") == shown.count("\n") == 10
    assert r"a/x\xe9\n.png: no whole image (an empty file)" in shown
    lines = listed.read_text().splitlines()
    assert lines[0] == rf"{folder}/test/a/x\xe9\n.png" + "\tno whole image (an empty file)"
    assert len(lines) == 11
    assert not out.exists()


def test_skipping_does_not_empty_a_class(folder: Path, tmp_path: Path) -> None:
    (folder / "test/a/0.png").write_bytes(b"")
    out = tmp_path / "a.h5"
    refused("test/a: no images that can be read", out, "folder", folder, out, "--skip-broken")


def test_skipped_images_are_replaced_where_there_are_more(folder: Path, tmp_path: Path) -> None:
    """--per-class and --test-fraction choose among the images that can be read."""
    for k in (0, 2):  # the second is found only where it takes the place of the first
        (folder / f"train/B/{k}.png").write_bytes(b"")
    command("prepare", "folder", folder, tmp_path / "a.h5", "--per-class", "2,1", "--skip-broken")
    images, _ = contents(tmp_path / "a.h5")
    assert len(images["train"]) == 4
    expected = [np.asarray(Image.open(folder / f"train/B/{k}.png")) for k in (1, 3)]
    np.testing.assert_array_equal(images["train"][:2], np.transpose(expected, (0, 3, 1, 2)))
    assert len((tmp_path / "a.h5.broken.txt").read_text().splitlines()) == 2


def test_info(capfd: pytest.CaptureFixture[str]) -> None:
    command("info", "embedded")
    lines = capfd.readouterr().out.splitlines()
    assert "images  1 x 28 x 28 (channels x height x width)" in lines
    assert "    9      1000       200  Ankle boot" in lines
    assert "  all     10000      2000" in lines


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "prepare",
        "prepare zip a b",
        "info a b",
        "prepare idx a",
        "prepare idx a b --size 3",
        "prepare idx a b --over",
        "prepare idx a b --per-class 3",
        "prepare idx a b --per-class 3,0",
        "prepare idx a b --classes x,x",
        "prepare idx a b --gzip 10",
        "prepare folder a b --size 0",
        "prepare folder a b --test-fraction 1",
        "prepare folder a b --test-fraction nan",
    ],
)
def test_wrong_command_lines(arguments: str) -> None:
    with pytest.raises(UserError, match="--help"):
        command(*arguments.split())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("idx", "cifar10", "cifar100", "folder"):
        with pytest.raises(SystemExit) as left:
            command("prepare", kind, "--help")
        assert left.value.code == 0
        assert "--overwrite" in capsys.readouterr().out
