"""How fast events from the wire become committed rows, against DuckDB's own insert of the same rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import duckdb
import numpy as np
from benchmarks.dataplane.agents import METRICS, READINGS, job_events, samples

from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_controller.fleet import Agent
from benchfleet_controller.follow import follow
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.store import Store
from benchfleet_controller.writer import Writer

ROWS_OF_A_LARGE_TABLE = 10_000_000
EVENTS_A_RESPONSE = 100
RAW_BATCH = 50_000


@dataclass(frozen=True, slots=True)
class Rates:
    """The program's way of storing rows, and DuckDB's own."""

    rows_per_s: float
    raw_rows_per_s: float
    """DuckDB's insert of the same rows into the same table from arrays, on a connection that stays open."""

    @property
    def ratio(self) -> float:
        return self.rows_per_s / self.raw_rows_per_s


@dataclass(frozen=True, slots=True)
class Ingested(Rates):
    """One size of commits."""

    rows_per_commit: int


@dataclass(frozen=True, slots=True)
class Backlog(Rates):
    """What jobs left to fetch, fetched by the program at its own pace; DuckDB's own takes `RAW_BATCH` at a time."""

    jobs: int
    rows: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Median time of one commit into a small and into a large table, in seconds."""

    rows: int
    small_s: float
    large_s: float


def ingest(directory: Path, jobs: int, seconds: int, commits: int = 20) -> Ingested:
    """Commits of ``jobs`` jobs with ``seconds`` messages each, both ways in turn."""
    store, names = _store(directory / f"ingest-{jobs}-{seconds}.duckdb", jobs)
    rows = jobs * seconds * READINGS
    ours, raw = [], []
    raw_path = directory / f"raw-{jobs}-{seconds}.duckdb"
    _store(raw_path, jobs)
    with duckdb.connect(str(raw_path)) as connection:
        for number in range(commits):
            wire = _wire(names, number * seconds, seconds)
            begun = time.perf_counter()
            store.commit_many({job: pb.StreamJobEventsResponse.FromString(data).events for job, data in wire.items()})
            ours.append(time.perf_counter() - begun)
            columns = _columns(names, number * seconds, seconds)
            begun = time.perf_counter()
            _insert(connection, columns)
            raw.append(time.perf_counter() - begun)
    return Ingested(rows / float(np.median(ours)), rows / float(np.median(raw)), rows)


def backlog(directory: Path, jobs: int, rows: int) -> Backlog:
    """Follow jobs that ended long ago, all at once, until their last reading is committed."""
    seconds = rows // (jobs * READINGS)
    names = [f"job-{index}" for index in range(jobs)]
    wires = [_whole_job(name, seconds) for name in names]
    store = Store(directory / f"backlog-{jobs}.duckdb")
    store.mark_released(())  # makes the file: a run is recorded before anything starts
    last_s = [0.0]

    def watch(_: str, event: event_pb2.Event) -> None:
        if event.HasField("samples_recorded"):
            last_s[0] = time.perf_counter()

    async def fetch() -> None:
        writer = Writer(store)
        agents = [
            Agent(
                HostTarget("lab", "localhost:1"),
                cast("Any", None),
                cast("Any", None),
                cast("Any", _Wire(wire)),
                "",
                "",
                0.0,
            )
            for wire in wires
        ]
        await asyncio.gather(*(follow(agent, name, writer, watch) for agent, name in zip(agents, names, strict=True)))

    begun = time.perf_counter()
    asyncio.run(fetch())
    took = last_s[0] - begun
    columns = _columns(names, 0, seconds)
    raw_path = directory / f"raw-backlog-{jobs}.duckdb"
    _store(raw_path, jobs)
    raw = 0.0
    with duckdb.connect(str(raw_path)) as connection:
        for first in range(0, rows, RAW_BATCH):
            batch = {name: column[first : first + RAW_BATCH] for name, column in columns.items()}
            begun = time.perf_counter()
            _insert(connection, batch)
            raw += time.perf_counter() - begun
    return Backlog(rows / took, rows / raw, jobs, rows)


class _Wire:
    """An agent that holds a job's events, as bytes."""

    def __init__(self, responses: list[bytes]) -> None:
        self._responses = responses

    async def StreamJobEvents(  # noqa: N802
        self, request: pb.StreamJobEventsRequest
    ) -> AsyncIterator[pb.StreamJobEventsResponse]:
        assert request.committed_sequence == 0
        for data in self._responses:
            await asyncio.sleep(0)
            yield pb.StreamJobEventsResponse.FromString(data)

    async def ReleaseJobEvents(  # noqa: N802
        self,
        request: pb.ReleaseJobEventsRequest,
        timeout: float,  # noqa: ASYNC109
    ) -> pb.ReleaseJobEventsResponse:
        return pb.ReleaseJobEventsResponse()


