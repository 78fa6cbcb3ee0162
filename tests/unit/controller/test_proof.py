from __future__ import annotations

from typing import Any

import pytest

from benchfleet_controller.proof import Declared, Seen, Verdict, judge

MIB = 1 << 20
SIZE = 1000 * MIB
CPU = Declared("cpu", "CPUExecutionProvider", "CPU", size_bytes=SIZE)
GPU = Declared("gpu", "CUDAExecutionProvider", "CUDAExecutionProvider", size_bytes=SIZE)
IDLE: dict[str, Any] = {"busy_ratio": 0.02, "idle_busy_ratio": 0.02, "memory_growth_bytes": 0.0}


def gpu(**fields: Any) -> Seen:
    return Seen("gpu0", "gpu", **fields)


@pytest.mark.parametrize(
    ("declared", "cores", "devices", "verdict", "told"),
    [
        (CPU, 1.9, [], Verdict.CONFIRMED, "kept 1.9 processors busy"),
        (CPU, 1.9, [gpu(**IDLE)], Verdict.CONFIRMED, "no device shows the runtime at work (gpu0)"),
        # A driver's context holds memory and is no work.
        (CPU, 1.9, [gpu(runtime_memory_bytes=300 * MIB)], Verdict.CONFIRMED, "no device shows"),
        (CPU, 1.9, [gpu(runtime_busy_ratio=0.4)], Verdict.CONTRADICTED, "gpu0 worked for the runtime in 40%"),
        (CPU, 1.9, [gpu(runtime_memory_bytes=600 * MIB)], Verdict.CONTRADICTED, "held 600 MiB of the runtime"),
        (CPU, 0.1, [gpu(**IDLE)], Verdict.UNPROVEN, "kept 0.1 processors busy"),
        # A crowded processor leaves little, and nothing else is there.
        (CPU, 0.1, [], Verdict.CONFIRMED, "no GPU or NPU"),
        (CPU, 0.04, [], Verdict.UNPROVEN, "too little to be the work"),
        (CPU, None, [], Verdict.UNPROVEN, "processor time of the runtime is unknown"),
        (CPU, 1.9, [gpu()], Verdict.UNPROVEN, "nothing was read from gpu0"),
        (GPU, 1.0, [gpu(runtime_busy_ratio=0.62)], Verdict.CONFIRMED, "gpu0 worked for the runtime in 62%"),
        (GPU, 1.0, [gpu(runtime_memory_bytes=900 * MIB)], Verdict.CONFIRMED, "held 900 MiB of the runtime"),
        (
            GPU,
            None,
            [gpu(busy_ratio=0.9, idle_busy_ratio=0.05, memory_growth_bytes=500 * MIB)],
            Verdict.CONFIRMED,
            "busy in 90% of the rounds (5% before) and held 500 MiB more",
        ),
        # Somebody else's work and somebody else's memory are each no proof.
        (GPU, 0.5, [gpu(busy_ratio=0.9, idle_busy_ratio=0.9, memory_growth_bytes=900 * MIB)], Verdict.UNPROVEN, "NVML"),
        (GPU, 0.5, [gpu(busy_ratio=0.9, idle_busy_ratio=0.0, memory_growth_bytes=10 * MIB)], Verdict.UNPROVEN, "NVML"),
        (GPU, 1.8, [gpu(**IDLE)], Verdict.CONTRADICTED, "kept 1.8 processors busy"),
        # Without memory or without work known, nothing is denied; nor while the CPU is not at it either.
        (GPU, 1.8, [gpu(busy_ratio=0.0, idle_busy_ratio=0.0)], Verdict.UNPROVEN, "gpu0 was busy in 0%"),
        (GPU, 1.8, [gpu(memory_growth_bytes=0.0)], Verdict.UNPROVEN, "held 0 MiB more"),
        (GPU, 0.4, [gpu(**IDLE)], Verdict.UNPROVEN, "gpu0 was busy in 2%"),
        (GPU, 1.8, [gpu()], Verdict.UNPROVEN, "no reading of any gpu"),
        (GPU, 1.8, [Seen("npu0", "npu", runtime_busy_ratio=0.9)], Verdict.UNPROVEN, "no reading of any gpu"),
        (Declared(None), 1.8, [], Verdict.UNPROVEN, "does not say which device"),
        (Declared("cpu", remote=True), None, [], Verdict.UNPROVEN, "on another machine"),
    ],
)
def test_what_was_declared_is_held_against_what_was_seen(
    declared: Declared, cores: float | None, devices: list[Seen], verdict: Verdict, told: str
) -> None:
    proof = judge(declared, cores, devices)
    assert proof.verdict is verdict
    assert told in "; ".join(proof.evidence)


@pytest.mark.parametrize("actual", ["CPU", "CPUExecutionProvider", "cpu"])
def test_a_runtime_that_says_cpu_contradicts_a_gpu_whatever_the_device_did(actual: str) -> None:
    for asked in ("CUDAExecutionProvider", None):
        proof = judge(Declared("gpu", asked, actual), None, [gpu(runtime_busy_ratio=0.9)])
        assert proof.verdict is Verdict.CONTRADICTED
        assert actual in proof.evidence[0]


def test_a_provider_is_the_same_under_its_short_and_its_long_name() -> None:
    assert judge(Declared("cpu", "CPU", "CPUExecutionProvider"), 1.0, []).verdict is Verdict.CONFIRMED


def test_an_unread_gpu_is_no_doubt_where_no_library_could_reach_it() -> None:
    plain = Declared("cpu", libraries=("libonnxruntime.so.1", "libgomp.so.1"))
    assert judge(plain, 1.9, [gpu()]).verdict is Verdict.CONFIRMED
    able = Declared("cpu", libraries=("libonnxruntime.so.1", "libonnxruntime_providers_cuda.so"))
    assert judge(able, 1.9, [gpu()]).verdict is Verdict.UNPROVEN


def test_without_a_size_a_drivers_context_proves_nothing() -> None:
    unknown = Declared("gpu")
    assert judge(unknown, None, [gpu(runtime_memory_bytes=200 * MIB)]).verdict is Verdict.UNPROVEN
    assert judge(unknown, None, [gpu(runtime_memory_bytes=300 * MIB)]).verdict is Verdict.CONFIRMED
