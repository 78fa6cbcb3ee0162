"""Rows of runs, jobs, cases and hosts: what is known before the first event, and from a job's own specification."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb

import benchfleet
from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_controller.store import ingest
from benchfleet_controller.store.connection import StoreError
from benchfleet_controller.store.messages import message_fields

_Connection = duckdb.DuckDBPyConnection


def take_first_event(
    connection: _Connection, job_id: str, events: Sequence[event_pb2.Event], run_of: dict[str, str]
) -> None:
    """Adopt a job whose batch begins with its JobStarted. Raises `StoreError` for an unknown one that does not."""
    if not events:
        return
    if events[0].WhichOneof("kind") == "job_started":
        started = events[0].job_started
        adopt(connection, job_id, started.spec, started.host, started.host.hostname, "")
        run_of.setdefault(job_id, started.spec.run_id)
    elif job_id not in run_of:
        raise StoreError(f"job {job_id} is unknown here and its events do not begin with JobStarted: follow it from 0")


def adopt(
    connection: _Connection,
    job_id: str,
    spec: job_pb2.JobSpec,
    host: host_pb2.Host | None,
    host_name: str,
    address: str,
) -> None:
    """Make the rows of a run, job and cases that are not there yet; refresh the host."""
    known = connection.execute("SELECT host_name, address FROM jobs WHERE job_id = ?", [job_id]).fetchone()
    if known is None:
        if not connection.execute("SELECT 1 FROM runs WHERE run_id = ?", [spec.run_id]).fetchall():
            seed = spec.cases[0].sampling.seed if spec.cases and spec.cases[0].sampling.HasField("seed") else None
            insert_run(connection, spec.run_id, "collected", datetime.now(UTC), seed, None, spec.held_by)
        insert_job(connection, job_id, spec.run_id, host_name, address)
        insert_cases(connection, spec.run_id, [(job_id, spec)])
    else:
        host_name, address = known
    if host is not None and host.host_id:
        fingerprint = record_host(connection, host, host_name, address)
        connection.execute(
            "UPDATE jobs SET host_id = ?, machine_id = ?, fingerprint = ? WHERE job_id = ?",
            [host.host_id, host.machine_id, fingerprint, job_id],
        )


def committed(connection: _Connection, job_ids: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Committed sequence and run of the jobs that are known."""
    found = connection.execute(
        "SELECT job_id, committed_sequence, run_id FROM jobs WHERE job_id IN (SELECT unnest(?))", [list(job_ids)]
    ).fetchall()
    return {job_id: (int(sequence), run_id) for job_id, sequence, run_id in found}


def move_committed(connection: _Connection, moved: Mapping[str, int]) -> None:
    """Set the committed sequences of jobs, in one statement: one a job took most of a commit's time."""
    connection.execute(
        "UPDATE jobs SET committed_sequence = moved.sequence FROM "
        "(SELECT unnest(?::VARCHAR[]) AS job_id, unnest(?::BIGINT[]) AS sequence) moved "
        "WHERE jobs.job_id = moved.job_id",
        [list(moved), list(moved.values())],
    )


def insert_run(
    connection: _Connection, run_id: str, name: str, at: datetime, seed: int | None, plan: str | None, held_by: str
) -> None:
    """A run's row."""
    row = {"run_id": run_id, "name": name, "created_at": at.isoformat(), "seed": seed, "plan": plan}
    ingest.insert_rows(connection, "runs", [row | {"held_by": held_by, "benchfleet_version": benchfleet.__version__}])


def insert_job(connection: _Connection, job_id: str, run_id: str, host_name: str, address: str) -> None:
    """A job's row, pending."""
    row = {"job_id": job_id, "run_id": run_id, "host_name": host_name, "address": address, "state": "pending"}
    ingest.insert_rows(connection, "jobs", [row | {"committed_sequence": 0, "released": False}])


