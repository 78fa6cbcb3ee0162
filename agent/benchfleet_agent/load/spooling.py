"""The load process's own note of every request that ended, for an agent that dies before it has read them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def open_spool(path: Path) -> int:
    """Open a spool for appending, readable for its owner only. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)


class Spool:
    """Lines appended to a file, each with one write and no sync. Safe from several threads; never raises."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def open(self, path: Path | None) -> None:
        """Write to this file from now on; None: nowhere. Raises OSError."""
        self.close()
        self._descriptor = None if path is None else open_spool(path)

    def write(self, line: bytes) -> None:
        """Append a line. On a full disk what is there stays, and the measurement goes on."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if os.write(self._descriptor, line) < len(line):
                    os.write(self._descriptor, b"\n")  # so that only this one is broken

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
