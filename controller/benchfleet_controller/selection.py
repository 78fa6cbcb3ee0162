"""Which model to take: candidates under limits, the Pareto front, and a choice with its reasons. Pure.

A candidate is a model's variant on a host, device and runtime under one load. Prompt set and sampling are the
workload: of several the worst value counts, and only what was measured under all of them can surely pass. Of several
cases of one candidate under one workload, in whatever runs, the newest counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchfleet_controller import metrics as registry
from benchfleet_controller import stats
from benchfleet_controller.checks import Code, check
from benchfleet_controller.compare import THRESHOLD, Rounds, Verdict, compare
from benchfleet_controller.dimensions import CONDITIONS
from benchfleet_controller.plan import ModelFacts
from benchfleet_controller.selection_limits import Judged, Limit, Outcome, judge

Row = Mapping[str, Any]

_LOAD = ("concurrency", "request_rate_per_s", "arrival")
_WORKLOAD = tuple(name for name in CONDITIONS if name not in (*_LOAD, "round_duration_s"))
_HIGHER = frozenset({"decode_tokens_per_s", "output_tokens_per_s", "quality_ratio"})
_DIMENSIONS = ("e2e_p95_s", "decode_tokens_per_s", "ram_peak_bytes", "vram_peak_bytes", "size_bytes")
PREFERENCES = {
    "latency": "e2e_p95_s",
    "ttft": "ttft_p95_s",
    "throughput": "output_tokens_per_s",
    "memory": "memory",
    "disk": "size_bytes",
    "quality": "quality_ratio",
}
"""What may decide among those that pass, and by which metric (memory: the device's on a GPU, else the host's)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What speaks against a candidate whatever the limits."""

    outcome: Outcome
    what: str
    """In a word or two."""
    why: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """What could be chosen, with its evidence."""

    name: str
    cases: tuple[Row, ...]
    """The newest case of each workload."""
    older: int
    """How many older cases those took the place of."""
    problems: tuple[Problem, ...] = ()
    judged: tuple[Judged, ...] = ()
    """Each limit in the workload where it does worst; empty for what did not run to its end."""
    dominated_by: tuple[str, ...] = ()
    """Names on the front that are nowhere worse and somewhere better; empty too for what fails."""

    @property
    def outcome(self) -> Outcome:
        """The worst of all problems and limits."""
        against = self._against()
        return against[0].outcome if against else Outcome.PASS

    @property
    def against(self) -> tuple[Problem | Judged, ...]:
        """What makes it fail; when nothing does, what makes it unsure."""
        return tuple(one for one in self._against() if one.outcome is self.outcome)

    def _against(self) -> list[Problem | Judged]:
        every: tuple[Problem | Judged, ...] = (*self.problems, *self.judged)
        found = [one for one in every if one.outcome.severity]
        return sorted(found, key=lambda one: -one.outcome.severity)

    @property
    def on_gpu(self) -> bool:
        """Whether its memory is that of a GPU."""
        return self.cases[0].get("device") == "gpu"

    def worst_case(self, metric: str) -> Row | None:
        """The case whose value counts; None: one of the workloads lacks it."""
        if any(case.get(metric) is None for case in self.cases):
            return None
        return max(self.cases, key=lambda case: _cost(metric, case[metric]))

    def value(self, metric: str) -> float | None:
        """The worst value over the workloads; None: one of them lacks it."""
        case = self.worst_case(metric)
        found: float | None = None if case is None else case[metric]
        return found


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The next best under the same load, against the chosen one in the workload where it does worst."""

    candidate: Candidate
    ratio: float | None
    """Its value of the deciding metric over that of the chosen one."""
    interval: stats.Interval | None
    sure: bool
    """Whether they surely differ, or surely do not by more than `compare.THRESHOLD`."""
    why: str
    """What is missing when not sure; when they are the same, that."""


