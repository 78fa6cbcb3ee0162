"""What a run's results come to, in a few sentences with their numbers. Pure.

Only what the intervals support is claimed: where they overlap, or rounds are too few for any, a difference is called
unsure. Cases are set against each other when they did the same work; rows are those of `results.results_of`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchfleet.failures import Reason
from benchfleet_controller.checks import load_shape
from benchfleet_controller.dimensions import CONDITIONS
from benchfleet_controller.metrics import BY_NAME, human_bytes
from benchfleet_controller.outliers import Outlier
from benchfleet_controller.proof import Verdict

Row = Mapping[str, Any]

MOST = 6
"""Sentences that a person still reads."""
_NAMED = ("host", "model", "device", "runtime", "path", "prompt_set")
_COLD_TIMES, _COLD_S = 3.0, 0.1
_KEPT_RATIO = 0.5
_SPREAD_RATIO = 0.1
_OUTLIER_RATIO = 0.02


def findings(cases: Sequence[Row], outliers: Sequence[Outlier] = ()) -> tuple[str, ...]:
    """The sentences, the most telling first; none where nothing was measured."""
    ran = [case for case in cases if (case.get("requests") or 0) > (case.get("failed") or 0)]
    names = _names(ran)
    # An open loop that did not keep its rate measured its own lateness.
    kept = [case for case in ran if case.get("reason") != Reason.RATE_NOT_KEPT]
    true = [case for case in kept if case.get("device_proof") != Verdict.CONTRADICTED]
    sentences = [
        *_fastest(true, names),
        *_contradicted(ran, names),
        *_bounds(true, names),
        *_disturbed(ran, names),
        *_energy(true, names),
        *_cold(true, names),
        *_kept(true, names),
        *_outlying(outliers, ran, names),
    ]
    return tuple(sentences[:MOST])


def _fastest(cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    """The ends of the largest group of cases that did the same work, and whether they surely differ."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for case in cases:
        groups.setdefault(tuple(case.get(name) for name in CONDITIONS), []).append(case)
    group = max(groups.values(), key=len, default=[])
    rated = [case for case in group if case.get("decode_tokens_per_s")]
    metric, unit = ("decode_tokens_per_s", "tokens/s") if len(rated) == len(group) else ("e2e_avg_s", "s an answer")
    known = sorted((case for case in group if case.get(metric)), key=lambda case: float(case[metric]))
    if not known:
        return
    if metric == "decode_tokens_per_s":
        known.reverse()
    best, worst = known[0], known[-1]
    if best is worst:
        yield f"{_capital(names[best['case_id']])} makes {_figure(best, metric)} {unit} ({_rounds(best)})."
        return
    times = max(worst[metric], best[metric]) / min(worst[metric], best[metric])
    told = (
        f"Fastest of {len(known)}: {names[best['case_id']]} with {_figure(best, metric)} {unit} ({_rounds(best)}); "
        f"slowest: {names[worst['case_id']]} with {_figure(worst, metric)} ({_rounds(worst)}), {times:.2f} times slower"
    )
    parted = _parted(best, worst, metric)
    if parted is None:
        yield f"{told}; too few rounds to be sure."
    elif parted:
        yield f"{told}; their intervals lie apart."
    else:
        yield f"{told}; their intervals overlap, so which is faster is not sure."


def _parted(one: Row, other: Row, metric: str) -> bool | None:
    here, there = ((case.get("intervals") or {}).get(metric) for case in (one, other))
    if not here or not there:
        return None
    return bool(here[1] < there[0] or there[1] < here[0])


