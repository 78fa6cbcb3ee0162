"""Events into rows: columns in, one transaction out. No row is built one by one for requests and samples.

Columns are dicts of numpy arrays that DuckDB scans in place (0.7 to 3 million rows a second; executemany does 2,400).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from benchfleet.samples import SAMPLE_METRICS
from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_controller.store import schema
from benchfleet_controller.store.connection import SequenceGap
from benchfleet_controller.store.messages import message_fields

Batches = Mapping[str, Sequence[event_pb2.Event]]

_STATES = {
    job_pb2.JOB_STATE_RUNNING: "running",
    job_pb2.JOB_STATE_FINISHED: "finished",
    job_pb2.JOB_STATE_FAILED: "failed",
    job_pb2.JOB_STATE_CANCELLED: "cancelled",
}
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
}
_EMPTY_IS_NULL = frozenset(
    {"tokens_source", "accounting", "finish_reason", "stamp_source", "prompt_prefix", "answer_sha256"}
)
_LISTS = {"token_offset_ns": np.int64, "piece_length": np.int32}
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


def insert(connection: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Append columns of equal length to a table; columns not named are NULL."""
    types = {column.name: column.type for column in schema.BY_NAME[table].columns}
    names = ", ".join(columns)
    # Not every duckdb heeds the mask of a masked array, so it travels as a column.
    masks = {f"{name}_absent": c.mask for name, c in columns.items() if isinstance(c, np.ma.MaskedArray)}
    values = ", ".join(
        f"CASE WHEN NOT {name}_absent THEN {name}::{types[name]} END"
        if f"{name}_absent" in masks
        else f"{name}::{types[name]}"
        for name in columns
    )
    connection.register("incoming", {name: np.ma.getdata(c) for name, c in columns.items()} | masks)
    try:
        connection.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM incoming")  # noqa: S608 - our names
    finally:
        connection.unregister("incoming")


