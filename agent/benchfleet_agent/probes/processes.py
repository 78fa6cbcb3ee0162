"""Single processes and trees of them: memory, CPU time and page faults, told apart as the system allows.

On Linux a process is read through ``/proc`` files kept open (about 6 times cheaper than psutil, and an open
file never speaks of another process that got the same id later); elsewhere through psutil.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

_LIST_PERIOD_NS = 1_000_000_000
_LIST_SHARE = 1_000
"""Process trees are listed again after this many times the time the last listing took (0.1 % of one core)."""
_PAGE_BYTES = mmap.PAGESIZE


class ProcessMemory(NamedTuple):
    """Memory of one process as ``/proc/<pid>/status`` has it, in bytes. None: this kernel does not say."""

    rss_bytes: int
    anon_bytes: int
    file_bytes: int
    swap_bytes: int | None
    rss_highest_bytes: int | None


class ProcessUsage(NamedTuple):
    """One process at one moment. None: this operating system does not say."""

    rss_bytes: int
    anon_bytes: int | None
    """Linux: resident anonymous and shared memory; Windows: private bytes."""
    file_bytes: int | None
    """Linux: resident pages of mapped files."""
    cpu_ns: int
    """User and system time since the process began."""
    major_faults: int | None = None
    """Page faults that read from a disk since the process began; macOS: pages read in."""
    swap_bytes: int | None = None
    rss_highest_bytes: int | None = None
    """Highest resident memory since the process began."""


class TreeUsage(NamedTuple):
    """Sums over a tree's processes. None: one of them does not say, or none is left."""

    rss_bytes: int | None = None
    """Pages that several processes map are counted once for each of them."""
    anon_bytes: int | None = None
    file_bytes: int | None = None
    cpu_ns: int | None = None
    """Includes processes that ended, as far as they were seen: it never falls."""
    process_count: int | None = None
    major_faults: int | None = None
    """Like ``cpu_ns``."""
    swap_bytes: int | None = None
    rss_highest_bytes: int | None = None


class Process(Protocol):
    """One running process, fixed to its identity rather than its id."""

    def usage(self, *, split: bool = True) -> ProcessUsage | None:
        """Read the process, without ``split`` no more than is cheap; None: it ended."""

    def unique_bytes(self) -> int | None:
        """Read the memory that would end with the process; None: not told. Costs about 12 µs per MiB."""

    def close(self) -> None:
        """Give the process's files back."""


def parse_process_status(text: str) -> ProcessMemory | None:
    """Read ``/proc/<pid>/status``; None for a zombie or kernel thread.

    Shared memory (RssShmem) counts as anonymous: no file on disk can give it back.
    """
    rss = size_of(text, "VmRSS")
    if rss is None:
        return None
    anon = size_of(text, "RssAnon")  # before Linux 4.5 there is only the total
    return ProcessMemory(
        rss,
        (rss if anon is None else anon) + (size_of(text, "RssShmem") or 0),
        size_of(text, "RssFile") or 0,
        size_of(text, "VmSwap"),
        size_of(text, "VmHWM"),
    )


def size_of(text: str, name: str) -> int | None:
    """Return the size called ``name`` in bytes, of a ``/proc`` file that has them in kB; never its first line's.

    Found without a pattern: it is called some twenty times at every tick.
    """
    begin = text.find(f"\n{name}:")
    if begin < 0:
        return None
    begin += len(name) + 2
    end = text.find(" kB", begin)
    number = text[begin:end].strip()
    return int(number) * 1024 if end >= 0 and number.isdecimal() else None


class ProcessStat(NamedTuple):
    """One process as ``/proc/<pid>/stat`` has it."""

    rss_bytes: int
    """0 also while all of it is swapped out."""
    major_faults: int


def parse_process_stat(text: str) -> ProcessStat | None:
    """Read fields 3 (state), 12 (majflt) and 24 (rss) of ``/proc/<pid>/stat``, proc_pid_stat(5); None for a zombie.

    A program's name may hold spaces and brackets, so fields are counted from the last bracket.
    """
    fields = text.rpartition(")")[2].split(maxsplit=22)
    if len(fields) < 22 or fields[0] in _ENDED or not (fields[9].isdecimal() and fields[21].isdecimal()):
        return None
    return ProcessStat(int(fields[21]) * _PAGE_BYTES, int(fields[9]))


_ENDED = frozenset("ZXx")


def parse_unique_bytes(text: str) -> int | None:
    """Return the private pages of ``/proc/<pid>/smaps_rollup`` in bytes; None when it does not tell."""
    sizes = [int(kib) * 1024 for kib in _PRIVATE_SIZE.findall(text)]
    return sum(sizes) if sizes else None


_PRIVATE_SIZE = re.compile(r"^Private_(?:Clean|Dirty|Hugetlb):\s+(\d+) kB", re.MULTILINE)


