"""What speaks for the failure of a case: how a process ended, what the kernel counted, how memory stood before.

`explain` and the parsers are pure; `read_oom_kills` and `MemoryTrail` are what they are fed by.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchfleet.failures import Failure, Reason
from benchfleet_agent.child import ChildGone
from benchfleet_agent.jobs import Outcome
from benchfleet_agent.kernel_log import OomKill
from benchfleet_agent.probes.sysfs import number_of, text_of
from benchfleet_agent.sample_batch import SampleBatch

CRASHES = frozenset({Reason.RUNTIME_CRASHED, Reason.LOAD_PROCESS_CRASHED, Reason.OUT_OF_MEMORY, Reason.LOAD_FAILED})
"""Reasons that evidence is gathered for."""
_MOST_KILLS = 3
_MIB = 1 << 20
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number just below 2**63 for no limit, version 2 "max"."""
_RUNTIME, _LOAD = "runtime_rss_bytes", "load_rss_bytes"
_OOM_KILL = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_WINDOWS_ENDS = {
    0xC0000005: "access violation",
    0xC0000017: "out of memory",
    0xC000001D: "illegal instruction",
    0xC00000FD: "stack overflow",
    0xC000012D: "commit limit reached",
    0xC0000374: "heap corruption",
    0xC0000409: "stack buffer overrun, or the program aborted",
}
"""NTSTATUS values of Microsoft's documentation that programs end with."""
_PROOF_OF_SIZE = frozenset({0xC0000017, 0xC000012D})


@dataclass(frozen=True, slots=True)
class OomKills:
    """How often the kernel's out-of-memory killer struck, and where it must. None: this system does not say."""

    in_cgroup: int | None = None
    """Processes of the agent's own control group, which its children are in."""
    on_machine: int | None = None
    limit_bytes: int | None = None
    """Memory the control group may use; None also where there is no limit."""


@dataclass(frozen=True, slots=True)
class LastMemory:
    """Memory at one reading, in bytes. None: not told."""

    sample_ns: int
    runtime_rss_bytes: int | None
    load_rss_bytes: int | None
    available_bytes: int | None


class MemoryTrail:
    """Keeps the newest reading with the runtime alive, and that with the load process; fed with a case's samples."""

    def __init__(self) -> None:
        self._last: dict[str, LastMemory] = {}

    def begin(self) -> None:
        """Forget: another case begins."""
        self._last = {}

    def note(self, batch: SampleBatch) -> None:
        """Look at one batch; only the probe that reads processes and host together has what is wanted."""
        columns = batch.columns

        def at(metric: str, index: int) -> int | None:
            value = columns[metric][index] if metric in columns else None
            return None if value is None else int(value)

        for metric in (_RUNTIME, _LOAD):
            alive = [index for index, value in enumerate(columns.get(metric, ())) if value is not None]
            if alive:
                end = alive[-1]
                sizes = (at(_RUNTIME, end), at(_LOAD, end), at("host_available_bytes", end))
                self._last[metric] = LastMemory(batch.sample_ns[end], *sizes)

    def before(self, reason: Reason) -> LastMemory | None:
        """The newest reading with the process alive that a failure speaks of."""
        return self._last.get(_LOAD if reason is Reason.LOAD_PROCESS_CRASHED else _RUNTIME)


def exit_words(returncode: int) -> str:
    """Say how a process ended: ``was killed by signal 9 (SIGKILL)``, ``exited with code 1``."""
    if returncode < 0:
        try:
            return f"was killed by signal {-returncode} ({signal.Signals(-returncode).name})"
        except ValueError:
            return f"was killed by signal {-returncode}"
    if returncode >= 1 << 30:
        words = _WINDOWS_ENDS.get(returncode)
        return f"ended with status 0x{returncode:08X}" + (f" ({words})" if words else "")
    return f"exited with code {returncode}"


def ended_child(error: BaseException | None) -> ChildGone | None:
    """The end of a child process that a failure goes back to."""
    while error is not None and not isinstance(error, ChildGone):
        error = error.__cause__ or error.__context__
    return error


