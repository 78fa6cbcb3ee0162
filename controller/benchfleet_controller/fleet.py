"""Agents as the controller sees them: connect, check, ask. Refusals become `HostProblem` with advice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc

from benchfleet import CONTRACT_REVISION, __version__
from benchfleet.addresses import split_address
from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet.tls import PeerCertificate
from benchfleet.transport import failure_of
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc, host_pb2, job_pb2
from benchfleet_controller.credentials import explain_silence, open_link, updates
from benchfleet_controller.offers import offers_of
from benchfleet_controller.plan import ALL_DEVICES, HostTarget, Offer, Plan
from benchfleet_controller.plan_limits import overlong
from benchfleet_controller.problems import HostProblem

CONNECT_S = 5.0
CALL_S = 30.0
RESOLVE_S = 60.0
"""A runtime may ask a catalog on the network before it knows a model."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
RETRY_S = 20.0
"""How long a call that may be repeated is repeated over a broken connection."""
RELEASE_S = 5.0
"""The same for telling that a job is stored: the next `benchfleet collect` tells it too, so nobody need wait long."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Agent:
    """An agent that answered: its host and how to call it."""

    target: HostTarget
    host: host_pb2.Host
    channel: grpc.aio.Channel
    stub: agent_service_pb2_grpc.AgentServiceAsyncStub
    running_job_id: str
    held_by: str
    clock_offset_s: float
    """Agent's wall clock minus ours, by the one exchange of `connect`; uncertain by half its duration."""
    certificate: PeerCertificate | None = None
    """What the agent showed; None when it speaks clear text."""

    async def close(self) -> None:
        """Close the connection."""
        await self.channel.close()

    def check_idle(self) -> None:
        """Raise `HostProblem` ``host_busy`` when another job runs there."""
        if self.running_job_id:
            message = (
                f"it runs job {self.running_job_id} for {self.held_by}; wait for it, fetch it with "
                "`benchfleet collect`, or end it with `benchfleet cancel`"
            )
            raise HostProblem(self.target, Failure(Reason.HOST_BUSY, message))

    async def resolve(self, runtime: str, endpoint_url: str, model: str, device: str) -> host_pb2.ModelVariant:
        """The variant a case would run. Raises `HostProblem` with near names when there is none."""
        request = pb.ResolveModelRequest(runtime=runtime, endpoint_url=endpoint_url, model=model, device=device)
        with refusals(self.target):
            return (await self.stub.ResolveModel(request, timeout=RESOLVE_S)).model

    async def models(self, runtime: str = "", endpoint_url: str = "") -> pb.ListModelsResponse:
        """Everything the host could serve, and the execution providers that depends on."""
        request = pb.ListModelsRequest(runtime=runtime, endpoint_url=endpoint_url)
        with refusals(self.target):
            return await self.stub.ListModels(request, timeout=RESOLVE_S)

    async def start(self, job_id: str, spec: job_pb2.JobSpec) -> job_pb2.Job:
        """Start a job. Raises `HostProblem` when it is refused."""
        request = pb.StartJobRequest(job_id=job_id, spec=spec)
        with refusals(self.target):
            # The agent knows a job it has accepted, so asking again starts nothing twice.
            return (await repeated(lambda: self.stub.StartJob(request, timeout=CALL_S))).job

    async def jobs(self) -> list[job_pb2.Job]:
        """The jobs whose events the agent still holds."""
        with refusals(self.target):
            return list((await repeated(lambda: self.stub.ListJobs(pb.ListJobsRequest(), timeout=CALL_S))).jobs)

    async def spec(self, job_id: str) -> job_pb2.JobSpec:
        """What was asked of a job."""
        with refusals(self.target):
            return (await repeated(lambda: self.stub.GetJob(pb.GetJobRequest(job_id=job_id), timeout=CALL_S))).spec

    async def cancel(self, job_id: str) -> None:
        """Ask a job to end."""
        with refusals(self.target):
            await repeated(lambda: self.stub.CancelJob(pb.CancelJobRequest(job_id=job_id), timeout=CALL_S))

    async def release(self, job_id: str, committed_sequence: int) -> None:
        """Let the agent forget a job that is stored completely."""
        request = pb.ReleaseJobEventsRequest(job_id=job_id, committed_sequence=committed_sequence)
        with refusals(self.target):
            await repeated(lambda: self.stub.ReleaseJobEvents(request, timeout=CALL_S), RELEASE_S)


@contextlib.contextmanager
def refusals(target: HostTarget) -> Iterator[None]:
    """Turn gRPC errors of calls inside into `HostProblem`."""
    try:
        yield
    except grpc.RpcError as error:
        raise HostProblem(target, explain(error)) from None


