"""Warnings about the rounds of a case: what the host was like meanwhile, and how far rounds lay apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchfleet_controller.checks.codes import Code, Warn, Warned
from benchfleet_controller.host_rules import INVALID, Trouble

Row = Mapping[str, Any]

_SPREAD_RATIO = 0.1
_MOST_NAMED = 5


def of_rounds(case: Row, warn: Warn) -> Iterator[Warned]:
    """What speaks against rounds of a case, with advice that the plan does not follow already."""
    conditions = case.get("conditions") or {}
    for found in case.get("round_troubles") or ():
        trouble, counted = Trouble(found["trouble"]), case.get("rounds") or 0
        fate = "; they stay in the results and spoil them" if trouble in INVALID else ""
        message = f"{_rounds(found['rounds'], counted)}: {found['worst']}{fate}"
        yield warn(Code(trouble.value), message, _advice(trouble, conditions))
    if unloads := case.get("unloads"):
        times = "a pause" if unloads == 1 else f"{unloads} pauses"
        message = f"the runtime unloaded the model in {times}: the request after it paid for a load"
        yield warn(Code.MODEL_UNLOADED, message, "use --keep-warm 60, or let the server keep idle models longer")
    spread = case.get("spread_ratio")
    if spread is not None and spread > _SPREAD_RATIO:
        message = f"rounds lie {spread:.0%} of the mean apart ({case.get('spread_metric')}, standard deviation)"
        yield warn(Code.HIGH_SPREAD, message, "see `show --outliers` for what disturbed them, and run more rounds")


def _rounds(numbers: Sequence[int], of: int) -> str:
    if len(numbers) == of:
        return "all rounds" if of > 1 else "the round"
    named = ", ".join(map(str, numbers[:_MOST_NAMED])) + (", …" if len(numbers) > _MOST_NAMED else "")
    return f"round{'s'[: len(numbers) > 1]} {named} of {of}"


def _advice(trouble: Trouble, conditions: Row) -> str:
    cool, others = conditions.get("cool_temperature_c"), conditions.get("maximum_background_ratio")
    ac = "keep it plugged in and run again" if conditions.get("require_ac") else "use --require-ac and run again"
    return {
        Trouble.SUSPENDED: "keep the machine awake and run again",
        Trouble.POWER_CHANGED: ac,
        Trouble.ON_BATTERY: ac,
        Trouble.THROTTLED: "use --wait-until-cool 60 to begin each round cool, or call this the speed under load"
        if cool is None
        else f"rounds began at {cool:g} °C or less and still grew hot: shorten them or improve the cooling",
        Trouble.BACKGROUND_LOAD: "close other programs, or use --max-background-load 10"
        if others is None
        else "it came after rounds had begun: find the program and stop it",
        Trouble.MEMORY_PRESSURE: "use a smaller model or free memory",
        Trouble.LOW_POWER_MODE: "switch to the performance plan and run again",
        Trouble.TELEMETRY_STALLED: "latencies stand, memory and energy have a hole there; `benchfleet-agent probes` "
        "shows what each reading costs",
    }[trouble]
