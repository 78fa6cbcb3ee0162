"""What becomes of a job whose stream ends, in every way that it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from benchfleet.failures import Failure, Reason
from benchfleet.transport import refusal
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_controller import campaign, fleet
from benchfleet_controller.fleet import Agent, repeated
from benchfleet_controller.follow import follow
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.problems import HostProblem
from benchfleet_controller.store import Store
from benchfleet_controller.writer import Writer


def refused(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="as scripted")


def crowded() -> grpc.aio.AioRpcError:
    status = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, Failure(Reason.HOST_BUSY, "16 callers follow jobs here"))
    trailing = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, details=status.details)


def events(first: int, last: int, *, end: bool = False) -> list[event_pb2.Event]:
    made = [event_pb2.Event(sequence=number) for number in range(first, last + 1)]
    if end:
        made[-1].job_finished.state = job_pb2.JOB_STATE_FINISHED
    return made


class FakeStore:
    """Jobs by id as (state, committed sequence, released); remembers why a job failed."""

    def __init__(self, **jobs: tuple[str, int, bool]) -> None:
        self.jobs = jobs
        self.failures: dict[str, Failure] = {}
        self.path = SimpleNamespace(exists=lambda: True)

    def commit_many(self, batches: Mapping[str, Sequence[event_pb2.Event]], more: object) -> dict[str, int]:
        for job_id, batch in batches.items():
            ended = batch[-1].HasField("job_finished")
            self.jobs[job_id] = ("finished" if ended else "running", batch[-1].sequence, False)
        return {job_id: self.jobs[job_id][1] for job_id in batches}

    def committed_sequences(self, job_ids: Collection[str]) -> dict[str, int]:
        return {job_id: self.jobs[job_id][1] for job_id in job_ids}

    def open_jobs(self) -> list[Any]:
        return [
            SimpleNamespace(job_id=job_id, run_id=job_id.partition("-")[0], host_name="lab", state=state)
            for job_id, (state, _, released) in self.jobs.items()
            if not released
        ]

    def mark_job(self, job_id: str, state: str, failure: Failure) -> None:
        self.jobs[job_id] = (state, self.jobs[job_id][1], True)
        self.failures[job_id] = failure

    def mark_released(self, job_ids: Collection[str]) -> None:
        for job_id in [job_ids] if isinstance(job_ids, str) else job_ids:
            self.jobs[job_id] = (*self.jobs[job_id][:2], True)


class FakeStub:
    """An agent's answers: a script of streams (events, then an error or the end), and what it holds."""

    def __init__(self, *streams: list[event_pb2.Event] | Exception, held: Mapping[str, int] | None = None) -> None:
        self.streams = list(streams)
        self.held = dict(held or {})
        self.asked: list[int] = []
        self.released: list[int] = []

    async def StreamJobEvents(  # noqa: N802
        self, request: pb.StreamJobEventsRequest
    ) -> AsyncIterator[pb.StreamJobEventsResponse]:
        self.asked.append(request.committed_sequence)
        what = self.streams.pop(0)
        if isinstance(what, Exception):
            raise what
        yield pb.StreamJobEventsResponse(events=what)

    async def ListJobs(self, request: pb.ListJobsRequest, timeout: float) -> pb.ListJobsResponse:  # noqa: N802, ASYNC109
        jobs = [job_pb2.Job(job_id=job_id, last_sequence=last) for job_id, last in self.held.items()]
        return pb.ListJobsResponse(jobs=jobs)

    async def ReleaseJobEvents(  # noqa: N802
        self,
        request: pb.ReleaseJobEventsRequest,
        timeout: float,  # noqa: ASYNC109
    ) -> pb.ReleaseJobEventsResponse:
        self.released.append(request.committed_sequence)
        return pb.ReleaseJobEventsResponse()


def an_agent(stub: FakeStub) -> Agent:
    return Agent(HostTarget("lab", "127.0.0.1:1"), cast("Any", None), cast("Any", None), cast("Any", stub), "", "", 0.0)


def carry_out(stub: FakeStub, store: FakeStore) -> HostProblem | None:
    async def go() -> None:
        await follow(an_agent(stub), "job", Writer(cast("Store", store), period_s=0.0), lambda host, event: None)

    try:
        asyncio.run(go())
    except HostProblem as problem:
        return problem
    return None


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("benchfleet_controller.follow.FIRST_PAUSE_S", 0.0)


def test_a_job_that_ends_is_released_and_said_to_be() -> None:
    stub, store = FakeStub(events(1, 5, end=True)), FakeStore(job=("pending", 0, False))

    assert carry_out(stub, store) is None
    assert (stub.released, store.jobs["job"]) == ([5], ("finished", 5, True))


def test_a_broken_stream_is_asked_again_from_what_is_committed() -> None:
    stub = FakeStub(refused(grpc.StatusCode.UNAVAILABLE), events(4, 6, end=True))
    store = FakeStore(job=("running", 3, False))

    assert carry_out(stub, store) is None
    assert (stub.asked, stub.released) == ([3, 3], [6])


def test_a_place_among_the_followers_is_waited_for() -> None:
    stub, store = FakeStub(crowded(), crowded(), events(1, 2, end=True)), FakeStore(job=("pending", 0, False))

    assert carry_out(stub, store) is None
    assert store.jobs["job"] == ("finished", 2, True)


def test_a_place_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchfleet_controller.follow.PATIENCE_S", -1.0)
    stub, store = FakeStub(crowded()), FakeStore(job=("running", 3, False))

    problem = carry_out(stub, store)

    assert problem is not None
    assert (problem.failure.reason, store.jobs["job"][0]) == (Reason.HOST_BUSY, "running")


