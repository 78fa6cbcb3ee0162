"""A named baseline as a document: what a comparison needs of a run, small and stable enough for version control. Pure.

The document holds the cases' results and their values by round, so that a later run is compared with intervals as if
the first run's database were there. Keys are sorted and numbers have six digits: equal results give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchfleet_controller.compare import Rounds
from benchfleet_controller.dimensions import CONDITIONS
from benchfleet_controller.metrics import CASE_METRICS

SCHEMA_VERSION = 1
_DIGITS = 6
_CASE_COLUMNS = (
    "case_id", "run_id", "host", "device", "device_asked", "runtime", "model", "model_asked", "variant",
    "execution_provider", "status", "requests", "failed", "ttft_n", "e2e_n", "itl_n", "rounds", "tokens_source",
    "accounting", "stamp_source", "path", "device_proof", "device_evidence", "energy_scope", "driver_version",
    "agent_version", *CONDITIONS, *(metric.name for metric in CASE_METRICS),
)  # fmt: skip


class BaselineError(Exception):
    """A baseline file makes no sense; says where and why."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A run's cases and their values by round, by (metric, case_id)."""

    name: str
    run_id: str
    cases: tuple[Mapping[str, Any], ...]
    rounds: Mapping[tuple[str, str], Rounds]

    @classmethod
    def of(
        cls, name: str, run_id: str, cases: Sequence[Mapping[str, Any]], rounds: Mapping[tuple[str, str], Rounds]
    ) -> Baseline:
        """What is kept of a run: rows of ``case_results``, and rounds as `compare` takes them."""
        kept = tuple({column: case.get(column) for column in _CASE_COLUMNS} for case in cases)
        return cls(name, run_id, kept, rounds)

    def to_json(self) -> str:
        """The document, the same bytes for the same results."""
        document = {
            "benchfleet_baseline": SCHEMA_VERSION,
            "name": self.name,
            "run_id": self.run_id,
            "cases": [_rounded(dict(case)) for case in self.cases],
            "rounds": [
                {
                    "metric": metric,
                    "case_id": case_id,
                    "values": _rounded(rounds.values.tolist()),
                    "weights": _rounded(rounds.weights.tolist()),
                }
                for (metric, case_id), rounds in sorted(self.rounds.items())
            ],
        }
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
        if document["benchfleet_baseline"] != SCHEMA_VERSION:
            version = str(document["benchfleet_baseline"])[:20]
            raise BaselineError(f"{where}: has version {version}, this program reads {SCHEMA_VERSION}; export it again")
        try:
            name, run_id = document["name"], document["run_id"]
            if not (isinstance(name, str) and isinstance(run_id, str) and name.strip() and name.isprintable()):
                raise TypeError("name and run_id must be texts")
            return cls(name, run_id, _cases(document["cases"]), _rounds(document["rounds"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BaselineError(f"{where}: cannot be read: {error!r}; export it again") from None


def _cases(entries: Any) -> tuple[Mapping[str, Any], ...]:
    for entry in entries:
        if not isinstance(entry["case_id"], str) or not isinstance(entry["host"], str):
            raise TypeError("a case needs case_id and host")
        for metric in CASE_METRICS:
            if not isinstance(entry.get(metric.name), int | float | None):
                raise TypeError(f"{metric.name} must be a number or null")
    return tuple({column: entry.get(column) for column in _CASE_COLUMNS} for entry in entries)


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
