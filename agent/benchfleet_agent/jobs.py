"""What a job is and what becomes of it: validation, acceptance, outcomes. Pure: values in, values out.

A spec from the wire is hostile until `JobOrder.from_proto` has read it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.v1 import job_pb2
from benchfleet_agent.conditions import Conditions
from benchfleet_agent.idle_baseline import DEFAULT_IDLE_BASELINE_S
from benchfleet_agent.rounds import StopRule

MAXIMUM_CASES = 1_000
MAXIMUM_ROUNDS = 10_000
MAXIMUM_CONCURRENCY = 256
MAXIMUM_PROMPTS = 10_000
MAXIMUM_TEXT = 1 << 20
MAXIMUM_TOKENS = 1 << 20
MAXIMUM_RATE_PER_S = 10_000.0
MAXIMUM_OPEN_LOOP_REQUESTS = 100_000
FEWEST_ROUNDS_OF_AN_INTERVAL = 3
DEFAULT_PREPARE_S = 3_600.0
DEFAULT_LOAD_S = 600.0
DEFAULT_REQUEST_S = 600.0
DEVICES = ("", "cpu", "gpu", "npu")
ARRIVALS = ("constant", "poisson")
PATHS = ("", "http", "direct")
ROLES = ("system", "user", "assistant")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class PromptOrder:
    """One prompt; ``max_tokens`` None: the case's."""

    prompt_id: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class SyntheticOrder:
    """Prompts to compose: how many, and how long each is in tokens as the server counts."""

    token_count: int
    prompt_count: int


@dataclass(frozen=True, slots=True)
class CaseOrder:
    """One case, checked; times in seconds."""

    case_id: str
    runtime: str
    endpoint_url: str
    model: str
    device: str | None
    prompts: tuple[PromptOrder, ...] | SyntheticOrder
    stop: StopRule
    round_duration_s: float | None
    warmup_rounds: int
    concurrency: int
    rate_per_s: float | None
    """Open loop: requests a second. None: closed loop."""
    poisson: bool
    allow_prefix_cache: bool
    drop_page_cache: bool
    idle_pause_s: float | None
    deterministic: bool
    stream: bool
    max_tokens: int
    temperature: float | None
    top_p: float | None
    seed: int | None
    prepare_s: float
    load_s: float
    request_s: float
    first_token_s: float | None
    token_s: float | None
    path: str = "http"
    """``http`` or ``direct``: in the runtime's own process."""
    skip_unfit: bool = False
    """Leave the case out when the forecast says that the model does not fit."""
    keep_warm_s: float | None = None
    """While waiting send a request every so many seconds."""


@dataclass(frozen=True, slots=True)
class JobOrder:
    """A job, checked."""

    job_id: str
    run_id: str
    held_by: str
    cases: tuple[CaseOrder, ...]
    sample_period_ms: int
    certificate: bool
    """Whether the agent measures itself first."""
    conditions: Conditions | None = None
    """What a counted round waits for."""
    idle_baseline_s: float = DEFAULT_IDLE_BASELINE_S
    """How long to leave the host alone before and after a load, where its power is metered."""

    @classmethod
    def from_proto(cls, job_id: str, spec: job_pb2.JobSpec) -> JobOrder:
        """Read a spec. Raises `WorkFailed` ``invalid_spec`` saying which field is wrong."""
        _require(bool(_ID.fullmatch(job_id)), "job_id must be letters, digits, '.', '_' or '-'")
        _require(bool(_ID.fullmatch(spec.run_id)), "run_id must be letters, digits, '.', '_' or '-'")
        _require(1 <= len(spec.cases) <= MAXIMUM_CASES, f"a job has 1 to {MAXIMUM_CASES} cases")
        _require(
            spec.sample_period_ms == 0 or 10 <= spec.sample_period_ms <= 60_000,
            "sample_period_ms must lie between 10 and 60000",
        )
        sets = {prompts.name: _prompts(prompts) for prompts in spec.prompt_sets}
        _require(len(sets) == len(spec.prompt_sets), "two prompt sets have the same name")
        cases = tuple(_case(case, sets) for case in spec.cases)
        _require(len({case.case_id for case in cases}) == len(cases), "two cases have the same case_id")
        return cls(
            job_id,
            spec.run_id,
            spec.held_by[:200],
            cases,
            spec.sample_period_ms or 100,
            not spec.skip_certificate,
            Conditions.from_proto(spec.conditions),
            _idle_baseline_s(spec),
        )


