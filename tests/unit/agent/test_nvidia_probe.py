"""The NVIDIA probe against a made-up driver: units, rates, and every way a driver may refuse."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from benchfleet.samples import BY_NAME, THROTTLE_REASONS
from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.nvidia import METRICS, NvidiaProbe
from benchfleet_agent.probes.nvml_fields import memory_bandwidth_bytes_per_s, throttle_reasons
from fakes.nvml import NOW_US, FakeNvml, sample

S = 1_000_000_000
RUNTIME = Targets(runtime_pids=(10,))


class Clock:
    now = 100 * S

    def __call__(self) -> int:
        return self.now


def make(nvml: FakeNvml, *, foreign: bool = False, clock: Clock | None = None) -> NvidiaProbe:
    probe = NvidiaProbe(
        nvml,
        clock=clock or Clock(),
        wall_clock=lambda: NOW_US * 1_000,
        tree=lambda roots: (11,),
        foreign_ids=lambda: foreign,
        host_memory=lambda: 128 << 30,
    )
    probe.discover()
    return probe


def read(probe: NvidiaProbe, targets: Targets = RUNTIME) -> dict[str, Any]:
    return dict(zip(probe.metrics(), probe.read_at_edge(targets)[0].values, strict=True))


OWN_POWER = {"device_module_power_w": "the driver tells the GPU's own power"}


def test_units_and_identity() -> None:
    probe = make(FakeNvml())
    assert read(probe) == {
        "device_memory_used_bytes": 700,
        "device_memory_reserved_bytes": 300,
        "device_memory_runtime_bytes": 600,
        "device_busy_ratio": 0.37,
        "device_memory_busy_ratio": 0.05,
        "device_runtime_busy_ratio": pytest.approx(0.42),
        "device_power_w": 123.456,
        "device_power_average_w": 120.0,
        "device_power_limit_w": 450.0,
        "device_energy_mj": 5_000_000_000_123,
        "device_temperature_c": 61.0,
        "device_clock_hz": 2.52e9,
        "device_memory_clock_hz": 10.501e9,
        "device_throttle_reasons": 1 | 2,
        "device_power_throttle_ns": 3_007,
        "device_thermal_throttle_ns": 520,
        "device_module_power_w": None,
    }
    assert set(METRICS) <= set(BY_NAME)
    (device,) = probe.devices()
    assert (device.device_id, device.kind, device.driver_version, device.memory_bytes) == (
        "GPU-0",
        "gpu",
        "610.57",
        8_000,
    )
    assert device.memory_kind == "dedicated"
    assert device.memory_bandwidth_bytes_per_s == pytest.approx(1008e9, rel=1e-3)
    assert probe.gaps() == OWN_POWER


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
    for once_a_second in ("Temperature", "ProcessUtilization", "EnforcedPowerLimit"):
        assert nvml.calls.count(f"nvmlDeviceGet{once_a_second}") == 10
    assert "nvmlDeviceGetComputeRunningProcesses" not in nvml.calls
    probe.read_at_edge(RUNTIME)
    assert nvml.calls.count("nvmlDeviceGetComputeRunningProcesses") == 1


@pytest.mark.parametrize(
    ("function", "metrics"),
    [
        ("nvmlDeviceGetMemoryInfo", {"device_memory_used_bytes", "device_memory_reserved_bytes"}),
        ("nvmlDeviceGetUtilizationRates", {"device_busy_ratio", "device_memory_busy_ratio"}),
        ("nvmlDeviceGetTotalEnergyConsumption", {"device_energy_mj"}),
        ("nvmlDeviceGetTemperature", {"device_temperature_c"}),
        ("nvmlDeviceGetClockInfo", {"device_clock_hz", "device_memory_clock_hz"}),
        ("nvmlDeviceGetEnforcedPowerLimit", {"device_power_limit_w"}),
        ("nvmlDeviceGetProcessUtilization", {"device_runtime_busy_ratio"}),
        ("nvmlDeviceGetComputeRunningProcesses", {"device_memory_runtime_bytes"}),
    ],
)
@pytest.mark.parametrize("code", [3, 4, 13, 25])
def test_a_refused_metric_is_absent_with_a_reason_and_asked_once(function: str, metrics: set[str], code: int) -> None:
    nvml = FakeNvml()
    nvml.errors[function] = code
    probe = make(nvml)
    values = read(probe)
    assert {name for name, value in values.items() if value is None} == metrics | OWN_POWER.keys()
    gaps = dict(probe.gaps().items() - OWN_POWER.items())
    assert set(gaps) == metrics
    assert all(f"code {code}" in reason for reason in gaps.values())
    count = nvml.calls.count(function)
    read(probe)
    assert nvml.calls.count(function) == count


def test_a_driver_that_cannot_tell_its_own_reserve_says_what_is_in_use_with_it() -> None:
    nvml = FakeNvml()
    nvml.refuses_memory_v2 = True
    probe = make(nvml)
    assert [read(probe)["device_memory_used_bytes"] for _ in range(2)] == [1_000, 1_000]
    assert set(probe.gaps()) == {"device_memory_reserved_bytes", *OWN_POWER}
    assert "device_memory_used_bytes holds it" in probe.gaps()["device_memory_reserved_bytes"]
    assert nvml.calls.count("nvmlDeviceGetMemoryInfo") == 1 + 3, "once for the total, once in vain"


def test_power_of_a_module_is_read_where_there_is_no_other_and_never_called_the_gpus() -> None:
    nvml = FakeNvml()
    nvml.refused_fields = {185, 186}
    nvml.errors["nvmlDeviceGetPowerUsage"] = nvml.NVML_ERROR_NOT_SUPPORTED
    nvml.module_power_mw = 640_000
    values = read(make(nvml))
    assert [values[f"device_{name}_w"] for name in ("power", "power_average", "module_power")] == [None, None, 640.0]
    nvml.module_power_mw = None
    probe = make(nvml)
    assert read(probe)["device_module_power_w"] is None
    assert "code 3 for field 186" in probe.gaps()["device_module_power_w"]


def test_no_figure_this_time_is_no_refusal() -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlDeviceGetUtilizationRates"] = nvml.NVML_ERROR_NOT_FOUND
    probe = make(nvml)
    assert read(probe)["device_busy_ratio"] is None
    nvml.errors.clear()
    assert read(probe)["device_busy_ratio"] == 0.37


@pytest.mark.parametrize("how", ["field", "call"])
@pytest.mark.parametrize(
    ("architecture", "capability", "metric", "absent"),
    [
        (6, (7, 5), "device_power_w", "device_power_average_w"),  # Turing
        (7, (8, 0), "device_power_w", "device_power_average_w"),  # A100
        (7, (8, 6), "device_power_average_w", "device_power_w"),  # GeForce 30
        (None, (7, 0), "device_power_w", "device_power_average_w"),
    ],
)
def test_a_driver_without_power_fields_gives_what_the_old_call_means_on_that_gpu(
    how: str, architecture: int | None, capability: tuple[int, int], metric: str, absent: str
) -> None:
    nvml = FakeNvml()
    nvml.capability = capability
    if architecture is None:
        nvml.errors["nvmlDeviceGetArchitecture"] = nvml.NVML_ERROR_FUNCTION_NOT_FOUND
    else:
        nvml.architecture = architecture
    if how == "field":
        nvml.refused_fields = {185, 186}
    else:
        nvml.errors["nvmlDeviceGetFieldValues"] = nvml.NVML_ERROR_FUNCTION_NOT_FOUND
    probe = make(nvml)
    values = read(probe)
    assert (values[metric], values[absent]) == (99.0, None)
    assert metric in probe.gaps()[absent]


def test_throttle_times_fall_back_and_say_when_there_are_none() -> None:
    nvml = FakeNvml()
    nvml.refused_fields = {269, 270, 271}
    assert (read(make(nvml))["device_power_throttle_ns"], read(make(nvml))["device_thermal_throttle_ns"]) == (3_000, 77)
    nvml.refused_fields |= {74, 75}
    probe = make(nvml)
    assert read(probe)["device_thermal_throttle_ns"] is None
    assert {"device_power_throttle_ns", "device_thermal_throttle_ns"} <= set(probe.gaps())


@pytest.mark.parametrize(
    ("mask", "words"),
    [(0x0, []), (0x1 | 0x2 | 0x10 | 0x100, []), (0x4, ["power"]), (0x20, ["thermal"]), (0x48, ["thermal", "hardware"]),
     (0x80, ["power_brake"]), (0x200, ["board"]), (0x400, ["reliability"])],
)  # fmt: skip
def test_only_what_slows_a_gpu_down_is_a_throttle_reason(mask: int, words: list[str]) -> None:
    bits = throttle_reasons(mask)
    assert [word for bit, word in THROTTLE_REASONS.items() if bits & bit] == words


def test_event_reasons_under_their_old_name() -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlDeviceGetCurrentClocksEventReasons"] = nvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert read(make(nvml))["device_throttle_reasons"] == 3


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], 0.0),
        ([sample(99, 90)], 0.0),
        ([sample(10, 40)], 0.4),
        ([sample(10, 40, age_us=2_000_000)], 0.0),  # what a process did long ago lingers in the driver
        ([sample(10, 40, age_us=900_000), sample(10, 20)], 0.2),
        ([sample(10, 20), sample(10, 40, age_us=900_000)], 0.2),
        ([sample(10, 70), sample(11, 60)], 1.0),
        ([sample(10, 4_000_000_000)], None),
    ],
)
def test_the_runtimes_share_of_a_gpu(samples: list[Any], expected: float | None) -> None:
    nvml = FakeNvml()
    nvml.utilization = samples
    assert read(make(nvml))["device_runtime_busy_ratio"] == expected


@pytest.mark.parametrize("code", [0, 6])  # the binding raises "success" when the driver names nobody
def test_nobody_on_the_gpu_is_no_share_and_no_failure(code: int) -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlDeviceGetProcessUtilization"] = code
    assert read(make(nvml))["device_runtime_busy_ratio"] == 0.0
    probe = make(nvml, foreign=True)
    assert read(probe)["device_runtime_busy_ratio"] is None
    assert "--pid=host" in probe.gaps()["device_runtime_busy_ratio"]


@pytest.mark.parametrize(
    ("width", "clock_mhz", "gb_per_s"),
    [(384, 10_501, 1_008), (5_120, 2_619, 3_352), (256, 5_001, 320), (None, 10_501, None), (384, None, None)],
)
def test_memory_bandwidth_is_that_of_the_data_sheets(
    width: int | None, clock_mhz: int | None, gb_per_s: float | None
) -> None:
    found = memory_bandwidth_bytes_per_s(width, clock_mhz)
    assert found == (None if gb_per_s is None else pytest.approx(gb_per_s * 1e9, rel=1e-3))


def test_one_memory_with_the_cpu_needs_a_known_name_and_a_refusal() -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlDeviceGetMemoryInfo"] = nvml.NVML_ERROR_NOT_SUPPORTED
    assert make(nvml).devices()[0].memory_kind == ""
    nvml.name = "NVIDIA GB10"
    probe = make(nvml)
    device = probe.devices()[0]
    assert (device.memory_kind, device.memory_bytes) == ("unified", 128 << 30)
    assert device.memory_bandwidth_bytes_per_s is None
    values = read(probe)
    assert (values["device_memory_used_bytes"], values["device_memory_runtime_bytes"]) == (None, 600)
    assert "host_available_bytes" in probe.gaps()["device_memory_used_bytes"]
    nvml.errors.clear()
    assert make(nvml).devices()[0].memory_kind == "dedicated", "a name alone proves nothing"


def test_mig_instances_have_memory_of_their_own_and_nothing_else() -> None:
    nvml = FakeNvml()
    nvml.mig_slots = [70, None, 71]
    probe = make(nvml)
    parent, *instances = probe.devices()
    assert parent.memory_bytes is None
    assert "MIG" in parent.display_name
    assert [(device.device_id, device.memory_bytes) for device in instances] == [("GPU-70", 8_000), ("GPU-71", 8_000)]
    readings = {
        reading.device_id: dict(zip(METRICS, reading.values, strict=True)) for reading in probe.read_at_edge(RUNTIME)
    }
    measured = {name for name, value in readings["GPU-70"].items() if value is not None}
    assert measured == {"device_memory_used_bytes", "device_memory_reserved_bytes", "device_memory_runtime_bytes"}
    assert readings["GPU-0"]["device_power_w"] == 123.456
    assert "whole GPU" in probe.gaps()["device_busy_ratio@GPU-70"]
    assert "device_busy_ratio" not in probe.gaps(), "one device has it"


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
    assert probe.gaps() == OWN_POWER


def test_a_lost_gpu_is_out_and_the_others_go_on_until_it_is_back() -> None:
    nvml, clock = FakeNvml(2), Clock()
    probe = make(nvml, clock=clock)
    nvml.lost = {1}
    assert [reading.device_id for reading in probe.read(RUNTIME)] == ["GPU-0"]
    assert "stopped answering" in probe.gaps()["device_power_w@GPU-1"]
    assert len(probe.devices()) == 2
    nvml.calls.clear()
    clock.now += S
    probe.read(RUNTIME)
    assert "nvmlDeviceGetHandleByUUID" not in nvml.calls, "it is not asked all the time"
    clock.now += 5 * S
    assert [reading.device_id for reading in probe.read(RUNTIME)] == ["GPU-0"]
    nvml.lost = set()
    clock.now += 10 * S
    assert [reading.device_id for reading in probe.read(RUNTIME)] == ["GPU-0", "GPU-1"]
    assert probe.gaps() == OWN_POWER


def test_a_gpu_lost_before_the_start_does_not_hide_the_others() -> None:
    nvml = FakeNvml(2)
    nvml.lost = {0}
    assert [reading.device_id for reading in make(nvml).read(RUNTIME)] == ["GPU-1"]
    nvml.lost = {0, 1}
    with pytest.raises(Unavailable, match="no questions about its GPU 1"):
        make(nvml)


def test_losing_the_only_gpu_fails_the_reading_and_it_can_be_found_again() -> None:
    nvml = FakeNvml()
    probe = make(nvml)
    nvml.errors["nvmlDeviceGetUtilizationRates"] = nvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(Unavailable, match="stopped answering"):
        probe.read(RUNTIME)
    nvml.errors.clear()
    probe.discover()
    assert probe.read(RUNTIME)
    assert nvml.calls.count("nvmlInit") == nvml.calls.count("nvmlShutdown") + 1


def test_a_call_that_fails_for_no_reason_is_tried_again_a_few_times() -> None:
    nvml = FakeNvml()
    nvml.errors["nvmlDeviceGetTotalEnergyConsumption"] = 999
    probe = make(nvml)
    for _ in range(2):
        nvml.errors["nvmlDeviceGetTotalEnergyConsumption"] = 999
        for _ in range(4):
            assert read(probe)["device_energy_mj"] is None
            assert "device_energy_mj" not in probe.gaps()
        nvml.errors.clear()
        assert read(probe)["device_energy_mj"], "one success and the count begins anew"
    nvml.errors["nvmlDeviceGetTotalEnergyConsumption"] = 999
    for _ in range(5):
        read(probe)
    assert "5 times in a row" in probe.gaps()["device_energy_mj"]
    nvml.errors.clear()
    assert read(make(nvml))["device_energy_mj"]


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
