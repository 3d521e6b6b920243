"""What a user imports: names, training from Python, and a trained network."""

import mpi_jobs
import numpy as np
import pytest

import mpicnn
from mpicnn.errors import UserError


def test_what_is_named_is_there_and_nothing_is_imported_before():
    code = (
        "import sys, mpicnn;"
        "assert not any(n.startswith(('numpy', 'mpi4py', 'mpicnn.')) for n in sys.modules);"
        "names = [getattr(mpicnn, name) for name in dir(mpicnn)];"
        "assert len(names) == 6"
    )
    job = mpi_jobs.run(0, "-c", code, seconds=30)
    assert job.code == 0, job.err
    with pytest.raises(AttributeError, match="nothing"):
        mpicnn.nothing  # noqa: B018


SCRIPT = """
import sys
import numpy as np
import mpicnn
import mpicnn.train          # the module of the command: importing it must not hide fit
trained = mpicnn.fit(model="lenet5", epochs=0.05, batch=64, threads=1, run_dir=sys.argv[1],
                     progress="off")
assert trained.finished and trained.steps == 8 and 0 <= trained.score.top1 <= 1
model = mpicnn.load(trained.run_dir, threads=1)
images = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), np.uint8)
odds = model.predict(images)
assert odds.shape == (5, len(model.classes))
assert np.allclose(odds.sum(axis=1), 1)
np.save(f"{sys.argv[1]}/{sys.argv[2]}.npy", odds)
"""


@pytest.mark.limit(60)
@pytest.mark.parametrize("ranks", [0, 3])
def test_a_script_trains_and_predicts(ranks, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    job = mpi_jobs.run(ranks, tmp_path / "script.py", tmp_path / "run", "odds", seconds=50)
    assert job.code == 0, job.err
    assert np.load(tmp_path / "run" / "odds.npy").shape == (5, 10)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"batch": 0}, "batch = 0: expected a whole number of at least 1"),
        ({"bacth": 3}, "bacth: no such setting; did you mean batch"),
        ({"model": "lenet6"}, "unknown network 'lenet6'"),
        ({"rate": "fast"}, "rate = 'fast': expected a number above 0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(named, message):
    from mpi4py import MPI

    with pytest.raises(UserError, match=message):
        mpicnn.fit(comm=MPI.COMM_SELF, **named)
