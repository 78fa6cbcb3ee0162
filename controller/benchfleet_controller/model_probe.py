"""Whether a model works on a host: the smallest job there is, run there and read here, kept nowhere."""

from __future__ import annotations

import contextlib
import getpass
import socket
import uuid

import grpc

from benchfleet.failures import Reason
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import job_pb2
from benchfleet_controller.checklist import ProbeResult
from benchfleet_controller.fleet import Agent, refusals
from benchfleet_controller.problems import HostProblem

MAX_TOKENS = 4
"""One token may be half a character and show nothing."""
PROMPT = "Say yes."


async def probe_model(agent: Agent, runtime: str, endpoint_url: str, model: str, device: str) -> ProbeResult:
    """Resolve the model, load it, send one short request. What a host says against it is in the result."""
    result = ProbeResult(model)
    try:
        result.variant = await agent.resolve(runtime, endpoint_url, model, device)
        await _run(agent, _spec(runtime, endpoint_url, model, device), result)
    except HostProblem as problem:
        if problem.failure.reason is Reason.HOST_UNREACHABLE:
            raise
        result.refused = problem.failure
    return result


async def _run(agent: Agent, spec: job_pb2.JobSpec, result: ProbeResult) -> None:
    job_id = str(uuid.uuid4())
    await agent.start(job_id, spec)
    sequence, ended = 0, False
    try:
        with refusals(agent.target):
            async for answer in agent.stub.StreamJobEvents(pb.StreamJobEventsRequest(job_id=job_id)):
                for event in answer.events:
                    result.apply(event)
                    sequence = event.sequence
                    ended = ended or event.WhichOneof("kind") == "job_finished"
    finally:
        # Nobody else knows this job: it must neither go on nor fill the agent's journal.
        with contextlib.suppress(HostProblem, grpc.RpcError):
            if not ended:
                await agent.cancel(job_id)
            await agent.release(job_id, sequence)


def _spec(runtime: str, endpoint_url: str, model: str, device: str) -> job_pb2.JobSpec:
    prompt = job_pb2.Prompt(prompt_id="probe", messages=[job_pb2.ChatMessage(role="user", content=PROMPT)])
    case = job_pb2.CaseSpec(
        case_id=str(uuid.uuid4()),
        runtime=runtime,
        endpoint_url=endpoint_url,
        model=model,
        device=device,
        prompt_set="probe",
        round_count=1,
        concurrency=1,
        stream=True,
        sampling=job_pb2.SamplingSpec(max_tokens=MAX_TOKENS, temperature=0.0),
        allow_prefix_cache=True,
    )
    return job_pb2.JobSpec(
        run_id=str(uuid.uuid4()),
        held_by=f"{_user()}@{socket.gethostname()} (doctor)",
        prompt_sets=[job_pb2.PromptSet(name="probe", prompts=[prompt])],
        cases=[case],
        skip_certificate=True,
        idle_baseline_s=0,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "somebody"
