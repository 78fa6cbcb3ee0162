"""Questions to the database, answered with plain values."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from benchfleet_controller import telemetry
from benchfleet_controller.metrics import BY_NAME, CaseMetric, Source
from benchfleet_controller.store import condensed, views
from benchfleet_controller.store.connection import NoSuchRun
from benchfleet_controller.store.spans import PARTS, ROUND_DEVICE_MEMORY, ROUND_PARTS

Row = dict[str, Any]
_JSON_COLUMNS = frozenset({
    "devices", "runtimes", "probes", "problems", "plan", "components", "unmeasured", "limits", "conditions",
    "device_libraries", "evidence", "forecast", "state_before", "state_after",
})  # fmt: skip
_SHOWN_NEAR = 5
_OF_ENERGY = frozenset({Source.ENERGY, Source.MARGINAL})


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run and how its jobs and cases stand."""

    run_id: str
    name: str
    created_at: datetime
    seed: int | None
    held_by: str
    jobs: int
    jobs_open: int
    """Jobs that have not ended."""
    cases: int
    succeeded: int
    failed: int
    skipped: int


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as stored."""

    job_id: str
    run_id: str
    host_name: str
    address: str
    host_id: str | None
    machine_id: str | None
    state: str
    failure_reason: str | None
    failure_message: str | None
    committed_sequence: int
    started_at: datetime | None
    finished_at: datetime | None
    released: bool


@dataclass(frozen=True, slots=True)
class KnownHost:
    """A host seen before: how to reach it again."""

    name: str
    address: str
    host_id: str
    machine_id: str
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class RoundValues:
    """One metric by round, for `compare`: arrays of equal length, one entry a counted round of a case.

    ``value`` is the metric over that round (NaN: unmeasured), ``weight`` what it rests on (requests, tokens …).
    """

    case_id: npt.NDArray[np.object_]
    value: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Times of one case's requests, for quantile intervals and goodput: of the counted rounds that ended.

    Arrays of equal length, one entry a request, round after round; NaN: unmeasured.
    """

    ok: npt.NDArray[np.bool_]
    ttft_s: npt.NDArray[np.float64]
    tpot_s: npt.NDArray[np.float64]
    e2e_s: npt.NDArray[np.float64]
    lateness_s: npt.NDArray[np.float64]
    """From when it was due to when it was sent; 0 in closed loops."""
    round_starts: npt.NDArray[np.int64]
    """Where each round after the first begins."""

    def by_round(self, name: str) -> list[npt.NDArray[np.float64]]:
        """One of the times of the ok requests, an array a round; those of failed ones are NaN."""
        return np.split(np.where(self.ok, getattr(self, name), np.nan), self.round_starts)


_JOB_COLUMNS = ", ".join(JobRow.__dataclass_fields__)


