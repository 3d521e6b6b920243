"""A suite on several ranks ends with one verdict, whatever a rank does in it."""

import re
from pathlib import Path
from xml.etree import ElementTree

import mpi_jobs
import pytest

HERE = Path(__file__).parent / "helpers"
SECONDS = 30  # two or three ranks take about 2 s, a stuck one 3 s more; the machine may be busy
QUICK = ("-o", "mpi_limit=2", "-o", "mpi_grace=1")

pytestmark = pytest.mark.limit(90)


def suite(ranks, folder, body, *options):
    """Run `body` as a test module on `ranks` ranks and return the job."""
    (folder / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {HERE}\n"
        "addopts = -p no:cacheprovider --import-mode=importlib --color=no\n"
    )
    (folder / "conftest.py").write_text("pytest_plugins = ('mpi_guard',)\n")
    head = "import os, signal, time\nimport pytest\nfrom mpi4py import MPI\n"
    (folder / "test_suite.py").write_text(f"{head}RANK = MPI.COMM_WORLD.rank\n\n{body}")
    return mpi_jobs.run(
        ranks, "-m", "pytest", folder, f"--rootdir={folder}", *options, seconds=SECONDS
    )


def test_one_report_of_all_ranks(tmp_path):
    body = """\
def test_world(comm): assert comm.allreduce(1) == 3
def test_some(subcomms): assert subcomms.allreduce(1) == subcomms.size
def test_needs_more(subcomm): assert not subcomm(4)
@pytest.mark.xfail
def test_expected(): assert False
"""
    job = suite(3, tmp_path, body, f"--junitxml={tmp_path / 'report.xml'}")
    assert job.code == 0, job.out + job.err
    assert job.out.count("4 passed, 2 skipped, 1 xfailed") == 1
    assert job.out.count("test session starts") == 1
    assert len(list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))) == 7


def test_tests_of_one_rank_run_once(tmp_path):
    body = f"""\
@pytest.mark.parametrize("number", range(7))
def test_dealt(number):
    with open({str(tmp_path / "ran")!r}, "a") as file:
        file.write(f"{{RANK}} {{number}}\\n")
    if number == 3: pytest.skip("not this one")
    assert number != 4, "this one"
@pytest.mark.together
@pytest.mark.parametrize("number", range(3))
def test_kept_together(number):
    with open({str(tmp_path / "kept")!r}, "a") as file:
        file.write(f"{{RANK}} {{number}}\\n")
def test_shared(comm): assert comm.size == 3
"""
    job = suite(3, tmp_path, body, f"--junitxml={tmp_path / 'report.xml'}")
    assert job.code == 1
    assert job.out.count("1 failed, 9 passed, 1 skipped") == 1, job.out + job.err
    assert job.out.count("_ test_dealt[4] _") == 1
    assert job.out.count("\nE       AssertionError: this one") == 1  # pytest may sum it up again
    assert "This ran on rank 1." in job.out and "[rank" not in job.err
    ran = sorted(line.split() for line in (tmp_path / "ran").read_text().splitlines())
    assert ran == [[str(rank), str(n)] for rank in range(3) for n in range(rank, 7, 3)]
    assert (tmp_path / "kept").read_text() == "1 0\n1 1\n1 2\n"
    assert len(list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))) == 11


@pytest.mark.parametrize("failing", [0, 2])
def test_failure_on_one_rank_fails_the_test_once(tmp_path, failing):
    body = f"""\
def test_odd(comm):
    share = 7
    assert RANK != {failing} or share == 8
def test_next(comm): assert comm.allreduce(1) == 3
"""
    job = suite(3, tmp_path, body)
    assert job.code == 1
    assert job.out.count("1 failed, 1 passed") == 1, job.out + job.err
    assert ("[rank 2] E       assert (2 != 2 or 7 == 8)" in job.out) == (failing == 2)
    assert "[rank" not in job.err


