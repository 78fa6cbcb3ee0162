"""How far chance alone moves the ratio of two results, from how their rounds differ. Pure.

Welch's t on the logarithm of the ratio, by the delta method: the standard error of ln(a/b) is √((sₐ/a)² + (s_b/b)²),
with s² the variance of a weighted mean, and its degrees of freedom are Welch's and Satterthwaite's. Unlike a bootstrap
over three rounds it reaches as far into the tails as intervals for many comparisons at once have to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchfleet_controller.stats import Floats, Interval

POWER = 0.8
"""How often a detectable difference is found."""


@dataclass(frozen=True, slots=True)
class RatioError:
    """The standard error of the logarithm of a ratio of two means, and how well that is known."""

    error: float
    here: float
    """Its part from this side: a squared relative standard error."""
    there: float
    sizes: tuple[int, int]
    """Rounds on each side, 2 at least."""

    def interval(self, ratio: float, level: float) -> Interval:
        """The two-sided interval around ``ratio`` that misses the truth with a probability of ``level``."""
        half = _quantile(1 - level / 2, self.degrees) * self.error
        return Interval(ratio * math.exp(-min(half, 700)), ratio * math.exp(min(half, 700)))

    def detectable(self, level: float) -> float:
        """The smallest true difference, as a share, that differs from none at ``level`` in `POWER` of repetitions.

        Exact for normal rounds: the non-centrality that gives the t test this power.
        """
        # scipy.special is there in a fifth of a second, scipy.stats in one.
        from scipy.special import nctdtrinc  # type: ignore[import-untyped, unused-ignore]

        if self.error == 0:
            return 0.0
        degrees = self.degrees
        away = float(nctdtrinc(degrees, 1 - POWER, _quantile(1 - level / 2, degrees)))
        return math.expm1(min(away * self.error, 700))

    def rounds_until(self, distance: float, level: float, most: int) -> int | None:
        """How many more rounds on each side until the interval at ``level`` reaches less far than ``distance`` (of the
        logarithm), were they as spread as these; None: more than ``most``.
        """
        from scipy.special import stdtrit

        more = np.arange(1, most + 1)
        shares = [n / (n + more) for n in self.sizes]
        here, there = self.here * shares[0], self.there * shares[1]
        degrees = _satterthwaite(here, there, self.sizes[0] + more - 1, self.sizes[1] + more - 1)
        enough = stdtrit(degrees, 1 - level / 2) * np.sqrt(here + there) < distance
        return int(more[np.argmax(enough)]) if enough.any() else None

    @property
    def degrees(self) -> float:
        """Degrees of freedom."""
        return float(_satterthwaite(np.array(self.here), np.array(self.there), *(np.array(n - 1) for n in self.sizes)))


def ratio_error(values: tuple[Floats, Floats], baseline: tuple[Floats, Floats]) -> RatioError | None:
    """The error of the ratio of two weighted means; each side is (values, weights) by round, NaN: unmeasured.

    None: a side has fewer than 2 measured rounds, or a mean below 0, or at 0 although rounds differ.
    """
    here, there = _relative_variance(*values), _relative_variance(*baseline)
    if here is None or there is None:
        return None
    return RatioError(math.sqrt(here[0] + there[0]), here[0], there[0], (here[1], there[1]))


def _relative_variance(values: Floats, weights: Floats) -> tuple[float, int] | None:
    present = ~np.isnan(values)
    values, weights = values[present], np.maximum(weights[present], 0.0)
    n = len(values)
    if n < 2:
        return None
    if values.min() == values.max():
        return (0.0, n) if values[0] >= 0 else None
    weights = weights if weights.sum() > 0 else np.ones_like(weights)
    mean = float(np.average(values, weights=weights))
    if mean <= 0:
        return None
    variance = float(((weights * (values - mean)) ** 2).sum() / weights.sum() ** 2) * n / (n - 1)
    return variance / mean**2, n


def _satterthwaite(here: Floats, there: Floats, n: npt.NDArray[np.int_], m: npt.NDArray[np.int_]) -> Floats:
    """Degrees of freedom of a sum of two variances that have n and m."""
    parts = here**2 / n + there**2 / m
    found: Floats = np.where(parts > 0, (here + there) ** 2 / np.where(parts > 0, parts, 1.0), 1.0 * (n + m))
    return found


def _quantile(probability: float, degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
