from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet.v1 import job_pb2
from benchfleet_agent.conditions import DEFAULT_WAIT_S, POLL_S, Conditions, unmeasurable, unmet, wait_until_met
from benchfleet_agent.host_state import HostState
from benchfleet_agent.jobs import JobOrder
from fakes.specs import job_spec

COOL = HostState(cpu_temperature_c=45, device_temperature_c=40, background_cpu_ratio=0.01, on_battery=False)
ALL = Conditions(require_ac=True, cool_temperature_c=50, maximum_background_ratio=0.05, wait_s=10)


def test_a_job_says_what_its_rounds_wait_for() -> None:
    spec = job_spec()
    asked = job_pb2.HostConditions(require_ac=True, cool_temperature_c=50, maximum_background_ratio=0.05, wait_s=10)
    spec.conditions.CopyFrom(asked)

    assert JobOrder.from_proto("job-1", spec).conditions == ALL


def test_no_limit_is_no_condition_and_no_share_is_one() -> None:
    assert JobOrder.from_proto("job-1", job_spec()).conditions is None
    assert Conditions.from_proto(job_pb2.HostConditions(wait_s=5)) is None
    quiet = Conditions.from_proto(job_pb2.HostConditions(maximum_background_ratio=0))
    assert quiet == Conditions(maximum_background_ratio=0.0, wait_s=DEFAULT_WAIT_S)


@pytest.mark.parametrize(
    ("conditions", "field"),
    [
        (job_pb2.HostConditions(cool_temperature_c=0), "cool_temperature_c"),
        (job_pb2.HostConditions(cool_temperature_c=math.nan), "cool_temperature_c"),
        (job_pb2.HostConditions(cool_temperature_c=151), "cool_temperature_c"),
        (job_pb2.HostConditions(maximum_background_ratio=-0.1), "maximum_background_ratio"),
        (job_pb2.HostConditions(maximum_background_ratio=5), "maximum_background_ratio"),
        (job_pb2.HostConditions(require_ac=True, wait_s=-1), "wait_s"),
        (job_pb2.HostConditions(require_ac=True, wait_s=math.inf), "wait_s"),
    ],
)
def test_conditions_out_of_range_are_refused_by_name(conditions: job_pb2.HostConditions, field: str) -> None:
    spec = job_spec()
    spec.conditions.CopyFrom(conditions)

    with pytest.raises(WorkFailed, match=field) as refused:
        JobOrder.from_proto("job-1", spec)
    assert refused.value.failure.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("state", "reasons"),
    [
        (COOL, []),
        (HostState(cpu_temperature_c=50, background_cpu_ratio=0.05, has_battery=False), []),
        (HostState(cpu_temperature_c=45, background_cpu_ratio=0.01, on_battery=True), [Reason.ON_BATTERY]),
        (
            HostState(cpu_temperature_c=45, device_temperature_c=51, background_cpu_ratio=0, on_battery=False),
            [Reason.TOO_HOT],
        ),
        (HostState(cpu_temperature_c=45, background_cpu_ratio=0.06, on_battery=False), [Reason.BACKGROUND_LOAD]),
        (HostState(), [Reason.ON_BATTERY, Reason.TOO_HOT, Reason.BACKGROUND_LOAD]),
    ],
    ids=["all hold", "at the limits", "battery", "hot device", "busy", "nothing told"],
)
def test_a_condition_holds_only_when_the_host_says_so(state: HostState, reasons: list[Reason]) -> None:
    assert [one.reason for one in unmet(ALL, state)] == reasons


def test_people_are_told_what_is_awaited_and_how_it_is() -> None:
    state = HostState(on_battery=True, battery_ratio=0.5, cpu_temperature_c=71.4, background_cpu_ratio=0.321)

    assert [one.awaited for one in unmet(ALL, state)] == [
        "mains power (now on battery, 50% charged)",
        "50 °C or less (now 71 °C)",
        "other programs to use at most 5% of the processors (now 32.1%)",
    ]


