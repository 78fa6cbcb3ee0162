"""Which requests took unusually long, by how much, and what the machine did meanwhile. Pure.

Outliers are kept in every result and marked with a reason: a slow request is part of what the machine does.

The rule is the modified z-score 0.6745·(x − median)/MAD > 3.5 (Iglewicz & Hoaglin 1993, "How to Detect and Handle
Outliers"), a robust one: the outliers themselves hardly move median and MAD. It is applied

* to logarithms: times are positive, skewed to the right, and differ by factors; on plain values the ordinary right tail
  would be marked, and prompts of unlike lengths could not share one spread;
* to the slow side only: nothing disturbs a request into being fast;
* with a MAD of at least 1 % or the instrument's error, whichever is larger: nobody asks why something took 2 % longer;
* to each prompt with 8 or more requests by itself, and to all other prompts of the case together, each request against
  its own prompt's median. There the P − 1 smallest deviations are left out of the MAD, since P medians were fitted to
  the same requests (as robust regression does). So less than 1.5 % of ordinary requests are marked in groups of 8 and
  more, where a prompt of 5 by itself would have 2.6 % marked. Fewer than 8: no verdict.

A *stall* is one gap inside a stream beyond 10 times the request's median gap, 50 ms, and the case's 99th percentile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from benchfleet.samples import THROTTLE_REASONS
from benchfleet_controller.stats import Floats

MOST_SCORE = 3.5
FEWEST = 8
"""Requests that can say what is usual."""
STALL_TIMES = 10.0
STALL_S = 0.05
METRICS = ("ttft_s", "tpot_s", "e2e_s")
STALL_METRIC = "itl_s"

_LEAST_SPREAD = 0.01
_OTHER_CPU = 0.1
"""A tenth of the machine more than usual: less is the desktop's own noise."""
_PAGED_BYTES = 1 << 20
_FAULTS = 100
"""Pages read from disk, about 0.1 ms each on an SSD: fewer could not be seen in a request."""
_SLOWED = 0.9
"""Clocks below this share of the usual: boost clocks wander by some per cent."""


class Reason(StrEnum):
    """Why a request took long, the most convincing first."""

    STALL = "stall"
    """One gap in the stream explains at least half of the excess."""
    THROTTLED = "throttled"
    """The driver reported throttling, or clocks were down."""
    PAGING = "paging"
    """Memory was swapped out or read back from disk."""
    BUSY_HOST = "busy_host"
    """Other programs took processor time."""
    FIRST_REQUEST = "first_request"
    """The first after the load or of its round, which may find things not ready."""
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True)
class Request:
    """One ok request. Times in seconds; start and end are on the host's monotonic clock."""

    case_id: str
    round_id: str
    request_id: str
    prompt_id: str
    start_s: float
    end_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    largest_gap_s: float | None = None
    """Longest wait between token-bearing chunks; None: fewer than two of them."""
    median_gap_s: float | None = None
    largest_gap_at: int | None = None
    """Which chunk came so late, counted from 1."""
    first_in_round: bool = False
    first_after_load: bool = False


@dataclass(frozen=True, slots=True)
class Conditions:
    """What telemetry said between a request's start and end; None: unmeasured."""

    other_cpu_ratio: float | None = None
    """Share of all processors' time used by anything but runtime, load process and agent."""
    swap_growth_bytes: float | None = None
    major_faults: float | None = None
    """Page faults of the runtime that had to read from disk."""
    available_bytes: float | None = None
    """Least memory new work could have had."""
    throttle_reasons: tuple[str, ...] | None = None
    """Why the driver held the device back; empty: it did not."""
    clock_hz: float | None = None
    """Mean clock of what computes."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """One time of one request that is unusually long."""

    request_id: str
    case_id: str
    metric: str
    """One of `METRICS`, or `STALL_METRIC` for a gap inside the stream."""
    value: float
    typical: float
    """The median of its prompt in the case; for a gap, the median gap of its request."""
    times: float
    """``value``/``typical``."""
    score: float | None
    """Modified z-score; None for a gap."""
    reason: Reason
    evidence: str
    """All that was found, the reason's first; empty when unexplained."""