@dataclass(frozen=True, slots=True)
class Selection:
    """All of one selection."""

    limits: tuple[Limit, ...]
    candidates: tuple[Candidate, ...]
    """Best first."""
    dimensions: tuple[str, ...]
    """Metrics the front was drawn over."""
    metric: str
    """The metric that decides among those that pass."""
    chosen: Candidate | None
    """None: everything fails."""
    runner_up: RunnerUp | None
    better_unsure: Candidate | None
    """What would win if it surely passed."""
    nearest: Candidate | None
    """When everything fails: what misses least."""

    @property
    def front(self) -> tuple[Candidate, ...]:
        """What does not fail and is not beaten in every dimension by another such one."""
        return tuple(one for one in self.candidates if one.outcome is not Outcome.FAIL and not one.dominated_by)


def with_facts(case: Row, facts: Sequence[ModelFacts], source: str) -> dict[str, Any]:
    """A case with what a ``models.json`` says of its model: ``capabilities`` and ``capabilities_source`` (None: it says
    nothing), and ``size_bytes`` with ``size_source`` where the runtime did not tell the size.
    """
    names = {str(case[key]).lower() for key in ("model", "model_asked", "variant") if case.get(key)}
    known = next((one for one in facts if one.alias.lower() in names), None)
    size, size_source = case.get("size_bytes"), "runtime"
    if size is None and known is not None:
        size, size_source = known.size_bytes, source
    return dict(case) | {
        "capabilities": None if known is None else list(known.capabilities),
        "capabilities_source": None if known is None else source,
        "size_bytes": size,
        "size_source": None if size is None else size_source,
    }


def select(
    cases: Sequence[Row],
    limits: Sequence[Limit],
    prefer: str = "latency",
    rounds: Mapping[tuple[str, str], Rounds] | None = None,
) -> Selection:
    """Judge candidates and choose one: of those that surely pass, else of the unsure ones, the best by ``prefer``.

    ``cases`` are rows of `results.results_of`, oldest first, after `with_facts`; ``rounds`` holds the deciding metric
    by (metric, case_id), for the interval of the runner-up. Raises ValueError for an unknown preference, and for one
    that was measured for nothing that could be chosen.
    """
    if prefer not in PREFERENCES:
        raise ValueError(f"unknown preference {prefer!r}: known are {', '.join(PREFERENCES)}")
    judged = [_judged(one, limits) for one in _candidates(cases)]
    able = [one for one in judged if one.outcome is not Outcome.FAIL]
    if able and all(one.value(_deciding(one, prefer)) is None for one in able):
        raise ValueError(f"{prefer} was measured for nothing that could be chosen: give another --prefer")
    dimensions = _dimensions(judged, limits, prefer)

    def costs(one: Candidate) -> tuple[float, ...]:
        return tuple(_cost(metric, one.value(metric)) for metric in (_deciding(one, prefer), *dimensions))

    spent = [(one, [_spent(one, metric) for metric in dimensions]) for one in able]
    above = {
        one.name: [other.name for other, less in spent if _dominates(less, here, dimensions)] for one, here in spent
    }
    ordered = [
        replace(one, dominated_by=tuple(name for name in above.get(one.name, ()) if not above[name])) for one in judged
    ]
    ordered.sort(key=lambda one: (one.outcome.severity, costs(one)))
    chosen = ordered[0] if able else None
    runner_up = better_unsure = None
    if chosen is not None:
        others = [one for one in ordered[1:] if one.outcome is not Outcome.FAIL and _load(one) == _load(chosen)]
        runner_up = _runner_up(chosen, others[0], prefer, rounds or {}) if others else None
        better_ones = (one for one in ordered if one.outcome is Outcome.UNSURE and costs(one) < costs(chosen))
        better_unsure = next(better_ones, None) if chosen.outcome is Outcome.PASS else None
    return Selection(
        limits=tuple(limits),
        candidates=tuple(ordered),
        dimensions=dimensions,
        metric=_deciding(chosen, prefer) if chosen else PREFERENCES[prefer],
        chosen=chosen,
        runner_up=runner_up,
        better_unsure=better_unsure,
        nearest=None if chosen else min(ordered, key=_miss, default=None),
    )


