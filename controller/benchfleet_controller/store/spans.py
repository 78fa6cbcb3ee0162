"""Telemetry by span: one row a case, phase, round, probe and device, in a single pass over ``samples``.

Everything that is said of memory, energy and proof of device rests on these rows, never on samples themselves.

Counters are kept as their growth over the span (NULL where they went back: the thing counted was restarted). Gauges are
means weighted by time, each reading standing for half the way to its neighbours (with a reading at every tick, mean ×
duration is the trapezoid rule); windowed values stand for the time before them. Readings at the edges belong to both
spans, so counters are exact over a round.
"""

from __future__ import annotations

from benchfleet.samples import BY_NAME, ENERGY_COUNTERS, POWERS, Kind

_COUNTERS = (
    "runtime_cpu_ns", "host_cpu_busy_ns", "host_cpu_total_ns", "load_cpu_ns", "agent_cpu_ns", "device_energy_mj",
    "cpu_package_energy_uj", "device_busy_ns", "device_runtime_busy_ns", "device_power_throttle_ns",
    "device_thermal_throttle_ns", "host_cpu_throttle_count", "host_memory_pressure_us",
)  # fmt: skip
_GAUGES = tuple(name for name in POWERS if BY_NAME[name].kind is Kind.GAUGE)
_WINDOWED = ("device_busy_ratio", "device_runtime_busy_ratio", "device_power_average_w")
# Of `POWERS` how often and how far they change is kept too (``<name>_changes``, ``_least``, ``_most``), of
# `ENERGY_COUNTERS` how often they move (``<name>_steps``).


def _growth(name: str) -> str:
    grown = f"max_by({name}, sample_ns) - min_by({name}, sample_ns)"
    # One reading says nothing of growth.
    return f"CASE WHEN count({name}) > 1 AND {grown} >= 0 THEN {grown} END AS {name}"


def _mean(name: str) -> str:
    weight = "sample_ns - before_ns" if name in _WINDOWED else "weight_ns"
    weighed = f"sum({name} * ({weight})) / nullif(sum({weight}) FILTER (WHERE {name} IS NOT NULL), 0)"
    return f"coalesce({weighed}, avg({name})) AS {name}, count({name}) AS {name}_n"


_LINE = "PARTITION BY case_id, phase, since_round_id, probe_id, device_id ORDER BY sample_ns"
_USED = (
    *_COUNTERS, *_GAUGES, *_WINDOWED, "runtime_rss_bytes", "runtime_anon_bytes", "runtime_file_bytes",
    "runtime_footprint_bytes", "runtime_neural_bytes", "host_swap_used_bytes", "host_available_bytes",
    "device_memory_used_bytes", "device_memory_runtime_bytes",
    "device_shared_memory_bytes", "device_throttle_reasons", "on_battery", "host_cpu_clock_hz",
)  # fmt: skip

