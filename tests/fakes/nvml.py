"""A made-up NVML: the part of pynvml the NVIDIA probe uses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class FakeError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeNvml:
    """The part of pynvml the probe uses; ``errors`` maps a function's name to the code it fails with."""

    NVMLError = FakeError
    NVML_SUCCESS = 0
    NVML_ERROR_UNINITIALIZED, NVML_ERROR_INVALID_ARGUMENT, NVML_ERROR_NOT_SUPPORTED = 1, 2, 3
    NVML_ERROR_NO_PERMISSION, NVML_ERROR_RESET_REQUIRED = 4, 16
    NVML_ERROR_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED, NVML_ERROR_LIBRARY_NOT_FOUND = 6, 9, 12
    NVML_ERROR_FUNCTION_NOT_FOUND, NVML_ERROR_GPU_IS_LOST, NVML_ERROR_LIB_RM_VERSION_MISMATCH = 13, 15, 18
    NVML_ERROR_NO_DATA, NVML_ERROR_ARGUMENT_VERSION_MISMATCH, NVML_ERROR_NOT_READY = 21, 25, 27
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, count: int = 1) -> None:
        self.nvmlMemory_v2 = 0x02000028
        self.count = count
        self.errors: dict[str, int] = {}
        self.calls: list[str] = []
        self.compute: list[Any] = [SimpleNamespace(pid=10, usedGpuMemory=600), SimpleNamespace(pid=99, usedGpuMemory=1)]
        self.graphics: list[Any] = []
        self.utilization: list[Any] = [sample(10, 30), sample(11, 12), sample(99, 50)]
        self.architecture, self.capability = 10, (9, 0)
        self.name = "Fake GPU"
        self.lost: set[int] = set()
        self.mig_slots: list[Any] = []
        self.refused_fields: set[int] = set()
        self.refuses_memory_v2 = False
        self.module_power_mw: int | None = None
        self.event_reasons = 0x4 | 0x1 | 0x40

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append(name)
            if name in self.errors:
                raise FakeError(self.errors[name])
            if arguments and arguments[0] in self.lost:
                raise FakeError(self.NVML_ERROR_GPU_IS_LOST)
            if self.refuses_memory_v2 and keywords.get("version"):
                raise FakeError(self.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
            return self.answer(name, *arguments, **keywords)

        return call

    def field(self, number: int, scope: int = 0) -> Any:
        values = {186: 123_456, 185: 120_000, 74: 3_000, 75: 77, 269: 500, 270: 20, 271: 7}
        refused = number in self.refused_fields
        if scope:
            refused = number != 186 or self.module_power_mw is None
            values[186] = self.module_power_mw or 0
        kind, member = (1, "uiVal") if number in {185, 186} else (3, "ullVal")
        return SimpleNamespace(
            fieldId=number,
            nvmlReturn=self.NVML_ERROR_NOT_SUPPORTED if refused else self.NVML_SUCCESS,
            valueType=kind,
            value=SimpleNamespace(**{member: values[number]}),
        )

    def answer(self, name: str, *arguments: Any, version: int | None = None) -> Any:
        answers: dict[str, Callable[[], Any]] = {
            "nvmlSystemGetDriverVersion": lambda: b"610.57",
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda: arguments[0],
            "nvmlDeviceGetHandleByUUID": lambda: self.by_uuid(arguments[0]),
            "nvmlDeviceGetUUID": lambda: f"GPU-{arguments[0]}",
            "nvmlDeviceGetName": lambda: self.name,
            "nvmlDeviceGetMigMode": lambda: [int(bool(self.mig_slots)), 0],
            "nvmlDeviceGetMaxMigDeviceCount": lambda: len(self.mig_slots),
            "nvmlDeviceGetMigDeviceHandleByIndex": lambda: self.mig_slot(arguments[1]),
            "nvmlDeviceGetMemoryInfo": lambda: SimpleNamespace(
                total=8_000, used=700 if version else 1_000, **({"reserved": 300} if version else {})
            ),
            "nvmlDeviceGetMemoryBusWidth": lambda: 384,
            "nvmlDeviceGetMaxClockInfo": lambda: 10_501,
            "nvmlDeviceGetArchitecture": lambda: self.architecture,
            "nvmlDeviceGetCudaComputeCapability": lambda: self.capability,
            "nvmlDeviceGetUtilizationRates": lambda: SimpleNamespace(gpu=37, memory=5),
            "nvmlDeviceGetFieldValues": lambda: [self.field(*asked) for asked in arguments[1]],
            "nvmlDeviceGetPowerUsage": lambda: 99_000,
            "nvmlDeviceGetEnforcedPowerLimit": lambda: 450_000,
            "nvmlDeviceGetTotalEnergyConsumption": lambda: 5_000_000_000_123,
            "nvmlDeviceGetTemperature": lambda: 61,
            "nvmlDeviceGetClockInfo": lambda: {1: 2_520, 2: 10_501}[arguments[1]],
            "nvmlDeviceGetCurrentClocksEventReasons": lambda: self.event_reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda: self.event_reasons,
            "nvmlDeviceGetProcessUtilization": lambda: self.utilization,
            "nvmlDeviceGetComputeRunningProcesses": lambda: self.compute,
            "nvmlDeviceGetGraphicsRunningProcesses": lambda: self.graphics,
        }
        return answers.get(name, lambda: None)()

    def by_uuid(self, uuid: str) -> int:
        handle = int(uuid.removeprefix("GPU-"))
        if handle in self.lost:
            raise FakeError(self.NVML_ERROR_GPU_IS_LOST)
        return handle

    def mig_slot(self, slot: int) -> Any:
        if self.mig_slots[slot] is None:
            raise FakeError(self.NVML_ERROR_NOT_FOUND)
        return self.mig_slots[slot]


NOW_US = 1_700_000_000_000_000


def sample(pid: int, percent: int, *, age_us: int = 100_000) -> Any:
    return SimpleNamespace(pid=pid, smUtil=percent, timeStamp=NOW_US - age_us)
