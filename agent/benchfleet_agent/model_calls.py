"""The calls about models: pull, remove, unload; and the measurement of the machine's limits.

All four would disturb a measurement, so none begins while a job runs, and no job begins while one of them runs.
Pulls wait for each other: two at once would share the network and both be slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.transport import refusal
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, host_pb2
from benchfleet_agent.executor import RunningJob, Runtimes
from benchfleet_agent.jobs import DEVICES
from benchfleet_agent.keep_awake import kept_awake
from benchfleet_agent.recorder import model_to_proto
from benchfleet_agent.runtimes import (
    LibraryRuntime,
    Model,
    PullingRuntime,
    RemovingRuntime,
    Runtime,
    UnloadingRuntime,
)

T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Measure: TypeAlias = Callable[[bool], host_pb2.MachineLimits]
"""Measures the machine's limits; True: also when there is a measurement."""
PULL_S = 6 * 3_600.0
"""A pull that takes longer is given up when the caller names no limit."""
LONGEST_PULL_S = 7 * 86_400.0
MAXIMUM_NAME = 300
MAXIMUM_RUNTIME = 100
MAXIMUM_MESSAGE_BYTES = 1_500
MAXIMUM_QUESTIONS = 8
"""Questions to runtimes at a time. A server may not answer for seconds: they have threads of their own, so that
following, starting and ending jobs wait for none of them."""
STALL_S = 300.0
"""So is one that reports nothing for so long."""
HEARTBEAT_S = 10.0
"""A pull that has nothing to tell says so that often, so that no middlebox takes the stream for dead."""


class ModelRequest(Protocol):
    """What the requests about one model share."""

    runtime: str
    endpoint_url: str
    model: str
    device: str


class ModelCalls(agent_service_pb2_grpc.AgentServiceServicer):
    """The part of the service that changes what models a host holds."""

    _runtimes: Runtimes
    _starting: asyncio.Lock

    def __init__(self, measure_limits: Measure | None = None) -> None:
        self._measure_limits = measure_limits
        self._questions = ThreadPoolExecutor(MAXIMUM_QUESTIONS, "question")
        self._pulling = asyncio.Lock()
        self._pulls: set[str] = set()
        self._work: list[str] = []

    @property
    def model_work(self) -> str:
        """What is done to this host's models now, for people; empty: nothing."""
        return self._work[0] if self._work else ""

    def _active(self) -> RunningJob | None:
        raise NotImplementedError

    async def PullModel(  # noqa: N802
        self, request: pb.PullModelRequest, context: Context
    ) -> AsyncIterator[pb.PullModelResponse]:
        """Make a model present, telling progress; the work ends when the caller goes away."""
        if not (math.isfinite(request.timeout_s) and 0 <= request.timeout_s <= LONGEST_PULL_S):
            failure = Failure(Reason.INVALID_SPEC, f"timeout_s must lie between 0 and {LONGEST_PULL_S:g} seconds")
            raise await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, failure)
        runtime, model = await self._resolve(request, context, absent=True)
        if not isinstance(runtime, PullingRuntime):
            raise await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, _unsupported(runtime, "fetch models"))
        what = f"{runtime.name} {model.variant}"
        if what in self._pulls:
            failure = Failure(Reason.HOST_BUSY, f"this host fetches {model.variant} already, for another caller")
            raise await refuse(context, grpc.StatusCode.ABORTED, failure)
        self._pulls.add(what)
        try:
            if self._pulling.locked():
                yield pb.PullModelResponse(message=f"{model.variant}: waiting for another pull")
            async with self._pulling:
                async with self._starting:
                    work = await self._exclusively(f"it fetches {model.variant}", context)
                with work:
                    steps = self._pull(runtime, runtime.name, model, request.timeout_s or PULL_S, context)
                    async with contextlib.aclosing(steps):
                        async for response in steps:
                            yield response
        finally:
            self._pulls.discard(what)

    async def _pull(
        self, runtime: PullingRuntime, name: str, model: Model, timeout_s: float, context: Context
    ) -> AsyncGenerator[pb.PullModelResponse, None]:
        """Run one pull on a thread; its progress, then the model. Ends only when the thread has."""
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[tuple[str, float | None] | None] = asyncio.Queue()
        cancelled = threading.Event()

        def tell(message: str, fraction: float | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (message, fraction))

        def work() -> Model:
            try:
                with kept_awake(f"fetching {model.variant}"):
                    return runtime.pull(model, tell, cancelled.is_set, min(STALL_S, timeout_s))
            finally:
                loop.call_soon_threadsafe(told.put_nowait, None)

        done = loop.run_in_executor(None, work)
        late = loop.call_later(timeout_s, cancelled.set)
        last = (f"{model.variant}: fetching", None)
        try:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):  # Python 3.11's wait_for may swallow a cancellation
                        news = await told.get()
                except TimeoutError:
                    news = last
                if news is None:
                    break
                message, fraction = news
                last = (message, None)
                yield pb.PullModelResponse(message=message, fraction=fraction)
            fetched = await done
        except WorkFailed as error:
            failure = error.failure
            if failure.reason is Reason.CANCELLED and cancelled.is_set():
                message = (
                    f"{model.variant} was not there after {timeout_s:g} s; pull again, it goes on where it stopped"
                )
                failure = Failure(Reason.DOWNLOAD_FAILED, message)
            raise await refuse(context, status_of(failure), failure) from None
        finally:
            late.cancel()
            cancelled.set()
            with contextlib.suppress(Exception):
                await asyncio.shield(asyncio.wait([done]))
        yield pb.PullModelResponse(
            message=f"{model.variant} is there", fraction=1.0, model=model_to_proto(fetched, name)
        )

    async def RemoveModel(  # noqa: N802
        self, request: pb.RemoveModelRequest, context: Context
    ) -> pb.RemoveModelResponse:
        """Remove a model's files."""
        runtime, model = await self._resolve(request, context)
        if not isinstance(runtime, RemovingRuntime):
            raise await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, _unsupported(runtime, "delete models"))
        if f"{runtime.name} {model.variant}" in self._pulls:
            failure = Failure(Reason.HOST_BUSY, f"this host fetches {model.variant} now; wait for it, then remove it")
            raise await refuse(context, grpc.StatusCode.ABORTED, failure)
        freed = await self._alone(f"it removes {model.variant}", lambda: runtime.remove(model), context)
        return pb.RemoveModelResponse(model=model_to_proto(model, runtime.name), freed_bytes=freed)

    async def UnloadModel(  # noqa: N802
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        """Take a model out of memory."""
        runtime, model = await self._resolve(request, context)
        if not isinstance(runtime, UnloadingRuntime):
            failure = _unsupported(runtime, "unload models", "a model is in memory only while its case runs")
            raise await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, failure)
        await self._alone(f"it unloads {model.variant}", lambda: runtime.unload(model), context)
        return pb.UnloadModelResponse(model=model_to_proto(model, runtime.name))

    async def MeasureLimits(  # noqa: N802
        self, request: pb.MeasureLimitsRequest, context: Context
    ) -> pb.MeasureLimitsResponse:
        """Measure what this machine can do at most."""
        measure = self._measure_limits
        if measure is None:
            failure = Failure(Reason.UNSUPPORTED, "this agent cannot measure the machine's limits")
            raise await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, failure)
        limits = await self._alone("it measures the machine's limits", lambda: measure(request.refresh), context)
        return pb.MeasureLimitsResponse(limits=limits)

    async def _resolve(self, request: ModelRequest, context: Context, *, absent: bool = False) -> tuple[Runtime, Model]:
        """The runtime and the model; ``absent``: one that a server does not have yet will do, where it can fetch it."""
        try:
            check_names(request)
            runtime = self._runtimes.find(request.runtime or "foundry", request.endpoint_url)
            resolve = runtime.pullable if absent and isinstance(runtime, LibraryRuntime) else runtime.resolve
            return runtime, await self._ask(resolve, request.model, request.device or None)
        except WorkFailed as error:
            raise await refuse(context, status_of(error.failure), error.failure) from None

    async def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Have a runtime answer on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._questions, question, *arguments)

    async def _alone(self, what: str, work: Callable[[], Any], context: Context) -> Any:
        """Do short work on a thread while no job runs; its failure is the call's."""
        async with self._starting:
            claim = await self._exclusively(what, context)
        with claim:
            try:
                return await asyncio.shield(asyncio.to_thread(work))
            except WorkFailed as error:
                raise await refuse(context, status_of(error.failure), error.failure) from None
            except OSError as error:
                failure = Failure(Reason.INTERNAL, f"{error.strerror or error}: {error.filename}")
                raise await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, failure) from None

    async def _exclusively(self, what: str, context: Context) -> contextlib.AbstractContextManager[None]:
        """Claim the host for work that no job must run beside. Refuses the call while one runs."""
        running = self._active()
        if running is not None:
            held = {"held_by": running.order.held_by, "job_id": running.order.job_id}
            message = f"this host runs job {running.order.job_id} for {running.order.held_by}; wait for it"
            raise await refuse(context, grpc.StatusCode.ABORTED, Failure(Reason.HOST_BUSY, message), held)
        self._work.append(what)
        return self._claimed(what)

    @contextlib.contextmanager
    def _claimed(self, what: str) -> Iterator[None]:
        try:
            yield
        finally:
            self._work.remove(what)


