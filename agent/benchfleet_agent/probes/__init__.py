"""What is sampled: one file per source, one small interface, a table of what works on this host.

A `Probe` reads one source (the operating system, NVML, …) and delivers metrics declared in
`benchfleet.samples`. It is used by one thread at a time and holds no thread of its own. A probe whose
library or driver is missing says so with `Unavailable` and never harms the others; a reading that
cannot be had is None, with a reason, never 0.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

from benchfleet.samples import BY_NAME
from benchfleet.v1 import host_pb2

Value = int | float | None
"""One reading of one metric, in the metric's unit; None: not measured."""

PROBES: tuple[tuple[str, str], ...] = (
    ("", "system:SystemProbe"),
    ("linux", "pressure:PressureProbe"),
    ("linux", "cpu:CpuProbe"),
    ("linux", "rapl:RaplProbe"),
    ("linux", "power_supply:PowerSupplyProbe"),
    ("", "nvidia:NvidiaProbe"),
    ("linux", "amdgpu:AmdGpuProbe"),
    ("linux", "intel_gpu:IntelGpuProbe"),
    ("linux", "npu:NpuProbe"),
    ("win32", "windows_counters:WindowsCountersProbe"),
    ("win32", "windows_energy:WindowsEnergyProbe"),
    ("win32", "windows_power:WindowsPowerProbe"),
    ("darwin", "macos_gpu:MacGpuProbe"),
    ("darwin", "macos_process:MacProcessProbe"),
    ("darwin", "macos_power:MacPowerProbe"),
)
"""(``sys.platform`` it is for, empty: any; module of this package and class), in the order they are read."""

LONGEST_PERIOD_MS = 60_000
DESCRIBE_PATIENCE_S = 10.0
"""How long a probe may take to say what it offers: a driver that wakes its GPU needs seconds."""
MAY_BE_NEGATIVE = frozenset({"c"})
"""Units in which a value below zero can be true."""


