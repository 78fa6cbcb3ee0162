"""What a job's requests and readings say, condensed when it ends, so that questions never read a million rows again.

Three tables, each the answer of a query over one job: telemetry by span, requests by case, requests by round. They hold
no data of their own and are made anew when a query changes. Of jobs that have not ended (or gave no rows), `whole` and
`tell` ask the query itself, so nobody sees less than there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from benchfleet_controller.metrics import CASE_METRICS, Source
from benchfleet_controller.store.spans import SPANS_OF_JOBS

JOBS = "{jobs}"
"""In a query: where the condition on ``job_id`` goes."""
_MOST_AT_ONCE = 1_000_000
"""Readings that one statement condenses, holding them in memory (some 400 bytes each); of more, a case at a time."""

# Requests of a case; the first ok one after the load pays for what later ones find ready and is told apart.
# Gaps are unnested side by side, which stays vectorised; a lambda over 128 million gaps does not.
_GAPS = """
SELECT case_id, quantile_cont(gap_s, [0.5, 0.95]) AS itl_q, count(*) AS itl_n
FROM (SELECT case_id, (unnest(token_offset_ns[2:])
                       - unnest(token_offset_ns[1:len(token_offset_ns) - 1])) / 1e9 AS gap_s
      FROM pooled_requests WHERE {jobs} AND NOT warmup AND status = 'ok' AND len(token_offset_ns) > 1)
GROUP BY case_id
"""
_NO_GAPS = "SELECT NULL::VARCHAR AS case_id, NULL::DOUBLE[] AS itl_q, NULL::BIGINT AS itl_n WHERE false"
_CASE_REQUESTS = f"""
WITH counted AS (
  SELECT
    case_id,
    count(*) AS requests,
    count(*) FILTER (WHERE status <> 'ok') AS failed,
    count(ttft_s) FILTER (WHERE status = 'ok') AS ttft_n,
    avg(ttft_s) FILTER (WHERE status = 'ok') AS ttft_avg_s,
    quantile_cont(ttft_s, [0.5, 0.95]) FILTER (WHERE status = 'ok') AS ttft_q,
    count(e2e_s) FILTER (WHERE status = 'ok') AS e2e_n,
    avg(e2e_s) FILTER (WHERE status = 'ok') AS e2e_avg_s,
    quantile_cont(e2e_s, [0.5, 0.95]) FILTER (WHERE status = 'ok') AS e2e_q,
    avg(tpot_s) FILTER (WHERE status = 'ok') AS tpot_avg_s,
    sum(decode_tokens) FILTER (WHERE status = 'ok' AND decode_s IS NOT NULL)
      / sum(decode_s) FILTER (WHERE status = 'ok') AS decode_tokens_per_s,
    string_agg(DISTINCT rate_basis, '+' ORDER BY rate_basis) FILTER (WHERE status = 'ok' AND decode_s IS NOT NULL)
      AS decode_basis,
    sum(prompt_tokens) FILTER (WHERE status = 'ok' AND prefill_tokens_per_s IS NOT NULL)
      / sum(ttft_s) FILTER (WHERE status = 'ok' AND prefill_tokens_per_s IS NOT NULL) AS prefill_tokens_per_s,
    avg(server_prefill_s) FILTER (WHERE status = 'ok') AS server_prefill_avg_s,
    sum(server_decode_tokens) FILTER (WHERE status = 'ok' AND server_decode_s > 0)
      / sum(server_decode_s) FILTER (WHERE status = 'ok' AND server_decode_tokens IS NOT NULL)
      AS server_decode_tokens_per_s,
    sum(output_tokens) FILTER (WHERE status = 'ok')::BIGINT AS output_tokens,
    sum(prompt_tokens) FILTER (WHERE status = 'ok')::BIGINT AS prompt_tokens,
    sum(cached_prompt_tokens) FILTER (WHERE status = 'ok')::BIGINT AS cached_prompt_tokens,
    string_agg(DISTINCT tokens_source, '+' ORDER BY tokens_source) FILTER (WHERE status = 'ok') AS tokens_source,
    string_agg(DISTINCT accounting, '+' ORDER BY accounting) FILTER (WHERE status = 'ok') AS accounting,
    string_agg(DISTINCT stamp_source, '+' ORDER BY stamp_source) FILTER (WHERE status = 'ok') AS stamp_source,
    sum(coalesced_chunks) FILTER (WHERE status = 'ok')
      / nullif(sum(chunks) FILTER (WHERE status = 'ok'), 0) AS coalesced_ratio,
    avg(lateness_s) AS lateness_avg_s,
    quantile_cont(lateness_s, 0.95) AS lateness_p95_s,
    min(prompt_tokens) FILTER (WHERE status = 'ok') AS prompt_tokens_min,
    max(prompt_tokens) FILTER (WHERE status = 'ok') AS prompt_tokens_max
  FROM request_metrics WHERE {JOBS} AND NOT warmup GROUP BY case_id
), first AS (
  SELECT any_value(job_id) AS job_id, case_id,
         min_by(ttft_s, start_ns) FILTER (WHERE status = 'ok') AS cold_ttft_s
  FROM request_metrics WHERE {JOBS} GROUP BY case_id
), idle AS (
  -- The request after a pause, when there was one.
  SELECT q.case_id, min_by(ttft_s, q.start_ns) AS idle_ttft_s
  FROM (FROM request_metrics WHERE {JOBS}) q JOIN rounds r USING (round_id)
  WHERE r.kind = 'idle' AND q.status = 'ok' GROUP BY q.case_id
)
SELECT first.*, idle_ttft_s, counted.* EXCLUDE (case_id), itl_q, itl_n
FROM first LEFT JOIN counted USING (case_id) LEFT JOIN idle USING (case_id) LEFT JOIN ({_GAPS}) USING (case_id)
"""  # noqa: S608 - our own text

_BY_ROUND = [one for one in CASE_METRICS if one.by_round is not None and one.by_round.table is Source.REQUESTS]


def _round_requests(*, itl: bool) -> str:
    """Ok requests by counted round: for each metric its value and what that weighs (``<name>_weight``)."""
    columns = [
        f"{one.by_round.value if itl or not one.name.startswith('itl_') else 'NULL::DOUBLE'} AS {one.name}, "
        f"{one.by_round.weight if itl or not one.name.startswith('itl_') else 'NULL::DOUBLE'} AS {one.name}_weight"
        for one in _BY_ROUND
        if one.by_round is not None
    ]
    return f"""
