"""How far what a client says lies from what the server did. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.peers.answers import Answer


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median and 99th percentile, in milliseconds."""

    mean: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one run. None: the client does not report it."""

    ttft: Spread | None
    """Per request, |client - server|."""
    itl: Spread | None
    """Of each request's mean time between tokens."""
    gaps: Spread | None
    """Of each single gap between chunks."""


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which that share lies, linearly interpolated."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(values_s: Sequence[float]) -> Spread | None:
    """Of values in seconds; None without any."""
    if not values_s:
        return None
    return Spread(statistics.fmean(values_s) * 1e3, quantile(values_s, 0.5) * 1e3, quantile(values_s, 0.99) * 1e3)


def errors_by_request(answers: Sequence[Answer], truths: Sequence[Answer]) -> Errors:
    """Each request against its own truth: both in the same order, one stream at a time."""
    pairs = list(zip(answers, truths, strict=True))
    ttft = [abs(said.ttft_s - true.ttft_s) for said, true in pairs if said.ttft_s and true.ttft_s]
    itl = [abs(said.itl_s - true.itl_s) for said, true in pairs if said.itl_s and true.itl_s]
    gaps = [
        abs(one - other)
        for said, true in pairs
        if len(said.gaps_s) == len(true.gaps_s)
        for one, other in zip(said.gaps_s, true.gaps_s, strict=True)
    ]
    return Errors(spread(ttft), spread(itl), spread(gaps))


def errors_of_aggregates(answers: Sequence[Answer], truths: Sequence[Answer]) -> Errors:
    """Mean, median and p99 against the server's: for streams side by side, whose order no peer tells."""
    return Errors(
        _between([one.ttft_s for one in answers], [one.ttft_s for one in truths]),
        _between([one.itl_s for one in answers], [one.itl_s for one in truths]),
        _between([gap for one in answers for gap in one.gaps_s], [gap for one in truths for gap in one.gaps_s]),
    )


def _between(said: Sequence[float | None], true: Sequence[float | None]) -> Spread | None:
    client = spread([value for value in said if value is not None])
    server = spread([value for value in true if value is not None])
    if client is None or server is None:
        return None
    return Spread(abs(client.mean - server.mean), abs(client.p50 - server.p50), abs(client.p99 - server.p99))


def median_spread(spreads: Sequence[Spread | None]) -> Spread | None:
    """Each statistic's median over repetitions."""
    found = [one for one in spreads if one is not None]
    if not found:
        return None
    return Spread(*(statistics.median(getattr(one, name) for one in found) for name in ("mean", "p50", "p99")))


def median_errors(runs: Sequence[Errors]) -> Errors:
    """Each statistic's median over repetitions."""
    return Errors(*(median_spread([getattr(one, name) for one in runs]) for name in ("ttft", "itl", "gaps")))


@dataclass(frozen=True, slots=True)
class Rate:
    """A client's decode rate on one stream shape, medians over requests."""

    said: float | None
    true: float
    remark: str

    @property
    def error(self) -> float | None:
        """Relative to the truth."""
        return None if self.said is None else self.said / self.true - 1


def rate_of(answers: Sequence[Answer], truths: Sequence[Answer]) -> Rate:
    """Medians over the requests of one shape."""
    said = [one.tokens_per_s for one in answers if one.tokens_per_s is not None]
    true = statistics.median(one.tokens_per_s for one in truths if one.tokens_per_s is not None)
    remark = "+".join(sorted({one.remark for one in answers if one.remark}))
    return Rate(statistics.median(said) if said else None, true, remark)


def percent(ratio: float) -> str:
    """With a sign, unless it rounds to nothing."""
    text = f"{ratio:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text
