"""NPUs from made-up trees of the drivers intel_vpu and amdxdna."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable, Value
from benchfleet_agent.probes.drm_clients import NO_ENGINE_TIME
from benchfleet_agent.probes.npu import METRICS, NpuProbe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the trees need symbolic links")

INTEL = {
    "uevent": "DRIVER=intel_vpu\nPCI_ID=8086:7D1D\nPCI_SLOT_NAME=0000:00:0b.0",
    "npu_busy_time_us": "1234567",
    "npu_memory_utilization": "98304000",
    "npu_current_frequency_mhz": "1400",
}
AMD = {"uevent": "DRIVER=amdxdna\nPCI_ID=1022:17F0\nPCI_SLOT_NAME=0000:c4:00.1", "vbnv": "NPU Strix Halo"}


def npu(root: Path, name: str, files: dict[str, str]) -> Path:
    for file, text in files.items():
        path = root / "sys/class/accel" / name / "device" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root / "sys/class/accel" / name / "device"


def client(root: Path, text: str) -> None:
    for directory in ("fd", "fdinfo"):
        (root / "proc/1" / directory).mkdir(parents=True, exist_ok=True)
    os.symlink("/dev/accel/accel0", root / "proc/1/fd/4")
    (root / "proc/1/fdinfo/4").write_text(text)


def values_of(probe: NpuProbe) -> dict[str, dict[str, Value]]:
    readings = probe.read(Targets(runtime_pids=(1,)))
    return {reading.device_id: dict(zip(METRICS, reading.values, strict=True)) for reading in readings}


def probe_of(root: Path) -> NpuProbe:
    probe = NpuProbe(root, tree=lambda _: ())
    probe.discover()
    return probe


def test_intels_npu(tmp_path: Path) -> None:
    npu(tmp_path, "accel0", INTEL)
    probe = probe_of(tmp_path)
    (device,) = probe.devices()
    assert (device.device_id, device.kind, device.memory_kind) == ("0000:00:0b.0", "npu", "shared")
    values = values_of(probe)["0000:00:0b.0"]
    assert values["device_busy_ns"] == 1_234_567_000
    assert values["device_memory_used_bytes"] == 98_304_000
    assert values["device_clock_hz"] == 1_400_000_000


def test_the_clocks_new_name_is_preferred_and_a_sleeping_npu_has_none(tmp_path: Path) -> None:
    path = npu(tmp_path, "accel0", INTEL | {"freq/current_freq": "1200"})
    probe = probe_of(tmp_path)
    assert values_of(probe)["0000:00:0b.0"]["device_clock_hz"] == 1_200_000_000
    for name in ("freq/current_freq", "npu_current_frequency_mhz"):
        (path / name).write_text("0\n")
    assert values_of(probe)["0000:00:0b.0"]["device_clock_hz"] is None
    assert "sleeps" in probe.gaps()["device_clock_hz"]


def test_what_an_older_driver_lacks_names_the_kernel_that_has_it(tmp_path: Path) -> None:
    npu(tmp_path, "accel0", {"uevent": INTEL["uevent"]})
    probe = probe_of(tmp_path)
    assert values_of(probe)["0000:00:0b.0"]["device_busy_ns"] is None
    assert "6.11" in probe.gaps()["device_busy_ns"]
    assert "6.15" in probe.gaps()["device_memory_used_bytes"]


def test_amds_npu_tells_what_processes_use(tmp_path: Path) -> None:
    npu(tmp_path, "accel0", AMD)
    client(
        tmp_path,
        "drm-driver: amdxdna_accel_driver\ndrm-client-id: 2\ndrm-pdev: 0000:c4:00.1\n"
        "drm-engine-npu-amdxdna: 250000000 ns\ndrm-total-memory: 8 MiB\n",
    )
    probe = probe_of(tmp_path)
    assert probe.devices()[0].display_name == "NPU Strix Halo"
    values = values_of(probe)["0000:c4:00.1"]
    assert values["device_runtime_busy_ns"] == 250_000_000
    assert values["device_memory_runtime_bytes"] == 8 * 2**20
    assert values["device_busy_ns"] is None
    assert "single processes" in probe.gaps()["device_busy_ns"]


def test_a_driver_without_engine_time_is_unknown_rather_than_idle(tmp_path: Path) -> None:
    npu(tmp_path, "accel0", AMD)
    client(tmp_path, "drm-driver: amdxdna_accel_driver\ndrm-client-id: 2\ndrm-pdev: 0000:c4:00.1\n")
    probe = probe_of(tmp_path)
    assert values_of(probe)["0000:c4:00.1"]["device_runtime_busy_ns"] is None
    assert probe.gaps()["device_runtime_busy_ns"] == NO_ENGINE_TIME


def test_an_npu_taken_away_is_left_out_and_the_others_read(tmp_path: Path) -> None:
    npu(tmp_path, "accel0", AMD)
    gone = npu(tmp_path, "accel1", INTEL)
    probe = probe_of(tmp_path)
    shutil.rmtree(gone)
    assert set(values_of(probe)) == {"0000:c4:00.1"}
    shutil.rmtree(tmp_path / "sys/class/accel/accel0")
    with pytest.raises(Unavailable, match="unloaded"):
        probe.read(Targets())


def test_no_npu_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    with pytest.raises(Unavailable, match="intel_vpu and amdxdna"):
        NpuProbe(tmp_path).discover()
    with pytest.raises(Unavailable, match="Linux"):
        NpuProbe(tmp_path / "nowhere").discover()


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)
