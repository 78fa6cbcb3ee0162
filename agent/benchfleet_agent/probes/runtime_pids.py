"""Which processes are the runtime's: its roots and everything below them, listed at most once a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchfleet_agent.probes.system import descendants

NO_RUNTIME = "no process of the runtime runs on this host"
_LIST_PERIOD_NS = 1_000_000_000
_LIST_SHARE = 1_000
"""Processes are listed again after this many times the time the last listing took (0.1 % of one core)."""


class RuntimePids:
    """The process ids under some roots."""

    def __init__(
        self,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._tree = tree
        self._clock = clock
        self._roots: tuple[int, ...] = ()
        self._pids: frozenset[int] = frozenset()
        self._due_ns = 0

    def read(self, roots: tuple[int, ...], *, relist: bool = False) -> frozenset[int]:
        """Return the ids of the roots and what is below them, mostly from memory unless ``relist``."""
        start = self._clock()
        if relist or roots != self._roots or start >= self._due_ns:
            self._roots, self._pids = roots, frozenset((*roots, *(self._tree(roots) if roots else ())))
            end = self._clock()
            self._due_ns = end + max(_LIST_PERIOD_NS, _LIST_SHARE * (end - start))
        return self._pids
