"""The calls about models without a network: a context that records how a call ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import host_pb2
from benchfleet_agent import model_calls
from benchfleet_agent.model_calls import ModelCalls
from benchfleet_agent.runtimes import Model, Progress

MODEL = Model("tiny", "tiny-cpu:1", "cpu", size_bytes=5, cached=False)


class Ended(Exception):
    """What a call's status was."""

    def __init__(self, status: Any) -> None:
        super().__init__(status.message)
        self.code, self.message = status.code, status.message


class Context:
    async def abort_with_status(self, status: Any) -> None:
        raise Ended(SimpleNamespace(code=status.code, message=status.details))


class FakeRuntime:
    """Pulls and removes as a test says."""

    name = "foundry"

    def __init__(self) -> None:
        self.work: Callable[[Progress, Callable[[], bool]], None] = lambda progress, cancelled: None
        self.began = threading.Event()
        self.active = self.most = 0

    def resolve(self, model: str, device: str | None) -> Model:
        if model == "unknown":
            raise WorkFailed(Reason.MODEL_NOT_FOUND, "no such model; did you mean tiny?")
        return MODEL if model == "tiny" else replace(MODEL, alias=model, variant=f"{model}-cpu:1")

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            self.began.set()
            progress("half", 0.5)
            self.work(progress, cancelled)
        finally:
            self.active -= 1
        return replace(model, cached=True)

    def remove(self, model: Model) -> int | None:
        return 5


class _Calls(ModelCalls):
    def __init__(self, runtime: Any, measure: Any = None) -> None:
        super().__init__(measure)
        self._runtimes: Any = SimpleNamespace(find=lambda name, url="": runtime)
        self._starting = asyncio.Lock()
        self.job: Any = None

    def _active(self) -> Any:
        return self.job


def Calls(runtime: Any, measure: Any = None) -> Any:  # noqa: N802 (stands for a class)
    return _Calls(runtime, measure)  # type: ignore[abstract]  # the other calls are not its part


