"""Spend the first half hour on a GPU: six commands, each with what it must print.

They run one after another, each up to its share of the time, from the repository's root. What they
print goes to a file each in the folder `--out`, what came of them to first-card.csv there. The
order is that of docs/first-card.md: what makes everything behind it worthless comes first, and a
smoke test that fails is the end. Exit code 0: all said what they must; 1: one did not, or was left
out; 2: wrong options; 69: no GPU.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
NO_GPU = 69
SMOKE_LOSS, SMOKE_APART = 1.2070, 0.02  # of the same job on cores; what another order of sums makes
TOP1 = 86.0  # %: 87.75 on cores, less what another order of sums makes over 632 steps
KERNELS = ("kernels", "layout", "products", "conv", "choice", "transfer")
OPERATIONS = ("", "_edges", "_images", "_norm")
CHECKED = ("kernels", "layout", "transfer")  # under the memory checker, which is slow
PRECISIONS = ("float32", "tf32", "bf16")
MODELS = "lenet5:256,marques-50-500,alexnet-owt:128,vgg11:128"

Judge = Callable[[str, Path], str]
"""Says what is wrong with what a command printed and wrote to a folder; "" where nothing is."""


@dataclass(frozen=True)
class Stage:
    """One command: up to `minutes`; `must` says in words what `judge` looks for."""

    name: str
    minutes: float
    command: Sequence[str]
    must: str
    judge: Judge


def smoke(text: str, out: Path) -> str:
    """Judge a few steps: the GPU and cuDNN are there, and the loss is that of the job on cores."""
    if not re.search(r"^ +hosts .*\(cuda, ", text, re.M):
        return "no line of hosts names the backend cuda"
    if note := re.search(r"^note: .*", text, re.M):
        return note[0]
    loss = re.search(r"^test: loss ([\d.]+)", text, re.M)
    if not loss:
        return "no test loss"
    apart = abs(float(loss[1]) - SMOKE_LOSS)
    return "" if apart <= SMOKE_APART else f"test loss {loss[1]}, on cores {SMOKE_LOSS:.4f}"


def passed(text: str, out: Path) -> str:
    """Judge tests: some passed, none failed."""
    if not re.search(r"\b[1-9]\d* passed", text):
        return "no test passed"
    bad = re.search(r"\b[1-9]\d* (failed|errors?)\b", text)
    return bad[0] if bad else ""


def unharmed(text: str, out: Path) -> str:
    """Judge the memory checker: it saw no error in tests that passed."""
    found = re.search(r"ERROR SUMMARY: (\d+) error", text)
    if not found:
        return "no ERROR SUMMARY"
    return passed(text, out) if found[1] == "0" else f"{found[1]} errors"


def rows_for(name: str, sides: int, models: str) -> Judge:
    """Return what judges timed steps: a row for each network, precision and side."""

    def judge(text: str, out: Path) -> str:
        if left := re.search(r"^.*left out: .*", text, re.M):
            return left[0].strip()
        try:
            with (out / f"{name}.csv").open() as file:
                found = len(list(csv.DictReader(file)))
        except OSError:
            found = 0
        wanted = sides * len(PRECISIONS) * len(models.split(","))
        return "" if found == wanted else f"{found} rows, not {wanted}"

    return judge


def trained(text: str, out: Path) -> str:
    """Judge a whole training: its accuracy is that of the same run on cores."""
    top1 = re.search(r"^test: .*top-1 ([\d.]+) %", text, re.M)
    if not top1:
        return "no test"
    return "" if float(top1[1]) >= TOP1 else f"top-1 {top1[1]} %"


def sanitizer() -> str:
    """Return the path of compute-sanitizer: on PATH, or where pip puts it; "" if there is none."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = packages / "cu13/bin", packages / "cuda_sanitizer_api/bin"
    found = (shutil.which("compute-sanitizer", path=place) for place in (None, *map(str, places)))
    return next((path for path in found if path), "")


