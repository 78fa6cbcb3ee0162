"""AMD GPUs from made-up trees: a board, a processor with graphics, one that sleeps and one that goes away."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable, Value
from benchfleet_agent.probes.amdgpu import METRICS, AmdGpuProbe
from benchfleet_agent.probes.drm_clients import KFD

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the trees need symbolic links")

GIB = 2**30
BOARD = {
    "uevent": "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:03:00.0",
    "mem_info_vram_total": str(24 * GIB),
    "mem_info_vram_used": str(5 * GIB),
    "mem_info_gtt_used": "1000",
    "gpu_busy_percent": "97",
    "mem_busy_percent": "40",
    "power/runtime_status": "active",
    "hwmon/hwmon3/name": "amdgpu",
    "hwmon/hwmon3/power1_average": "303000000",
    "hwmon/hwmon3/power1_cap": "327000000",
    "hwmon/hwmon3/temp1_input": "61000",
    "hwmon/hwmon3/freq1_input": "2304000000",
    "hwmon/hwmon3/freq2_input": "1249000000",
}
APU = {
    "uevent": "DRIVER=amdgpu\nPCI_ID=1002:1586\nPCI_SLOT_NAME=0000:C5:00.0",
    "mem_info_vram_total": str(GIB // 2),
    "mem_info_vram_used": "300",
    "mem_info_gtt_used": "7000",
    "gpu_busy_percent": "3",
    "hwmon/hwmon4/in1_input": "800",
    "hwmon/hwmon4/power1_input": "15000000",
    "hwmon/hwmon4/energy1_input": "123456",
}
PCI_IDS = "1001  Other\n\t744c  Wrong\n1002  AMD/ATI\n\t744b  Near\n\t744c  Navi 31 [RX 7900 XTX]\n\t\t1002 0e3b  Sub\n"


def card(root: Path, name: str, files: dict[str, str]) -> Path:
    for file, text in files.items():
        path = root / "sys/class/drm" / name / "device" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root / "sys/class/drm" / name / "device"


def client(root: Path, address: str, engine: str = "drm-engine-compute:\t500 ns\n") -> None:
    for directory in ("fd", "fdinfo"):
        (root / "proc/1" / directory).mkdir(parents=True, exist_ok=True)
    os.symlink("/dev/dri/renderD128", root / "proc/1/fd/4")
    (root / "proc/1/fdinfo/4").write_text(
        f"drm-driver:\tamdgpu\ndrm-client-id:\t3\ndrm-pdev:\t{address}\ndrm-resident-vram:\t2 MiB\n"
        f"drm-resident-gtt:\t1 KiB\ndrm-resident-cpu:\t9 KiB\n{engine}"
    )


def probe_of(root: Path) -> AmdGpuProbe:
    probe = AmdGpuProbe(root, tree=lambda _: ())
    probe.discover()
    return probe


def values_of(probe: AmdGpuProbe, *runtime_pids: int) -> dict[str, dict[str, Value]]:
    readings = probe.read_at_edge(Targets(runtime_pids=runtime_pids))
    return {reading.device_id: dict(zip(METRICS, reading.values, strict=True)) for reading in readings}


def test_a_board(tmp_path: Path) -> None:
    card(tmp_path, "card1", BOARD)
    (tmp_path / "sys/class/drm/card1-DP-1").mkdir()
    client(tmp_path, "0000:03:00.0")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.18.1\n")
    (tmp_path / "usr/share/hwdata").mkdir(parents=True)
    (tmp_path / "usr/share/hwdata/pci.ids").write_text(PCI_IDS)
    probe = probe_of(tmp_path)
    (device,) = probe.devices()
    assert (device.device_id, device.kind, device.display_name) == ("0000:03:00.0", "gpu", "Navi 31 [RX 7900 XTX]")
    assert (device.driver_version, device.memory_bytes, device.memory_kind) == ("6.18.1", 24 * GIB, "dedicated")
    assert values_of(probe, 1)["0000:03:00.0"] == {
        "device_memory_used_bytes": 5 * GIB,
        "device_shared_memory_bytes": 1000,
        "device_memory_runtime_bytes": 2 * 2**20,
        "device_runtime_busy_ns": 500,
        "device_busy_ratio": 0.97,
        "device_memory_busy_ratio": 0.4,
        "device_power_w": None,
        "device_power_average_w": 303.0,
        "device_power_limit_w": 327.0,
        "device_energy_mj": None,
        "device_temperature_c": 61.0,
        "device_clock_hz": 2_304_000_000,
        "device_memory_clock_hz": 1_249_000_000,
        "device_module_power_w": None,
    }
    assert set(probe.gaps()) == {"device_power_w", "device_energy_mj", "device_module_power_w"}


def test_graphics_of_a_processor_use_the_hosts_memory(tmp_path: Path) -> None:
    card(tmp_path, "card0", APU)
    client(tmp_path, "0000:c5:00.0", engine="")
    probe = probe_of(tmp_path)
    (device,) = probe.devices()
    assert (device.memory_kind, device.memory_bytes) == ("shared", None)
    assert device.display_name == "AMD GPU 1002:1586"
    values = values_of(probe, 1)["0000:c5:00.0"]
    assert values["device_memory_used_bytes"] == 7300
    assert values["device_memory_runtime_bytes"] == 2 * 2**20 + 1024
    assert values["device_runtime_busy_ns"] == 0


def test_power_of_the_whole_chip_is_not_called_that_of_its_graphics(tmp_path: Path) -> None:
    card(tmp_path, "card0", APU)
    probe = probe_of(tmp_path)
    values = values_of(probe, 1)["0000:c5:00.0"]
    assert values["device_module_power_w"] == 15.0
    for name in ("device_power_w", "device_power_average_w", "device_energy_mj"):
        assert values[name] is None
        assert "whole chip" in probe.gaps()[name]


def test_a_gap_of_one_gpu_names_it(tmp_path: Path) -> None:
    card(tmp_path, "card0", APU)
    card(tmp_path, "card1", BOARD)
    probe = probe_of(tmp_path)
    values_of(probe, 1)
    assert "device_module_power_w@0000:03:00.0" in probe.gaps()
    assert "device_power_average_w@0000:c5:00.0" in probe.gaps()
    both = probe.gaps()["device_energy_mj"]
    assert "no energy counter" in both, "of the board"
    assert "whole chip" in both, "of the processor"


def test_a_sleeping_gpu_is_not_woken(tmp_path: Path) -> None:
    card(tmp_path, "card1", BOARD | {"power/runtime_status": "suspended"})
    probe = probe_of(tmp_path)
    values = values_of(probe, 1)["0000:03:00.0"]
    assert values["device_memory_used_bytes"] == 5 * GIB
    assert values["device_busy_ratio"] is None
    assert "sleeps" in probe.gaps()["device_temperature_c"]


def test_rocms_queues_are_unknown_rather_than_idle(tmp_path: Path) -> None:
    card(tmp_path, "card1", BOARD)
    client(tmp_path, "0000:03:00.0", engine="")
    os.symlink("/dev/kfd", tmp_path / "proc/1/fd/5")
    probe = probe_of(tmp_path)
    values = values_of(probe, 1)["0000:03:00.0"]
    assert values["device_runtime_busy_ns"] is None
    assert values["device_memory_runtime_bytes"] == 2 * 2**20
    assert probe.gaps()["device_runtime_busy_ns"] == KFD


def test_garbage_is_none(tmp_path: Path) -> None:
    card(
        tmp_path,
        "card1",
        BOARD
        | {
            "gpu_busy_percent": "255",
            "mem_info_vram_used": "-1",
            "hwmon/hwmon3/power1_average": "4294967295000000",
            "hwmon/hwmon3/temp1_input": "511000",
            "hwmon/hwmon3/freq1_input": "n/a",
        },
    )
    probe = probe_of(tmp_path)
    values = values_of(probe, 1)["0000:03:00.0"]
    for name in (
        "device_busy_ratio",
        "device_memory_used_bytes",
        "device_power_average_w",
        "device_temperature_c",
        "device_clock_hz",
    ):
        assert values[name] is None
        assert probe.gaps()[name]


def test_a_gpu_taken_away_is_left_out_and_the_others_read(tmp_path: Path) -> None:
    card(tmp_path, "card0", APU)
    gone = card(tmp_path, "card1", BOARD)
    probe = probe_of(tmp_path)
    assert len(values_of(probe, 1)) == 2
    shutil.rmtree(gone)
    assert set(values_of(probe, 1)) == {"0000:c5:00.0"}
    shutil.rmtree(tmp_path / "sys/class/drm/card0")
    with pytest.raises(Unavailable, match="taken away"):
        probe.read(Targets())


def test_without_a_runtime_its_share_is_none_with_a_reason(tmp_path: Path) -> None:
    card(tmp_path, "card1", BOARD)
    probe = probe_of(tmp_path)
    assert values_of(probe)["0000:03:00.0"]["device_memory_runtime_bytes"] is None
    assert "no process" in probe.gaps()["device_runtime_busy_ns"]


def test_other_drivers_gpus_are_a_reason(tmp_path: Path) -> None:
    card(tmp_path, "card1", BOARD | {"uevent": "DRIVER=nouveau\nPCI_SLOT_NAME=0000:01:00.0"})
    with pytest.raises(Unavailable, match="modprobe amdgpu"):
        AmdGpuProbe(tmp_path).discover()
    with pytest.raises(Unavailable, match="Linux"):
        AmdGpuProbe(tmp_path / "nowhere").discover()


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)
