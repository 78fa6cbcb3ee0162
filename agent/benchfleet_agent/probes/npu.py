"""NPUs on Linux: Intel's (driver intel_vpu) through ``/sys``, AMD's (amdxdna) through its account of processes.

Names and units are those of the kernel's documentation (``sysfs-driver-ivpu``, current and obsolete). It
asks to read Intel's counter about once a second, as reading can delay jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value
from benchfleet_agent.probes.drm_clients import DrmClients, DrmUse, runtime_use
from benchfleet_agent.probes.sysfs import (
    PciDevice,
    absent,
    gaps_by_device,
    kernel_release,
    number_of,
    pci_devices,
    pci_name,
    require_sysfs,
    text_of,
)
from benchfleet_agent.probes.system import descendants

METRICS = (
    "device_busy_ns",
    "device_memory_used_bytes",
    "device_clock_hz",
    "device_runtime_busy_ns",
    "device_memory_runtime_bytes",
)
_VENDORS = {"intel_vpu": "Intel", "amdxdna": "AMD"}
_ONLY_PROCESSES = "AMD's driver tells only what single processes use"
_REASONS = {
    "intel_vpu": {
        "device_busy_ns": "the driver has no npu_busy_time_us; it came with Linux 6.11",
        "device_memory_used_bytes": "the driver has no npu_memory_utilization; it came with Linux 6.15",
        "device_clock_hz": "the NPU sleeps, or the driver tells no clock; that came with Linux 6.15",
    },
    "amdxdna": dict.fromkeys(METRICS[:3], _ONLY_PROCESSES),
}


@dataclass(slots=True)
class _Npu:
    device: PciDevice
    info: DeviceInfo
    gaps: dict[str, str] = field(default_factory=dict)


class NpuProbe:
    """Use, memory and clock of every NPU, and what the runtime has of them."""

    probe_id = "npu"
    period_ms = 1_000
    budget_us = 2_000
    verification = "documentation"

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
    ) -> None:
        self._root = root
        self._clients = DrmClients(root, tree, clock)
        self._npus: list[_Npu] = []

    def discover(self) -> None:
        """Find the NPUs."""
        self.close()
        require_sysfs(self._root, "an NPU")
        self._npus = [_Npu(device, self._info(device)) for device in pci_devices(self._root, "accel", _VENDORS)]
        if not self._npus:
            raise Unavailable(
                "no NPU of the kernel drivers intel_vpu and amdxdna is here; "
                "if this host has one, it needs Linux 6.3 (Intel) or 6.14 (AMD) and the driver's firmware"
            )

    def _info(self, device: PciDevice) -> DeviceInfo:
        name = text_of(device.path / "vbnv") or pci_name(self._root, device.vendor_id, device.product_id)
        return DeviceInfo(
            device_id=device.address,
            kind="npu",
            display_name=name or f"{_VENDORS[device.driver]} NPU {device.vendor_id}:{device.product_id}",
            driver_version=f"{device.driver} {kernel_release(self._root)}".strip(),
            memory_kind="shared",
        )

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The NPUs found."""
        return tuple(npu.info for npu in self._npus)

    def gaps(self) -> Mapping[str, str]:
        """What the last reading of each NPU lacked."""
        return gaps_by_device({npu.device.address: npu.gaps for npu in self._npus})

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read every NPU that is there."""
        return self._read(targets, relist=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read with a fresh list of what the runtime has open."""
        return self._read(targets, relist=True)

    def _read(self, targets: Targets, *, relist: bool) -> Sequence[Reading]:
        use = self._clients.read(targets.runtime_pids, relist=relist)
        readings = [Reading(npu.device.address, _values(npu, use)) for npu in self._npus if npu.device.path.exists()]
        if not readings:
            raise Unavailable("no NPU is left: its driver was unloaded")
        return readings

    def close(self) -> None:
        """Forget the NPUs."""
        self._npus = []


def _values(npu: _Npu, use: DrmUse) -> tuple[Value, ...]:
    path = npu.device.path
    busy_us = number_of(path / "npu_busy_time_us")
    # Renamed in Linux 7.2; both say 0 while the NPU sleeps.
    mhz = number_of(path / "freq/current_freq", lowest=1) or number_of(path / "npu_current_frequency_mhz", lowest=1)
    runtime_busy, runtime_memory, gaps = runtime_use(use, npu.device.address, ("",))
    values: tuple[Value, ...] = (
        None if busy_us is None else busy_us * 1000,
        number_of(path / "npu_memory_utilization"),
        None if mhz is None else mhz * 1_000_000,
        runtime_busy,
        runtime_memory,
    )
    npu.gaps = absent(METRICS, values, {**_REASONS[npu.device.driver], **gaps})
    return values