def test_stop_at_first_failure_holds_for_all(tmp_path):
    body = "def test_odd(comm): assert RANK != 1\ndef test_next(comm): pass\n"
    job = suite(2, tmp_path, body, "-x")
    assert job.code == 1
    assert "1 failed in" in job.out


def test_stop_at_first_failure_of_one_rank_holds_for_all(tmp_path):
    body = """\
@pytest.mark.parametrize("number", range(40))
def test_dealt(number):
    assert number != 1
    time.sleep(0.2)
def test_shared(comm): assert False
"""
    job = suite(2, tmp_path, body, "-x")
    assert job.code == 1
    ended = re.search(r"= 1 failed, (\d+) passed in", job.out)
    assert ended and int(ended[1]) < 10, job.out + job.err


def test_raise_between_collectives_ends_the_run(tmp_path):
    body = """\
def test_odd(comm):
    comm.Barrier()
    assert RANK != 1, "wrong on one rank"
    comm.Barrier()
"""
    job = suite(2, tmp_path, body, *QUICK)
    assert job.code != 0
    assert "rank(s) [0] did not come to its end" in job.err
    assert "[rank 1] E       AssertionError: wrong on one rank" in job.err.replace(
        "[rank 1] [", "["
    )
    assert "test_suite.py" in job.err and "line 9 in test_odd" in job.err, "no stack of rank 0"


def test_stuck_rank_ends_the_run(tmp_path):
    body = "def test_odd(comm):\n    if RANK == 1: time.sleep(1000)\n"
    job = suite(2, tmp_path, body, *QUICK)
    assert job.code != 0
    assert "[rank 0] test_suite.py::test_odd: rank(s) [1] did not come to its end" in job.err
    assert "line 7 in test_odd" in job.err, "no stack of rank 1"


def test_stuck_test_of_one_rank_ends_the_run(tmp_path):
    body = "def test_good(): pass\ndef test_odd(): time.sleep(1000)\n"
    job = suite(2, tmp_path, body, *QUICK)
    assert job.code != 0
    assert "[rank 1] test_suite.py::test_odd: not finished after 2 s" in job.err
    assert "line 7, in test_odd" in job.err


def test_all_ranks_stuck_end_the_run(tmp_path):
    body = "def test_odd(comm): comm.recv(source=1 - RANK)\n"
    job = suite(2, tmp_path, body, *QUICK)
    assert job.code != 0
    assert "test_suite.py::test_odd: not finished after 2 s" in job.err
    assert "line 6, in test_odd" in job.err


def test_limit_of_a_test(tmp_path):
    body = "@pytest.mark.limit(60)\ndef test_slow(): time.sleep(4)\n"
    job = suite(2, tmp_path, body, *QUICK)
    assert job.code == 0, job.out + job.err


def test_killed_rank_ends_the_run(tmp_path):
    job = suite(2, tmp_path, "def test_odd(comm): RANK or os.kill(os.getpid(), signal.SIGKILL)\n")
    assert job.code != 0


def test_skip_on_one_rank_is_a_failure(tmp_path):
    job = suite(2, tmp_path, "def test_odd(comm):\n    if RANK: pytest.skip('here alone')\n")
    assert job.code == 1
    assert "ranks differ: {0: 'passed', 1: 'skipped'}" in job.out


def test_differing_collections_are_refused(tmp_path):
    job = suite(2, tmp_path, "def test_both(): pass\nif RANK:\n    def test_odd(): pass\n")
    assert job.code == 2
    assert "ranks [1] collected other tests than rank 0: test_suite.py::test_odd" in job.out


def test_collection_error_on_one_rank_ends_the_run(tmp_path):
    job = suite(2, tmp_path, "def test_both(): pass\nif RANK: import no_such_module\n")
    assert job.code == 2
    assert "[rank 1]" in job.out and "No module named 'no_such_module'" in job.out
