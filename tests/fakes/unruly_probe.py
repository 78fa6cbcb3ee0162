"""Probes whose native library misbehaves: for the isolation of probes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable


class Unruly:
    """Reads its own process id and how often it was read; misbehaves as the file BENCHFLEET_UNRULY says."""

    probe_id = "unruly"
    period_ms = 100
    budget_us = 1_000
    verification = "recorded output"

    def __init__(self) -> None:
        self._count = 0

    def _misbehave(self, moment: str) -> None:
        wish = Path(os.environ["BENCHFLEET_UNRULY"]).read_text()
        if wish == f"crash at {moment}":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif wish == f"hang at {moment}":
            threading.Event().wait()
        elif wish == f"raise at {moment}":
            raise OSError("the driver fell over")
        elif wish == f"unavailable at {moment}":
            raise Unavailable("no driver; install one")

    def discover(self) -> None:
        print("a native library's noise")
        self._misbehave("discover")

    def metrics(self) -> tuple[str, ...]:
        return ("device_energy_mj", "device_power_w", "device_clock_hz")

    def devices(self) -> tuple[DeviceInfo, ...]:
        return (DeviceInfo("gpu-0", "gpu", "Unruly", memory_bytes=7, memory_kind="dedicated"),)

    def gaps(self) -> Mapping[str, str]:
        return {"device_clock_hz": "not told"}

    def read(self, targets: Targets) -> Sequence[Reading]:
        self._misbehave("read")
        self._count += 1
        return [Reading("gpu-0", (os.getpid(), float(targets.load_pid or 0), None))]

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        return [Reading("gpu-0", (os.getpid(), float(self._count), 1.5))]

    def close(self) -> None:
        self._count = 0
