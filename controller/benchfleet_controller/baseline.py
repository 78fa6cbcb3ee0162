"""A named baseline as a document: what a comparison needs of a run, small and stable enough for version control. Pure.

The document holds the cases' results and their values by round, so that a later run is compared with intervals as if
the first run's database were there. Cases are named by what the plan asked for, keys are sorted and numbers have six
digits: equal results give equal bytes, and a diff shows what changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchfleet_controller.compared import Rounds
from benchfleet_controller.dimensions import CONDITIONS
from benchfleet_controller.metrics import CASE_METRICS

SCHEMA_VERSION = 2
_OLDEST_VERSION = 1
"""That is still read: its cases and their rounds were two lists, tied by random ids."""
_DIGITS = 6
_IDS = ("case_id", "run_id")
_CASE_COLUMNS = (
    "host", "device", "device_asked", "runtime", "model", "model_asked", "variant", "quantisation",
    "execution_provider", "status", "reason", "requests", "failed", "ttft_n", "e2e_n", "itl_n", "quality_n", "rounds",
    "tokens_source", "accounting", "stamp_source", "path",
    "device_proof", "energy_scope", "driver_version", "agent_version", *CONDITIONS,
    *(metric.name for metric in CASE_METRICS),
)  # fmt: skip


class BaselineError(Exception):
    """A baseline file makes no sense; says where and why."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A run's cases and their values by round, by (metric, case_id)."""

    name: str
    cases: tuple[Mapping[str, Any], ...]
    rounds: Mapping[tuple[str, str], Rounds]

    @classmethod
    def of(cls, name: str, cases: Sequence[Mapping[str, Any]], rounds: Mapping[tuple[str, str], Rounds]) -> Baseline:
        """What is kept of a run: rows of ``case_results``, and rounds as `compare` takes them."""
        return cls(name, tuple({key: case.get(key) for key in (*_IDS, *_CASE_COLUMNS)} for case in cases), rounds)

    def to_json(self) -> str:
        """The document: the same bytes for the same results, and for other results of the same plan other numbers."""
        cases: dict[str, Any] = {}
        for case in self.cases:
            key, n = case_key(case), 1
            while (unique := key if n == 1 else f"{key} #{n}") in cases:
                n += 1
            cases[unique] = {column: case.get(column) for column in _CASE_COLUMNS} | {
                "by_round": {
                    metric.name: {"values": found.values.tolist(), "weights": found.weights.tolist()}
                    for metric in CASE_METRICS
                    if (found := self.rounds.get((metric.name, case["case_id"]))) is not None
                }
            }
        document = {"benchfleet_baseline": SCHEMA_VERSION, "name": self.name, "cases": _rounded(cases)}
        return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Baseline:
        """Read a document; ``where`` begins the errors. Raises `BaselineError`."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BaselineError(f"{where}: is no JSON: {error}") from None
        if not isinstance(document, dict) or "benchfleet_baseline" not in document:
            raise BaselineError(f"{where}: is no baseline; make one with `benchfleet baseline export`")
        version = document["benchfleet_baseline"]
        if version not in (_OLDEST_VERSION, SCHEMA_VERSION):
            reads = f"this program reads {_OLDEST_VERSION} to {SCHEMA_VERSION}"
            raise BaselineError(f"{where}: has version {str(version)[:20]}, {reads}; export it again")
        try:
            name = document["name"]
            if not (isinstance(name, str) and name.strip() and name.isprintable()):
                raise TypeError("name must be a text")
            cases, rounds = document["cases"], document.get("rounds", ())
            if version == SCHEMA_VERSION:
                rounds = [
                    {"metric": metric, "case_id": key, **values}
                    for key, case in cases.items()
                    for metric, values in case["by_round"].items()
                ]
                cases = [case | {"case_id": key} for key, case in cases.items()]
            return cls(name, _cases(cases), _rounds(rounds))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BaselineError(f"{where}: cannot be read: {error!r}; export it again") from None


def case_key(case: Mapping[str, Any]) -> str:
    """What a case is, in the words of its plan: the same in every run of it."""
    asked = [case.get("host"), case.get("runtime"), case.get("model_asked") or case.get("model")]
    asked.append(case.get("device_asked") or case.get("device"))
    held = [f"{name}={case[name]}" for name in ("path", *CONDITIONS) if case.get(name) is not None]
    return " ".join([*(str(one) for one in asked if one), *held])


def _cases(entries: Any) -> tuple[Mapping[str, Any], ...]:
    for entry in entries:
        if not isinstance(entry["case_id"], str) or not isinstance(entry["host"], str):
            raise TypeError("a case needs case_id and host")
        if not isinstance(entry["status"], str):
            raise TypeError("status must be a text")
        for column in (*(metric.name for metric in CASE_METRICS), "requests", "failed"):
            if not isinstance(entry.get(column), int | float | None):
                raise TypeError(f"{column} must be a number or null")
    return tuple({column: entry.get(column) for column in (*_IDS, *_CASE_COLUMNS)} for entry in entries)


def _rounds(entries: Any) -> dict[tuple[str, str], Rounds]:
    found = {}
    for entry in entries:
        values, weights = _floats(entry["values"]), _floats(entry["weights"])
        if values.shape != weights.shape or values.ndim != 1:
            raise ValueError("values and weights must be lists of equal length")
        found[str(entry["metric"]), str(entry["case_id"])] = Rounds(values, weights)
    return found


def _floats(values: Any) -> npt.NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _rounded(value: Any) -> Any:
    """Floats with six significant digits, what is no number as null."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value