@pytest.mark.parametrize(
    ("state", "device", "missing"),
    [
        (HostState(has_battery=False, cpu_temperature_c=40), "cpu", None),
        (HostState(has_battery=True, cpu_temperature_c=40), "cpu", "battery"),
        (HostState(on_battery=True, device_temperature_c=40), "gpu", None),
        (HostState(on_battery=True, device_temperature_c=40), None, None),
        (HostState(on_battery=True, device_temperature_c=40), "cpu", "processor's temperature"),
        (HostState(on_battery=True, cpu_temperature_c=40), "npu", "npu's temperature"),
        (HostState(on_battery=True), None, "processor's temperature"),
    ],
)
def test_a_host_must_be_able_to_tell_of_what_the_case_runs_on(
    state: HostState, device: str | None, missing: str | None
) -> None:
    told = unmeasurable(ALL, state, device, counts_processor_time=True)

    assert told is None if missing is None else missing in (told or "")


def test_what_is_not_asked_for_need_not_be_told() -> None:
    cool = Conditions(cool_temperature_c=50)

    assert unmeasurable(cool, HostState(cpu_temperature_c=40), None, counts_processor_time=False) is None


def test_without_processor_time_there_is_no_background_to_wait_for() -> None:
    told = unmeasurable(Conditions(maximum_background_ratio=0.1), HostState(), None, counts_processor_time=False)

    assert "processor time" in (told or "")


class Host:
    """A host that shows one state after the other, the last one for ever; pausing moves its clock."""

    def __init__(self, *states: HostState) -> None:
        self._states: Iterator[HostState] = iter(states)
        self._state = HostState()
        self.now_s = 100.0
        self.pauses: list[float] = []
        self.reports: list[str] = []

    def read(self) -> HostState:
        self._state = next(self._states, self._state)
        return self._state

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    def wait(self, conditions: Conditions) -> HostState:
        return wait_until_met(conditions, self.read, self.pause, self.reports.append, lambda: self.now_s)


HOT = HostState(cpu_temperature_c=80)


def test_a_round_begins_at_once_where_all_holds() -> None:
    host = Host(COOL)

    assert host.wait(Conditions(cool_temperature_c=50)) == COOL
    assert (host.pauses, host.reports) == ([], [])


def test_a_round_begins_as_soon_as_all_holds() -> None:
    host = Host(HOT, HOT, COOL, HOT)

    assert host.wait(Conditions(cool_temperature_c=50)) == COOL
    assert host.pauses == [POLL_S, POLL_S]
    assert host.reports == ["waiting for the host: 50 °C or less (now 80 °C)"]


def test_the_load_of_others_is_measured_over_a_moment_without_our_own() -> None:
    in_our_round = HostState(background_cpu_ratio=0.0)
    busy, quiet = HostState(background_cpu_ratio=0.5), HostState(background_cpu_ratio=0.02)
    host = Host(in_our_round, busy, quiet)

    assert host.wait(Conditions(maximum_background_ratio=0.05)) == quiet
    assert host.pauses == [POLL_S, POLL_S]


def test_what_does_not_come_in_time_fails_with_its_reason_and_what_to_do() -> None:
    host = Host(HOT)

    with pytest.raises(WorkFailed) as failed:
        host.wait(Conditions(require_ac=True, cool_temperature_c=50, wait_s=3))

    assert failed.value.failure.reason is Reason.ON_BATTERY
    assert failed.value.failure.message == (
        "waited 3 s for mains power (now unknown) and 50 °C or less (now 80 °C): connect the machine to mains, or wait "
        "longer (--condition-timeout)"
    )
    assert sum(host.pauses) == 3


def test_a_long_wait_is_not_told_every_second() -> None:
    host = Host(HOT)

    with pytest.raises(WorkFailed):
        host.wait(Conditions(cool_temperature_c=50, wait_s=20))

    assert len(host.reports) == 4
