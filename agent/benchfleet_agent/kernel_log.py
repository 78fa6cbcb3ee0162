"""What the kernel's log says of processes that its out-of-memory killer ended (Linux; most users may not read it).

``/dev/kmsg`` gives a record a read: ``priority,sequence,microseconds,flags;message`` (the
kernel's Documentation/ABI/testing/dev-kmsg).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

PATH = "/dev/kmsg"
MOST_RECORDS = 20_000
_RECORD_BYTES = 8192
_SLACK_US = 2_000_000
"""The log's clock is not quite the monotonic one."""
_RECORD = re.compile(r"^\d+,\d+,(\d+),[^;]*;(.*)", re.DOTALL)
# mm/oom_kill.c: "Out of memory: Killed process 1 (x) …", "Memory cgroup out of memory: Killed process 1 (x) …".
_KILLED = re.compile(r"out of memory.*?: Killed process (\d+) \((.*?)\)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OomKill:
    """One process that the kernel ended."""

    pid: int
    name: str
    said: str
    """The log's first line about it."""


def parse(records: Iterable[str], since_us: int) -> list[OomKill]:
    """The kills at or after a moment, in microseconds since boot."""
    found = []
    for record in records:
        parts = _RECORD.match(record)
        if parts is None or int(parts[1]) < since_us - _SLACK_US:
            continue
        said = parts[2].partition("\n")[0]
        if killed := _KILLED.search(said):
            found.append(OomKill(int(killed[1]), killed[2], said[:300]))
    return found


def oom_kills(since_ns: int, path: str = PATH) -> list[OomKill]:
    """The kills since a moment (`time.perf_counter_ns`); empty where the log cannot be read. Never waits."""
    return parse(_records(path), since_ns // 1_000) if sys.platform == "linux" else []


def _records(path: str) -> Iterable[str]:
    found: deque[str] = deque(maxlen=MOST_RECORDS)  # the newest: the log begins with the oldest
    with contextlib.suppress(OSError):  # not ours to read
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            for _ in range(10 * MOST_RECORDS):
                try:
                    record = os.read(descriptor, _RECORD_BYTES)
                except BlockingIOError:
                    break  # the newest was read
                except BrokenPipeError:
                    continue  # older ones were overwritten meanwhile
                if not record:
                    break
                found.append(record.decode(errors="replace"))
        finally:
            os.close(descriptor)
    return found
