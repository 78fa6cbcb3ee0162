from __future__ import annotations

from collections.abc import Callable

import pytest

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.v1 import job_pb2
from benchfleet_agent.idle_baseline import DEFAULT_IDLE_BASELINE_S
from benchfleet_agent.jobs import Answer, JobOrder, SyntheticOrder, answer_start, case_outcome
from benchfleet_agent.rounds import StopRule
from fakes.specs import case_spec, job_spec


def test_a_valid_spec_becomes_an_order_with_default_deadlines() -> None:
    order = JobOrder.from_proto("job-1", job_spec())

    (case,) = order.cases
    assert (case.stop.fewest, case.warmup_rounds, case.concurrency, case.max_tokens) == (2, 1, 1, 8)
    assert (case.load_s, case.request_s, case.first_token_s) == (600.0, 600.0, None)
    assert isinstance(case.prompts, tuple)
    assert [prompt.prompt_id for prompt in case.prompts] == ["p1", "p2"]
    assert order.sample_period_ms == 100


def test_the_idle_baseline_is_the_agents_unless_the_job_names_one() -> None:
    spec = job_spec()
    assert JobOrder.from_proto("job-1", spec).idle_baseline_s == DEFAULT_IDLE_BASELINE_S
    for asked in (0.0, 25.0):
        spec.idle_baseline_s = asked
        assert JobOrder.from_proto("job-1", spec).idle_baseline_s == asked


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


def _huge_round(spec: job_pb2.JobSpec) -> None:
    case = spec.cases[0]
    case.request_rate_per_s, case.arrival, case.stop.round_duration_s = 1000, "constant", 3600


def _synthetic(token_count: int, prompt_count: int) -> Callable[[job_pb2.JobSpec], None]:
    def change(spec: job_pb2.JobSpec) -> None:
        asked = job_pb2.SyntheticSpec(prompt_token_count=token_count, prompt_count=prompt_count)
        spec.prompt_sets[0].CopyFrom(job_pb2.PromptSet(name=spec.prompt_sets[0].name, synthetic=asked))

    return change


def test_load_shape_and_conditions_are_read() -> None:
    spec = job_spec()
    case = spec.cases[0]
    case.request_rate_per_s, case.arrival, case.idle_pause_s = 2.5, "poisson", 3
    case.stop.CopyFrom(job_pb2.StopSpec(minimum_duration_s=10, interval_ratio=0.02, maximum_round_count=9))
    case.round_count, case.stop.round_duration_s, case.drop_page_cache = 3, 5, True
    _synthetic(64, 2)(spec)

    (order,) = JobOrder.from_proto("job-1", spec).cases

    assert order.prompts == SyntheticOrder(64, 2)
    assert order.stop == StopRule(3, 9, 10, 0.02)
    assert (order.rate_per_s, order.poisson, order.round_duration_s, order.idle_pause_s) == (2.5, True, 5, 3)
    assert (order.drop_page_cache, order.allow_prefix_cache, order.deterministic) == (True, False, False)


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
        (_set("request_rate_per_s", 0.0), "request_rate_per_s"),
        (_set("request_rate_per_s", float("nan")), "request_rate_per_s"),
        (_set("request_rate_per_s", 5.0), "arrival must be one of constant, poisson"),
        (_set("arrival", "poisson"), "arrival is for an open loop"),
        (_set("idle_pause_s", -1.0), "idle_pause_s"),
        (lambda spec: setattr(spec, "idle_baseline_s", -1.0), "idle_baseline_s"),
        (lambda spec: setattr(spec.cases[0].stop, "maximum_round_count", 1), "maximum_round_count"),
        (lambda spec: setattr(spec.cases[0].stop, "interval_ratio", 1.5), "interval_ratio must lie"),
        (lambda spec: setattr(spec.cases[0].stop, "interval_ratio", 0.1), "round_count of at least 3"),
        (lambda spec: setattr(spec.cases[0].stop, "round_duration_s", -1.0), "round_duration_s"),
        (_huge_round, "over the limit"),
        (lambda spec: setattr(spec.prompt_sets[0].synthetic, "prompt_token_count", 64), "has prompts and asks"),
        (_synthetic(0, 4), "prompt_token_count"),
        (_synthetic(64, 0), "prompt_count"),
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
