"""Doctor's checklist: events of a probe in, findings out."""

from __future__ import annotations

import pytest

from benchfleet.failures import Failure, Reason
from benchfleet.v1 import event_pb2, host_pb2
from benchfleet_controller.checklist import (
    Finding,
    ProbeResult,
    checklist_text,
    examine_limits,
    examine_model,
    examine_probes,
    examine_runtimes,
)

VARIANT = host_pb2.ModelVariant(
    alias="phi", variant="phi-cuda-gpu:2", execution_provider="CUDAExecutionProvider", cached=True
)
SECOND = 1_000_000_000


def loaded(provider: str = "CUDAExecutionProvider") -> event_pb2.Event:
    return event_pb2.Event(
        model_loaded=event_pb2.ModelLoaded(start_ns=0, end_ns=2 * SECOND, actual_execution_provider=provider)
    )


def answered(failure: Failure | None = None) -> event_pb2.Event:
    request = event_pb2.RequestFinished(
        status="failed" if failure else "ok", start_ns=0, end_ns=SECOND // 2, output_token_count=4
    )
    if failure:
        request.failure.CopyFrom(failure.to_proto())
    return event_pb2.Event(request_finished=request)


def ended(failure: Failure) -> event_pb2.Event:
    return event_pb2.Event(case_finished=event_pb2.CaseFinished(status="failed", failure=failure.to_proto()))


def examine(*events: event_pb2.Event, variant: host_pb2.ModelVariant = VARIANT) -> list[Finding]:
    result = ProbeResult("phi", variant)
    for event in events:
        result.apply(event)
    return examine_model(result, "lab1")


def worst(findings: list[Finding]) -> str:
    return max((finding.severity for finding in findings), key=["ok", "info", "warning", "error"].index)


def test_a_model_that_works_is_four_ticks() -> None:
    found = examine(loaded(), answered())
    assert [finding.severity for finding in found] == ["ok"] * 4
    assert [finding.message for finding in found] == [
        "offered as phi-cuda-gpu:2", "its files are there", "loads in 2.0 s on CUDAExecutionProvider",
        "answers a probe in 0.5 s, 4 tokens",
    ]  # fmt: skip


def test_a_model_that_is_not_offered_says_so_and_nothing_else() -> None:
    result = ProbeResult("phi", refused=Failure(Reason.MODEL_NOT_FOUND, "no model 'phi'; did you mean phi-4?"))
    (finding,) = examine_model(result, "lab1")
    assert (finding.severity, finding.message) == ("error", "no model 'phi'; did you mean phi-4?")
    assert finding.advice == "benchfleet models lab1"


def test_files_that_were_not_there_are_told_with_how_to_fetch_them() -> None:
    variant = host_pb2.ModelVariant(variant="phi-cuda-gpu:2", cached=False)
    (_, files, *_) = examine(loaded(""), answered(), variant=variant)
    assert (files.severity, files.advice) == ("info", "benchfleet pull lab1 phi")


def test_a_silent_fall_back_to_the_cpu_is_an_error() -> None:
    (_, _, load, answer) = examine(loaded("CPUExecutionProvider"), answered())
    assert load.severity == "error"
    assert "on CPUExecutionProvider, not on CUDAExecutionProvider" in load.message
    assert answer.severity == "ok"


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((ended(Failure(Reason.OUT_OF_MEMORY, "memory ran out")),), "does not load: memory ran out"),
        ((), "does not load: it was not loaded"),
        ((loaded(), ended(Failure(Reason.RUNTIME_CRASHED, "signal 11"))), "does not answer: signal 11"),
        ((loaded(), answered(Failure(Reason.HTTP_ERROR, "HTTP 500"))), "does not answer: HTTP 500"),
    ],
)
def test_what_fails_is_told_with_its_reason(events: tuple[event_pb2.Event, ...], words: str) -> None:
    found = examine(*events)
    assert worst(found) == "error"
    assert found[-1].message == words


def test_an_answer_without_text_in_its_few_tokens_is_an_answer() -> None:
    assert worst(examine(loaded(), answered(Failure(Reason.EMPTY_ANSWER, "no text")))) == "ok"


def test_a_host_that_is_busy_is_said_to_be() -> None:
    result = ProbeResult("phi", VARIANT, Failure(Reason.HOST_BUSY, "it runs job 1 for anna"))
    assert examine_model(result, "lab1")[-1].message == "not probed: it runs job 1 for anna"


