"""How fast events from the wire become committed rows, against DuckDB's own insert of the same rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from benchmarks.dataplane.agents import METRICS, READINGS, job_events, samples

from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import event_pb2
from benchfleet_controller.store import Store

ROWS_OF_A_LARGE_TABLE = 10_000_000


@dataclass(frozen=True, slots=True)
class Ingested:
    """One size of commits."""

    rows_per_commit: int
    rows_per_s: float
    raw_rows_per_s: float
    """DuckDB's insert of the same rows into the same table from arrays, on a connection that stays open."""

    @property
    def ratio(self) -> float:
        return self.rows_per_s / self.raw_rows_per_s


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
            connection.execute("BEGIN")
            connection.register("incoming", columns)
            connection.execute(f"INSERT INTO samples BY NAME SELECT {', '.join(columns)} FROM incoming")
            connection.unregister("incoming")
            connection.execute("COMMIT")
            raw.append(time.perf_counter() - begun)
    return Ingested(rows, rows / float(np.median(ours)), rows / float(np.median(raw)))


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
    at = np.concatenate([np.array(samples("", first + s).sample_ns) for s in range(seconds)])
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
        values = [np.array(samples("", first + s).columns[place].integers) for s in range(seconds)]
        found[name] = np.tile(np.concatenate(values), len(names))
    return found