def insert_rows(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append a few rows of equal keys."""
    if rows:
        insert(connection, table, {name: _objects(row[name] for row in rows) for name in rows[0]})


def apply(connection: duckdb.DuckDBPyConnection, run_of: Mapping[str, str], batches: Batches) -> None:
    """Store new events of known jobs (`run_of`: job → run), the small ones in order, the many ones as columns."""
    requests: list[tuple[str, event_pb2.RequestFinished]] = []
    samples: list[tuple[str, event_pb2.SamplesRecorded]] = []
    started: list[tuple[str, event_pb2.RoundStarted]] = []
    ended: list[event_pb2.RoundFinished] = []
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
                _apply_small(connection, job_id, run_of[job_id], event, kind)
    _insert_rounds(connection, run_of, started, ended)
    if requests:
        _insert_requests(connection, run_of, requests)
    if samples:
        insert(connection, "samples", _sample_columns(run_of, samples))


def close_cases(connection: duckdb.DuckDBPyConnection, job_id: str, reason: str, message: str) -> None:
    """End the cases of a job that nothing more will be heard of: running ones failed, waiting ones were skipped."""
    connection.execute(
        "UPDATE cases SET status = CASE status WHEN 'running' THEN 'failed' ELSE 'skipped' END, reason = ?, "
        "message = ? WHERE job_id = ? AND status IN ('pending', 'running')",
        [reason, message, job_id],
    )


def _apply_small(
    connection: duckdb.DuckDBPyConnection, job_id: str, run_id: str, event: event_pb2.Event, kind: str | None
) -> None:
    at = event.event_time.ToJsonString() if event.HasField("event_time") else None
    if kind == "job_started":
        _update(connection, "jobs", "job_id", job_id, {"state": "running", "started_at": at, "released": False})
    elif kind == "certificate_recorded":
        _insert_certificate(connection, job_id, run_id, event.certificate_recorded)
    elif kind == "case_started":
        _update(connection, "cases", "case_id", event.case_started.case_id, _started_case(event.case_started, at))
    elif kind == "model_loaded":
        loaded = event.model_loaded
        _update(
            connection,
            "cases",
            "case_id",
            loaded.case_id,
            {
                "load_ns": _optional(loaded, "load_duration_ns"),
                "load_start_ns": loaded.start_ns,
                "load_end_ns": loaded.end_ns,
                "ep_actual": _optional(loaded, "actual_execution_provider"),
                "remote": loaded.remote,
                "components": json.dumps(dict(loaded.components), sort_keys=True),
                "stamp_source": loaded.stamp_source or None,
                "page_cache_ratio": _optional(loaded, "page_cache_ratio"),
                "path": loaded.path or "http",
                "device_libraries": json.dumps(sorted(loaded.device_libraries)) if loaded.device_libraries else None,
            },
        )
    elif kind == "fit_forecasted":
        forecast = dict(message_fields(event.fit_forecasted, without=("case_id",)))
        columns = {"forecast": json.dumps(forecast, sort_keys=True)}
        _update(connection, "cases", "case_id", event.fit_forecasted.case_id, columns)
    elif kind == "case_finished":
        case = event.case_finished
        _update(
            connection,
            "cases",
            "case_id",
            case.case_id,
            {
                "status": case.status,
                "reason": case.failure.reason or None,
                "message": case.failure.message or None,
                "unload_ns": _optional(case, "unload_duration_ns"),
                "unmeasured": json.dumps(dict(case.unmeasured), sort_keys=True),
                "dropped_readings": case.dropped_reading_count,
                "evidence": json.dumps(list(case.evidence), ensure_ascii=False) if case.evidence else None,
                "finished_at": at,
            },
        )
    elif kind == "job_finished":
        _finish_job(connection, job_id, event.job_finished, at)
    # ProgressReported, and kinds of a later contract, leave no row; their sequence is committed all the same.


def _finish_job(
    connection: duckdb.DuckDBPyConnection, job_id: str, finished: event_pb2.JobFinished, at: str | None
) -> None:
    state = _STATES.get(finished.state, "failed")
    failure = finished.failure
    columns = {
        "state": state,
        "failure_reason": failure.reason or None,
        "failure_message": failure.message or None,
        "finished_at": at,
    }
    _update(connection, "jobs", "job_id", job_id, columns)
    reason = failure.reason or ("cancelled" if state == "cancelled" else "internal")
    message = failure.message or f"the job ended ({state}) before this case did"
    close_cases(connection, job_id, reason, message)


def _started_case(started: event_pb2.CaseStarted, at: str | None) -> dict[str, Any]:
    columns: dict[str, Any] = {"status": "running", "started_at": at}
    if started.HasField("model"):
        model = started.model
        columns |= {
            "alias": model.alias or None,
            "variant": model.variant or None,
            "device": _optional(model, "device"),
            "ep_requested": _optional(model, "execution_provider"),
            "size_bytes": _optional(model, "size_bytes"),
            "license": _optional(model, "license"),
            "context_length": _optional(model, "context_length"),
        }
    return columns


def _insert_certificate(
    connection: duckdb.DuckDBPyConnection, job_id: str, run_id: str, recorded: event_pb2.CertificateRecorded
) -> None:
    row: dict[str, Any] = {"job_id": job_id, "run_id": run_id, "concurrency": recorded.concurrency}
    if recorded.HasField("failure"):
        row |= {"failure_reason": recorded.failure.reason, "failure_message": recorded.failure.message}
    else:
        names = [field.name for field in recorded.DESCRIPTOR.fields if field.name not in ("failure", "rss_bytes")]
        row |= {name: getattr(recorded, name) for name in names} | {"rss_bytes": _optional(recorded, "rss_bytes")}
    insert_rows(connection, "certificates", [row])


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
            }
            for job_id, one in started
        ],
    )
    for done in ended:
        columns = {
            "start_ns": done.start_ns,
            "end_ns": done.end_ns,
            "load_cpu_ns": done.load_cpu_ns,
            "load_rss_bytes": _optional(done, "load_rss_bytes"),
            "requests": done.request_count,
            "failed": done.failed_count,
            "state_after": _state(done),
        }
        _update(connection, "rounds", "round_id", done.round_id, columns)


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
        "run_id": _objects(run_of[job_id] for job_id, _ in requests),
        "job_id": _objects(job_id for job_id, _ in requests),
        "warmup": _objects(warmup.get(row.round_id) for row in rows),
        "reason": _objects(row.failure.reason or None for row in rows),
        "message": _objects(row.failure.message or None for row in rows),
    }
    for name, dtype in _LISTS.items():
        given = (getattr(row, name) for row in rows)
        columns[name] = _objects(np.array(values, dtype) if values else None for values in given)
    fields = event_pb2.RequestFinished.DESCRIPTOR.fields_by_name
    for column in schema.REQUESTS.columns:
        if column.name in _ELSEWHERE:
            continue
        name = _RENAMED.get(column.name, column.name)
        if fields[name].has_presence:
            columns[column.name] = _objects(_optional(row, name) for row in rows)
        elif column.name in _EMPTY_IS_NULL:
            columns[column.name] = _objects(getattr(row, name) or None for row in rows)
        else:
            columns[column.name] = _objects(getattr(row, name) for row in rows)
    insert(connection, "requests", columns)


def _warmup_of(connection: duckdb.DuckDBPyConnection, round_ids: set[str]) -> dict[str, bool]:
    rows = connection.execute(
        "SELECT round_id, warmup FROM rounds WHERE round_id IN (SELECT unnest(?))", [sorted(round_ids)]
    ).fetchall()
    return dict(rows)


def _sample_columns(
    run_of: Mapping[str, str], samples: Sequence[tuple[str, event_pb2.SamplesRecorded]]
) -> dict[str, npt.NDArray[Any]]:
    """All messages end to end, a column each; a metric that a message does not carry is NULL over its readings."""
    messages = [message for _, message in samples]
    lengths = np.array([len(message.sample_ns) for message in messages])
    starts = np.concatenate(([0], np.cumsum(lengths)))
    size = int(starts[-1])

    def repeated(values: Iterable[str | None]) -> npt.NDArray[Any]:
        return np.repeat(_objects(values), lengths)

    columns: dict[str, npt.NDArray[Any]] = {
        "run_id": repeated(run_of[job_id] for job_id, _ in samples),
        "job_id": repeated(job_id for job_id, _ in samples),
        "case_id": repeated(message.case_id or None for message in messages),
        "round_id": repeated(message.round_id or None for message in messages),
        "phase": repeated(message.phase for message in messages),
        "probe_id": repeated(message.probe_id for message in messages),
        "device_id": repeated(message.device_id or None for message in messages),
        "sample_ns": _joined([message.sample_ns for message in messages], lengths, np.int64),
        "cost_us": _joined([message.cost_us for message in messages], lengths, np.int32),
    }
    known = {metric.name: np.int64 if metric.integer else np.float64 for metric in SAMPLE_METRICS}
    given: dict[str, dict[int, event_pb2.SampleColumn]] = defaultdict(dict)
    for place, message in enumerate(messages):
        for column in message.columns:
            given[column.metric][place] = column
    for name in given.keys() & known.keys():  # others are of a later agent: their columns come with the next version
        parts = given[name]
        places = np.fromiter(parts, np.int64, len(parts))
        rows = _rows_of(starts, lengths, places) if len(parts) < len(messages) else slice(None)
        values, absent = np.zeros(size, known[name]), np.ones(size, np.bool_)
        values[rows] = _joined([c.integers or c.doubles for c in parts.values()], lengths[places], known[name])
        absent[rows] = False
        for place, column in parts.items():
            length = int(lengths[place])
            carried = len(column.integers or column.doubles)
            if column.absent or carried < length:
                missing = [index for index in column.absent if index < length]
                absent[[starts[place] + index for index in (*missing, *range(carried, length))]] = True
        columns[name] = np.ma.masked_array(values, absent)
    return columns


def _joined(parts: Sequence[Sequence[float]], lengths: npt.NDArray[np.int64], dtype: Any) -> npt.NDArray[Any]:
    """The parts end to end, each with as many values as ``lengths`` says: what a hostile or broken message has too
    many or too few of must not shift the readings of others.
    """
    if all(len(part) == length for part, length in zip(parts, lengths, strict=True)):
        return np.fromiter(chain.from_iterable(parts), dtype, int(lengths.sum()))
    fitted = []
    for part, length in zip(parts, lengths, strict=True):
        values = np.zeros(length, dtype)
        taken = np.array(part[:length], dtype)
        values[: len(taken)] = taken
        fitted.append(values)
    return np.concatenate(fitted)


def _rows_of(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The rows of some messages, in order."""
    counts = lengths[places]
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts[places], counts) + offsets


def _update(
    connection: duckdb.DuckDBPyConnection, table: str, key: str, value: str, columns: Mapping[str, Any]
) -> None:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(f"UPDATE {table} SET {assignments} WHERE {key} = ?", [*columns.values(), value])  # noqa: S608


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _objects(values: Iterable[Any]) -> npt.NDArray[Any]:
    """A one-dimensional object array (`numpy.array` would make lists of equal length a matrix)."""
    listed = list(values)
    return np.fromiter(listed, object, len(listed))
