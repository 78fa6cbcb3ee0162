"""Following one job: events from the agent's stream into the store, over broken connections.

The store's committed sequence is the only position. Whatever breaks, the stream is asked again from there,
so nothing is lost or stored twice; the agent keeps its journal until everything is committed here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import grpc

from benchfleet.failures import Failure, Reason
from benchfleet.transport import failure_of
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import event_pb2
from benchfleet_controller.fleet import FIRST_PAUSE_S, LONGEST_PAUSE_S, Agent, broken, explain
from benchfleet_controller.problems import HostProblem
from benchfleet_controller.store import Store, StoreBusy

COMMIT_PERIOD_S = 1.0
"""From one commit to the next: events gather, for opening and closing the file is most of what a small commit costs,
and the machine may be the one that measures. With the last event of a job only a pause is waited for."""
COMMIT_PAUSE_S = 0.2
"""Between the end of a commit and the next one, so that readers in other terminals get their turn."""
MOST_DEFERRED_S = 5.0
"""How long noting the end of a job gives way to events that wait for their commit: it condenses what the job left."""
MOST_UNCOMMITTED = 10_000
"""Events of a job read ahead of the store; then reading stops and gRPC's flow control holds the agent's stream."""
PATIENCE_S = 60.0
"""How long a host may stay away before following is given up; the job itself goes on."""
BUSY_PATIENCE_S = 120.0
UNENDED = frozenset({"pending", "running"})
_GONE = {grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.NOT_FOUND}
"""The agent has not, or no longer, what follows the committed sequence."""

Watch = Callable[[str, event_pb2.Event], None]
"""Called with the host's name and each new event, once it is committed."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """Events of one job that wait for their commit, and what became of them."""

    job_id: str
    inbox: list[event_pb2.Event]
    """May still grow; emptied when the commit takes what is there."""
    taken: list[event_pb2.Event] = field(default_factory=list)
    failure: Exception | None = None
    done: bool = False


class Writer:
    """The one way into the store, off the event loop: what waits while a commit runs goes into the next one together.

    One commit of a thousand jobs costs little more than one of a single job, and the file is opened once.
    """

    def __init__(self, store: Store, period_s: float = COMMIT_PERIOD_S) -> None:
        self._store = store
        self._period_s, self._pause_s = period_s, min(period_s, COMMIT_PAUSE_S)
        self._lock = asyncio.Lock()
        self._waiting: list[_Waiting] = []
        self._asking: set[str] = set()
        self._released: set[str] = set()
        self._committed: dict[str, int] = {}
        self._ended: set[str] = set()
        self._resume = self._rested = 0.0
        self._cancelled = False
        """Nobody waits for a busy file any longer."""

    async def commit(self, job_id: str, inbox: list[event_pb2.Event]) -> list[event_pb2.Event]:
        """Store events; returns those that were stored. Waits while another process holds the file.

        What comes into ``inbox`` before the commit begins is stored with it; the commit empties it.
        """
        mine = _Waiting(job_id, inbox)
        self._waiting.append(mine)
        try:
            async with self._lock:
                if not mine.done:
                    await self._gather()
                    begun = time.monotonic()
                    taken, self._waiting = self._waiting, []
                    await self._finish(self._commit_all(taken))
                    self._rested = time.monotonic() + self._pause_s
                    self._resume = max(begun + self._period_s, self._rested)
        finally:
            if mine in self._waiting:  # cancelled before its turn: the next stream of this job brings it again
                self._waiting.remove(mine)
        if mine.failure is not None:
            raise mine.failure
        return mine.taken

    async def committed_sequence(self, job_id: str) -> int:
        """Where to go on."""
        self._asking.add(job_id)
        async with self._lock:
            if job_id not in self._committed:
                asked, self._asking = self._asking, set()
                self._committed |= await asyncio.to_thread(self._store.committed_sequences, asked)
        return self._committed[job_id]

    async def ended(self, job_id: str) -> bool:
        """Whether the job's end is stored."""
        if job_id in self._ended:
            return True
        async with self._lock:
            jobs = await asyncio.to_thread(self._store.open_jobs)
        return not any(job.job_id == job_id and job.state in UNENDED for job in jobs)

    async def mark_failed(self, job_id: str, failure: Failure) -> None:
        """Give the job the end that will never be heard."""
        async with self._lock:
            await asyncio.to_thread(self._store.mark_job, job_id, "failed", failure)

    async def mark_released(self, job_id: str) -> None:
        """Note that the agent may forget the job."""
        self._released.add(job_id)
        latest = time.monotonic() + MOST_DEFERRED_S
        while True:
            if not self._waiting or job_id not in self._released or time.monotonic() >= latest:
                break
            await asyncio.sleep(COMMIT_PAUSE_S)
        async with self._lock:
            if job_id in self._released:
                released, self._released = self._released, set()
                await self._finish(self._mark_all(released))

    async def _gather(self) -> None:
        """Wait for the time of the next commit; with the last event of a job only for others to have had their turn."""
        while True:
            ending = any(one.inbox[-1].HasField("job_finished") for one in self._waiting if one.inbox)
            left = (self._rested if ending else self._resume) - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, COMMIT_PAUSE_S))

    async def _mark_all(self, job_ids: set[str]) -> None:
        await asyncio.to_thread(self._store.mark_released, job_ids)

    async def _commit_all(self, taken: list[_Waiting]) -> None:
        """Commit what was taken in one transaction; where that fails job by job, so that only the guilty one fails."""
        batches: dict[str, list[event_pb2.Event]] = {}
        for one in taken:
            one.taken = one.inbox[:]
            one.inbox.clear()
            batches[one.job_id] = batches.get(one.job_id, []) + one.taken
        failures: dict[str, Exception] = {}
        try:
            await self._commit_many(batches)
        except Exception as error:  # noqa: BLE001 - it is raised where the job is followed
            failures = dict.fromkeys(batches, error)
            for job_id, events in batches.items() if len(batches) > 1 and not isinstance(error, StoreBusy) else ():
                try:
                    await self._commit_many({job_id: events})
                    del failures[job_id]
                except Exception as failure:  # noqa: BLE001 - as above
                    failures[job_id] = failure
        for one in taken:
            one.failure, one.done = failures.get(one.job_id), True

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Let a commit end even when this task is cancelled meanwhile: a thread cannot be stopped half-way."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._cancelled = True
            await asyncio.wait([task])
            raise

    async def _commit_many(self, batches: dict[str, list[event_pb2.Event]]) -> None:
        begun = time.monotonic()
        while True:
            try:
                self._committed |= await asyncio.to_thread(self._store.commit_many, batches)
                self._ended |= {
                    job for job, events in batches.items() if events and events[-1].HasField("job_finished")
                }
                return
            except StoreBusy:
                patience_s = max(BUSY_PATIENCE_S, self._store.wait_s)
                if self._cancelled or time.monotonic() - begun > patience_s:
                    raise
                await asyncio.sleep(0.2)


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
    if release:
        await agent.release(job_id, committed)
    if lost is not None:
        raise HostProblem(agent.target, lost)
    await writer.mark_released(job_id)


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
