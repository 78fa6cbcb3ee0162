"""Parsers on recorded text, and the probe on this very process."""

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
from benchfleet_agent.probes.processes import ProcessTree, PsutilProcess
from benchfleet_agent.probes.system import (
    METRICS,
    SystemProbe,
    busy_ratio,
    descendants,
    host_cpu_ns,
    in_foreign_pid_namespace,
    machine_facts,
    parse_meminfo,
    parse_stat_cpu,
)

S = 1_000_000_000


def test_meminfo() -> None:
    text = "MemTotal: 24684092 kB\nMemAvailable: 20000000 kB\nSwapCached: 5 kB\nSwapTotal: 1000 kB\nSwapFree: 400 kB\n"
    assert parse_meminfo(text) == (20000000 * 1024, 600 * 1024)
    assert parse_meminfo("MemTotal: 1 kB\n") == (None, 0)


def test_host_cpu_counts_guest_time_once_and_disk_waits_as_idle() -> None:
    linux = {"user": 10.0, "nice": 0, "system": 5, "idle": 80, "iowait": 4, "irq": 0, "softirq": 0.5, "steal": 0.5}
    assert host_cpu_ns({**linux, "guest": 3.0, "guest_nice": 0}) == (16 * S, 100 * S)
    windows = {"user": 10.0, "system": 5.0, "idle": 85.0, "interrupt": 1.0, "dpc": 1.0}
    assert host_cpu_ns(windows) == (15 * S, 100 * S)


def test_the_kernels_own_line_says_what_psutil_says() -> None:
    text = "cpu  1000 200 300 8000 400 0 50 50 300 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n"

    assert parse_stat_cpu(text, 100) == (16 * S, 100 * S)


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)


@pytest.fixture
def probe() -> Iterable[SystemProbe]:
    probe = SystemProbe()
    probe.discover()
    yield probe
    probe.close()


def test_the_probe_reads_this_process(probe: SystemProbe) -> None:
    (reading,) = probe.read_at_edge(Targets(runtime_pids=(os.getpid(),), load_pid=os.getpid()))
    values = dict(zip(probe.metrics(), reading.values, strict=True))
    assert reading.device_id == ""
    missing = {name for name, value in values.items() if value is None}
    assert missing <= set(probe.gaps())
    if sys.platform == "linux":
        assert not missing
        assert probe.gaps() == {}
        assert values["runtime_rss_bytes"] == pytest.approx(
            (values["runtime_anon_bytes"] or 0) + (values["runtime_file_bytes"] or 0), rel=0.05
        )
        assert (values["runtime_uss_bytes"] or 0) <= (values["runtime_rss_bytes"] or 0) * 1.05
        assert (values["runtime_rss_highest_bytes"] or 0) >= (values["runtime_rss_bytes"] or 0) * 0.95
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


class Clock:
    def __init__(self) -> None:
        self.now = S

    def __call__(self) -> int:
        return self.now


def _uss(probe: SystemProbe, *, at_edge: bool = True) -> float | None:
    targets = Targets(runtime_pids=(os.getpid(),))
    (reading,) = probe.read_at_edge(targets) if at_edge else probe.read(targets)
    return dict(zip(METRICS, reading.values, strict=True))["runtime_uss_bytes"]


@pytest.mark.skipif(sys.platform != "linux", reason="one call tells all elsewhere")
def test_parts_of_the_runtimes_memory_are_read_four_times_a_second_and_at_edges() -> None:
    clock = Clock()
    probe = SystemProbe(clock)
    probe.discover()
    costly = {"runtime_anon_bytes", "runtime_file_bytes", "runtime_swap_bytes", "runtime_rss_highest_bytes"}

    def told(*, at_edge: bool = False) -> set[str]:
        targets = Targets(runtime_pids=(os.getpid(),), load_pid=os.getpid())
        (reading,) = probe.read_at_edge(targets) if at_edge else probe.read(targets)
        names = {name for name, value in zip(METRICS, reading.values, strict=True) if value is not None}
        assert set(METRICS) - costly - {"runtime_uss_bytes"} <= names, "the rest is there at every tick"
        return names & costly

    assert told(at_edge=True) == costly
    clock.now += S // 4 - 1
    assert told() == set()
    assert told(at_edge=True) == costly
    clock.now += S // 4
    assert told() == costly
    for tick_ms, expected in ((100, 8), (200, 8), (300, 7)):
        clock.now, split = (clock.now // S + 1) * S, 0
        for _ in range(2_000 // tick_ms):
            clock.now += tick_ms * 1_000_000
            split += bool(told())
        assert abs(split - expected) <= 1, f"of 8 in two seconds with readings every {tick_ms} ms"
    probe.close()


@pytest.mark.skipif(sys.platform == "darwin", reason="not read there")
def test_unique_memory_is_read_at_edges_only_and_at_most_every_5_s() -> None:
    clock = Clock()
    probe = SystemProbe(clock)
    probe.discover()
    assert _uss(probe, at_edge=False) is None
    assert (_uss(probe) or 0) > 1_000_000
    clock.now += 5 * S - 1
    assert _uss(probe) is None
    clock.now += 1
    assert _uss(probe) is not None
    assert "runtime_uss_bytes" not in probe.gaps()
    probe.close()


@pytest.mark.skipif(sys.platform == "darwin", reason="not read there")
@pytest.mark.parametrize("large", [True, False])
def test_why_unique_memory_is_not_told(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    monkeypatch.setattr(ProcessTree, "unique_bytes", lambda _: None)
    if large:
        monkeypatch.setattr(system_module, "_UNIQUE_LARGEST_RSS_BYTES", 1)
    probe = SystemProbe()
    probe.discover()
    assert _uss(probe) is None
    assert ("8 GiB" if large else "own user") in probe.gaps()["runtime_uss_bytes"]
    probe.close()


@pytest.mark.parametrize("platform", ["linux", "win32", "darwin"])
def test_the_gaps_of_every_operating_system_are_metrics(platform: str) -> None:
    gaps = system_module._gaps_of_platform(platform)
    assert set(gaps) <= set(METRICS)
    assert bool(gaps) == (platform != "linux")


def test_the_portable_reader_agrees_with_the_quick_one() -> None:
    import psutil

    usage = PsutilProcess(psutil, os.getpid()).usage()
    assert usage is not None
    probe = SystemProbe()
    probe.discover()
    (reading,) = probe.read(Targets(runtime_pids=(os.getpid(),)))
    probe.close()
    values = dict(zip(METRICS, reading.values, strict=True))
    assert usage.rss_bytes == pytest.approx(values["runtime_rss_bytes"], rel=0.05)
    assert usage.cpu_ns == pytest.approx(values["runtime_cpu_ns"], abs=S // 5)


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
