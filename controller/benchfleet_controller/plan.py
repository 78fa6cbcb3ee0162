"""What to run where: the plan as values, and its expansion to jobs. Pure: no I/O, no clock.

`plan_file` reads plans from TOML and JSON; `expand` here turns one into jobs with their cases in a seeded
order, so that a plan and a seed always give the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchfleet.v1 import job_pb2

DEVICES = ("cpu", "gpu", "npu")
ALL_DEVICES = "all"
"""Every device for which a host has a variant of the model."""
DEFAULT_ROUNDS = 3
ARRIVALS = ("constant", "poisson")
PREFIX_CACHES = ("defeat", "allow")
PAGE_CACHES = ("keep", "drop")
PATHS = ("http", "direct")


@dataclass(frozen=True, slots=True)
class HostTarget:
    """A host as the user names it: how people call it and where its agent listens."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a set; ``max_tokens`` overrides the case's."""

    prompt_id: str
    messages: tuple[ChatMessage, ...]
    max_tokens: int | None = None
    tags: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    """What a good answer mentions; kept with the plan for judging answers."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts sent in each round, in this order; or how long those are that the agent composes."""

    name: str
    prompts: tuple[Prompt, ...]
    token_count: int | None = None
    """Tokens of each synthetic prompt; None: the prompts are those above."""
    prompt_count: int = 0
    """How many synthetic prompts."""

    @classmethod
    def synthetic(cls, token_count: int, prompt_count: int) -> PromptSet:
        """Prompts of an exact length."""
        return cls(f"{token_count} tokens", (), token_count, prompt_count)


