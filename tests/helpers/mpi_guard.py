"""Run a test suite on several ranks as one run: one report, one verdict per test, no hanging.

Tests that ask for no communicator come first and are dealt among the ranks; then all ranks run the
others together. After collection, after every test of these and at the end all ranks exchange how
it went, with a deadline.
A test that ends differently on two ranks has failed on all of them, so that exit codes and `-x`
agree; rank 0 alone reports, with the other ranks' failures marked `[rank r]`. A rank that does not
come is named, shows its Python stack, and the job is aborted.
"""

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from mpi4py import MPI
from mpi_deal import NAP_S, TAG, Deal, needs_ranks

MEET_S = 60  # between tests ranks may lag by this much: a busy machine starts them seconds apart
TEXT_LIMIT = 20_000  # characters of one rank's failures: stays an eager message
BYSTANDER = pytest.StashKey[bool]()


@dataclass
class Account:
    """How a rank fared: where it is, what came out, and the text of its failures."""

    place: str
    outcome: str
    text: str = ""

    @property
    def failed(self):
        return self.outcome == "failed"


def pytest_addoption(parser):
    parser.addini("mpi_limit", "seconds a test may take on several ranks", default="60")
    parser.addini("mpi_grace", "seconds the ranks may lag behind one that failed", default="5")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    if MPI.COMM_WORLD.rank:
        config.workerinput = {}  # by this sign plugins leave it to another process to write files


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.addinivalue_line("markers", "limit(seconds): what the test may take on several ranks")
    if MPI.COMM_WORLD.rank:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter._tw._file = open(os.devnull, "w")  # noqa: SIM115
    if MPI.COMM_WORLD.size > 1:
        guard = Guard(float(config.getini("mpi_limit")), float(config.getini("mpi_grace")))
        config.pluginmanager.register(guard)


class Guard:
    """The pytest hooks of one rank."""

    def __init__(self, limit, grace):
        self.limit = limit
        self.grace = grace
        # Pytest captures fd 2 while tests run; at configuration it is still the real one.
        self.stderr = os.dup(2)
        # In a file a stack stays whole; the launcher may cut the lines of two ranks into another.
        self.stack = tempfile.NamedTemporaryFile(prefix="stack-", suffix=".txt")  # noqa: SIM115
        faulthandler.register(signal.SIGUSR2, file=self.stack, all_threads=False)
        # A context of its own: its messages cannot match those of the tests.
        self.comm, duplicated = MPI.COMM_WORLD.Idup()
        self.rank, self.size = self.comm.rank, self.comm.size
        end = time.monotonic() + MEET_S
        while not duplicated.Test():
            if time.monotonic() > end:
                self.abort("another rank did not start its tests")
            time.sleep(NAP_S)
        self.main = threading.main_thread().ident
        mine = (MPI.Get_processor_name(), os.getpid(), Path(self.stack.name))
        self.peers = self.comm.allgather(mine)
        self.sent = []
        self.round = 0
        self.collection_errors = []

    def pytest_collectreport(self, report):
        if report.failed:
            self.collection_errors.append(report.longreprtext)

    def pytest_collection_finish(self, session):
        names = "\n".join(item.nodeid for item in session.items)
        outcome = "failed" if self.collection_errors else "passed"
        text = "\n".join(self.collection_errors)
        accounts = self.meet(Account("collection", outcome, text), MEET_S)
        if any(each.failed for each in accounts):
            if not accounts[self.rank].failed:
                pytest.exit(marked_failures(accounts), returncode=pytest.ExitCode.INTERRUPTED)
            return
        collected = self.meet(Account("collected tests", names), MEET_S)
        differing = [r for r, each in enumerate(collected) if each != collected[0]]
        if differing:
            sets = [set(each.outcome.split("\n")) for each in collected]
            odd = sorted(set.union(*sets) - set.intersection(*sets)) or ["another order"]
            pytest.exit(
                f"ranks {differing} collected other tests than rank 0: {', '.join(odd[:10])}",
                returncode=pytest.ExitCode.INTERRUPTED,
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        if session.testsfailed or session.config.option.collectonly:
            return None
        self.deal = Deal(self.comm, session)
        try:
            run_in_turn(session, self.deal.own([i for i in session.items if not needs_ranks(i)]))
        finally:
            self.deal.end()
        stop_where_told(session)
        run_in_turn(session, [i for i in session.items if needs_ranks(i)])
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        if needs_ranks(item):
            self.run_on_all(item, nextitem)
        else:
            with self.watch(item):
                self.deal.tell(item, runtestprotocol(item, log=False, nextitem=nextitem))
            self.deal.hear()
        return True

    def run_on_all(self, item, nextitem):
        """Run a test on all ranks, which then agree on how it ended."""
        with self.watch(item) as end:
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            accounts = self.meet(summarize(item, reports), end - time.monotonic())
        merge(accounts, self.rank, reports)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    @contextmanager
    def watch(self, item):
        """Give the time at which a test must have ended; end the run if it goes on for longer."""
        mark = item.get_closest_marker("limit")
        limit = mark.args[0] if mark else self.limit
        # The last resort where every rank is stuck: dumps the stack even inside a blocking call.
        faulthandler.dump_traceback_later(limit + 2 * self.grace, exit=True, file=self.stderr)
        overdue = f"{item.nodeid}: not finished after {limit:g} s"
        notice = threading.Timer(limit + self.grace, self.say_where, [overdue])
        notice.start()
        try:
            yield time.monotonic() + limit
        finally:
            notice.cancel()
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        accounts = self.meet(Account("end of the run", str(int(exitstatus))), MEET_S)
        session.exitstatus = max(int(each.outcome) for each in accounts)

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excrepr):
        self.abort(f"pytest failed:\n{excrepr}")

    def meet(self, mine, seconds):
        """Return every rank's account in rank order; abort the job if one does not come."""
        self.round += 1
        tag = self.round % TAG  # a rank ahead by one round is not taken for this one
        self.sent = [request for request in self.sent if not request.Test()]
        for rank in range(self.size):
            if rank != self.rank:
                self.sent.append(self.comm.isend(mine, dest=rank, tag=tag))
        accounts = [None] * self.size
        accounts[self.rank] = mine
        failed, end = False, time.monotonic() + max(seconds, self.grace)
        status = MPI.Status()
        while None in accounts and time.monotonic() < end:
            if not failed and any(each and each.failed for each in accounts):
                failed, end = True, min(end, time.monotonic() + self.grace)
            if self.comm.iprobe(tag=tag, status=status):
                accounts[status.source] = self.comm.recv(source=status.source, tag=tag)
            else:
                time.sleep(NAP_S)
        if None in accounts:
            self.report_missing(accounts, mine.place)
        places = [each.place for each in accounts]
        if len(set(places)) > 1:
            self.abort(f"ranks are at different places: {dict(enumerate(places))}")
        return accounts

    def report_missing(self, accounts, place):
        missing = [rank for rank, each in enumerate(accounts) if each is None]
        first = min(rank for rank, each in enumerate(accounts) if each is not None)
        if self.rank != first:
            time.sleep(self.grace)  # the lowest rank that is there speaks for all, and aborts
        self.say(f"{place}: rank(s) {missing} did not come to its end")
        text = marked_failures(accounts)
        if text:
            self.say(text)
        for rank in missing:
            host, process, stack = self.peers[rank]
            if host == MPI.Get_processor_name():
                os.kill(process, signal.SIGUSR2)
                self.say(f"rank {rank} is at:\n{settled(stack, self.grace)}")
        self.abort("run ended")

    def say_where(self, text):
        frames = traceback.format_stack(sys._current_frames()[self.main])
        self.say(text + "\n" + "".join(frames[-5:]))

    def say(self, text):
        marked = "".join(f"[rank {self.rank}] {line}\n" for line in text.splitlines())
        os.write(self.stderr, marked.encode("utf-8", "backslashreplace"))

    def abort(self, text):
        self.say(text)
        sys.stdout.flush()
        time.sleep(0.3)  # an aborted launcher drops the output it has not passed on yet
        MPI.COMM_WORLD.Abort(1)
        os._exit(1)