def conditions(samples: Mapping[str, Floats], start_s: float, end_s: float) -> Conditions:
    """Conditions between two moments, from readings of one case.

    ``samples`` holds arrays of equal length by column of the table ``samples`` (NaN: not in that reading), and
    ``sample_s``, ascending, on the clock of ``start_s``. Counters are interpolated between readings, so a request much
    shorter than the sampling period sees the mean around it. What was not read on both sides is None.
    """
    at = samples["sample_s"]

    def edges(name: str) -> tuple[float, ...] | None:
        column = samples.get(name)
        if column is None:
            return None
        known = ~np.isnan(column)
        if not known.any() or at[known][0] > start_s or at[known][-1] < end_s:
            return None
        first, last = np.interp([start_s, end_s], at[known], column[known])
        return float(first), float(last)

    def growth(name: str) -> float | None:
        found = edges(name)
        return None if found is None else found[1] - found[0]

    def mean(name: str) -> float | None:
        found = edges(name)
        if found is None:
            return None
        inside = samples[name][(at >= start_s) & (at <= end_s)]
        return float(np.mean([*found, *inside[~np.isnan(inside)]]))

    busy, total = growth("host_cpu_busy_ns"), growth("host_cpu_total_ns")
    own = [growth(f"{scope}_cpu_ns") for scope in ("runtime", "load", "agent")]
    other = None
    if busy is not None and total and own[0] is not None and all(part is None or part >= 0 for part in own):
        other = min(max((busy - sum(part or 0.0 for part in own)) / total, 0.0), 1.0)
    free = edges("host_available_bytes")
    if free is not None:
        inside = samples["host_available_bytes"][(at >= start_s) & (at <= end_s)]
        free = (*free, *inside[~np.isnan(inside)])
    return Conditions(
        other_cpu_ratio=other,
        swap_growth_bytes=growth("host_swap_used_bytes"),
        major_faults=growth("runtime_major_faults"),
        available_bytes=None if free is None else float(min(free)),
        clock_hz=mean("host_cpu_clock_hz"),
        throttle_reasons=_throttled(samples.get("device_throttle_reasons"), at, start_s, end_s),
    )


def _throttled(masks: Floats | None, at: Floats, start_s: float, end_s: float) -> tuple[str, ...] | None:
    """Reasons that the driver gave between two moments or in the last reading before; None: no reading."""
    if masks is None:
        return None
    known = ~np.isnan(masks)
    first = np.searchsorted(at[known], start_s, side="right") - 1
    inside = masks[known][max(first, 0) : np.searchsorted(at[known], end_s, side="right")]
    if not len(inside):
        return None
    mask = int(np.bitwise_or.reduce(inside.astype(np.int64)))
    return tuple(name for bit, name in THROTTLE_REASONS.items() if mask & bit)


def outliers(
    requests: Iterable[Request],
    conditions: Mapping[str, Conditions] | None = None,
    *,
    gap_p99_s: Mapping[str, float] | None = None,
    error_s: Mapping[str, float] | None = None,
) -> tuple[Outlier, ...]:
    """Outliers among ok requests of counted rounds, by case, then in the order given.

    ``conditions`` goes by request_id, ``gap_p99_s`` (99th percentile of all gaps) by case_id, ``error_s`` (how far the
    instrument may be off, from its certificate) by metric. Whatever is left out counts as unmeasured.
    """
    cases: dict[str, list[Request]] = {}
    for request in requests:
        cases.setdefault(request.case_id, []).append(request)
    found: list[Outlier] = []
    for case_id, case in cases.items():
        told = [(conditions or {}).get(request.request_id, Conditions()) for request in case]
        usual = _usual(told)
        scored = {metric: _scores(case, metric, (error_s or {}).get(metric, 0.0)) for metric in METRICS}
        p99 = (gap_p99_s or {}).get(case_id, 0.0)
        for place, request in enumerate(case):
            for metric, scores in scored.items():
                if place in scores:
                    value, typical, score = scores[place]
                    evidence = _evidence(request, told[place], usual, _stall_share(request, metric, value, typical))
                    found.append(_outlier(request, metric, value, typical, score, evidence))
            if _stalled(request, p99):
                assert request.largest_gap_s is not None
                assert request.median_gap_s is not None
                evidence = _evidence(request, told[place], usual, 0.0)
                found.append(
                    _outlier(request, STALL_METRIC, request.largest_gap_s, request.median_gap_s, None, evidence)
                )
    return tuple(found)


def _outlier(
    request: Request, metric: str, value: float, typical: float, score: float | None, evidence: dict[Reason, str]
) -> Outlier:
    times = value / typical if typical > 0 else math.inf
    reason = next(iter(evidence), Reason.UNEXPLAINED)
    text = "; ".join(evidence.values())
    return Outlier(request.request_id, request.case_id, metric, value, typical, times, score, reason, text)