def test_a_forecast_that_it_does_not_fit_is_a_warning() -> None:
    forecast = event_pb2.Event(fit_forecasted=event_pb2.FitForecasted(fits=False, basis="8 GB of weights"))
    found = examine(forecast, loaded(), answered())
    assert [finding.message for finding in found if finding.severity == "warning"] == [
        "it may not fit in memory: 8 GB of weights"
    ]


def test_runtimes_say_what_they_can_do() -> None:
    found = examine_runtimes(
        [
            host_pb2.RuntimeInfo(name="foundry", available=True, version="2.2.1", capabilities=["list", "pull"]),
            host_pb2.RuntimeInfo(name="endpoint", available=True, dialect="ollama", endpoint_url="http://127.0.0.1:1"),
            host_pb2.RuntimeInfo(name="x", unavailable_reason="install it"),
        ]
    )
    assert [finding.message for finding in found] == [
        "version 2.2.1; can list, pull", "available; speaks ollama; at http://127.0.0.1:1", "install it",
    ]  # fmt: skip
    assert found[-1].severity == "error"


def test_probes_say_cost_how_they_were_tried_and_what_they_lack() -> None:
    gaps = {"a": "too old", "b": "too old", "c": "no rights", "d": "no sensor", "e": "unknown", "f": "unknown"}
    probe = host_pb2.ProbeInfo(
        probe_id="nvidia", available=True, metrics=["a", "b"], cost_us=250.4, verification="real hardware", gaps=gaps
    )
    (found,) = examine_probes([probe])
    assert found.message == "2 metrics, 250 µs a reading, tried on real hardware"
    assert found.advice == "not offered: a, b: too old; c: no rights; d: no sensor; and 2 more"
    assert found.details == {"reading": None, "gaps": gaps}
    (silent,) = examine_probes([host_pb2.ProbeInfo(probe_id="x", available=True)])
    assert silent.message == "0 metrics"


def test_a_reading_is_told_in_short_and_whole_for_scripts() -> None:
    names = [
        "device_memory_used_bytes",
        "device_power_w",
        "device_clock_hz",
        "device_busy_ratio",
        "device_temperature_c",
    ]
    reading = {f"{name}@gpu{index}": 2.5e9 + index for index in range(2) for name in names} | {"of_a_later_agent": 1.0}
    reading["device_power_w@gpu0"] = 40.25
    probe = host_pb2.ProbeInfo(probe_id="x", available=True, metrics=["of_a_later_agent", *names], reading=reading)
    (found,) = examine_probes([probe])
    assert found.message.startswith(
        "6 metrics; read device_memory_used_bytes 2.3 GiB, device_power_w 40.2 W, device_clock_hz 2.50 GHz, "
    )
    assert found.message.endswith(" and 1 more")
    assert found.details["reading"] == reading


def test_limits_are_told_in_the_fields_units() -> None:
    limits = host_pb2.MachineLimits(memory_bandwidth_bytes_per_s=4.2e10, compute_flop_per_s=1.5e11, thread_count=8)
    assert examine_limits(limits).message == "memory 42 GB/s, 150 Gflop/s, 8 threads"
    failed = examine_limits(host_pb2.MachineLimits(failure="numpy is missing"))
    assert (failed.severity, failed.message) == ("warning", "not measured: numpy is missing")


FINDINGS: list[dict[str, str | None]] = [
    {"host": "a", "severity": "ok", "check": "connection", "message": "answers", "advice": None},
    {"host": "a", "severity": "warning", "check": "state", "message": "busy " * 20, "advice": "wait for it"},
    {"host": "b", "severity": "error", "check": "connection", "message": "refused", "advice": None},
]


def test_the_checklist_fits_a_terminal_and_is_a_line_each_when_piped() -> None:
    narrow = checklist_text(FINDINGS, 60).splitlines()
    assert max(map(len, narrow)) <= 60
    assert narrow[:2] == ["a", "  ok       connection  answers"]
    assert narrow[-2:] == ["b", "  error    connection  refused"]
    assert narrow[-3].strip() == "→ wait for it"
    piped = checklist_text(FINDINGS, None).splitlines()
    assert len(piped) == 5
    assert piped[2].endswith("  → wait for it")
