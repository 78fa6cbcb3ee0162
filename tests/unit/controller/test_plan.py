from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from benchfleet_controller.plan import (
    DEFAULT_PROMPTS,
    DEVICES,
    ChatMessage,
    Deadlines,
    HostTarget,
    JobPlan,
    Offer,
    Plan,
    Prompt,
    PromptSet,
    expand,
)  # fmt: skip

SHORT = PromptSet("short", (Prompt("q", (ChatMessage("system", "S"), ChatMessage("user", "U")), 8),))
PLAN = Plan(
    name="p",
    hosts=(HostTarget("a", "127.0.0.1:1"), HostTarget("b", "127.0.0.1:2")),
    models=("m1", "m2"),
    runtimes=("foundry", "endpoint"),
    endpoint_url="http://127.0.0.1:8080",
    devices=("cpu", "gpu"),
    prompt_sets=(DEFAULT_PROMPTS, SHORT),
    concurrencies=(1, 4),
    deadlines=Deadlines(request_s=60, first_token_s=5),
)


def _ids() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"id-{next(numbers)}"


def _order(job: JobPlan) -> list[tuple[str, str, str, str, int]]:
    return [(c.runtime, c.model, c.device, c.prompt_set, c.concurrency) for c in job.cases]


def test_every_combination_is_a_case_on_every_host_once() -> None:
    jobs = expand(PLAN, _ids())

    assert [job.host.name for job in jobs] == ["a", "b"]
    assert len(set(_order(jobs[0]))) == len(jobs[0].cases) == 2 * 2 * 2 * 2 * 2
    assert [case.case_index for case in jobs[0].cases] == list(range(32))
    ids = [job.job_id for job in jobs] + [case.case_id for job in jobs for case in job.cases]
    assert len(set(ids)) == len(ids)


def test_the_order_is_the_seeds_and_the_same_on_every_host_and_every_time() -> None:
    first, second = expand(PLAN, _ids())

    assert _order(first) == _order(second) == _order(expand(PLAN, _ids())[0])
    assert expand(PLAN, _ids()) == expand(PLAN, _ids())
    other = _order(expand(replace(PLAN, seed=43), _ids())[0])
    assert other != _order(first)
    assert sorted(other) == sorted(_order(first))


def test_the_order_of_the_default_seed_never_changes() -> None:
    # A fixed answer: a plan and a seed must give the same order with every Python and every version.
    plan = Plan("p", (HostTarget("a", "x:1"),), ("m1", "m2", "m3", "m4", "m5"))

    assert [case.model for case in expand(plan, _ids())[0].cases] == ["m4", "m2", "m3", "m5", "m1"]


def test_only_the_endpoint_runtime_gets_the_endpoint() -> None:
    for case in expand(PLAN, _ids())[0].cases:
        assert case.endpoint_url == ("http://127.0.0.1:8080" if case.runtime == "endpoint" else "")


def test_a_job_says_everything_on_the_wire() -> None:
    job = expand(PLAN, _ids())[0]
    spec = job.to_proto(PLAN, "run-1", "me@here")

    assert (spec.run_id, spec.held_by, [s.name for s in spec.prompt_sets]) == ("run-1", "me@here", ["default", "short"])
    assert [case.case_id for case in spec.cases] == [case.case_id for case in job.cases]
    (prompt,) = spec.prompt_sets[1].prompts
    assert (prompt.prompt_id, prompt.max_tokens, [m.role for m in prompt.messages]) == ("q", 8, ["system", "user"])
    case = spec.cases[0]
    assert (case.round_count, case.warmup_round_count, case.stream) == (3, 1, True)
    assert (case.sampling.max_tokens, case.sampling.temperature, case.sampling.seed) == (128, 0.0, 42)
    assert case.sampling.HasField("temperature")
    assert (case.deadlines.request_s, case.deadlines.load_s, case.deadlines.first_token_s) == (60, 0, 5)
    assert not case.deadlines.HasField("token_s")


def test_what_is_not_sent_is_absent_on_the_wire() -> None:
    plan = replace(PLAN, temperature=None, top_p=None, seed=None)
    sampling = expand(plan, _ids())[0].to_proto(plan, "r", "me").cases[0].sampling

    assert not any(sampling.HasField(name) for name in ("temperature", "top_p", "seed"))


def test_blocks_run_every_case_again_in_the_opposite_order_and_split_the_rounds() -> None:
    plan = replace(PLAN, runtimes=("foundry",), prompt_sets=(SHORT,), concurrencies=(1,), rounds=5, blocks=2)
    cases = expand(plan, _ids())[0].cases

    first, second = cases[:4], cases[4:]
    assert [(c.model, c.device) for c in second] == [(c.model, c.device) for c in reversed(first)]
    assert {c.rounds for c in first} | {c.rounds for c in second} == {2, 3}
    assert [c.block_index for c in cases] == [0] * 4 + [1] * 4
    assert len({c.case_id for c in cases}) == 8


def test_all_devices_are_those_the_host_offers_and_none_is_the_runtimes_choice() -> None:
    plan = replace(PLAN, devices=("all",), models=("m1",), runtimes=("foundry",), prompt_sets=(SHORT,))
    plan = replace(plan, concurrencies=(1,))
    a, b = expand(plan, _ids(), {("a", "foundry", "m1"): [Offer(one, "m1") for one in DEVICES]})

    assert sorted(case.device for case in a.cases) == ["cpu", "gpu", "npu"]
    assert [case.device for case in b.cases] == [""]
