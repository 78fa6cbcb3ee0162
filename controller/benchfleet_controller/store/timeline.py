"""What charts draw: requests, readings and token arrivals of one run, thinned out in SQL to what a chart can show.

Times are seconds since the case began to be watched: its first reading, load or round, whichever was first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from benchfleet_controller.outliers import Request
from benchfleet_controller.store.queries import Row

MOST_READINGS = 2_000
"""Points of one time line."""
_ALL_READINGS, _FEWEST_READINGS = 30_000, 100
MOST_REQUESTS = 2_000
"""Requests drawn one by one, all cases together."""
MOST_ARRIVALS = 200
"""Points of one request's token arrivals."""
MOST_OUTLIERS_OF = 100_000
"""Requests among which outliers are looked for; above, the charts mark none."""
SPREAD_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_DEVICE_GAUGES = (
    "device_memory_used_bytes", "device_memory_runtime_bytes", "device_busy_ratio", "device_power_w",
    "device_temperature_c",
)  # fmt: skip
SERIES = ("runtime_rss_bytes", "host_cpu_busy_ratio", *_DEVICE_GAUGES)
"""What time lines show: columns of ``samples``, and the share of all processors' time that was busy."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Rows for the charts of one run; every row names its ``case_id``."""

    spreads: Sequence[Row] = ()
    """By case and ``metric`` (ttft_s, e2e_s, tpot_s): ``n``, ``q`` (`SPREAD_QUANTILES`), ``least``, ``most``."""
    requests: Sequence[Row] = ()
    """ok requests of counted rounds, evenly chosen where there are too many: ttft_s, e2e_s, tpot_s, prompt_id."""
    requests_total: int = 0
    """How many those were chosen from."""
    readings: Sequence[Row] = ()
    """``series`` (one of `SERIES`), ``device_id``, ``at_s``, ``value``; least and most of each interval kept."""
    readings_total: int = 0
    """How many those were chosen from."""
    arrivals: Sequence[Row] = ()
    """Token arrivals of up to 3 requests a case: ``which`` (fastest, median, slowest), ``at_s``, ``chunks``."""
    spans: Sequence[Row] = ()
    """``kind`` (load, or the round's), ``number``, ``start_s``, ``end_s``."""
    measured: Sequence[Request] = ()
    """ok requests of counted rounds, for `outliers.outliers`; none above `MOST_OUTLIERS_OF`."""


_ORIGIN = """
origin AS (
  SELECT case_id, min(ns) AS origin_ns FROM (
    SELECT case_id, sample_ns AS ns FROM pooled_samples WHERE run_id = $run AND case_id IS NOT NULL
    UNION ALL SELECT case_id, load_start_ns FROM pooled_cases WHERE run_id = $run
    UNION ALL SELECT case_id, start_ns FROM pooled_rounds WHERE run_id = $run)
  WHERE ns IS NOT NULL GROUP BY case_id)
"""

# One row a request and metric, so that all three spreads come from one pass.
_SPREADS = f"""
SELECT case_id, metric, count(*) AS n, quantile_cont(value, {list(SPREAD_QUANTILES)}) AS q,
       min(value) AS least, max(value) AS most
FROM (UNPIVOT (SELECT case_id, ttft_s, e2e_s, tpot_s FROM request_metrics
               WHERE run_id = $run AND NOT warmup AND status = 'ok')
      ON ttft_s, e2e_s, tpot_s INTO NAME metric VALUE value)
GROUP BY case_id, metric ORDER BY case_id, metric
"""  # noqa: S608 - our own text

# Chosen by rank of latency, first and last always: the drawn points keep the shape of the whole.
_REQUESTS = """
SELECT case_id, prompt_id, ttft_s, e2e_s, tpot_s FROM (
  SELECT *, row_number() OVER (PARTITION BY case_id ORDER BY e2e_s, request_id) - 1 AS place,
         count(*) OVER (PARTITION BY case_id) AS n, count(*) OVER () AS total
  FROM request_metrics WHERE run_id = $run AND NOT warmup AND status = 'ok')
WHERE total <= $most OR place = n - 1 OR place % ceil(total / $most)::BIGINT = 0
ORDER BY case_id, place
"""

_READINGS = f"""
WITH {_ORIGIN}, readings AS (
  SELECT case_id, coalesce(device_id, '') AS device_id, sample_ns, runtime_rss_bytes::DOUBLE AS runtime_rss_bytes,
         (host_cpu_busy_ns - lag(host_cpu_busy_ns) OVER same)
           / nullif(host_cpu_total_ns - lag(host_cpu_total_ns) OVER same, 0) AS host_cpu_busy_ratio,
         {", ".join(f"{name}::DOUBLE AS {name}" for name in _DEVICE_GAUGES)}
  FROM pooled_samples WHERE run_id = $run AND case_id IS NOT NULL
  WINDOW same AS (PARTITION BY block_case_id, probe_id, device_id ORDER BY sample_ns)
), long AS (
  SELECT case_id, series, device_id, (sample_ns - origin_ns) / 1e9 AS at_s, value
  FROM (UNPIVOT readings ON {", ".join(SERIES)} INTO NAME series VALUE value) JOIN origin USING (case_id)
), counted AS (
  SELECT *, count(*) OVER () AS total, count(*) OVER line AS n, min(at_s) OVER line AS first_s,
         max(at_s) OVER line AS last_s,
         greatest($fewest, least($most, $all // (SELECT count(DISTINCT (case_id, series, device_id)) FROM long)))
           AS kept
  FROM long WINDOW line AS (PARTITION BY case_id, series, device_id)
), cut AS (
  SELECT *, CASE WHEN n <= kept THEN row_number() OVER ()
                 ELSE least(floor((at_s - first_s) / (last_s - first_s) * (kept // 2)), kept // 2 - 1) END AS part
  FROM counted
)
SELECT case_id, series, device_id, at_s, value, total FROM cut
QUALIFY row_number() OVER (PARTITION BY case_id, series, device_id, part ORDER BY value, at_s) = 1
     OR row_number() OVER (PARTITION BY case_id, series, device_id, part ORDER BY value DESC, at_s DESC) = 1
ORDER BY case_id, series, device_id, at_s
"""  # noqa: S608 - our own text

