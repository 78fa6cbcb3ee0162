"""Following one job: events from the agent's stream into the store, over broken connections.

The store's committed sequence is the only position. Whatever breaks, the stream is asked again from there,
so nothing is lost or stored twice; the agent keeps its journal until everything is committed here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import grpc

from benchfleet.failures import Failure, Reason
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import event_pb2
from benchfleet_controller.fleet import Agent, HostProblem, explain
from benchfleet_controller.store import Store, StoreBusy

COMMIT_PERIOD_S = 0.25
QUEUED_BATCHES = 16
"""Batches read ahead of the store; then reading stops and gRPC's flow control holds the agent's stream."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
PATIENCE_S = 60.0
"""How long a host may stay away before following is given up; the job itself goes on."""
BUSY_PATIENCE_S = 120.0

Watch = Callable[[str, event_pb2.Event], None]
"""Called with the host's name and each new event, once it is committed."""


class Writer:
    """The one way into the store: a batch at a time, off the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = asyncio.Lock()

    async def commit(self, job_id: str, events: list[event_pb2.Event]) -> int:
        """Store events; returns the committed sequence. Waits while another process holds the file."""
        deadline = time.monotonic() + BUSY_PATIENCE_S
        async with self._lock:
            while True:
                try:
                    return await _finish(asyncio.to_thread(self._store.commit_events, job_id, events))
                except StoreBusy:
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.2)

    async def committed_sequence(self, job_id: str) -> int:
        """Where to go on."""
        async with self._lock:
            return await asyncio.to_thread(self._store.committed_sequence, job_id)

    async def mark_released(self, job_id: str) -> None:
        """Note that the agent may forget the job."""
        async with self._lock:
            await asyncio.to_thread(self._store.mark_released, job_id)


async def follow(agent: Agent, job_id: str, writer: Writer, watch: Watch) -> None:
    """Store a job's events until its last one, then let the agent forget them.

    Raises `HostProblem` when the host stays away for `PATIENCE_S` or refuses.
    """
    pause, away_since = FIRST_PAUSE_S, None
    while True:
        before = await writer.committed_sequence(job_id)
        try:
            # The agent ends the stream with OK only after the job's last event.
            await _stream(agent, job_id, before, writer, watch)
            break
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise HostProblem(agent.target, explain(error)) from None
            now = time.monotonic()
            if away_since is None or await writer.committed_sequence(job_id) > before:
                away_since, pause = now, FIRST_PAUSE_S
            if now - away_since > PATIENCE_S:
                message = (
                    f"no contact for {PATIENCE_S:g} s ({error.details()}); the job may still run there, "
                    "`benchfleet collect` fetches the rest"
                )
                raise HostProblem(agent.target, Failure(Reason.HOST_UNREACHABLE, message)) from None
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE_S)
    await agent.release(job_id, await writer.committed_sequence(job_id))
    await writer.mark_released(job_id)


async def _stream(agent: Agent, job_id: str, committed: int, writer: Writer, watch: Watch) -> None:
    """One stream into the store, until it ends; raises what ended it unless that was OK."""
    queue: asyncio.Queue[list[event_pb2.Event] | None] = asyncio.Queue(QUEUED_BATCHES)

    async def read() -> None:
        request = pb.StreamJobEventsRequest(job_id=job_id, committed_sequence=committed)
        try:
            async for response in agent.stub.StreamJobEvents(request):
                await queue.put(list(response.events))
        finally:
            await queue.put(None)

    reader = asyncio.create_task(read())
    try:
        ended = False
        while not ended:
            first = await queue.get()
            batch, ended = first or [], first is None
            if not ended:
                await asyncio.sleep(COMMIT_PERIOD_S)
            while not queue.empty():
                more = queue.get_nowait()
                ended = ended or more is None
                batch += more or []
            if batch:
                await writer.commit(job_id, batch)
                for event in batch:
                    watch(agent.target.name, event)
        await reader
    finally:
        reader.cancel()
        while not queue.empty():  # a reader waiting for room would never end
            queue.get_nowait()


async def _finish(work: Awaitable[int]) -> int:
    """Let a commit end even when this task is cancelled meanwhile: a thread cannot be stopped half-way."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
