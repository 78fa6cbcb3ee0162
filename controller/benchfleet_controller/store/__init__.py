"""The benchmark database: one DuckDB file, opened for the length of one operation. The only package that knows DuckDB.

Readers in other terminals get their turn between two operations; whoever finds the file in use waits up to ``wait_s``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from benchfleet.failures import Failure
from benchfleet.v1 import host_pb2, job_pb2
from benchfleet_controller.outliers import Outlier
from benchfleet_controller.plan import JobPlan, Plan
from benchfleet_controller.store import condensed, evidence, exports, ingest, queries, records, scores
from benchfleet_controller.store.columns import insert_rows
from benchfleet_controller.store.connection import (
    NoSuchRun,
    NotAStore,
    SequenceGap,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreTooNew,
    held,
    opened,
)
from benchfleet_controller.store.evidence import TooManyRequests
from benchfleet_controller.store.lifecycle import close_cases
from benchfleet_controller.store.patience import DEFAULT_S, patiently
from benchfleet_controller.store.queries import JobRow, KnownHost, RequestTimes, RoundValues, Row, RunRow
from benchfleet_controller.store.scores import Aspects, score_row
from benchfleet_controller.store.timeline import Timeline, read_timeline

__all__ = [
    "Aspects",
    "JobRow",
    "KnownHost",
    "NoSuchRun",
    "NotAStore",
    "RequestTimes",
    "RoundValues",
    "Row",
    "RunRow",
    "SequenceGap",
    "Store",
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "StoreMissing",
    "StoreTooNew",
    "Timeline",
    "TooManyRequests",
    "score_row",
]

_T = TypeVar("_T")
_Connection = duckdb.DuckDBPyConnection


class Store:
    """One database file. Every method opens, commits and closes; all raise `StoreError`. Safe to use from threads."""

    def __init__(
        self, path: Path | str, wait_s: float = DEFAULT_S, waiting: Callable[[str], None] | None = None
    ) -> None:
        """``waiting`` hears of waits for a file in use, a line at a time."""
        self.path = Path(path)
        self.wait_s = wait_s
        self._waiting = waiting

    def _read(self, question: Callable[[_Connection], _T]) -> _T:
        return self._open(question, write=False)

    def _write(self, change: Callable[[_Connection], _T]) -> _T:
        return self._open(change, write=True)

    def _open(self, operation: Callable[[_Connection], _T], *, write: bool) -> _T:
        def attempt(wait_s: float) -> _T:
            with opened(self.path, write=write, wait_s=wait_s) as connection:
                return operation(connection)

        return patiently(attempt, self.path, self.wait_s, self._waiting)

    # Writing -------------------------------------------------------------------------------------------------

    def record_run(
        self, run_id: str, plan: Plan, jobs: tuple[JobPlan, ...], *, held_by: str, created_at: datetime
    ) -> None:
        """Keep a run, its jobs and its cases before anything starts. Makes the file when there is none."""

        def change(connection: _Connection) -> None:
            records.insert_run(
                connection, run_id, plan.name, created_at, plan.seed, records.as_json(dataclasses.asdict(plan)), held_by
            )
            records.insert_jobs(connection, [(job.job_id, run_id, job.host.name, job.host.address) for job in jobs])
            records.insert_cases(connection, [(job.job_id, job.to_proto(plan, run_id, held_by)) for job in jobs])

        self._write(change)

    def record_host(self, host: host_pb2.Host, name: str, address: str) -> None:
        """Keep how a host is now: a new row when its fingerprint is new, else the old one is marked seen."""
        self._write(lambda connection: records.record_hosts(connection, [(host, name, address)]))

    def mark_job(self, job_id: str, state: str, failure: Failure) -> None:
        """A job that never started ends here in a state such as ``refused`` or ``unreachable``; its cases were skipped.

        Should the agent hold events of it after all, committing them opens it again.
        """

        def change(connection: _Connection) -> None:
            connection.execute(
                "UPDATE jobs SET state = ?, failure_reason = ?, failure_message = ?, finished_at = now(), "
                "released = true WHERE job_id = ?",
                [state, failure.reason.value, failure.message, job_id],
            )
            close_cases(connection, {job_id: (failure.reason.value, failure.message)})

        self._write(change)

    def adopt_job(
        self, job_id: str, spec: job_pb2.JobSpec, host: host_pb2.Host | None, host_name: str, address: str
    ) -> None:
        """Make the rows of a run, job and cases that this file does not know yet; known ones stay as they are."""
        job = records.Adopted(job_id, spec, host, host_name, address)
        self._write(lambda connection: records.adopt(connection, [job]))

    def commit_many(
        self, batches: ingest.Batches, more: Callable[[dict[str, int]], ingest.Batches | None] = lambda _: None
    ) -> dict[str, int]:
        """Store events of several jobs and move their committed sequences, in one transaction.

        Events at or below a job's committed sequence are dropped. Raises `SequenceGap` (nothing of the call is kept).
        A job this file does not know is adopted from its JobStarted. Returns the committed sequences afterwards.

        ``more`` hears them after each transaction, and what it gives is stored by another one before the file is
        closed. What came before a transaction that fails is kept.
        """

        def change(wait_s: float) -> dict[str, int]:
            committed: dict[str, int] = {}
            with held(self.path, wait_s=wait_s) as transaction:
                following: ingest.Batches | None = batches
                while following is not None:
                    with transaction() as connection:
                        moved = ingest.commit(connection, following)
                    committed |= moved
                    following = more(moved)
            return committed

        return patiently(change, self.path, self.wait_s, self._waiting)

    def set_baseline(self, name: str, run_id: str, cases: int, document: str) -> None:
        """Keep a baseline under its name, in the place of an older one. Makes the file when there is none."""

        def change(connection: _Connection) -> None:
            connection.execute("DELETE FROM baselines WHERE name = ?", [name])
            row = {"name": name, "run_id": run_id, "cases": cases, "document": document}
            insert_rows(connection, "baselines", [row | {"set_at": datetime.now(UTC).isoformat()}])

        self._write(change)

    def replace_scores(self, scored: Sequence[Mapping[str, Any]]) -> None:
        """Keep scores of answers (columns of ``scores``); earlier ones of the same scorer and requests go."""
        if scored:
            self._write(lambda connection: scores.replace_scores(connection, scored))

    def score_run(self, run_id: str, aspects: Aspects | None = None) -> int:
        """Score answers by what the run's prompts expect, or by ``aspects``; how many were scored."""
        return self._write(lambda connection: scores.score_run(connection, run_id, aspects))

    def mark_released(self, job_ids: Iterable[str]) -> None:
        """Agents were told to forget the jobs' events: nothing more comes, so what they say is condensed.

        Not with a job's last event already: a thousand jobs that end at once would wait for each other.
        """
        jobs = list(job_ids)

        def change(connection: _Connection) -> None:
            connection.execute("UPDATE jobs SET released = true WHERE job_id IN (SELECT unnest(?))", [jobs])
            condensed.keep(connection, jobs)

        self._write(change)

    # Reading -------------------------------------------------------------------------------------------------

    def committed_sequence(self, job_id: str) -> int:
        """Highest event stored of a job; 0: none, or the job is unknown."""
        return self.committed_sequences([job_id])[job_id]

    def committed_sequences(self, job_ids: Iterable[str]) -> dict[str, int]:
        """`committed_sequence` of several jobs."""
        asked = list(job_ids)
        known = self._read(lambda connection: records.committed(connection, asked)) if self.path.exists() else {}
        return {job_id: known.get(job_id, (0, ""))[0] for job_id in asked}

    def open_jobs(self) -> list[JobRow]:
        """Jobs an agent may still hold events of: not ended, or ended and not released."""
        return self._read(
            lambda c: queries.jobs(
                c, "state IN ('pending', 'running', 'finished', 'failed', 'cancelled') AND NOT released"
            )
        )

    def run_jobs(self, run_id: str) -> list[JobRow]:
        """The jobs of a run, by host."""
        return self._read(lambda c: queries.jobs(c, "run_id = ?", [run_id]))

    def known_hosts(self) -> list[KnownHost]:
        """Hosts by name, each as it was last seen."""
        return self._read(queries.known_hosts)

    def runs(self) -> list[RunRow]:
        """All runs, newest first."""
        return self._read(queries.runs)

    def resolve_run(self, text: str) -> str:
        """The run that an id, a unique prefix or ``last`` names. Raises `NoSuchRun`."""
        return self._read(lambda connection: queries.resolve_run(connection, text))

    def run(self, run_id: str) -> Row:
        """A run's row with its plan parsed. Raises `NoSuchRun`."""
        found = self._read(lambda c: queries.rows(c, "SELECT * FROM runs WHERE run_id = ?", [run_id]))
        if not found:
            raise NoSuchRun(f"no run {run_id!r} (`benchfleet runs` lists all)")
        return found[0]

    def case_results(self, run_ids: Sequence[str] | None = None, *, itl: bool = True) -> list[Row]:
        """One row a case with all its metrics (docs/schema.md); None: of all runs.

        ``itl=False`` leaves ``itl_*`` None for jobs that have not ended: every gap of every answer is most of the work.
        """
        return self._read(lambda connection: queries.case_results(connection, run_ids, itl=itl))

    def round_values(self, metric: str, run_ids: Sequence[str] | None = None) -> RoundValues:
        """A metric by counted round, for `compare`. Raises KeyError for a metric not in the registry."""
        return self.round_values_of([metric], run_ids)[metric]

    def round_values_of(self, metrics: Iterable[str], run_ids: Sequence[str] | None = None) -> dict[str, RoundValues]:
        """`round_values` of several metrics, in one look at the file."""
        return self._read(lambda connection: queries.round_values(connection, metrics, run_ids))

    def round_conditions(self, run_ids: Sequence[str]) -> list[Row]:
        """What hosts were like in each counted round, for `host_rules`."""
        return self._read(lambda connection: queries.round_conditions(connection, run_ids))

    def request_times(self, case_ids: Sequence[str]) -> dict[str, RequestTimes]:
        """Times of the counted requests of cases, by case; memory grows with their number."""
        return self._read(lambda connection: queries.request_times(connection, case_ids))

    def baselines(self) -> list[Row]:
        """The baselines by name, without their documents."""
        sql = "SELECT name, run_id, cases, set_at FROM baselines ORDER BY name"
        return self._read(lambda connection: queries.rows(connection, sql))

    def baseline(self, name: str) -> str:
        """A baseline's document. Raises `NoSuchRun` naming those there are."""
        found = self._read(lambda c: c.execute("SELECT document FROM baselines WHERE name = ?", [name]).fetchall())
        if not found:
            known = ", ".join(row["name"] for row in self.baselines()) or "none"
            raise NoSuchRun(f"no baseline {name!r}; there are: {known} (`benchfleet baseline set NAME` makes one)")
        return str(found[0][0])

    def certificates(self, run_ids: Sequence[str]) -> list[Row]:
        """How true the agents' time stamps were; times in seconds."""
        return self._read(lambda connection: queries.certificates(connection, run_ids))

    def case_stages(self, run_ids: Sequence[str]) -> list[Row]:
        """What the runtimes held at each stage of their cases."""
        return self._read(lambda connection: queries.case_stages(connection, run_ids))

    def hosts_of_runs(self, run_ids: Sequence[str]) -> list[Row]:
        """Fingerprints of the hosts of runs as they were then, one a job."""
        return self._read(lambda connection: queries.hosts_of_runs(connection, run_ids))

    def sample_answers(self, run_id: str) -> list[Row]:
        """The first counted answer of each case to each prompt."""
        return self._read(lambda connection: queries.sample_answers(connection, run_id))

    def failure_reasons(self, run_ids: Sequence[str]) -> list[Row]:
        """Failed counted requests by case and reason, with an example message."""
        return self._read(lambda connection: queries.failure_reasons(connection, run_ids))

    def outliers(self, run_ids: Sequence[str]) -> tuple[Outlier, ...]:
        """Outliers among ok requests of counted rounds, with their reasons. Raises `TooManyRequests`."""
        return self._read(lambda connection: evidence.find_outliers(connection, run_ids))

    def answers(self, run_ids: Sequence[str]) -> list[Row]:
        """Ok answers of counted rounds with what tells which question each was given to."""
        return self._read(lambda connection: evidence.answers(connection, run_ids))

    def answers_to_score(self, run_ids: Sequence[str]) -> list[Row]:
        """Ok answers of counted rounds, with their prompts' names."""
        return self._read(lambda connection: scores.answers_to_score(connection, run_ids))

    def scored(self, run_ids: Sequence[str], scorer: str) -> set[str]:
        """Requests that a scorer has scored already."""
        return self._read(lambda connection: scores.scored(connection, run_ids, scorer))

    def score_summary(self, run_ids: Sequence[str]) -> list[Row]:
        """Mean scores by host, model, device, scorer and prompt."""
        return self._read(lambda connection: scores.summary(connection, run_ids))

    def timeline(self, run_id: str) -> Timeline:
        """Requests, readings and token arrivals of a run, thinned out for its charts."""
        return self._read(lambda connection: read_timeline(connection, run_id))

    def write_parquet(self, path: Path, run_ids: Sequence[str] | None = None) -> None:
        """Write ``case_results`` of some runs (None: of all) as one Parquet file; an existing one is replaced."""
        self._read(lambda connection: exports.write_parquet(connection, path, run_ids))
