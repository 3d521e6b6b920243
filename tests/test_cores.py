"""How many threads a rank takes by itself: affinity, CPU quotas, SLURM, and who shares them."""

import os

import pytest
from oracle import run_ranks

from mpicnn.comm.mesh import Mesh
from mpicnn.devices import cores
from mpicnn.devices.cores import CoreLimits, default_threads


def rank(allowed, quotas=None, per_task=0, host="here"):
    return CoreLimits(host, list(allowed), quotas or {}, per_task)


FOUR = range(4)


@pytest.mark.parametrize(
    "ranks, threads",
    [
        ([rank(FOUR)], [4]),
        ([rank(FOUR), rank(FOUR)], [2, 2]),
        ([rank({0, 1}), rank({2, 3})], [2, 2]),
        ([rank({0, 1, 2}), rank({1})], [2, 1]),
        ([rank(FOUR), rank(FOUR, host="elsewhere")], [4, 4]),
        ([rank({0})] * 3, [1, 1, 1]),
    ],
)
def test_ranks_divide_the_cores_that_they_share(ranks, threads):
    assert [default_threads(i, ranks) for i in range(len(ranks))] == threads


@pytest.mark.parametrize(
    "ranks, threads",
    [
        ([rank(range(64), {"job": 8.0})], [8]),
        ([rank(range(64), {"job": 8.0})] * 2, [4, 4]),
        ([rank(range(64), {"a": 8.0}), rank(range(64), {"b": 4.0})], [8, 4]),
        ([rank(FOUR, {"job": 100.0})], [4]),
        ([rank(FOUR, {"task": 3.0, "job": 1.0})], [1]),  # the tightest of several levels
        ([rank(FOUR, {"job": 2.9})], [2]),
        ([rank(FOUR, {"job": 0.1})], [1]),
        ([rank(FOUR, {"job": 3.0})] * 2, [1, 1]),
        ([rank(range(64), {"job": 2.0}), rank(range(64), {"job": 2.0}, host="b")], [2, 2]),
    ],
)
def test_ranks_divide_the_quota_of_a_cgroup(ranks, threads):
    assert [default_threads(i, ranks) for i in range(len(ranks))] == threads


@pytest.mark.parametrize(
    "ranks, threads",
    [
        ([rank(range(64), per_task=16)] * 2, [16, 16]),
        ([rank(FOUR, per_task=16)], [4]),
        ([rank(range(64), per_task=16)] * 8, [8] * 8),
        ([rank(range(64), {"job": 4.0}, per_task=16)], [4]),
        ([rank(range(64), per_task=16), rank(range(64), per_task=8)], [16, 8]),
    ],
)
def test_a_rank_takes_no_more_than_slurm_gave_it(ranks, threads):
    assert [default_threads(i, ranks) for i in range(len(ranks))] == threads


V2 = "30 23 0:28 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "32 23 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
)
INSIDE = "32 23 0:30 /docker/ab /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
V1_GROUPS = "9:name=systemd:/x\n4:cpuacct,cpu:{}\n3:cpuset:/x\n0::/x\n"
TOP, CPU = "sys/fs/cgroup", "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    "mounts, groups, files, expected",
    [
        (V2, "0::/job/task\n", {f"{TOP}/job/task/cpu.max": "150000 100000\n"}, [1.5]),
        (
            V2,
            "0::/job/task\n",
            {f"{TOP}/job/task/cpu.max": "max 100000\n", f"{TOP}/job/cpu.max": "400000 100000\n"},
            [4.0],
        ),
        (V2, "0::/host/path\n", {f"{TOP}/cpu.max": "200000 100000\n"}, [2.0]),  # in a container
        (V2, "0::/../other\n", {f"{TOP}/cpu.max": "200000 100000\n"}, [2.0]),
        (
            V1,
            V1_GROUPS.format("/job"),
            {f"{CPU}/job/cpu.cfs_quota_us": "50000", f"{CPU}/job/cpu.cfs_period_us": "20000"},
            [2.5],
        ),
        (
            V1,
            V1_GROUPS.format("/job"),
            {f"{CPU}/job/cpu.cfs_quota_us": "-1", f"{CPU}/job/cpu.cfs_period_us": "20000"},
            [],
        ),
        (
            INSIDE,
            V1_GROUPS.format("/docker/ab"),
            {f"{CPU}/cpu.cfs_quota_us": "100000", f"{CPU}/cpu.cfs_period_us": "100000"},
            [1.0],
        ),
        (V2, "0::/job\n", {f"{TOP}/job/cpu.max": "nonsense\n"}, []),
        (V2, "0::/job\n", {}, []),
        ("", "", {}, []),
    ],
)
def test_quotas_are_found_in_both_versions_of_cgroups(tmp_path, mounts, groups, files, expected):
    process = {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}
    for name, text in (process | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(cores.cpu_quotas(tmp_path).values()) == expected


def test_a_system_without_cgroups_has_no_quotas(tmp_path):
    assert cores.cpu_quotas(tmp_path) == {}


def test_ranks_tell_each_other_what_limits_them(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(cores, "cpu_quotas", lambda: {"1:2": 12.0})

    def threads(environ):
        return run_ranks(2, lambda comm: cores.threads_of(Mesh(comm), environ))

    assert threads({}) == [6, 6]
    assert threads({"SLURM_CPUS_PER_TASK": "5"}) == [5, 5]
    assert threads({"SLURM_CPUS_PER_TASK": "many"}) == [6, 6]
