"""Rows of runs, jobs, cases and hosts: what is known before the first event, and from a job's own specification."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import duckdb

import benchfleet
from benchfleet.v1 import event_pb2, host_pb2, job_pb2
from benchfleet_controller.store.columns import insert_rows, update_rows
from benchfleet_controller.store.connection import StoreError
from benchfleet_controller.store.messages import message_fields
from benchfleet_controller.store.pooling import TIE_BLOCKS

_Connection = duckdb.DuckDBPyConnection


class Adopted(NamedTuple):
    """A job as its own specification and its agent tell it."""

    job_id: str
    spec: job_pb2.JobSpec
    host: host_pb2.Host | None
    host_name: str
    address: str


def take_first_events(
    connection: _Connection, batches: Mapping[str, Sequence[event_pb2.Event]], run_of: dict[str, str]
) -> None:
    """Adopt jobs whose batches begin with their JobStarted. Raises `StoreError` for an unknown one that does not."""
    jobs = []
    for job_id, events in batches.items():
        if events and events[0].WhichOneof("kind") == "job_started":
            started = events[0].job_started
            jobs.append(Adopted(job_id, started.spec, started.host, started.host.hostname, ""))
            run_of.setdefault(job_id, started.spec.run_id)
        elif events and job_id not in run_of:
            message = f"job {job_id} is unknown here and its events do not begin with JobStarted: follow it from 0"
            raise StoreError(message)
    adopt(connection, jobs)


def adopt(connection: _Connection, jobs: Sequence[Adopted]) -> None:
    """Make the rows of runs, jobs and cases that are not there yet; refresh the hosts. A few statements for all."""
    if not jobs:
        return
    found = connection.execute(
        "SELECT job_id, host_name, address FROM jobs WHERE job_id IN (SELECT unnest(?))", [[job.job_id for job in jobs]]
    ).fetchall()
    known = {job_id: (host_name, address) for job_id, host_name, address in found}
    new = [job for job in jobs if job.job_id not in known]
    runs = {job.spec.run_id: job.spec for job in reversed(new)}
    recorded = connection.execute("SELECT run_id FROM runs WHERE run_id IN (SELECT unnest(?))", [list(runs)]).fetchall()
    for run_id, spec in runs.items():
        if (run_id,) not in recorded:
            seed = spec.cases[0].sampling.seed if spec.cases and spec.cases[0].sampling.HasField("seed") else None
            insert_run(connection, run_id, "collected", datetime.now(UTC), seed, None, spec.held_by)
    insert_jobs(connection, [(job.job_id, job.spec.run_id, job.host_name, job.address) for job in new])
    insert_cases(connection, [(job.job_id, job.spec) for job in new])
    told = [
        (job.job_id, job.host, *known.get(job.job_id, (job.host_name, job.address)))
        for job in jobs
        if job.host is not None and job.host.host_id
    ]
    fingerprints = record_hosts(connection, [(host, name, address) for _, host, name, address in told])
    update_rows(
        connection,
        "jobs",
        "job_id",
        [
            {"job_id": job_id, "host_id": host.host_id, "machine_id": host.machine_id, "fingerprint": fingerprint}
            for (job_id, host, _, _), fingerprint in zip(told, fingerprints, strict=True)
        ],
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
    insert_rows(connection, "runs", [row | {"held_by": held_by, "benchfleet_version": benchfleet.__version__}])


def insert_jobs(connection: _Connection, jobs: Sequence[tuple[str, str, str, str]]) -> None:
    """Rows of jobs (id, run, host's name, address), pending."""
    insert_rows(
        connection,
        "jobs",
        [
            {
                "job_id": job_id,
                "run_id": run_id,
                "host_name": host_name,
                "address": address,
                "state": "pending",
                "committed_sequence": 0,
                "released": False,
            }
            for job_id, run_id, host_name, address in jobs
        ],
    )


def insert_cases(connection: _Connection, jobs: Sequence[tuple[str, job_pb2.JobSpec]]) -> None:
    """The cases of jobs, pending."""
    rows = []
    for job_id, spec in jobs:
        lengths = {
            prompts.name: prompts.synthetic.prompt_token_count
            for prompts in spec.prompt_sets
            if prompts.HasField("synthetic")
        }
        conditions = as_json(message_fields(spec.conditions)) if spec.HasField("conditions") else None
        for index, case in enumerate(spec.cases):
            asked = {"run_id": spec.run_id, "job_id": job_id, "case_index": index, "status": "pending"}
            asked |= {"conditions": conditions, "prompt_token_count": lengths.get(case.prompt_set)}
            rows.append(asked | _asked(case))
    insert_rows(connection, "cases", rows)
    if any(row["block_index"] for row in rows):
        connection.execute(TIE_BLOCKS.format(jobs="job_id = ANY($jobs)"), {"jobs": [job_id for job_id, _ in jobs]})


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


def record_hosts(connection: _Connection, hosts: Sequence[tuple[host_pb2.Host, str, str]]) -> list[str]:
    """Insert or refresh the rows of hosts (host, name, address); returns their fingerprints, in order."""
    rows: dict[str, dict[str, Any]] = {}
    fingerprints = []
    now = datetime.now(UTC).isoformat()
    for host, name, address in hosts:
        identity = _identity(host)
        fingerprint = hashlib.sha256(as_json(identity).encode()).hexdigest()[:32]
        fingerprints.append(fingerprint)
        rows[fingerprint] = identity | {
            "fingerprint": fingerprint,
            "name": name,
            "address": address,
            "seen_at": now,
            "problems": as_json([message_fields(one) for one in host.problems]),
            "limits": as_json(message_fields(host.limits)) if host.HasField("limits") else None,
        }
    if rows:
        known = connection.execute(
            "SELECT fingerprint, limits FROM hosts WHERE fingerprint IN (SELECT unnest(?))", [list(rows)]
        ).fetchall()
        for fingerprint, limits in known:
            rows[fingerprint]["limits"] = rows[fingerprint]["limits"] or limits
        connection.execute("DELETE FROM hosts WHERE fingerprint IN (SELECT unnest(?))", [list(rows)])
        insert_rows(connection, "hosts", list(rows.values()))
    return fingerprints


def _identity(host: host_pb2.Host) -> dict[str, Any]:
    """What makes a host what it is, as columns of ``hosts``."""
    return {
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
        # What merely runs there today is no part of the host.
        "runtimes": as_json([message_fields(one, without=("found",)) for one in host.runtimes if not one.found]),
        "probes": as_json(
            [message_fields(one, without=("cost_us", "reading", "gaps", "verification")) for one in host.probes]
        ),
    }


def as_json(value: object) -> str:
    """The value as JSON, the same text for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
