"""AMD GPUs through the kernel driver amdgpu: its files in ``/sys`` and its account of single processes.

Names and units are those of the kernel's documentation (https://docs.kernel.org/gpu/amdgpu/thermal.html and
``driver-misc.html``). Known weakness: ``gpu_busy_percent`` of some boards stays at 100 % while a compute
context is open; power, clock and the processes' engine time tell then. Power of graphics within a processor
is that of the whole chip, so it counts as that of a module of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value
from benchfleet_agent.probes.drm_clients import KFD, RUNTIME_BUSY, DrmClients, DrmUse, runtime_use
from benchfleet_agent.probes.sysfs import (
    PciDevice,
    absent,
    gaps_by_device,
    hwmon_of,
    kernel_release,
    number_of,
    pci_devices,
    pci_name,
    require_sysfs,
    temperature_of,
    text_of,
)
from benchfleet_agent.probes.system import descendants

METRICS = (
    "device_memory_used_bytes",
    "device_shared_memory_bytes",
    "device_memory_runtime_bytes",
    "device_runtime_busy_ns",
    "device_busy_ratio",
    "device_memory_busy_ratio",
    "device_power_w",
    "device_power_average_w",
    "device_power_limit_w",
    "device_energy_mj",
    "device_temperature_c",
    "device_clock_hz",
    "device_memory_clock_hz",
    "device_module_power_w",
)
_ASLEEP = "the GPU sleeps, and reading this would wake it"
_REASONS = {
    "device_power_w": "this GPU's driver tells only an average of its power",
    "device_power_average_w": "this GPU's driver tells only the power of the moment",
    "device_energy_mj": "the driver has no energy counter for this GPU; energy is power over time",
    "device_module_power_w": "this GPU is not within a processor: its power is its own",
}
_WHOLE_CHIP = "graphics within a processor: what is metered is the whole chip (device_module_power_w)"
_REASONS_WITHIN = dict.fromkeys(("device_power_w", "device_power_average_w", "device_energy_mj"), _WHOLE_CHIP) | {
    "device_module_power_w": "this processor's driver tells no power of the moment"
}
_HIGHEST_POWER_UW = 10_000_000_000


@dataclass(slots=True)
class _Gpu:
    device: PciDevice
    info: DeviceInfo
    sensors: Path | None
    gaps: dict[str, str] = field(default_factory=dict)


class AmdGpuProbe:
    """Memory, use, power, temperature and clocks of every AMD GPU, and what the runtime has of them."""

    probe_id = "amdgpu"
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
        """Find the GPUs."""
        self.close()
        require_sysfs(self._root, "an AMD GPU")
        version = text_of(self._root / "sys/module/amdgpu/version") or kernel_release(self._root)
        for device in pci_devices(self._root, "drm", ("amdgpu",)):
            self._gpus.append(_Gpu(device, self._info(device, version), hwmon_of(device.path)))
        if not self._gpus:
            raise Unavailable(
                "the kernel driver amdgpu runs no GPU here; if this host has one of AMD, load it (modprobe amdgpu)"
            )

    def _info(self, device: PciDevice, version: str) -> DeviceInfo:
        sensors = hwmon_of(device.path)
        # Only processors with graphics have a second voltage, that of their north bridge (kernel documentation).
        integrated = sensors is not None and (sensors / "in1_input").exists()
        name = text_of(device.path / "product_name") or pci_name(self._root, device.vendor_id, device.product_id)
        return DeviceInfo(
            device_id=device.address,
            kind="gpu",
            display_name=name or f"AMD GPU {device.vendor_id}:{device.product_id}",
            driver_version=version,
            memory_bytes=None if integrated else number_of(device.path / "mem_info_vram_total", lowest=1),
            memory_kind="shared" if integrated else "dedicated",
        )

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
        readings = [
            Reading(gpu.device.address, self._values(gpu, use)) for gpu in self._gpus if gpu.device.path.exists()
        ]
        if not readings:
            raise Unavailable("no AMD GPU is left: it was taken away, or its driver was unloaded")
        return readings

    def _values(self, gpu: _Gpu, use: DrmUse) -> tuple[Value, ...]:
        path, shared = gpu.device.path, gpu.info.memory_kind == "shared"
        vram = number_of(path / "mem_info_vram_used")
        gtt = number_of(path / "mem_info_gtt_used")
        # Weights of a model on a GPU without memory of its own lie mostly in the host's.
        used = vram + gtt if shared and vram is not None and gtt is not None else vram
        regions = ("vram", "gtt") if shared else ("vram",)
        runtime_busy, runtime_memory, gaps = runtime_use(use, gpu.device.address, regions, idle_is_silent=True)
        if use.uses_kfd:
            runtime_busy, gaps[RUNTIME_BUSY] = None, KFD
        asleep = text_of(path / "power/runtime_status") in {"suspended", "suspending"}
        sensors = (None,) * 10 if asleep else _sensors(path, gpu.sensors, within_processor=shared)
        values = (used, gtt, runtime_memory, runtime_busy, *sensors)
        reasons = dict.fromkeys(METRICS[4:], _ASLEEP) if asleep else _REASONS_WITHIN if shared else _REASONS
        gpu.gaps = absent(METRICS, values, {**reasons, **gaps})
        return values

    def close(self) -> None:
        """Forget the GPUs."""
        self._gpus = []


def _sensors(path: Path, hwmon: Path | None, *, within_processor: bool) -> tuple[Value, ...]:
    """Read `METRICS` from the fifth on."""
    busy, memory_busy = _percent(path / "gpu_busy_percent"), _percent(path / "mem_busy_percent")
    if hwmon is None:
        return (busy, memory_busy, *(None,) * 8)
    power, average, energy_uj, module = _watts(hwmon / "power1_input"), None, None, None
    if within_processor:  # what holds the processors is no power of the device: added to theirs it would count twice
        power, module = None, power
    else:
        average, energy_uj = _watts(hwmon / "power1_average"), number_of(hwmon / "energy1_input")
    return (
        busy,
        memory_busy,
        power,
        average,
        _watts(hwmon / "power1_cap", lowest=1),
        None if energy_uj is None else energy_uj // 1000,
        temperature_of(hwmon / "temp1_input"),
        number_of(hwmon / "freq1_input", lowest=1),
        number_of(hwmon / "freq2_input", lowest=1),
        module,
    )


def _percent(path: Path) -> float | None:
    percent = number_of(path)
    return percent / 100 if percent is not None and percent <= 100 else None


def _watts(path: Path, *, lowest: int = 0) -> float | None:
    microwatts = number_of(path, lowest=lowest)
    return microwatts / 1e6 if microwatts is not None and microwatts <= _HIGHEST_POWER_UW else None
