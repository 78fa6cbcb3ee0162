"""How much a machine can take: the knee of a load sweep, and goodput under latency limits. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from benchfleet_controller import stats

SATURATED = 0.95
"""Share of the largest throughput from which on more load brings hardly more."""
FEWEST_LEVELS = 3


@dataclass(frozen=True, slots=True)
class Level:
    """One step of a load sweep."""

    load: float
    """Concurrency of a closed loop, or requests a second of an open one."""
    throughput_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Knee:
    """Where more load begins to cost more than it brings."""

    load: float | None
    """The level with the largest power; None: fewer than 3 levels were measured."""
    power: float | None
    """Throughput/latency there, in 1/s²; good only to compare levels with."""
    saturation_load: float | None
    """The least level that reaches 95 % of the largest throughput; None: throughput still grows at the last one."""
    reached: bool
    """Whether the sweep went past the knee."""
    why: str
    """What is wanting; empty when knee and saturation were found."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Latencies, in seconds, within which a request is good; None: any."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Limits from ``ttft=0.5,tpot=50ms,e2e=10``: seconds, or with the unit ``s`` or ``ms``.

        Raises ValueError, for people, for an unknown or repeated name, and for what is no positive time.
        """
        known = {field.name.removesuffix("_s"): field.name for field in fields(cls)}
        found: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if name not in known or not equals:
                raise ValueError(f"{part.strip()!r} is no limit: write NAME=SECONDS, with a name of {', '.join(known)}")
            if known[name] in found:
                raise ValueError(f"the limit {name} is given twice")
            found[known[name]] = _time(name, value)
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests within every limit."""

    requests: int
    """All that were sent, failed ones too."""
    good: int
    unmeasured: int
    """Ok requests that lack a limited time; not counted good."""
    good_ratio: float | None
    """``good``/``requests``; None: there were none."""
    interval: stats.Interval | None
    """95 % Wilson interval of it, taking requests for independent: too narrow where rounds differ."""
    goodput_per_s: float | None
    """``good``/wall time; None: the wall time is not known."""


def knee(levels: Sequence[Level]) -> Knee:
    """The knee of a sweep: the level where throughput/latency, the *power*, is largest (Kleinrock 1979, "Power and
    deterministic rules of thumb for probabilistic problems in computer communications", ICC).

    Levels may come in any order; those without a positive, finite latency and throughput count as unmeasured.
    """
    used = sorted(
        (level for level in levels if 0 < level.latency_s < math.inf and 0 < level.throughput_per_s < math.inf),
        key=lambda level: level.load,
    )
    if len({level.load for level in used}) < FEWEST_LEVELS:
        return Knee(None, None, None, False, f"at least {FEWEST_LEVELS} measured levels of load are needed")
    best = max(used, key=lambda level: level.throughput_per_s / level.latency_s)
    most = max(level.throughput_per_s for level in used)
    saturation = next(level.load for level in used if level.throughput_per_s >= SATURATED * most)
    last = used[-1].load
    why = ""
    if best.load == last:
        why = f"the last level, {last:g}, is still the best one: try higher ones"
    elif saturation == last:
        why = f"throughput still grows at the last level, {last:g}: try higher ones to see it saturate"
    elif best.load == used[0].load:
        why = f"the lowest level, {best.load:g}, is the best one: lower ones, where there are any, may be better still"
    return Knee(
        load=best.load,
        power=best.throughput_per_s / best.latency_s,
        saturation_load=None if saturation == last else saturation,
        reached=best.load != last,
        why=why,
    )


def goodput(
    ok: Sequence[bool] | npt.NDArray[np.bool_],
    times: Mapping[str, Sequence[float | None] | stats.Floats],
    limits: Limits,
    wall_s: float | None = None,
) -> Goodput:
    """Requests within every limit, and their rate over ``wall_s`` (after Zhong et al. 2024, "DistServe", whose goodput
    is the largest such rate).

    ``ok`` is true where a request did not fail, shape (requests,); ``times`` holds ``ttft_s``, ``tpot_s``, ``e2e_s`` of
    the same shape, as far as they are limited (NaN or None: unmeasured). A failed request is never good. Raises
    ValueError when a limited time is not among them or has another shape.
    """
    succeeded = np.asarray(ok, np.bool_)
    good, measured = succeeded.copy(), np.ones_like(succeeded)
    for field in fields(limits):
        limit = getattr(limits, field.name)
        if limit is None:
            continue
        if field.name not in times:
            raise ValueError(f"{field.name} is limited but not among the times")
        values = np.asarray(times[field.name], np.float64)
        if values.shape != succeeded.shape:
            raise ValueError(f"{field.name} has the shape {values.shape}, the requests {succeeded.shape}")
        measured &= ~np.isnan(values)
        good &= values <= limit
    n, met = len(succeeded), int(good.sum())
    return Goodput(
        requests=n,
        good=met,
        unmeasured=int((succeeded & ~measured).sum()),
        good_ratio=met / n if n else None,
        interval=stats.share_interval(met, n) if n else None,
        goodput_per_s=met / wall_s if wall_s is not None and wall_s > 0 else None,
    )


def _time(name: str, text: str) -> float:
    matched = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|)", text)
    value = float(matched[1]) / (1000 if matched[2] == "ms" else 1) if matched else 0.0
    if not value > 0:
        raise ValueError(f"the limit {name}={text} is no positive time, such as 0.5, 0.5s or 500ms")
    return value
