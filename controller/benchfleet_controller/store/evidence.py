"""What outliers and equal answers rest on: requests with what telemetry said meanwhile; answers with their pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
import numpy.typing as npt

from benchfleet_controller import outliers
from benchfleet_controller.outliers import Conditions, Outlier, Request
from benchfleet_controller.store.queries import Row, rows

MOST_REQUESTS = 100_000
"""Requests of a question among which outliers are looked for: every gap of every answer is read for it."""
_USUAL_REQUESTS = 200
"""Requests of a case whose conditions tell what is usual there."""

_REQUESTS = """
WITH ok AS (
  SELECT case_id, round_id, request_id, coalesce(prompt_id, '') AS prompt_id, start_ns / 1e9 AS start_s, ttft_s, tpot_s,
         e2e_s, itl_s, warmup,
         row_number() OVER (PARTITION BY block_case_id ORDER BY start_ns, request_id) = 1 AS first_after_load,
         row_number() OVER (PARTITION BY round_id ORDER BY start_ns, request_id) = 1 AS first_in_round
  FROM request_metrics WHERE run_id IN (SELECT unnest(?)) AND status = 'ok')
SELECT case_id, round_id, request_id, prompt_id, start_s, start_s + e2e_s AS end_s, ttft_s, tpot_s, e2e_s,
       list_max(itl_s) AS largest_gap_s, list_median(itl_s) AS median_gap_s,
       list_position(itl_s, list_max(itl_s)) + 1 AS largest_gap_at, first_in_round, first_after_load
FROM ok WHERE NOT warmup AND e2e_s IS NOT NULL ORDER BY case_id, start_s, request_id
"""
_GAPS = """
SELECT case_id, quantile_cont(gap_s, 0.99) FROM (
  SELECT case_id, unnest(itl_s) AS gap_s FROM request_metrics
  WHERE run_id IN (SELECT unnest(?)) AND NOT warmup AND status = 'ok') GROUP BY case_id
"""
_READ = (
    "host_cpu_busy_ns", "host_cpu_total_ns", "runtime_cpu_ns", "load_cpu_ns", "agent_cpu_ns", "host_swap_used_bytes",
    "host_available_bytes", "runtime_major_faults", "host_cpu_clock_hz", "device_throttle_reasons",
)  # fmt: skip
_ANSWERS = """
SELECT q.case_id, prompt_id, q.prompt_prefix, r.round_rank, coalesce(q.position, 0) AS position, q.text,
       q.piece_length, q.answer_sha256, q.output_tokens, q.finish_reason
FROM pooled_requests q JOIN (
  SELECT round_id, row_number() OVER (PARTITION BY case_id ORDER BY start_ns) - 1 AS round_rank
  FROM pooled_rounds WHERE NOT warmup) r USING (round_id)
WHERE q.run_id IN (SELECT unnest(?)) AND q.status = 'ok' AND NOT q.warmup
ORDER BY q.case_id, r.round_rank, position, q.start_ns
"""


class TooManyRequests(Exception):
    """More requests than outliers are looked for among."""


def find_outliers(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> tuple[Outlier, ...]:
    """Outliers among the ok requests of counted rounds, with reasons from what was sampled meanwhile.

    Raises `TooManyRequests`.
    """
    count = "SELECT count(*) FROM requests WHERE run_id IN (SELECT unnest(?)) AND NOT warmup"
    total = connection.execute(count, [list(run_ids)]).fetchall()[0][0]
    if total > MOST_REQUESTS:
        raise TooManyRequests(f"outliers are looked for among up to {MOST_REQUESTS:,} requests; there are {total:,}")
    measured = [Request(**row) for row in rows(connection, _REQUESTS, [list(run_ids)])]
    gaps = dict(connection.execute(_GAPS, [list(run_ids)]).fetchall())
    gap_p99_s = {case_id: float(gap_s) for case_id, gap_s in gaps.items() if gap_s is not None}
    error_s = _instrument_error_s(connection, run_ids)
    suspects = {one.request_id for one in outliers.outliers(measured, gap_p99_s=gap_p99_s, error_s=error_s)}
    cases = {request.case_id for request in measured if request.request_id in suspects}
    told: dict[str, Conditions] = {}
    for case_id in cases:
        samples = _samples(connection, run_ids, case_id)
        if samples is None:
            continue
        mine = [request for request in measured if request.case_id == case_id]
        usual = {one.request_id for one in mine[:: max(1, len(mine) // _USUAL_REQUESTS)]}
        for one in mine:
            if one.request_id in suspects | usual:
                told[one.request_id] = outliers.conditions(samples, one.start_s, one.end_s)
    return outliers.outliers(measured, told, gap_p99_s=gap_p99_s, error_s=error_s)


def answers(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """Ok answers of counted rounds; ``round_rank`` counts a case's counted rounds from 0."""
    return rows(connection, _ANSWERS, [list(run_ids)])


def _instrument_error_s(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> dict[str, float]:
    sql = "SELECT max(ttft_error_p99_ns) / 1e9 FROM certificates WHERE run_id IN (SELECT unnest(?))"
    worst = connection.execute(sql, [list(run_ids)]).fetchall()[0][0]
    return {} if worst is None else {"ttft_s": float(worst), "e2e_s": float(worst)}


def _samples(
    connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str], case_id: str
) -> Mapping[str, npt.NDArray[np.float64]] | None:
    """Readings of a case as columns; None: there are none. The runs are asked for too: their rows lie together."""
    sql = f"""SELECT sample_ns / 1e9 AS sample_s, {", ".join(f"{name}::DOUBLE AS {name}" for name in _READ)}
        FROM pooled_samples WHERE run_id IN (SELECT unnest(?)) AND case_id = ?
        AND (device_id IS NULL OR device_throttle_reasons IS NOT NULL)
        ORDER BY sample_ns"""  # noqa: S608 - our own names
    found = connection.execute(sql, [list(run_ids), case_id]).fetchnumpy()
    if not len(found["sample_s"]):
        return None
    return {name: np.ma.filled(np.ma.asarray(column).astype(np.float64), np.nan) for name, column in found.items()}
