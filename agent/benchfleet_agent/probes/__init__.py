"""What is sampled: one file per source, one small interface, a table of what works on this host.

A `Probe` reads one source (the operating system, NVML, …) and delivers metrics declared in
`benchfleet.samples`. It is used by one thread at a time and holds no thread of its own. A probe whose
library or driver is missing says so with `Unavailable` and never harms the others; a reading that
cannot be had is None, with a reason, never 0.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from benchfleet.v1 import host_pb2

Value = int | float | None
"""One reading of one metric, in the metric's unit; None: not measured."""


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

    def to_proto(self) -> host_pb2.Device:
        """Write the device for a host's inventory."""
        return host_pb2.Device(
            device_id=self.device_id,
            kind=self.kind,
            display_name=self.display_name,
            driver_version=self.driver_version,
            memory_bytes=self.memory_bytes,
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
        """Metric → why this host, driver or target does not offer it."""


@dataclass(frozen=True, slots=True)
class ProbeDescription:
    """What a host's inventory says of a probe."""

    probe_id: str
    available: bool
    reason: str | None
    """Why it does not read, and what would help; None when it does."""
    cost_us: float | None
    """Median time of one reading, in microseconds; None: not measured."""
    metrics: tuple[str, ...]
    """Names it delivers here, or would if it were available."""
    period_ms: int
    devices: tuple[DeviceInfo, ...] = ()
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Metrics of this probe that this host does not offer, with the reason."""

    def to_proto(self) -> host_pb2.ProbeInfo:
        """Write the probe for a host's inventory."""
        return host_pb2.ProbeInfo(
            probe_id=self.probe_id,
            available=self.available,
            unavailable_reason=self.reason or "",
            metrics=self.metrics,
            cost_us=self.cost_us,
            period_ms=self.period_ms,
        )


def default_probes() -> tuple[Probe, ...]:
    """All probes this agent knows, each fresh and undiscovered. Loads no library."""
    from benchfleet_agent.probes.nvidia import NvidiaProbe
    from benchfleet_agent.probes.system import SystemProbe

    return (SystemProbe(), NvidiaProbe())


def gaps_of(probe: Probe) -> Mapping[str, str]:
    """Why metrics of this probe stay empty; empty when it cannot say."""
    return probe.gaps() if isinstance(probe, GapProbe) else {}


def describe(
    probes: Sequence[Probe], *, clock: Callable[[], int] = time.perf_counter_ns, reading_count: int = 3
) -> list[ProbeDescription]:
    """Discover, read and close each probe: what it delivers here and what a reading costs.

    The readings look at the agent's own process in place of a runtime and a load process. Do not pass
    probes that a sampler is using.
    """
    targets = Targets(runtime_pids=(os.getpid(),), load_pid=os.getpid())
    return [_describe(probe, targets, clock, reading_count) for probe in probes]


def _describe(probe: Probe, targets: Targets, clock: Callable[[], int], reading_count: int) -> ProbeDescription:
    try:
        probe.discover()
        costs = []
        for _ in range(reading_count):
            start = clock()
            probe.read(targets)
            costs.append((clock() - start) / 1e3)
        gaps = dict(gaps_of(probe))
        return ProbeDescription(
            probe_id=probe.probe_id,
            available=True,
            reason=None,
            cost_us=statistics.median(costs),
            metrics=tuple(name for name in probe.metrics() if name not in gaps),
            period_ms=probe.period_ms,
            devices=probe.devices(),
            gaps=gaps,
        )
    except Exception as error:  # noqa: BLE001 - a broken driver or library must cost one probe, not the inventory
        reason = failure_text(error)
        return ProbeDescription(
            probe_id=probe.probe_id,
            available=False,
            reason=reason,
            cost_us=None,
            metrics=probe.metrics(),
            period_ms=probe.period_ms,
            gaps=dict.fromkeys(probe.metrics(), reason),
        )
    finally:
        with suppress(Exception):
            probe.close()


def failure_text(error: Exception) -> str:
    """Say for people why a probe does not read."""
    return str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
