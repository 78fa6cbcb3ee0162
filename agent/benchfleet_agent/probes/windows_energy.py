"""Energy of processor packages and their memory on Windows: the counter set ``Energy Meter``.

Windows 11 meters the packages' own counters (RAPL) of Intel and AMD processors, without any rights, in
picowatt-hours (https://learn.microsoft.com/windows-hardware/drivers/powermeter/energy-meter-interface).
Only whole packages and their memory count; cores (PP0) and graphics (PP1) lie within the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.rapl import Counter
from benchfleet_agent.probes.windows_pdh import Instance, PdhError, PdhQuery, load_pdh

METRICS = ("cpu_package_energy_uj", "dram_energy_uj")
_PACKAGE, _DRAM = METRICS
ENERGY = r"\Energy Meter(*)\Energy"
_METER = re.compile(r"RAPL_Package(\d+)_(PKG|DRAM)", re.IGNORECASE)
_MIRROR_PWH = 28_000_000
"""0.1 J: packages that differ by less show one counter twice, as dies of some AMD processors do."""
_ADVICE = (
    "Windows meters the processor's energy from Windows 11 on (10: only on devices with metering hardware), "
    "on Intel and AMD processors and not in a virtual machine"
)
_NO_DRAM = "this processor has no counter for its memory's energy (most desktops and laptops, all of AMD)"


def microjoules(picowatt_hours: int) -> int:
    """Convert: 1 pWh = 3.6e-9 J = 0.0036 µJ."""
    return picowatt_hours * 9 // 2500


def parse_meters(instances: Iterable[Instance]) -> dict[str, dict[str, int]]:
    """Sort the meters that count: ``PKG`` and ``DRAM`` → name → pWh. Those that stand at 0 do not work."""
    meters: dict[str, dict[str, int]] = {"PKG": {}, "DRAM": {}}
    for name, value in instances:
        if (match := _METER.fullmatch(name)) is not None and value > 0:
            meters[match[2].upper()][name.upper()] = value
    return meters


def mirrors(packages: Mapping[str, int]) -> frozenset[str]:
    """Return the packages that show another one's counter once more."""
    kept: list[int] = []
    found: set[str] = set()
    for name, value in sorted(packages.items()):
        if any(abs(value - other) <= _MIRROR_PWH for other in kept):
            found.add(name)
        else:
            kept.append(value)
    return frozenset(found)


class WindowsEnergyProbe:
    """Energy of all packages, and of their memory where that is counted."""

    probe_id = "windows_energy"
    period_ms = 500
    budget_us = 2_000
    verification = "documentation"

    def __init__(self, pdh: Any = None) -> None:
        self._given = pdh
        self._query: PdhQuery | None = None
        self._left_out: frozenset[str] = frozenset()
        self._has_dram = False
        # Kept when the probe is discovered again within a case: its counters must not fall.
        self._counters: dict[str, Counter] = {}

    def discover(self) -> None:
        """Open the counters and find the packages' meters."""
        self.close()
        pdh = self._given if self._given is not None else load_pdh()
        try:
            self._query = PdhQuery(pdh, [ENERGY])
            if self._query.problems:
                raise Unavailable(f"{_ADVICE} ({self._query.problems[ENERGY]})")
            instances = self._collect(self._query)
            meters = parse_meters(instances)
            if not meters["PKG"]:
                names = ", ".join(sorted({each.name for each in instances})) or "none"
                raise Unavailable(f"no energy meter of a processor package counts; {_ADVICE}. Meters found: {names}")
        except PdhError as error:
            self.close()
            raise Unavailable(f"Windows' energy meters cannot be read: {error}") from None
        except Unavailable:
            self.close()
            raise
        self._left_out = mirrors(meters["PKG"])
        self._has_dram = bool(meters["DRAM"])

    @staticmethod
    def _collect(query: PdhQuery) -> list[Instance]:
        query.collect()
        return query.instances(ENERGY)

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """The memory's energy, where it is not counted."""
        return {} if self._has_dram else {_DRAM: _NO_DRAM}

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read all meters; a package that shows none at the moment makes the sum unknown."""
        if self._query is None:
            raise Unavailable("the probe of Windows' energy meters was not discovered")
        try:
            meters = parse_meters(self._collect(self._query))
        except PdhError as error:
            raise Unavailable(f"Windows' energy meters cannot be read: {error}") from None
        packages = {name: value for name, value in meters["PKG"].items() if name not in self._left_out}
        skipped = {name.replace("_PKG", "_DRAM") for name in self._left_out}
        memories = {name: value for name, value in meters["DRAM"].items() if name not in skipped}
        return [Reading("", (self._sum(packages, "_PKG"), self._sum(memories, "_DRAM")))]

    def _sum(self, meters: Mapping[str, int], ending: str) -> int | None:
        for name, value in meters.items():
            self._counters.setdefault(name, Counter(None)).add(microjoules(value))
        known = {name for name in self._counters if name.endswith(ending)}
        if not meters or known - meters.keys():
            return None
        return sum(self._counters[name].total for name in known)

    def close(self) -> None:
        """Close the counters."""
        query, self._query = self._query, None
        if query is not None:
            query.close()
