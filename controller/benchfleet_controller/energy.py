"""Energy of a case, by what was metered, for a token and a request, and what the electricity costs. Pure.

Gross energy is all that was used in the counted rounds: that of a machine dedicated to the work. Marginal energy leaves
out what the machine would have used anyway: idle power × duration, against the idle host (before the load) or against
the host with the model loaded. Scopes are metered parts of a machine and overlap (a system's power holds its
processors'), so they are never added up, but for the processor packages and the boards of dedicated GPUs, which are
apart: together they are the scope ``parts``. Power supply, fans, displays and memory are in none but ``system``.

A counter that moves every u seconds is off by up to u × power at each edge of a window of T seconds: by 2u/T of the
energy. Beyond `MOST_EDGE_ERROR` the energy is refused. kWh for a million tokens = J/token × 10⁶/3.6·10⁶.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MOST_EDGE_ERROR = 0.1
COUNTER_PERIOD_S = 0.1
"""How often energy counters move where that was not seen; NVML's and most others' lie between 1 and 100 ms."""
FEWEST_IDLE_S = 5.0
"""Shorter idle phases say little of idle power."""
KWH_PER_MILLION = 1e6 / 3.6e6


class Scope(StrEnum):
    """What was metered."""

    GPU_BOARD = "gpu_board"
    CPU_PACKAGE = "cpu_package"
    SYSTEM = "system"
    PARTS = "parts"
    """Processor packages and the boards of all dedicated devices of the host, added up."""


class Method(StrEnum):
    """How energy was had."""

    COUNTER = "counter"
    POWER = "power"
    """Power over time, by the trapezoid rule."""


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

    @property
    def period_s(self) -> float:
        """How often the source moves: as seen; where every reading was new, at most `COUNTER_PERIOD_S`."""
        steps = max(self.readings - self.spans, 0)
        if steps and self.moves >= 0.9 * steps:
            return min(COUNTER_PERIOD_S, self.seconds / steps)
        return self.seconds / self.moves if self.moves else self.seconds

    @property
    def edge_error_ratio(self) -> float:
        """How far the energy may be off because the source moves in steps."""
        return 2 * self.period_s * self.spans / self.seconds if self.seconds > 0 else 2.0

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


def measured(
    scope: Scope, method: Method, rounds: Window, count: int, baseline: Window | None, loaded: Window | None
) -> Energy:
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
        seconds = window.seconds if window else 0.0
        if window is None or seconds < FEWEST_IDLE_S or window.edge_error_ratio > MOST_EDGE_ERROR:
            idle.append(None)
            reasons.append(f"{scope}: {seconds:.1f} s {name} are too few for idle power ({FEWEST_IDLE_S:g} s at least)")
        else:
            idle.append(window.watts)
    return Energy(scope, method, rounds.seconds, gross, idle[0], idle[1], tuple(reasons))


@dataclass(frozen=True, slots=True)
class Headline:
    """The energy that a case is compared by. Without ``joules``, ``reason`` says why."""

    scope: Scope | None
    method: str | None
    joules: float | None
    reason: str | None = None


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
        methods = "+".join(sorted({one.method.value for one in parts}))
        return Headline(Scope.PARTS, methods, sum(one.gross_j or 0.0 for one in parts))
    if holds is None:
        holds = found.get(Scope.SYSTEM)
    if holds is not None:
        return Headline(holds.scope, holds.method.value, holds.gross_j)
    refused = [reason for one in energies if one.gross_j is None for reason in one.reasons[:1]]
    if refused:
        return Headline(None, None, None, "; ".join(refused))
    if found:
        other = next(iter(found))
        where = "the device's board" if dedicated else "the processor"
        return Headline(None, None, None, f"only {other} was metered, and the work is done by {where}")
    return Headline(None, None, None, "no probe of this host counts energy or power")


def kwh_per_million_tokens(energy_per_token_j: float) -> float:
    """What a million output tokens use, in kWh."""
    return energy_per_token_j * KWH_PER_MILLION


def _seconds_needed(rounds: Window) -> float:
    return 2 * rounds.period_s / MOST_EDGE_ERROR
