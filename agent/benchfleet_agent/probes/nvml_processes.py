"""Which of a GPU's memory and time is the runtime's: NVML's lists of processes against the runtime's trees."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from benchfleet_agent.probes.nvml_fields import NotOffered, runtime_share
from benchfleet_agent.probes.system import descendants, in_foreign_pid_namespace

WDDM = "Windows' display driver model (WDDM) keeps the memory of single processes from NVIDIA's driver"
FOREIGN_IDS = (
    "NVIDIA's driver names processes by the host's ids, which this container does not share; "
    "run the agent with the host's ids (--pid=host)"
)
_TREE_PERIOD_NS = 10_000_000_000


class RuntimeProcesses:
    """The runtime's processes as NVML sees them.

    The methods that read raise NVML's own errors, and `NotOffered` where the driver cannot tell whose is whose.
    """

    def __init__(
        self,
        clock: Callable[[], int] = time.perf_counter_ns,
        wall_clock: Callable[[], int] = time.time_ns,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
        foreign_ids: Callable[[], bool] = in_foreign_pid_namespace,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._tree = tree
        self._foreign_ids = foreign_ids
        self._roots: tuple[int, ...] = ()
        self._pids: frozenset[int] = frozenset()
        self._due_ns = 0

    def look(self, roots: tuple[int, ...], *, relist: bool) -> None:
        """Find the processes under ``roots``. Listing costs milliseconds, so without ``relist`` mostly from memory."""
        now = self._clock()
        if relist or roots != self._roots or now >= self._due_ns:
            self._roots, self._due_ns = roots, now + _TREE_PERIOD_NS
            self._pids = frozenset((*roots, *self._tree(roots)))

    def busy_ratio(self, nvml: Any, handle: Any) -> float | None:
        """The share of the last second in which kernels of these processes ran."""
        since_us = self._wall_clock() // 1000 - 1_000_000  # from the epoch; 0 would average the driver's whole buffer
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(handle, since_us)
        except nvml.NVMLError as error:
            # Nobody used the GPU; for an empty answer the binding raises "success".
            if error.value not in {nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND}:
                raise
            samples = []
        if not any(sample.pid in self._pids for sample in samples) and self._foreign_ids():
            raise NotOffered(FOREIGN_IDS)
        return runtime_share(samples, self._pids, since_us)

    def memory_bytes(self, nvml: Any, handle: Any) -> int:
        """Device memory of these processes. Takes milliseconds."""
        processes = list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        with suppress(nvml.NVMLError):  # data-centre parts have no graphics list
            processes += nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
        # One process may be in both lists, with the same figure.
        used = {process.pid: process.usedGpuMemory for process in processes if process.pid in self._pids}
        if any(size is None for size in used.values()):
            raise NotOffered(WDDM)
        if not used and self._foreign_ids():
            raise NotOffered(FOREIGN_IDS)
        return sum(used.values())
