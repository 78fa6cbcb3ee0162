"""Energy of a case, by what was metered, for a token and a request, and what the electricity costs. Pure.

Gross energy is all that was used in the counted rounds: that of a machine dedicated to the work. Marginal energy leaves
out what the machine would have used anyway: idle power × duration, against the idle host (before the load) or against
the host with the model loaded. Scopes are metered parts of a machine and overlap (a system's power holds its
processors'), so they are never added up, but for the processor packages and the boards of dedicated GPUs, which are
apart: together they are the scope ``parts``. Power supply, fans, displays and memory are in none but ``system``.

A counter that moves every u seconds is off by up to u × power at each edge of a window of T seconds: by 2u/T of the
energy. Beyond `MOST_EDGE_ERROR` the energy is refused. A gauge says nothing of the time between its readings, nor of
what its source averages over, so that is its u at the least. kWh for a million tokens = J/token × 10⁶/3.6·10⁶.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MOST_EDGE_ERROR = 0.1
COUNTER_PERIOD_S = 0.1
"""How often energy counters move where that was not seen; NVML's and most others' lie between 1 and 100 ms."""
STILL_PERIOD_S = 1.0
"""How often power that was read the same every time is taken to be renewed; nothing that is read often is slower."""
STILL_READ_S = 0.5
"""Read less often, it may as well be stuck."""
AVERAGE_S = 1.0
"""What averaged power is a mean over: as documented by NVIDIA, and taken to be the same for others, who do not say."""
MOST_DISAGREEMENT = 0.1
"""How far power over time may lie from a counter's energy."""
FEWEST_IDLE_S = 5.0
"""Shorter idle phases say little of idle power."""
KWH_PER_MILLION = 1e6 / 3.6e6


class Scope(StrEnum):
    """What was metered."""

    GPU_BOARD = "gpu_board"
    CPU_PACKAGE = "cpu_package"
    MODULE = "module"
    """A GPU with its CPU (NVIDIA Grace, AMD graphics within a processor), which tells no other power."""
    SYSTEM = "system"
    PARTS = "parts"
    """Processor packages and the boards of all dedicated devices of the host, added up."""


class Method(StrEnum):
    """How energy was had."""

    COUNTER = "counter"
    POWER = "power"
    """Power over time, by the trapezoid rule."""
    AVERAGED_POWER = "averaged_power"
    """The same of power that the driver has averaged, where it tells nothing else."""


@dataclass(frozen=True, slots=True)
class Window:
    """One source over the phases of a kind: all counted rounds, or the time before the load."""

    seconds: float
    """Metered time."""
    spans: int
    """Pieces it is made of; each has two edges."""
    joules: float
    readings: int
    moves: int
    """How often the value changed between readings."""
    method: Method = Method.COUNTER
    spread_w: float | None = None
    """Of power: the highest reading less the lowest."""

    @property
    def period_s(self) -> float:
        """How often the source moves: as seen; where every reading of a counter was new, at most `COUNTER_PERIOD_S`."""
        steps = max(self.readings - self.spans, 0)
        if self.method is not Method.COUNTER:
            return self._gauge_period_s(self.seconds / steps) if steps else self.seconds
        if steps and self.moves >= 0.9 * steps:
            return min(COUNTER_PERIOD_S, self.seconds / steps)
        return self.seconds / self.moves if self.moves else self.seconds

    def _gauge_period_s(self, read_s: float) -> float:
        if self.moves:
            moved_s = self.seconds / self.moves
        else:
            moved_s = STILL_PERIOD_S if read_s <= STILL_READ_S else self.seconds
        return max(read_s, moved_s, AVERAGE_S if self.method is Method.AVERAGED_POWER else 0.0)

    @property
    def edge_error_ratio(self) -> float:
        """How far the energy may be off because the source moves in steps."""
        return 2 * self.period_s * self.spans / self.seconds if self.seconds > 0 else 2.0

    @property
    def steady(self) -> bool:
        """Whether power was read often and hardly changed: then it matters little how often it is renewed."""
        steps = self.readings - self.spans
        often = steps > 0 and self.seconds / steps <= STILL_READ_S
        return often and self.spread_w is not None and self.spread_w <= MOST_EDGE_ERROR * self.watts

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Energy:
    """One scope's energy over the counted rounds of a case. None: refused or unmeasured, and ``reasons`` says why."""

    scope: Scope
    method: Method
    duration_s: float
    gross_j: float | None
    idle_host_w: float | None
    """Power before anything was loaded."""
    idle_loaded_w: float | None
    """Power with the model loaded, outside rounds."""
    reasons: tuple[str, ...] = ()
    second_method: Method | None = None
    second_j: float | None = None
    """The same energy by another source of this scope; None: there is none, or it is too slow."""

    @property
    def disagreement_ratio(self) -> float | None:
        """How far the two sources lie apart, of the first."""
        return abs(self.second_j - self.gross_j) / self.gross_j if self.second_j is not None and self.gross_j else None

    @property
    def marginal_host_j(self) -> float | None:
        """Above the idle host."""
        return self._above(self.idle_host_w)

    @property
    def marginal_loaded_j(self) -> float | None:
        """Above the host with the model loaded."""
        return self._above(self.idle_loaded_w)

    def _above(self, idle_w: float | None) -> float | None:
        return None if self.gross_j is None or idle_w is None else self.gross_j - idle_w * self.duration_s