_SPANS_OF_BLOCKS = f"""
SELECT case_id, run_id, job_id, phase, round_id, probe_id, coalesce(device_id, '') AS device_id, count(*) AS samples,
  min(sample_ns) AS start_ns, max(sample_ns) AS end_ns, max(sample_ns - before_ns) AS largest_gap_ns,
  min_by(runtime_rss_bytes, sample_ns) AS rss_first_bytes, max_by(runtime_rss_bytes, sample_ns) AS rss_last_bytes,
  max(runtime_rss_bytes) AS rss_peak_bytes, median(runtime_rss_bytes) AS rss_median_bytes,
  -- Where no anonymous memory is told (macOS), the footprint is what is nearest to it.
  max(coalesce(runtime_anon_bytes, runtime_footprint_bytes)) AS anon_peak_bytes,
  max_by(coalesce(runtime_anon_bytes, runtime_footprint_bytes), sample_ns) AS anon_last_bytes,
  max(runtime_neural_bytes) AS neural_peak_bytes,
  max(runtime_file_bytes) AS file_peak_bytes, max_by(runtime_file_bytes, sample_ns) AS file_last_bytes,
  max(host_swap_used_bytes) AS swap_peak_bytes, min_by(host_swap_used_bytes, sample_ns) AS swap_first_bytes,
  min(host_available_bytes) AS available_least_bytes, median(host_available_bytes) AS available_median_bytes,
  max(device_memory_runtime_bytes) AS device_runtime_peak_bytes,
  count(device_memory_runtime_bytes) AS device_runtime_readings,
  max(device_memory_used_bytes) AS device_used_peak_bytes, median(device_memory_used_bytes) AS device_used_median_bytes,
  min_by(device_memory_used_bytes, sample_ns) AS device_used_first_bytes,
  max_by(device_memory_used_bytes, sample_ns) AS device_used_last_bytes,
  max(device_shared_memory_bytes) AS device_shared_peak_bytes,
  median(device_shared_memory_bytes) AS device_shared_median_bytes,
  sum(weight_ns) FILTER (WHERE device_throttle_reasons > 0)
    / nullif(sum(weight_ns) FILTER (WHERE device_throttle_reasons IS NOT NULL), 0) AS throttled_ratio,
  bit_or(device_throttle_reasons) AS throttle_reasons,
  min(on_battery) AS on_battery_least, max(on_battery) AS on_battery_most,
  -- Readings at the edges are taken before and after the work.
  avg(host_cpu_clock_hz) FILTER (WHERE before_ns IS NOT NULL AND after_ns IS NOT NULL) AS cpu_clock_hz,
  {", ".join(f"count(*) FILTER (WHERE {name} <> {name}_before) AS {name}_changes" for name in POWERS)},
  {", ".join(f"min({name}) AS {name}_least, max({name}) AS {name}_most" for name in POWERS)},
  {", ".join(f"count(DISTINCT {name}) - 1 AS {name}_steps" for name in ENERGY_COUNTERS)},
  {", ".join(_growth(name) for name in _COUNTERS)},
  {", ".join(_mean(name) for name in (*_GAUGES, *_WINDOWED))}
FROM (
  SELECT case_id, run_id, job_id, phase, round_id, since_round_id, probe_id, device_id, sample_ns,
         {", ".join(_USED)},
         {", ".join(f"lag({name}) OVER line AS {name}_before" for name in POWERS)},
         lag(sample_ns) OVER line AS before_ns, lead(sample_ns) OVER line AS after_ns,
         (coalesce(after_ns, sample_ns) - coalesce(before_ns, sample_ns)) / 2 AS weight_ns
  FROM (
    -- Phases between rounds have one name and are many spans: the round that began before tells them apart.
    SELECT s.*, coalesce(s.round_id, r.round_id) AS since_round_id
    FROM (FROM samples WHERE case_id IS NOT NULL AND {{jobs}}) s
    ASOF LEFT JOIN rounds r ON s.case_id = r.case_id AND s.sample_ns > r.start_ns)
  WINDOW line AS ({_LINE}))
GROUP BY case_id, run_id, job_id, phase, round_id, since_round_id, probe_id, coalesce(device_id, '')
"""  # noqa: S608 - our own text
SPANS_OF_JOBS = f"""
SELECT s.* REPLACE (coalesce(b.first_case_id, s.case_id) AS case_id)
FROM ({_SPANS_OF_BLOCKS}) s LEFT JOIN later_blocks b ON s.case_id = b.case_id
"""  # noqa: S608 - our own text
"""All spans of some jobs; ``{jobs}`` is the condition on ``job_id`` (`condensed`)."""


def _share(counter: str, gauge: str) -> str:
    """Share of time by a counter where there is one, else the mean of a ratio."""
    return (
        f"coalesce(sum({counter}) / nullif(sum(end_ns - start_ns) FILTER (WHERE {counter} IS NOT NULL), 0), "
        f"sum({gauge} * (end_ns - start_ns)) / nullif(sum(end_ns - start_ns) FILTER (WHERE {gauge} IS NOT NULL), 0), "
        f"avg({gauge}))"
    )


