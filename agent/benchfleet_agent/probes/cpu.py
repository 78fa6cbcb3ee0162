"""Clock, heat and throttling of a Linux machine's processors, and what it reads back from swap.

Names and units are those of the kernel's documentation: cpufreq (kHz), hwmon (thousandths of degrees
Celsius), ``thermal_throttle`` of x86, ``/proc/vmstat``.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value
from benchfleet_agent.probes.sysfs import names_in, number_of, temperature_of, text_of

METRICS = ("host_cpu_clock_hz", "host_cpu_temperature_c", "host_cpu_throttle_count", "host_swap_in_bytes")
_CLOCK, _TEMPERATURE, _THROTTLE, _SWAP_IN = METRICS
_SENSORS = frozenset({"coretemp", "cpu_thermal", "k10temp", "zenpower"})
_ZONES = frozenset({"cpu-thermal", "cpu_thermal", "soc_thermal", "x86_pkg_temp"})
_HIGHEST_KHZ = 20_000_000
_REASONS = {
    _CLOCK: "the kernel does not control the clock here (no cpufreq), and without the processor's APERF and MPERF "
    "counters /proc/cpuinfo names only the nominal one; usual in virtual machines",
    _TEMPERATURE: "no sensor of the processor was found; load its driver (coretemp, k10temp), if this is no "
    "virtual machine",
    _THROTTLE: "only x86 processors of Intel count how often heat slowed them down, and not in virtual machines",
    _SWAP_IN: "/proc/vmstat has no pswpin: this kernel was built without swap",
}


@dataclass(frozen=True, slots=True)
class _Sources:
    clocks: tuple[tuple[Path, int], ...]
    """Files in kHz, each with the number of logical processors it speaks of."""
    temperatures: tuple[Path, ...]
    throttles: tuple[Path, ...]


class CpuProbe:
    """The processors' mean clock, hottest sensor and throttling, and the host's reading from swap."""

    probe_id = "cpu"
    period_ms = 1_000
    budget_us = 2_000
    verification = "documentation"  # swap was tried on real hardware, the sensors on nothing

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._sources = _Sources((), (), ())
        self._gaps: dict[str, str] = {}

    def discover(self) -> None:
        """Find the files to read."""
        if not (self._root / "proc/vmstat").exists():
            raise Unavailable("clock, heat and throttling are read from Linux' /sys and /proc")
        cpus = self._root / "sys/devices/system/cpu"
        temperatures = _hwmon_sensors(self._root / "sys/class/hwmon") or _thermal_zones(
            self._root / "sys/class/thermal"
        )
        self._sources = _Sources(_clock_files(cpus / "cpufreq"), temperatures, _throttle_files(cpus))

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """What the last reading lacked."""
        return self._gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read all four."""
        values = (self._clock_hz(), self._temperature_c(), self._throttle_count(), self._swap_in_bytes())
        self._gaps = {name: _REASONS[name] for name, value in zip(METRICS, values, strict=True) if value is None}
        return [Reading("", values)]

    def _clock_hz(self) -> Value:
        if not self._sources.clocks:
            return parse_cpu_mhz(text_of(self._root / "proc/cpuinfo"))
        khz = [(value, count) for path, count in self._sources.clocks if (value := _khz(path)) is not None]
        return 1e3 * sum(value * count for value, count in khz) / sum(count for _, count in khz) if khz else None

    def _temperature_c(self) -> Value:
        degrees = [value for path in self._sources.temperatures if (value := temperature_of(path)) is not None]
        return max(degrees, default=None)

    def _throttle_count(self) -> Value:
        # A sum that lacks a core would fall: then there is none.
        counts = [number_of(path) for path in self._sources.throttles]
        known = [count for count in counts if count is not None]
        return sum(known) if counts and len(known) == len(counts) else None

    def _swap_in_bytes(self) -> Value:
        pages = parse_swapped_in_pages(text_of(self._root / "proc/vmstat"))
        return None if pages is None else pages * mmap.PAGESIZE

    def close(self) -> None:
        """Nothing is held."""


def parse_cpu_mhz(text: str) -> float | None:
    """Return the mean clock in Hz from ``/proc/cpuinfo``; None where its figure is not the clock of the moment."""
    flags = _FLAGS.search(text)
    if flags is None or "aperfmperf" not in flags[1].split():
        return None
    clocks = [float(mhz) for mhz in _MHZ.findall(text)]
    return 1e6 * sum(clocks) / len(clocks) if clocks and max(clocks) * 1e3 <= _HIGHEST_KHZ else None


_FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)
_MHZ = re.compile(r"^cpu MHz\s*:\s*(\d+(?:\.\d+)?)\s*$", re.MULTILINE)


def parse_swapped_in_pages(text: str) -> int | None:
    """Return ``pswpin`` of ``/proc/vmstat``, pages read back from swap since the machine started."""
    found = _SWAPPED_IN.search(text)
    return int(found[1]) if found else None


_SWAPPED_IN = re.compile(r"^pswpin (\d+)$", re.MULTILINE)


def _khz(path: Path) -> int | None:
    khz = number_of(path, lowest=1)
    return khz if khz is not None and khz <= _HIGHEST_KHZ else None


def _clock_files(directory: Path) -> tuple[tuple[Path, int], ...]:
    """Find the clock of each policy, which several processors may share."""
    policies = [directory / name for name in names_in(directory, r"policy\d+")]
    return tuple(
        (policy / "scaling_cur_freq", max(1, len(text_of(policy / "affected_cpus").split()))) for policy in policies
    )


def _hwmon_sensors(directory: Path) -> tuple[Path, ...]:
    """Find the sensors of the processors' own drivers: of Intel's the package's, of AMD's those without offset."""
    found: list[Path] = []
    for name in names_in(directory):
        chip = directory / name
        if text_of(chip / "name") not in _SENSORS:
            continue
        inputs = names_in(chip, r"temp\d+_input")
        labels = {entry: text_of(chip / entry.replace("_input", "_label")) for entry in inputs}
        package = [entry for entry in inputs if labels[entry].startswith("Package id")]
        # Tctl steers fans and lies up to 27 °C above Tdie, where there is one.
        plain = [entry for entry in inputs if not (labels[entry] == "Tctl" and "Tdie" in labels.values())]
        found += [chip / entry for entry in package or plain]
    return tuple(found)


def _thermal_zones(directory: Path) -> tuple[Path, ...]:
    zones = [directory / name for name in names_in(directory, r"thermal_zone\d+")]
    return tuple(zone / "temp" for zone in zones if text_of(zone / "type") in _ZONES)


def _throttle_files(cpus: Path) -> tuple[Path, ...]:
    """Find one counter for each core and one for each package; the siblings of a core count the same events."""
    found: dict[tuple[str, ...], Path] = {}
    for name in names_in(cpus, r"cpu\d+"):
        counts, topology = cpus / name / "thermal_throttle", cpus / name / "topology"
        package, core = text_of(topology / "physical_package_id"), text_of(topology / "core_id")
        for key, file in (
            (("core", package, text_of(topology / "die_id"), core or name), "core_throttle_count"),
            (("package", package), "package_throttle_count"),
        ):
            if number_of(counts / file) is not None:
                found.setdefault(key, counts / file)
    return tuple(found.values())
