"""Intel GPUs through the kernel drivers i915 and xe: ``/sys`` and their account of single processes.

Names and units are those of the kernel's documentation (``sysfs-driver-intel-i915-hwmon``,
``sysfs-driver-intel-xe-hwmon``, "Xe GT Frequency Management"). Neither driver tells without special rights
how busy the whole GPU is, so only the runtime's own engine time is measured.
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
    hwmon_of,
    kernel_release,
    names_in,
    number_of,
    pci_devices,
    pci_name,
    require_sysfs,
    temperature_of,
    text_of,
)
from benchfleet_agent.probes.system import descendants

METRICS = (
    "device_memory_runtime_bytes",
    "device_runtime_busy_ns",
    "device_power_limit_w",
    "device_energy_mj",
    "device_temperature_c",
    "device_clock_hz",
)
_REASONS = {
    "device_energy_mj": "the driver counts the energy of discrete GPUs only; the processor package's holds this one's",
    "device_power_limit_w": "no power limit is set, or the driver tells none for this GPU",
    "device_temperature_c": "the driver tells no temperature of this GPU",
    "device_clock_hz": "the GPU sleeps, or this version of the driver tells no clock",
}
_OWN_MEMORY = ("vram", "local")
_ALL_MEMORY = ("vram", "local", "gtt", "system", "stolen")


@dataclass(slots=True)
class _Gpu:
    device: PciDevice
    info: DeviceInfo
    sensors: Path | None
    energy: Path | None
    temperature: Path | None
    clocks: tuple[Path, ...]
    gaps: dict[str, str] = field(default_factory=dict)


class IntelGpuProbe:
    """Energy, temperature and clock of every Intel GPU, and what the runtime has of them."""

    probe_id = "intel_gpu"
    period_ms = 250
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
        self._gpus: list[_Gpu] = []

    def discover(self) -> None:
        """Find the GPUs and their files."""
        self.close()
        require_sysfs(self._root, "an Intel GPU")
        self._gpus = [self._gpu(device) for device in pci_devices(self._root, "drm", ("i915", "xe"))]
        if not self._gpus:
            raise Unavailable(
                "the kernel drivers i915 and xe run no GPU here; if this host has one of Intel, load its driver"
            )

    def _gpu(self, device: PciDevice) -> _Gpu:
        sensors = hwmon_of(device.path)
        name = pci_name(self._root, device.vendor_id, device.product_id)
        # Intel's integrated GPUs are on the processor's own bus.
        integrated = device.address.startswith("0000:00:")
        info = DeviceInfo(
            device_id=device.address,
            kind="gpu",
            display_name=name or f"Intel GPU {device.vendor_id}:{device.product_id}",
            driver_version=f"{device.driver} {kernel_release(self._root)}".strip(),
            memory_bytes=None if integrated else number_of(device.node / "lmem_total_bytes", lowest=1),
            memory_kind="shared" if integrated else "dedicated",
        )
        return _Gpu(device, info, sensors, _energy_file(sensors), _temperature_file(sensors), _clock_files(device))

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The GPUs found."""
        return tuple(gpu.info for gpu in self._gpus)

    def gaps(self) -> Mapping[str, str]:
        """What the last reading of each GPU lacked."""
        return gaps_by_device({gpu.device.address: gpu.gaps for gpu in self._gpus})

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read every GPU that is there."""
        return self._read(targets, relist=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read with a fresh list of what the runtime has open."""
        return self._read(targets, relist=True)

    def _read(self, targets: Targets, *, relist: bool) -> Sequence[Reading]:
        use = self._clients.read(targets.runtime_pids, relist=relist)
        readings = [Reading(gpu.device.address, _values(gpu, use)) for gpu in self._gpus if gpu.device.path.exists()]
        if not readings:
            raise Unavailable("no Intel GPU is left: it was taken away, or its driver was unloaded")
        return readings

    def close(self) -> None:
        """Forget the GPUs."""
        self._gpus = []


def _values(gpu: _Gpu, use: DrmUse) -> tuple[Value, ...]:
    regions = _ALL_MEMORY if gpu.info.memory_kind == "shared" else _OWN_MEMORY
    runtime_busy, runtime_memory, gaps = runtime_use(use, gpu.device.address, regions)
    limit_uw = number_of(gpu.sensors / "power1_max", lowest=1) if gpu.sensors is not None else None
    energy_uj = number_of(gpu.energy) if gpu.energy is not None else None
    # A sleeping tile says 0: no clock. Of several tiles the quickest counts.
    clocks = [mhz for path in gpu.clocks if (mhz := number_of(path, lowest=1)) is not None]
    values: tuple[Value, ...] = (
        runtime_memory,
        runtime_busy,
        None if limit_uw is None else limit_uw / 1e6,
        None if energy_uj is None else energy_uj // 1000,
        None if gpu.temperature is None else temperature_of(gpu.temperature),
        max(clocks) * 1_000_000 if clocks else None,
    )
    gpu.gaps = absent(METRICS, values, {**_REASONS, **gaps})
    return values


def _energy_file(sensors: Path | None) -> Path | None:
    """Return the card's energy counter, else (xe) its package's."""
    if sensors is None:
        return None
    return next((path for name in ("energy1_input", "energy2_input") if (path := sensors / name).exists()), None)


def _temperature_file(sensors: Path | None) -> Path | None:
    """Return the package's sensor, else the first that is not the memory's."""
    names = names_in(sensors, r"temp\d+_input") if sensors is not None else []
    if sensors is None or not names:
        return None
    labels = {name: text_of(sensors / name.replace("_input", "_label")) for name in names}
    chip = [name for name in names if not labels[name].startswith("vram")]
    best = [name for name in chip if labels[name] == "pkg"] or chip
    return sensors / best[0] if best else None


def _clock_files(device: PciDevice) -> tuple[Path, ...]:
    """Return the files of actual clocks in MHz, one a tile."""
    if device.driver == "xe":
        return tuple(
            device.path / tile / gt / "freq0/act_freq"
            for tile in names_in(device.path, r"tile\d+")
            for gt in names_in(device.path / tile, r"gt\d+")
        )
    tiles = tuple(device.node / "gt" / gt / "rps_act_freq_mhz" for gt in names_in(device.node / "gt", r"gt\d+"))
    return tiles or (device.node / "gt_act_freq_mhz",)