def explain(
    outcome: Outcome,
    gone: ChildGone | None,
    before: OomKills,
    now: OomKills,
    memory: LastMemory | None,
    now_ns: int,
    killed: Sequence[OomKill] = (),
    runtime_pids: Sequence[int] = (),
) -> tuple[Outcome, tuple[str, ...]]:
    """The evidence of a failed case, and its outcome: ``out_of_memory`` where that is proven.

    Proven: the child was killed by signal 9 while the killer struck in the agent's control group (on the machine, where
    there is no such group), Windows gave it a status that says so, or the kernel's log (``killed``, since the case
    began) names one of the runtime's processes.
    """
    failure = outcome.failure
    if failure is None or outcome.status != "failed" or failure.reason not in CRASHES:
        return outcome, ()
    told = []
    code = gone.returncode if gone is not None else None
    if code is not None:
        what = "load process" if failure.reason is Reason.LOAD_PROCESS_CRASHED else "runtime's process"
        told.append(f"the {what} {exit_words(code)}")
    in_cgroup, on_machine = _struck(before.in_cgroup, now.in_cgroup), _struck(before.on_machine, now.on_machine)
    if in_cgroup:
        told.append(f"the kernel's out-of-memory killer ended {_processes(in_cgroup)} of the agent's control group")
    elif on_machine:
        told.append(f"the kernel's out-of-memory killer ended {_processes(on_machine)} on this machine")
    told += [f"the kernel's log: {one.said}" for one in killed[-_MOST_KILLS:]]
    if memory is not None:
        told.append(_memory_words(memory, now_ns))
    if now.limit_bytes is not None:
        told.append(f"the agent's control group may use {now.limit_bytes / _MIB:,.0f} MiB")
    by_kernel = code == -9 and bool(on_machine if in_cgroup is None else in_cgroup)
    named = any(one.pid in runtime_pids for one in killed)
    if failure.reason is not Reason.OUT_OF_MEMORY and (by_kernel or named or code in _PROOF_OF_SIZE):
        message = failure.message if "memory ran out" in failure.message else f"memory ran out: {failure.message}"
        outcome = Outcome(outcome.status, Failure(Reason.OUT_OF_MEMORY, message))
    return outcome, tuple(told)


def _struck(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else max(0, now - before)


def _processes(count: int) -> str:
    return "a process" if count == 1 else f"{count} processes"


def _memory_words(memory: LastMemory, now_ns: int) -> str:
    held = {"runtime": memory.runtime_rss_bytes, "load process": memory.load_rss_bytes}
    parts = [f"the {name} held {size / _MIB:,.0f} MiB" for name, size in held.items() if size is not None]
    if memory.available_bytes is not None:
        parts.append(f"{memory.available_bytes / _MIB:,.0f} MiB of the machine's memory were free")
    return f"{(now_ns - memory.sample_ns) / 1e9:.1f} s before this was noticed {' and '.join(parts)}"


def parse_oom_kills(text: str) -> int | None:
    """Return ``oom_kill`` of cgroup v2's ``memory.events``, v1's ``memory.oom_control`` or ``/proc/vmstat``."""
    found = _OOM_KILL.search(text)
    return int(found[1]) if found else None


def parse_cgroups(text: str) -> Mapping[str, str]:
    """Read ``/proc/<pid>/cgroup``, cgroups(7): controller (empty: version 2) → path."""
    lines = (line.split(":", 2) for line in text.splitlines())
    return {name: parts[2] for parts in lines if len(parts) == 3 for name in parts[1].split(",")}


def oom_files(cgroups: Mapping[str, str], root: Path) -> Sequence[Path]:
    """Where the counter of a process's control group may lie, best first.

    Inside a container the path may be the host's while the mount shows only the container's own group, so the top of
    the mount comes last.
    """
    mount = root / "sys/fs/cgroup"
    found = []
    if "memory" in cgroups:
        path = cgroups["memory"].strip("/")
        found += [mount / "memory" / path / "memory.oom_control", mount / "memory/memory.oom_control"]
    if "" in cgroups:
        path = cgroups[""].strip("/")
        found += [mount / path / "memory.events", mount / "memory.events"]
    return found


def read_oom_kills(root: Path = Path("/")) -> OomKills:
    """Read the counters; empty on other systems than Linux."""
    on_machine = parse_oom_kills(text_of(root / "proc/vmstat"))
    for path in oom_files(parse_cgroups(text_of(root / "proc/self/cgroup")), root):
        if (in_cgroup := parse_oom_kills(text_of(path))) is not None:
            limits = (number_of(path.with_name(name)) for name in ("memory.max", "memory.limit_in_bytes"))
            limit = next((size for size in limits if size is not None and size < _NO_LIMIT), None)
            return OomKills(in_cgroup, on_machine, limit)
    return OomKills(None, on_machine)
