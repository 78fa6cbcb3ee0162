"""The telemetry columns: every metric a probe may deliver, declared once for wire, database and docs.

A metric's name is its column in the ``samples`` table. Counters only grow (until the thing counted
restarts) and are meant to be differenced; gauges are read as they are, over the window given.
An unmeasured reading is NULL, never 0; why is in ``cases.unmeasured``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a metric's readings are to be combined."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Scope(StrEnum):
    """What a metric speaks of."""

    HOST = "host"
    RUNTIME = "runtime"  # the runtime's process tree
    LOAD = "load"  # the load process
    AGENT = "agent"
    DEVICE = "device"  # one GPU or NPU, named by device_id


@dataclass(frozen=True, slots=True)
class SampleMetric:
    """One column of the ``samples`` table."""

    name: str
    unit: str
    kind: Kind
    scope: Scope
    integer: bool
    description: str


def _metric(name: str, unit: str, kind: Kind, scope: Scope, description: str, *, integer: bool = True) -> SampleMetric:
    return SampleMetric(name, unit, kind, scope, integer, description)


SAMPLE_METRICS: tuple[SampleMetric, ...] = (
    _metric("host_cpu_busy_ns", "ns", Kind.COUNTER, Scope.HOST, "time all logical processors together were busy"),
    _metric("host_cpu_total_ns", "ns", Kind.COUNTER, Scope.HOST, "time all logical processors together existed"),
    _metric("host_available_bytes", "bytes", Kind.GAUGE, Scope.HOST, "memory new work can have without swapping"),
    _metric("host_swap_used_bytes", "bytes", Kind.GAUGE, Scope.HOST, "swap in use"),
    _metric("runtime_rss_bytes", "bytes", Kind.GAUGE, Scope.RUNTIME, "resident memory of the runtime's processes"),
    _metric("runtime_anon_bytes", "bytes", Kind.GAUGE, Scope.RUNTIME, "of that, anonymous (Linux; private elsewhere)"),
    _metric("runtime_file_bytes", "bytes", Kind.GAUGE, Scope.RUNTIME, "of that, mapped files such as weights (Linux)"),
    _metric("runtime_cpu_ns", "ns", Kind.COUNTER, Scope.RUNTIME, "CPU time of the runtime's processes"),
    _metric("runtime_process_count", "1", Kind.GAUGE, Scope.RUNTIME, "processes in the runtime's trees"),
    _metric("load_rss_bytes", "bytes", Kind.GAUGE, Scope.LOAD, "resident memory of the load process"),
    _metric("load_cpu_ns", "ns", Kind.COUNTER, Scope.LOAD, "CPU time of the load process"),
    _metric("agent_rss_bytes", "bytes", Kind.GAUGE, Scope.AGENT, "resident memory of the agent"),
    _metric("agent_cpu_ns", "ns", Kind.COUNTER, Scope.AGENT, "CPU time of the agent"),
    _metric("device_memory_used_bytes", "bytes", Kind.GAUGE, Scope.DEVICE, "device memory in use by everyone"),
    _metric("device_memory_runtime_bytes", "bytes", Kind.GAUGE, Scope.DEVICE, "of that, by the runtime's processes"),
    _metric("device_busy_ratio", "ratio", Kind.GAUGE, Scope.DEVICE, "share of time a kernel ran", integer=False),
    _metric("device_power_w", "w", Kind.GAUGE, Scope.DEVICE, "board power", integer=False),
    _metric("device_energy_mj", "mj", Kind.COUNTER, Scope.DEVICE, "board energy in millijoules"),
    _metric("device_temperature_c", "c", Kind.GAUGE, Scope.DEVICE, "temperature of the chip", integer=False),
)

BY_NAME: dict[str, SampleMetric] = {metric.name: metric for metric in SAMPLE_METRICS}

PHASES = ("baseline", "prepare", "load", "loaded", "warmup", "round", "unload", "after")
"""Phases of a case, in order; every sample carries one."""
