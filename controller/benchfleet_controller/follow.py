"""Following one job: events from the agent's stream into the store, over broken connections.

The store's committed sequence is the only position. Whatever breaks, the stream is asked again from there,
so nothing is lost or stored twice; the agent keeps its journal until everything is committed here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import grpc

from benchfleet.failures import Failure, Reason
from benchfleet.transport import failure_of
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import event_pb2
from benchfleet_controller.fleet import FIRST_PAUSE_S, LONGEST_PAUSE_S, Agent, broken, explain
from benchfleet_controller.problems import HostProblem
from benchfleet_controller.writer import Writer

MOST_UNCOMMITTED = 10_000
"""Events of a job read ahead of the store; then reading stops and gRPC's flow control holds the agent's stream."""
PATIENCE_S = 60.0
"""How long a host may stay away before following is given up; the job itself goes on."""
_GONE = {grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.NOT_FOUND}
"""The agent has not, or no longer, what follows the committed sequence."""

Watch = Callable[[str, event_pb2.Event], None]
"""Called with the host's name and each new event, once it is committed."""


async def follow(agent: Agent, job_id: str, writer: Writer, watch: Watch, *, release: bool = True) -> None:
    """Store a job's events until its last one, then let the agent forget them (unless ``release`` is False).

    Raises `HostProblem` when the host stays away, or has no place, for `PATIENCE_S`, or refuses; ``events_released``
    when the rest is nowhere any more (another controller took it, or the agent's journal was lost): the job then ends
    here as failed.
    """
    pause, away_since = FIRST_PAUSE_S, None
    while True:
        before = await writer.committed_sequence(job_id)
        try:
            # The agent ends the stream with OK only after the job's last event, or when it holds the job no longer.
            await _stream(agent, job_id, before, writer, watch)
            break
        except grpc.RpcError as error:
            if error.code() in _GONE:
                break
            if not broken(error) and not _crowded(error):
                raise HostProblem(agent.target, explain(error)) from None
            now = time.monotonic()
            if away_since is None or await writer.committed_sequence(job_id) > before:
                away_since, pause = now, FIRST_PAUSE_S
            if now - away_since > PATIENCE_S:
                reason = Reason.HOST_BUSY if _crowded(error) else Reason.HOST_UNREACHABLE
                what = "no place among its followers" if _crowded(error) else "no contact"
                message = (
                    f"{what} for {PATIENCE_S:g} s ({error.details()}); the job may still run there, "
                    "`benchfleet collect` fetches the rest"
                )
                raise HostProblem(agent.target, Failure(reason, message)) from None
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE_S)
    committed = await writer.committed_sequence(job_id)
    lost = None if await writer.ended(job_id) else await _lost(agent, job_id, committed)
    if lost is not None:
        await writer.mark_failed(job_id, lost)
    # Of a job that goes on, or of which it holds more, the agent forgets nothing.
    told = not release or await _released(agent, job_id, committed)
    if lost is not None:
        raise HostProblem(agent.target, lost)
    if told:
        await writer.mark_released(job_id)


async def _released(agent: Agent, job_id: str, committed: int) -> bool:
    """Let the agent forget a job; False: it is away. All is stored here, and the next `benchfleet collect` tells it."""
    try:
        await agent.release(job_id, committed)
    except HostProblem as problem:
        if problem.failure.reason is not Reason.HOST_UNREACHABLE:
            raise
        return False
    return True


def _crowded(error: grpc.RpcError) -> bool:
    """Whether too many follow jobs there: somebody will leave, or the agent will notice that somebody is gone."""
    own = failure_of(error)
    crowded = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return crowded and own is not None and own[0].reason is Reason.HOST_BUSY


async def _lost(agent: Agent, job_id: str, committed: int) -> Failure:
    """Why the end of a job will never be stored."""
    held = next((job for job in await agent.jobs() if job.job_id == job_id), None)
    if held is None:
        why = "its agent holds the job no longer: another controller fetched it, or the agent's data were removed"
    elif held.last_sequence <= committed:
        why = f"its agent's journal ends at event {held.last_sequence}: it was damaged or put back"
    else:
        why = f"its agent holds only later events, up to {held.last_sequence}"
    message = f"the events of job {job_id} after number {committed} are lost here; {why}. What is stored stays"
    return Failure(Reason.EVENTS_RELEASED, message)


async def _stream(agent: Agent, job_id: str, committed: int, writer: Writer, watch: Watch) -> None:
    """One stream into the store, until it ends; raises what ended it unless that was OK."""
    inbox: list[event_pb2.Event] = []
    arrived, room = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        request = pb.StreamJobEventsRequest(job_id=job_id, committed_sequence=committed)
        try:
            async for response in agent.stub.StreamJobEvents(request):
                inbox.extend(response.events)
                arrived.set()
                while len(inbox) > MOST_UNCOMMITTED:
                    room.clear()
                    await room.wait()
        finally:
            arrived.set()

    reader = asyncio.create_task(read())
    try:
        while inbox or not reader.done():
            await arrived.wait()
            arrived.clear()
            if inbox:
                for event in await writer.commit(job_id, inbox):
                    watch(agent.target.name, event)
                room.set()
        await reader
    finally:
        reader.cancel()