def rows(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
    """All rows as dicts; JSON columns parsed. For answers of up to thousands of rows."""
    result = connection.execute(sql, list(parameters))
    names = [column[0] for column in result.description or ()]
    return [
        {n: json.loads(v) if n in _JSON_COLUMNS and v is not None else v for n, v in zip(names, row, strict=True)}
        for row in result.fetchall()
    ]


def runs(connection: duckdb.DuckDBPyConnection) -> list[RunRow]:
    """All runs, newest first."""
    found = connection.execute("""
        SELECT r.run_id, r.name, r.created_at, r.seed, r.held_by, coalesce(j.n, 0), coalesce(j.open, 0),
               coalesce(c.n, 0), coalesce(c.succeeded, 0), coalesce(c.failed, 0), coalesce(c.skipped, 0)
        FROM runs r
        LEFT JOIN (SELECT run_id, count(*) AS n, count(*) FILTER (WHERE state IN ('pending', 'running')) AS open
                   FROM jobs GROUP BY run_id) j USING (run_id)
        LEFT JOIN (SELECT run_id, count(*) AS n, count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
                          count(*) FILTER (WHERE status = 'failed') AS failed,
                          count(*) FILTER (WHERE status = 'skipped') AS skipped
                   FROM pooled_cases GROUP BY run_id) c USING (run_id)
        ORDER BY r.created_at DESC, r.run_id""").fetchall()
    return [RunRow(*row) for row in found]


def resolve_run(connection: duckdb.DuckDBPyConnection, text: str) -> str:
    """The run an id, a unique prefix or ``last`` names; `NoSuchRun` says what is near."""
    known = connection.execute("SELECT run_id, name FROM runs ORDER BY created_at DESC, run_id").fetchall()
    ids = [row[0] for row in known]
    if not ids:
        raise NoSuchRun("there are no runs yet: run `benchfleet run` first or name another file with --db")
    if text == "last":
        return str(ids[0])
    if text in ids:
        return text
    found = [run_id for run_id in ids if text and run_id.startswith(text)]
    if len(found) == 1:
        return str(found[0])
    if found:
        raise NoSuchRun(f"{text!r} names {len(found)} runs: {', '.join(found[:_SHOWN_NEAR])}; give more of the id")
    named = [run_id for run_id, name in known if name == text]
    if named:
        raise NoSuchRun(f"no run has the id {text!r}; runs of that name: {', '.join(named[:_SHOWN_NEAR])}")
    near = get_close_matches(text, ids, n=3, cutoff=0.5) or ids[:3]
    raise NoSuchRun(f"no run {text!r}; near: {', '.join(near)} (`benchfleet runs` lists all)")


def jobs(connection: duckdb.DuckDBPyConnection, where: str, parameters: Sequence[Any] = ()) -> list[JobRow]:
    """Jobs that meet a condition of ours, in the order of their runs and hosts."""
    sql = f"SELECT {_JOB_COLUMNS} FROM jobs WHERE {where} ORDER BY run_id, host_name, job_id"  # noqa: S608 - our text
    return [JobRow(*row) for row in connection.execute(sql, list(parameters)).fetchall()]


def known_hosts(connection: duckdb.DuckDBPyConnection) -> list[KnownHost]:
    """Hosts by name, each as it was last seen."""
    found = connection.execute("""
        SELECT name, max_by(address, seen_at), max_by(host_id, seen_at), max_by(machine_id, seen_at), max(seen_at)
        FROM hosts GROUP BY name ORDER BY name""").fetchall()
    return [KnownHost(*row) for row in found]


def case_results(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str] | None, *, itl: bool) -> list[Row]:
    """The view ``case_results`` of some runs (None: of all), in the order of runs, hosts and cases."""
    condensed.tell(connection, run_ids, itl=itl)
    source = views.case_results(*(one.told for one in condensed.TABLES))
    where, parameters = _of_runs(run_ids, "c.run_id")
    sql = f"""SELECT c.* FROM ({source}) c JOIN runs USING (run_id) WHERE {where}
        ORDER BY runs.created_at, c.run_id, c.host, c.case_index"""  # noqa: S608 - our text
    cases = rows(connection, sql, parameters)
    parts: dict[str, list[Row]] = defaultdict(list)
    for part in rows(connection, f"WITH spans AS ({condensed.SPANS.told}) {PARTS}"):
        parts[part["case_id"]].append(part)
    sql = "SELECT fingerprint, agent_version, devices, limits FROM hosts ORDER BY seen_at"
    hosts = {host["fingerprint"]: host for host in rows(connection, sql)}
    return [
        case | telemetry.derive(case, parts.get(case["case_id"], ()), hosts.get(case["fingerprint"])) for case in cases
    ]


