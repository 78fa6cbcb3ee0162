"""A run on two hosts with everything a report can show: devices, rounds, telemetry, an outlier, a failure."""

from __future__ import annotations

import math
from pathlib import Path

from benchfleet.v1 import host_pb2
from benchfleet_controller.store import Store
from fakes.events import JobEvents, commit_events, failed_request, host, ok_request, spec

MIB = 1 << 20
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>{{7*7}}\u202e"
"""What a name must not do to a page."""


def lab_store(
    path: Path, *, run_id: str = "r1", rounds: int = 5, requests: int = 4, samples: int = 200, name: str = "tiny",
    tokens: int = 12,
) -> Store:  # fmt: skip
    """A database with one run: hosts ``alpha`` (CPU) and ``beta`` (GPU, half as slow), two load levels each.

    ``requests`` are those of a round, ``samples`` those of a case; case ``beta-1`` has one request 5 times as slow.
    """
    store = Store(path)
    for place, (label, device) in enumerate((("alpha", "cpu"), ("beta", "gpu"))):
        job = JobEvents(f"job-{label}")
        cases = [f"{label}-1", f"{label}-2"]
        asked = spec(*cases, run_id=run_id, model=name, round_count=rounds)
        asked.cases[1].concurrency = 2
        gpu = host_pb2.Device(device_id="gpu0", kind="gpu", display_name=f"GPU of {name}", driver_version="1.0")
        job.job_started(asked, host(f"h{place}", hostname=label, devices=[gpu] if device == "gpu" else []))
        for case_id in cases:
            ep = "CUDA" if device == "gpu" else "CPU"
            job.case_started(case_id, alias=name, variant=f"{name}-{device}:1", device=device, execution_provider=ep)
            job.loaded(case_id, ep=ep)
            _rounds(job, case_id, 1.0 - 0.5 * place, rounds, requests, tokens)
            _telemetry(job, case_id, device, 1.0 + 10.0 * rounds, samples)
            job.case_finished(case_id)
        job.job_finished()
        commit_events(store, job.job_id, job.events)
    return store


def _rounds(job: JobEvents, case_id: str, slow: float, rounds: int, requests: int, tokens: int) -> None:
    for index in range(rounds):
        sent = []
        for place in range(requests):
            times = slow * (1 + 0.02 * math.sin(7.0 * index + 3.0 * place))
            times *= 5 if (case_id, index, place) == ("beta-1", rounds - 1, requests - 1) else 1
            offsets = [times * (0.1 + 0.02 * token) for token in range(tokens)]
            start_s = 1 + 10 * index + 9.0 * place / requests
            request = f"{case_id}-{index}-{place}"
            sent.append(ok_request(request, start_s, offsets, start_s + offsets[-1] + 0.01))
        if index == 1 and case_id == "alpha-2":
            sent.append(failed_request(f"{case_id}-failed", 12.0))
        start_s = 1.0 + 10 * index
        job.round(case_id, f"{case_id}-r{index}", index, start_s, start_s + 10, sent, warmup=index == 0)


def _telemetry(job: JobEvents, case_id: str, device: str, length_s: float, samples: int) -> None:
    times = [length_s * index / samples for index in range(samples)]
    swing = [0.5 + 0.5 * math.sin(at) for at in times]
    round_id = f"{case_id}-r1"
    job.samples(
        case_id, round_id, "round", times, probe_id="system",
        runtime_rss_bytes=[(400 + 20 * one) * MIB for one in swing],
        host_cpu_busy_ns=[at * 2e9 for at in times], host_cpu_total_ns=[at * 4e9 for at in times],
    )  # fmt: skip
    if device == "gpu":
        job.samples(
            case_id, round_id, "round", times, device_id="gpu0", probe_id="nvml",
            device_memory_used_bytes=[(900 + 40 * one) * MIB for one in swing],
            device_memory_runtime_bytes=[(800 + 40 * one) * MIB for one in swing],
            device_busy_ratio=[0.1 + 0.8 * one for one in swing],
            device_power_w=[60 + 90 * one for one in swing],
        )  # fmt: skip
