"""What a host must be like for a counted round to begin, and the wait for it. Decisions are pure; time is injected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchfleet.failures import Reason, WorkFailed
from benchfleet.v1 import job_pb2
from benchfleet_agent.host_state import HostState

DEFAULT_WAIT_S = 300.0
LONGEST_WAIT_S = 86_400.0
POLL_S = 1.0
"""Time between looks at the host; processor time is compared over it."""
REPORT_S = 5.0
"""Time between two words to people."""
COLDEST_C, HOTTEST_C = 0.0, 150.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions as a job asks for them, checked."""

    require_ac: bool = False
    cool_temperature_c: float | None = None
    """Neither processor nor device warmer than so many degrees Celsius."""
    maximum_background_ratio: float | None = None
    """Others use at most this share of all logical processors."""
    wait_s: float = DEFAULT_WAIT_S

    @classmethod
    def from_proto(cls, message: job_pb2.HostConditions) -> Conditions | None:
        """Read what a job asks for; None: nothing. Raises `WorkFailed` ``invalid_spec``."""
        cool = message.cool_temperature_c if message.HasField("cool_temperature_c") else None
        ratio = message.maximum_background_ratio if message.HasField("maximum_background_ratio") else None
        _require(cool is None or COLDEST_C < cool <= HOTTEST_C, "cool_temperature_c must lie between 0 and 150")
        _require(ratio is None or 0 <= ratio <= 1, "maximum_background_ratio must lie between 0 and 1")
        known = math.isfinite(message.wait_s) and 0 <= message.wait_s <= LONGEST_WAIT_S
        _require(known, "conditions.wait_s must lie between 0 and 86400 seconds")
        if not message.require_ac and cool is None and ratio is None:
            return None
        return cls(message.require_ac, cool, ratio, message.wait_s or DEFAULT_WAIT_S)


@dataclass(frozen=True, slots=True)
class Unmet:
    """A condition that does not hold."""

    reason: Reason
    awaited: str
    """What is waited for, and how it is now."""
    advice: str


def unmet(conditions: Conditions, state: HostState) -> tuple[Unmet, ...]:
    """The conditions that do not hold; one that a state says nothing about does not hold yet."""
    found = []
    if conditions.require_ac and not state.on_mains:
        charge = f", {state.battery_ratio:.0%} charged" if state.battery_ratio is not None else ""
        now = f"on battery{charge}" if state.on_mains is False else "unknown"
        found.append(Unmet(Reason.ON_BATTERY, f"mains power (now {now})", "connect the machine to mains"))
    most = conditions.cool_temperature_c
    heat = [value for value in (state.cpu_temperature_c, state.device_temperature_c) if value is not None]
    if most is not None and not (heat and max(heat) <= most):
        now = f"now {max(heat):.0f} °C" if heat else "now unknown"
        advice = "let it cool down, improve its cooling, or allow more with --wait-until-cool"
        found.append(Unmet(Reason.TOO_HOT, f"{most:g} °C or less ({now})", advice))
    allowed, others = conditions.maximum_background_ratio, state.background_cpu_ratio
    if allowed is not None and not (others is not None and others <= allowed):
        now = f"now {_percent(others)}" if others is not None else "now unknown"
        advice = "end other programs, or allow more with --max-background-load"
        awaited = f"other programs to use at most {_percent(allowed)} of the processors ({now})"
        found.append(Unmet(Reason.BACKGROUND_LOAD, awaited, advice))
    return tuple(found)


def unmeasurable(
    conditions: Conditions, state: HostState, device: str | None, *, counts_processor_time: bool
) -> str | None:
    """Why a condition cannot be waited for on this host; None: all can.

    ``device`` is what the case runs on (None: not said): of its heat the host must tell, of others' it may.
    ``counts_processor_time``: whether it is sampled; a share of it needs two readings and is not looked at.
    """
    missing = []
    if conditions.require_ac and state.on_mains is None:
        missing.append("whether it runs on battery; leave out --require-ac")
    if conditions.cool_temperature_c is not None:
        of_device, of_cpu = state.device_temperature_c, state.cpu_temperature_c
        on_device = device in {"gpu", "npu"}
        heat = of_device if on_device else of_cpu
        if heat is None and (device is not None or of_device is None):
            what = f"{device}'s" if on_device else "processor's"
            missing.append(f"its {what} temperature (see `benchfleet-agent probes`); leave out --wait-until-cool")
    if conditions.maximum_background_ratio is not None and not counts_processor_time:
        missing.append("its processor time (the probe system does not read); leave out --max-background-load")
    return f"this host does not tell {' nor '.join(missing)}" if missing else None


def wait_until_met(
    conditions: Conditions,
    read: Callable[[], HostState],
    pause: Callable[[float], None],
    report: Callable[[str], None],
    clock: Callable[[], float],
) -> HostState:
    """Wait until all conditions hold; the state in which they do.

    ``read`` gives the state now, with what happened since it was last asked; ``pause`` waits some seconds and raises
    when the case must end; ``report`` tells people; ``clock`` is in seconds. Raises `WorkFailed` with the reason of the
    first condition that did not come in time.
    """
    begin = clock()
    report_at = begin
    state = read()
    if conditions.maximum_background_ratio is not None:
        pause(POLL_S)  # the reading before lies in our own load: look at a moment without it
        state = read()
    while missing := unmet(conditions, state):
        now = clock()
        if now - begin >= conditions.wait_s:
            message = f"waited {conditions.wait_s:g} s for {_joined(missing)}"
            raise WorkFailed(missing[0].reason, f"{message}: {missing[0].advice}, or wait longer (--condition-timeout)")
        if now >= report_at:
            report(f"waiting for the host: {_joined(missing)}")
            report_at = now + REPORT_S
        pause(POLL_S)
        state = read()
    return state


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g}%"


def _joined(missing: tuple[Unmet, ...]) -> str:
    return " and ".join(one.awaited for one in missing)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise WorkFailed(Reason.INVALID_SPEC, message)