def stages(out: Path, models: str = MODELS) -> list[Stage]:
    """Return the six stages in order."""
    python, bench = sys.executable, str(ROOT / "bench" / "gpu.py")
    train = [python, "-m", "mpicnn.train", "--device", "gpu"]
    test = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    kernels = [f"tests/test_cuda_{name}.py" for name in KERNELS]
    operations = [f"tests/test_ops{name}.py" for name in OPERATIONS]
    checked = [f"tests/test_cuda_{name}.py" for name in CHECKED]
    steps = [python, bench, "--models", models, "--repeats", "3", "--limit", "10"]
    short = ["--epochs", "0.1", "--batch", "64", "--model", "lenet5"]
    check = [sanitizer(), "--tool", "memcheck", "--error-exitcode", "3"]
    return [
        Stage(
            "smoke", 3, [*train, *short, "--run-dir", str(out / "smoke")],
            f"hosts … (cuda, …), no note, test: loss {SMOKE_LOSS:.4f} ± {SMOKE_APART}", smoke,
        ),
        Stage(
            "kernels", 7, [python, *test, *kernels, *operations],
            "… passed, none failed", passed,
        ),
        Stage(
            "memory", 5, [*check, python, *test, "-p", "no_pool", *checked],
            "ERROR SUMMARY: 0 errors, … passed", unharmed,
        ),
        Stage(
            "steps", 5, [*steps, "--no-peer", "--out", str(out / "steps.csv")],
            "a line of times for each network and precision", rows_for("steps", 1, models),
        ),
        Stage(
            "peer", 8,
            [*steps, "--variants", "eager,channels-last", "--out", str(out / "peer.csv")],
            "the same with PyTorch's times, nothing left out", rows_for("peer", 3, models),
        ),
        Stage(
            "end", 2, [*train, "--run-dir", str(out / "run")],
            f"test: … top-1 of {TOP1:g} % or more", trained,
        ),
    ]  # fmt: skip


def run(stage: Stage, out: Path) -> tuple[int, float, str]:
    """Run a stage; return its exit code, its seconds, and what is wrong with it, "" if nothing."""
    if not stage.command[0]:
        return 127, 0.0, "left out: pip install 'cuda-toolkit[sanitizer]' of the CUDA that is there"
    log, since = out / f"{stage.name}.log", perf_counter()
    path = [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    late = ""
    with log.open("w") as file:
        process = subprocess.Popen(
            stage.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            cwd=ROOT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(stage.minutes * 60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code, late = process.wait(), f"not done in {stage.minutes:g} minutes"
    wrong = late or stage.judge(log.read_text(errors="replace"), out)
    if code and not wrong:
        wrong = f"exit code {code}"
    return code, perf_counter() - since, wrong


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in stages(Path())]
    parser.add_argument("--out", type=Path, default=Path("first-card"), help="folder of results")
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="some of them")
    parser.add_argument("--models", default=MODELS, help="NETWORK[:BATCH], joined by commas")
    parser.add_argument("--show", action="store_true", help="print the commands, run none")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages, print a line for each, and keep what came of them; return the exit code."""
    options = parse(argv)
    out = options.out.resolve()
    chosen = [stage for stage in stages(out, options.models) if stage.name in options.stages]
    if options.show:
        for stage in chosen:
            print(f"{stage.name}: {' '.join(stage.command)}\n  must print: {stage.must}")
        return 0
    if out.exists() and any(out.iterdir()):
        print(f"out {options.out}: holds files; name a new folder", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for stage in chosen:
        code, seconds, wrong = run(stage, out)
        print(f"{stage.name:<8}{seconds:>7.1f} s  {wrong or 'as it must'}", flush=True)
        rows.append(
            {
                "stage": stage.name, "seconds": f"{seconds:.1f}", "code": str(code),
                "wrong": wrong, "must": stage.must, "command": " ".join(stage.command),
            }
        )  # fmt: skip
        with (out / "first-card.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        if wrong and stage.name == "smoke":
            lines = (out / "smoke.log").read_text(errors="replace").strip().splitlines()
            print("\n".join(lines[-5:]))
            return NO_GPU if code == NO_GPU else 1
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