def _candidates(cases: Sequence[Row]) -> list[Candidate]:
    """Candidates with their problems, in the order of their first cases."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Row]]] = {}
    for case in cases:
        what = (case.get("variant") or case.get("model"), case.get("device"), case.get("host"), case.get("runtime"))
        workload = tuple(case.get(name) for name in _WORKLOAD)
        key = (*what, *(case.get(name) for name in _LOAD))
        groups.setdefault(key, {}).setdefault(workload, []).append(case)
    workloads = list(dict.fromkeys(workload for group in groups.values() for workload in group))
    several_runtimes = len({case.get("runtime") for case in cases}) > 1
    newest = [tuple(found[-1] for found in group.values()) for group in groups.values()]
    names = [_name(kept[0], "model", several_runtimes) for kept in newest]
    found = []
    for name, group, kept in zip(names, groups.values(), newest, strict=True):
        problems = [problem for case in kept for problem in _problems(case, len(workloads) > 1)]
        if missing := [_apart(one, workloads) for one in workloads if one not in group]:
            problems.append(Problem(Outcome.UNSURE, "workload", f"not measured with {', or '.join(missing)}"))
        found.append(
            Candidate(
                name=name if names.count(name) == 1 else _name(kept[0], "variant", several_runtimes),
                cases=kept,
                older=sum(map(len, group.values())) - len(group),
                problems=tuple(dict.fromkeys(problems)),
            )
        )
    return found


def _name(case: Row, key: str, with_runtime: bool) -> str:
    rate = case.get("request_rate_per_s")
    load = f"{case.get('concurrency')} in flight"
    if rate is not None:
        spacing = f" {case['arrival']}" if case.get("arrival") else ""
        load = f"{rate:g} requests/s{spacing}, at most {load}"
    parts = [case.get("device") or "unknown device", *([case.get("runtime")] if with_runtime else []), load]
    return f"{case.get(key) or case.get('model')} on {case.get('host')} ({', '.join(map(str, parts))})"


def _apart(workload: tuple[Any, ...], workloads: Sequence[tuple[Any, ...]]) -> str:
    """A workload by what sets it apart from the others."""
    varying = [i for i in range(len(_WORKLOAD)) if len({one[i] for one in workloads}) > 1]
    return " and ".join(f"{_WORKLOAD[i].replace('_', ' ')} {workload[i]}" for i in varying)


def _problems(case: Row, several_workloads: bool) -> list[Problem]:
    where = f" with prompt set {case.get('prompt_set')}" if several_workloads else ""
    status, reason = case.get("status"), case.get("reason")
    if status in ("pending", "running"):
        return [Problem(Outcome.FAIL, status, f"{status}{where}: `benchfleet collect` fetches what there is")]
    if status != "succeeded":
        told = ": ".join(str(part) for part in (reason, case.get("message")) if part)
        return [Problem(Outcome.FAIL, str(reason or status), f"{status}{where}" + (f": {told}" if told else ""))]
    # What ran elsewhere than it was asked to says nothing of the candidate.
    found = [
        Problem(Outcome.FAIL, "device", one.message) for one in check([case]) if one.code is Code.DEVICE_CONTRADICTED
    ]
    if case.get("failed"):
        why = f"{case['failed']} of {case['requests']} requests failed{where}"
        found.append(Problem(Outcome.UNSURE, "failed requests", why))
    return found


def _judged(candidate: Candidate, limits: Sequence[Limit]) -> Candidate:
    if any(case.get("status") != "succeeded" for case in candidate.cases):
        return candidate

    def badness(one: Judged) -> tuple[int, float]:
        return one.outcome.severity, math.inf if one.excess_ratio is None else one.excess_ratio

    each = ([judge(limit, case) for case in candidate.cases] for limit in limits)
    return replace(candidate, judged=tuple(max(found, key=badness) for found in each))


def _dimensions(candidates: Sequence[Candidate], limits: Sequence[Limit], prefer: str) -> tuple[str, ...]:
    """What matters to the front: `_DIMENSIONS`, what is limited or preferred, and what keeps the comparison fair."""
    extra = [limit.metric for limit in limits if limit.metric == "ttft_p95_s"]
    if prefer != "memory":
        extra.append(PREFERENCES[prefer])
    if len({_load(one) for one in candidates}) > 1:
        extra.append("output_tokens_per_s")  # a heavier load answers later, and more: by latency alone it always loses
    extra.append("quality_ratio")
    measured = [one for one in (*_DIMENSIONS, *extra) if any(c.value(one) is not None for c in candidates)]
    return tuple(dict.fromkeys(measured))


def _dominates(one: Sequence[float | None], other: Sequence[float | None], dimensions: Sequence[str]) -> bool:
    """Whether ``one`` is nowhere worse and somewhere better. What only one of them measured leaves both standing."""
    if any((here is None) != (there is None) for here, there in zip(one, other, strict=True)):
        return False
    ours, theirs = (list(map(_cost, dimensions, side)) for side in (one, other))
    return all(here <= there for here, there in zip(ours, theirs, strict=True)) and ours != theirs


def _spent(candidate: Candidate, metric: str) -> float | None:
    """A dimension's value: of memory, that of the device on a GPU and else that of the host."""
    if metric == ("ram_peak_bytes" if candidate.on_gpu else "vram_peak_bytes"):
        return None
    return candidate.value(metric)


