"""Parsers on recorded text, trees of made-up processes, and the probe on this very process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes import system as system_module
from benchfleet_agent.probes.system import (
    METRICS,
    Process,
    ProcessTree,
    ProcessUsage,
    PsutilProcess,
    SystemProbe,
    busy_ratio,
    descendants,
    host_cpu_ns,
    in_foreign_pid_namespace,
    machine_facts,
    parse_meminfo,
    parse_process_status,
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
VmSwap:	       0 kB
Threads:	64
"""


def test_process_status_splits_resident_memory() -> None:
    assert parse_process_status(STATUS) == (531216 * 1024, (3200 + 64) * 1024, 527952 * 1024)


def test_a_zombie_has_no_memory() -> None:
    assert parse_process_status("Name:\tpython\nState:\tZ (zombie)\nPid:\t7\nThreads:\t1\n") is None


def test_meminfo() -> None:
    text = "MemTotal: 24684092 kB\nMemAvailable: 20000000 kB\nSwapCached: 5 kB\nSwapTotal: 1000 kB\nSwapFree: 400 kB\n"
    assert parse_meminfo(text) == (20000000 * 1024, 600 * 1024)
    assert parse_meminfo("MemTotal: 1 kB\n") == (None, 0)


def test_host_cpu_counts_guest_time_once_and_disk_waits_as_idle() -> None:
    linux = {"user": 10.0, "nice": 0, "system": 5, "idle": 80, "iowait": 4, "irq": 0, "softirq": 0.5, "steal": 0.5}
    assert host_cpu_ns({**linux, "guest": 3.0, "guest_nice": 0}) == (16 * S, 100 * S)
    windows = {"user": 10.0, "system": 5.0, "idle": 85.0, "interrupt": 1.0, "dpc": 1.0}
    assert host_cpu_ns(windows) == (15 * S, 100 * S)


class FakeProcess:
    def __init__(self, usage: ProcessUsage | None) -> None:
        self.now = usage
        self.closed = False

    def usage(self) -> ProcessUsage | None:
        return self.now

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

    def add(self, pid: int, rss: int, cpu_ns: int, *, file: int | None = 0) -> FakeProcess:
        self.processes[pid] = FakeProcess(ProcessUsage(rss, rss, file, cpu_ns))
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
        assert machine.tree.read((1,)) == (110, 110, 0, 6, 2)
    assert machine.listed == 1
    machine.now += S
    machine.tree.read((1,))
    assert machine.listed == 2
    machine.tree.read((1,), relist=True)
    assert machine.listed == 3


def test_cpu_time_of_ended_processes_stays_counted(machine: FakeMachine) -> None:
    machine.add(1, 100, 50)
    child = machine.add(2, 10, 30)
    machine.children = (2,)
    assert machine.tree.read((1,))[3] == 80
    child.now = None
    assert machine.tree.read((1,)) == (100, 100, 0, 80, 1)
    assert child.closed


def test_a_root_that_ended_is_never_taken_for_a_later_process_of_its_id(machine: FakeMachine) -> None:
    machine.add(1, 100, 50).now = None
    assert machine.tree.read((1,)) == (None,) * 5
    machine.add(1, 999, 999)
    assert machine.tree.read((1,), relist=True) == (None,) * 5


def test_other_roots_begin_afresh(machine: FakeMachine) -> None:
    old = machine.add(1, 100, 50)
    machine.add(5, 7, 3)
    machine.tree.read((1,))
    assert machine.tree.read((5,)) == (7, 7, 0, 3, 1)
    assert old.closed
    assert machine.tree.read(()) == (None,) * 5


def test_what_one_process_does_not_say_is_not_summed(machine: FakeMachine) -> None:
    machine.add(1, 100, 5, file=None)
    assert machine.tree.read((1,))[2] is None


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


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)


@pytest.fixture
def probe() -> Iterable[SystemProbe]:
    probe = SystemProbe()
    probe.discover()
    yield probe
    probe.close()


