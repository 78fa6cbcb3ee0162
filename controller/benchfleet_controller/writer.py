"""The one way of events into the store: off the event loop, and what waits while a commit runs goes into the next one.

One commit of a thousand jobs costs little more than one of a single job. The file is opened for one commit, so that
readers in other terminals get their turn, and for several in a row only while a backlog is worked off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from benchfleet.failures import Failure
from benchfleet.v1 import event_pb2
from benchfleet_controller.store import Store, StoreBusy

COMMIT_PERIOD_S = 1.0
"""From one commit to the next: events gather, for opening and closing the file is most of what a small commit costs,
and the machine may be the one that measures. With the last event of a job only a pause is waited for."""
COMMIT_PAUSE_S = 0.2
"""Between the closing of the file and the next commit, so that readers in other terminals get their turn."""
BACKLOG = 1_000
"""So many waiting events are a backlog: what a fleet sends live while a commit runs is less."""
LONGEST_HOLD_S = 2.0
"""How long a backlog keeps the file open; readers wait meanwhile."""
RETURN_S = 0.001
"""Enough for followers to hear of a commit and to bring what came meanwhile."""
MOST_DEFERRED_S = 5.0
"""How long noting the end of a job gives way to events that wait for their commit: it condenses what the job left."""
BUSY_PATIENCE_S = 120.0
UNENDED = frozenset({"pending", "running"})

_Batches = dict[str, list[event_pb2.Event]]
_More = Callable[[dict[str, int]], _Batches | None]


@dataclass(slots=True, eq=False)
class _Waiting:
    """Events of one job that wait for their commit."""

    job_id: str
    inbox: list[event_pb2.Event]
    """May still grow; emptied when the commit takes what is there."""
    stored: asyncio.Future[list[event_pb2.Event]]
    taken: list[event_pb2.Event] = field(default_factory=list)


class Writer:
    """What several followers in one event loop put into one store."""

    def __init__(self, store: Store, period_s: float = COMMIT_PERIOD_S) -> None:
        self._store = store
        self._period_s, self._pause_s = period_s, min(period_s, COMMIT_PAUSE_S)
        self._lock = asyncio.Lock()
        """Around every use of the file."""
        self._committing: asyncio.Task[None] | None = None
        self._waiting: list[_Waiting] = []
        self._taken: list[_Waiting] = []
        """What the commit that runs has taken."""
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
        mine = _Waiting(job_id, inbox, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit_waiting())
        try:
            return await asyncio.shield(mine.stored)
        except asyncio.CancelledError:
            if mine in self._waiting:  # before its turn: the next stream of this job brings it again
                self._waiting.remove(mine)
            else:  # a thread cannot be stopped half-way
                self._cancelled = True
                await asyncio.wait([mine.stored])
            raise

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
                await _finished(asyncio.to_thread(self._store.mark_released, released))

    async def _commit_waiting(self) -> None:
        """Until nothing waits any longer."""
        while self._waiting:
            await self._gather()
            async with self._lock:
                if self._waiting:
                    begun = time.monotonic()
                    await self._commit()
                    self._rested = time.monotonic() + self._pause_s
                    self._resume = max(begun + self._period_s, self._rested)

    async def _gather(self) -> None:
        """Wait for the time of the next commit; with a backlog or the last event of a job only for others' turn."""
        while True:
            ending = any(one.inbox[-1].HasField("job_finished") for one in self._waiting if one.inbox)
            left = (self._rested if ending or self._has_backlog() else self._resume) - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, COMMIT_PAUSE_S))

    def _has_backlog(self) -> bool:
        return sum(len(one.inbox) for one in self._waiting) >= BACKLOG

    async def _commit(self) -> None:
        """Commit what waits in one transaction; where that fails job by job, so that only the guilty one fails."""
        loop, latest = asyncio.get_running_loop(), time.monotonic() + LONGEST_HOLD_S

        async def go_on(committed: dict[str, int]) -> _Batches | None:
            self._settle(committed)
            await asyncio.sleep(RETURN_S)
            held_long = self._cancelled or time.monotonic() >= latest
            return None if held_long or not self._has_backlog() else self._take()

        def more(committed: dict[str, int]) -> _Batches | None:  # in the thread of the store
            return asyncio.run_coroutine_threadsafe(go_on(committed), loop).result()

        try:
            await self._store_all(self._take(), more)
        except Exception as error:  # noqa: BLE001 - it is raised where the job is followed
            failed, self._taken = self._taken, []
            for one in failed:
                failure: Exception | None = error
                if len(failed) > 1 and not isinstance(error, StoreBusy):
                    failure = await self._alone(one)
                if failure is not None:
                    one.stored.set_exception(failure)

    async def _alone(self, one: _Waiting) -> Exception | None:
        """Commit one job's events; returns why that failed."""
        self._taken = [one]
        try:
            await self._store_all({one.job_id: one.taken}, lambda _: None)
        except Exception as failure:  # noqa: BLE001 - as above
            return failure
        return None

    def _take(self) -> _Batches:
        self._taken, self._waiting = self._waiting, []
        batches: _Batches = {}
        for one in self._taken:
            one.taken = one.inbox[:]
            one.inbox.clear()
            batches[one.job_id] = batches.get(one.job_id, []) + one.taken
        return batches

    def _settle(self, committed: dict[str, int]) -> None:
        """Tell followers that what was taken is stored."""
        self._committed |= committed
        for one in self._taken:
            if one.taken and one.taken[-1].HasField("job_finished"):
                self._ended.add(one.job_id)
            one.stored.set_result(one.taken)
        self._taken = []

    async def _store_all(self, batches: _Batches, more: _More) -> None:
        begun = time.monotonic()
        while True:
            try:
                self._settle(await asyncio.to_thread(self._store.commit_many, batches, more))
                return
            except StoreBusy:
                patience_s = max(BUSY_PATIENCE_S, self._store.wait_s)
                if self._cancelled or time.monotonic() - begun > patience_s:
                    raise
                await asyncio.sleep(0.2)


async def _finished(work: Coroutine[None, None, None]) -> None:
    """Let a change of the file end even when this task is cancelled meanwhile: a thread cannot be stopped half-way."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
