"""Energy of processor packages and their memory: RAPL counters of Intel and AMD, through Linux' powercap.

Names and units are those of the kernel's documentation, "Power Capping Framework". Only whole packages and
their memory count: a package's other parts lie within it, and ``intel-rapl-mmio`` shows the same registers
a second time. The counters move about every millisecond.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.sysfs import names_in, number_of, read_text, require_sysfs, text_of

METRICS = ("cpu_package_energy_uj", "dram_energy_uj")
_PACKAGE, _DRAM = METRICS
_PACKAGE_NAME = re.compile(r"(package-\d+)(-die-\d+)?")
_NO_ACCESS = (
    "the counters of the processor's energy are for root alone (since CVE-2020-8694, because they can betray keys). "
    "To let a group read them: groupadd --system rapl; usermod -aG rapl USER; write into "
    '/etc/udev/rules.d/90-rapl.rules the line SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", '
    'RUN+="/bin/chgrp rapl /sys%p/energy_uj", RUN+="/bin/chmod g+r /sys%p/energy_uj"; '
    "udevadm control --reload; udevadm trigger --action=add --subsystem-match=powercap; start the agent again"
)
_NO_DRAM = "this processor has no counter for its memory's energy (most desktops and laptops, all of AMD)"


@dataclass(slots=True)
class Counter:
    """A counter that begins again at 0 after its highest value, made one that only grows."""

    highest: int | None
    """Highest value; None: unknown."""
    last: int | None = None
    total: int = 0

    def add(self, value: int) -> int:
        """Take in a reading and return the whole; the first one counts from 0."""
        if self.last is None:
            self.total = value
        elif value >= self.last:
            self.total += value - self.last
        else:
            # Without a range it was reset: what it says now is what came since.
            self.total += value + (self.highest - self.last if self.highest is not None else 0)
        self.last = value
        return self.total


@dataclass(frozen=True, slots=True)
class _Zone:
    path: Path
    name: str


class RaplProbe:
    """Energy of all packages, and of their memory where that is counted."""

    probe_id = "rapl"
    period_ms = 250
    budget_us = 500
    verification = "documentation"

    def __init__(self, root: Path = Path("/"), *, read: Callable[[Path], str] = read_text) -> None:
        self._root = root
        self._read = read
        self._packages: list[_Zone] = []
        self._memories: list[_Zone] = []
        # Kept when the probe is discovered again within a case: its counters must not fall.
        self._counters: dict[Path, Counter] = {}

    def discover(self) -> None:
        """Find the packages and check that they may be read."""
        self.close()
        require_sysfs(self._root, "the processor's energy")
        directory = self._root / "sys/class/powercap"
        zones = [_Zone(directory / name, text_of(directory / name / "name")) for name in _zone_names(directory)]
        packages = [zone for zone in zones if _PACKAGE_NAME.fullmatch(zone.name)]
        if not packages:
            raise Unavailable(
                "this kernel shows no energy counters of the processor (/sys/class/powercap/intel-rapl:*): they need "
                "an Intel or AMD processor, the module intel_rapl_msr, and no virtual machine in between"
            )
        try:
            kept = self._without_mirrors(_first_of_each_name(packages))
        except PermissionError:
            raise Unavailable(_NO_ACCESS) from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"the processor's energy counters cannot be read: {error}") from None
        self._packages = kept
        inside = tuple(f"{zone.path.name}:" for zone in kept)
        self._memories = [zone for zone in zones if zone.name == "dram" and zone.path.name.startswith(inside)]

    def _without_mirrors(self, packages: Sequence[_Zone]) -> list[_Zone]:
        """Leave out dies that show their package's counter once more, as AMD's with several dies do.

        A mirror, read between two readings of the counter, lies between them; another counter practically never.
        """
        kept: list[_Zone] = []
        for zone in packages:
            self._energy(zone)  # refused here, if at all
            of_package = [other for other in kept if _package_of(other) == _package_of(zone)]
            mirrored = False
            for other in of_package:
                low, value, high = self._energy(other), self._energy(zone), self._energy(other)
                mirrored |= low <= value <= high
            if not mirrored:
                kept.append(zone)
        return kept

    def _energy(self, zone: _Zone) -> int:
        value = int(self._read(zone.path / "energy_uj"))
        if value < 0:
            raise ValueError(f"{zone.path} says {value}")
        return value

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """The memory's energy, where it is not counted."""
        return {} if self._memories else {_DRAM: _NO_DRAM}

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read all counters. Raises `OSError` where they cannot be read any more."""
        if not self._packages:
            raise Unavailable("the energy probe was not discovered")
        package, memory = self._sum(self._packages), self._sum(self._memories) if self._memories else None
        return [Reading("", (package, memory))]

    def _sum(self, zones: Iterable[_Zone]) -> int | None:
        total = 0
        for zone in zones:
            try:
                value = self._energy(zone)
            except ValueError:
                return None
            if zone.path not in self._counters:
                self._counters[zone.path] = Counter(number_of(zone.path / "max_energy_range_uj", lowest=1))
            total += self._counters[zone.path].add(value)
        return total

    def close(self) -> None:
        """Forget the zones."""
        self._packages, self._memories = [], []


def _zone_names(directory: Path) -> list[str]:
    return names_in(directory, r"(intel|amd)-rapl:\d+(:\d+)?")


def _first_of_each_name(zones: Iterable[_Zone]) -> list[_Zone]:
    first: dict[str, _Zone] = {}
    for zone in zones:
        first.setdefault(zone.name, zone)
    return list(first.values())


def _package_of(zone: _Zone) -> str:
    found = _PACKAGE_NAME.fullmatch(zone.name)
    return found[1] if found else zone.name