class Unavailable(Exception):
    """A source cannot be read here: why, and what would make it available."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The processes a case is about."""

    runtime_pids: tuple[int, ...] = ()
    """Roots of the runtime's process trees; empty: none on this host."""
    load_pid: int | None = None
    """The load process."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A GPU or NPU a probe found. Empty or None: the driver does not say."""

    device_id: str
    """Stable identity on this machine, e.g. NVML's UUID."""
    kind: str
    """``gpu`` or ``npu``."""
    display_name: str
    driver_version: str = ""
    memory_bytes: int | None = None
    """Memory of its own; None also where it shares the host's, but for NVIDIA's ``unified`` ones: there all of it."""
    memory_kind: str = ""
    """``dedicated``, ``unified`` (one memory with the CPU) or ``shared``; empty: unknown."""
    memory_bandwidth_bytes_per_s: float | None = None
    """Most its memory can move, from clock and bus width as the driver gives them."""

    def to_proto(self) -> host_pb2.Device:
        """Write the device for a host's inventory."""
        return host_pb2.Device(
            device_id=self.device_id,
            kind=self.kind,
            display_name=self.display_name,
            driver_version=self.driver_version,
            memory_bytes=self.memory_bytes,
            memory_kind=self.memory_kind,
            memory_bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s,
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """What one probe read of one target: values in the order of the probe's `Probe.metrics`."""

    device_id: str
    """Empty: the host and its processes."""
    values: tuple[Value, ...]


class Probe(Protocol):
    """One source of telemetry."""

    probe_id: str
    period_ms: int
    """Time between readings the probe is made for, in milliseconds."""
    budget_us: int
    """What one reading may cost on average, in microseconds, before its rate is lowered."""

    def discover(self) -> None:
        """Find the source and its devices; called before anything is read, and again after failures.

        Raises `Unavailable`.
        """

    def metrics(self) -> tuple[str, ...]:
        """Names from `benchfleet.samples`; known before `discover`."""

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The devices found; empty for probes of the host."""

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read everything that is cheap enough for every tick; one reading per device."""

    def close(self) -> None:
        """Give back what `discover` took. Harmless when there is nothing."""


@runtime_checkable
class EdgeProbe(Protocol):
    """A probe with readings too costly for every tick, worth taking at the edges of a phase."""

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Like `Probe.read`, with everything."""


@runtime_checkable
class GapProbe(Protocol):
    """A probe that can say why some of its metrics stay empty."""

    def gaps(self) -> Mapping[str, str]:
        """Metric, or ``metric@device_id`` → why this host, driver, device or target does not offer it."""


class BrokenProbe:
    """Stands for a probe that cannot even be made, so that the listing says why."""

    period_ms = 1_000
    budget_us = 1_000

    def __init__(self, probe_id: str, reason: str) -> None:
        self.probe_id = probe_id
        self._reason = reason

    def discover(self) -> None:
        """Raise `Unavailable`, always."""
        raise Unavailable(self._reason)

    def metrics(self) -> tuple[str, ...]:
        """None are known."""
        return ()

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None are known."""
        return ()

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Raise `Unavailable`, always."""
        raise Unavailable(self._reason)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class ProbeDescription:
    """What a host's inventory says of a probe."""

    probe_id: str
    available: bool
    reason: str | None
    """Why it does not read, and what would help; None when it does."""
    cost_us: float | None
    """Median time of one reading, in microseconds; None: not measured. What is read less often than at every tick (the
    parts of the runtime's memory) is not in it."""
    metrics: tuple[str, ...]
    """Names it delivers here, or would if it were available."""
    period_ms: int
    devices: tuple[DeviceInfo, ...] = ()
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Metrics (``metric@device_id`` where only some devices lack it) that this host does not offer, with the reason."""
    reading: Mapping[str, float] = field(default_factory=dict)
    """One reading with everything: by metric, or ``metric@device_id``; what had no value is left out."""
    verification: str = "documentation"
    """What the source was tried on: ``real hardware``, ``a fake library``, ``recorded output``, ``documentation``."""

    def to_proto(self) -> host_pb2.ProbeInfo:
        """Write the probe for a host's inventory."""
        return host_pb2.ProbeInfo(
            probe_id=self.probe_id,
            available=self.available,
            unavailable_reason=self.reason or "",
            metrics=self.metrics,
            cost_us=self.cost_us,
            period_ms=self.period_ms,
            gaps=self.gaps,
            reading=self.reading,
            verification=self.verification,
        )


def default_probes(platform: str = sys.platform) -> tuple[Probe, ...]:
    """All probes this agent knows for a platform, each fresh and undiscovered. Loads no library of a vendor."""
    return tuple(make_probe(spec) for only_on, spec in PROBES if only_on in {"", platform})


def make_probe(spec: str) -> Probe:
    """Make the probe ``module:Class`` (no dots: a module of this package), or a `BrokenProbe` that says why."""
    name, _, class_name = spec.partition(":")
    try:
        module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
        return cast("Probe", getattr(module, class_name)())
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one file, the other probes read
        return BrokenProbe(name.rpartition(".")[2], f"the probe cannot be loaded: {type(error).__name__}: {error}")


def choose(
    probes: Sequence[Probe], disabled: frozenset[str] = frozenset(), periods_ms: Mapping[str, int] | None = None
) -> tuple[Probe, ...]:
    """Leave out the probes named in ``disabled`` and read others less often, by probe id and milliseconds.

    A period must lie between the one its probe is made for (reading more often disturbs what is measured)
    and `LONGEST_PERIOD_MS`. Names of other platforms' probes change nothing, so that machines can share a
    file. Raises ValueError, naming what comes near an unknown name.
    """
    by_id = {probe.probe_id: probe for probe in probes}
    known = {*by_id, *(spec.partition(":")[0] for _, spec in PROBES)}
    for name in sorted({*disabled, *(periods_ms or {})} - known):
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise ValueError(f"there is no probe {name!r}; did you mean {', '.join(near)}?")
    for name, period_ms in (periods_ms or {}).items():
        probe = by_id.get(name)
        shortest_ms = probe.period_ms if probe else 1
        if not shortest_ms <= period_ms <= LONGEST_PERIOD_MS:
            bounds = f"{shortest_ms} and {LONGEST_PERIOD_MS} ms"
            raise ValueError(f"the period of the probe {name} must lie between {bounds}, not {period_ms}")
        if probe:
            probe.period_ms = period_ms
    return tuple(probe for probe in probes if probe.probe_id not in disabled)


def gaps_of(probe: Probe) -> Mapping[str, str]:
    """Why metrics of this probe stay empty; empty when it cannot say."""
    with suppress(Exception):
        return probe.gaps() if isinstance(probe, GapProbe) else {}
    return {}


def require_known(names: Sequence[str]) -> None:
    """Raise ValueError when a probe declares a metric that there is not."""
    if unknown := [name for name in names if name not in BY_NAME]:
        raise ValueError(f"there is no metric {', '.join(sorted(unknown))}")


def checked(names: Sequence[str], readings: Sequence[Reading]) -> tuple[Sequence[Reading], dict[str, str]]:
    """Return the readings with unusable values replaced by None, and by metric why.

    Unusable are NaN, infinity, what is no number or does not fit 64 bits, and a negative value where there is
    none. Raises ValueError when the shape is not what the probe declared: then no value can be trusted.
    """
    faults: dict[str, str] = {}
    good: list[Reading] = []
    for reading in readings:
        if len(reading.values) != len(names):
            raise ValueError(f"it gave {len(reading.values)} values for its {len(names)} metrics")
        values = reading.values
        for index, value in enumerate(values):
            if value is None or (type(value) is int and 0 <= value < 2**63):  # nearly all of them
                continue
            if (fault := _fault(names[index], value)) is not None:
                faults[names[index]] = f"unusable value: {fault}"
                values = (*values[:index], None, *values[index + 1 :])
        good.append(reading if values is reading.values else Reading(reading.device_id, values))
    if len(good) > 1 and len({reading.device_id for reading in good}) != len(good):
        raise ValueError("it gave two readings of one device")
    return good, faults


def _fault(name: str, value: object) -> str | None:
    if not isinstance(value, int | float):
        return f"{type(value).__name__} is no number"
    if not math.isfinite(value) or abs(value) >= 2**63:
        return f"{value}"
    if value < 0 and BY_NAME[name].unit not in MAY_BE_NEGATIVE:
        return f"{value} {BY_NAME[name].unit}, which cannot be negative"
    return None


def describe(
    probes: Sequence[Probe],
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    reading_count: int = 3,
    patience_s: float = DESCRIBE_PATIENCE_S,
) -> list[ProbeDescription]:
    """Discover, read and close each probe: what it delivers here and what a reading costs.

    The readings look at the agent's own process in place of a runtime and a load process. A probe that does
    not answer within ``patience_s`` is left to itself and counts as unavailable. Do not pass probes that a
    sampler is using.
    """
    targets = Targets(runtime_pids=(os.getpid(),), load_pid=os.getpid())
    descriptions = []
    for probe in probes:
        answer: queue.SimpleQueue[ProbeDescription] = queue.SimpleQueue()

        def ask(probe: Probe = probe, answer: queue.SimpleQueue[ProbeDescription] = answer) -> None:
            answer.put(_describe(probe, targets, clock, reading_count))

        threading.Thread(target=ask, name=f"describe-{probe.probe_id}", daemon=True).start()
        try:
            descriptions.append(answer.get(timeout=patience_s))
        except queue.Empty:
            reason = f"telemetry stalled: the driver or library has not answered for {patience_s:g} s"
            descriptions.append(_unavailable(probe, reason))
    return descriptions


def _describe(probe: Probe, targets: Targets, clock: Callable[[], int], reading_count: int) -> ProbeDescription:
    try:
        probe.discover()
        costs = []
        for _ in range(reading_count):
            start = clock()
            probe.read(targets)
            costs.append((clock() - start) / 1e3)
        names = probe.metrics()
        require_known(names)
        everything = probe.read_at_edge(targets) if isinstance(probe, EdgeProbe) else probe.read(targets)
        readings, faults = checked(names, everything)
        gaps = {**faults, **gaps_of(probe)}
        return ProbeDescription(
            probe_id=probe.probe_id,
            available=True,
            reason=None,
            cost_us=statistics.median(costs),
            metrics=tuple(name for name in names if name not in gaps),
            period_ms=probe.period_ms,
            devices=probe.devices(),
            gaps=gaps,
            reading={
                f"{name}@{reading.device_id}" if reading.device_id else name: float(value)
                for reading in readings
                for name, value in zip(names, reading.values, strict=True)
                if value is not None
            },
            verification=_verification(probe),
        )
    except Exception as error:  # noqa: BLE001 - a broken driver or library must cost one probe, not the inventory
        return _unavailable(probe, failure_text(error))
    finally:
        with suppress(Exception):
            probe.close()


def _unavailable(probe: Probe, reason: str) -> ProbeDescription:
    names: tuple[str, ...] = ()
    with suppress(Exception):
        names = tuple(probe.metrics())
    return ProbeDescription(
        probe_id=probe.probe_id,
        available=False,
        reason=reason,
        cost_us=None,
        metrics=names,
        period_ms=probe.period_ms,
        gaps=dict.fromkeys(names, reason),
        verification=_verification(probe),
    )


def _verification(probe: Probe) -> str:
    return str(getattr(probe, "verification", "documentation"))


def failure_text(error: Exception) -> str:
    """Say for people why a probe does not read."""
    return str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
