"""Load sweeps: cases that differ only in their load, and where more of it stops paying. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchfleet_controller.capacity import FEWEST_LEVELS, Knee, Level, knee
from benchfleet_controller.dimensions import CONDITIONS
from benchfleet_controller.metrics import BY_NAME
from benchfleet_controller.report.cases import case_for_people, notes_of
from benchfleet_controller.report.exports import Column, Figure, clean, human
from benchfleet_controller.report.sections import Section

Row = Mapping[str, Any]

_CLOSED, _OPEN = "concurrency", "request_rate_per_s"
_THROUGHPUT = {_CLOSED: "output_tokens_per_s", _OPEN: "requests_per_s"}
_LABEL = {_CLOSED: "Concurrency", _OPEN: "Requests/s asked"}
_SAME = ("run_id", "host", "runtime", "model_asked", "variant", "device_asked")


@dataclass(frozen=True, slots=True)
class Sweep:
    """Cases that differ only in their load, lightest first, and their knee."""

    varying: str
    """``concurrency`` of closed loops, or ``request_rate_per_s`` of open ones."""
    cases: tuple[Row, ...]
    knee: Knee

    @property
    def subject(self) -> str:
        """What was loaded, for people."""
        case = self.cases[0]
        keys = ("host", "runtime", "model", "device", "prompt_set")
        return clean(" / ".join(str(case[key]) for key in keys if case.get(key)))


def sweeps_of(cases: Sequence[Row]) -> list[Sweep]:
    """The sweeps among cases of one run: groups of at least 3 with another load each."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for case in cases:
        if not case.get("rounds") or case.get("concurrency") is None:
            continue
        varying = _CLOSED if case.get(_OPEN) is None else _OPEN
        same = [column for column in (*_SAME, *CONDITIONS) if column != varying]
        groups.setdefault((varying, *(case.get(column) for column in same)), []).append(case)
    found = []
    for (varying, *_), group in groups.items():
        if len({case[varying] for case in group}) >= FEWEST_LEVELS:
            ordered = tuple(sorted(group, key=lambda case: float(case[varying])))
            found.append(Sweep(varying, ordered, knee([one for case in ordered if (one := _level(case, varying))])))
    return found


def sweep_document(sweep: Sweep) -> dict[str, Any]:
    """A sweep as a JSON object."""
    case = sweep.cases[0]
    return {
        **{key: case.get(key) for key in ("host", "runtime", "model", "device", "prompt_set")},
        "varying": sweep.varying,
        "throughput": _THROUGHPUT[sweep.varying],
        "knee": sweep.knee.load,
        "saturation": sweep.knee.saturation_load,
        "reached": sweep.knee.reached,
        "sentence": sentence(sweep),
        "levels": [
            {
                "case_id": one.get("case_id"),
                "load": one[sweep.varying],
                "throughput_per_s": one.get(_THROUGHPUT[sweep.varying]),
                "response_avg_s": _response(one),
                "e2e_p50_s": one.get("e2e_p50_s"),
                "ttft_p95_s": one.get("ttft_p95_s"),
                "power": _power(one, sweep.varying),
                "status": one.get("status"),
                "reason": one.get("reason"),
            }
            for one in sweep.cases
        ],
    }


def sweep_section(sweep: Sweep) -> Section:
    """The levels of a sweep as a table, and the sentence."""
    rows = [
        case_for_people(case)
        | {
            "load": Figure(f"{case[sweep.varying]:g}"),
            "response_avg_s": None if (response := _response(case)) is None else Figure(human("e2e_avg_s", response)),
            "power": None if (power := _power(case, sweep.varying)) is None else Figure(f"{power:.3g}"),
            "mark": _mark(case, sweep),
        }
        for case in sweep.cases
    ]
    throughput = _THROUGHPUT[sweep.varying]
    columns = (
        Column("load", _LABEL[sweep.varying]),
        Column(throughput, BY_NAME[throughput].label),
        Column("response_avg_s", "Response avg (s)"),
        Column("e2e_p50_s", "Latency p50 (s)"),
        Column("ttft_p95_s", "TTFT p95 (s)"),
        Column("power", "Power"),
        Column("mark", "Mark"),
    )
    return Section(f"Load sweep: {sweep.subject}", rows, columns, (sentence(sweep), *notes_of(rows, columns)))


def sentence(sweep: Sweep) -> str:
    """Where the knee and the saturation lie, or why that is not known."""
    at = {_CLOSED: "a concurrency of", _OPEN: "a rate of"}[sweep.varying]
    unit = {_CLOSED: "tokens/s", _OPEN: "requests/s"}[sweep.varying]
    knee, said = sweep.knee, []
    if knee.load is not None:
        case = next(one for one in sweep.cases if one[sweep.varying] == knee.load)
        values = f"{case[_THROUGHPUT[sweep.varying]]:.3g} {unit}, response {_response(case):.3g} s"
        said.append(f"The knee is at {at} {knee.load:g} ({values}): the most throughput for its response time.")
    if knee.saturation_load is not None:
        said.append(f"Throughput is saturated from {at} {knee.saturation_load:g} on (95 % of the largest).")
    if knee.why:
        said.append(f"{knee.why[0].upper()}{knee.why[1:]}.")
    return " ".join(said)


def _level(case: Row, varying: str) -> Level | None:
    throughput, response = case.get(_THROUGHPUT[varying]), _response(case)
    return None if throughput is None or response is None else Level(float(case[varying]), throughput, response)


def _response(case: Row) -> float | None:
    """Mean time from when a request was due to its end: what it waited for a free slot of ours counts too.

    Without that wait a capped open loop looks as quick at twice the rate it can keep as at the rate itself.
    """
    latency = case.get("e2e_avg_s")
    return None if latency is None else float(latency) + float(case.get("lateness_avg_s") or 0.0)


def _power(case: Row, varying: str) -> float | None:
    level = _level(case, varying)
    return None if level is None or not level.latency_s else level.throughput_per_s / level.latency_s


def _mark(case: Row, sweep: Sweep) -> str:
    load, knee = case[sweep.varying], sweep.knee
    marks = ["knee"] if load == knee.load else []
    if knee.saturation_load is not None and load >= knee.saturation_load:
        marks.append("saturated")
    if case.get("status") == "failed":
        marks.append(str(case.get("reason") or "failed").replace("_", " "))
    return clean(", ".join(marks))
