"""Limits of a selection: read from text, and held against one case. Pure.

A limit on a time or a rate is kept surely when the whole 95 % interval (rounds as blocks) lies within it, and unsure
when the interval reaches over it or there is none. Peaks of memory, sizes and quality are held against it as they are.
What is not measured never passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from benchfleet_controller import metrics as registry
from benchfleet_controller import stats
from benchfleet_controller.compare import FEWEST_ROUNDS, MOST_ROUNDS_ADVISED

Row = Mapping[str, Any]


class Outcome(StrEnum):
    """What one limit, or all of them, say of a candidate."""

    PASS = "pass"
    UNSURE = "unsure"
    """The measurements cannot tell; ``why`` says what is missing."""
    FAIL = "fail"
    NOT_APPLICABLE = "not_applicable"
    """The limit has no meaning here: device memory of what runs on the processor."""

    @property
    def severity(self) -> int:
        """0: nothing is wrong, 1: unsure, 2: fails."""
        return {Outcome.UNSURE: 1, Outcome.FAIL: 2}.get(self, 0)


class Kind(StrEnum):
    """How a limit binds."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"
    ONE_OF = "one_of"
    ALL_OF = "all_of"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: the option that set it, the key of a case it binds, and the bound in base units or as words."""

    option: str
    metric: str
    kind: Kind
    bound: float | tuple[str, ...]

    def excess_ratio(self, value: float) -> float:
        """How far a value lies beyond the bound, as a share of it; 0 and below: within."""
        assert isinstance(self.bound, float)
        return (value / self.bound - 1) * (1 if self.kind is Kind.AT_MOST else -1)


@dataclass(frozen=True, slots=True)
class Judged:
    """One limit held against a case."""

    limit: Limit
    outcome: Outcome
    why: str = ""
    """For people; empty: a sure pass."""
    value: float | None = None
    interval: stats.Interval | None = None
    n: int | None = None
    """Values behind a percentile."""
    rounds_advised: int | None = None
    """About how many rounds in all would be enough; None: rounds do not decide it, or too many would be needed."""

    @property
    def what(self) -> str:
        """What is limited, in a word or two."""
        return label(self.limit.metric)

    @property
    def excess_ratio(self) -> float | None:
        """How far the value lies beyond the limit (below 0: within), as a share of it; None: there is no value."""
        return None if self.value is None else self.limit.excess_ratio(self.value)


_NUMBERS = {
    "max_ttft_p95": ("ttft_p95_s", Kind.AT_MOST),
    "max_latency_p95": ("e2e_p95_s", Kind.AT_MOST),
    "max_latency_avg": ("e2e_avg_s", Kind.AT_MOST),
    "min_tokens_per_s": ("decode_tokens_per_s", Kind.AT_LEAST),
    "max_ram": ("ram_peak_bytes", Kind.AT_MOST),
    "max_vram": ("vram_peak_bytes", Kind.AT_MOST),
    "max_disk": ("size_bytes", Kind.AT_MOST),
    "min_quality": ("quality_ratio", Kind.AT_LEAST),
}
_WORDS = {"license": ("license", Kind.ONE_OF), "capability": ("capabilities", Kind.ALL_OF)}
LIMIT_OPTIONS = (*_NUMBERS, *_WORDS)
"""Options that set limits, as attributes of the parsed command line."""

_LABELS = {
    "ttft_p95_s": "TTFT p95",
    "e2e_p95_s": "latency p95",
    "e2e_avg_s": "mean latency",
    "decode_tokens_per_s": "decode rate",
    "output_tokens_per_s": "throughput",
    "ram_peak_bytes": "RAM",
    "vram_peak_bytes": "VRAM",
    "size_bytes": "disk",
    "quality_ratio": "quality",
    "license": "licence",
    "capabilities": "capabilities",
}
_SCALES = {
    "_s": {"": "1", "s": "1", "ms": "0.001"},
    "_bytes": {"": "1", "b": "1"}
    | {f"{letter}b": str(1000**power) for power, letter in enumerate("kmgt", 1)}
    | {f"{letter}ib": str(1024**power) for power, letter in enumerate("kmgt", 1)},
    "_per_s": {"": "1"},
    "_ratio": {"": "1", "%": "0.01"},
}
"""Units that people write, by the ending of a metric's name; decimal, so that 70 % is what 0.7 is."""
_EXAMPLES = {"_s": "0.5 or 500ms", "_bytes": "2GiB, 800MB or 1000000", "_per_s": "20", "_ratio": "0.8 or 80%"}
_SPDX = {
    "apache": "apache-2.0",
    "apache-2": "apache-2.0",
    "apache2": "apache-2.0",
    "apache2.0": "apache-2.0",
    "bsd-2": "bsd-2-clause",
    "bsd-3": "bsd-3-clause",
    "cc-by-4": "cc-by-4.0",
    "gpl-2": "gpl-2.0",
    "gpl-3": "gpl-3.0",
}
_READINGS = {
    "ram_peak_bytes": ("runtime_rss_bytes",),
    "vram_peak_bytes": ("device_memory_runtime_bytes", "device_memory_used_bytes"),
}
"""The telemetry behind a metric, whose reasons tell why there is none."""
_MISSING = {
    "size_bytes": "the runtime does not tell it; a models.json with size_mb does (--models)",
    "quality_ratio": "no answer was scored; `benchfleet score RUN --expected FILE` or `--judge URL` scores them",
}