def on_loop(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


async def pull(calls: Any, model: str = "tiny", **fields: Any) -> list[pb.PullModelResponse]:
    context: Any = Context()
    return [
        one async for one in calls.PullModel(pb.PullModelRequest(runtime="foundry", model=model, **fields), context)
    ]


async def refused(work: Any) -> Ended:
    with pytest.raises(Ended) as caught:
        await work
    return caught.value


def test_a_pull_tells_progress_and_ends_with_the_model() -> None:
    async def check() -> None:
        responses = await pull(Calls(FakeRuntime()))
        assert (responses[0].message, responses[0].fraction) == ("half", 0.5)
        assert responses[-1].model.variant == "tiny-cpu:1"
        assert responses[-1].model.cached

    on_loop(check)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.DOWNLOAD_FAILED, grpc.StatusCode.FAILED_PRECONDITION),
        (Reason.MODEL_NOT_FOUND, grpc.StatusCode.NOT_FOUND),
        (Reason.DISK_FULL, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_a_pull_that_fails_is_a_status_with_its_reason(reason: Reason, code: grpc.StatusCode) -> None:
    async def check() -> None:
        runtime = FakeRuntime()

        def work(progress: Progress, cancelled: Callable[[], bool]) -> None:
            raise WorkFailed(reason, "why")

        runtime.work = work
        calls = Calls(runtime)
        ended = await refused(pull(calls))
        assert (ended.code, ended.message) == (code, "why")
        assert calls.model_work == ""

    on_loop(check)


def test_an_unknown_model_is_not_found_and_a_hostile_request_invalid() -> None:
    async def check() -> None:
        calls = Calls(FakeRuntime())
        assert (await refused(pull(calls, "unknown"))).code is grpc.StatusCode.NOT_FOUND
        hostile: list[dict[str, Any]]
        hostile = [{"model": ""}, {"model": "x\n"}, {"model": "x" * 301}, {"timeout_s": -1.0},
                   {"timeout_s": float("nan")}]  # fmt: skip
        for fields in hostile:
            assert (await refused(pull(calls, **{"model": "tiny", **fields}))).code is grpc.StatusCode.INVALID_ARGUMENT

    on_loop(check)


def test_nothing_is_done_to_models_while_a_job_runs() -> None:
    async def check() -> None:
        calls = Calls(FakeRuntime(), lambda refresh: host_pb2.MachineLimits())
        calls.job = SimpleNamespace(order=SimpleNamespace(job_id="j-1", held_by="anna"))
        context: Any = Context()
        remove = pb.RemoveModelRequest(runtime="foundry", model="tiny")
        for call in (
            pull(calls),
            calls.RemoveModel(remove, context),
            calls.MeasureLimits(pb.MeasureLimitsRequest(), context),
        ):
            ended = await refused(call)
            assert ended.code is grpc.StatusCode.ABORTED
            assert "j-1 for anna" in ended.message

    on_loop(check)


def test_pulls_wait_for_each_other_and_the_same_one_is_refused() -> None:
    async def check() -> None:
        runtime, go = FakeRuntime(), threading.Event()
        runtime.work = lambda progress, cancelled: go.wait(30) and None  # type: ignore[assignment]
        calls = Calls(runtime)
        first = asyncio.create_task(pull(calls))
        assert await asyncio.to_thread(runtime.began.wait, 30)
        assert calls.model_work == "it fetches tiny-cpu:1"
        second = asyncio.create_task(pull(calls, "other"))
        ended = await refused(pull(calls))
        assert ended.code is grpc.StatusCode.ABORTED
        assert "already" in ended.message
        removal = calls.RemoveModel(pb.RemoveModelRequest(runtime="foundry", model="tiny"), Context())
        assert (await refused(removal)).code is grpc.StatusCode.ABORTED
        go.set()
        await first
        responses = await second
        assert "waiting" in responses[0].message
        assert runtime.most == 1
        assert calls.model_work == ""

    on_loop(check)


def test_a_caller_that_goes_away_ends_the_pull_and_frees_the_host() -> None:
    async def check() -> None:
        runtime, over = FakeRuntime(), threading.Event()

        def work(progress: Progress, cancelled: Callable[[], bool]) -> None:
            while not cancelled():
                over.wait(0.001)
            over.set()
            raise WorkFailed(Reason.CANCELLED, "ended")

        runtime.work = work
        calls = Calls(runtime)
        task = asyncio.create_task(pull(calls))
        assert await asyncio.to_thread(runtime.began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over.is_set()
        assert (calls.model_work, runtime.active) == ("", 0)
        runtime.work = lambda progress, cancelled: None
        assert (await pull(calls))[-1].model.cached

    on_loop(check)


def test_a_pull_past_its_limit_is_given_up() -> None:
    async def check() -> None:
        runtime, pause = FakeRuntime(), threading.Event()

        def work(progress: Progress, cancelled: Callable[[], bool]) -> None:
            while not cancelled():
                pause.wait(0.001)
            raise WorkFailed(Reason.CANCELLED, "ended")

        runtime.work = work
        ended = await refused(pull(Calls(runtime), timeout_s=0.01))
        assert "pull again" in ended.message

    on_loop(check)


def test_a_silent_pull_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        runtime, enough = FakeRuntime(), threading.Event()
        runtime.work = lambda progress, cancelled: enough.wait(30) and None  # type: ignore[assignment]
        monkeypatch.setattr(model_calls, "HEARTBEAT_S", 0.001)
        seen = 0
        context: Any = Context()
        async for response in Calls(runtime).PullModel(pb.PullModelRequest(runtime="foundry", model="tiny"), context):
            seen += response.message == "half" and not response.HasField("fraction")
            if seen == 3:
                enough.set()
        assert seen >= 3

    on_loop(check)


def test_removing_says_what_it_freed_and_unloading_that_it_cannot() -> None:
    async def check() -> None:
        calls, context = Calls(FakeRuntime()), Context()
        answer = await calls.RemoveModel(pb.RemoveModelRequest(runtime="foundry", model="tiny"), context)
        assert answer.freed_bytes == 5
        unload = calls.UnloadModel(pb.UnloadModelRequest(runtime="foundry", model="tiny"), context)
        ended = await refused(unload)
        assert ended.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "only while its case runs" in ended.message

    on_loop(check)


def test_limits_are_measured_when_the_agent_can() -> None:
    async def check() -> None:
        asked: list[bool] = []

        def measure(refresh: bool) -> host_pb2.MachineLimits:
            asked.append(refresh)
            return host_pb2.MachineLimits(thread_count=2)

        context: Any = Context()
        request = pb.MeasureLimitsRequest(refresh=True)
        assert (await Calls(FakeRuntime(), measure).MeasureLimits(request, context)).limits.thread_count == 2
        assert asked == [True]
        ended = await refused(Calls(FakeRuntime()).MeasureLimits(request, context))
        assert ended.code is grpc.StatusCode.FAILED_PRECONDITION

    on_loop(check)


def test_failures_have_the_documented_status() -> None:
    assert model_calls.status_of(Failure(Reason.RUNTIME_UNAVAILABLE, "")) is grpc.StatusCode.NOT_FOUND
    assert model_calls.status_of(Failure(Reason.UNSUPPORTED, "")) is grpc.StatusCode.FAILED_PRECONDITION