SELECT any_value(job_id) AS job_id, any_value(case_id) AS case_id, round_id,
       sum(output_tokens) AS output_tokens, count(*) AS answers,
       {", ".join(columns)}
FROM request_metrics WHERE {JOBS} AND NOT warmup AND status = 'ok' GROUP BY round_id
"""  # noqa: S608 - our own text


@dataclass(frozen=True, slots=True)
class Condensed:
    """A table of what is known of ended jobs; ``query`` makes it, ``quick`` does without the gaps between tokens."""

    table: str
    comment: str
    query: str
    quick: str

    @property
    def whole(self) -> str:
        """A query for all jobs, whether they have ended or not."""
        return f"SELECT * FROM {self.table} UNION ALL BY NAME ({self._of(self._open)})"  # noqa: S608 - our own text

    @property
    def told(self) -> str:
        """A query for the jobs that `tell` was asked for, on the same connection."""
        return f"FROM temp.main.told_{self.table}"

    @property
    def _open(self) -> str:
        return f"job_id IN (SELECT job_id FROM jobs WHERE job_id NOT IN (SELECT job_id FROM {self.table}))"  # noqa: S608

    def _of(self, condition: str, *, itl: bool = True) -> str:
        return (self.query if itl else self.quick).replace(JOBS, condition)

    def create(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the table as the query has it now, filled for the jobs that have ended."""
        connection.execute(f"DROP TABLE IF EXISTS {self.table}")
        connection.execute(f"CREATE TABLE {self.table} AS SELECT * FROM ({self._of('false')})")  # noqa: S608
        connection.execute(f"COMMENT ON TABLE {self.table} IS '{self.comment}'")
        for (job_id,) in connection.execute("SELECT job_id FROM jobs WHERE finished_at IS NOT NULL").fetchall():
            self.keep(connection, [job_id])

    def keep(self, connection: duckdb.DuckDBPyConnection, job_ids: Sequence[str]) -> None:
        """Add jobs that have ended and are not there yet."""
        new = self._missing(connection, job_ids)
        if not new:
            return
        sql = "SELECT case_id, count(*) FROM samples WHERE job_id = ANY($jobs) GROUP BY case_id"
        readings = dict(connection.execute(sql, {"jobs": new}).fetchall())
        if sum(readings.values()) <= _MOST_AT_ONCE:
            self._insert(connection, self.table, "job_id = ANY($jobs)", {"jobs": new})
            return
        sql = "SELECT case_id FROM cases WHERE job_id = ANY($jobs)"
        for (case_id,) in connection.execute(sql, {"jobs": new}).fetchall():
            self._insert(
                connection, self.table, "job_id = ANY($jobs) AND case_id = $case", {"jobs": new, "case": case_id}
            )

    def tell(self, connection: duckdb.DuckDBPyConnection, job_ids: Sequence[str], *, itl: bool) -> None:
        """Make the temporary table of these jobs that `told` reads."""
        sql = f"CREATE OR REPLACE TEMP TABLE told_{self.table} AS FROM {self.table} WHERE job_id = ANY($jobs)"
        connection.execute(sql, {"jobs": list(job_ids)})
        if missing := self._missing(connection, job_ids):
            self._insert(connection, f"told_{self.table}", "job_id = ANY($jobs)", {"jobs": missing}, itl=itl)

    def _missing(self, connection: duckdb.DuckDBPyConnection, job_ids: Sequence[str]) -> list[str]:
        sql = f"SELECT job_id FROM jobs WHERE {self._open} AND job_id = ANY($jobs)"  # noqa: S608 - our own text
        return [row[0] for row in connection.execute(sql, {"jobs": list(job_ids)}).fetchall()]

    def _insert(
        self, connection: duckdb.DuckDBPyConnection, table: str, condition: str, values: Mapping[str, Any],
        *, itl: bool = True,
    ) -> None:  # fmt: skip
        connection.execute(f"INSERT INTO {table} BY NAME {self._of(condition, itl=itl)}", dict(values))