def _whole_job(name: str, seconds: int) -> list[bytes]:
    events = job_events(name, f"host-{name}")
    events += [event_pb2.Event(samples_recorded=samples(f"case-{name}", second)) for second in range(seconds)]
    events.append(event_pb2.Event(job_finished=event_pb2.JobFinished(state=job_pb2.JOB_STATE_FINISHED)))
    numbered = _numbered(events, 0)
    return [
        pb.StreamJobEventsResponse(events=numbered[first : first + EVENTS_A_RESPONSE]).SerializeToString()
        for first in range(0, len(numbered), EVENTS_A_RESPONSE)
    ]


def _insert(connection: duckdb.DuckDBPyConnection, columns: dict[str, Any]) -> None:
    connection.execute("BEGIN")
    connection.register("incoming", columns)
    connection.execute(f"INSERT INTO samples BY NAME SELECT {', '.join(columns)} FROM incoming")
    connection.unregister("incoming")
    connection.execute("COMMIT")


def growth(directory: Path, rows: int = ROWS_OF_A_LARGE_TABLE, commits: int = 30) -> Growth:
    """Commits of a thousand rows before and after the table has grown."""
    path = directory / "growth.duckdb"
    store, names = _store(path, 100)

    def median_s(first: int) -> float:
        times = []
        for number in range(commits):
            wire = _wire(names, first + number, 1)
            begun = time.perf_counter()
            store.commit_many({job: pb.StreamJobEventsResponse.FromString(data).events for job, data in wire.items()})
            times.append(time.perf_counter() - begun)
        return float(np.median(times))

    small = median_s(0)
    with duckdb.connect(str(path)) as connection:
        values = ", ".join(f"(range * {place + 3}) // 7 AS {name}" for place, name in enumerate(METRICS))
        connection.execute(
            "INSERT INTO samples BY NAME SELECT 'other' AS run_id, 'other' AS job_id, "
            "'c' || (range // 100000) AS case_id, "
            f"'round' AS phase, 'system' AS probe_id, range * 100000000 AS sample_ns, 300 AS cost_us, {values} "
            f"FROM range({rows})"
        )
    return Growth(rows, small, median_s(commits))


def _store(path: Path, jobs: int) -> tuple[Store, list[str]]:
    store, names = Store(path), [f"job-{index}" for index in range(jobs)]
    store.commit_many({name: _numbered(job_events(name, f"host-{name}"), 0) for name in names})
    return store, names


def _wire(names: list[str], first: int, seconds: int) -> dict[str, bytes]:
    """Messages as they come over the wire, by job; each job has two events before its samples."""
    return {
        name: pb.StreamJobEventsResponse(
            events=_numbered(
                [event_pb2.Event(samples_recorded=samples(f"case-{name}", first + s)) for s in range(seconds)],
                2 + first,
            )
        ).SerializeToString()
        for name in names
    }


def _numbered(events: list[event_pb2.Event], before: int) -> list[event_pb2.Event]:
    for number, event in enumerate(events, start=before + 1):
        event.sequence = number
        event.event_ns = number
    return events


def _columns(names: list[str], first: int, seconds: int) -> dict[str, Any]:
    """The same rows as arrays."""
    size = seconds * READINGS
    messages = [samples("", first + s) for s in range(seconds)]
    at = np.concatenate([np.array(message.sample_ns) for message in messages])
    found: dict[str, Any] = {
        "run_id": np.full(size * len(names), "simulated", object),
        "job_id": np.repeat(np.array(names, object), size),
        "case_id": np.repeat(np.array([f"case-{name}" for name in names], object), size),
        "phase": np.full(size * len(names), "round", object),
        "probe_id": np.full(size * len(names), "system", object),
        "sample_ns": np.tile(at, len(names)),
        "cost_us": np.full(size * len(names), 300, np.int32),
    }
    for place, name in enumerate(METRICS):
        values = [np.array(message.columns[place].integers) for message in messages]
        found[name] = np.tile(np.concatenate(values), len(names))
    return found