async def repeated(call: Callable[[], Awaitable[_T]], patience_s: float = RETRY_S) -> _T:
    """The answer of a call that does no harm twice, asked again while the connection breaks, for ``patience_s``.

    The pauses grow and are random, so that a lab's agents are not called all at once when their network is back.
    """
    deadline, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except grpc.RpcError as error:
            if not broken(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(2 * pause, LONGEST_PAUSE_S)


def broken(error: grpc.RpcError) -> bool:
    """Whether the connection failed, and not the call: asking again may help."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and failure_of(error) is None


def explain(error: grpc.RpcError) -> Failure:
    """Why a call failed, in our words."""
    own = failure_of(error)
    if own is not None:
        return own[0]
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        message = "it does not know this call: the agent is of another version; install the same benchfleet there"
        return Failure(Reason.VERSION_MISMATCH, message)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = "it did not answer in time, though it is there: it may wait for a catalog or a server; ask again"
        return Failure(Reason.HOST_UNREACHABLE, message)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Failure(Reason.HOST_UNREACHABLE, f"the connection broke ({error.details()})")
    return Failure(Reason.INTERNAL, f"the agent failed: {code.name}: {error.details()}")


async def connect(target: HostTarget, timeout_s: float = CONNECT_S) -> Agent:
    """Connect and introduce ourselves.

    Raises `HostProblem`: ``host_unreachable`` (nothing listens), ``not_an_agent`` (something else does),
    ``unauthenticated`` (a certificate is wrong, missing or revoked), ``permission_denied``, ``version_mismatch``.
    """
    host, port = split_address(target.address)
    await _check_listening(target, host, port, timeout_s)
    try:
        link = await open_link(target.name, host, port, timeout_s)
    except WorkFailed as error:
        raise HostProblem(target, error.failure) from None
    channel = link.channel
    stub: agent_service_pb2_grpc.AgentServiceAsyncStub = agent_service_pb2_grpc.AgentServiceStub(channel)
    before = time.time()
    try:
        metadata = updates(link, target.name)
        answer = await stub.GetHost(pb.GetHostRequest(), timeout=timeout_s, metadata=metadata)
    except BaseException as error:
        await channel.close()
        if isinstance(error, grpc.RpcError):
            if own := failure_of(error):
                raise HostProblem(target, own[0]) from None
            if silence := await explain_silence(link, host, port, timeout_s):
                raise HostProblem(target, Failure(Reason.UNAUTHENTICATED, silence)) from None
            message = (
                f"something listens there, but it is no benchfleet agent ({error.code().name}); "
                "check the port, or start one with `benchfleet-agent serve`"
            )
            raise HostProblem(target, Failure(Reason.NOT_AN_AGENT, message)) from None
        raise
    after = time.time()
    if answer.contract_revision != CONTRACT_REVISION:
        await channel.close()
        message = (
            f"its agent {answer.host.agent_version} speaks contract {answer.contract_revision}, this controller "
            f"{__version__} speaks {CONTRACT_REVISION}; install the same benchfleet on both"
        )
        raise HostProblem(target, Failure(Reason.VERSION_MISMATCH, message))
    offset = answer.answer_time.ToNanoseconds() / 1e9 - (before + after) / 2
    return Agent(target, answer.host, channel, stub, answer.running_job_id, answer.held_by, offset, link.certificate)


async def connect_all(targets: tuple[HostTarget, ...]) -> tuple[list[Agent], list[HostProblem]]:
    """Connect to all at once; those that answered, in order, and the problems of the others."""
    answers = await asyncio.gather(*(connect(target) for target in targets), return_exceptions=True)
    agents = [answer for answer in answers if isinstance(answer, Agent)]
    problems = [answer for answer in answers if isinstance(answer, HostProblem)]
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, HostProblem):
            raise answer
    return agents, problems


def absent_providers(listed: pb.ListModelsResponse) -> str:
    """What is missing from a list because a provider is not on the host, for people; empty: nothing that is known."""
    names = [one.name for one in listed.execution_providers if not one.downloaded]
    if not names:
        return ""
    are = "is offered but not on the host" if len(names) == 1 else "are offered but not on the host"
    return (
        f"{', '.join(names)} {are}, so variants for {'it' if len(names) == 1 else 'them'} may be missing; "
        "`benchfleet pull HOST MODEL --device gpu` (or npu) fetches what a model needs"
    )


async def check_models(
    agent: Agent, plan: Plan, tell: Callable[[str], None] = lambda _: None
) -> dict[tuple[str, str, str], tuple[Offer, ...]]:
    """Make sure every case of a plan has a model on this host, and say what the device ``all`` means here.

    By (host, runtime, model); ``tell`` hears of providers that are not there. Raises
    `HostProblem` naming near models, or when prompts and answers do not fit into a model's context.
    """
    offered: dict[tuple[str, str, str], tuple[Offer, ...]] = {}
    for runtime in plan.runtimes:
        url = plan.endpoint_url if runtime == "endpoint" else ""
        listed = await agent.models(runtime, url) if ALL_DEVICES in plan.devices else None
        if listed is not None and (missing := absent_providers(listed)):
            tell(f"{agent.target.name}: {missing}")
        for model in plan.models:
            offers = tuple(Offer(device, model) for device in plan.devices)
            if listed is not None:
                offers = offered[agent.target.name, runtime, model] = offers_of(model, listed.models)
            for device, asked in offers:
                variant = await agent.resolve(runtime, url, asked, device)
                if variant.HasField("context_length") and (problem := overlong(plan, variant.context_length)):
                    failure = Failure(Reason.CONTEXT_OVERFLOW, f"{variant.variant or model}: {problem}")
                    raise HostProblem(agent.target, failure)
    return offered


def by_machine(agents: list[Agent]) -> list[list[Agent]]:
    """Agents that share a machine, together and in order: they must not measure at the same time."""
    groups: dict[str, list[Agent]] = {}
    for agent in agents:
        groups.setdefault(agent.host.machine_id or agent.target.address, []).append(agent)
    return list(groups.values())


async def _check_listening(target: HostTarget, host: str, port: int, timeout_s: float) -> None:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout_s)
    except (OSError, TimeoutError) as error:
        why = getattr(error, "strerror", None) or str(error) or f"no answer within {timeout_s:g} s"
        message = (
            f"nothing answers at {target.address} ({why}); start `benchfleet-agent serve` there and check "
            "the address, the port and the firewall"
        )
        raise HostProblem(target, Failure(Reason.HOST_UNREACHABLE, message)) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
