"""Keeps the host from falling asleep while something is fetched, where the system lets an ordinary user ask for that.

A download that sleep interrupts is slow at best; Foundry Local may leave full-length files of zeros and believe them
(https://github.com/microsoft/Foundry-Local/issues/906). macOS: ``caffeinate``; Windows: SetThreadExecutionState, which
holds for the calling thread; Linux: ``systemd-inhibit``. Tried on Linux with a stand-in for the command only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

_CONTINUOUS, _SYSTEM_REQUIRED = 0x80000000, 0x00000001  # winbase.h: ES_CONTINUOUS, ES_SYSTEM_REQUIRED
_END_S = 2.0


@contextlib.contextmanager
def kept_awake(why: str) -> Iterator[None]:
    """Ask the system not to sleep while inside; a system that refuses, or has no way to ask, changes nothing."""
    if sys.platform == "win32":
        state = ctypes.windll.kernel32.SetThreadExecutionState
        state(_CONTINUOUS | _SYSTEM_REQUIRED)
        try:
            yield
        finally:
            state(_CONTINUOUS)
        return
    process = _start(inhibitor(sys.platform, why))
    try:
        yield
    finally:
        if process is not None:
            _end(process)


def inhibitor(platform: str, why: str) -> list[str]:
    """The command that keeps a system awake while it runs; empty: there is none. It ends with its stdin, or with us."""
    if platform == "darwin":
        return ["caffeinate", "-i", "-w", str(os.getpid())]
    if platform == "linux":
        return ["systemd-inhibit", "--what=sleep:idle", "--who=benchfleet", f"--why={why}", "cat"]
    return []


def _start(command: list[str]) -> subprocess.Popen[bytes] | None:
    program = shutil.which(command[0]) if command else None
    if program is None:
        return None
    nothing = subprocess.DEVNULL
    try:
        return subprocess.Popen([program, *command[1:]], stdin=subprocess.PIPE, stdout=nothing, stderr=nothing)
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
