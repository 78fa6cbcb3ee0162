"""Parsers on recorded text, trees of made-up processes, and the readers on this very process."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest

from benchfleet_agent.probes.processes import (
    LinuxProcess,
    Process,
    ProcessMemory,
    ProcessStat,
    ProcessTree,
    ProcessUsage,
    PsutilProcess,
    TreeUsage,
    parse_process_stat,
    parse_process_status,
    parse_unique_bytes,
)

S = 1_000_000_000

STATUS = """\
Name:	python (VmRSS: 7 kB)
State:	S (sleeping)
Pid:	4242
VmPeak:	  812345 kB
VmHWM:	  540000 kB
VmRSS:	  531216 kB
RssAnon:	    3200 kB
RssFile:	  527952 kB
RssShmem:	      64 kB
VmSwap:	      12 kB
Threads:	64
"""


def test_process_status_splits_resident_memory() -> None:
    assert parse_process_status(STATUS) == ProcessMemory(
        rss_bytes=531216 * 1024,
        anon_bytes=(3200 + 64) * 1024,
        file_bytes=527952 * 1024,
        swap_bytes=12 * 1024,
        rss_highest_bytes=540000 * 1024,
    )


def test_a_zombie_has_no_memory() -> None:
    assert parse_process_status("Name:\tpython\nState:\tZ (zombie)\nPid:\t7\nThreads:\t1\n") is None


# Recorded on Linux 6.18, with another name.
STAT = """\
9554 (a ) (b) R 9547 9547 4137 0 -1 4194304 106 7 23 9 0 0 0 0 20 0 1 0 1127963 3133440 438 18446744073709551615 1 1
"""


def test_memory_and_faults_are_counted_from_behind_the_name() -> None:
    assert parse_process_stat(STAT) == ProcessStat(438 * mmap.PAGESIZE, 23)


def test_a_process_that_is_swapped_out_lives_and_a_zombie_does_not() -> None:
    assert parse_process_stat(STAT.replace(" 438 ", " 0 ")) == ProcessStat(0, 23)
    assert parse_process_stat(STAT.replace(") R ", ") Z ")) is None


@pytest.mark.parametrize("text", ["", "1 (x) R 1", STAT.replace(" 23 ", " -23 "), STAT.replace(" 438 ", " ? ")])
def test_a_line_that_is_not_understood_tells_nothing(text: str) -> None:
    assert parse_process_stat(text) is None


def test_unique_memory_is_what_is_private() -> None:
    text = "Rss: 999 kB\nShared_Clean: 5 kB\nPrivate_Clean:  10 kB\nPrivate_Dirty: 20 kB\nPrivate_Hugetlb: 0 kB\n"
    assert parse_unique_bytes(text) == 30 * 1024
    assert parse_unique_bytes("") is None


class FakeProcess:
    def __init__(self, usage: ProcessUsage | None) -> None:
        self.now = usage
        self.closed = False
        self.unique: int | None = 7

    def usage(self, *, split: bool = True) -> ProcessUsage | None:
        if split or self.now is None:
            return self.now
        return ProcessUsage(self.now.rss_bytes, None, None, self.now.cpu_ns, self.now.major_faults)

    def unique_bytes(self) -> int | None:
        return self.unique

    def close(self) -> None:
        self.closed = True


class FakeMachine:
    """Processes by id, and a clock."""

    def __init__(self) -> None:
        self.now = 10 * S
        self.processes: dict[int, FakeProcess] = {}
        self.children: tuple[int, ...] = ()
        self.listed = 0
        self.tree = ProcessTree(self.descendants, self.open, lambda: self.now)

    def add(self, pid: int, rss: int, cpu_ns: int, *, file: int | None = 0, faults: int | None = 0) -> FakeProcess:
        self.processes[pid] = FakeProcess(ProcessUsage(rss, rss, file, cpu_ns, faults, swap_bytes=1))
        return self.processes[pid]

    def descendants(self, roots: Iterable[int]) -> tuple[int, ...]:
        self.listed += 1
        return self.children if 1 in roots else ()

    def open(self, pid: int) -> Process:
        if pid not in self.processes:
            raise FileNotFoundError(pid)
        return self.processes[pid]


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


def test_a_tree_sums_its_processes_and_is_listed_once_a_second(machine: FakeMachine) -> None:
    machine.add(1, 100, 5)
    machine.add(2, 10, 1)
    machine.children = (2, 3)  # 3 ended before it could be opened
    for _ in range(10):
        assert machine.tree.read((1,)) == TreeUsage(110, 110, 0, 6, 2, 0, 2, None)
    assert machine.listed == 1
    machine.now += S
    machine.tree.read((1,))
    assert machine.listed == 2
    machine.tree.read((1,), relist=True)
    assert machine.listed == 3


def test_cpu_time_and_faults_of_ended_processes_stay_counted(machine: FakeMachine) -> None:
    machine.add(1, 100, 50, faults=3)
    child = machine.add(2, 10, 30, faults=4)
    machine.children = (2,)
    before = machine.tree.read((1,))
    assert (before.cpu_ns, before.major_faults) == (80, 7)
    child.now = None
    assert machine.tree.read((1,)) == TreeUsage(100, 100, 0, 80, 1, 7, 1, None)
    assert child.closed


def test_a_root_that_ended_is_never_taken_for_a_later_process_of_its_id(machine: FakeMachine) -> None:
    machine.add(1, 100, 50).now = None
    assert machine.tree.read((1,)) == TreeUsage()
    machine.add(1, 999, 999)
    assert machine.tree.read((1,), relist=True) == TreeUsage()


def test_other_roots_begin_afresh(machine: FakeMachine) -> None:
    old = machine.add(1, 100, 50, faults=9)
    machine.add(5, 7, 3, faults=1)
    machine.tree.read((1,))
    assert machine.tree.read((5,)) == TreeUsage(7, 7, 0, 3, 1, 1, 1, None)
    assert old.closed
    assert machine.tree.read(()) == TreeUsage()


def test_what_one_process_does_not_say_is_not_summed(machine: FakeMachine) -> None:
    machine.add(1, 100, 5)
    machine.add(2, 100, 5, file=None, faults=None)
    machine.children = (2,)
    usage = machine.tree.read((1,))
    assert (usage.file_bytes, usage.major_faults, usage.rss_bytes) == (None, None, 200)


def test_unique_memory_is_summed_over_a_tree(machine: FakeMachine) -> None:
    assert machine.tree.unique_bytes() is None
    machine.add(1, 100, 5)
    child = machine.add(2, 100, 5)
    machine.children = (2,)
    machine.tree.read((1,))
    assert machine.tree.unique_bytes() == 14
    child.unique = None
    assert machine.tree.unique_bytes() is None


def test_a_costly_listing_is_repeated_less_often(machine: FakeMachine) -> None:
    machine.add(1, 100, 5)
    plain = machine.descendants

    def slow(roots: Iterable[int]) -> tuple[int, ...]:
        machine.now += S // 100
        return plain(roots)

    machine.tree = ProcessTree(slow, machine.open, lambda: machine.now)
    machine.tree.read((1,))
    machine.now += 9 * S
    machine.tree.read((1,))
    assert machine.listed == 1
    machine.now += S
    machine.tree.read((1,))
    assert machine.listed == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_process_on_linux() -> None:
    process = LinuxProcess(os.getpid())
    usage, unique = process.usage(), process.unique_bytes()
    process.close()
    assert usage is not None
    assert usage.major_faults is not None
    assert usage.swap_bytes is not None
    assert (usage.rss_highest_bytes or 0) >= usage.rss_bytes * 0.95
    assert 1_000_000 < (unique or 0) <= usage.rss_bytes * 1.05


def test_without_the_split_a_tree_says_what_is_cheap() -> None:
    machine = FakeMachine()
    machine.add(1, rss=100, cpu_ns=7, faults=3)
    machine.add(2, rss=50, cpu_ns=5, faults=4)
    machine.children = (2,)
    cheap = TreeUsage(rss_bytes=150, cpu_ns=12, process_count=2, major_faults=7)
    assert machine.tree.read((1,), split=False) == cheap


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_cheap_file_tells_the_same_memory() -> None:
    process = LinuxProcess(os.getpid())
    whole, cheap = process.usage(), process.usage(split=False)
    process.close()
    assert whole is not None
    assert cheap is not None
    assert cheap.rss_bytes == pytest.approx(whole.rss_bytes, rel=0.02)
    assert cheap == ProcessUsage(cheap.rss_bytes, None, None, cheap.cpu_ns, whole.major_faults)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_stays_open_of_a_process_that_is_not_there() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        LinuxProcess(2**30)
    process = LinuxProcess(os.getpid())
    process.close()
    assert len(os.listdir("/proc/self/fd")) == before


def psutil_with(**fields: int) -> ModuleType:
    """Stand in for psutil on an operating system whose ``memory_info`` has these fields."""
    cpu = SimpleNamespace(user=1.5, system=0.5)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10, **fields), cpu_times=lambda: cpu)
    return cast("ModuleType", SimpleNamespace(Error=OSError, Process=lambda _: process))


def test_what_psutil_tells_on_windows() -> None:
    usage = PsutilProcess(psutil_with(private=8, peak_wset=30, num_page_faults=99), 1).usage()
    assert usage == ProcessUsage(10, 8, None, 2 * S, None, None, 30)


def test_what_psutil_tells_on_macos() -> None:
    usage = PsutilProcess(psutil_with(pfaults=99, pageins=4), 1).usage()
    assert usage == ProcessUsage(10, None, None, 2 * S, 4, None, None)
