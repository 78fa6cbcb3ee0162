"""The NVIDIA probe through the real binding, against a small libnvidia-ml compiled here.

The library is loaded in a child process, as a driver would be: by its name, from the library path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMPILER = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
SOURCE = Path(__file__).with_name("fake_nvml.c")

pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs a C compiler and Linux's library path"
)

CHILD = """
import json, os
os.environ["FAKE_NVML_PID"] = str(os.getpid())
from benchfleet_agent.probes import Targets, describe
from benchfleet_agent.probes.nvidia import NvidiaProbe
described = describe([NvidiaProbe()])[0]
out = {"available": described.available, "reason": described.reason, "values": {}}
if described.available:
    probe = NvidiaProbe()
    probe.discover()
    for _ in range(5):
        readings = probe.read_at_edge(Targets(runtime_pids=(os.getpid(),)))
    out["values"] = {reading.device_id: dict(zip(probe.metrics(), reading.values)) for reading in readings}
    out["gaps"] = dict(probe.gaps())
    out["devices"] = [
        [d.device_id, d.memory_bytes, d.memory_kind, d.memory_bandwidth_bytes_per_s] for d in probe.devices()
    ]
    probe.close()
print(json.dumps(out))
"""

HUNG = """
import json, os, sys, threading
from pathlib import Path
hang = Path(os.environ["FAKE_NVML_HANG"])
os.environ["FAKE_NVML_PID"] = str(os.getpid())
from benchfleet_agent import sampler as module
from benchfleet_agent.probes.nvidia import NvidiaProbe
from benchfleet_agent.probes.system import SystemProbe
module.STALL_NS, module._WATCH_PERIOD_S, module._EDGE_PATIENCE_S = 200_000_000, 0.02, 0.1
arrived = {"nvidia": threading.Event(), "system": threading.Event()}
sampler = module.Sampler(
    [NvidiaProbe(), SystemProbe()], lambda batch: arrived[batch.probe_id].set(), fast_period_ms=10
)
module.FLUSH_PERIOD_NS = 0
sampler.start()
sampler.set_label(module.Label("c", "", "baseline"))
out = {"before": arrived["nvidia"].wait(20)}
hang.touch()
while not (stalled := sampler.unmeasured().get("device_busy_ratio", "")):
    pass
arrived["system"].clear()
out |= {"stalled": stalled, "others": arrived["system"].wait(20)}
hang.unlink()
while any(track.stalled for track in sampler._tracks):
    pass
