"""Following one job: events from the agent's stream into the store, over broken connections.

The store's committed sequence is the only position. Whatever breaks, the stream is asked again from there,
so nothing is lost or stored twice; the agent keeps its journal until everything is committed here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

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


@dataclass(slots=True, eq=False)
class _Waiting:
    """Events of one job that wait for their commit, and what became of them."""

    job_id: str
    events: list[event_pb2.Event]
    outcome: int | Exception | None = None


class Writer:
    """The one way into the store, off the event loop: what waits while a commit runs goes into the next one together.

    One commit of a thousand jobs costs little more than one of a single job, and the file is opened once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = asyncio.Lock()
        self._waiting: list[_Waiting] = []

    async def commit(self, job_id: str, events: list[event_pb2.Event]) -> int:
        """Store events; returns the committed sequence. Waits while another process holds the file."""
        mine = _Waiting(job_id, events)
        self._waiting.append(mine)
        try:
            async with self._lock:
                if mine.outcome is None:
                    taken, self._waiting = self._waiting, []
                    await _finish(self._commit_all(taken))
        finally:
            if mine in self._waiting:  # cancelled before its turn: the next stream of this job brings it again
                self._waiting.remove(mine)
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        assert mine.outcome is not None
        return mine.outcome

    async def _commit_all(self, taken: list[_Waiting]) -> None:
        """Commit what was taken in one transaction; where that fails job by job, so that only the guilty one fails."""
        batches: dict[str, list[event_pb2.Event]] = {}
        for one in taken:
            batches[one.job_id] = batches.get(one.job_id, []) + one.events
        outcomes: dict[str, int | Exception] = {}
        try:
            outcomes.update(await self._commit_many(batches))
        except Exception as error:  # noqa: BLE001 - it is raised where the job is followed
            outcomes = dict.fromkeys(batches, error)
            for job_id, events in batches.items() if len(batches) > 1 and not isinstance(error, StoreBusy) else ():
                try:
                    outcomes.update(await self._commit_many({job_id: events}))
                except Exception as failure:  # noqa: BLE001 - as above
                    outcomes[job_id] = failure
        for one in taken:
            one.outcome = outcomes[one.job_id]

    async def _commit_many(self, batches: dict[str, list[event_pb2.Event]]) -> dict[str, int]:
        deadline = time.monotonic() + BUSY_PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(self._store.commit_many, batches)
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


async def _finish(work: Coroutine[None, None, None]) -> None:
    """Let a commit end even when this task is cancelled meanwhile: a thread cannot be stopped half-way."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