def check_names(request: ModelRequest) -> None:
    """Raise `WorkFailed` ``invalid_spec`` when what a caller names is no name."""
    wrong = ""
    if not 0 < len(request.model) <= MAXIMUM_NAME or not request.model.isprintable():
        wrong = f"a model's name has 1 to {MAXIMUM_NAME} printable characters"
    elif len(request.runtime) > MAXIMUM_RUNTIME or not request.runtime.isprintable():
        wrong = f"a runtime's name has at most {MAXIMUM_RUNTIME} printable characters"
    elif request.device not in DEVICES:
        wrong = "device must be cpu, gpu, npu or empty"
    if wrong:
        raise WorkFailed(Reason.INVALID_SPEC, wrong)


def _unsupported(runtime: Runtime, what: str, why: str = "") -> Failure:
    because = why or "its own program does that"
    return Failure(Reason.UNSUPPORTED, f"runtime {runtime.name} cannot {what} here: {because}")


def status_of(failure: Failure) -> grpc.StatusCode:
    """The status of a refused call, as agent_service.proto has it."""
    if failure.reason is Reason.INVALID_SPEC:
        return grpc.StatusCode.INVALID_ARGUMENT
    if failure.reason in (Reason.RUNTIME_UNAVAILABLE, Reason.MODEL_NOT_FOUND):
        return grpc.StatusCode.NOT_FOUND
    return grpc.StatusCode.FAILED_PRECONDITION


async def refuse(
    context: Context, code: grpc.StatusCode, failure: Failure, metadata: dict[str, str] | None = None
) -> Exception:
    """Abort the call, which raises; the return type lets callers write a raise that type checkers follow.

    A message that is too long for gRPC's trailers (8 KiB, in which it stands twice) is cut.
    """
    whole = failure.message.encode(errors="replace")
    if len(whole) > MAXIMUM_MESSAGE_BYTES:
        failure = Failure(failure.reason, f"{whole[:MAXIMUM_MESSAGE_BYTES].decode(errors='ignore')} …")
    await context.abort_with_status(refusal(code, failure, metadata))
    raise AssertionError("abort_with_status raises")
