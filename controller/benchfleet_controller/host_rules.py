"""What a round was worth: was the host in a state to be measured? Pure.

A round is *invalid* when it cannot stand for the host: it slept, or changed between mains and battery. It is
*suspicious* when something slowed it down or disturbed it. All rounds keep their place in the results, since leaving
some out after the fact would choose the result; `checks` names the rounds, so that a person decides to run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchfleet.samples import THROTTLE_REASONS

Row = Mapping[str, Any]

THROTTLED_RATIO = 0.01
BACKGROUND_RATIO = 0.1
SLOW_CLOCK_RATIO = 0.6
"""Below this share of its highest clock a processor at work is held back; all cores at once rarely get the highest."""
PRESSURE_RATIO = 0.1
LEAST_FREE_BYTES = 256 << 20
SUSPENDED_S = 1.0
SHORTEST_S = 0.2
"""Processor time of the whole machine is counted in ticks of 10 ms: over less time its share is mostly rounding."""
STALL_S = 2.0
_STALL_PERIODS = 5.0
_HOT = ("serious", "critical")


class Trouble(StrEnum):
    """What was wrong with a round."""

    SUSPENDED = "suspended"
    POWER_CHANGED = "power_changed"
    THROTTLED = "throttled"
    BACKGROUND_LOAD = "background_load"
    MEMORY_PRESSURE = "memory_pressure"
    ON_BATTERY = "on_battery"
    LOW_POWER_MODE = "low_power_mode"
    TELEMETRY_STALLED = "telemetry_stalled"


INVALID = frozenset({Trouble.SUSPENDED, Trouble.POWER_CHANGED})
_DESCRIBES_TELEMETRY = frozenset({Trouble.TELEMETRY_STALLED})
"""Says nothing against the round's times."""


@dataclass(frozen=True, slots=True)
class Found:
    """One trouble of one round. ``size`` orders several rounds with the same one."""

    trouble: Trouble
    message: str
    size: float = 1.0


def troubles(round_row: Row) -> tuple[Found, ...]:
    """What was wrong with a round (a row of ``Store.round_conditions``); nothing where nothing is known."""
    before, after = round_row.get("state_before") or {}, round_row.get("state_after") or {}
    return tuple(_power(round_row, before, after)) + tuple(_load(round_row, after))


def _power(row: Row, before: Row, after: Row) -> Iterator[Found]:
    # A state's value counts from the state before, so only the one after a round speaks of the round.
    slept = (after.get("suspended_ns") or 0) / 1e9
    if slept > SUSPENDED_S:
        yield Found(Trouble.SUSPENDED, f"the machine slept {slept:.0f} s", slept)
    on = [state.get("on_battery") for state in (before, after)] + [row.get("on_battery_least")]
    seen = {bool(value) for value in (*on, row.get("on_battery_most")) if value is not None}
    if len(seen) > 1:
        yield Found(Trouble.POWER_CHANGED, "it changed between mains and battery")
    elif seen == {True}:
        yield Found(Trouble.ON_BATTERY, "it ran on battery")
    if before.get("low_power_mode") or after.get("low_power_mode"):
        plan = after.get("power_plan") or before.get("power_plan")
        yield Found(Trouble.LOW_POWER_MODE, "it saved power" + (f" ({plan})" if plan else ""))
    if throttled := _throttled(row, after):
        yield throttled


