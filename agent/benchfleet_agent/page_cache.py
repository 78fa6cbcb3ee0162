"""The system's page cache: how much of a model's files it holds, and dropping them. Linux only; else unknown."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from benchfleet.failures import Reason, WorkFailed


def files_of(directory: Path) -> list[Path]:
    """The files a load of the model in this directory may read."""
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def drop(files: Iterable[Path]) -> None:
    """Ask the kernel to forget the files' contents; written ones are brought to disk first.

    Raises `WorkFailed` ``unsupported_os`` where no system call does it for single files, OSError for a file.
    """
    if sys.platform != "linux":
        message = "the page cache of single files can be dropped on Linux only; restart the machine for a cold load"
        raise WorkFailed(Reason.UNSUPPORTED_OS, message)
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages stay, whatever posix_fadvise(2) is told
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident_ratio(files: Iterable[Path]) -> float | None:
    """Share of the files' pages in the page cache, 0 to 1, by mincore(2); None where that is not known."""
    if sys.platform != "linux":
        return None
    pages = resident = 0
    for path in files:
        try:
            counted = _resident_pages(path)
        except (OSError, ValueError):
            return None
        pages += counted[0]
        resident += counted[1]
    return resident / pages if pages else None


def _resident_pages(path: Path) -> tuple[int, int]:
    """How many pages a file has, and how many of them are in memory."""
    size = path.stat().st_size
    if size == 0:
        return 0, 0
    count = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * count)()
    libc = ctypes.CDLL(None, use_errno=True)
    # A private writable mapping: only those give ctypes an address; nothing is ever written.
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
        view = (ctypes.c_ubyte * size).from_buffer(mapping)
        try:
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), states)
        finally:
            del view  # the mapping cannot be closed while something points into it
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return count, sum(state & 1 for state in bytes(states))
