from __future__ import annotations

from collections.abc import Callable

import pytest

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.v1 import job_pb2
from benchfleet_agent.jobs import Answer, JobOrder, answer_start, case_outcome
from fakes.specs import case_spec, job_spec


def test_a_valid_spec_becomes_an_order_with_default_deadlines() -> None:
    order = JobOrder.from_proto("job-1", job_spec())

    (case,) = order.cases
    assert (case.stop.fewest, case.warmup_rounds, case.concurrency, case.max_tokens) == (2, 1, 1, 8)
    assert (case.load_s, case.request_s, case.first_token_s) == (600.0, 600.0, None)
    assert [prompt.prompt_id for prompt in case.prompts] == ["p1", "p2"]
    assert order.sample_period_ms == 100


def test_parameters_that_were_not_sent_stay_none() -> None:
    case = case_spec()
    case.sampling.Clear()
    case.sampling.max_tokens = 4

    (order,) = JobOrder.from_proto("job-1", job_spec(case)).cases

    assert (order.temperature, order.top_p, order.seed) == (None, None, None)


def _set(field: str, value: object) -> Callable[[job_pb2.JobSpec], None]:
    def change(spec: job_pb2.JobSpec) -> None:
        setattr(spec.cases[0], field, value)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.ClearField("cases"), "1 to 1000 cases"),
        (lambda spec: spec.cases.append(spec.cases[0]), "same case_id"),
        (lambda spec: spec.ClearField("prompt_sets"), "no prompt set"),
        (lambda spec: spec.prompt_sets[0].ClearField("prompts"), "1 to 10000 prompts"),
        (lambda spec: spec.prompt_sets[0].prompts[0].ClearField("messages"), "no messages"),
        (_set("case_id", "../etc"), "case_id"),
        (_set("model", ""), "name its model"),
        (_set("model", "a\x1b[31m"), "name its model"),
        (_set("device", "tpu"), "device must be"),
        (_set("round_count", 0), "round_count"),
        (_set("warmup_round_count", -1), "warmup_round_count"),
        (_set("concurrency", 0), "concurrency"),
        (_set("concurrency", 100_000), "concurrency"),
        (lambda spec: setattr(spec.cases[0].sampling, "max_tokens", 0), "max_tokens"),
        (lambda spec: setattr(spec.cases[0].sampling, "temperature", -1.0), "temperature"),
        (lambda spec: setattr(spec.cases[0].sampling, "top_p", 0.0), "top_p"),
        (lambda spec: setattr(spec.cases[0].deadlines, "load_s", float("nan")), "load_s"),
        (lambda spec: setattr(spec.cases[0].deadlines, "request_s", -5.0), "request_s"),
        (lambda spec: setattr(spec, "sample_period_ms", 1), "sample_period_ms"),
        (lambda spec: setattr(spec, "run_id", "a/b"), "run_id"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_and_says_which_field(
    change: Callable[[job_pb2.JobSpec], None], said: str
) -> None:
    spec = job_spec()
    change(spec)

    with pytest.raises(WorkFailed, match=said) as caught:
        JobOrder.from_proto("job-1", spec)

    assert caught.value.failure.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("known", "running", "answer"),
    [
        (None, "", Answer.ACCEPT),
        (None, "other", Answer.BUSY),
        (b"spec", "", Answer.SAME),
        (b"spec", "other", Answer.SAME),
        (b"different", "", Answer.DIFFERS),
    ],
)
def test_a_job_is_accepted_once_and_recognised_afterwards(known: bytes | None, running: str, answer: Answer) -> None:
    assert answer_start(known, b"spec", running) is answer


def test_a_case_fails_only_when_every_request_failed() -> None:
    broken = Failure(Reason.STREAM_ERROR, "boom")

    assert case_outcome([None, None]).status == "succeeded"
    some = case_outcome([None, broken])
    assert (some.status, some.failure and some.failure.reason) == ("succeeded", Reason.SOME_REQUESTS_FAILED)
    every = case_outcome([broken, broken])
    assert (every.status, every.failure and every.failure.reason) == ("failed", Reason.ALL_REQUESTS_FAILED)
    assert every.failure is not None
    assert "2 of 2 requests failed, 2 with stream_error: boom" in every.failure.message