def hosts_of_runs(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """Fingerprints of the hosts of some runs, as they were then; ``job_id`` and ``host`` say which."""
    sql = """SELECT j.job_id, j.run_id, j.host_name AS host, j.started_at, j.finished_at, h.* EXCLUDE (name) FROM jobs j
        JOIN (SELECT * FROM hosts QUALIFY row_number() OVER (PARTITION BY fingerprint ORDER BY seen_at DESC) = 1) h
          ON h.fingerprint = j.fingerprint
        WHERE j.run_id IN (SELECT unnest(?)) ORDER BY j.run_id, j.host_name"""
    return rows(connection, sql, [list(run_ids)])


def sample_answers(connection: duckdb.DuckDBPyConnection, run_id: str) -> list[Row]:
    """The first counted ok answer of each case to each prompt: case_id, prompt_id, text, reasoning_text."""
    sql = """SELECT case_id, prompt_id, text, reasoning_text FROM pooled_requests
        WHERE run_id = ? AND NOT warmup AND status = 'ok'
        QUALIFY row_number() OVER (PARTITION BY case_id, prompt_id ORDER BY start_ns) = 1
        ORDER BY case_id, prompt_id"""
    return rows(connection, sql, [run_id])


def failure_reasons(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """Failed counted requests by case and reason, with one message as an example: case_id, reason, n, message."""
    sql = """SELECT case_id, reason, count(*) AS n, min_by(message, start_ns) AS message FROM pooled_requests
        WHERE run_id IN (SELECT unnest(?)) AND status <> 'ok' AND NOT warmup GROUP BY case_id, reason
        ORDER BY case_id, n DESC, reason"""
    return rows(connection, sql, [list(run_ids)])


def round_values(
    connection: duckdb.DuckDBPyConnection, metrics: Iterable[str], run_ids: Sequence[str] | None
) -> dict[str, RoundValues]:
    """Metrics by counted round. Metrics that have no value by round give empty arrays."""
    asked = [BY_NAME[name] for name in metrics]
    itl = any(one.name.startswith("itl_") for one in asked)
    if any(one.by_round is not None and one.by_round.table in _OF_ENERGY for one in asked):
        metered = _metered(connection, run_ids, itl=itl)
    else:
        metered = _Metered((), {}, {})
        condensed.tell(connection, run_ids, itl=itl)
    return {one.name: _values_of(connection, one, run_ids, metered) for one in asked}


@dataclass(frozen=True, slots=True)
class _Metered:
    """Cases whose energy was metered, with the parts of it and what was answered by round."""

    cases: Sequence[Row]
    parts: Mapping[str, Mapping[str, list[Row]]]
    counts: Mapping[str, Row]


def _values_of(
    connection: duckdb.DuckDBPyConnection,
    metric: CaseMetric,
    run_ids: Sequence[str] | None,
    metered: _Metered,
) -> RoundValues:
    source = metric.by_round
    if source is None:
        return RoundValues(np.empty(0, object), np.empty(0), np.empty(0))
    if source.table in _OF_ENERGY:
        marginal = source.table is Source.MARGINAL
        return _round_energy(metered, source.value, float(source.weight), marginal=marginal)
    parameters: list[Any] = []
    if source.table is Source.REQUESTS:
        columns = f"case_id, {metric.name} AS value, {metric.name}_weight AS weight"
        sql = f"SELECT {columns} FROM ({condensed.ROUND_REQUESTS.told})"  # noqa: S608 - our own text
    elif source.table is Source.SCORES:
        where, parameters = _of_runs(run_ids, "q.run_id")
        sql = f"""SELECT q.case_id, {source.value} AS value, {source.weight} AS weight FROM ({views.SCORED}) s
            JOIN pooled_requests q USING (request_id) WHERE {where} GROUP BY q.case_id, q.round_id"""  # noqa: S608
    elif source.table is Source.DEVICE_MEMORY:
        sql = f"WITH spans AS ({condensed.SPANS.told}) {ROUND_DEVICE_MEMORY}"
    elif source.table is Source.SPANS:
        sql = f"""SELECT case_id, {source.value} AS value, {source.weight} AS weight FROM ({condensed.SPANS.told})
            WHERE phase = 'round' GROUP BY case_id, round_id"""  # noqa: S608 - our own text
    else:
        where, parameters = _of_runs(run_ids, "r.run_id")
        sql = f"""SELECT r.case_id, {source.value} AS value, {source.weight} AS weight FROM pooled_rounds r
            LEFT JOIN ({condensed.ROUND_REQUESTS.told}) q USING (round_id)
            WHERE NOT r.warmup AND r.end_ns IS NOT NULL AND {where}"""  # noqa: S608 - our own text
    found = connection.execute(f"SELECT * FROM ({sql}) ORDER BY ALL", parameters).fetchnumpy()  # noqa: S608
    return RoundValues(
        np.asarray(found["case_id"], object),
        np.ma.filled(np.ma.asarray(found["value"]).astype(np.float64), np.nan),
        np.ma.filled(np.ma.asarray(found["weight"]).astype(np.float64), 0.0),
    )


def _metered(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str] | None, *, itl: bool) -> _Metered:
    """What all metrics of energy rest on, read once; makes the tables of `condensed.tell` on the way."""
    cases = [case for case in case_results(connection, run_ids, itl=itl) if case["energy_scope"] is not None]
    parts: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for part in rows(connection, f"WITH spans AS ({condensed.SPANS.told}) {ROUND_PARTS}"):
        parts[part["case_id"]][part["round_id"]].append(part)
    sql = """SELECT round_id, sum(output_tokens) AS output_tokens, count(*) AS requests FROM pooled_requests
        WHERE NOT warmup AND status = 'ok' AND run_id IN (SELECT unnest(?)) AND case_id IN (SELECT unnest(?))
        GROUP BY round_id"""
    asked = [list({case["run_id"] for case in cases}), [case["case_id"] for case in cases]]
    counts = {row["round_id"]: row for row in rows(connection, sql, asked)}
    return _Metered(cases, parts, counts)


def _round_energy(metered: _Metered, count: str, factor: float, *, marginal: bool) -> RoundValues:
    """Energy of each counted round for one of its answers' tokens or requests, × ``factor``; of metered cases only."""
    counts = metered.counts
    found = [
        (case["case_id"], joules / counted[count] * factor, float(counted[count]))
        for case in metered.cases
        for joules, counted in telemetry.round_energy(
            case,
            [(mine, counts[name]) for name, mine in metered.parts[case["case_id"]].items() if name in counts],
            marginal=marginal,
        )
        if counted[count]
    ]
    return RoundValues(
        np.array([case_id for case_id, _, _ in found], object),
        np.array([value for _, value, _ in found], np.float64),
        np.array([weight for _, _, weight in found], np.float64),
    )


def request_times(connection: duckdb.DuckDBPyConnection, case_ids: Sequence[str]) -> dict[str, RequestTimes]:
    """Times of the requests of cases, by case; cases without any are left out. About 30 bytes a request."""
    sql = """
        WITH counted AS (
          SELECT round_id, dense_rank() OVER (ORDER BY case_id) - 1 AS case_number,
                 row_number() OVER (ORDER BY case_id, start_ns) AS round_number
          FROM pooled_rounds WHERE NOT warmup AND end_ns IS NOT NULL AND case_id IN (SELECT unnest(?)))
        SELECT case_number::INTEGER AS case_number, round_number::INTEGER AS round_number, status = 'ok' AS ok,
               ttft_s, tpot_s, e2e_s, coalesce(lateness_s, 0) AS lateness_s
        FROM request_metrics JOIN counted USING (round_id) WHERE case_id IN (SELECT unnest(?))
        ORDER BY round_number"""
    ended = """SELECT DISTINCT case_id FROM pooled_rounds
        WHERE NOT warmup AND end_ns IS NOT NULL AND case_id IN (SELECT unnest(?)) ORDER BY case_id"""
    names = [row[0] for row in connection.execute(ended, [list(case_ids)]).fetchall()]
    found = connection.execute(sql, [list(case_ids), list(case_ids)]).fetchnumpy()
    names_of_times = ("ttft_s", "tpot_s", "e2e_s", "lateness_s")
    times = {n: np.ma.filled(np.ma.asarray(found[n]).astype(np.float64), np.nan) for n in names_of_times}
    ok, rounds = np.asarray(found["ok"], np.bool_), np.asarray(found["round_number"])
    edges = np.searchsorted(np.asarray(found["case_number"]), np.arange(len(names) + 1))
    parts = {name: slice(edges[i], edges[i + 1]) for i, name in enumerate(names) if edges[i] < edges[i + 1]}
    return {
        name: RequestTimes(
            ok=ok[part],
            round_starts=np.flatnonzero(np.diff(rounds[part])) + 1,
            **{time: values[part] for time, values in times.items()},
        )
        for name, part in parts.items()
    }


def round_conditions(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """What the host was like in each counted round that ended, for `host_rules`: its states and what telemetry saw."""
    condensed.tell(connection, run_ids, [condensed.SPANS])
    sql = f"""
        WITH seen AS (
          SELECT round_id, sum(host_cpu_busy_ns) AS busy_ns, sum(host_cpu_total_ns) AS total_ns,
                 sum(runtime_cpu_ns) AS runtime_ns, sum(load_cpu_ns) AS load_ns, sum(agent_cpu_ns) AS agent_ns,
                 max(device_power_throttle_ns / nullif(end_ns - start_ns, 0)) AS power_throttled_ratio,
                 max(device_thermal_throttle_ns / nullif(end_ns - start_ns, 0)) AS thermal_throttled_ratio,
                 max(throttled_ratio) AS throttled_ratio, bit_or(throttle_reasons) AS throttle_reasons,
                 sum(host_cpu_throttle_count) AS cpu_throttle_count,
                 max(host_memory_pressure_us * 1e3 / nullif(end_ns - start_ns, 0)) AS memory_pressure_ratio,
                 min(available_least_bytes) AS available_least_bytes, min(on_battery_least) AS on_battery_least,
                 max(on_battery_most) AS on_battery_most, max(cpu_clock_hz) AS cpu_clock_hz,
                 list(struct_pack(samples := samples, largest_gap_s := largest_gap_ns / 1e9)) AS readings
          {condensed.SPANS.told} WHERE phase = 'round' GROUP BY round_id)
        SELECT r.case_id, r.round_id, (r.end_ns - r.start_ns) / 1e9 AS duration_s, r.state_before, r.state_after,
               seen.* EXCLUDE (round_id)
        FROM pooled_rounds r LEFT JOIN seen USING (round_id)
        WHERE NOT r.warmup AND r.end_ns IS NOT NULL AND r.run_id IN (SELECT unnest(?))
        ORDER BY r.case_id, r.start_ns"""  # noqa: S608 - our own text
    return rows(connection, sql, [list(run_ids)])


def certificates(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """How true the time stamps of each job's agent were, a row a number of streams; times in seconds.

    ``failure_reason`` and ``failure_message`` say why there is none; jobs that were not asked for one have no row.
    """
    sql = """SELECT j.host_name AS host, j.job_id, k.concurrency, k.request_count, k.token_count, k.token_rate_per_s,
               k.stamp_source, k.ttft_error_p50_ns / 1e9 AS ttft_error_p50_s,
               k.ttft_error_p99_ns / 1e9 AS ttft_error_p99_s, k.itl_error_p50_ns / 1e9 AS itl_error_p50_s,
               k.itl_error_p99_ns / 1e9 AS itl_error_p99_s, k.stamp_error_p50_ns / 1e9 AS stamp_error_p50_s,
               k.stamp_error_p99_ns / 1e9 AS stamp_error_p99_s, k.jitter_ns / 1e9 AS jitter_s,
               k.server_lateness_p99_ns / 1e9 AS server_lateness_p99_s, k.cpu_per_token_ns / 1e9 AS cpu_per_token_s,
               k.rss_bytes, k.duration_ns / 1e9 AS duration_s, k.failure_reason, k.failure_message
        FROM certificates k JOIN jobs j USING (job_id) WHERE k.run_id IN (SELECT unnest(?))
        ORDER BY k.run_id, host, k.job_id, k.concurrency"""
    return rows(connection, sql, [list(run_ids)])


def case_stages(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """The view ``case_stages`` of some runs, each case's stages in the order they began."""
    sql = "SELECT * FROM case_stages WHERE run_id IN (SELECT unnest(?)) ORDER BY run_id, case_id, start_ns, phase"
    return rows(connection, sql, [list(run_ids)])


def _of_runs(run_ids: Sequence[str] | None, column: str) -> tuple[str, list[Any]]:
    if run_ids is None:
        return f"{column} IS NOT NULL", []
    return f"{column} IN (SELECT unnest(?))", [list(run_ids)]
