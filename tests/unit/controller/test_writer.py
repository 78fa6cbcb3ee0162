from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import pytest

from benchfleet.v1 import event_pb2
from benchfleet_controller.store import SequenceGap, Store
from benchfleet_controller.writer import Writer

_Batches = Mapping[str, Sequence[event_pb2.Event]]


class FakeStore:
    """Keeps what is committed; a commit waits for ``go``, and refuses jobs called ``bad``."""

    def __init__(self) -> None:
        self.commits: list[dict[str, list[int]]] = []
        self.openings = 0
        self.go = threading.Event()
        self.go.set()

    def commit_many(self, batches: _Batches, more: Callable[[dict[str, int]], _Batches | None]) -> dict[str, int]:
        self.openings += 1
        committed: dict[str, int] = {}
        following: _Batches | None = batches
        while following is not None:
            assert self.go.wait(10)
            if "bad" in following:
                raise SequenceGap("job bad: a gap")
            self.commits.append({job: [event.sequence for event in events] for job, events in following.items()})
            moved = {job: events[-1].sequence for job, events in following.items()}
            committed |= moved
            following = more(moved)
        return committed


def _events(*sequences: int) -> list[event_pb2.Event]:
    return [event_pb2.Event(sequence=sequence) for sequence in sequences]


def _writer(store: FakeStore) -> Writer:
    return Writer(cast("Store", store), period_s=0)


async def _begun(writer: Writer, job: str, inbox: list[event_pb2.Event]) -> asyncio.Task[list[event_pb2.Event]]:
    """A follower that waits for its commit."""
    task = asyncio.create_task(writer.commit(job, inbox))
    await asyncio.sleep(0)
    return task


def _sequences(events: list[event_pb2.Event]) -> list[int]:
    return [event.sequence for event in events]


def test_what_waits_during_a_commit_goes_into_the_next_one_together() -> None:
    store = FakeStore()

    async def go() -> list[list[event_pb2.Event]]:
        writer = _writer(store)
        store.go.clear()
        first = await _begun(writer, "a", _events(1))
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
        first = await _begun(writer, "a", _events(1))
        inbox = _events(1)
        waiting = await _begun(writer, "b", inbox)
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
        first = await _begun(writer, "a", _events(1))
        waiting = await _begun(writer, "b", _events(1))
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
        first = await _begun(writer, "a", _events(1))
        other = await _begun(writer, "b", _events(1))
        first.cancel()
        store.go.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await other

    assert _sequences(asyncio.run(go())) == [1]
    assert store.commits == [{"a": [1]}, {"b": [1]}]


def _drain(store: FakeStore, jobs: int, messages: int) -> list[int]:
    """Followers of jobs, each with messages that it commits one after the other; how many each had stored."""

    async def follower(writer: Writer, job: str) -> int:
        return sum([len(await writer.commit(job, _events(number))) for number in range(1, messages + 1)])

    async def go() -> list[int]:
        writer = _writer(store)
        return list(await asyncio.gather(*(follower(writer, f"j{index}") for index in range(jobs))))

    return asyncio.run(go())


def test_a_backlog_is_worked_off_while_the_file_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchfleet_controller.writer.BACKLOG", 10)
    store = FakeStore()

    assert _drain(store, jobs=10, messages=5) == [5] * 10
    assert [len(commit) for commit in store.commits] == [10] * 5
    assert store.openings == 1


def test_what_comes_live_lets_go_of_the_file_between_commits() -> None:
    store = FakeStore()

    assert _drain(store, jobs=10, messages=5) == [5] * 10
    assert store.openings == len(store.commits) == 5


def test_a_long_backlog_lets_readers_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchfleet_controller.writer.BACKLOG", 1)
    monkeypatch.setattr("benchfleet_controller.writer.LONGEST_HOLD_S", 0.0)
    store = FakeStore()

    assert _drain(store, jobs=1, messages=3) == [3]
    assert store.openings == 3


def test_what_a_backlog_had_stored_before_a_failure_stays_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchfleet_controller.writer.BACKLOG", 1)
    store = FakeStore()

    async def go() -> tuple[list[event_pb2.Event], BaseException | list[event_pb2.Event]]:
        writer = _writer(store)
        store.go.clear()
        first = await _begun(writer, "a", _events(1))
        second = await _begun(writer, "bad", _events(1))
        store.go.set()
        return await first, (await asyncio.gather(second, return_exceptions=True))[0]

    stored, failure = asyncio.run(go())
    assert _sequences(stored) == [1]
    assert isinstance(failure, SequenceGap)
    assert store.commits == [{"a": [1]}]
