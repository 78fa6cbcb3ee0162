"""Waiting for another process to let go of the file: for how long, told to whom, and who that process is."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchfleet_controller.store.connection import StoreBusy

DEFAULT_S = 10.0
FIRST_WORD_S = 1.0
"""Most openings of others last less, so nobody wants to hear of them."""
WORD_PERIOD_S = 10.0
TRY_S = 0.5
LONGEST_COMMAND = 100
_HOLDER = re.compile(r"(?:held in (?P<program>.*?) )?\(PID (?P<pid>\d+)\)")

_T = TypeVar("_T")


def patiently(
    attempt: Callable[[float], _T], path: Path, wait_s: float, told: Callable[[str], None] | None = None
) -> _T:
    """Call ``attempt`` with how long it may wait itself, in seconds, until it gets the file; returns its result.

    It must raise `StoreBusy` only before it has changed anything. ``told`` hears a line about the wait after a second
    and then every ten. Raises `StoreBusy` naming the holder after ``wait_s``, and KeyboardInterrupt when the running
    task was cancelled meanwhile: an event loop that waits here cannot deliver Ctrl-C. Threads beside the main one
    cannot be interrupted and wait `DEFAULT_S` at most; whoever runs them may call again.
    """
    begun = time.monotonic()
    if threading.current_thread() is not threading.main_thread():
        wait_s = min(wait_s, DEFAULT_S)
    next_word_s = FIRST_WORD_S
    while True:
        waited_s = time.monotonic() - begun
        try:
            return attempt(min(TRY_S, max(0.0, wait_s - waited_s)))
        except StoreBusy as busy:
            who = holder(str(busy.__cause__ or busy))
            waited_s = time.monotonic() - begun
            if waited_s >= wait_s:
                raise StoreBusy(
                    f"{path} is in use by another process{who}: wait longer with --wait, end that process, or name "
                    "another file with --db"
                ) from busy.__cause__
        _check_cancelled()
        if told is not None and waited_s >= next_word_s:
            of = "" if wait_s == float("inf") else f" of {wait_s:g}"
            told(f"waiting for {path}, in use by another process{who}: {waited_s:.0f}{of} s; Ctrl-C gives up")
            next_word_s = waited_s + WORD_PERIOD_S


def holder(error: str) -> str:
    """Who holds the file by DuckDB's error, as an apposition, such as ``, 4711 (duckdb results.duckdb)``; or empty."""
    found = _HOLDER.search(error)
    if found is None:
        return ""
    command = _command_line(int(found["pid"])) or found["program"] or ""
    return f", {found['pid']}" + (f" ({command[:LONGEST_COMMAND]})" if command else "")


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:  # it ended, or this is no Linux
        return ""


def _check_cancelled() -> None:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return
    if task is not None and task.cancelling():
        raise KeyboardInterrupt