arrived["nvidia"].clear()
out["after"] = arrived["nvidia"].wait(20)
sampler.stop()
print(json.dumps(out))
"""


def compile_library(folder: Path, *options: str) -> Path:
    assert COMPILER is not None
    command = [COMPILER, "-shared", "-fPIC", "-w", *options, "-Wl,-soname,libnvidia-ml.so.1", str(SOURCE)]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


def in_child(library: Path, program: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(library), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def probe_in_child(library: Path, scenario: str = "") -> dict[str, Any]:
    return in_child(library, CHILD, FAKE_NVML=scenario)


def test_everything_is_read_in_the_registrys_units(library: Path) -> None:
    answer = probe_in_child(library)
    assert answer["values"]["GPU-fake-0"] == {
        "device_memory_used_bytes": 1000,  # without the driver's reserve
        "device_memory_reserved_bytes": 500,
        "device_memory_runtime_bytes": 600,
        "device_busy_ratio": 0.42,
        "device_memory_busy_ratio": 0.07,
        "device_runtime_busy_ratio": 0.33,
        "device_power_w": 250.5,
        "device_power_average_w": 240.0,
        "device_power_limit_w": 350.0,
        "device_energy_mj": 9000000000001,
        "device_temperature_c": 55.0,
        "device_clock_hz": 2.52e9,
        "device_memory_clock_hz": 10.501e9,
        "device_throttle_reasons": 3,
        "device_power_throttle_ns": 5_000_000_000,
        "device_thermal_throttle_ns": 42,
        "device_module_power_w": None,
    }
    assert answer["devices"] == [["GPU-fake-0", 8000, "dedicated", pytest.approx(1008e9, rel=1e-3)]]
    assert set(answer["gaps"]) == {"device_module_power_w"}  # the GPU tells its own


def test_a_driver_without_instant_power_still_gives_the_average(library: Path) -> None:
    answer = probe_in_child(library, "average_power")
    assert answer["values"]["GPU-fake-0"]["device_power_w"] is None
    assert answer["values"]["GPU-fake-0"]["device_power_average_w"] == 240.0
    assert "device_power_average_w" in answer["gaps"]["device_power_w"]


def test_a_gpu_with_one_memory_with_the_cpu(library: Path) -> None:
    answer = probe_in_child(library, "unified")
    ((device_id, memory_bytes, *rest),) = answer["devices"]
    assert (device_id, rest) == ("GPU-fake-0", ["unified", None])
    assert memory_bytes > 1 << 28  # the host's
    assert answer["values"]["GPU-fake-0"]["device_memory_used_bytes"] is None
    assert "one memory with the CPU" in answer["gaps"]["device_memory_used_bytes"]
    assert answer["values"]["GPU-fake-0"]["device_memory_runtime_bytes"] == 600
    assert answer["values"]["GPU-fake-0"]["device_energy_mj"] == 9000000000001


def test_windows_driver_model_tells_no_memory_of_single_processes(library: Path) -> None:
    answer = probe_in_child(library, "wddm")
    assert answer["values"]["GPU-fake-0"]["device_memory_runtime_bytes"] is None
    assert answer["values"]["GPU-fake-0"]["device_memory_used_bytes"] == 1000
    assert "WDDM" in answer["gaps"]["device_memory_runtime_bytes"]


def test_a_divided_gpu_has_memory_by_instance_and_power_as_a_whole(library: Path) -> None:
    answer = probe_in_child(library, "mig")
    assert [row[:2] for row in answer["devices"]] == [["GPU-fake-0", None], ["MIG-fake-0", 2000], ["MIG-fake-1", 2000]]
    assert answer["values"]["MIG-fake-1"]["device_memory_used_bytes"] == 1000
    assert answer["values"]["MIG-fake-1"]["device_busy_ratio"] is None
    assert answer["values"]["GPU-fake-0"]["device_power_w"] == 250.5
    assert "whole GPU" in answer["gaps"]["device_busy_ratio@MIG-fake-1"]


def test_an_idle_gpu_has_a_share_of_nothing(library: Path) -> None:
    assert probe_in_child(library, "idle")["values"]["GPU-fake-0"]["device_runtime_busy_ratio"] == 0.0


def test_an_old_driver_lacks_what_it_lacks(tmp_path: Path) -> None:
    answer = probe_in_child(compile_library(tmp_path, "-DOLD_DRIVER"))
    values = answer["values"]["GPU-fake-0"]
    absent = {name for name, value in values.items() if value is None}
    assert absent == {
        "device_energy_mj",
        "device_memory_reserved_bytes",
        "device_module_power_w",
        "device_runtime_busy_ratio",
    }
    assert set(answer["gaps"]) == absent
    assert values["device_memory_used_bytes"] == 1500  # with the driver's reserve of 500
    assert values["device_throttle_reasons"] == 1
    assert answer["devices"] == [["GPU-fake-0", 8000, "dedicated", None]]


def test_a_card_that_falls_off_the_bus_is_out_and_the_other_goes_on(library: Path) -> None:
    answer = probe_in_child(library, "lost_later")
    assert set(answer["values"]) == {"GPU-fake-0"}
    assert answer["values"]["GPU-fake-0"]["device_busy_ratio"] == 0.42
    assert "stopped answering" in answer["gaps"]["device_power_w@GPU-fake-1"]
    assert "device_power_w" not in answer["gaps"]


def test_a_call_that_hangs_costs_the_gpu_only_and_only_until_it_returns(library: Path, tmp_path: Path) -> None:
    answer = in_child(library, HUNG, FAKE_NVML_HANG=str(tmp_path / "hang"))
    assert "telemetry stalled" in answer.pop("stalled")
    assert answer == {"before": True, "others": True, "after": True}


@pytest.mark.parametrize(
    ("scenario", "reason"), [("driver_not_loaded", "modprobe"), ("no_gpu", "no GPU"), ("lost", "lost")]
)
def test_a_driver_that_does_not_serve_is_unavailable_with_a_reason(library: Path, scenario: str, reason: str) -> None:
    answer = probe_in_child(library, scenario)
    assert not answer["available"]
    assert reason in answer["reason"]


def test_no_driver_at_all(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    assert "no NVIDIA driver library was found (libnvidia-ml.so.1" in probe_in_child(tmp_path)["reason"]
