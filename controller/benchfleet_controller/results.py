"""Case results with what only single rounds and requests tell: 95 % intervals, and goodput under limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchfleet_controller import host_rules, stats
from benchfleet_controller.capacity import Limits, goodput
from benchfleet_controller.metrics import BY_NAME, CaseMetric
from benchfleet_controller.store import RequestTimes, RoundValues, Row, Store
from benchfleet_controller.telemetry import with_price

INTERVAL_METRICS = (
    "ttft_avg_s", "ttft_p50_s", "ttft_p95_s", "e2e_avg_s", "e2e_p50_s", "e2e_p95_s", "decode_tokens_per_s",
    "output_tokens_per_s", "requests_per_s",
)  # fmt: skip
"""What gets an interval."""
TABLE_INTERVALS = ("ttft_avg_s", "ttft_p50_s", "e2e_avg_s", "decode_tokens_per_s")
"""Those that tables and checks need; each costs a query or a thousand resamples."""
_FEWEST_SPREAD = 3
_MOST_REQUESTS = 2_000_000
"""Requests whose times are held at once, unless a single case has more."""


def results_of(
    store: Store,
    run_ids: Sequence[str],
    limits: Limits | None = None,
    metrics: Sequence[str] = INTERVAL_METRICS,
    price_per_kwh: float | None = None,
) -> list[Row]:
    """Rows of `Store.case_results`, each with keys more; with a price, ``cost_per_million_tokens`` is known too.

    ``intervals``: by metric its 95 % interval ``[low, high]`` with rounds as blocks (`stats.mean_interval`,
    `stats.quantile_interval`); None where fewer than 2 counted rounds measured it, and for a percentile that too few
    values support. ``goodput``: None without limits, else what `_goodput_of` says. ``spread_ratio`` and
    ``spread_metric``: how far rounds lie apart (`_spread`). What the host was like: `host_rules.of_case`.
    """
    cases = with_price(store.case_results(run_ids), price_per_kwh)
    conditions: dict[str, list[Row]] = {case["case_id"]: [] for case in cases}
    for row in store.round_conditions(run_ids):
        conditions.setdefault(row["case_id"], []).append(row)
    intervals: dict[str, dict[str, list[float] | None]] = {case["case_id"]: dict.fromkeys(metrics) for case in cases}
    found: dict[str, Row] = {}
    spreads: dict[str, dict[str, float | None]] = {case["case_id"]: {} for case in cases}
    means = store.round_values_of([name for name in metrics if BY_NAME[name].quantile is None], run_ids)
    for name, values in means.items():
        for case_id, rows in by_case(values):
            intervals[case_id][name] = _ends(stats.mean_interval(values.value[rows], values.weight[rows]))
            spreads[case_id][name] = _spread(values.value[rows])
    quantiles = [BY_NAME[name] for name in metrics if BY_NAME[name].quantile is not None]
    for batch in _batches(cases) if quantiles or limits else ():
        times = store.request_times([case["case_id"] for case in batch])
        for case in batch:
            mine = times.get(case["case_id"])
            if mine is not None:
                intervals[case["case_id"]] |= {one.name: _quantile(mine, one, case) for one in quantiles}
            if limits is not None:
                found[case["case_id"]] = _goodput_of(mine, limits, case["rounds_s"])
    return [
        case
        | {"intervals": intervals[case["case_id"]], "goodput": found.get(case["case_id"])}
        | _spread_of(spreads[case["case_id"]])
        | host_rules.of_case(conditions[case["case_id"]])
        for case in cases
    ]


def _spread(values: npt.NDArray[np.float64]) -> float | None:
    """Standard deviation of the rounds over their mean; None: fewer than 3 rounds measured it."""
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1) / known.mean()) if len(known) >= _FEWEST_SPREAD and known.mean() > 0 else None


def _spread_of(spreads: dict[str, float | None]) -> Row:
    """Of the decode rate, which no prompt's length changes; of the mean latency where there is none."""
    for name in ("decode_tokens_per_s", "e2e_avg_s"):
        if spreads.get(name) is not None:
            return {"spread_ratio": spreads[name], "spread_metric": name}
    return {"spread_ratio": None, "spread_metric": None}


def by_case(values: RoundValues) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Each case with the places of its rounds."""
    order = np.argsort(values.case_id, kind="stable")
    names, starts = np.unique(values.case_id[order], return_index=True)
    yield from zip(names.tolist(), np.split(order, starts[1:]), strict=False)  # no rounds are still one empty part


def _quantile(times: RequestTimes, metric: CaseMetric, case: Row) -> list[float] | None:
    q = metric.quantile
    if q is None or not stats.supports_percentile(case[metric.n_column or ""], q):
        return None
    column = metric.name.replace(f"_p{round(q * 100)}", "")
    return _ends(stats.quantile_interval(times.by_round(column), q))


def _goodput_of(times: RequestTimes | None, limits: Limits, rounds_s: float | None) -> Row:
    """Goodput over the counted rounds that ended, as a JSON object with the fields of `capacity.Goodput`.

    In an open loop a user waits from when the request is due, whether it could be sent then or not.
    """
    none = np.empty(0)
    named = {name: none if times is None else getattr(times, name) for name in ("ttft_s", "tpot_s", "e2e_s")}
    late = none if times is None else times.lateness_s
    named |= {name: named[name] + late for name in ("ttft_s", "e2e_s")}
    counted = goodput(none.astype(np.bool_) if times is None else times.ok, named, limits, rounds_s)
    return {
        "limits": dataclasses.asdict(limits),
        "good": counted.good,
        "requests": counted.requests,
        "good_ratio": counted.good_ratio,
        "good_ratio_interval": _ends(counted.interval),
        "goodput_per_s": counted.goodput_per_s,
        "unmeasured": counted.unmeasured,
    }


def _ends(interval: stats.Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _batches(cases: Sequence[Row]) -> Iterator[list[dict[str, Any]]]:
    """Cases in groups of bounded numbers of requests."""
    batch: list[Row] = []
    for case in cases:
        if batch and sum(one["requests"] for one in batch) + case["requests"] > _MOST_REQUESTS:
            yield batch
            batch = []
        batch.append(case)
    if batch:
        yield batch