def label(metric: str) -> str:
    """What a metric is called in a sentence."""
    return _LABELS[metric]


def shown(metric: str, value: float) -> str:
    """A value for a sentence, with its unit."""
    unit = _unit(metric)
    if unit == "_bytes":
        return registry.human_bytes(value)
    if unit == "_ratio":
        return f"{value:.0%}"
    number = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{number} {'tokens/s' if unit == '_per_s' else 's'}"


def parse_limit(option: str, text: str) -> Limit:
    """A limit from one of `LIMIT_OPTIONS` and what was given to it. Raises ValueError, for people."""
    flag = f"--{option.replace('_', '-')}"
    if option in _WORDS:
        metric, kind = _WORDS[option]
        words = tuple(word for part in text.split(",") if (word := part.strip().lower()))
        if not words:
            raise ValueError(f"{flag} takes names with commas between them, not {text!r}")
        return Limit(flag, metric, kind, tuple(map(spdx, words)) if option == "license" else words)
    metric, kind = _NUMBERS[option]
    matched = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z%]*)", text.strip().lower())
    scale = _SCALES[_unit(metric)].get(matched[2]) if matched else None
    bound = float(Decimal(matched[1]) * Decimal(scale)) if matched and scale else 0.0
    if not 0 < bound < math.inf:
        raise ValueError(f"{flag} takes a number above 0 such as {_EXAMPLES[_unit(metric)]}, not {text!r}")
    return Limit(flag, metric, kind, bound)


def spdx(name: str) -> str:
    """A licence's name in lower case, and as SPDX writes it where it is a common variation of that."""
    words = re.sub(r"\b(?:the|licen[sc]e|version)\b|\bv(?=\d)", " ", name.lower())
    plain = re.sub(r"[\s,_-]+", "-", words).strip("-")
    return _SPDX.get(plain, plain)


def judge(limit: Limit, case: Row) -> Judged:
    """Hold a limit against a succeeded case: a row of `results.results_of` after `selection.with_facts`."""
    if not isinstance(limit.bound, float):
        why = (_why_licence if limit.kind is Kind.ONE_OF else _why_capabilities)(case, limit.bound)
        return Judged(limit, Outcome.FAIL if why else Outcome.PASS, why)
    value = case.get(limit.metric)
    if value is None:
        if limit.metric == "vram_peak_bytes" and _on_processor(case):
            return Judged(limit, Outcome.NOT_APPLICABLE, "runs on the processor, and no device memory was measured")
        return Judged(limit, Outcome.FAIL, f"{label(limit.metric)} unmeasured: {_why_unmeasured(limit.metric, case)}")
    excess = limit.excess_ratio(value)
    beyond = f"{excess:.0%}" if excess >= 0.1 else f"{excess:.1%}"
    beyond += " under " if limit.kind is Kind.AT_LEAST else " over "
    missed = f"{label(limit.metric)} {shown(limit.metric, value)}, {beyond}{shown(limit.metric, limit.bound)}"
    if _unit(limit.metric) in ("_bytes", "_ratio"):
        return Judged(limit, *((Outcome.FAIL, missed) if excess > 0 else (Outcome.PASS, "")), value)
    metric = registry.BY_NAME[limit.metric]
    n = case.get(metric.n_column) if metric.n_column else None
    if metric.quantile is not None and not stats.supports_percentile(n or 0, metric.quantile):
        return _judge_few(limit, metric.quantile, case, n or 0, missed)
    return _judge_interval(limit, case, n, missed)