DEFAULT_PROMPTS = PromptSet(
    "default",
    tuple(
        Prompt(f"p{index}", (ChatMessage("user", text),))
        for index, text in enumerate(
            (
                "Explain in two sentences why the sky is blue.",
                "List three advantages of running a language model on your own computer.",
                "Summarise in one sentence: The meeting moved to Tuesday because the room was taken on Monday.",
                "What is the capital of France, and on which river does it lie?",
            ),
            start=1,
        )
    ),
)
"""Sent when neither plan nor command line names prompts: short, different beginnings, no shared prefix."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long things may take, in seconds. None: the agent's default (requests: no such deadline)."""

    prepare_s: float | None = None
    load_s: float | None = None
    request_s: float | None = None
    first_token_s: float | None = None
    token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """How long rounds last and when they stop; all None: `Plan.rounds` passes over the prompts."""

    round_duration_s: float | None = None
    minimum_duration_s: float | None = None
    interval_ratio: float | None = None
    """Until the 95 % intervals of TTFT and decode rate reach at most so far to either side (0.02: ±2 %)."""
    maximum_rounds: int | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a host must be like for a round to begin; it waits for that, and a case whose wait is over fails."""

    require_ac: bool | None = None
    """Not on battery."""
    cool_temperature_c: float | None = None
    """Neither processor nor device warmer than so many degrees Celsius."""
    maximum_background_ratio: float | None = None
    """Others use at most this share of all logical processors."""
    wait_s: float | None = None
    """The longest wait; None: the agent's default."""

    def to_proto(self) -> job_pb2.HostConditions | None:
        """For a job; None: no matter."""
        if self == Conditions(wait_s=self.wait_s):
            return None
        return job_pb2.HostConditions(
            require_ac=bool(self.require_ac),
            cool_temperature_c=self.cool_temperature_c,
            maximum_background_ratio=self.maximum_background_ratio,
            wait_s=self.wait_s or 0,
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the user says of a model, from a ``models.json``."""

    alias: str
    capabilities: tuple[str, ...] = ()
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One benchmark as the user wants it; every combination of the lists is a case on every host."""

    name: str
    hosts: tuple[HostTarget, ...]
    models: tuple[str, ...]
    runtimes: tuple[str, ...] = ("foundry",)
    endpoint_url: str = ""
    devices: tuple[str, ...] = ("",)
    """``cpu``, ``gpu``, ``npu``, ``all``, or empty for whatever the runtime prefers."""
    prompt_sets: tuple[PromptSet, ...] = (DEFAULT_PROMPTS,)
    rounds: int = DEFAULT_ROUNDS
    warmup_rounds: int = 1
    blocks: int = 1
    """Each case runs in so many parts, every second time in the opposite order (A B B A): slow drift of a machine
    then falls on all alike."""
    concurrencies: tuple[int, ...] = (1,)
    """Requests in flight; with rates, the most that may be."""
    rates: tuple[float, ...] = ()
    """Open loop: requests a second, one case each. Empty: closed loop."""
    arrival: str = "poisson"
    """How an open loop's arrivals are spaced."""
    stop: Stop = Stop()
    prefix_cache: str = "defeat"
    """``defeat``: each request begins with words of its own; ``allow``: prompts go as they are."""
    page_cache: str = "keep"
    """``drop``: the model's files leave the system's page cache before each load, where the system lets."""
    idle_pause_s: float | None = None
    """After the rounds: pause, then one request more."""
    paths: tuple[str, ...] = ("http",)
    """``http``, and ``direct``: in the runtime's own process, to see what HTTP costs."""
    idle_baseline_s: float | None = None
    """Where power is metered: how long hosts are left alone before and after each load. None: the agent's default."""
    keep_warm_period_s: float | None = None
    """Between rounds and while waiting: a request every so often, so that the runtime keeps the model loaded."""
    skip_unfit: bool = False
    """Leave models out that are forecast not to fit in memory."""
    conditions: Conditions = Conditions()
    deterministic: bool = False
    certificate: bool = True
    """The agents measure themselves before the first case."""
    goodput: str | None = None
    """Limits a request must keep to count as good, such as ``ttft=0.5,tpot=0.05``."""
    model_facts: tuple[ModelFacts, ...] = ()
    stream: bool = True
    max_tokens: int = 128
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    seed: int | None = 42
    """Sent with every request and used for the order of the cases."""
    deadlines: Deadlines = Deadlines()


@dataclass(frozen=True, slots=True)
class CasePlan:
    """One case of a job."""

    case_id: str
    case_index: int
    runtime: str
    endpoint_url: str
    model: str
    device: str
    prompt_set: str
    concurrency: int
    rate_per_s: float | None
    rounds: int
    path: str = "http"
    block_index: int = 0


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One host's part of a run."""

    job_id: str
    host: HostTarget
    cases: tuple[CasePlan, ...]

    def to_proto(self, plan: Plan, run_id: str, held_by: str) -> job_pb2.JobSpec:
        """The job for `StartJob`."""
        deadlines, stop = plan.deadlines, plan.stop
        return job_pb2.JobSpec(
            run_id=run_id,
            held_by=held_by,
            skip_certificate=not plan.certificate,
            conditions=plan.conditions.to_proto(),
            idle_baseline_s=plan.idle_baseline_s,
            prompt_sets=[_prompt_set_to_proto(prompts) for prompts in plan.prompt_sets],
            cases=[
                job_pb2.CaseSpec(
                    case_id=case.case_id,
                    runtime=case.runtime,
                    endpoint_url=case.endpoint_url,
                    model=case.model,
                    device=case.device,
                    prompt_set=case.prompt_set,
                    round_count=case.rounds,
                    block_index=case.block_index,
                    warmup_round_count=plan.warmup_rounds,
                    concurrency=case.concurrency,
                    request_rate_per_s=case.rate_per_s,
                    arrival=plan.arrival if case.rate_per_s is not None else "",
                    stop=job_pb2.StopSpec(
                        round_duration_s=stop.round_duration_s,
                        minimum_duration_s=stop.minimum_duration_s,
                        interval_ratio=stop.interval_ratio,
                        maximum_round_count=stop.maximum_rounds or 0,
                    ),
                    allow_prefix_cache=plan.prefix_cache == "allow",
                    drop_page_cache=plan.page_cache == "drop",
                    idle_pause_s=plan.idle_pause_s or 0,
                    path=case.path,
                    keep_warm_period_s=plan.keep_warm_period_s or 0,
                    skip_unfit=plan.skip_unfit,
                    deterministic=plan.deterministic,
                    stream=plan.stream,
                    sampling=job_pb2.SamplingSpec(
                        max_tokens=plan.max_tokens, temperature=plan.temperature, top_p=plan.top_p, seed=plan.seed
                    ),
                    deadlines=job_pb2.DeadlineSpec(
                        prepare_s=deadlines.prepare_s or 0,
                        load_s=deadlines.load_s or 0,
                        request_s=deadlines.request_s or 0,
                        first_token_s=deadlines.first_token_s,
                        token_s=deadlines.token_s,
                    ),
                )
                for case in self.cases
            ],
        )


class Offer(NamedTuple):
    """One of the cases that ``all`` stands for."""

    device: str
    """Empty: the runtime's choice."""
    model: str
    """The model as the plan names it, or the exact variant where a device has several."""


Combination = tuple[str, str, str, str, int, float | None, str]
"""Runtime, model, device, prompt set, concurrency, rate, path."""


def expand(
    plan: Plan, new_id: Callable[[], str], offered: Mapping[tuple[str, str, str], Sequence[Offer]] | None = None
) -> tuple[JobPlan, ...]:
    """One job a host, each with every case, in an order shuffled by the plan's seed (the same on every host).

    ``new_id`` makes the ids of jobs and cases; ``offered`` says by (host, runtime, model) what ``all`` devices are.
    """
    return tuple(JobPlan(new_id(), host, _cases(plan, host.name, new_id, offered or {})) for host in plan.hosts)


def _cases(
    plan: Plan, host: str, new_id: Callable[[], str], offered: Mapping[tuple[str, str, str], Sequence[Offer]]
) -> tuple[CasePlan, ...]:
    combinations: list[Combination] = [
        (runtime, asked, device, prompts.name, concurrency, rate, path)
        for runtime in plan.runtimes
        for model in plan.models
        for given in plan.devices
        for device, asked in (
            offered.get((host, runtime, model), (Offer("", model),)) if given == ALL_DEVICES else (Offer(given, model),)
        )
        for prompts in plan.prompt_sets
        for concurrency in plan.concurrencies
        for rate in plan.rates or (None,)
        for path in plan.paths
    ]
    random.Random(plan.seed or 0).shuffle(combinations)
    cases: list[CasePlan] = []
    for block in range(plan.blocks):
        for runtime, model, device, prompts, concurrency, rate, path in combinations[:: -1 if block % 2 else 1]:
            cases.append(
                CasePlan(
                    case_id=new_id(),
                    case_index=len(cases),
                    runtime=runtime,
                    endpoint_url=plan.endpoint_url if runtime == "endpoint" else "",
                    model=model,
                    device=device,
                    prompt_set=prompts,
                    concurrency=concurrency,
                    rate_per_s=rate,
                    rounds=(plan.rounds + block) // plan.blocks,
                    path=path,
                    block_index=block,
                )
            )
    return tuple(cases)


def _prompt_set_to_proto(prompts: PromptSet) -> job_pb2.PromptSet:
    synthetic = None
    if prompts.token_count is not None:
        synthetic = job_pb2.SyntheticSpec(prompt_token_count=prompts.token_count, prompt_count=prompts.prompt_count)
    return job_pb2.PromptSet(
        name=prompts.name,
        synthetic=synthetic,
        prompts=[
            job_pb2.Prompt(
                prompt_id=prompt.prompt_id,
                messages=[job_pb2.ChatMessage(role=m.role, content=m.content) for m in prompt.messages],
                max_tokens=prompt.max_tokens or 0,
            )
            for prompt in prompts.prompts
        ],
    )
