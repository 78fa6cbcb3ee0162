"""The operating system's own figures: the host's CPU and memory, and the processes of a case.

The only module that imports psutil, and only when used. On Linux the readings that repeat come from
``/proc`` files kept open (about 6 times cheaper, and an open file never speaks of another process that
got the same id later); elsewhere from psutil.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value

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
)

_LIST_PERIOD_NS = 1_000_000_000
_LIST_SHARE = 1_000
"""Process trees are listed again after this many times the time the last listing took (0.1 % of one core)."""
_PAGE_BYTES = mmap.PAGESIZE
_SWAP_PERIOD_NS = 1_000_000_000
_NO_RUNTIME = "no process of the runtime runs on this host"


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """One process at one moment. None: this operating system does not say."""

    rss_bytes: int
    anon_bytes: int | None
    """Linux: resident anonymous and shared memory; Windows: private bytes."""
    file_bytes: int | None
    """Linux: resident pages of mapped files."""
    cpu_ns: int
    """User and system time since the process began."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What psutil knows of the machine. None: unknown."""

    physical_core_count: int | None
    logical_core_count: int | None
    memory_bytes: int
    on_battery: bool | None


class Process(Protocol):
    """One running process, fixed to its identity rather than its id."""

    def usage(self) -> ProcessUsage | None:
        """Read the process; None: it ended."""

    def close(self) -> None:
        """Give the process's files back."""


def parse_process_status(text: str) -> tuple[int, int, int] | None:
    """Return (resident, anonymous, file-backed) bytes from ``/proc/<pid>/status``; None for a zombie or kernel thread.

    Shared memory (RssShmem) counts as anonymous: no file on disk can give it back.
    """
    sizes = {name: int(kib) * 1024 for name, kib in _STATUS_SIZE.findall(text)}
    if "VmRSS" not in sizes:
        return None
    # Before Linux 4.5 there is only the total.
    anon = sizes.get("RssAnon", sizes["VmRSS"]) + sizes.get("RssShmem", 0)
    return sizes["VmRSS"], anon, sizes.get("RssFile", 0)