def measured(scope: Scope, rounds: Window, count: int, baseline: Window | None, loaded: Window | None) -> Energy:
    """The energy of ``count`` counted rounds, refused where the source is too slow for them or missed some."""
    reasons: list[str] = []
    gross: float | None = rounds.joules
    if rounds.spans < count:
        gross = None
        reasons.append(f"{scope}: metered in {rounds.spans} of {count} rounds")
    elif rounds.edge_error_ratio > MOST_EDGE_ERROR:
        gross = None
        reasons.append(
            f"{scope}: rounds of {rounds.seconds / rounds.spans:.2g} s are too short for a source that moves every "
            f"{rounds.period_s:.2g} s: ±{rounds.edge_error_ratio:.0%} at the edges alone, {MOST_EDGE_ERROR:.0%} at "
            f"most; use --round-duration {_seconds_needed(rounds):.0f} or more"
        )
    idle: list[float | None] = []
    for name, window in (("before the load", baseline), ("with the model loaded", loaded)):
        if why := _no_idle(window):
            reasons.append(f"{scope}: no idle power {name}: {why}")
        idle.append(None if why or window is None else window.watts)
    return Energy(scope, rounds.method, rounds.seconds, gross, idle[0], idle[1], tuple(reasons))


def _no_idle(window: Window | None) -> str:
    """Why a window does not tell idle power; empty: it does."""
    if window is None or not window.seconds:
        return "the host was not left alone for a second; use --idle-baseline 10"
    advice = f"use --idle-baseline {max(FEWEST_IDLE_S, _seconds_needed(window)):.0f} or more"
    if window.seconds < FEWEST_IDLE_S:
        return f"{window.seconds:.1f} s are too few ({FEWEST_IDLE_S:g} s at least); {advice}"
    if window.edge_error_ratio > MOST_EDGE_ERROR and not window.steady:
        pieces = "" if window.spans == 1 else f" in {window.spans} pieces"
        return (
            f"{window.seconds:.1f} s{pieces} are too few for a source that moves every {window.period_s:.2g} s: "
            f"±{window.edge_error_ratio:.0%} at the edges alone; {advice}"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Headline:
    """The energy that a case is compared by. Without ``joules``, ``reason`` says why."""

    scope: Scope | None
    method: str | None
    joules: float | None
    reason: str | None = None
    marginal_j: float | None = None
    """Above the host with the model loaded; None: `marginal_reason` says why, or there are no ``joules`` either."""
    marginal_reason: str | None = None


def headline(energies: Sequence[Energy], *, dedicated: bool, boards: int) -> Headline:
    """Which energy speaks for a case: all metered parts, else what surely holds the work, else the whole system's.

    ``dedicated``: the work is done on a board of its own (else in the processor package); ``boards``: how many of these
    the host has.
    """
    found = {one.scope: one for one in energies if one.gross_j is not None}
    board, package = found.get(Scope.GPU_BOARD), found.get(Scope.CPU_PACKAGE)
    holds = board if dedicated else package
    if package is not None and (board is not None or not boards):
        parts = [one for one in (package, board) if one is not None]
        return _speaking(Scope.PARTS, parts)
    if holds is None:
        holds = found.get(Scope.MODULE) or found.get(Scope.SYSTEM)
    if holds is not None:
        return _speaking(holds.scope, [holds])
    refused = [reason for one in energies if one.gross_j is None for reason in one.reasons[:1]]
    if refused:
        return Headline(None, None, None, "; ".join(refused))
    if found:
        other = next(iter(found))
        where = "the device's board" if dedicated else "the processor"
        return Headline(None, None, None, f"only {other} was metered, and the work is done by {where}")
    return Headline(None, None, None, "no probe of this host counts energy or power")


def _speaking(scope: Scope, parts: Sequence[Energy]) -> Headline:
    methods = "+".join(sorted({one.method.value for one in parts}))
    gross = sum(one.gross_j or 0.0 for one in parts)
    known = [one.marginal_loaded_j for one in parts if one.marginal_loaded_j is not None]
    if len(known) < len(parts):
        why = [reason for one in parts if one.marginal_loaded_j is None for reason in one.reasons[-1:]]
        return Headline(scope, methods, gross, marginal_reason="; ".join(why))
    if sum(known) <= 0:
        return Headline(scope, methods, gross, marginal_reason="the rounds took no more power than the idle host")
    return Headline(scope, methods, gross, marginal_j=sum(known))


def kwh_per_million_tokens(energy_per_token_j: float) -> float:
    """What a million output tokens use, in kWh."""
    return energy_per_token_j * KWH_PER_MILLION


def _seconds_needed(rounds: Window) -> float:
    return 2 * rounds.period_s / MOST_EDGE_ERROR