_ARRIVALS = """
WITH ranked AS (
  SELECT q.case_id, request_id, token_offset_ns, len(token_offset_ns) AS n, m.e2e_s,
         row_number() OVER (PARTITION BY q.case_id ORDER BY m.e2e_s, request_id) AS place,
         count(*) OVER (PARTITION BY q.case_id) AS among
  FROM pooled_requests q JOIN request_metrics m USING (request_id)
  WHERE q.run_id = $run AND m.run_id = $run AND NOT q.warmup AND q.status = 'ok' AND len(token_offset_ns) > 1
), chosen AS (
  SELECT *, CASE WHEN place = (among + 1) // 2 THEN 'median' WHEN place = 1 THEN 'fastest' ELSE 'slowest' END AS which
  FROM ranked WHERE place IN (1, (among + 1) // 2, among)
)
SELECT case_id, request_id, which, e2e_s, offset_ns / 1e9 AS at_s, chunks FROM (
  SELECT *, unnest(token_offset_ns) AS offset_ns, unnest(range(1, n + 1)) AS chunks FROM chosen)
WHERE n <= $most OR chunks IN (1, n) OR chunks % ceil(n / $most)::BIGINT = 0
ORDER BY case_id, e2e_s, request_id, chunks
"""

_SPANS = f"""
WITH {_ORIGIN}
SELECT case_id, kind, number, (start_ns - origin_ns) / 1e9 AS start_s, (end_ns - origin_ns) / 1e9 AS end_s FROM (
  SELECT coalesce(first_case_id, case_id) AS case_id, 'load' AS kind, 0 AS number, load_start_ns AS start_ns,
         load_end_ns AS end_ns
  FROM cases WHERE run_id = $run AND load_end_ns IS NOT NULL
  UNION ALL
  SELECT case_id, coalesce(kind, CASE WHEN warmup THEN 'warmup' ELSE 'counted' END),
         row_number() OVER (PARTITION BY case_id, warmup, kind ORDER BY start_ns), start_ns, end_ns
  FROM pooled_rounds WHERE run_id = $run AND end_ns IS NOT NULL)
JOIN origin USING (case_id) ORDER BY case_id, start_s
"""  # noqa: S608 - our own text

_MEASURED = f"""
WITH {_ORIGIN}, ok AS (
  SELECT case_id, round_id, request_id, prompt_id, start_ns, ttft_s, tpot_s, e2e_s, itl_s, warmup,
         row_number() OVER (PARTITION BY block_case_id ORDER BY start_ns, request_id) = 1 AS after_load,
         row_number() OVER (PARTITION BY round_id ORDER BY start_ns, request_id) = 1 AS in_round
  FROM request_metrics WHERE run_id = $run AND status = 'ok')
SELECT case_id, round_id, request_id, coalesce(prompt_id, '') AS prompt_id, (start_ns - origin_ns) / 1e9 AS start_s,
       start_s + e2e_s AS end_s, ttft_s, tpot_s, e2e_s, list_max(itl_s) AS largest_gap_s,
       list_median(itl_s) AS median_gap_s, list_position(itl_s, list_max(itl_s)) + 1 AS largest_gap_at,
       in_round AS first_in_round, after_load AS first_after_load
FROM ok JOIN origin USING (case_id)
WHERE NOT warmup AND e2e_s IS NOT NULL ORDER BY case_id, start_ns, request_id
"""  # noqa: S608 - our own text


def read_timeline(connection: duckdb.DuckDBPyConnection, run_id: str) -> Timeline:
    """All rows for the charts of a run."""
    readings = _asked(connection, _READINGS, run_id, most=MOST_READINGS, all=_ALL_READINGS, fewest=_FEWEST_READINGS)
    spreads = _asked(connection, _SPREADS, run_id)
    total = sum(int(row["n"]) for row in spreads if row["metric"] == "e2e_s")
    # Gaps of every token are behind this one: minutes and gigabytes for a million requests.
    measured = _asked(connection, _MEASURED, run_id) if total <= MOST_OUTLIERS_OF else []
    return Timeline(
        spreads=spreads,
        requests=_asked(connection, _REQUESTS, run_id, most=MOST_REQUESTS),
        requests_total=total,
        readings=readings,
        readings_total=int(readings[0]["total"]) if readings else 0,
        arrivals=_asked(connection, _ARRIVALS, run_id, most=MOST_ARRIVALS),
        spans=_asked(connection, _SPANS, run_id),
        measured=[Request(**row) for row in measured],
    )


def _asked(connection: duckdb.DuckDBPyConnection, sql: str, run_id: str, **limits: int) -> list[Row]:
    result = connection.execute(sql, {"run": run_id, **limits})
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