def _deciding(candidate: Candidate, prefer: str) -> str:
    if prefer == "memory":
        return "vram_peak_bytes" if candidate.on_gpu else "ram_peak_bytes"
    return PREFERENCES[prefer]


def _cost(metric: str, value: float | None) -> float:
    """Lower is better; unmeasured comes last."""
    if value is None:
        return math.inf
    return -value if metric in _HIGHER else float(value)


def _load(candidate: Candidate) -> tuple[Any, ...]:
    return tuple(candidate.cases[0].get(name) for name in _LOAD)


def _runner_up(chosen: Candidate, other: Candidate, prefer: str, rounds: Mapping[tuple[str, str], Rounds]) -> RunnerUp:
    metric = _deciding(chosen, prefer)
    if metric != _deciding(other, prefer):
        return RunnerUp(other, None, None, False, "memory of a GPU and of a host are not the same thing")
    there = other.worst_case(metric)
    workload = [there.get(name) for name in _WORKLOAD] if there else None
    here = next((case for case in chosen.cases if [case.get(name) for name in _WORKLOAD] == workload), None)
    if there is None or here is None:
        return RunnerUp(other, None, None, False, "not measured under the same conditions")
    if metric not in registry.BY_NAME:
        return RunnerUp(other, stats.ratio(there[metric], here[metric]), None, True, "")
    # Under names of their own, so that only what they are differs, and the conditions are held equal.
    blank = dict.fromkeys(("model_asked", "device_asked", "runtime", "round_duration_s"))
    rows = [{**here, **blank, "host": chosen.name}, {**there, **blank, "host": other.name}]
    found = compare(rows, ("host",), chosen.name, [metric], rounds).rows[-1]
    interval = None if found.low is None or found.high is None else stats.Interval(found.low, found.high)
    sure = found.verdict in (Verdict.BETTER, Verdict.WORSE, Verdict.SAME)
    why = f"the same within {THRESHOLD:.0%}" if found.verdict is Verdict.SAME else found.explanation
    return RunnerUp(other, found.ratio, interval, sure, why)


def _miss(candidate: Candidate) -> tuple[int, int, float]:
    """How far from passing: what did not run is farthest, then what no number tells, then the largest excess."""
    misses = [one.excess_ratio for one in candidate.judged if one.outcome is Outcome.FAIL]
    failed = sum(one.outcome is Outcome.FAIL for one in candidate.problems)
    return failed, misses.count(None), max((miss for miss in misses if miss is not None), default=0.0)
