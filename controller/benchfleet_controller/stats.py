"""Statistics that say how sure they are. Pure; values are plain numbers or numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_MOST_UNITS = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided 95 % interval."""

    low: float
    high: float


def percentile(values: Sequence[float] | Floats, q: float) -> float | None:
    """The ``q`` quantile (0…1) by linear interpolation between order statistics; None: no values.

    Always within the observed range; NaN entries are left out. Raises ValueError for q outside 0…1.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies in 0 to 1, not {q}")
    present = np.asarray(values, np.float64)
    present = np.sort(present[~np.isnan(present)])
    if not len(present):
        return None
    position = q * (len(present) - 1)
    below = math.floor(position)
    above = min(below + 1, len(present) - 1)
    low, high = float(present[below]), float(present[above])
    return min(max(low + (high - low) * (position - below), low), high)


def supports_percentile(n: int, q: float) -> bool:
    """Whether ``n`` values can speak of the ``q`` quantile: at least one is expected beyond it on its thinner side."""
    return n * min(q, 1 - q) >= 1 - 1e-9


def ratio(value: float | None, baseline: float | None) -> float | None:
    """``value``/``baseline``; None when either is unmeasured or the baseline is 0."""
    if value is None or baseline is None or baseline == 0 or math.isnan(value) or math.isnan(baseline):
        return None
    return value / baseline


def weighted_mean(values: Floats, weights: Floats) -> float | None:
    """Mean of the measured values by weight; equal weights when all are 0. None: nothing measured."""
    present = ~np.isnan(values)
    if not present.any():
        return None
    used = np.where(weights[present] > 0, weights[present], 0.0)
    return float(np.average(values[present], weights=used if used.sum() > 0 else None))


def ratio_interval(
    values: tuple[Floats, Floats], baseline: tuple[Floats, Floats], *, resamples: int = 1000, seed: int = 0
) -> Interval | None:
    """95 % percentile-bootstrap interval of the ratio of two weighted means, resampling rounds of each side.

    Each side is (values, weights) by round, weights ≥ 0. None: a side has fewer than 2 measured rounds, or a mean is 0.
    Deterministic for a seed. Efron & Tibshirani 1993, chapter 13.
    """
    generator = np.random.default_rng(seed)
    top, bottom = (_resampled_means(side, resamples, generator) for side in (values, baseline))
    if top is None or bottom is None or not np.all(bottom):
        return None
    low, high = np.quantile(top / bottom, [0.025, 0.975])
    return Interval(float(low), float(high))


def _resampled_means(side: tuple[Floats, Floats], resamples: int, generator: np.random.Generator) -> Floats | None:
    present = ~np.isnan(side[0])
    values, weights = side[0][present], np.maximum(side[1][present], 0.0)
    if len(values) < 2:
        return None
    if weights.sum() == 0:
        weights = np.ones_like(weights)
    sums = weights * values
    if len(values) > _MOST_UNITS:  # neighbouring rounds together: as sure, and time and memory stay bounded
        edges = np.linspace(0, len(values), _MOST_UNITS + 1).astype(np.int64)[:-1]
        sums, weights = np.add.reduceat(sums, edges), np.add.reduceat(weights, edges)
    # Counts of each round in each resample: a matrix product instead of gathered copies.
    counts = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    totals = counts @ weights
    usual = float(sums.sum() / weights.sum())
    means: Floats = np.where(totals > 0, (counts @ sums) / np.where(totals > 0, totals, 1.0), usual)
    return means