_STATUS_SIZE = re.compile(r"^(VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)


def parse_meminfo(text: str) -> tuple[int | None, int]:
    """Return (available, swap used) bytes from ``/proc/meminfo``; available is None before Linux 3.14."""
    sizes = {name: int(kib) * 1024 for name, kib in _MEMINFO_SIZE.findall(text)}
    return sizes.get("MemAvailable"), sizes.get("SwapTotal", 0) - sizes.get("SwapFree", 0)


_MEMINFO_SIZE = re.compile(r"^(MemAvailable|SwapTotal|SwapFree):\s+(\d+) kB", re.MULTILINE)


def host_cpu_ns(times: Mapping[str, float]) -> tuple[int, int]:
    """Return (busy, total) nanoseconds of all logical processors from psutil's ``cpu_times`` in seconds.

    Waiting for a disk is not busy; time stolen by a hypervisor is. Guest time lies within user time
    already, Windows' interrupt and DPC time within system time.
    """
    within_others = {"guest", "guest_nice", "interrupt", "dpc"}
    total = sum(seconds for name, seconds in times.items() if name not in within_others)
    idle = times.get("idle", 0.0) + times.get("iowait", 0.0)
    return round((total - idle) * 1e9), round(total * 1e9)


class LinuxProcess:
    """A process read through one kept-open file and its CPU clock.

    With ``split`` the memory is told apart (``status``); without, only its sum is read (``statm``, far cheaper).
    """

    __slots__ = ("_clock_id", "_file", "_split")

    def __init__(self, pid: int, *, split: bool = True) -> None:
        self._split = split
        self._file = os.open(f"/proc/{pid}/{'status' if split else 'statm'}", os.O_RDONLY)
        # clock_getcpuclockid(3) without the library call: nanoseconds, where /proc/<pid>/stat has 10 ms ticks.
        self._clock_id = (~pid << 3) | 2

    def usage(self) -> ProcessUsage | None:
        """Read memory and CPU time."""
        try:
            text = _pread(self._file)
            cpu_ns = _clock_ns(self._clock_id)
        except OSError:
            return None
        if self._split:
            memory = parse_process_status(text)
            return None if memory is None else ProcessUsage(*memory, cpu_ns)
        resident = int(text.split(" ", 2)[1]) * _PAGE_BYTES
        return ProcessUsage(resident, None, None, cpu_ns) if resident else None

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class PsutilProcess:
    """A process read through psutil, which knows it by id and start time."""

    __slots__ = ("_error", "_process")

    def __init__(self, psutil: ModuleType, pid: int) -> None:
        self._error: type[Exception] = psutil.Error
        self._process: Any = psutil.Process(pid)

    def usage(self) -> ProcessUsage | None:
        """Read memory and CPU time. Asks for no unique set size: that walks, and stalls, the process."""
        try:
            memory, cpu = self._process.memory_info(), self._process.cpu_times()
        except (self._error, OSError):
            return None
        private = getattr(memory, "private", None)
        return ProcessUsage(memory.rss, private, None, round((cpu.user + cpu.system) * 1e9))

    def close(self) -> None:
        """Nothing is held."""


def _pread(descriptor: int) -> str:
    if sys.platform == "win32":
        raise OSError("there is no /proc")
    return os.pread(descriptor, 16_384, 0).decode("utf-8", "replace")


def _clock_ns(clock_id: int) -> int:
    if sys.platform == "win32":
        raise OSError("there are no process clocks")
    return time.clock_gettime_ns(clock_id)


class ProcessTree:
    """The processes under some roots, their usage summed; CPU time of those that ended is kept."""

    def __init__(
        self,
        descendants: Callable[[Iterable[int]], Sequence[int]],
        open_process: Callable[[int], Process],
        clock: Callable[[], int],
    ) -> None:
        self._descendants = descendants
        self._open = open_process
        self._clock = clock
        self._roots: tuple[int, ...] = ()
        self._members: dict[int, Process] = {}
        self._cpu_ns: dict[int, int] = {}
        self._ended_roots: set[int] = set()
        self._ended_cpu_ns = 0
        self._list_due_ns = 0

    def read(self, roots: tuple[int, ...], *, relist: bool = False) -> tuple[Value, Value, Value, Value, Value]:
        """Return (rss, anon, file, cpu, process count); None all, where no process is left or was given.

        Resident pages that several processes map are counted once for each of them.
        """
        if roots != self._roots:
            self.close()
            self._roots = roots
        if roots and (relist or self._clock() >= self._list_due_ns):
            self._list()
        rss = count = anon = file = 0
        anon_known = file_known = True
        for pid, process in list(self._members.items()):
            usage = process.usage()
            if usage is None:
                self._forget(pid)
                continue
            count += 1
            rss += usage.rss_bytes
            anon += usage.anon_bytes or 0
            file += usage.file_bytes or 0
            anon_known &= usage.anon_bytes is not None
            file_known &= usage.file_bytes is not None
            self._cpu_ns[pid] = usage.cpu_ns
        if not count:
            return None, None, None, None, None
        cpu_ns = self._ended_cpu_ns + sum(self._cpu_ns.values())
        return rss, anon if anon_known else None, file if file_known else None, cpu_ns, count

    def _list(self) -> None:
        start = self._clock()
        # A root that ended stays ended: its id may be another program's by now.
        roots = [pid for pid in self._roots if pid not in self._ended_roots]
        for pid in (*roots, *self._descendants(roots)):
            if pid not in self._members:
                try:
                    self._members[pid] = self._open(pid)
                except Exception:  # noqa: BLE001, S112 - it ended, or is not ours to see; the others still count
                    continue
        end = self._clock()
        self._list_due_ns = end + max(_LIST_PERIOD_NS, _LIST_SHARE * (end - start))

    def _forget(self, pid: int) -> None:
        self._members.pop(pid).close()
        self._ended_cpu_ns += self._cpu_ns.pop(pid, 0)
        if pid in self._roots:
            self._ended_roots.add(pid)

    def close(self) -> None:
        """Forget every process."""
        for process in self._members.values():
            process.close()
        self._members, self._cpu_ns, self._ended_roots = {}, {}, set()
        self._roots, self._ended_cpu_ns, self._list_due_ns = (), 0, 0


class SystemProbe:
    """The host's CPU and memory, and the processes of runtime, load and agent."""

    probe_id = "system"
    period_ms = 100
    budget_us = 2_000

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._psutil: ModuleType | None = None
        self._trees: tuple[ProcessTree, ProcessTree, ProcessTree] | None = None
        self._meminfo: int | None = None
        self._swap_due_ns = 0
        self._had_runtime = False

    def discover(self) -> None:
        """Load psutil and open what is read at every tick."""
        self.close()
        self._psutil = _psutil()
        if sys.platform == "linux":
            self._meminfo = os.open("/proc/meminfo", os.O_RDONLY)
        runtime = ProcessTree(descendants, lambda pid: self._open(pid, split=True), self._clock)
        load, agent = (
            ProcessTree(lambda _: (), lambda pid: self._open(pid, split=False), self._clock) for _ in range(2)
        )
        self._trees = (runtime, load, agent)

    def _open(self, pid: int, *, split: bool) -> Process:
        return LinuxProcess(pid, split=split) if sys.platform == "linux" else PsutilProcess(_psutil(), pid)

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """What this operating system or this target does not offer."""
        gaps = {}
        if sys.platform != "linux":
            gaps["runtime_file_bytes"] = "only Linux tells mapped files from other resident memory"
        if sys.platform not in {"linux", "win32"}:
            gaps["runtime_anon_bytes"] = "macOS tells it only by a call that can stall the process looked at"
        if not self._had_runtime:
            gaps.update({name: _NO_RUNTIME for name in METRICS if name.startswith("runtime_")})
        return gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read the host and the processes; trees are listed again at most once a second."""
        return self._read(targets, relist=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read with a fresh list of the processes."""
        return self._read(targets, relist=True)

    def _read(self, targets: Targets, *, relist: bool) -> Sequence[Reading]:
        if self._psutil is None or self._trees is None:
            raise Unavailable("the system probe was not discovered")
        runtime_tree, load_tree, agent_tree = self._trees
        cpu = host_cpu_ns(self._psutil.cpu_times()._asdict())
        runtime = runtime_tree.read(targets.runtime_pids, relist=relist)
        load = load_tree.read(() if targets.load_pid is None else (targets.load_pid,))
        agent = agent_tree.read((os.getpid(),))
        self._had_runtime = bool(targets.runtime_pids)
        return [Reading("", (*cpu, *self._memory(), *runtime, load[0], load[3], agent[0], time.process_time_ns()))]

    def _memory(self) -> tuple[Value, Value]:
        if self._meminfo is not None:
            return parse_meminfo(_pread(self._meminfo))
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
        if self._meminfo is not None:
            os.close(self._meminfo)
        self._psutil = self._trees = self._meminfo = None


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


def _psutil() -> ModuleType:
    try:
        import psutil
    except ImportError as error:
        raise Unavailable(f"psutil cannot be imported ({error}); install it with pip install psutil") from None
    return psutil