def _scores(case: Sequence[Request], metric: str, error_s: float) -> dict[int, tuple[float, float, float]]:
    """Value, typical value and score of the outliers, by place in the case."""
    prompts: dict[str, list[int]] = {}
    for place, request in enumerate(case):
        value = getattr(request, metric)
        if value is not None and value > 0:
            prompts.setdefault(request.prompt_id, []).append(place)
    # A prompt sent once has nothing to be compared with.
    groups = [[places] for places in prompts.values() if len(places) >= FEWEST]
    groups.append([places for places in prompts.values() if 1 < len(places) < FEWEST])
    found: dict[int, tuple[float, float, float]] = {}
    for group in groups:
        if sum(map(len, group)) < FEWEST:
            continue
        times = [np.array([getattr(case[place], metric) for place in places], np.float64) for places in group]
        typical = np.concatenate([np.full(len(some), np.exp(np.median(np.log(some)))) for some in times])
        values = np.concatenate(times)
        away = np.log(values / typical)
        spread = float(np.median(np.sort(np.abs(away))[len(group) - 1 :]))
        scores = 0.6745 * away / np.maximum(spread, np.log1p(np.maximum(_LEAST_SPREAD, error_s / typical)))
        places = [place for some in group for place in some]
        for index in np.flatnonzero(scores > MOST_SCORE):
            found[places[index]] = (float(values[index]), float(typical[index]), float(scores[index]))
    return found


def _stalled(request: Request, p99: float) -> bool:
    if request.largest_gap_s is None or request.median_gap_s is None:
        return False
    return request.largest_gap_s > max(STALL_TIMES * request.median_gap_s, STALL_S, p99)


def _stall_share(request: Request, metric: str, value: float, typical: float) -> float:
    """How much of the excess the largest gap explains."""
    if metric == "ttft_s" or request.largest_gap_s is None or request.median_gap_s is None:
        return 0.0
    excess = value - typical
    if metric == "tpot_s":  # of one token; the gap took its time from all of them
        if request.e2e_s is None or request.ttft_s is None:
            return 0.0
        excess *= (request.e2e_s - request.ttft_s) / value
    return (request.largest_gap_s - request.median_gap_s) / excess if excess > 0 else 0.0


def _usual(told: Sequence[Conditions]) -> Conditions:
    """The medians of the case's requests, and what held back at least half of them."""

    def median(name: str) -> float | None:
        known = [value for one in told if (value := getattr(one, name)) is not None]
        return float(np.median(known)) if known else None

    known = [one.throttle_reasons for one in told if one.throttle_reasons is not None]
    often = Counter(reason for reasons in known for reason in reasons)
    return Conditions(
        throttle_reasons=tuple(reason for reason, n in often.items() if 2 * n >= len(known)),
        other_cpu_ratio=median("other_cpu_ratio"),
        swap_growth_bytes=median("swap_growth_bytes"),
        major_faults=median("major_faults"),
        clock_hz=median("clock_hz"),
    )


def _evidence(request: Request, here: Conditions, usual: Conditions, stall_share: float) -> dict[Reason, str]:
    """What speaks for each reason, the most convincing first."""
    found: dict[Reason, str] = {}
    if stall_share >= 0.5:
        chunk = "" if request.largest_gap_at is None else f" before chunk {request.largest_gap_at}"
        found[Reason.STALL] = (
            f"one gap of {_seconds(request.largest_gap_s)}{chunk} is {min(stall_share, 1):.0%} of the excess, "
            f"the median gap {_seconds(request.median_gap_s)}"
        )
    unusual = set(here.throttle_reasons or ()) - set(usual.throttle_reasons or ())
    if unusual:
        found[Reason.THROTTLED] = f"the driver reported throttling: {', '.join(sorted(unusual))}"
    elif here.clock_hz is not None and usual.clock_hz and here.clock_hz < _SLOWED * usual.clock_hz:
        found[Reason.THROTTLED] = (
            f"clock {here.clock_hz / 1e6:.0f} MHz during the request, {usual.clock_hz / 1e6:.0f} MHz in the median one"
        )
    paging = []
    if _beyond(here.swap_growth_bytes, usual.swap_growth_bytes, _PAGED_BYTES):
        paging.append(f"swap in use grew by {(here.swap_growth_bytes or 0) / 2**20:.0f} MiB during the request")
    if _beyond(here.major_faults, usual.major_faults, _FAULTS):
        paging.append(
            f"{here.major_faults:.0f} page faults of the runtime read from disk, {usual.major_faults:.0f} in the "
            "median request"
        )
    if paging:
        if here.available_bytes is not None:
            paging.append(f"{here.available_bytes / 2**20:.0f} MiB were available")
        found[Reason.PAGING] = ", ".join(paging)
    if _beyond(here.other_cpu_ratio, usual.other_cpu_ratio, _OTHER_CPU):
        found[Reason.BUSY_HOST] = (
            f"host CPU outside runtime and agent {here.other_cpu_ratio:.0%} of the machine during the request, "
            f"{usual.other_cpu_ratio:.0%} in the median request"
        )
    if request.first_after_load or request.first_in_round:
        found[Reason.FIRST_REQUEST] = (
            f"first request {'after the load' if request.first_after_load else 'of its round'}"
        )
    return found


def _beyond(here: float | None, usual: float | None, margin: float) -> bool:
    """Whether it is above the usual by the margin, and at least twice as much."""
    return here is not None and usual is not None and here - usual >= margin and here >= 2 * usual


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"
