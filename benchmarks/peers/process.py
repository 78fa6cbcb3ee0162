"""A client as a process tree: what it costs while it runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from benchmarks.peers.client import Command

PERIOD_S = 0.1
TREE_PERIOD_S = 0.5
"""How often new processes are looked for: reading the whole process table is what costs."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a client."""

    exit_code: int | None
    """None: it had to be killed."""
    start_ns: int
    """perf_counter, as in the server's stamps."""
    end_ns: int
    samples: Sequence[tuple[int, float]]
    """(perf_counter ns, CPU seconds of the whole tree since its start)."""
    peak_rss_bytes: int
    """Of all processes together; shared pages count in each."""
    processes: int
    """Most at any time."""
    stderr: str
    """Its last words."""


@dataclass
class Tree:
    """A process and all its descendants, dead ones' CPU time included."""

    root: psutil.Process
    known: dict[int, psutil.Process] = field(default_factory=dict)
    cpu_s: dict[int, float] = field(default_factory=dict)
    looked_ns: int = 0

    def look(self, now_ns: int) -> tuple[float, int, int]:
        """CPU seconds so far, resident bytes and number of processes now."""
        if now_ns - self.looked_ns > TREE_PERIOD_S * 1e9:
            self.looked_ns = now_ns
            with contextlib.suppress(psutil.Error):
                for process in (self.root, *self.root.children(recursive=True)):
                    self.known.setdefault(process.pid, process)
        rss_bytes = alive = 0
        for pid, process in list(self.known.items()):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    rss_bytes += process.memory_info().rss
                self.cpu_s[pid] = times.user + times.system
                alive += 1
            except psutil.Error:
                del self.known[pid]
        return sum(self.cpu_s.values()), rss_bytes, alive

    def kill(self) -> None:
        """End all of it."""
        with contextlib.suppress(psutil.Error):
            for process in (*self.root.children(recursive=True), self.root):
                with contextlib.suppress(psutil.Error):
                    process.kill()


def run(command: Command, folder: Path, timeout_s: float) -> Ran:
    """Start it in `folder`, watch it to its end; its stdout is the file ``stdout`` there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *command.without)}
    (folder / "stdin").write_text(command.stdin, encoding="utf-8")
    samples: list[tuple[int, float]] = []
    peak_rss_bytes = most = 0
    exit_code: int | None = None
    with (
        (folder / "stdin").open("rb") as stdin,
        (folder / "stdout").open("wb") as stdout,
        (folder / "stderr").open("wb") as stderr,
    ):
        start_ns = time.perf_counter_ns()
        with subprocess.Popen(
            command.arguments,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=folder,
            env=environment | dict(command.environment),
        ) as process:
            tree = Tree(psutil.Process(process.pid))
            while exit_code is None and time.perf_counter_ns() - start_ns < timeout_s * 1e9:
                now_ns = time.perf_counter_ns()
                cpu_s, rss_bytes, alive = tree.look(now_ns)
                samples.append((now_ns, cpu_s))
                peak_rss_bytes, most = max(peak_rss_bytes, rss_bytes), max(most, alive)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    exit_code = process.wait(PERIOD_S)
            end_ns = time.perf_counter_ns()
            tree.kill()
    said = (folder / "stderr").read_text(encoding="utf-8", errors="replace")[-2000:]
    return Ran(exit_code, start_ns, end_ns, samples, peak_rss_bytes, most, said)


def cpu_between(samples: Sequence[tuple[int, float]], start_ns: int, end_ns: int) -> float | None:
    """CPU seconds used between two moments, linear between samples; None without samples."""
    if not samples:
        return None
    return _cpu_at(samples, end_ns) - _cpu_at(samples, start_ns)


def _cpu_at(samples: Sequence[tuple[int, float]], moment_ns: int) -> float:
    before_ns, before_s = samples[0]
    for stamp_ns, cpu_s in samples:
        if stamp_ns >= moment_ns:
            share = (moment_ns - before_ns) / (stamp_ns - before_ns) if stamp_ns > before_ns else 0.0
            return before_s + (cpu_s - before_s) * max(0.0, share)
        before_ns, before_s = stamp_ns, cpu_s
    return before_s