def test_the_probe_reads_this_process(probe: SystemProbe) -> None:
    (reading,) = probe.read(Targets(runtime_pids=(os.getpid(),), load_pid=os.getpid()))
    values = dict(zip(probe.metrics(), reading.values, strict=True))
    assert reading.device_id == ""
    missing = {name for name, value in values.items() if value is None}
    assert missing <= {"runtime_anon_bytes", "runtime_file_bytes"}
    assert missing <= set(probe.gaps())
    if sys.platform == "linux":
        assert not missing
        assert probe.gaps() == {}
        assert values["runtime_rss_bytes"] == pytest.approx(
            (values["runtime_anon_bytes"] or 0) + (values["runtime_file_bytes"] or 0), rel=0.05
        )
    assert (values["runtime_process_count"] or 0) >= 1
    assert (values["agent_rss_bytes"] or 0) > 5_000_000
    assert (values["host_cpu_total_ns"] or 0) >= (values["host_cpu_busy_ns"] or 0) > 0


def test_without_a_runtime_its_metrics_are_absent_with_a_reason(probe: SystemProbe) -> None:
    (reading,) = probe.read(Targets())
    values = dict(zip(probe.metrics(), reading.values, strict=True))
    for name in (name for name in METRICS if name.startswith("runtime_")):
        assert values[name] is None
        assert "no process" in probe.gaps()[name]
    assert values["load_rss_bytes"] is None


def test_children_are_found_and_an_ended_process_is_skipped(probe: SystemProbe) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in descendants([os.getpid()])
        (reading,) = probe.read_at_edge(Targets(runtime_pids=(os.getpid(),), load_pid=child.pid))
        values = dict(zip(probe.metrics(), reading.values, strict=True))
        assert (values["runtime_process_count"] or 0) >= 2
        assert (values["load_rss_bytes"] or 0) > 0
        child.communicate(b"\n")
    (reading,) = probe.read(Targets(runtime_pids=(child.pid,), load_pid=child.pid))
    assert dict(zip(probe.metrics(), reading.values, strict=True))["load_rss_bytes"] is None
    assert descendants([child.pid]) == ()


def test_cpu_time_is_that_of_the_process(probe: SystemProbe) -> None:
    def cpu_ns() -> int:
        (reading,) = probe.read(Targets(runtime_pids=(os.getpid(),)))
        return int(dict(zip(probe.metrics(), reading.values, strict=True))["agent_cpu_ns"] or 0)

    before = cpu_ns()
    sum(range(2_000_000))
    assert 1_000_000 < cpu_ns() - before < 10 * S


def test_the_portable_reader_agrees_with_the_quick_one() -> None:
    import psutil

    usage = PsutilProcess(psutil, os.getpid()).usage()
    assert usage is not None
    (rss, *_rest, cpu_ns, _count) = _read_self()
    assert usage.rss_bytes == pytest.approx(rss, rel=0.05)
    assert usage.cpu_ns == pytest.approx(cpu_ns, abs=S // 5)


def _read_self() -> tuple[float, ...]:
    probe = SystemProbe()
    probe.discover()
    (reading,) = probe.read(Targets(runtime_pids=(os.getpid(),)))
    probe.close()
    return tuple(value or 0 for value in reading.values[4:9])


def test_a_missing_psutil_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(Unavailable, match="pip install psutil"):
        SystemProbe().discover()


def test_importing_the_module_loads_no_psutil() -> None:
    code = (
        "import sys, benchfleet_agent.host, benchfleet_agent.sampler, benchfleet_agent.probes as p; p.default_probes();"
    )
    code += "sys.exit('psutil' in sys.modules or 'pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_machine_facts() -> None:
    facts = machine_facts()
    assert facts.memory_bytes > 2**28
    assert facts.logical_core_count is None or facts.logical_core_count >= 1


def test_busy_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(10, 100), (35, 200)])
    monkeypatch.setattr(system_module, "host_cpu_ns", lambda _: next(readings))
    assert busy_ratio(0.3, lambda _: None) == 0.25


def test_pid_namespaces(tmp_path: Path) -> None:
    for target, foreign in (("pid:[4026531836]", False), ("pid:[4026533001]", True)):
        link = tmp_path / target
        link.symlink_to(target)
        assert in_foreign_pid_namespace(link) is foreign
    assert in_foreign_pid_namespace(tmp_path / "absent") is False
