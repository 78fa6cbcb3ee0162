"""Kernel receive stamps, which tell the wall clock's time, converted to the perf_counter clock. Pure.

On Linux ``perf_counter`` is CLOCK_MONOTONIC. It and CLOCK_REALTIME run at the same rate (time synchronisation
slews both), so their difference is a constant that changes only when somebody *steps* the wall clock. Sampling both
clocks at every read therefore shows a step, and a stamp that a step may have falsified is not used.
"""

from __future__ import annotations

STEP_NS = 10_000
"""A smaller change of the difference is noise of the sampling, a larger one is a step."""


class KernelClock:
    """The difference between the two clocks, watched. Used by one thread."""

    __slots__ = ("_offset_ns", "_window_ns")

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._window_ns = 0

    def observe(self, before_ns: int, realtime_ns: int, after_ns: int) -> bool:
        """Take a sample: the wall clock read between two readings of perf_counter. False: the wall clock stepped."""
        window_ns = after_ns - before_ns
        offset_ns = realtime_ns - (before_ns + after_ns) // 2  # true within half the window
        if self._offset_ns is None:
            stepped = True
        else:
            stepped = abs(offset_ns - self._offset_ns) > STEP_NS + (window_ns + self._window_ns) // 2
        if stepped or window_ns < self._window_ns:  # the sample with the narrowest window is the most exact
            self._offset_ns, self._window_ns = offset_ns, window_ns
        return not stepped

    def convert(self, kernel_ns: int, floor_ns: int, ceiling_ns: int) -> int | None:
        """The kernel's stamp on the perf_counter clock, or None when it is not credible.

        It cannot lie before `floor_ns` (what arrived earlier on the same connection) nor, but for the sampling's
        noise, after `ceiling_ns` (the read that returned the bytes).
        """
        if self._offset_ns is None:
            return None
        stamp_ns = kernel_ns - self._offset_ns
        if floor_ns <= stamp_ns <= ceiling_ns:
            return stamp_ns
        if ceiling_ns < stamp_ns <= ceiling_ns + STEP_NS + self._window_ns:
            return ceiling_ns
        return None
