"""The NVIDIA probe against a made-up driver: units, rates, and every way a driver may refuse."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.nvidia import METRICS, NvidiaProbe

S = 1_000_000_000
RUNTIME = Targets(runtime_pids=(10,))


class FakeError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeNvml:
    """The part of pynvml the probe uses; ``errors`` maps a function's name to the code it fails with."""

    NVMLError = FakeError
    NVML_SUCCESS = 0
    NVML_ERROR_INVALID_ARGUMENT, NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION = 2, 3, 4
    NVML_ERROR_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND = 6, 9, 12
    NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_LIB_RM_VERSION_MISMATCH = 13, 15, 18
    NVML_ERROR_NO_DATA, NVML_ERROR_ARGUMENT_VERSION_MISMATCH, NVML_ERROR_NOT_READY = 21, 25, 27
    NVML_FI_DEV_POWER_INSTANT, NVML_TEMPERATURE_GPU = 186, 0

    def __init__(self, count: int = 1) -> None:
        self.nvmlMemory_v2 = 0x02000028
        self.count = count
        self.errors: dict[str, int] = {}
        self.calls: list[str] = []
        self.compute: list[Any] = [SimpleNamespace(pid=10, usedGpuMemory=600), SimpleNamespace(pid=99, usedGpuMemory=1)]
        self.graphics: list[Any] = []
        self.field_return = 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append(name)
            if name in self.errors:
                raise FakeError(self.errors[name])
            return self.answer(name, *arguments, **keywords)

        return call

    def answer(self, name: str, *arguments: Any, version: int | None = None) -> Any:
        field = SimpleNamespace(nvmlReturn=self.field_return, value=SimpleNamespace(uiVal=123_456))
        answers: dict[str, Callable[[], Any]] = {
            "nvmlSystemGetDriverVersion": lambda: b"610.57",
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda: arguments[0],
            "nvmlDeviceGetUUID": lambda: f"GPU-{arguments[0]}",
            "nvmlDeviceGetName": lambda: "Fake GPU",
            "nvmlDeviceGetMemoryInfo": lambda: SimpleNamespace(total=8_000, used=700 if version else 1_000),
            "nvmlDeviceGetUtilizationRates": lambda: SimpleNamespace(gpu=37, memory=5),
            "nvmlDeviceGetFieldValues": lambda: [field],
            "nvmlDeviceGetPowerUsage": lambda: 99_000,
            "nvmlDeviceGetTotalEnergyConsumption": lambda: 5_000_000_000_123,
            "nvmlDeviceGetTemperature": lambda: 61,
            "nvmlDeviceGetComputeRunningProcesses": lambda: self.compute,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda: self.graphics,
        }
        return answers.get(name, lambda: None)()


class Clock:
    now = 100 * S

    def __call__(self) -> int:
        return self.now


def make(nvml: FakeNvml, *, foreign: bool = False, clock: Clock | None = None) -> NvidiaProbe:
    probe = NvidiaProbe(nvml, clock=clock or Clock(), tree=lambda roots: (11,), foreign_ids=lambda: foreign)
    probe.discover()
    return probe


def read(probe: NvidiaProbe, targets: Targets = RUNTIME) -> dict[str, Any]:
    return dict(zip(probe.metrics(), probe.read_at_edge(targets)[0].values, strict=True))


def test_units_and_identity() -> None:
    probe = make(FakeNvml())
    assert read(probe) == {
        "device_memory_used_bytes": 700,
        "device_memory_runtime_bytes": 600,
        "device_busy_ratio": 0.37,
        "device_power_w": 123.456,
        "device_energy_mj": 5_000_000_000_123,
        "device_temperature_c": 61.0,
    }
    assert set(METRICS) <= set(BY_NAME)
    (device,) = probe.devices()
    assert (device.device_id, device.kind, device.driver_version, device.memory_bytes) == (
        "GPU-0",
        "gpu",
        "610.57",
        8_000,
    )
    assert probe.gaps() == {}


def test_every_gpu_has_a_reading() -> None:
    assert [reading.device_id for reading in make(FakeNvml(2)).read(RUNTIME)] == ["GPU-0", "GPU-1"]


def test_costly_readings_are_rare() -> None:
    nvml, clock = FakeNvml(), Clock()
    probe = make(nvml, clock=clock)
    nvml.calls.clear()
    for _ in range(100):
        probe.read(RUNTIME)
        clock.now += S // 10
    assert nvml.calls.count("nvmlDeviceGetUtilizationRates") == 100
    assert nvml.calls.count("nvmlDeviceGetTemperature") == 10
    assert nvml.calls.count("nvmlDeviceGetComputeRunningProcesses") == 2
    probe.read_at_edge(RUNTIME)
    assert nvml.calls.count("nvmlDeviceGetComputeRunningProcesses") == 3


