"""Pressure stall information of Linux: how long tasks waited for a processor, for memory, for a disk.

Format: the kernel's documentation, "PSI - Pressure Stall Information"; ``some`` counts time in which at
least one task of the whole machine waited, in microseconds since it started.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.sysfs import text_of

METRICS = ("host_cpu_pressure_us", "host_memory_pressure_us", "host_io_pressure_us")
_FILES = ("cpu", "memory", "io")
_TOTAL = re.compile(r"^some\b.*\btotal=(\d+)\s*$", re.MULTILINE)


class PressureProbe:
    """The host's pressure counters."""

    probe_id = "pressure"
    period_ms = 1_000
    budget_us = 500
    verification = "real hardware"

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = tuple(root / "proc/pressure" / name for name in _FILES)
        self._root = root
        self._gaps: dict[str, str] = {}

    def discover(self) -> None:
        """Check that the kernel counts."""
        if not (self._root / "proc").is_dir():
            raise Unavailable("only Linux counts how long tasks wait for processors, memory and disks")
        if all(parse_pressure(text_of(path)) is None for path in self._files):
            raise Unavailable(
                "this kernel does not count pressure (/proc/pressure): start it with psi=1, which Linux 4.20 and "
                "newer understand when built with CONFIG_PSI"
            )

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """Counters the last reading did not find."""
        return self._gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read the three counters."""
        values = tuple(parse_pressure(text_of(path)) for path in self._files)
        self._gaps = {
            name: f"{path} cannot be read"
            for name, path, value in zip(METRICS, self._files, values, strict=True)
            if value is None
        }
        return [Reading("", values)]

    def close(self) -> None:
        """Nothing is held."""


def parse_pressure(text: str) -> int | None:
    """Return the microseconds for which some task waited; None where the text does not say."""
    found = _TOTAL.search(text)
    return int(found[1]) if found else None
