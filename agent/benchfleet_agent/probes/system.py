"""The operating system's own figures: the host's CPU and memory, and the processes of a case.

The only module that imports psutil, and only when used. How single processes are read is in
`benchfleet_agent.probes.processes`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value
from benchfleet_agent.probes.processes import LinuxProcess, Process, ProcessTree, PsutilProcess, pread_text, size_of

METRICS = (
    "host_cpu_busy_ns",
    "host_cpu_total_ns",
    "host_available_bytes",
    "host_swap_used_bytes",
    "runtime_rss_bytes",
    "runtime_anon_bytes",
    "runtime_file_bytes",
    "runtime_cpu_ns",
    "runtime_process_count",
    "load_rss_bytes",
    "load_cpu_ns",
    "agent_rss_bytes",
    "agent_cpu_ns",
    "runtime_major_faults",
    "runtime_swap_bytes",
    "runtime_rss_highest_bytes",
    "runtime_uss_bytes",
)

_SPLIT_PERIOD_NS = 250_000_000
"""The parts of the runtime's memory cost more than half of a reading."""
_UNIQUE_PERIOD_NS = 5_000_000_000
_UNIQUE_LARGEST_RSS_BYTES = 8 * 2**30
"""Counting unique memory holds the process's memory map for about 12 µs per MiB: at most 0.1 s."""
_SWAP_PERIOD_NS = 1_000_000_000
_NO_RUNTIME = "no process of the runtime runs on this host"
if sys.platform != "win32":
    _TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What psutil knows of the machine. None: unknown."""

    physical_core_count: int | None
    logical_core_count: int | None
    memory_bytes: int
    on_battery: bool | None


def parse_meminfo(text: str) -> tuple[int | None, int]:
    """Return (available, swap used) bytes from ``/proc/meminfo``; available is None before Linux 3.14."""
    swap = (size_of(text, "SwapTotal") or 0) - (size_of(text, "SwapFree") or 0)
    return size_of(text, "MemAvailable"), swap


def parse_stat_cpu(text: str, ticks_per_s: int) -> tuple[int, int]:
    """Return (busy, total) nanoseconds of all logical processors from ``/proc/stat``, as `host_cpu_ns` has them."""
    user, nice, system, idle, iowait, *others = map(int, text[: text.index("\n")].split()[1:9])
    busy = user + nice + system + sum(others)
    return busy * 1_000_000_000 // ticks_per_s, (busy + idle + iowait) * 1_000_000_000 // ticks_per_s


def host_cpu_ns(times: Mapping[str, float]) -> tuple[int, int]:
    """Return (busy, total) nanoseconds of all logical processors from psutil's ``cpu_times`` in seconds.

    Waiting for a disk is not busy; time stolen by a hypervisor is. Guest time lies within user time
    already, Windows' interrupt and DPC time within system time.
    """
    within_others = {"guest", "guest_nice", "interrupt", "dpc"}
    total = sum(seconds for name, seconds in times.items() if name not in within_others)
    idle = times.get("idle", 0.0) + times.get("iowait", 0.0)
    return round((total - idle) * 1e9), round(total * 1e9)


class SystemProbe:
    """The host's CPU and memory, and the processes of runtime, load and agent."""

    probe_id = "system"
    period_ms = 100
    budget_us = 2_000
    verification = "real hardware" if sys.platform == "linux" else "documentation"

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._psutil: ModuleType | None = None
        self._trees: tuple[ProcessTree, ProcessTree, ProcessTree] | None = None
        self._meminfo: int | None = None
        self._stat: int | None = None
        self._swap_due_ns = 0
        self._had_runtime = False
        self._split_due_ns = 0
        self._unique_due_ns = 0
        self._unique_gap: str | None = None

    def discover(self) -> None:
        """Load psutil and open what is read at every tick."""
        self.close()
        self._psutil = _psutil()
        if sys.platform == "linux":
            self._meminfo = os.open("/proc/meminfo", os.O_RDONLY)
            self._stat = os.open("/proc/stat", os.O_RDONLY)
        runtime = ProcessTree(descendants, _open_process, self._clock)
        load, agent = (ProcessTree(lambda _: (), _open_process, self._clock) for _ in range(2))
        self._trees = (runtime, load, agent)

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """What this operating system or this target does not offer."""
        gaps = dict(_gaps_of_platform(sys.platform))
        if self._unique_gap:
            gaps.setdefault("runtime_uss_bytes", self._unique_gap)
        if not self._had_runtime:
            gaps.update({name: _NO_RUNTIME for name in METRICS if name.startswith("runtime_")})
        return gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read the host and the processes.

        At most four times a second what the runtime's memory consists of; at most once its tree.
        """
        return self._read(targets, at_edge=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read with a fresh list of the processes and, at most every 5 s, the memory that would end with them."""
        return self._read(targets, at_edge=True)

    def _read(self, targets: Targets, *, at_edge: bool) -> Sequence[Reading]:
        if self._psutil is None or self._trees is None:
            raise Unavailable("the system probe was not discovered")
        runtime_tree, load_tree, agent_tree = self._trees
        now = self._clock()
        split = at_edge or now >= self._split_due_ns
        if now >= self._split_due_ns:  # on a grid of its own, so that late ticks do not make it rarer
            self._split_due_ns += _SPLIT_PERIOD_NS * (1 + (now - self._split_due_ns) // _SPLIT_PERIOD_NS)
        cpu = self._cpu()
        runtime = runtime_tree.read(targets.runtime_pids, relist=at_edge, split=split)
        load = load_tree.read(() if targets.load_pid is None else (targets.load_pid,), split=False)
        agent = agent_tree.read((os.getpid(),), split=False)
        self._had_runtime = bool(targets.runtime_pids)
        return [
            Reading(
                "",
                (
                    *cpu,
                    *self._memory(),
                    runtime.rss_bytes,
                    runtime.anon_bytes,
                    runtime.file_bytes,
                    runtime.cpu_ns,
                    runtime.process_count,
                    load.rss_bytes,
                    load.cpu_ns,
                    agent.rss_bytes,
                    time.process_time_ns(),
                    runtime.major_faults,
                    runtime.swap_bytes,
                    runtime.rss_highest_bytes,
                    # Last: it takes longest, and the rest should be read close together.
                    self._unique(runtime_tree, runtime.rss_bytes) if at_edge else None,
                ),
            )
        ]

    def _unique(self, tree: ProcessTree, rss_bytes: int | None) -> Value:
        """Read the tree's unique memory if it is due; a probe cannot tell phases, so rounds may border on it."""
        if rss_bytes is None or self._clock() < self._unique_due_ns:
            return None
        if rss_bytes > _UNIQUE_LARGEST_RSS_BYTES:
            self._unique_gap = "counting it would stall a runtime of more than 8 GiB; runtime_anon_bytes comes close"
            return None
        value = tree.unique_bytes()
        self._unique_gap = None if value is not None else "only told of processes of the agent's own user"
        self._unique_due_ns = self._clock() + _UNIQUE_PERIOD_NS
        return value

    def _cpu(self) -> tuple[int, int]:
        if sys.platform != "win32" and self._stat is not None:
            return parse_stat_cpu(pread_text(self._stat), _TICKS_PER_S)
        assert self._psutil is not None
        return host_cpu_ns(self._psutil.cpu_times()._asdict())

    def _memory(self) -> tuple[Value, Value]:
        if self._meminfo is not None:
            return parse_meminfo(pread_text(self._meminfo))
        assert self._psutil is not None
        available: int = self._psutil.virtual_memory().available
        swap: int | None = None
        if (now := self._clock()) >= self._swap_due_ns:  # slow on Windows
            swap = self._psutil.swap_memory().used
            self._swap_due_ns = now + _SWAP_PERIOD_NS
        return available, swap

    def close(self) -> None:
        """Close the files."""
        for tree in self._trees or ():
            tree.close()
        for file in (self._meminfo, self._stat):
            if file is not None:
                os.close(file)
        self._psutil = self._trees = self._meminfo = self._stat = None


def _gaps_of_platform(platform: str) -> Mapping[str, str]:
    """Return metric → why an operating system (a `sys.platform`) does not offer it."""
    if platform == "linux":
        return {}
    gaps = {"runtime_file_bytes": "only Linux tells mapped files from other resident memory"}
    if platform == "win32":
        gaps["runtime_major_faults"] = "Windows counts faults that read from disk together with those that do not"
        gaps["runtime_swap_bytes"] = "Windows does not tell what part of a process lies in the page file"
    else:
        gaps["runtime_anon_bytes"] = "macOS tells it only by a call that can stall the process looked at"
        gaps["runtime_swap_bytes"] = "macOS does not tell what part of a process was swapped out"
        gaps["runtime_rss_highest_bytes"] = "psutil does not tell it on this operating system"
        gaps["runtime_uss_bytes"] = "macOS tells it only by a call that can hang"
    return gaps


def descendants(roots: Iterable[int]) -> tuple[int, ...]:
    """Return the ids of all processes below the roots. Costs about 1 ms per 100 processes on the machine."""
    psutil = _psutil()
    found: list[int] = []
    for root in roots:
        try:
            found += [child.pid for child in psutil.Process(root).children(recursive=True)]
        except psutil.Error:  # it ended, or is another user's
            continue
    return tuple(found)


def machine_facts() -> MachineFacts:
    """Ask for the machine's size and power source. Raises `Unavailable`."""
    psutil = _psutil()
    battery = None
    if hasattr(psutil, "sensors_battery"):
        try:
            battery = psutil.sensors_battery()
        except (OSError, RuntimeError, ValueError):  # drivers of odd batteries; then it is unknown
            battery = None
    plugged: bool | None = None if battery is None else battery.power_plugged
    return MachineFacts(
        physical_core_count=psutil.cpu_count(logical=False),
        logical_core_count=psutil.cpu_count(logical=True),
        memory_bytes=psutil.virtual_memory().total,
        on_battery=None if plugged is None else not plugged,
    )


def busy_ratio(duration_s: float = 0.3, sleep: Callable[[float], None] = time.sleep) -> float | None:
    """Measure the share of all logical processors that is busy, 0 to 1; None where the clock did not move."""
    psutil = _psutil()
    busy_0, total_0 = host_cpu_ns(psutil.cpu_times()._asdict())
    sleep(duration_s)
    busy_1, total_1 = host_cpu_ns(psutil.cpu_times()._asdict())
    return (busy_1 - busy_0) / (total_1 - total_0) if total_1 > total_0 else None


def in_foreign_pid_namespace(link: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether a driver may know our processes by other ids than we do (containers on Linux)."""
    try:
        # PROC_PID_INIT_INO of include/linux/proc_ns.h: the first namespace of every Linux kernel.
        return str(link.readlink()) != "pid:[4026531836]"
    except OSError:
        return False


def _open_process(pid: int) -> Process:
    return LinuxProcess(pid) if sys.platform == "linux" else PsutilProcess(_psutil(), pid)


def _psutil() -> ModuleType:
    try:
        import psutil
    except ImportError as error:
        raise Unavailable(f"psutil cannot be imported ({error}); install it with pip install psutil") from None
    return psutil