# The device memory of each device, and what it is of: the runtime's own share where the driver tells it; else what the
# device holds above its baseline. A share that is read at the edges only misses peaks between them, which the device's
# own figure does not: the larger counts. (DuckDB's greatest takes NULL for nothing, which would make it 0.)
_DEVICE_MEMORY = """
SELECT case_id, device_id, max(device_runtime_peak_bytes) AS own,
       max(device_used_median_bytes) FILTER (WHERE phase = 'baseline') AS before,
       max(device_used_peak_bytes) FILTER (WHERE phase <> 'baseline') - before AS above,
       if(above < 0, 0, above) AS grown,
       10 * sum(device_runtime_readings) FILTER (WHERE phase IN ('loaded', 'warmup', 'round'))
         < 9 * sum(samples) FILTER (WHERE phase IN ('loaded', 'warmup', 'round')) AS at_edges,
       CASE WHEN own IS NULL OR (at_edges AND own > 0 AND grown > own) THEN 'device_delta'
            WHEN at_edges THEN 'process_at_edges' ELSE 'process' END AS basis,
       CASE basis WHEN 'device_delta' THEN grown ELSE own END AS peak,
       max_by(device_used_last_bytes, end_ns) FILTER (WHERE phase = 'loaded') AS before_unload,
       -- Later ones see the runtime end, which gives everything back.
       min_by(device_used_first_bytes, start_ns) FILTER (WHERE phase = 'after') AS after_unload
FROM spans WHERE device_id <> '' GROUP BY case_id, device_id
"""

# One row a case, of spans.
SAMPLE_PART = f"""
WITH cpu AS (
  SELECT case_id, sum(runtime_cpu_ns) / nullif(sum(end_ns - start_ns), 0) AS busy_cores FROM spans
  WHERE phase = 'round' AND runtime_cpu_ns IS NOT NULL AND end_ns > start_ns GROUP BY case_id
), energy AS (
  -- A counter where there is one; else power over time (trapezoids between readings of a round).
  SELECT case_id, sum(round_j) AS energy_j FROM (
    SELECT case_id, coalesce(device_energy_mj / 1e3,
             CASE WHEN device_power_w_n > 1 THEN device_power_w * (end_ns - start_ns) / 1e9 END,
             CASE WHEN device_power_average_w_n > 1 THEN device_power_average_w * (end_ns - start_ns) / 1e9 END
           ) AS round_j
    FROM spans WHERE phase = 'round')
  WHERE round_j >= 0 GROUP BY case_id
), busy AS (
  SELECT case_id, max(ratio) AS gpu_busy_ratio FROM (
    SELECT case_id, device_id, {_share("device_busy_ns", "device_busy_ratio")} AS ratio
    FROM spans WHERE phase = 'round' GROUP BY case_id, device_id)
  GROUP BY case_id
), device_memory AS (
  SELECT case_id, sum(peak)::BIGINT AS vram_peak_bytes,
         string_agg(DISTINCT basis, '+' ORDER BY basis) FILTER (WHERE peak IS NOT NULL) AS vram_basis,
         sum(before_unload - after_unload) AS less, if(less < 0, 0, less)::BIGINT AS vram_given_back_bytes
  FROM ({_DEVICE_MEMORY}) GROUP BY case_id
)
SELECT a.*, vram_peak_bytes, vram_basis, vram_given_back_bytes, gpu_busy_ratio, busy_cores, energy_j
FROM (SELECT case_id, sum(samples)::BIGINT AS samples, max(rss_peak_bytes) AS ram_peak_bytes,
             max(swap_peak_bytes) - min_by(swap_first_bytes, start_ns) AS swap_growth_bytes,
             max(anon_peak_bytes) AS ram_anon_peak_bytes, max(file_peak_bytes) AS ram_file_peak_bytes,
             median(rss_median_bytes) FILTER (WHERE phase = 'round')::BIGINT AS ram_steady_bytes,
             max_by(rss_last_bytes, end_ns) FILTER (WHERE phase = 'baseline') AS ram_baseline_bytes,
             min_by(rss_first_bytes, start_ns) FILTER (WHERE phase = 'loaded') AS ram_loaded_bytes,
             max_by(rss_last_bytes, end_ns) FILTER (WHERE phase = 'loaded') AS ram_before_unload_bytes,
             min_by(rss_first_bytes, start_ns) FILTER (WHERE phase = 'after') AS ram_after_unload_bytes
      FROM spans GROUP BY case_id) a
LEFT JOIN cpu USING (case_id) LEFT JOIN energy USING (case_id)
LEFT JOIN busy USING (case_id) LEFT JOIN device_memory USING (case_id)
"""  # noqa: S608 - our own text

