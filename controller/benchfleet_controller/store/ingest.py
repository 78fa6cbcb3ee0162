"""Events into rows, one transaction: what there are many of by columns, the rest by `lifecycle`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from benchfleet.v1 import event_pb2
from benchfleet_controller.store import records, schema, scores
from benchfleet_controller.store.columns import insert, insert_rows, objects, optional, update_rows
from benchfleet_controller.store.connection import SequenceGap
from benchfleet_controller.store.lifecycle import apply_lifecycle
from benchfleet_controller.store.messages import message_fields
from benchfleet_controller.store.telemetry import sample_columns

Batches = Mapping[str, Sequence[event_pb2.Event]]

# Columns of requests that are fields of RequestFinished, by where they differ in name.
_RENAMED = {
    "connect_ns": "connect_duration_ns",
    "coalesced_chunks": "coalesced_chunk_count",
    "prompt_tokens": "prompt_token_count",
    "cached_prompt_tokens": "cached_prompt_token_count",
    "output_tokens": "output_token_count",
    "visible_tokens": "visible_token_count",
    "reasoning_tokens": "reasoning_token_count",
    "hidden_tokens": "hidden_token_count",
    "server_prefill_tokens": "server_prefill_token_count",
    "server_decode_tokens": "server_decode_token_count",
}
_EMPTY_IS_NULL = frozenset(
    {"tokens_source", "accounting", "finish_reason", "stamp_source", "prompt_prefix", "answer_sha256"}
)
_LISTS = {"token_offset_ns": np.int64, "piece_length": np.int32, "other_length": np.int32}
_ELSEWHERE = frozenset({"run_id", "job_id", "warmup", "reason", "message"}) | _LISTS.keys()


def new_events(job_id: str, committed: int, events: Sequence[event_pb2.Event]) -> list[event_pb2.Event]:
    """The events above ``committed``, which must follow it without a gap (`SequenceGap`)."""
    fresh = [event for event in events if event.sequence > committed]
    for expected, event in enumerate(fresh, start=committed + 1):
        if event.sequence != expected:
            raise SequenceGap(
                f"job {job_id}: event {event.sequence} came where {expected} was expected; "
                f"follow the job again from {committed}"
            )
    return fresh


def commit(connection: duckdb.DuckDBPyConnection, batches: Batches) -> dict[str, int]:
    """Store what is new of jobs' events, score answers of runs whose jobs end, and move the committed sequences.

    Returns the committed sequences. Raises `SequenceGap`.
    """
    known = records.committed(connection, batches)
    fresh = {job: new_events(job, known.get(job, (0, ""))[0], batch) for job, batch in batches.items()}
    run_of = {job: run for job, (_, run) in known.items()}
    records.take_first_events(connection, fresh, run_of)
    apply(connection, run_of, fresh)
    for run_id in {run_of[job] for job, events in fresh.items() if any(e.HasField("job_finished") for e in events)}:
        scores.score_run(connection, run_id)
    moved = {job: events[-1].sequence for job, events in fresh.items() if events}
    if moved:
        records.move_committed(connection, moved)
    return {job: moved.get(job, known.get(job, (0, ""))[0]) for job in batches}


def apply(connection: duckdb.DuckDBPyConnection, run_of: Mapping[str, str], batches: Batches) -> None:
    """Store new events of known jobs (`run_of`: job → run)."""
    requests: list[tuple[str, event_pb2.RequestFinished]] = []
    samples: list[tuple[str, event_pb2.SamplesRecorded]] = []
    started: list[tuple[str, event_pb2.RoundStarted]] = []
    ended: list[event_pb2.RoundFinished] = []
    others: list[tuple[str, event_pb2.Event]] = []
    for job_id, events in batches.items():
        for event in events:
            kind = event.WhichOneof("kind")
            if kind == "samples_recorded":
                samples.append((job_id, event.samples_recorded))
            elif kind == "request_finished":
                requests.append((job_id, event.request_finished))
            elif kind == "round_started":
                started.append((job_id, event.round_started))
            elif kind == "round_finished":
                ended.append(event.round_finished)
            else:
                others.append((job_id, event))
    if others:
        apply_lifecycle(connection, run_of, others)
    _insert_rounds(connection, run_of, started, ended)
    if requests:
        _insert_requests(connection, run_of, requests)
    if samples:
        insert(connection, "samples", sample_columns(run_of, samples))


def _insert_rounds(
    connection: duckdb.DuckDBPyConnection,
    run_of: Mapping[str, str],
    started: Sequence[tuple[str, event_pb2.RoundStarted]],
    ended: Sequence[event_pb2.RoundFinished],
) -> None:
    insert_rows(
        connection,
        "rounds",
        [
            {
                "round_id": one.round_id,
                "run_id": run_of[job_id],
                "job_id": job_id,
                "case_id": one.case_id,
                "round_index": one.round_index,
                "warmup": one.warmup,
                "kind": one.kind or ("warmup" if one.warmup else "counted"),
                "start_ns": one.start_ns,
                "state_before": _state(one),
                "model_unloaded": optional(one, "model_unloaded"),
            }
            for job_id, one in started
        ],
    )
    rows = [
        {
            "round_id": done.round_id,
            "start_ns": done.start_ns,
            "end_ns": done.end_ns,
            "load_cpu_ns": done.load_cpu_ns,
            "load_rss_bytes": optional(done, "load_rss_bytes"),
            "requests": done.request_count,
            "failed": done.failed_count,
            "state_after": _state(done),
        }
        for done in ended
    ]
    update_rows(connection, "rounds", "round_id", rows)


def _state(round_event: event_pb2.RoundStarted | event_pb2.RoundFinished) -> str | None:
    """The host's conditions as JSON; None: this agent does not tell."""
    if not round_event.HasField("host_state"):
        return None
    return json.dumps(message_fields(round_event.host_state), sort_keys=True)


def _insert_requests(
    connection: duckdb.DuckDBPyConnection,
    run_of: Mapping[str, str],
    requests: Sequence[tuple[str, event_pb2.RequestFinished]],
) -> None:
    rows = [request for _, request in requests]
    warmup = _warmup_of(connection, {row.round_id for row in rows})
    columns: dict[str, npt.NDArray[Any]] = {
        "run_id": objects(run_of[job_id] for job_id, _ in requests),
        "job_id": objects(job_id for job_id, _ in requests),
        "warmup": objects(warmup.get(row.round_id) for row in rows),
        "reason": objects(row.failure.reason or None for row in rows),
        "message": objects(row.failure.message or None for row in rows),
    }
    for name, dtype in _LISTS.items():
        given = (getattr(row, name) for row in rows)
        columns[name] = objects(np.array(values, dtype) if values else None for values in given)
    fields = event_pb2.RequestFinished.DESCRIPTOR.fields_by_name
    for column in schema.REQUESTS.columns:
        if column.name in _ELSEWHERE:
            continue
        name = _RENAMED.get(column.name, column.name)
        if fields[name].has_presence:
            columns[column.name] = objects(optional(row, name) for row in rows)
        elif column.name in _EMPTY_IS_NULL:
            columns[column.name] = objects(getattr(row, name) or None for row in rows)
        else:
            columns[column.name] = objects(getattr(row, name) for row in rows)
    insert(connection, "requests", columns)


def _warmup_of(connection: duckdb.DuckDBPyConnection, round_ids: set[str]) -> dict[str, bool]:
    rows = connection.execute(
        "SELECT round_id, warmup FROM rounds WHERE round_id IN (SELECT unnest(?))", [sorted(round_ids)]
    ).fetchall()
    return dict(rows)
