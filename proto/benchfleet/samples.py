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
    WINDOWED = "windowed"  # a mean over a window the source chose: `SampleMetric.window` says which


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
    window: str = ""
    """What a windowed metric is a mean over, by the vendor whose driver tells it."""


def _metric(
    name: str, unit: str, kind: Kind, scope: Scope, description: str, *, integer: bool = True, window: str = ""
) -> SampleMetric:
    return SampleMetric(name, unit, kind, scope, integer, description, window)


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
    _metric(
        "device_busy_ratio",
        "ratio",
        Kind.WINDOWED,
        Scope.DEVICE,
        "share of time a kernel ran",
        integer=False,
        window="NVIDIA: 1/6 to 1 s, by product; AMD: not documented; Apple: not documented",
    ),
    _metric("device_power_w", "w", Kind.GAUGE, Scope.DEVICE, "board power", integer=False),
    _metric("device_energy_mj", "mj", Kind.COUNTER, Scope.DEVICE, "board energy in millijoules"),
    _metric("device_temperature_c", "c", Kind.GAUGE, Scope.DEVICE, "temperature of the chip", integer=False),
    _metric("host_swap_in_bytes", "bytes", Kind.COUNTER, Scope.HOST, "read back from swap"),
    _metric("host_cpu_pressure_us", "us", Kind.COUNTER, Scope.HOST, "time some task waited for a processor (Linux)"),
    _metric("host_memory_pressure_us", "us", Kind.COUNTER, Scope.HOST, "time some task waited for memory (Linux)"),
    _metric("host_io_pressure_us", "us", Kind.COUNTER, Scope.HOST, "time some task waited for a disk (Linux)"),
    _metric("host_cpu_clock_hz", "hz", Kind.GAUGE, Scope.HOST, "mean clock of the processors", integer=False),
    _metric("host_cpu_temperature_c", "c", Kind.GAUGE, Scope.HOST, "hottest sensor of the processor", integer=False),
    _metric("host_cpu_throttle_count", "1", Kind.COUNTER, Scope.HOST, "times a core was throttled for its heat"),
    _metric("host_thermal_pressure", "1", Kind.GAUGE, Scope.HOST, "0 nominal, 1 fair, 2 serious, 3 critical (macOS)"),
    _metric("cpu_package_energy_uj", "uj", Kind.COUNTER, Scope.HOST, "energy of all processor packages"),
    _metric("dram_energy_uj", "uj", Kind.COUNTER, Scope.HOST, "energy of the memory, where counted apart"),
    _metric(
        "system_power_w", "w", Kind.GAUGE, Scope.HOST, "power of the whole machine behind its supply", integer=False
    ),
    _metric("battery_ratio", "ratio", Kind.GAUGE, Scope.HOST, "charge", integer=False),
    _metric("battery_discharge_w", "w", Kind.GAUGE, Scope.HOST, "power drawn from the battery", integer=False),
    _metric("on_battery", "1", Kind.GAUGE, Scope.HOST, "1 on battery, 0 on mains"),
    _metric(
        "runtime_uss_bytes", "bytes", Kind.GAUGE, Scope.RUNTIME, "memory that ends with the processes (edges only)"
    ),
    _metric(
        "runtime_rss_highest_bytes",
        "bytes",
        Kind.GAUGE,
        Scope.RUNTIME,
        "highest resident memory so far, as kept by the system (Linux, Windows)",
    ),
    _metric("runtime_swap_bytes", "bytes", Kind.GAUGE, Scope.RUNTIME, "swapped out"),
    _metric("runtime_major_faults", "1", Kind.COUNTER, Scope.RUNTIME, "page faults that had to read from disk"),
    _metric(
        "runtime_energy_nj",
        "nj",
        Kind.COUNTER,
        Scope.RUNTIME,
        "CPU energy of the processes as the kernel estimates it (macOS)",
    ),
    _metric(
        "device_memory_reserved_bytes", "bytes", Kind.GAUGE, Scope.DEVICE, "device memory kept by driver and firmware"
    ),
    _metric(
        "device_shared_memory_bytes", "bytes", Kind.GAUGE, Scope.DEVICE, "host memory lent to the device (GTT, shared)"
    ),
    _metric("device_busy_ns", "ns", Kind.COUNTER, Scope.DEVICE, "time the busiest kind of engine worked, for everyone"),
    _metric("device_runtime_busy_ns", "ns", Kind.COUNTER, Scope.DEVICE, "engine time of the runtime's processes"),
    _metric(
        "device_runtime_busy_ratio",
        "ratio",
        Kind.WINDOWED,
        Scope.DEVICE,
        "share of time the runtime's kernels ran",
        integer=False,
        window="NVIDIA: the last second",
    ),
    _metric(
        "device_memory_busy_ratio",
        "ratio",
        Kind.WINDOWED,
        Scope.DEVICE,
        "share of time memory was read or written",
        integer=False,
        window="NVIDIA: 1/6 to 1 s, by product; AMD: not documented",
    ),
    _metric(
        "device_power_average_w",
        "w",
        Kind.WINDOWED,
        Scope.DEVICE,
        "board power as the driver averages it",
        integer=False,
        window="NVIDIA from Ampere on: 1 s; AMD: not documented, taken for 1 s",
    ),
    _metric("device_power_limit_w", "w", Kind.GAUGE, Scope.DEVICE, "limit in force", integer=False),
    _metric("device_clock_hz", "hz", Kind.GAUGE, Scope.DEVICE, "clock of the compute units", integer=False),
    _metric("device_memory_clock_hz", "hz", Kind.GAUGE, Scope.DEVICE, "clock of the device's memory", integer=False),
    _metric("device_throttle_reasons", "mask", Kind.GAUGE, Scope.DEVICE, "what slows it down: see THROTTLE_REASONS"),
    _metric("device_power_throttle_ns", "ns", Kind.COUNTER, Scope.DEVICE, "time slowed down by a power limit"),
    _metric("device_thermal_throttle_ns", "ns", Kind.COUNTER, Scope.DEVICE, "time slowed down by heat"),
    _metric(
        "runtime_footprint_bytes",
        "bytes",
        Kind.GAUGE,
        Scope.RUNTIME,
        "memory that the processes answer for: compressed and the GPU's too, clean pages of files not (macOS)",
    ),
    _metric(
        "runtime_footprint_highest_bytes", "bytes", Kind.GAUGE, Scope.RUNTIME, "highest of these footprints (macOS)"
    ),
    _metric(
        "device_module_power_w",
        "w",
        Kind.GAUGE,
        Scope.DEVICE,
        "power of the module of a GPU and its CPU, where the GPU's own is not told (NVIDIA Grace, AMD APUs)",
        integer=False,
    ),
    _metric(
        "runtime_neural_bytes", "bytes", Kind.GAUGE, Scope.RUNTIME, "what the Neural Engine holds for them (macOS 13)"
    ),
)

POWERS = (
    "device_power_w", "device_module_power_w", "system_power_w", "battery_discharge_w", "device_power_average_w",
)  # fmt: skip
ENERGY_COUNTERS = ("device_energy_mj", "cpu_package_energy_uj")
"""Metrics that energy is worked out from, with those above."""

BY_NAME: dict[str, SampleMetric] = {metric.name: metric for metric in SAMPLE_METRICS}

THROTTLE_REASONS: dict[int, str] = {
    1: "power",
    2: "thermal",
    4: "hardware",
    8: "power_brake",
    16: "board",
    32: "reliability",
}
"""Bits of ``device_throttle_reasons``, the same for every vendor; 0: nothing slows the device down."""

PHASES = ("baseline", "prepare", "load", "loaded", "warmup", "round", "unload", "after")
"""Phases of a case, in order; every sample carries one."""