_IDLE_PIECES = "(phase NOT IN ('baseline', 'loaded') OR end_ns - start_ns >= greatest(1e9, longest_ns / 2))"
"""Of idle phases only what is long: each piece has two edges, and the moment between two rounds is hardly idle."""


def _parts_of_counter(name: str) -> str:
    there = f"FILTER (WHERE {name} IS NOT NULL AND {_IDLE_PIECES})"
    return (
        f"(sum({name}) {there})::DOUBLE AS {name}_sum, count(*) {there} AS {name}_spans, "
        f"sum(end_ns - start_ns) {there} / 1e9 AS {name}_s, sum(samples) {there}::BIGINT AS {name}_readings, "
        f"sum({name}_steps) {there}::BIGINT AS {name}_moves"
    )


def _parts_of_power(name: str) -> str:
    there = f"FILTER (WHERE {name}_n > 1 AND {_IDLE_PIECES})"
    return (
        f"sum({name} * (end_ns - start_ns) / 1e9) {there} AS {name}_sum, count(*) {there} AS {name}_spans, "
        f"sum(end_ns - start_ns) {there} / 1e9 AS {name}_s, sum({name}_n) {there}::BIGINT AS {name}_readings, "
        f"sum({name}_changes) {there}::BIGINT AS {name}_moves, "
        f"max({name}_most) {there} - min({name}_least) {there} AS {name}_spread"
    )


ENERGY_PARTS = ", ".join([*map(_parts_of_counter, ENERGY_COUNTERS), *map(_parts_of_power, POWERS)])
_WITH_LONGEST = """(
  SELECT *, max(end_ns - start_ns) OVER (PARTITION BY case_id, phase, probe_id, device_id) AS longest_ns FROM spans)"""
PARTS = f"""
SELECT case_id, device_id, phase, {ENERGY_PARTS},
  {_share("device_runtime_busy_ns", "device_runtime_busy_ratio")} AS runtime_busy_ratio,
  {_share("device_busy_ns", "device_busy_ratio")} AS busy_ratio,
  max(device_runtime_peak_bytes) AS runtime_peak_bytes,
  max(device_used_peak_bytes) AS used_peak_bytes, max(device_used_median_bytes) AS used_median_bytes,
  max(neural_peak_bytes) AS neural_peak_bytes,
  min(available_least_bytes) AS available_least_bytes, max(available_median_bytes) AS available_median_bytes,
  max(device_shared_peak_bytes) AS shared_peak_bytes, max(device_shared_median_bytes) AS shared_median_bytes
FROM {_WITH_LONGEST} GROUP BY case_id, device_id, phase
"""  # noqa: S608 - our own text
"""What `telemetry.derive` takes: one row a case, device (empty: the host) and phase."""

ROUND_PARTS = f"""
SELECT case_id, device_id, phase, round_id, {ENERGY_PARTS}
FROM {_WITH_LONGEST} WHERE phase = 'round' GROUP BY case_id, device_id, phase, round_id
"""  # noqa: S608 - our own text
"""The energy of each counted round, a row a device."""

ROUND_DEVICE_MEMORY = f"""
SELECT case_id, sum(peak)::DOUBLE AS value, 1.0 AS weight FROM (
  SELECT case_id, device_id, round_id, max(device_used_peak_bytes) - any_value(before) AS above,
         CASE any_value(basis) WHEN 'device_delta' THEN if(above < 0, 0, above)
                               ELSE max(device_runtime_peak_bytes) END AS peak
  FROM spans JOIN (SELECT case_id, device_id, basis, before FROM ({_DEVICE_MEMORY})) USING (case_id, device_id)
  WHERE phase = 'round' GROUP BY case_id, device_id, round_id)
GROUP BY case_id, round_id
"""  # noqa: S608 - our own text
"""The device memory of each counted round, of what `SAMPLE_PART` has it of in the case."""
