from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from benchfleet.v1 import event_pb2
from benchfleet_controller.follow import Writer
from benchfleet_controller.store import SequenceGap, Store


class FakeStore:
    """Keeps what is committed; a commit waits for ``go``, and refuses jobs called ``bad``."""

    def __init__(self) -> None:
        self.commits: list[dict[str, list[int]]] = []
        self.go = threading.Event()
        self.go.set()

    def commit_many(self, batches: Mapping[str, Sequence[event_pb2.Event]]) -> dict[str, int]:
        assert self.go.wait(10)
        if "bad" in batches:
            raise SequenceGap("job bad: a gap")
        self.commits.append({job: [event.sequence for event in events] for job, events in batches.items()})
        return {job: events[-1].sequence for job, events in batches.items()}


def _events(*sequences: int) -> list[event_pb2.Event]:
    return [event_pb2.Event(sequence=sequence) for sequence in sequences]


def _writer(store: FakeStore) -> Writer:
    return Writer(cast("Store", store), period_s=0)


def _sequences(events: list[event_pb2.Event]) -> list[int]:
    return [event.sequence for event in events]


def test_what_waits_during_a_commit_goes_into_the_next_one_together() -> None:
    store = FakeStore()

    async def go() -> list[list[event_pb2.Event]]:
        writer = _writer(store)
        store.go.clear()
        first = asyncio.create_task(writer.commit("a", _events(1)))
        await asyncio.sleep(0)
        others = [asyncio.create_task(writer.commit(f"b{index}", _events(1, 2))) for index in range(100)]
        await asyncio.sleep(0)
        store.go.set()
        return list(await asyncio.gather(first, *others))

    assert [_sequences(events) for events in asyncio.run(go())] == [[1]] + [[1, 2]] * 100
    assert [len(commit) for commit in store.commits] == [1, 100]


def test_what_arrives_before_a_commit_begins_goes_with_it() -> None:
    store = FakeStore()

    async def go() -> list[event_pb2.Event]:
        writer = _writer(store)
        store.go.clear()
        first = asyncio.create_task(writer.commit("a", _events(1)))
        await asyncio.sleep(0)
        inbox = _events(1)
        waiting = asyncio.create_task(writer.commit("b", inbox))
        await asyncio.sleep(0)
        inbox.extend(_events(2, 3))
        store.go.set()
        await first
        stored = await waiting
        assert inbox == []
        return stored

    assert _sequences(asyncio.run(go())) == [1, 2, 3]


def test_a_job_whose_events_do_not_fit_fails_alone() -> None:
    store = FakeStore()

    async def go() -> list[list[event_pb2.Event] | BaseException]:
        writer = _writer(store)
        jobs = ("a", "bad", "c")
        return list(await asyncio.gather(*(writer.commit(job, _events(1)) for job in jobs), return_exceptions=True))

    first, bad, last = asyncio.run(go())
    assert first
    assert last
    assert isinstance(bad, SequenceGap)
    assert store.commits == [{"a": [1]}, {"c": [1]}]


def test_a_follower_that_is_cancelled_takes_its_waiting_events_back() -> None:
    store = FakeStore()

    async def go() -> None:
        writer = _writer(store)
        store.go.clear()
        first = asyncio.create_task(writer.commit("a", _events(1)))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(writer.commit("b", _events(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        store.go.set()
        await first
        await writer.commit("b", _events(1, 2))

    asyncio.run(go())
    assert store.commits == [{"a": [1]}, {"b": [1, 2]}]


def test_a_commit_that_runs_ends_although_its_follower_is_cancelled() -> None:
    store = FakeStore()

    async def go() -> list[event_pb2.Event]:
        writer = _writer(store)
        store.go.clear()
        first = asyncio.create_task(writer.commit("a", _events(1)))
        await asyncio.sleep(0)
        other = asyncio.create_task(writer.commit("b", _events(1)))
        await asyncio.sleep(0)
        first.cancel()
        store.go.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await other

    assert _sequences(asyncio.run(go())) == [1]
    assert store.commits == [{"a": [1]}, {"b": [1]}]