def run_in_turn(session, items):
    """Run tests as pytest's own loop does."""
    for item, nextitem in zip_longest(items, items[1:]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        stop_where_told(session)


def stop_where_told(session):
    """End the run if pytest was told to."""
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


def settled(path, seconds):
    """Return the text of the file at `path` once it grows no more, at the latest in `seconds`."""
    text, end = "", time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        before, text = text, path.read_text() if path.exists() else ""
        if text and text == before:
            break
    return text


def summarize(item, reports):
    """Return this rank's account of the test that `reports` are about."""
    failures = [f"{each.when}: {each.longreprtext}" for each in reports if each.failed]
    if failures:
        outcome = "failed"
    elif item.stash.get(BYSTANDER, False):
        outcome = "bystander"
    elif any(hasattr(each, "wasxfail") for each in reports):
        outcome = "xfailed" if any(each.skipped for each in reports) else "xpassed"
    else:
        outcome = "skipped" if any(each.skipped for each in reports) else "passed"
    return Account(item.nodeid, outcome, "\n".join(failures)[:TEXT_LIMIT])


def merge(accounts, rank, reports):
    """Make this rank's `reports` fail if the test failed on another or ended otherwise there."""
    outcomes = {each.outcome for each in accounts} - {"bystander"}
    others = [each if r != rank else None for r, each in enumerate(accounts)]
    text = marked_failures(others)
    if len(outcomes) > 1 and "failed" not in outcomes:
        text = f"ranks differ: {dict(enumerate(each.outcome for each in accounts))}"
    if not text:
        return
    own = [report for report in reports if report.failed]
    if own:
        own[0].sections.append(("other ranks", text))
        return
    report = next((each for each in reports if each.when == "call"), reports[0])
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    report.outcome = "failed"
    report.longrepr = text


def marked_failures(accounts):
    """Return the failures of the ranks that failed, each line marked with its rank."""
    return "\n".join(
        f"[rank {rank}] {line}"
        for rank, each in enumerate(accounts)
        if each is not None and each.failed
        for line in each.text.splitlines()
    )


@pytest.fixture(scope="session")
def comm():
    """All ranks of the run: one under plain `pytest`."""
    return MPI.COMM_WORLD


@pytest.fixture(scope="session")
def first_ranks():
    made = {}

    def first(size):
        if size not in made:
            group = MPI.COMM_WORLD.group.Incl(range(size))
            made[size] = MPI.COMM_WORLD.Create_group(group)
        return made[size]

    return first


@pytest.fixture
def subcomm(request, first_ranks):
    """A function of k: the communicator of the first k ranks; the other ranks skip the test."""

    def first(size):
        world = MPI.COMM_WORLD
        if size > world.size:
            pytest.skip(f"needs {size} ranks")
        if world.rank >= size:
            request.node.stash[BYSTANDER] = True
            pytest.skip(f"runs on {size} of {world.size} ranks")
        return first_ranks(size)

    return first


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda size: f"{size}ranks")
def subcomms(request, subcomm):
    """Communicators of 1, 2, 3 and 4 ranks, one after the other."""
    return subcomm(request.param)
