"""When rounds stop, and whether an open loop kept its rate. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchfleet.failures import Failure, Reason

MOST_LATENESS = 0.1
"""Share of the mean latency, and of the gap between due moments, by which requests may go out late on average before
the numbers are refused: past both, a tenth of what a user would have waited is ours and in no figure, and the server
was not asked at the rate that is said."""
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a counted round says about how sure we are: means over its ok requests, None: unmeasured."""

    duration_s: float
    ttft_s: float | None
    tokens_per_s: float | None
    e2e_s: float | None


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a case has rounds enough."""

    fewest: int
    most: int
    minimum_duration_s: float | None = None
    """All counted rounds together last so long."""
    interval_ratio: float | None = None
    """The 95 % intervals reach at most so far to either side of their means, as a share of them."""

    def enough(self, rounds: Sequence[RoundResult]) -> bool:
        """Whether no further round is needed after these."""
        if len(rounds) >= self.most:
            return True
        if len(rounds) < self.fewest or sum(one.duration_s for one in rounds) < (self.minimum_duration_s or 0):
            return False
        return self.interval_ratio is None or _widest(rounds) <= self.interval_ratio


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % Student interval of the mean as a share of the mean; infinite for fewer than two values."""
    n = len(values)
    mean = statistics.fmean(values) if values else 0.0
    if n < 2 or mean == 0:
        return math.inf
    return student_t(n - 1) * statistics.stdev(values) / math.sqrt(n) / abs(mean)


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: closed forms for 1 and 2 degrees of freedom, else within 0.3 %.

    Abramowitz & Stegun 1964, 26.7.5 (the expansion of t around the normal quantile).
    """
    if degrees == 1:
        return math.tan(math.pi * 0.475)
    if degrees == 2:
        return 0.95 / math.sqrt(2 * 0.975 * 0.025)
    z, v = _Z, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def rate_failure(
    lateness_s: Sequence[float],
    latency_s: Sequence[float],
    rate_per_s: float,
    in_flight: int,
    *,
    given_up: bool = False,
) -> Failure | None:
    """Why an open loop's numbers are refused: its requests went out too late, or not at all. None: they did not.

    ``lateness_s``: how long after its due moment each request was written; ``latency_s``: how long answers took.
    """
    if not lateness_s or not latency_s:
        return None
    late, latency = statistics.fmean(lateness_s), statistics.fmean(latency_s)
    if late <= MOST_LATENESS * max(latency, 1 / rate_per_s) and not given_up:
        return None
    some = ", and some not at all" if given_up else ""
    message = (
        f"requests went out {late:.3g} s late on average{some}, where answers took {latency:.3g} s: {rate_per_s:g} "
        f"requests/s were not kept with at most {in_flight} in flight; lower the rate or allow more in flight"
    )
    return Failure(Reason.RATE_NOT_KEPT, message)


def _widest(rounds: Sequence[RoundResult]) -> float:
    """The widest of the intervals that decide: TTFT and decode rate, or the latency when nothing was streamed."""
    ttft = [one.ttft_s for one in rounds if one.ttft_s is not None]
    rate = [one.tokens_per_s for one in rounds if one.tokens_per_s is not None]
    if ttft and rate:
        return max(half_width(ttft), half_width(rate))
    return half_width([one.e2e_s for one in rounds if one.e2e_s is not None])