def _throttled(row: Row, after: Row) -> Found | None:
    counters = {"power": row.get("power_throttled_ratio"), "heat": row.get("thermal_throttled_ratio")}
    for what, share in counters.items():
        if share is not None and share > THROTTLED_RATIO:
            return Found(Trouble.THROTTLED, f"{what} slowed a device down in {share:.0%} of its time", share)
    share = row.get("throttled_ratio")
    if all(known is None for known in counters.values()) and share is not None and share > THROTTLED_RATIO:
        mask = row.get("throttle_reasons") or 0
        named = ", ".join(name for bit, name in THROTTLE_REASONS.items() if mask & bit) or "its driver"
        return Found(Trouble.THROTTLED, f"a device was slowed down ({named}) in {share:.0%} of its time", share)
    if row.get("cpu_throttle_count"):
        count = row["cpu_throttle_count"]
        return Found(Trouble.THROTTLED, f"processors were throttled for their heat {count} times", float(count))
    if after.get("thermal_pressure") in _HOT:
        return Found(Trouble.THROTTLED, f"the thermal pressure was {after['thermal_pressure']}")
    # The clock that a state holds is that after the work, so it says nothing of it.
    clock, limit = row.get("cpu_clock_hz"), after.get("cpu_clock_limit_hz")
    busy, total = row.get("busy_ns"), row.get("total_ns")
    # An idle processor is slow because it may be: only one at work is held back.
    if clock and limit and busy and total and busy > 0.5 * total and clock < SLOW_CLOCK_RATIO * limit:
        message = f"processors ran at {clock / 1e9:.1f} of {limit / 1e9:.1f} GHz"
        return Found(Trouble.THROTTLED, message, limit / clock)
    return None


def _load(row: Row, after: Row) -> Iterator[Found]:
    other = _background(row)
    if other is None:
        other = after.get("background_cpu_ratio")
    if other is not None and other > BACKGROUND_RATIO:
        yield Found(Trouble.BACKGROUND_LOAD, f"other programs used {other:.0%} of all processors", other)
    pressure = row.get("memory_pressure_ratio")
    free = [value for value in (row.get("available_least_bytes"), after.get("available_bytes")) if value is not None]
    if pressure is not None and pressure > PRESSURE_RATIO:
        yield Found(Trouble.MEMORY_PRESSURE, f"tasks waited for memory in {pressure:.0%} of the time", 1 + pressure)
    elif free and min(free) < LEAST_FREE_BYTES:
        yield Found(Trouble.MEMORY_PRESSURE, f"{min(free) / 2**20:.0f} MiB of memory were left")
    if (gap_s := _stall_s(row)) is not None:
        yield Found(Trouble.TELEMETRY_STALLED, f"no reading came for {gap_s:.1f} s", gap_s)


def _stall_s(row: Row) -> float | None:
    """The longest time without a reading of some probe, each held against how often it is read."""
    duration_s = row.get("duration_s")
    if not duration_s:
        return None
    known = [(one["largest_gap_s"], one["samples"]) for one in row.get("readings") or ()]
    gaps = [(gap_s, _STALL_PERIODS * duration_s / samples) for gap_s, samples in known if gap_s is not None]
    return max((gap_s for gap_s, usual_s in gaps if gap_s > max(STALL_S, usual_s)), default=None)


def _background(row: Row) -> float | None:
    """Share of all processors used by anything but runtime, load process and agent; None over too short a time."""
    busy, total, runtime = row.get("busy_ns"), row.get("total_ns"), row.get("runtime_ns")
    duration_s = row.get("duration_s")
    if busy is None or not total or runtime is None or (duration_s is not None and duration_s < SHORTEST_S):
        return None
    own = sum(float(row.get(f"{name}_ns") or 0) for name in ("runtime", "load", "agent"))
    return max(0.0, (float(busy) - own) / float(total))


def of_case(rounds: Sequence[Row]) -> dict[str, Any]:
    """Of a case's counted rounds: ``rounds_invalid``, ``rounds_suspicious`` and ``round_troubles``.

    Each of ``round_troubles`` has ``trouble``, ``rounds`` (numbered from 1 among the counted ones) and ``worst``, the
    worst of them in words.
    """
    found = [troubles(row) for row in rounds]
    kinds = [{one.trouble for one in each} for each in found]
    told = []
    for trouble in Trouble:
        mine = [(number, one) for number, each in enumerate(found, 1) for one in each if one.trouble is trouble]
        if mine:
            worst = max(mine, key=lambda pair: pair[1].size)[1].message
            told.append({"trouble": trouble.value, "rounds": [number for number, _ in mine], "worst": worst})
    return {
        "rounds_invalid": sum(bool(kind & INVALID) for kind in kinds),
        "rounds_suspicious": sum(bool(kind - _DESCRIBES_TELEMETRY) and not kind & INVALID for kind in kinds),
        "round_troubles": told,
    }
