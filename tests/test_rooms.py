"""What the architecture promises of imports, beside the contracts that import-linter holds."""

import re
from pathlib import Path

import mpi_jobs

import mpicnn

PACKAGE = Path(mpicnn.__file__).parent

WITHOUT_MPI = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mpi4py", "h5py"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from importlib import import_module
from pathlib import Path
for room in ("division", "forecast"):
    root = Path(import_module(f"mpicnn.{room}").__file__).parent
    for file in root.rglob("*.py"):
        import_module(".".join(("mpicnn", room, *file.relative_to(root).with_suffix("").parts)))
from mpicnn import models
from mpicnn.division.presets import preset
from mpicnn.forecast.table import plan_table
model = models.load("alexnet-owt", (3, 224, 224), 1000)
print(plan_table(model, preset("owt", model, (64,), scheme="c"), 512))
"""


def test_what_is_pure_plans_for_64_ranks_where_there_is_no_mpi():
    job = mpi_jobs.run(0, "-c", WITHOUT_MPI, seconds=50)
    assert job.code == 0, job.err
    lines = job.out.splitlines()
    assert "alexnet-owt under plan owt on 64 rank(s)" in lines[0]
    assert any(line.startswith("63 ") for line in lines)


def test_a_job_starts_before_numpy_and_settings_are_imported():
    code = (
        "import sys, mpicnn.train;"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'mpicnn.settings', 'mpicnn.run')))"
    )
    job = mpi_jobs.run(0, "-c", code, seconds=30)
    assert job.code == 0, job.err


def test_the_environment_is_read_in_one_place():
    readers = [
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if re.search(r"\bos\.(environ|getenv)\b", file.read_text())
    ]
    assert readers == ["job/environment.py"]
