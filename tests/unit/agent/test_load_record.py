"""The load process's row on its way through JSON, and the rules for what comes in."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.load.http_errors import error_message, http_failure
from benchfleet_agent.load.kernel_clock import KernelClock
from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status, TokensSource
from benchfleet_agent.load.settings import LoadSettings, RequestSpec

OK = RequestRecord(
    request_id="r-1",
    prompt_id="p-1",
    status=Status.OK,
    http_status=200,
    start_ns=1_000,
    sent_ns=1_010,
    headers_ns=1_500,
    first_byte_ns=2_000,
    role_ns=2_000,
    first_content_ns=2_000,
    last_content_ns=3_000,
    finish_ns=3_100,
    usage_ns=3_100,
    done_ns=3_200,
    end_ns=3_300,
    token_ns=(1_000, 2_000),
    chunks=2,
    prompt_tokens=7,
    output_tokens=2,
    visible_tokens=2,
    reasoning_tokens=0,
    hidden_tokens=0,
    tokens_source=TokensSource.USAGE,
    accounting=Accounting.CONSISTENT,
    finish_reason="stop",
    text="é tok",
    stamp_source=StampSource.KERNEL,
)
FAILED = RequestRecord(
    request_id="r-2",
    prompt_id="p-1",
    status=Status.FAILED,
    reason=Reason.CONNECTION_FAILED,
    message="refused",
    end_ns=5,
    accounting=Accounting.INCOMPLETE,
)
OPEN: dict[str, Any] = {"do": "open", "base_url": "http://127.0.0.1:5273/v1/", "model": "m"}


@pytest.mark.parametrize("record", [OK, FAILED], ids=["ok", "failed"])
def test_record_survives_json(record: RequestRecord) -> None:
    line = json.dumps({"event": "request", "round_id": "R", **record.to_dict()})
    assert RequestRecord.from_dict(json.loads(line)) == record


def test_to_dict_has_every_field() -> None:
    assert set(OK.to_dict()) == {field.name for field in dataclasses.fields(RequestRecord)}


def test_record_refuses_unknown_words_and_missing_fields() -> None:
    with pytest.raises(ValueError, match="perfect"):
        RequestRecord.from_dict({**OK.to_dict(), "accounting": "perfect"})
    with pytest.raises(TypeError):
        RequestRecord.from_dict({"request_id": "r"})


def test_reading_records_needs_no_client_library() -> None:
    code = "import sys, benchfleet_agent.load.record; print([m for m in ('openai', 'httpx2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_what_is_set_is_sent() -> None:
    settings = LoadSettings.from_dict({**OPEN, "temperature": 0, "top_p": 1, "seed": 42, "max_tokens": 64})
    spec = RequestSpec.from_dict({"request_id": "r", "prompt_id": "p", "messages": [{"role": "user", "content": "x"}]})
    assert spec.body(settings) == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 64,
        "temperature": 0,
        "top_p": 1,
        "seed": 42,
    }
    bare = LoadSettings.from_dict({**OPEN, "stream": False})
    assert spec.body(bare) == {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    own = dataclasses.replace(spec, max_tokens=5)
    assert own.body(settings)["max_tokens"] == 5


def test_settings_hide_the_key_and_trim_the_url() -> None:
    settings = LoadSettings.from_dict({**OPEN, "api_key": "sk-very-secret"})
    assert "secret" not in repr(settings)
    assert settings.base_url == "http://127.0.0.1:5273/v1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"concurrency": 2000},
        {"concurrency": "4"},
        {"base_url": "ftp://x"},
        {"model": ""},
        {"request_timeout_s": 0},
        {"token_timeout_s": -1},
        {"seed": 1.5},
        {"temperature": True},
    ],
)
def test_settings_refuse_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkFailed) as caught:
        LoadSettings.from_dict({**OPEN, **wrong})
    assert caught.value.failure.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize("wrong", ["text", {"request_id": "r", "prompt_id": "p"}, {"messages": [{}], "prompt_id": "p"}])
def test_requests_refuse_nonsense(wrong: object) -> None:
    with pytest.raises(WorkFailed) as caught:
        RequestSpec.from_dict(wrong)
    assert caught.value.failure.reason is Reason.INVALID_SPEC


OVERFLOW_FOUNDRY = "request requires 9999 total tokens, which exceeds the model's maximum context length of 2048"


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (404, "Model not found: No model matching x", Reason.MODEL_NOT_FOUND),
        (404, "Not Found", Reason.HTTP_ERROR),
        (400, "Model not loaded: it must be loaded before inference", Reason.NOT_LOADED),
        (400, OVERFLOW_FOUNDRY, Reason.CONTEXT_OVERFLOW),
        (500, OVERFLOW_FOUNDRY, Reason.CONTEXT_OVERFLOW),
        (400, "the request exceeds the available context size", Reason.CONTEXT_OVERFLOW),
        (400, "temperature must be positive", Reason.HTTP_ERROR),
        (401, "bad key", Reason.HTTP_ERROR),
        (429, "slow down", Reason.RATE_LIMITED),
        (500, "Inference failed", Reason.HTTP_ERROR),
        (503, "", Reason.HTTP_ERROR),
        (400, "No OpenAIService provider found for modelName phi", Reason.MODEL_NOT_FOUND),
        (500, "No OpenAIService provider found for modelName phi", Reason.MODEL_NOT_FOUND),
        (500, "Inference failed: std::bad_alloc", Reason.OUT_OF_MEMORY),
        (500, "CUDA error: out of memory", Reason.OUT_OF_MEMORY),
        (500, "model requires more system memory (5.6 GiB) than is available (3.1 GiB)", Reason.OUT_OF_MEMORY),
        (500, "Failed to allocate memory for requested buffer of size 1", Reason.OUT_OF_MEMORY),
        (400, "the tool 'allocate' failed", Reason.HTTP_ERROR),
        (307, "", Reason.REDIRECTED),
    ],
)
def test_http_statuses_have_reasons(status: int, said: str, reason: Reason) -> None:
    body = json.dumps({"error": {"message": said, "code": None}})
    failure = http_failure(status, body, location="http://elsewhere/")
    assert failure.reason is reason
    assert str(status) in failure.message
    assert said in failure.message or reason is Reason.REDIRECTED


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "a"}}', "a"),
        ('{"error": "b"}', "b"),
        ('{"detail": "c"}', "c"),
        ('{"object": "error", "message": "d"}', "d"),
        ("<h1>Bad\n gateway</h1>", "<h1>Bad gateway</h1>"),
        ('{"error": {"code": 7}}', '{"code": 7}'),
        ("", ""),
    ],
)
def test_error_bodies_are_read_however_they_nest(body: str, said: str) -> None:
    assert error_message(body) == said


OFFSET = 1_700_000_000_000_000_000


def steady_clock() -> KernelClock:
    clock = KernelClock()
    clock.observe(1_000, 1_100 + OFFSET, 1_200)
    return clock


def test_kernel_stamp_is_converted() -> None:
    assert steady_clock().convert(1_050 + OFFSET, floor_ns=0, ceiling_ns=1_200) == 1_050


def test_kernel_stamp_just_after_the_read_is_sampling_noise() -> None:
    assert steady_clock().convert(1_300 + OFFSET, floor_ns=0, ceiling_ns=1_200) == 1_200


@pytest.mark.parametrize("stamp", [-5_000, 5_000_000])
def test_kernel_stamp_outside_what_is_possible_is_refused(stamp: int) -> None:
    assert steady_clock().convert(stamp + OFFSET, floor_ns=0, ceiling_ns=1_200) is None


@pytest.mark.parametrize("step", [50_000, -50_000, 3_600_000_000_000])
def test_a_step_of_the_wall_clock_is_noticed_once(step: int) -> None:
    clock = steady_clock()
    assert clock.observe(2_000, 2_100 + OFFSET, 2_200)
    assert not clock.observe(3_000, 3_100 + OFFSET + step, 3_200)
    assert clock.observe(4_000, 4_100 + OFFSET + step, 4_200)
    assert clock.convert(4_050 + OFFSET + step, floor_ns=0, ceiling_ns=4_200) == 4_050


def test_a_slow_sample_is_no_step_and_does_not_spoil_the_clock() -> None:
    clock = steady_clock()
    assert clock.observe(10_000, 10_000 + OFFSET, 500_000)  # preempted between the readings
    assert clock.convert(9_000 + OFFSET, floor_ns=0, ceiling_ns=10_000) == 9_000


def test_before_any_sample_nothing_is_converted() -> None:
    assert KernelClock().convert(1, 0, 2) is None
