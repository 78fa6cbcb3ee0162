"""What happens once in a job or a case, as updates of its row: one statement a kind of event, for all jobs together.

Kinds are taken in the order they have in the life of a job, so that of two that speak of one row the later one wins.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb

from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_controller.store.columns import insert_rows, optional, update_rows
from benchfleet_controller.store.messages import message_fields

_STATES = {
    job_pb2.JOB_STATE_RUNNING: "running",
    job_pb2.JOB_STATE_FINISHED: "finished",
    job_pb2.JOB_STATE_FAILED: "failed",
    job_pb2.JOB_STATE_CANCELLED: "cancelled",
}
Connection = duckdb.DuckDBPyConnection


def apply_lifecycle(
    connection: Connection, run_of: Mapping[str, str], events: Sequence[tuple[str, event_pb2.Event]]
) -> None:
    """Store events of jobs (`run_of`: job → run) that are neither rounds, requests nor samples.

    ProgressReported, and kinds of a later contract, leave no row; their sequence is committed all the same.
    """
    kinds: dict[str, list[tuple[str, event_pb2.Event]]] = defaultdict(list)
    for job_id, event in events:
        kinds[event.WhichOneof("kind") or ""].append((job_id, event))
    rows = [_certificate(job_id, run_of[job_id], event) for job_id, event in kinds["certificate_recorded"]]
    for failed in (True, False):  # rows of one statement have the same columns
        insert_rows(connection, "certificates", [row for row in rows if ("failure_reason" in row) is failed])
    for kind, (table, key, row_of) in _UPDATES.items():
        found: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
        for job_id, event in kinds[kind]:
            row = row_of(job_id, event)
            found[tuple(row)].append(row)
        for same in found.values():
            update_rows(connection, table, key, same)
    close_cases(connection, {job_id: _why_left(event.job_finished) for job_id, event in kinds["job_finished"]})


def close_cases(connection: Connection, whys: Mapping[str, tuple[str, str]]) -> None:
    """End the cases of jobs that nothing more will be heard of: running ones failed, waiting ones were skipped.

    ``whys``: job → reason and message.
    """
    sql = "SELECT case_id, job_id, status FROM cases WHERE job_id = ANY(?) AND status IN ('pending', 'running')"
    left = connection.execute(sql, [list(whys)]).fetchall() if whys else []
    rows = [
        {
            "case_id": case_id,
            "status": "failed" if status == "running" else "skipped",
            "reason": whys[job_id][0],
            "message": whys[job_id][1],
        }
        for case_id, job_id, status in left
    ]
    update_rows(connection, "cases", "case_id", rows)


def _why_left(finished: event_pb2.JobFinished) -> tuple[str, str]:
    """Reason and message of cases that an ended job left open."""
    failure, state = finished.failure, _STATES.get(finished.state, "failed")
    reason = failure.reason or ("cancelled" if state == "cancelled" else "internal")
    return reason, failure.message or f"the job ended ({state}) before this case did"


def _at(event: event_pb2.Event) -> str | None:
    return event.event_time.ToJsonString() if event.HasField("event_time") else None


def _started_job(job_id: str, event: event_pb2.Event) -> dict[str, Any]:
    return {"job_id": job_id, "state": "running", "started_at": _at(event), "released": False}


def _finished_job(job_id: str, event: event_pb2.Event) -> dict[str, Any]:
    finished = event.job_finished
    return {
        "job_id": job_id,
        "state": _STATES.get(finished.state, "failed"),
        "failure_reason": finished.failure.reason or None,
        "failure_message": finished.failure.message or None,
        "finished_at": _at(event),
    }


def _started_case(_: str, event: event_pb2.Event) -> dict[str, Any]:
    started = event.case_started
    row: dict[str, Any] = {"case_id": started.case_id, "status": "running", "started_at": _at(event)}
    if started.HasField("model"):
        model = started.model
        row |= {
            "alias": model.alias or None,
            "variant": model.variant or None,
            "device": optional(model, "device"),
            "ep_requested": optional(model, "execution_provider"),
            "size_bytes": optional(model, "size_bytes"),
            "license": optional(model, "license"),
            "context_length": optional(model, "context_length"),
            "quantisation": optional(model, "quantisation"),
        }
    return row


def _forecast(_: str, event: event_pb2.Event) -> dict[str, Any]:
    forecast = dict(message_fields(event.fit_forecasted, without=("case_id",)))
    return {"case_id": event.fit_forecasted.case_id, "forecast": json.dumps(forecast, sort_keys=True)}


def _loaded(_: str, event: event_pb2.Event) -> dict[str, Any]:
    loaded = event.model_loaded
    return {
        "case_id": loaded.case_id,
        "load_ns": optional(loaded, "load_duration_ns"),
        "load_start_ns": loaded.start_ns,
        "load_end_ns": loaded.end_ns,
        "ep_actual": optional(loaded, "actual_execution_provider"),
        "remote": loaded.remote,
        "components": json.dumps(dict(loaded.components), sort_keys=True),
        "stamp_source": loaded.stamp_source or None,
        "page_cache_ratio": optional(loaded, "page_cache_ratio"),
        "path": loaded.path or "http",
        "device_libraries": json.dumps(sorted(loaded.device_libraries)) if loaded.device_libraries else None,
    }


def _finished_case(_: str, event: event_pb2.Event) -> dict[str, Any]:
    case = event.case_finished
    return {
        "case_id": case.case_id,
        "status": case.status,
        "reason": case.failure.reason or None,
        "message": case.failure.message or None,
        "unload_ns": optional(case, "unload_duration_ns"),
        "unmeasured": json.dumps(dict(case.unmeasured), sort_keys=True),
        "dropped_readings": case.dropped_reading_count,
        "evidence": json.dumps(list(case.evidence), ensure_ascii=False) if case.evidence else None,
        "finished_at": _at(event),
    }


def _certificate(job_id: str, run_id: str, event: event_pb2.Event) -> dict[str, Any]:
    recorded = event.certificate_recorded
    row: dict[str, Any] = {"job_id": job_id, "run_id": run_id, "concurrency": recorded.concurrency}
    if recorded.HasField("failure"):
        return row | {"failure_reason": recorded.failure.reason, "failure_message": recorded.failure.message}
    names = [field.name for field in recorded.DESCRIPTOR.fields if field.name not in ("failure", "rss_bytes")]
    return row | {name: getattr(recorded, name) for name in names} | {"rss_bytes": optional(recorded, "rss_bytes")}


_UPDATES: dict[str, tuple[str, str, Callable[[str, event_pb2.Event], dict[str, Any]]]] = {
    "job_started": ("jobs", "job_id", _started_job),
    "case_started": ("cases", "case_id", _started_case),
    "fit_forecasted": ("cases", "case_id", _forecast),
    "model_loaded": ("cases", "case_id", _loaded),
    "case_finished": ("cases", "case_id", _finished_case),
    "job_finished": ("jobs", "job_id", _finished_job),
}
"""Kind → table, key, and the row it makes, in the order of a job's life."""