@pytest.mark.parametrize(
    ("ending", "held", "why"),
    [
        (refused(grpc.StatusCode.NOT_FOUND), {}, "another controller"),
        ([], {}, "another controller"),
        (refused(grpc.StatusCode.OUT_OF_RANGE), {"job": 2}, "ends at event 2"),
        (refused(grpc.StatusCode.OUT_OF_RANGE), {"job": 90}, "only later events, up to 90"),
    ],
)
def test_a_job_whose_rest_is_nowhere_ends_as_failed_with_a_reason(
    ending: list[event_pb2.Event] | Exception, held: dict[str, int], why: str
) -> None:
    stub, store = FakeStub(ending, held=held), FakeStore(job=("running", 3, False))

    problem = carry_out(stub, store)

    assert problem is not None
    assert problem.failure.reason is Reason.EVENTS_RELEASED
    assert why in problem.failure.message
    assert (store.jobs["job"], store.failures["job"]) == (("failed", 3, True), problem.failure)
    assert stub.released == [3]  # the agent itself keeps what lies above


def test_a_job_that_another_process_has_fetched_into_the_same_file_is_done() -> None:
    stub, store = FakeStub(refused(grpc.StatusCode.NOT_FOUND)), FakeStore(job=("finished", 9, False))

    assert carry_out(stub, store) is None
    assert store.jobs["job"] == ("finished", 9, True)


def test_any_other_refusal_ends_following_and_leaves_the_job_as_it_is() -> None:
    stub, store = FakeStub(refused(grpc.StatusCode.INTERNAL)), FakeStore(job=("running", 3, False))

    problem = carry_out(stub, store)

    assert problem is not None
    assert store.jobs["job"] == ("running", 3, False)


def test_an_agent_that_is_gone_when_all_is_stored_loses_nothing_and_is_told_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "RELEASE_S", -1.0)
    stub, store = FakeStub(events(1, 5, end=True)), FakeStore(job=("pending", 0, False))
    monkeypatch.setattr(stub, "ReleaseJobEvents", gone)

    assert carry_out(stub, store) is None
    assert store.jobs["job"] == ("finished", 5, False), "still to be released"


async def gone(*_: object, **__: object) -> pb.ReleaseJobEventsResponse:
    raise refused(grpc.StatusCode.UNAVAILABLE)


def test_a_copy_leaves_the_events_where_they_are() -> None:
    stub, store = FakeStub(events(1, 5, end=True)), FakeStore(job=("pending", 0, False))

    async def go() -> None:
        writer = Writer(cast("Store", store), period_s=0.0)
        await follow(an_agent(stub), "job", writer, lambda host, event: None, release=False)

    asyncio.run(go())
    assert (stub.released, store.jobs["job"]) == ([], ("finished", 5, True))


def test_a_job_of_another_holder_is_foreign_unless_its_plan_is_here() -> None:
    plans = {"own": "{}", "copied": None}
    store = SimpleNamespace(
        path=SimpleNamespace(exists=lambda: True),
        run_jobs=lambda run_id: [SimpleNamespace(job_id="job")] if run_id in plans else [],
        run=lambda run_id: {"plan": plans[run_id]},
    )

    def foreign(run_id: str, held_by: str) -> bool:
        job = job_pb2.Job(job_id="job", run_id=run_id, held_by=held_by)
        return campaign._is_foreign(cast("Store", store), job)

    assert [foreign(run_id, "ada@lab") for run_id in ("own", "copied", "unknown")] == [False, True, True]
    assert not foreign("unknown", campaign.holder())


def calls(*answers: str | Exception) -> tuple[list[str | Exception], Any]:
    left = list(answers)

    async def call() -> str:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return left, call


def test_a_call_is_repeated_while_the_connection_breaks() -> None:
    _, call = calls(refused(grpc.StatusCode.UNAVAILABLE), refused(grpc.StatusCode.UNAVAILABLE), "answer")

    assert asyncio.run(repeated(call)) == "answer"


@pytest.mark.parametrize(
    ("code", "patience_s"), [(grpc.StatusCode.NOT_FOUND, 20.0), (grpc.StatusCode.UNAVAILABLE, -1.0)]
)
def test_a_refusal_is_not_repeated_and_patience_ends(code: grpc.StatusCode, patience_s: float) -> None:
    left, call = calls(refused(code), "never asked for")

    with pytest.raises(grpc.RpcError):
        asyncio.run(repeated(call, patience_s))
    assert left == ["never asked for"]


def close_unheld(store: FakeStore, *held: str) -> list[str]:
    said: list[str] = []

    async def go() -> None:
        writer = Writer(cast("Store", store), period_s=0.0)
        await campaign._close_unheld(an_agent(FakeStub()), set(held), cast("Store", store), writer, None, said.append)

    asyncio.run(go())
    return said


def test_a_job_that_its_agent_does_not_know_is_closed_with_a_reason() -> None:
    store = FakeStore(a=("pending", 0, False))

    assert "closed" in close_unheld(store)[0]
    assert (store.jobs["a"][0], store.failures["a"].reason) == ("failed", Reason.JOB_NOT_FOUND)


def test_an_ended_job_that_its_agent_has_forgotten_is_marked_released() -> None:
    store = FakeStore(a=("finished", 9, False))

    close_unheld(store)

    assert store.jobs["a"] == ("finished", 9, True)


def test_jobs_that_are_held_or_wait_for_their_turn_are_left_alone() -> None:
    jobs = {"a": ("running", 3, False), "run-1": ("running", 3, False), "run-2": ("pending", 0, False)}
    store = FakeStore(**jobs)

    assert close_unheld(store, "a", "run-1") == []
    assert store.jobs == jobs
