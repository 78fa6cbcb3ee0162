"""Intel GPUs from made-up trees of the drivers i915 and xe."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable, Value
from benchfleet_agent.probes.intel_gpu import METRICS, IntelGpuProbe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the trees need symbolic links")

S = 1_000_000_000
INTEGRATED = {
    "device/uevent": "DRIVER=i915\nPCI_ID=8086:46A6\nPCI_SLOT_NAME=0000:00:02.0",
    "gt/gt0/rps_act_freq_mhz": "1300",
}
DISCRETE = {
    "device/uevent": "DRIVER=xe\nPCI_ID=8086:E20B\nPCI_SLOT_NAME=0000:03:00.0",
    "device/hwmon/hwmon5/energy1_input": "5000123",
    "device/hwmon/hwmon5/energy2_input": "1",
    "device/hwmon/hwmon5/power1_max": "190000000",
    "device/hwmon/hwmon5/temp2_input": "55000",
    "device/hwmon/hwmon5/temp2_label": "pkg",
    "device/hwmon/hwmon5/temp3_input": "70000",
    "device/hwmon/hwmon5/temp3_label": "vram",
    "device/tile0/gt0/freq0/act_freq": "2400",
    "device/tile0/gt1/freq0/act_freq": "600",
    "device/tile1/gt0/freq0/act_freq": "0",
}


def card(root: Path, name: str, files: dict[str, str]) -> Path:
    for file, text in files.items():
        path = root / "sys/class/drm" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root / "sys/class/drm" / name


def client(root: Path, text: str) -> None:
    for directory in ("fd", "fdinfo"):
        (root / "proc/1" / directory).mkdir(parents=True, exist_ok=True)
    if not (root / "proc/1/fd/4").is_symlink():
        os.symlink("/dev/dri/renderD128", root / "proc/1/fd/4")
    (root / "proc/1/fdinfo/4").write_text(text)


class Bench:
    def __init__(self, root: Path) -> None:
        self.now = S
        self.probe = IntelGpuProbe(root, clock=lambda: self.now, tree=lambda _: ())
        self.probe.discover()

    def values(self, address: str) -> dict[str, Value]:
        readings = {reading.device_id: reading.values for reading in self.probe.read(Targets(runtime_pids=(1,)))}
        return dict(zip(METRICS, readings[address], strict=True))


def test_an_integrated_gpu_uses_the_hosts_memory(tmp_path: Path) -> None:
    card(tmp_path, "card0", INTEGRATED)
    client(
        tmp_path,
        "drm-driver: i915\ndrm-client-id: 9\ndrm-pdev: 0000:00:02.0\ndrm-resident-system0: 6 KiB\n"
        "drm-resident-stolen-system0: 1 KiB\ndrm-engine-render: 700 ns\ndrm-engine-compute: 20 ns\n",
    )
    bench = Bench(tmp_path)
    (device,) = bench.probe.devices()
    assert (device.device_id, device.kind, device.memory_kind) == ("0000:00:02.0", "gpu", "shared")
    assert device.display_name == "Intel GPU 8086:46a6"
    assert device.driver_version == "i915"
    values = bench.values("0000:00:02.0")
    assert values["device_memory_runtime_bytes"] == 7 * 1024
    assert values["device_runtime_busy_ns"] == 720
    assert values["device_clock_hz"] == 1_300_000_000
    assert values["device_energy_mj"] is None
    assert "package" in bench.probe.gaps()["device_energy_mj"]


def test_a_discrete_gpu_has_its_own_memory_energy_and_temperature(tmp_path: Path) -> None:
    card(tmp_path, "card1", DISCRETE)
    text = (
        "drm-driver: xe\ndrm-client-id: 9\ndrm-pdev: 0000:03:00.0\ndrm-resident-vram0: 3 MiB\n"
        "drm-resident-gtt: 1 MiB\ndrm-cycles-ccs: {}\ndrm-total-cycles-ccs: {}\n"
    )
    client(tmp_path, text.format(100, 1000))
    bench = Bench(tmp_path)
    assert bench.probe.devices()[0].memory_kind == "dedicated"
    assert bench.values("0000:03:00.0") == {
        "device_memory_runtime_bytes": 3 * 2**20,
        "device_runtime_busy_ns": 0,
        "device_power_limit_w": 190.0,
        "device_energy_mj": 5000,
        "device_temperature_c": 55.0,
        "device_clock_hz": 2_400_000_000,
    }
    assert bench.probe.gaps() == {}
    bench.now += S // 4
    client(tmp_path, text.format(600, 2000))
    assert bench.values("0000:03:00.0")["device_runtime_busy_ns"] == S // 8


def test_the_packages_energy_stands_in_for_the_cards(tmp_path: Path) -> None:
    without = {name: text for name, text in DISCRETE.items() if "energy1" not in name}
    card(tmp_path, "card1", without | {"device/hwmon/hwmon5/energy2_input": "8000"})
    assert Bench(tmp_path).values("0000:03:00.0")["device_energy_mj"] == 8


def test_an_older_kernel_has_the_clock_elsewhere_and_a_sleeping_gpu_none(tmp_path: Path) -> None:
    files = {"device/uevent": INTEGRATED["device/uevent"], "gt_act_freq_mhz": "900"}
    node = card(tmp_path, "card0", files)
    bench = Bench(tmp_path)
    assert bench.values("0000:00:02.0")["device_clock_hz"] == 900_000_000
    (node / "gt_act_freq_mhz").write_text("0\n")
    assert bench.values("0000:00:02.0")["device_clock_hz"] is None
    assert "sleeps" in bench.probe.gaps()["device_clock_hz"]


def test_i915_tells_a_boards_memory(tmp_path: Path) -> None:
    card(
        tmp_path,
        "card0",
        {
            "device/uevent": "DRIVER=i915\nPCI_ID=8086:56A0\nPCI_SLOT_NAME=0000:04:00.0",
            "lmem_total_bytes": "17079205888",
            "device/hwmon/hwmon1/power1_max": "0",
        },
    )
    bench = Bench(tmp_path)
    assert bench.probe.devices()[0].memory_bytes == 17079205888
    assert bench.values("0000:04:00.0")["device_power_limit_w"] is None


def test_a_gpu_taken_away_is_left_out_and_the_others_read(tmp_path: Path) -> None:
    card(tmp_path, "card0", INTEGRATED)
    gone = card(tmp_path, "card1", DISCRETE)
    bench = Bench(tmp_path)
    shutil.rmtree(gone)
    assert [reading.device_id for reading in bench.probe.read(Targets())] == ["0000:00:02.0"]
    shutil.rmtree(tmp_path / "sys/class/drm/card0")
    with pytest.raises(Unavailable, match="taken away"):
        bench.probe.read(Targets())


def test_no_gpu_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    with pytest.raises(Unavailable, match="i915 and xe"):
        IntelGpuProbe(tmp_path).discover()
    with pytest.raises(Unavailable, match="Linux"):
        IntelGpuProbe(tmp_path / "nowhere").discover()


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)