@pytest.mark.parametrize(
    ("function", "metric"),
    [
        ("nvmlDeviceGetMemoryInfo", "device_memory_used_bytes"),
        ("nvmlDeviceGetUtilizationRates", "device_busy_ratio"),
        ("nvmlDeviceGetTotalEnergyConsumption", "device_energy_mj"),
        ("nvmlDeviceGetTemperature", "device_temperature_c"),
        ("nvmlDeviceGetComputeRunningProcesses", "device_memory_runtime_bytes"),
    ],
)
@pytest.mark.parametrize("code", [3, 4, 13, 25])
def test_a_refused_metric_is_absent_with_a_reason_and_asked_once(function: str, metric: str, code: int) -> None:
    nvml = FakeNvml()
    nvml.errors[function] = code
    probe = make(nvml)
    values = read(probe)
    assert {name for name, value in values.items() if value is None} == {metric}
    assert set(probe.gaps()) == {metric}
    assert f"code {code}" in probe.gaps()[metric]


def test_no_figure_this_time_is_no_refusal() -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlDeviceGetUtilizationRates"] = nvml.NVML_ERROR_NOT_FOUND
    probe = make(nvml)
    assert read(probe)["device_busy_ratio"] is None
    nvml.errors.clear()
    assert read(probe)["device_busy_ratio"] == 0.37


@pytest.mark.parametrize("how", ["field", "call"])
def test_power_falls_back_to_the_average(how: str) -> None:
    nvml = FakeNvml()
    if how == "field":
        nvml.field_return = nvml.NVML_ERROR_NOT_SUPPORTED
    else:
        nvml.errors["nvmlDeviceGetFieldValues"] = nvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert read(make(nvml))["device_power_w"] == 99.0


def test_processes_count_once_and_with_their_children() -> None:
    nvml = FakeNvml()
    nvml.compute = [SimpleNamespace(pid=10, usedGpuMemory=600), SimpleNamespace(pid=11, usedGpuMemory=40)]
    nvml.graphics = [SimpleNamespace(pid=10, usedGpuMemory=600)]
    assert read(make(nvml))["device_memory_runtime_bytes"] == 640


def test_windows_tells_no_memory_of_single_processes() -> None:
    nvml = FakeNvml()
    nvml.compute = [SimpleNamespace(pid=10, usedGpuMemory=None)]
    probe = make(nvml)
    assert read(probe)["device_memory_runtime_bytes"] is None
    assert "WDDM" in probe.gaps()["device_memory_runtime_bytes"]


@pytest.mark.parametrize("processes", [[], [SimpleNamespace(pid=4711, usedGpuMemory=9)]])
def test_nothing_of_ours_is_zero_unless_the_ids_are_another_namespaces(processes: list[Any]) -> None:
    nvml = FakeNvml()
    nvml.compute = processes
    assert read(make(nvml))["device_memory_runtime_bytes"] == 0
    probe = make(nvml, foreign=True)
    assert read(probe)["device_memory_runtime_bytes"] is None
    assert "--pid=host" in probe.gaps()["device_memory_runtime_bytes"]


def test_a_runtime_that_comes_later_is_still_attributed() -> None:
    probe = make(FakeNvml())
    assert read(probe, Targets())["device_memory_runtime_bytes"] is None
    assert "no process" in probe.gaps()["device_memory_runtime_bytes"]
    assert read(probe)["device_memory_runtime_bytes"] == 600
    assert probe.gaps() == {}


def test_a_lost_gpu_fails_the_reading_and_can_be_found_again() -> None:
    nvml = FakeNvml()
    probe = make(nvml)
    nvml.errors["nvmlDeviceGetUtilizationRates"] = nvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(FakeError):
        probe.read(RUNTIME)
    nvml.errors.clear()
    probe.discover()
    assert probe.read(RUNTIME)
    assert nvml.calls.count("nvmlInit") == nvml.calls.count("nvmlShutdown") + 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (12, "no NVIDIA driver library was found"),
        (9, "modprobe"),
        (18, "restart"),
        (4, "/dev/nvidia"),
        (999, "code 999"),
    ],
)
def test_a_missing_driver_is_said_with_advice(code: int, text: str) -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlInit"] = code
    with pytest.raises(Unavailable, match=text):
        make(nvml)


def test_a_driver_without_gpus_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="no GPU"):
        make(FakeNvml(0))


def test_wrong_or_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match="pip install nvidia-ml-py"):
        NvidiaProbe().discover()
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace())
    with pytest.raises(Unavailable, match="nvidia-ml-py3"):
        NvidiaProbe().discover()


def test_reading_without_discovery_is_unavailable() -> None:
    probe = NvidiaProbe(FakeNvml())
    probe.close()
    with pytest.raises(Unavailable):
        probe.read(RUNTIME)