def _judge_few(limit: Limit, q: float, case: Row, n: int, missed: str) -> Judged:
    """Too few values for the percentile; it cannot lie below the median, though."""
    value, rounds = case[limit.metric], case.get("rounds") or 0
    median = (case.get("intervals") or {}).get(limit.metric.replace(f"_p{round(q * 100)}_", "_p50_"))
    if q > 0.5 and rounds >= FEWEST_ROUNDS and median and limit.excess_ratio(median[0]) > 0:
        return Judged(limit, Outcome.FAIL, f"{missed} (as the median is)", value, None, n)
    needed = stats.fewest_for_percentile(q)
    advised = max(FEWEST_ROUNDS, math.ceil(needed * rounds / n)) if n and rounds else None
    why = f"{label(limit.metric)}: {needed} requests are needed, {n} were measured{_advice(advised)}"
    return Judged(limit, Outcome.UNSURE, why, value, None, n, advised)


def _judge_interval(limit: Limit, case: Row, n: int | None, missed: str) -> Judged:
    assert isinstance(limit.bound, float)
    value, rounds = float(case[limit.metric]), case.get("rounds") or 0
    ends = (case.get("intervals") or {}).get(limit.metric)
    if not ends or rounds < FEWEST_ROUNDS:
        advised = max(FEWEST_ROUNDS, rounds + 1)
        why = f"{label(limit.metric)}: {advised} rounds are needed, {rounds} were measured{_advice(advised)}"
        return Judged(limit, Outcome.UNSURE, why, value, None, n, advised)
    interval = stats.Interval(*ends)
    beyond = [limit.excess_ratio(end) > 0 for end in ends]
    said = f" ({interval.low:.3g}–{interval.high:.3g})"
    if all(beyond):
        return Judged(limit, Outcome.FAIL, missed + said, value, interval, n)
    if not any(beyond):
        return Judged(limit, Outcome.PASS, "", value, interval, n)
    # An interval narrows by the root of the rounds.
    room, half = abs(value - limit.bound), (interval.high - interval.low) / 2
    most = MOST_ROUNDS_ADVISED
    enough = math.ceil(rounds * (half / room) ** 2) if half < room * math.sqrt(most) else most + 1
    narrowed = max(enough, rounds + 1) if enough <= most else None
    why = f"{label(limit.metric)} {shown(limit.metric, value)}{said} may be on either side of "
    why += shown(limit.metric, limit.bound) + _advice(narrowed)
    return Judged(limit, Outcome.UNSURE, why, value, interval, n, narrowed)


def _why_licence(case: Row, allowed: tuple[str, ...]) -> str:
    """Why the licence fails; empty: it does not. Of licences to choose from, one is enough."""
    name = case.get("license")
    if not name:
        return "licence unknown: the runtime does not tell it"
    choices = [spdx(part) for part in re.split(r"\s+or\s+", str(name).strip("() "), flags=re.IGNORECASE)]
    return "" if set(choices) & set(allowed) else f"licence {name}"


def _why_capabilities(case: Row, wanted: tuple[str, ...]) -> str:
    tags = case.get("capabilities")
    if tags is None:
        return "capabilities unknown: no models.json tells them (--models)"
    missing = [one for one in wanted if one not in {str(tag).lower() for tag in tags}]
    return f"lacks {', '.join(missing)}" if missing else ""


def _why_unmeasured(metric: str, case: Row) -> str:
    reasons = case.get("unmeasured") or {}
    told = next((str(reasons[name]) for name in _READINGS.get(metric, ()) if reasons.get(name)), None)
    if told is None and case.get("remote") and metric in _READINGS:
        told = "the endpoint is on another machine"
    if told is None and case.get("stream") is False and metric in ("ttft_p95_s", "decode_tokens_per_s"):
        told = "answers were not streamed"
    return told or _MISSING.get(metric, "no request gave a value")


def _on_processor(case: Row) -> bool:
    return case.get("device") == "cpu" and str(case.get("execution_provider") or "").lower().startswith("cpu")


def _advice(rounds: int | None) -> str:
    return f": --rounds {rounds}" if rounds else ""


def _unit(metric: str) -> str:
    return next(one for one in ("_per_s", "_bytes", "_ratio", "_s") if metric.endswith(one))
