"""The agent's gRPC service: requests in, jobs and journal behind it, no decisions of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from benchfleet import CONTRACT_REVISION
from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.transport import BATCH_BYTES, SERVER_OPTIONS, TLS_SERVER_OPTIONS
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, host_pb2, job_pb2
from benchfleet_agent.access import AccessControl, AccessPolicy, follower
from benchfleet_agent.executor import RunningJob, Runtimes
from benchfleet_agent.followers import Follower, Followers
from benchfleet_agent.host_state.at_rest import HostAtRest
from benchfleet_agent.jobs import Answer, JobOrder, answer_start
from benchfleet_agent.journal import HeldJob, Journal, JournalFull
from benchfleet_agent.model_calls import Measure, ModelCalls, check_names, refuse, status_of
from benchfleet_agent.recorder import finish_job, job_started, model_to_proto
from benchfleet_agent.recovery import recover_requests
from benchfleet_agent.request_guard import RequestGuard, quiet_gone_callers
from benchfleet_agent.runtimes import ProvidingRuntime

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
FORGET_PERIOD_S = 1.0
"""How often jobs that were given back are looked at, while there are any."""
COALESCE_S = 0.05
"""How long the stream waits for more events after the first: fewer, fuller messages."""
_log = logging.getLogger(__name__)


class AgentService(ModelCalls):
    """Serves one agent; all methods run on one event loop."""

    def __init__(
        self,
        journal: Journal,
        runtimes: Runtimes,
        inventory: Callable[[], host_pb2.Host],
        log_dir: Path,
        measure_limits: Measure | None = None,
        access: AccessPolicy | None = None,
    ) -> None:
        super().__init__(measure_limits)
        self._access = access or AccessPolicy()
        self._journal = journal
        self._runtimes = runtimes
        self._inventory = inventory
        self._log_dir = log_dir
        self._at_rest = HostAtRest()
        self._loop = asyncio.get_running_loop()
        self._running: RunningJob | None = None
        self._starting = asyncio.Lock()
        self._changed = asyncio.Event()
        self._followers = Followers()
        self._forgetting: asyncio.Task[None] | None = None
        # The set-up servers are asked, too, but none that a caller names (`ModelCalls`).
        self._describing = ThreadPoolExecutor(2, "host")

    async def close_unfinished(self) -> list[str]:
        """End jobs that a killed agent left open, with the requests it had not read yet; returns their ids."""
        left = [job.job_id for job in self._journal.jobs() if not job.ended]
        await asyncio.to_thread(recover_requests, self._journal, left)
        message = "the agent was killed or its host restarted while the job ran; what had finished is kept"
        for job_id in left:
            failure = Failure(Reason.AGENT_RESTARTED, message)
            await asyncio.to_thread(finish_job, self._journal, job_id, job_pb2.JOB_STATE_FAILED, failure)
        return left

    async def stop(self, timeout_s: float) -> bool:
        """End the running job because the agent stops; False when it did not end in time."""
        running = self._active()
        if running is None:
            return True
        running.cancel(
            Failure(Reason.AGENT_STOPPED, "the agent was stopped while the job ran; what had finished is kept")
        )
        return await asyncio.to_thread(running.join, timeout_s)

    async def GetHost(self, request: pb.GetHostRequest, context: Context) -> pb.GetHostResponse:  # noqa: N802
        """Answer with the fingerprint and what goes on."""
        host = await self._loop.run_in_executor(self._describing, self._host)
        running = self._active()
        response = pb.GetHostResponse(
            host=host,
            contract_revision=CONTRACT_REVISION,
            running_job_id=running.order.job_id if running else "",
            held_by=running.order.held_by if running else "",
        )
        response.answer_time.GetCurrentTime()
        return response

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Answer with the runtimes' models."""
        named = request.runtime or ("endpoint" if request.endpoint_url else "")
        try:
            chosen = [self._runtimes.find(named, request.endpoint_url)] if named else self._runtimes.all()
            models: list[host_pb2.ModelVariant] = []
            providers: list[host_pb2.ExecutionProvider] = []
            for runtime in chosen:
                try:
                    found = await self._ask(runtime.models)
                except WorkFailed as error:  # one server that is down does not hide what the others have
                    if named or error.failure.reason is not Reason.RUNTIME_UNAVAILABLE:
                        raise
                    _log.info("the models of %s are not listed: %s", runtime.name, error)
                    continue
                models += [model_to_proto(model, runtime.name) for model in found]
                if isinstance(runtime, ProvidingRuntime):
                    providers += [
                        host_pb2.ExecutionProvider(
                            runtime=runtime.name, name=one.name, downloaded=one.downloaded, registered=one.registered
                        )
                        for one in runtime.providers()
                    ]
        except WorkFailed as error:
            raise await refuse(context, status_of(error.failure), error.failure) from None
        return pb.ListModelsResponse(models=models, execution_providers=providers)

    async def ResolveModel(  # noqa: N802
        self, request: pb.ResolveModelRequest, context: Context
    ) -> pb.ResolveModelResponse:
        """Answer with the variant a case would run."""
        try:
            check_names(request)
            runtime = self._runtimes.find(request.runtime, request.endpoint_url)
            model = await self._ask(runtime.resolve, request.model, request.device or None)
        except WorkFailed as error:
            raise await refuse(context, status_of(error.failure), error.failure) from None
        return pb.ResolveModelResponse(model=model_to_proto(model, runtime.name))

    async def StartJob(self, request: pb.StartJobRequest, context: Context) -> pb.StartJobResponse:  # noqa: N802
        """Accept, refuse, or recognise a job."""
        try:
            order = JobOrder.from_proto(request.job_id, request.spec)
        except WorkFailed as error:
            raise await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error.failure) from None
        async with self._starting:
            known = self._journal.job(order.job_id)
            running = self._active()
            spec = request.spec.SerializeToString(deterministic=True)
            answer = answer_start(known.spec if known else None, spec, running.order.job_id if running else "")
            if answer is Answer.DIFFERS:
                failure = Failure(Reason.JOB_DIFFERS, f"job {order.job_id} exists with another spec; use a new id")
                raise await refuse(context, grpc.StatusCode.ALREADY_EXISTS, failure)
            if answer is Answer.BUSY:
                assert running is not None
                held = {"held_by": running.order.held_by, "job_id": running.order.job_id}
                message = (
                    f"this host runs job {running.order.job_id} for {running.order.held_by}; "
                    "wait for it, or end it with `benchfleet cancel`"
                )
                failure = Failure(Reason.HOST_BUSY, message)
                raise await refuse(context, grpc.StatusCode.ABORTED, failure, held)
            if answer is Answer.ACCEPT and self.model_work:
                failure = Failure(Reason.HOST_BUSY, f"this host cannot measure now: {self.model_work}; wait for it")
                raise await refuse(context, grpc.StatusCode.ABORTED, failure)
            if answer is Answer.ACCEPT:
                await self._check_endpoints(order, context)
                known = await self._accept(order, request.spec, context)
            assert known is not None
            return pb.StartJobResponse(job=known.to_proto())

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:  # noqa: N802
        """Answer with one job, which the caller is likely to follow."""
        job = await self._find(request.job_id, context)
        self._followers.expect(follower(context, self._access), job.job_id)
        return pb.GetJobResponse(job=job.to_proto(), spec=job_pb2.JobSpec.FromString(job.spec))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:  # noqa: N802
        """Answer with the journal's jobs."""
        return pb.ListJobsResponse(jobs=[job.to_proto() for job in self._journal.jobs()])

    async def StreamJobEvents(  # noqa: N802
        self, request: pb.StreamJobEventsRequest, context: Context
    ) -> AsyncIterator[pb.StreamJobEventsResponse]:
        """Send what is durable, then what becomes durable, until the job's last event."""
        job_id, sequence = request.job_id, request.committed_sequence
        held_to = self._journal.released_at(job_id) or (await self._find(job_id, context)).last_sequence
        first = await asyncio.to_thread(self._journal.first_sequence, job_id)
        if not 0 <= sequence <= held_to or sequence + 1 < (first or held_to + 1):
            raise await self._gone(job_id, sequence, first, held_to, context)
        try:
            place = self._followers.join(follower(context, self._access), job_id, sequence)
        except WorkFailed as error:
            raise await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, error.failure) from None
        complete = False
        try:
            async for response in self._follow(place, context):
                yield response
            complete = True
        finally:
            self._followers.leave(place, complete=complete)

    async def _follow(self, place: Follower, context: Context) -> AsyncIterator[pb.StreamJobEventsResponse]:
        """The events above a sequence; holds no more than a message while its caller does not read."""
        job_id = place.job_id
        while True:
            changed = self._changed
            found = await asyncio.to_thread(self._journal.read, job_id, place.sequence, BATCH_BYTES)
            if found:
                sequence = found[-1].sequence
                response = pb.StreamJobEventsResponse(events=found)
                del found
                yield response
                place.sequence = sequence
                continue
            job = self._journal.job(job_id)
            last = self._journal.released_at(job_id) if job is None else job.last_sequence
            if job is None and place.sequence != last:  # its time was up, or its room was needed
                raise await self._gone(job_id, place.sequence, 0, last or 0, context)
            if job is None or (job.ended and place.sequence >= job.last_sequence):
                return
            await changed.wait()
            await asyncio.sleep(COALESCE_S)

    async def _gone(self, job_id: str, sequence: int, first: int, last: int, context: Context) -> Exception:
        """Refuse to send events that are not here; ``first`` 0: none is any more."""
        left = f"it holds {first} to {last}" if first else f"all {last} were released"
        failure = Failure(Reason.EVENTS_RELEASED, f"events after {sequence} of job {job_id} are not here; {left}")
        available = {"first_available_sequence": str(first or last + 1)}
        return await refuse(context, grpc.StatusCode.OUT_OF_RANGE, failure, available)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:  # noqa: N802
        """Ask the job to end."""
        job = await self._find(request.job_id, context)
        running = self._active()
        if running is not None and running.order.job_id == job.job_id:
            await asyncio.to_thread(running.cancel)
        return pb.CancelJobResponse(job=job.to_proto())

    async def ReleaseJobEvents(  # noqa: N802
        self, request: pb.ReleaseJobEventsRequest, context: Context
    ) -> pb.ReleaseJobEventsResponse:
        """Forget an ended job that the caller holds completely, once others who follow it have it, too."""
        job = self._journal.job(request.job_id)
        if job is not None and job.ended and request.committed_sequence >= job.last_sequence:
            self._followers.give_back(job.job_id, job.last_sequence)
            await self._forget()
            if self._followers.waits(job.job_id):
                await asyncio.to_thread(self._journal.give_back, job.job_id)
                if self._forgetting is None or self._forgetting.done():
                    self._forgetting = asyncio.create_task(self._forget_in_time())
        return pb.ReleaseJobEventsResponse()

    async def _forget_in_time(self) -> None:
        while self._followers.waiting:
            await asyncio.sleep(FORGET_PERIOD_S)
            await self._forget()

    async def _forget(self) -> None:
        for job_id in self._followers.forgettable():
            await asyncio.to_thread(self._journal.release, job_id)

    async def _check_endpoints(self, order: JobOrder, context: Context) -> None:
        try:
            self._runtimes.check_endpoints(order)
        except WorkFailed as error:
            raise await refuse(context, status_of(error.failure), error.failure) from None

    async def _accept(self, order: JobOrder, spec: job_pb2.JobSpec, context: Context) -> HeldJob:
        try:
            if not self._journal.has_room():
                raise JournalFull("less than 64 MiB are free on the agent's disk; free some space and run again")
            host = await self._loop.run_in_executor(self._describing, partial(self._host, look=False))
            first = job_started(host, spec)
            job = await asyncio.to_thread(self._journal.accept, order.job_id, spec, first)
        except JournalFull as error:
            failure = Failure(error.reason, str(error))
            raise await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, failure) from None
        _log.info("job %s accepted for %s: %d cases", order.job_id, ascii(order.held_by), len(order.cases))
        self._running = RunningJob(order, self._journal, self._runtimes, self._notify, self._log_dir)
        self._running.start()
        return job

    async def _find(self, job_id: str, context: Context) -> HeldJob:
        job = self._journal.job(job_id)
        if job is None:
            message = f"this agent holds no job {job_id[:100]!r}; it was released, or ran on another host"
            raise await refuse(context, grpc.StatusCode.NOT_FOUND, Failure(Reason.JOB_NOT_FOUND, message))
        return job

    def _active(self) -> RunningJob | None:
        if self._running is not None:
            # Its last event is durable, and seen by others, a moment before its thread ends.
            job = self._journal.job(self._running.order.job_id)
            if self._running.join(0) or job is None or job.ended:
                self._running = None
        return self._running

    def _host(self, *, look: bool = True) -> host_pb2.Host:
        host = self._inventory()
        measuring = self._running is not None and not self._running.join(0)
        host.state.CopyFrom(self._at_rest.state(measuring=measuring).to_proto())
        del host.runtimes[:]
        for runtime in self._runtimes.all(look=look and not measuring):
            description = runtime.describe()
            host.runtimes.append(
                host_pb2.RuntimeInfo(
                    name=description.name,
                    available=description.available,
                    unavailable_reason=description.reason or "",
                    version=description.version or "",
                    components=description.components,
                    capabilities=sorted(description.capabilities),
                    dialect=description.dialect,
                    endpoint_url=description.endpoint_url,
                    found=description.found,
                )
            )
        return host

    def _notify(self) -> None:
        """Wake the streams; called from other threads."""
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def start_server(
    service: AgentService,
    address: str,
    credentials: grpc.ServerCredentials | None = None,
    access: AccessControl | None = None,
) -> grpc.aio.Server:
    """Serve on an address; without credentials in clear text. Raises RuntimeError when the port is taken."""
    guards = [access, RequestGuard()] if access else [RequestGuard()]
    quiet_gone_callers()
    options = TLS_SERVER_OPTIONS if credentials else SERVER_OPTIONS
    server = grpc.aio.server(options=options, interceptors=guards)
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call,unused-ignore]
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
    await server.start()
    return server