def _contradicted(cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    found = [case for case in cases if case.get("device_proof") == Verdict.CONTRADICTED]
    if found:
        name, evidence = _capital(names[found[0]["case_id"]]), "; ".join(found[0].get("device_evidence") or ())
        more = f" ({len(found) - 1} more cases alike)" if len(found) > 1 else ""
        yield f"{name} is in no comparison, its device is contradicted: {evidence}{more}."


def _bounds(cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    """What bounds the cases nearest to and farthest from their machine's limit."""
    known = sorted(
        (case for case in cases if case.get("decode_limit_ratio") is not None and case.get("efficiency")),
        key=lambda case: -float(case["decode_limit_ratio"]),
    )
    for case in dict.fromkeys(str(one["case_id"]) for one in (*known[:1], *known[-1:])):
        mine = next(one for one in known if one["case_id"] == case)
        yield f"{_capital(names[case])}: {mine['efficiency']}."


def _disturbed(cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    ranked = sorted(cases, key=lambda case: (-(case.get("rounds_invalid") or 0), -(case.get("rounds_suspicious") or 0)))
    for case in ranked[:1]:
        invalid, suspicious = case.get("rounds_invalid") or 0, case.get("rounds_suspicious") or 0
        if invalid or suspicious:
            what = f"{invalid} invalid" if invalid else f"{suspicious} suspicious"
            worst = "; ".join(one["worst"] for one in (case.get("round_troubles") or ())[:2])
            yield f"{_capital(names[case['case_id']])} has {what} of {case.get('rounds')} rounds: {worst}."
    spread = max(cases, key=lambda case: case.get("spread_ratio") or 0.0, default=None)
    if spread is not None and (spread.get("spread_ratio") or 0.0) > _SPREAD_RATIO:
        yield f"Rounds of {names[spread['case_id']]} lie {spread['spread_ratio']:.0%} of their mean apart."


def _energy(cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    metered = [case for case in cases if case.get("kwh_per_million_tokens") is not None]
    scopes = {case.get("energy_scope") for case in metered}
    if len(metered) < 2 or len(scopes) > 1:
        return
    metered.sort(key=lambda case: float(case["kwh_per_million_tokens"]))
    least, most = metered[0], metered[-1]
    yield (
        f"A million output tokens take {least['kwh_per_million_tokens']:.3g} kWh on {names[least['case_id']]} and "
        f"{most['kwh_per_million_tokens']:.3g} on {names[most['case_id']]} ({least['energy_scope']}, gross)."
    )


def _cold(cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    """The first request after a load, where it waits much longer than later ones."""

    def times(case: Row) -> float:
        cold, warm = case.get("cold_ttft_s"), case.get("ttft_p50_s")
        return cold / warm if cold and warm and cold - warm > _COLD_S else 0.0

    worst = max(cases, key=times, default=None)
    if worst is not None and times(worst) >= _COLD_TIMES:
        load = "" if worst.get("load_s") is None else f", after {worst['load_s']:.2g} s of loading"
        yield (
            f"The first request after a load waits {worst['cold_ttft_s']:.2g} s for its first token on "
            f"{names[worst['case_id']]} instead of {worst['ttft_p50_s']:.2g} s{load}."
        )


def _kept(cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    """Memory that unloading does not give back."""
    held = [
        (1 - case["ram_given_back_bytes"] / case["ram_before_unload_bytes"], case)
        for case in cases
        if case.get("unload_s") is not None
        and case.get("ram_before_unload_bytes")
        and case.get("ram_given_back_bytes") is not None
    ]
    share, case = max(held, key=lambda pair: pair[0], default=(0.0, {}))
    if share > _KEPT_RATIO:
        size = human_bytes(case["ram_before_unload_bytes"])
        yield f"After unloading, {names[case['case_id']]} still holds {share:.0%} of its {size} until the runtime ends."


def _outlying(outliers: Sequence[Outlier], cases: Sequence[Row], names: Mapping[str, str]) -> Iterator[str]:
    requests = {one.request_id: one for one in outliers if one.case_id in names}
    total = sum(int(case["requests"]) - int(case.get("failed") or 0) for case in cases)
    if total and len(requests) > _OUTLIER_RATIO * total:
        (reason, n), *_ = Counter(one.reason for one in requests.values()).most_common(1)
        yield f"{len(requests)} of {total} requests took unusually long, most ({n}) for {reason.replace('_', ' ')}."


def _names(cases: Iterable[Row]) -> dict[str, str]:
    """Each case by what sets it apart from the others; at least its host."""
    listed = list(cases)
    varying = [name for name in _NAMED if len({case.get(name) for case in listed}) > 1] or ["host"]
    shapes = {load_shape(case) for case in listed}
    return {
        str(case["case_id"]): " / ".join(
            [str(case[name]) for name in varying if case.get(name)] + ([load_shape(case)] if len(shapes) > 1 else [])
        )
        for case in listed
    }


def _figure(case: Row, metric: str) -> str:
    text = BY_NAME[metric].human(case[metric])
    ends = (case.get("intervals") or {}).get(metric)
    return text if not ends else f"{text} ±{BY_NAME[metric].human((ends[1] - ends[0]) / 2)}"


def _rounds(case: Row) -> str:
    return f"{case.get('rounds')} round{'s'[: case.get('rounds') != 1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