def insert_cases(connection: _Connection, run_id: str, jobs: Sequence[tuple[str, job_pb2.JobSpec]]) -> None:
    """The cases of jobs, pending."""
    rows = []
    for job_id, spec in jobs:
        lengths = {
            prompts.name: prompts.synthetic.prompt_token_count
            for prompts in spec.prompt_sets
            if prompts.HasField("synthetic")
        }
        for index, case in enumerate(spec.cases):
            asked = {"run_id": run_id, "job_id": job_id, "case_index": index, "status": "pending"}
            asked["conditions"] = as_json(message_fields(spec.conditions)) if spec.HasField("conditions") else None
            rows.append(asked | _asked(case) | {"prompt_token_count": lengths.get(case.prompt_set)})
    ingest.insert_rows(connection, "cases", rows)


def _asked(case: job_pb2.CaseSpec) -> dict[str, Any]:
    """What a case asks for, as columns of ``cases``."""
    stop = dict(message_fields(case.stop))
    return {
        "case_id": case.case_id,
        "runtime": case.runtime,
        "endpoint_url": case.endpoint_url or None,
        "model": case.model,
        "device_asked": case.device or None,
        "prompt_set": case.prompt_set,
        "concurrency": case.concurrency,
        "planned_rounds": case.round_count,
        "warmup_rounds": case.warmup_round_count,
        "stream": case.stream,
        "request_rate_per_s": case.request_rate_per_s if case.HasField("request_rate_per_s") else None,
        "arrival": case.arrival or None,
        "maximum_rounds": max(case.round_count, stop.pop("maximum_round_count")),
        "prefix_cache": "allowed" if case.allow_prefix_cache else "defeated",
        "page_cache": "dropped" if case.drop_page_cache else "kept",
        "idle_pause_s": case.idle_pause_s or None,
        "deterministic": case.deterministic,
        "block_index": case.block_index,
        "path": case.path or "http",
        "keep_warm_period_s": case.keep_warm_period_s or None,
        **message_fields(case.sampling),
        **stop,
    }


def record_host(connection: _Connection, host: host_pb2.Host, name: str, address: str) -> str:
    """Insert or refresh the host's row; returns the fingerprint."""
    identity: dict[str, Any] = {
        "host_id": host.host_id,
        "machine_id": host.machine_id,
        "hostname": host.hostname,
        "agent_version": host.agent_version,
        "os_name": host.os_name,
        "os_version": host.os_version,
        "os_edition": host.os_edition or None,
        "architecture": host.architecture,
        "cpu_model": host.cpu_model or None,
        "physical_cores": host.physical_core_count if host.HasField("physical_core_count") else None,
        "logical_cores": host.logical_core_count if host.HasField("logical_core_count") else None,
        "memory_bytes": host.memory_bytes or None,
        "python_version": host.python_version,
        "on_battery": host.on_battery if host.HasField("on_battery") else None,
        "devices": as_json([message_fields(one) for one in host.devices]),
        "runtimes": as_json([message_fields(one) for one in host.runtimes]),
        "probes": as_json(
            [message_fields(one, without=("cost_us", "reading", "gaps", "verification")) for one in host.probes]
        ),
    }
    fingerprint = hashlib.sha256(as_json(identity).encode()).hexdigest()[:32]
    connection.execute("DELETE FROM hosts WHERE fingerprint = ?", [fingerprint])
    seen = {"name": name, "address": address, "seen_at": datetime.now(UTC).isoformat(), "fingerprint": fingerprint}
    problems = as_json([message_fields(one) for one in host.problems])
    ingest.insert_rows(connection, "hosts", [identity | seen | {"problems": problems}])
    if host.HasField("limits"):
        connection.execute(
            "UPDATE hosts SET limits = ? WHERE fingerprint = ?", [as_json(message_fields(host.limits)), fingerprint]
        )
    return fingerprint


def as_json(value: object) -> str:
    """The value as JSON, the same text for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