SPANS = Condensed(
    "case_spans", "Telemetry of ended jobs by case, phase, round, probe and device.", SPANS_OF_JOBS, SPANS_OF_JOBS
)
CASE_REQUESTS = Condensed(
    "case_requests",
    "Counted requests of ended jobs by case.",
    _CASE_REQUESTS,
    _CASE_REQUESTS.replace(_GAPS, _NO_GAPS),
)
ROUND_REQUESTS = Condensed(
    "round_requests",
    "Counted ok requests of ended jobs by round.",
    _round_requests(itl=True),
    _round_requests(itl=False),
)
TABLES = (SPANS, CASE_REQUESTS, ROUND_REQUESTS)


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """All tables anew; needs the view ``request_metrics``."""
    for one in TABLES:
        one.create(connection)


def keep(connection: duckdb.DuckDBPyConnection, job_ids: Sequence[str]) -> None:
    """Condense jobs that have ended."""
    for one in TABLES:
        one.keep(connection, job_ids)


def tell(
    connection: duckdb.DuckDBPyConnection,
    run_ids: Sequence[str] | None,
    tables: Iterable[Condensed] = TABLES,
    *,
    itl: bool = False,
) -> None:
    """Make what `Condensed.told` reads, for some runs (None: for all)."""
    where, parameters = ("true", []) if run_ids is None else ("run_id = ANY(?)", [list(run_ids)])
    found = connection.execute(f"SELECT job_id FROM jobs WHERE {where}", parameters)  # noqa: S608 - our own text
    job_ids = [row[0] for row in found.fetchall()]
    for one in tables:
        one.tell(connection, job_ids, itl=itl)
