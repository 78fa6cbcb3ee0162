"""What a host uses when it does nothing: it is left alone before a load and after it. Pure; time is injected.

Energy above that is what the work took. A counter that moves every tenth of a second needs seconds to tell power well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchfleet.samples import ENERGY_COUNTERS, POWERS
from benchfleet_agent.probes import Value

DEFAULT_IDLE_BASELINE_S = 10.0
SLICE_S = 0.5
"""How often the wait looks whether the case must end."""
METERED = frozenset((*POWERS, *ENERGY_COUNTERS))
"""Metrics that tell energy or power."""


def is_metered(latest: Mapping[str, Mapping[str, Value]]) -> bool:
    """Whether a value of energy or power is among the latest readings (by device id)."""
    return any(name in METERED and value is not None for values in latest.values() for name, value in values.items())


def leave_alone(
    seconds: float, wait: Callable[[float], object], check: Callable[[], None], clock: Callable[[], float]
) -> None:
    """Do nothing for so long; ``check`` raises when the case must end, ``clock`` is in seconds."""
    end = clock() + seconds
    while (left := end - clock()) > 0:
        wait(min(left, SLICE_S))
        check()