class Answer(Enum):
    """What to say to StartJob."""

    ACCEPT = auto()
    SAME = auto()
    DIFFERS = auto()
    BUSY = auto()


def answer_start(known_spec: bytes | None, spec: bytes, running_job_id: str) -> Answer:
    """Decide on a StartJob: ``known_spec`` is the journal's for this job_id, ``running_job_id`` empty when idle."""
    if known_spec is not None:
        return Answer.SAME if known_spec == spec else Answer.DIFFERS
    return Answer.BUSY if running_job_id else Answer.ACCEPT


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended."""

    status: str
    failure: Failure | None = None


def case_outcome(counted: Sequence[Failure | None]) -> Outcome:
    """Judge a case that ran to its end by its counted requests (None: ok)."""
    failures = [failure for failure in counted if failure is not None]
    if not failures:
        return Outcome("succeeded")
    reason, times = Counter(failure.reason for failure in failures).most_common(1)[0]
    example = next(failure.message for failure in failures if failure.reason is reason)
    message = f"{len(failures)} of {len(counted)} requests failed, {times} with {reason.value}: {example}"
    if len(failures) == times == len(counted) and reason is Reason.OUT_OF_MEMORY:
        return Outcome("failed", Failure(reason, message))
    if len(failures) == len(counted):
        return Outcome("failed", Failure(Reason.ALL_REQUESTS_FAILED, message))
    return Outcome("succeeded", Failure(Reason.SOME_REQUESTS_FAILED, message))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WorkFailed(Reason.INVALID_SPEC, message)


def _prompts(prompts: job_pb2.PromptSet) -> tuple[PromptOrder, ...] | SyntheticOrder:
    where = f"prompt set {prompts.name[:50]!r}"
    if prompts.HasField("synthetic"):
        asked = prompts.synthetic
        _require(not prompts.prompts, f"{where} has prompts and asks for synthetic ones")
        _require(1 <= asked.prompt_token_count <= MAXIMUM_TOKENS, f"{where}: prompt_token_count is out of range")
        _require(1 <= asked.prompt_count <= MAXIMUM_PROMPTS, f"{where}: prompt_count is out of range")
        return SyntheticOrder(asked.prompt_token_count, asked.prompt_count)
    _require(1 <= len(prompts.prompts) <= MAXIMUM_PROMPTS, f"{where} must hold 1 to {MAXIMUM_PROMPTS} prompts")
    for prompt in prompts.prompts:
        _require(bool(prompt.prompt_id) and len(prompt.prompt_id) <= 200, f"{where}: a prompt_id is empty or too long")
        _require(len(prompt.messages) >= 1, f"{where}: prompt {prompt.prompt_id!r} has no messages")
        _require(
            0 <= prompt.max_tokens <= MAXIMUM_TOKENS, f"{where}: max_tokens of {prompt.prompt_id!r} is out of range"
        )
        for message in prompt.messages:
            _require(message.role in ROLES, f"{where}: role must be one of {', '.join(ROLES)}")
            _require(len(message.content) <= MAXIMUM_TEXT, f"{where}: prompt {prompt.prompt_id!r} is over 1 MiB")
    return tuple(
        PromptOrder(
            prompt.prompt_id,
            tuple({"role": message.role, "content": message.content} for message in prompt.messages),
            prompt.max_tokens or None,
        )
        for prompt in prompts.prompts
    )


def _case(case: job_pb2.CaseSpec, sets: dict[str, tuple[PromptOrder, ...] | SyntheticOrder]) -> CaseOrder:
    sampling, deadlines = case.sampling, case.deadlines
    rate, round_duration_s = _rate(case), _optional_seconds(case.stop, "round_duration_s")
    if rate is not None:
        expected = rate * (round_duration_s or 0)
        _require(
            expected <= MAXIMUM_OPEN_LOOP_REQUESTS, f"a round of {expected:.0f} requests is over the limit; lower it"
        )
    _require(bool(_ID.fullmatch(case.case_id)), "case_id must be letters, digits, '.', '_' or '-'")
    _require(bool(case.runtime) and len(case.runtime) <= 100, "a case must name its runtime")
    _require(0 < len(case.model) <= 300 and case.model.isprintable(), "a case must name its model")
    _require(case.device in DEVICES, "device must be cpu, gpu, npu or empty")
    _require(case.path in PATHS, "path must be http, direct or empty")
    _require(case.prompt_set in sets, f"the job has no prompt set {case.prompt_set[:50]!r}")
    _require(1 <= case.round_count <= MAXIMUM_ROUNDS, f"round_count must lie between 1 and {MAXIMUM_ROUNDS}")
    _require(0 <= case.warmup_round_count <= MAXIMUM_ROUNDS, "warmup_round_count must not be negative")
    _require(1 <= case.concurrency <= MAXIMUM_CONCURRENCY, f"concurrency must lie between 1 and {MAXIMUM_CONCURRENCY}")
    _require(1 <= sampling.max_tokens <= MAXIMUM_TOKENS, f"max_tokens must lie between 1 and {MAXIMUM_TOKENS}")
    temperature = sampling.temperature if sampling.HasField("temperature") else None
    top_p = sampling.top_p if sampling.HasField("top_p") else None
    _require(temperature is None or 0 <= temperature <= 2, "temperature must lie between 0 and 2")
    _require(top_p is None or 0 < top_p <= 1, "top_p must be above 0 and at most 1")
    return CaseOrder(
        case_id=case.case_id,
        runtime=case.runtime,
        endpoint_url=case.endpoint_url,
        model=case.model,
        device=case.device or None,
        prompts=sets[case.prompt_set],
        stop=_stop(case),
        round_duration_s=round_duration_s,
        warmup_rounds=case.warmup_round_count,
        concurrency=case.concurrency,
        rate_per_s=rate,
        poisson=case.arrival == "poisson",
        allow_prefix_cache=case.allow_prefix_cache,
        drop_page_cache=case.drop_page_cache,
        idle_pause_s=_seconds("idle_pause_s", case.idle_pause_s) or None,
        deterministic=case.deterministic,
        stream=case.stream,
        max_tokens=sampling.max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=sampling.seed if sampling.HasField("seed") else None,
        prepare_s=_seconds("prepare_s", deadlines.prepare_s) or DEFAULT_PREPARE_S,
        load_s=_seconds("load_s", deadlines.load_s) or DEFAULT_LOAD_S,
        request_s=_seconds("request_s", deadlines.request_s) or DEFAULT_REQUEST_S,
        first_token_s=_seconds("first_token_s", deadlines.first_token_s) or None,
        token_s=_seconds("token_s", deadlines.token_s) or None,
        path=case.path or "http",
        skip_unfit=case.skip_unfit,
        keep_warm_s=_seconds("keep_warm_period_s", case.keep_warm_period_s) or None,
    )


def _rate(case: job_pb2.CaseSpec) -> float | None:
    if not case.HasField("request_rate_per_s"):
        _require(not case.arrival, "arrival is for an open loop: give request_rate_per_s")
        return None
    rate = case.request_rate_per_s
    _require(
        math.isfinite(rate) and 0 < rate <= MAXIMUM_RATE_PER_S,
        f"request_rate_per_s must be above 0 and at most {MAXIMUM_RATE_PER_S:g}",
    )
    _require(case.arrival in ARRIVALS, f"arrival must be one of {', '.join(ARRIVALS)}")
    return rate


def _stop(case: job_pb2.CaseSpec) -> StopRule:
    stop, fewest = case.stop, case.round_count
    most = stop.maximum_round_count or fewest
    _require(fewest <= most <= MAXIMUM_ROUNDS, "maximum_round_count must be at least round_count and within limits")
    ratio = stop.interval_ratio if stop.HasField("interval_ratio") else None
    _require(ratio is None or 0 < ratio < 1, "interval_ratio must lie between 0 and 1")
    _require(
        ratio is None or fewest >= FEWEST_ROUNDS_OF_AN_INTERVAL,
        f"interval_ratio needs a round_count of at least {FEWEST_ROUNDS_OF_AN_INTERVAL}",
    )
    return StopRule(fewest, most, _optional_seconds(stop, "minimum_duration_s"), ratio)


def _optional_seconds(message: job_pb2.StopSpec, name: str) -> float | None:
    return _seconds(name, getattr(message, name)) or None


def _idle_baseline_s(spec: job_pb2.JobSpec) -> float:
    if not spec.HasField("idle_baseline_s"):
        return DEFAULT_IDLE_BASELINE_S
    return _seconds("idle_baseline_s", spec.idle_baseline_s)


def _seconds(name: str, value: float) -> float:
    _require(math.isfinite(value) and 0 <= value <= 86_400, f"{name} must lie between 0 and 86400 seconds")
    return value
