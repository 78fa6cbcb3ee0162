"""What this machine can do at most: measured when asked, by a child process, and kept while the machine is the same.

Nothing here raises: a measurement that fails says why in ``failure``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchfleet.v1 import host_pb2

DEADLINE_S = 60.0
FILE = "limits.json"
_NUMBERS = ("memory_bandwidth_bytes_per_s", "compute_flop_per_s")


def machine_key(cpus: Sequence[int]) -> str:
    """What a measurement belongs to: it is made anew for another machine, other processors or another method."""
    import psutil

    from benchfleet_agent.limits_measurement import METHOD

    memory_gib = round(psutil.virtual_memory().total / 2**30)
    cores = f"{os.cpu_count()} processors, {','.join(map(str, cpus)) or 'all'} used"
    return f"{platform.node()}, {platform.machine()} {platform.processor()}, {cores}, {memory_gib} GiB: {METHOD}"


def read_limits(document: Mapping[str, Any]) -> host_pb2.MachineLimits:
    """A measurement from JSON. Raises ValueError (or KeyError, TypeError) for one that cannot be."""
    found = host_pb2.MachineLimits(thread_count=int(document["thread_count"]), method=str(document["method"]))
    for name in _NUMBERS:
        value = float(document[name])
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}")
        setattr(found, name, value)
    if "measured_at_s" in document:
        found.measure_time.FromNanoseconds(int(float(document["measured_at_s"]) * 1e9))
    return found


class Limits:
    """The limits of this machine on the processors that runtimes may use (none named: all)."""

    def __init__(
        self,
        data_dir: Path,
        cpus: Sequence[int] = (),
        *,
        command: Sequence[str] | None = None,
        clock: Callable[[], float] = time.time,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._path = data_dir / FILE
        self._cpus = tuple(cpus)
        self._command = tuple(command or (sys.executable, "-m", "benchfleet_agent.limits_measurement"))
        self._clock = clock
        self._deadline_s = deadline_s
        self._lock = threading.Lock()

    def current(self) -> host_pb2.MachineLimits | None:
        """The measurement that is kept, if this machine is still the one that was measured."""
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            return read_limits(document) if document["machine"] == machine_key(self._cpus) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def measure(self, refresh: bool = False) -> host_pb2.MachineLimits:
        """Measure for some seconds on all cores, or give what is kept; a second caller waits for the first."""
        with self._lock:
            kept = None if refresh else self.current()
            if kept is not None:
                return kept
            try:
                document = self._asked() | {"measured_at_s": self._clock(), "machine": machine_key(self._cpus)}
                found = read_limits(document)
            except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
                return host_pb2.MachineLimits(failure=_why(error))
            partial = self._path.with_suffix(".partial")
            try:
                partial.write_text(json.dumps(document, indent=2), encoding="utf-8")
                partial.replace(self._path)
            except OSError:  # measured all the same; the next one measures again
                partial.unlink(missing_ok=True)
            return found

    def _asked(self) -> dict[str, Any]:
        done = subprocess.run(
            [*self._command, *map(str, self._cpus)],
            capture_output=True,
            text=True,
            timeout=self._deadline_s,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        document = json.loads(done.stdout)
        if not isinstance(document, dict):
            raise TypeError("the measurement printed no object")
        return document


def _why(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the measurement did not end within {error.timeout:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
        advice = "; run: pip install 'benchfleet[agent]'" if "No module named" in last[0] else ""
        return f"the measurement failed: {last[0]}{advice}"
    return f"the measurement failed: {error}"
