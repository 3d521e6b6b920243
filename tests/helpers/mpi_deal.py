"""Deal tests that need one rank among the ranks of a run; every rank hears of the failures.

What a test of one rank says is the same whoever runs it, so N ranks run N of them at a time. Rank 0
hears of all, for the report. That every rank hears of failures makes `-x`, `--maxfail` and the exit
code hold for all.
"""

import time
from itertools import groupby

from mpi4py import MPI

NAP_S = 1e-3
TAG = 32_767  # the highest that MPI promises
SHARED = {"comm", "subcomm", "subcomms", "mpi_tmp_path", "mpi_tmpdir", "mpi_file_name"}


def needs_ranks(item):
    """Say whether a test asks for a communicator, or for a folder of all ranks."""
    return not SHARED.isdisjoint(item.fixturenames)


def unit_of(item):
    """Return what a test is dealt with: itself, or its module."""
    return item.module if item.get_closest_marker("together") else item


class Deal:
    """One rank's part: which tests it runs, and what it tells and hears."""

    def __init__(self, comm, session):
        self.comm = comm
        self.session = session
        self.hook = session.config.hook
        self.sent = []
        self.running = comm.size  # ranks that have tests left

    def own(self, items):
        """Return the tests for this rank: neighbours, which take alike, go to different ranks.

        Tests of a module that are marked `together` stay so.
        """
        units = [list(unit) for _, unit in groupby(items, unit_of)]
        return [item for unit in units[self.comm.rank :: self.comm.size] for item in unit]

    def tell(self, item, reports):
        """Report a test that was run here, to the others too where they are to hear of it."""
        failed = any(report.failed for report in reports)
        for report in reports:
            if report.failed:
                report.sections.append(("rank", f"This ran on rank {self.comm.rank}."))
        self._log(item.nodeid, item.location, reports)
        form = self.hook.pytest_report_to_serializable
        plain = [form(config=self.session.config, report=report) for report in reports]
        self._send((item.nodeid, item.location, plain), range(self.comm.size if failed else 1))

    def hear(self):
        """Report what others have told so far."""
        status = MPI.Status()
        while self.comm.iprobe(tag=TAG, status=status):
            told = self.comm.recv(source=status.source, tag=TAG)
            if told is None:
                self.running -= 1
                continue
            nodeid, location, plain = told
            form = self.hook.pytest_report_from_serializable
            reports = [form(config=self.session.config, data=data) for data in plain]
            self._log(nodeid, location, reports)

    def end(self):
        """Say that this rank's tests are done; wait until all ranks say so.

        There is no deadline: each rank watches over its own tests.
        """
        self._send(None, range(self.comm.size))
        self.running -= 1
        while self.running or not all(request.Test() for request in self.sent):
            self.hear()
            time.sleep(NAP_S)

    def _send(self, message, ranks):
        self.sent = [request for request in self.sent if not request.Test()]
        others = [rank for rank in ranks if rank != self.comm.rank]
        self.sent += [self.comm.isend(message, dest=rank, tag=TAG) for rank in others]

    def _log(self, nodeid, location, reports):
        self.hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
        for report in reports:
            self.hook.pytest_runtest_logreport(report=report)
        self.hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