class LinuxProcess:
    """A process read through kept-open files and its CPU clock."""

    __slots__ = ("_clock_id", "_pid", "_stat", "_status")

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            self._status = os.open(f"/proc/{pid}/status", os.O_RDONLY)
        except OSError:
            os.close(self._stat)
            raise
        # clock_getcpuclockid(3) without the library call: nanoseconds, where /proc/<pid>/stat has 10 ms ticks.
        self._clock_id = (~pid << 3) | 2

    def usage(self, *, split: bool = True) -> ProcessUsage | None:
        """Read memory, CPU time and faults; with ``split`` the memory's parts too, which cost more than the rest."""
        try:
            cpu_ns = _clock_ns(self._clock_id)
            stat = parse_process_stat(pread_text(self._stat))
            memory = parse_process_status(pread_text(self._status)) if split and stat is not None else None
        except OSError:
            return None
        if stat is None or (split and memory is None):
            return None
        if memory is None:
            return ProcessUsage(stat.rss_bytes, None, None, cpu_ns, stat.major_faults)
        return ProcessUsage(
            memory.rss_bytes,
            memory.anon_bytes,
            memory.file_bytes,
            cpu_ns,
            stat.major_faults,
            memory.swap_bytes,
            memory.rss_highest_bytes,
        )

    def unique_bytes(self) -> int | None:
        """Read ``smaps_rollup`` (Linux 4.14 and newer, own processes only)."""
        try:
            file = os.open(f"/proc/{self._pid}/smaps_rollup", os.O_RDONLY)
            try:
                return parse_unique_bytes(pread_text(file))
            finally:
                os.close(file)
        except OSError:
            return None

    def close(self) -> None:
        """Close the files."""
        os.close(self._stat)
        os.close(self._status)


class PsutilProcess:
    """A process read through psutil, which knows it by id and start time."""

    __slots__ = ("_error", "_process")

    def __init__(self, psutil: ModuleType, pid: int) -> None:
        self._error: type[Exception] = psutil.Error
        self._process: Any = psutil.Process(pid)

    def usage(self, *, split: bool = True) -> ProcessUsage | None:
        """Read what one cheap call tells, whatever ``split`` says; no unique set size, which stalls the process."""
        try:
            memory, cpu = self._process.memory_info(), self._process.cpu_times()
        except (self._error, OSError):
            return None
        return ProcessUsage(
            rss_bytes=memory.rss,
            anon_bytes=_first(memory, "private", *(("vms",) if sys.platform == "win32" else ())),
            file_bytes=None,
            cpu_ns=round((cpu.user + cpu.system) * 1e9),
            # Windows' num_page_faults counts soft faults too, so it is no such figure.
            major_faults=getattr(memory, "pageins", None),
            rss_highest_bytes=_first(memory, "peak_wset", "peak_rss"),
        )

    def unique_bytes(self) -> int | None:
        """Read the unique set size. On macOS the call can hang, so it is not made there."""
        if sys.platform == "darwin":
            return None
        try:
            return int(self._process.memory_full_info().uss)
        except (self._error, OSError):
            return None

    def close(self) -> None:
        """Nothing is held."""


def _first(memory: object, *names: str) -> int | None:
    """The first of these fields there is: psutil 8 renamed Windows' (there "vms" is what is private)."""
    return next((getattr(memory, name) for name in names if hasattr(memory, name)), None)


def pread_text(descriptor: int) -> str:
    """Read a ``/proc`` file from its start, at most 16 KiB. Raises `OSError`."""
    if sys.platform == "win32":
        raise OSError("there is no /proc")
    return os.pread(descriptor, 16_384, 0).decode("utf-8", "replace")


def _clock_ns(clock_id: int) -> int:
    if sys.platform == "win32":
        raise OSError("there are no process clocks")
    return time.clock_gettime_ns(clock_id)


class ProcessTree:
    """The processes under some roots, their usage summed; counters of those that ended are kept."""

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
        self._faults: dict[int, int] = {}
        self._ended_roots: set[int] = set()
        self._ended_cpu_ns = 0
        self._ended_faults = 0
        self._list_due_ns = 0

    def read(self, roots: tuple[int, ...], *, relist: bool = False, split: bool = True) -> TreeUsage:
        """Sum the processes under ``roots``; all None where no process is left or was given.

        Without ``split`` only what is cheap is read: resident memory, CPU time, page faults and their number.
        """
        if roots != self._roots:
            self.close()
            self._roots = roots
        if roots and (relist or self._clock() >= self._list_due_ns):
            self._list()
        seen: list[ProcessUsage] = []
        for pid, process in list(self._members.items()):
            usage = process.usage(split=split)
            if usage is None:
                self._forget(pid)
                continue
            seen.append(usage)
            self._cpu_ns[pid] = usage.cpu_ns
            if usage.major_faults is not None:
                self._faults[pid] = usage.major_faults
        if not seen:
            return TreeUsage()
        rss_bytes, anon_bytes, file_bytes, _, faults, swap_bytes, highest_bytes = map(_sum, zip(*seen, strict=True))
        return TreeUsage(
            rss_bytes=rss_bytes,
            anon_bytes=anon_bytes,
            file_bytes=file_bytes,
            cpu_ns=self._ended_cpu_ns + sum(self._cpu_ns.values()),
            process_count=len(seen),
            major_faults=None if faults is None else self._ended_faults + sum(self._faults.values()),
            swap_bytes=swap_bytes,
            rss_highest_bytes=highest_bytes,
        )

    def unique_bytes(self) -> int | None:
        """Return the memory that would end with the processes last read; None: one does not tell."""
        return _sum(process.unique_bytes() for process in self._members.values()) if self._members else None

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
        self._ended_faults += self._faults.pop(pid, 0)
        if pid in self._roots:
            self._ended_roots.add(pid)

    def close(self) -> None:
        """Forget every process."""
        for process in self._members.values():
            process.close()
        self._members, self._cpu_ns, self._faults, self._ended_roots = {}, {}, {}, set()
        self._roots, self._ended_cpu_ns, self._ended_faults, self._list_due_ns = (), 0, 0, 0


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
