"""What cases can be compared by, and what is held equal meanwhile. Pure.

Asked for (host, device, model, runtime, path) and the conditions of the load are held equal unless they are compared.
What was only found out (execution provider, variant, quantisation, driver) divides cases when it is compared by, and is
otherwise told as a difference by `comparability`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

CONDITIONS = (
    "prompt_set", "concurrency", "request_rate_per_s", "arrival", "round_duration_s", "max_tokens", "stream",
    "temperature", "top_p", "prefix_cache",
)  # fmt: skip
"""Rows that differ in one of these are never compared, unless by it."""

_HELD = {"host": "host", "model": "model_asked", "device": "device_asked", "runtime": "runtime", "path": "path"}
_FOUND = {"ep": "execution_provider", "variant": "variant", "quantisation": "quantisation", "driver": "driver_version"}
FOUND = frozenset(_FOUND)
"""Dimensions that only a case that ran has."""
_SHOWN = {"device": "device", "model": "model"}
_RUNS = {"run": "run_id", "name": "run_name", "commit": "run_name", "case": "case_id"}
"""A run's name is its label: `run --name` takes a commit."""
_DEFAULTS = {"path": "http"}
"""Rows of before there were several paths say nothing of it: all were reached by HTTP."""
_FREES = {"ep": ("device",), "variant": ("device", "model"), "quantisation": ("model",)}
"""What cannot be held equal: another variant is another model by name, another provider mostly another device."""
_ACROSS_VARIANTS = frozenset({"device", "ep"})
"""Compared by these, variants of one alias are one model, even where each was asked for by its own id."""
_ONE_MODEL = "one_model"
_COLUMNS = _HELD | _FOUND | _RUNS | {name: name for name in CONDITIONS}

DIMENSIONS = tuple(_COLUMNS)
FILTERS = tuple(name for name in DIMENSIONS if name not in _RUNS)
"""What ``--where`` may name."""

# GGUF's (Q4_K_M, IQ3_XXS), ONNX's and Foundry's (int4, uint8, fp16), and those of weight formats (awq, gptq, mxfp4).
_QUANTISATION = re.compile(
    r"(?<![a-z0-9])(i?q[2-8](?:_[0-9a-z]+){0,2}|u?int[48]|fp(?:4|8|16|32)|bf16|f16|f32|mxfp4|nvfp4|awq|gptq|nf4|[2348]bit)"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)


def quantisation_of(row: Row) -> str | None:
    """How weights are stored, as the runtime says, else the variant or the model in its name; None: nothing does."""
    if told := row.get("quantisation"):
        return str(told)
    for text in (row.get("variant"), row.get("model"), row.get("model_asked")):
        if found := _QUANTISATION.search(str(text or "").replace("-", " ")):
            return found[1].lower()
    return None


def matches(row: Row, key: str, value: str) -> bool:
    """Whether a case is what ``--where`` asks for: as it was asked for, or as it turned out."""
    held = {str(one).lower() for one in (row.get(_SHOWN.get(key, "")), _column(row, _COLUMNS[key])) if one is not None}
    return not held.isdisjoint({value.lower(), f"{value}.0"})


def group_name(row: Row, by: Sequence[str]) -> str:
    """What a case's group is called when compared by these dimensions."""
    return " / ".join(_value_name(row, one) for one in by)


def _value_name(row: Row, dimension: str) -> str:
    if dimension == "case":
        return _case_name(row)
    value = row.get(_SHOWN.get(dimension, ""))
    value = _column(row, _COLUMNS[dimension]) if value is None else value
    if value is None or value == "":
        return "unknown" if dimension in _FOUND else "none" if dimension in CONDITIONS else "any"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _case_name(row: Row) -> str:
    """What a case is, for people; unique within a run."""
    what = [row.get("host"), row.get("model"), row.get("device") or row.get("device_asked"), row.get("prompt_set")]
    rate = row.get("request_rate_per_s")
    load = f"×{row.get('concurrency')}" if rate is None else f"{rate:g}/s ×{row.get('concurrency')}"
    return " ".join([*(str(part) for part in what if part), load])


def held_columns(by: Sequence[str]) -> list[str]:
    """The columns in which cases must be equal to be compared by these dimensions."""
    if "case" in by:
        return []
    freed = {*by, *(one for name in by for one in _FREES.get(name, ()))}
    held = {name: column for name, column in _HELD.items() if name not in freed}
    if "model" in held and not _ACROSS_VARIANTS.isdisjoint(by):
        held["model"] = _ONE_MODEL
    return [*held.values(), *(c for c in CONDITIONS if c not in by)]


def stratum(row: Row, by: Sequence[str]) -> tuple[Any, ...]:
    """What is held equal: cases of different strata are never compared."""
    return tuple(_column(row, column) for column in held_columns(by))


def shared_conditions(row: Row, by: Sequence[str]) -> dict[str, Any]:
    """What to say of a stratum, by name."""
    held = held_columns(by)
    shown = [name for name, column in _HELD.items() if column in held and name != "path"]
    if _ONE_MODEL in held:
        shown.insert(1 if "host" in shown else 0, "model")
    load = [c for c in ("prompt_set", "concurrency", "request_rate_per_s", "max_tokens") if c in held]
    return {name: row.get(name) for name in (*shown, *load)}


def nearest(row: Row, candidates: Sequence[Row], by: Sequence[str]) -> str:
    """In what the likest of some cases differs from this one; empty: there are none."""
    best: list[str] | None = None
    for other in candidates:
        differing = [
            f"{c} {_column(row, c)} instead of {_column(other, c)}"
            for c in held_columns(by)
            if _column(row, c) != _column(other, c)
        ]
        best = differing if best is None or len(differing) < len(best) else best
    return ", ".join(best or ())


def _column(row: Row, column: str) -> Any:
    if column == "quantisation":
        return quantisation_of(row)
    if column == _ONE_MODEL:
        asked = row.get("model_asked")
        return row.get("model") if asked is not None and asked == row.get("variant") else asked
    value = row.get(column)
    return _DEFAULTS.get(column) if value is None else value
