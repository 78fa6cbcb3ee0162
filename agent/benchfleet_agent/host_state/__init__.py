"""The conditions a host measures under, before and after every round: what is read, and what follows from two readings.

This module is pure; `readers` asks the operating system for what no probe samples, `at_rest` is for a host without a
job. What a host does not tell is absent, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchfleet.samples import THROTTLE_REASONS
from benchfleet.v1 import host_pb2
from benchfleet_agent.probes import Targets, Value

Latest = Mapping[str, Mapping[str, Value]]
"""Newest values by device id (empty: the host) and metric, as `benchfleet_agent.sampler.Sampler.latest` gives them."""

SHORTEST_WINDOW_NS = 200_000_000
"""Processor times tick every 10 ms on most kernels: over less than this a share of them is mostly rounding."""
SHORTEST_SLEEP_NS = 10_000_000
"""What two clocks may drift apart by being read one after the other; a machine sleeps for longer."""
PRESSURES = ("nominal", "fair", "serious", "critical")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the operating system tells and no probe samples. None or empty: it does not say."""

    power_plan: str = ""
    """Power plan, platform profile or frequency governor, as the system names it."""
    low_power_mode: bool | None = None
    cpu_clock_limit_hz: float | None = None
    """Highest clock of the fastest processor."""
    asleep_ns: int | None = None
    """How long the machine slept since it started, plus a constant."""
    has_battery: bool | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything at one moment."""

    at_ns: int
    """A clock that only grows, in ns."""
    latest: Latest
    facts: Facts
    targets: Targets
    """Whose processor time is our own."""

    def value(self, metric: str) -> Value:
        """The host's newest value of a metric; None: there is none."""
        return self.latest.get("", {}).get(metric)

    def of_devices(self, metric: str) -> list[int | float]:
        """The newest values of a metric on all devices."""
        found = (values.get(metric) for device_id, values in self.latest.items() if device_id)
        return [value for value in found if value is not None]


@dataclass(frozen=True, slots=True)
class HostState:
    """`benchfleet.v1.host_pb2.HostState`; units are in the names. None or empty: this host does not say."""

    on_battery: bool | None = None
    battery_ratio: float | None = None
    power_plan: str = ""
    low_power_mode: bool | None = None
    cpu_clock_hz: float | None = None
    cpu_clock_limit_hz: float | None = None
    cpu_temperature_c: float | None = None
    device_temperature_c: float | None = None
    thermal_pressure: str = ""
    background_cpu_ratio: float | None = None
    available_bytes: int | None = None
    suspended_ns: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    has_battery: bool | None = None
    """Not on the wire: a machine without a battery is never on one, but says nothing of it."""

    @property
    def on_mains(self) -> bool | None:
        """Whether the machine lives on mains; None: it does not say."""
        if self.on_battery is not None:
            return not self.on_battery
        return True if self.has_battery is False else None

    def to_proto(self) -> host_pb2.HostState:
        """Write the state for an event or a host."""
        return host_pb2.HostState(
            on_battery=self.on_battery,
            battery_ratio=self.battery_ratio,
            power_plan=self.power_plan,
            low_power_mode=self.low_power_mode,
            cpu_clock_hz=self.cpu_clock_hz,
            cpu_clock_limit_hz=self.cpu_clock_limit_hz,
            cpu_temperature_c=self.cpu_temperature_c,
            device_temperature_c=self.device_temperature_c,
            thermal_pressure=self.thermal_pressure,
            background_cpu_ratio=self.background_cpu_ratio,
            available_bytes=self.available_bytes,
            suspended_ns=self.suspended_ns,
            throttle_reasons=self.throttle_reasons,
        )


def state_between(before: Reading | None, now: Reading) -> HostState:
    """The state at a reading; what needs two moments is absent without the one before."""
    on_battery, ratio = now.value("on_battery"), now.value("battery_ratio")
    clock, available = now.value("host_cpu_clock_hz"), now.value("host_available_bytes")
    heat, pressure = now.value("host_cpu_temperature_c"), now.value("host_thermal_pressure")
    return HostState(
        on_battery=None if on_battery is None else bool(on_battery),
        battery_ratio=None if ratio is None else float(ratio),
        power_plan=now.facts.power_plan,
        low_power_mode=now.facts.low_power_mode,
        cpu_clock_hz=None if clock is None else float(clock),
        cpu_clock_limit_hz=now.facts.cpu_clock_limit_hz,
        cpu_temperature_c=None if heat is None else float(heat),
        device_temperature_c=max(map(float, now.of_devices("device_temperature_c")), default=None),
        thermal_pressure=PRESSURES[int(pressure)] if pressure is not None and 0 <= pressure < len(PRESSURES) else "",
        background_cpu_ratio=None if before is None else background_ratio(before, now),
        available_bytes=None if available is None else int(available),
        suspended_ns=None if before is None else slept_ns(before.facts.asleep_ns, now.facts.asleep_ns),
        throttle_reasons=throttle_reasons(int(mask) for mask in now.of_devices("device_throttle_reasons")),
        has_battery=now.facts.has_battery,
    )


def background_ratio(before: Reading, now: Reading) -> float | None:
    """Share of all logical processors, 0 to 1, that neither runtime nor load process nor agent used in between.

    None: over too short a time, or one of the counters is not known or began anew. The time of a runtime whose
    processes are not among the targets is in it: who knows that it worked meanwhile must leave the value out.
    """
    busy, total = _grown(before, now, "host_cpu_busy_ns"), _grown(before, now, "host_cpu_total_ns")
    if busy is None or not total or now.at_ns - before.at_ns < SHORTEST_WINDOW_NS:
        return None
    if before.targets != now.targets:
        return None  # a process that was there before brings all the time it ever used
    own = [_grown(before, now, "agent_cpu_ns")]
    if now.targets.runtime_pids:
        own.append(_grown(before, now, "runtime_cpu_ns"))
    if now.targets.load_pid is not None:
        own.append(_grown(before, now, "load_cpu_ns"))
    known = [value for value in own if value is not None]
    if len(known) < len(own):
        return None
    # Our processes are counted in ns, the machine in ticks: the difference can lie below 0 or above 1.
    return min(1.0, max(0.0, (busy - sum(known)) / total))


def _grown(before: Reading, now: Reading, counter: str) -> float | None:
    first, last = before.value(counter), now.value(counter)
    return None if first is None or last is None or last < first else last - first


def slept_ns(before_ns: int | None, now_ns: int | None) -> int | None:
    """How long the machine slept between two values of `Facts.asleep_ns`; None: not known."""
    if before_ns is None or now_ns is None:
        return None
    slept = now_ns - before_ns
    return slept if slept >= SHORTEST_SLEEP_NS else 0


def throttle_reasons(masks: Iterable[int]) -> tuple[str, ...]:
    """Name the bits of all devices' ``device_throttle_reasons``, each once."""
    together = 0
    for mask in masks:
        together |= mask
    return tuple(name for bit, name in THROTTLE_REASONS.items() if together & bit)
