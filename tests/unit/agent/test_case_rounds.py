from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet.v1 import event_pb2
from benchfleet_agent.case_rounds import CaseRounds
from benchfleet_agent.conditions import Conditions
from benchfleet_agent.host_state import Facts
from benchfleet_agent.host_state.readers import HostStates
from benchfleet_agent.jobs import CaseOrder, JobOrder, Outcome
from benchfleet_agent.journal import Journal
from benchfleet_agent.load.record import Accounting, RequestRecord, Status
from benchfleet_agent.load_link import LoadLink
from benchfleet_agent.probes import Targets
from benchfleet_agent.recorder import Recorder
from benchfleet_agent.runtimes import Session
from fakes.specs import case_spec, job_spec

HOT_S = 10.0
"""How long the fake machine stays hot."""


def order(**changes: Any) -> CaseOrder:
    (case,) = JobOrder.from_proto("job-1", job_spec(case_spec())).cases
    return replace(case, **changes)


class Machine:
    """A clock, a load process, a runtime, a journal: everything around the rounds, in one place."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events: list[event_pb2.Event] = []
        self.commands: list[Mapping[str, Any]] = []
        self.phases: list[str] = []
        self.fail: Reason | None = None
        self.loaded: bool | None = None

    def append(self, _: str, events: tuple[event_pb2.Event, ...]) -> None:
        self.events += events

    def check(self) -> None:
        if self.fail is not None:
            raise WorkFailed(self.fail, "gone")

    def round(self, command: Mapping[str, Any], _: Session, take: Callable[[RequestRecord], None]) -> dict[str, Any]:
        self.commands.append(command)
        for request in command["requests"]:
            ids = {name: request[name] for name in ("request_id", "prompt_id")}
            take(RequestRecord(**ids, status=Status.OK, end_ns=1, accounting=Accounting.CONSISTENT))
        begin, self.now_s = self.now_s, self.now_s + 1
        return {"start_ns": int(begin * 1e9), "end_ns": int(self.now_s * 1e9), "cpu_ns": 1, "rss_bytes": 2}

    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    def latest(self) -> dict[str, dict[str, float | int | None]]:
        busy = int(self.now_s * 1e9)
        return {
            "": {
                "host_cpu_temperature_c": 90.0 if self.now_s < HOT_S else 40.0,
                "host_available_bytes": 77,
                "host_cpu_busy_ns": busy,
                "host_cpu_total_ns": 4 * busy,
                "agent_cpu_ns": 0,
            }
        }

    def carry_out(self, case: CaseOrder, conditions: Conditions | None = None, *, runtime_seen: bool = True) -> Outcome:
        states = HostStates(self.latest, Targets, Facts, clock_ns=lambda: int(self.now_s * 1e9))
        rounds = CaseRounds(
            case,
            Recorder(cast("Journal", self), "job-1", lambda: None),
            cast("Session", self),
            cast("LoadLink", self),
            states,
            phase=lambda phase, _: self.phases.append(phase),
            interrupted=lambda: None,
            wait=self.wait,
            conditions=conditions,
            runtime_seen=runtime_seen,
            is_loaded=lambda: self.loaded,
            clock=lambda: self.now_s,
        )
        return rounds.carry_out()

    def of_kind(self, kind: str) -> list[Any]:
        return [getattr(event, kind) for event in self.events if event.WhichOneof("kind") == kind]

    @property
    def kinds(self) -> list[str]:
        return [one.kind for one in self.of_kind("round_started")]

    @property
    def said(self) -> list[str]:
        return [one.message for one in self.of_kind("progress_reported")]


COOL = Conditions(cool_temperature_c=50, wait_s=100)


def test_every_round_carries_the_conditions_before_and_after() -> None:
    machine = Machine()

    assert machine.carry_out(order()) == Outcome("succeeded")

    assert machine.kinds == ["warmup", "counted", "counted"]
    edges = [*machine.of_kind("round_started"), *machine.of_kind("round_finished")]
    assert [edge.host_state.available_bytes for edge in edges] == [77] * 6


def test_a_runtime_whose_processes_are_not_known_is_not_taken_for_other_programs() -> None:
    seen, unseen = Machine(), Machine()

    seen.carry_out(order())
    unseen.carry_out(order(), runtime_seen=False)

    assert [one.host_state.background_cpu_ratio for one in seen.of_kind("round_finished")] == [0.25] * 3
    assert not any(one.host_state.HasField("background_cpu_ratio") for one in unseen.of_kind("round_finished"))


def test_counted_rounds_wait_for_their_conditions_and_say_so() -> None:
    machine = Machine()

    machine.carry_out(order(), COOL)

    assert machine.kinds == ["warmup", "counted", "counted"]
    heat = [one.host_state.cpu_temperature_c for one in machine.of_kind("round_started")]
    assert heat == [90, 40, 40]
    assert machine.said[0] == "waiting for the host: 50 °C or less (now 90 °C)"


def test_a_case_whose_conditions_do_not_come_fails_with_their_reason() -> None:
    with pytest.raises(WorkFailed) as failed:
        Machine().carry_out(order(), replace(COOL, wait_s=3))

    assert failed.value.failure.reason is Reason.TOO_HOT


def test_a_runtime_that_dies_meanwhile_ends_the_wait() -> None:
    machine = Machine()
    machine.fail = Reason.RUNTIME_CRASHED

    with pytest.raises(WorkFailed) as failed:
        machine.carry_out(order(), COOL)

    assert failed.value.failure.reason is Reason.RUNTIME_CRASHED
    assert machine.now_s < 3


def test_a_long_wait_is_kept_warm_by_single_tokens_that_never_count() -> None:
    machine = Machine()

    machine.carry_out(order(keep_warm_s=3.0), COOL)

    assert machine.kinds == ["warmup", "keepwarm", "keepwarm", "counted", "counted"]
    assert [one.warmup for one in machine.of_kind("round_started")] == [True, True, True, False, False]
    assert [one.round_index for one in machine.of_kind("round_started")] == [0, 1, 2, 3, 4]
    (request,) = machine.commands[1]["requests"]
    assert request["max_tokens"] == 1


def test_what_counted_rounds_send_does_not_depend_on_how_long_they_waited() -> None:
    quick, slow = Machine(), Machine()
    case = order(deterministic=True, rate_per_s=1.0, round_duration_s=1.0)

    quick.now_s = HOT_S
    quick.carry_out(case, COOL)
    slow.carry_out(replace(case, keep_warm_s=2.0), COOL)

    def sent(machine: Machine) -> list[Any]:
        pairs = zip(machine.commands, machine.kinds, strict=True)
        return [
            (command["prefix_seed"], command["seed"], [one["prompt_id"] for one in command["requests"]])
            for command, kind in pairs
            if kind != "keepwarm"
        ]

    assert "keepwarm" in slow.kinds
    assert sent(slow) == sent(quick)


def test_requests_that_keep_warm_differ_from_each_other_at_their_beginning() -> None:
    machine = Machine()

    machine.carry_out(order(keep_warm_s=2.0), COOL)

    seeds = [command["prefix_seed"] for command in machine.commands]
    assert len(seeds) == len(set(seeds))


def test_the_pause_that_is_measured_is_left_cold() -> None:
    machine = Machine()

    machine.carry_out(order(idle_pause_s=30.0, keep_warm_s=2.0))

    assert machine.kinds == ["warmup", "counted", "counted", "idle"]


def test_a_round_repeats_its_prompts_until_as_many_as_asked_for_can_be_in_flight() -> None:
    machine = Machine()
    few = len(order().prompts)  # type: ignore[arg-type]
    machine.carry_out(order(concurrency=2 * few + 1, idle_pause_s=1.0))

    *rounds, idle = [[one["prompt_id"] for one in command["requests"]] for command in machine.commands]
    assert all(len(sent) == 3 * few for sent in rounds)
    assert all({sent.count(prompt) for prompt in sent} == {3} for sent in rounds), "each as often as the others"
    assert len(idle) == 1


def test_rounds_by_time_or_rate_repeat_by_themselves() -> None:
    for changes in ({"round_duration_s": 1.0}, {"rate_per_s": 5.0}):
        machine = Machine()
        machine.carry_out(order(concurrency=64, **changes))
        assert all(len(command["requests"]) == len(order().prompts) for command in machine.commands)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loaded", "told"), [(False, 1), (True, 0), (None, 0)])
def test_a_model_unloaded_in_a_pause_is_told_where_the_runtime_says_so(loaded: bool | None, told: int) -> None:
    machine = Machine()
    machine.loaded = loaded

    machine.carry_out(order(idle_pause_s=30.0))

    assert sum("unloaded the model" in message for message in machine.said) == told
    *before, idle = machine.of_kind("round_started")
    assert not any(one.HasField("model_unloaded") for one in before)
    assert idle.HasField("model_unloaded") == (loaded is not None)
    assert idle.model_unloaded == (loaded is False)
