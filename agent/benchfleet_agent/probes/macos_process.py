"""The runtime's processes on a Mac as the kernel accounts for them: CPU energy and memory footprints.

``proc_pid_rusage`` fills ``struct rusage_info_v6`` (macOS 13 and newer) or ``_v4`` of <sys/resource.h>: a UUID
of 16 bytes, then 64-bit numbers. It tells of the agent's own user's processes. The energy is the kernel's
estimate of what the CPU used and moves every some 20 ms. The footprint counts compressed memory and the
GPU's, but not clean pages of files such as mapped weights. The neural footprint is what the Neural Engine holds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.runtime_pids import NO_RUNTIME, RuntimePids
from benchfleet_agent.probes.system import descendants

METRICS = (
    "runtime_energy_nj",
    "runtime_footprint_bytes",
    "runtime_footprint_highest_bytes",
    "runtime_neural_bytes",
)
_ENERGY, _FOOTPRINT, _HIGHEST, _NEURAL = METRICS
V4, V6 = 4, 6
SIZES = {V4: 296, V6: 464}
"""Bytes of the structure by version (RUSAGE_INFO_V4, RUSAGE_INFO_V6)."""
_BUFFER_BYTES = 1_024
"""More than any version: newer kernels use up reserved fields without growing it."""
_USER_TIME, _PHYS_FOOTPRINT, _START, _LIFETIME_FOOTPRINT, _ENERGY_NJ, _NEURAL_FOOTPRINT = 16, 72, 80, 240, 336, 368
"""Offsets of ri_user_time, ri_phys_footprint, ri_proc_start_abstime, ri_lifetime_max_phys_footprint, ri_energy_nj and
ri_neural_footprint."""
_FOREIGN = "macOS tells it only of processes of the agent's own user: run the agent as the runtime's user"
_OLD = "macOS before 13 does not tell it of single processes"
_ZERO = "this processor's energy is not accounted to processes (Apple silicon's is)"
_GONE = "no process of the runtime is left"


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """One process. None: this version of macOS does not tell."""

    start: int
    """When it began, in the kernel's own time; with the id it names the process for good."""
    footprint_bytes: int
    highest_bytes: int
    energy_nj: int | None
    neural_bytes: int | None
    user_time: int
    """In the kernel's own time units; only compared with 0."""


def parse_usage(data: bytes, version: int) -> ProcessUse:
    """Read a ``struct rusage_info_v4`` or ``_v6``. Raises `struct.error` for too few bytes."""
    return ProcessUse(
        start=_number(data, _START),
        footprint_bytes=_number(data, _PHYS_FOOTPRINT),
        highest_bytes=_number(data, _LIFETIME_FOOTPRINT),
        energy_nj=_number(data, _ENERGY_NJ) if version >= V6 else None,
        neural_bytes=_number(data, _NEURAL_FOOTPRINT) if version >= V6 else None,
        user_time=_number(data, _USER_TIME),
    )


def _number(data: bytes, offset: int) -> int:
    (value,) = struct.unpack_from("<Q", data, offset)
    return int(value)


class RusageApi(Protocol):
    """The call. Raises `OSError` with the system's error number."""

    def usage(self, pid: int, version: int) -> bytes:
        """``proc_pid_rusage``: the structure's bytes."""


def load_rusage() -> RusageApi:
    """Find ``proc_pid_rusage``. Raises `Unavailable`."""
    if sys.platform != "darwin":
        raise Unavailable("only on macOS")

    class Calls:
        """The real call."""

        def __init__(self) -> None:
            self._usage = ctypes.CDLL("/usr/lib/libSystem.B.dylib", use_errno=True).proc_pid_rusage
            self._usage.argtypes, self._usage.restype = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p], ctypes.c_int

        def usage(self, pid: int, version: int) -> bytes:
            buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
            if self._usage(pid, version, buffer):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            return buffer.raw[: SIZES[version]]

    try:
        return Calls()
    except (OSError, AttributeError) as error:
        raise Unavailable(f"proc_pid_rusage is not there: {error}") from None


class MacProcessProbe:
    """CPU energy and memory footprints of the runtime's processes."""

    probe_id = "macos_process"
    period_ms = 250
    budget_us = 2_000
    verification = "documentation"

    def __init__(
        self,
        api: RusageApi | None = None,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
    ) -> None:
        self._given = api
        self._api: RusageApi | None = None
        self._version = V6
        self._pids = RuntimePids(tree, clock)
        self._roots: tuple[int, ...] = ()
        # By (process id, start): what a process used stays used when it ends.
        self._energy_nj: dict[tuple[int, int], int] = {}
        self._gaps: dict[str, str] = {}

    def discover(self) -> None:
        """Find the call and the newest version of it this macOS knows, by asking for the agent itself."""
        self.close()
        api = self._given if self._given is not None else load_rusage()
        for version in (V6, V4):
            try:
                parse_usage(api.usage(os.getpid(), version), version)
            except (OSError, struct.error) as error:
                reason = error
                continue
            self._api, self._version = api, version
            return
        raise Unavailable(f"macOS does not tell the agent its own use of resources: {reason}")

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """What the last reading lacked."""
        return self._gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read the runtime's processes. The highest footprints are summed, though not reached at one time."""
        return self._read(targets, relist=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read with a fresh list of the runtime's processes."""
        return self._read(targets, relist=True)

    def _read(self, targets: Targets, *, relist: bool) -> Sequence[Reading]:
        if self._api is None:
            raise Unavailable("the probe of the Mac's processes was not discovered")
        if targets.runtime_pids != self._roots:
            self._roots, self._energy_nj = targets.runtime_pids, {}
        uses: dict[tuple[int, int], ProcessUse] = {}
        problem = _GONE if targets.runtime_pids else NO_RUNTIME
        complete = True
        for pid in self._pids.read(targets.runtime_pids, relist=relist):
            try:
                use = parse_usage(self._api.usage(pid, self._version), self._version)
            except OSError as error:
                if error.errno == errno.ESRCH:
                    continue
                complete = False
                problem = _FOREIGN if error.errno == errno.EPERM else f"proc_pid_rusage failed: {error}"
                continue
            uses[pid, use.start] = use
        if not uses or not complete:
            self._gaps = dict.fromkeys(METRICS, problem)
            return [Reading("", (None,) * len(METRICS))]
        energy_nj, processes = self._energy(uses), uses.values()
        neural = [use.neural_bytes for use in processes if use.neural_bytes is not None]
        values = (
            energy_nj,
            sum(use.footprint_bytes for use in processes),
            sum(use.highest_bytes for use in processes),
            sum(neural) if neural else None,
        )
        return [Reading("", values)]

    def _energy(self, uses: Mapping[tuple[int, int], ProcessUse]) -> int | None:
        for key, use in uses.items():
            if use.energy_nj is not None:
                self._energy_nj[key] = max(use.energy_nj, self._energy_nj.get(key, 0))
        total = sum(self._energy_nj.values())
        self._gaps = {}
        if self._version < V6:
            self._gaps[_ENERGY] = self._gaps[_NEURAL] = _OLD
        elif not total and any(use.user_time for use in uses.values()):
            self._gaps[_ENERGY] = _ZERO
        return None if _ENERGY in self._gaps else total

    def close(self) -> None:
        """Let the call go."""
        self._api = None
