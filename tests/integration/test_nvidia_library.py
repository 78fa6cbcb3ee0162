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

pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs a C compiler and Linux's library path"
)

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;
typedef union { double d; int i; unsigned ui; unsigned long ul; unsigned long long ull; long long ll; } value;
typedef struct { unsigned field, scope; long long timestamp, latency; unsigned type; int ret; value v; } field_value;

static int scenario(const char *name) { const char *s = getenv("FAKE_NVML"); return s && strcmp(s, name) == 0; }
int nvmlInitWithFlags(unsigned flags) { return scenario("driver_not_loaded") ? 9 : 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "610.57", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = scenario("no_gpu") ? 0 : 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(uintptr_t)(i + 1); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { strncpy(s, "GPU-fake-0", n); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "Fake RTX", n); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory_v1 *m) {
    if (scenario("unified")) return NOT_SUPPORTED;
    m->total = 8000; m->free = 6500; m->used = 1500; return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *h, memory_v2 *m) {
    if (scenario("unified")) return NOT_SUPPORTED;
    m->total = 8000; m->reserved = 500; m->free = 6500; m->used = 1000; return 0;
}
int nvmlDeviceGetUtilizationRates(void *h, utilization *u) {
    if (scenario("lost")) return 15;
    u->gpu = 42; u->memory = 7; return 0;
}
int nvmlDeviceGetFieldValues(void *h, int n, field_value *f) {
    for (int i = 0; i < n; i++) {
        f[i].ret = (f[i].field == 186 && f[i].scope == 0 && !scenario("average_power")) ? 0 : NOT_SUPPORTED;
        f[i].type = 1; f[i].v.ui = 250500;
    }
    return 0;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { *mw = 200250; return 0; }
#ifndef OLD_DRIVER
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) { *mj = 9000000000001ULL; return 0; }
#endif
int nvmlDeviceGetTemperature(void *h, unsigned sensor, unsigned *t) { *t = 55; return 0; }
static int processes(unsigned *n, process *p) {
    if (!p) { *n = 1; return INSUFFICIENT_SIZE; }
    *n = 1; p[0].pid = (unsigned)atoi(getenv("FAKE_NVML_PID"));
    p[0].used = scenario("wddm") ? ~0ULL : 600; p[0].gi = p[0].ci = ~0u;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, process *p) { return processes(n, p); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *n, process *p) { *n = 0; return 0; }
"""

CHILD = """
import json, os
from benchfleet_agent.probes import Targets, describe
from benchfleet_agent.probes.nvidia import NvidiaProbe
os.environ["FAKE_NVML_PID"] = str(os.getpid())
described = describe([NvidiaProbe()])[0]
out = {"available": described.available, "reason": described.reason, "gaps": dict(described.gaps), "values": None}
if described.available:
    probe = NvidiaProbe()
    probe.discover()
    (reading,) = probe.read_at_edge(Targets(runtime_pids=(os.getpid(),)))
    out["values"] = dict(zip(probe.metrics(), reading.values, strict=True))
    out["device"] = [probe.devices()[0].device_id, probe.devices()[0].memory_bytes]
    probe.close()
print(json.dumps(out))
"""


def compile_library(folder: Path, *options: str) -> Path:
    source = folder / "nvml.c"
    source.write_text(SOURCE)
    assert COMPILER is not None
    command = [COMPILER, "-shared", "-fPIC", "-w", *options, "-Wl,-soname,libnvidia-ml.so.1", str(source)]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


def probe_in_child(library: Path, scenario: str = "") -> dict[str, Any]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML": scenario}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_everything_is_read_in_the_registrys_units(library: Path) -> None:
    answer = probe_in_child(library)
    assert answer["values"] == {
        "device_memory_used_bytes": 1000,  # without the driver's reserve
        "device_memory_runtime_bytes": 600,
        "device_busy_ratio": 0.42,
        "device_power_w": 250.5,
        "device_energy_mj": 9000000000001,
        "device_temperature_c": 55.0,
    }
    assert answer["device"] == ["GPU-fake-0", 8000]
    assert answer["gaps"] == {}


def test_a_driver_without_instant_power_gives_the_average(library: Path) -> None:
    assert probe_in_child(library, "average_power")["values"]["device_power_w"] == 200.25


def test_a_gpu_without_memory_of_its_own(library: Path) -> None:
    answer = probe_in_child(library, "unified")
    assert answer["values"]["device_memory_used_bytes"] is None
    assert "shares the host's memory" in answer["gaps"]["device_memory_used_bytes"]
    assert answer["values"]["device_memory_runtime_bytes"] == 600
    assert answer["device"] == ["GPU-fake-0", None]


def test_windows_driver_model_tells_no_memory_of_single_processes(library: Path) -> None:
    answer = probe_in_child(library, "wddm")
    assert answer["values"]["device_memory_runtime_bytes"] is None
    assert "WDDM" in answer["gaps"]["device_memory_runtime_bytes"]


def test_an_old_driver_lacks_what_it_lacks(tmp_path: Path) -> None:
    answer = probe_in_child(compile_library(tmp_path, "-DOLD_DRIVER"))
    assert answer["values"]["device_energy_mj"] is None
    assert answer["values"]["device_power_w"] == 250.5
    assert set(answer["gaps"]) == {"device_energy_mj"}


@pytest.mark.parametrize(
    ("scenario", "reason"), [("driver_not_loaded", "modprobe"), ("no_gpu", "no GPU"), ("lost", "NVML")]
)
def test_a_driver_that_does_not_serve_is_unavailable_with_a_reason(library: Path, scenario: str, reason: str) -> None:
    answer = probe_in_child(library, scenario)
    assert not answer["available"]
    assert reason in answer["reason"]


def test_no_driver_at_all(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    assert "no NVIDIA driver library was found (libnvidia-ml.so.1" in probe_in_child(tmp_path)["reason"]
