r"""Time of GPU and NPU engines from Windows' counters: names of instances, and accounts that never fall. Pure.

The raw value behind ``\GPU Engine(*)\Utilization Percentage`` is the time an engine worked for a process, in
units of 100 ns (its counter type is PERF_100NSEC_TIMER). Two weaknesses are known: time is booked when a
packet of work ends, so that one interval may hold more than it lasted, and some drivers (Intel Arc 130V,
engine ``Neural``) let the value jump back and forth. Such an instance is recognised and counts as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

_NS_PER_TICK = 100
_LONGEST_PACKET_NS = 60_000_000_000
"""How much longer than the interval one engine can have worked, for packets booked at their end."""
_ENGINE = re.compile(
    r"pid_(\d+)_luid_0x([0-9a-f]{1,8})_0x([0-9a-f]{1,8})_phys_(\d+)_eng_(\d+)_engtype_?(.*)", re.IGNORECASE
)
_MEMORY = re.compile(r"(?:pid_(\d+)_)?luid_0x([0-9a-f]{1,8})_0x([0-9a-f]{1,8})_phys_(\d+)", re.IGNORECASE)
_NPU_ENGINE = ("compute", "neural", "npu")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine of one adapter."""

    luid: str
    """The adapter's locally unique identifier as `luid_text` writes it."""
    part: int
    """Which of linked adapters (``phys``)."""
    number: int
    kind: str
    """``3D``, ``Compute``, ``Copy``, ``VideoDecode``, ``Neural``, …; empty: the driver does not say."""


def luid_text(high: int, low: int) -> str:
    """Write an adapter's identifier the way the counters do: ``0x00000000_0x0000C1B3``."""
    return f"0x{high:08X}_0x{low:08X}"


def parse_engine(name: str) -> tuple[int, Engine] | None:
    """Read an instance of ``GPU Engine``: (process id, engine); None where the name is another's or malformed."""
    if (match := _ENGINE.fullmatch(name)) is None:
        return None
    pid, high, low, part, number, kind = match.groups()
    return int(pid), Engine(luid_text(int(high, 16), int(low, 16)), int(part), int(number), kind.strip())


def parse_memory(name: str) -> tuple[int | None, str] | None:
    """Read an instance of ``GPU Process Memory`` or ``GPU Adapter Memory``: (process id if any, LUID)."""
    if (match := _MEMORY.fullmatch(name)) is None:
        return None
    pid, high, low, _ = match.groups()
    return None if pid is None else int(pid), luid_text(int(high, 16), int(low, 16))


def is_npu(engine_kinds: Iterable[str]) -> bool:
    """Whether the engines seen are those of an NPU: some that compute and none for graphics.

    ``Neural`` alone proves nothing: Intel's GPUs have one beside ``3D``.
    """
    kinds = {kind.lower() for kind in engine_kinds}
    return any(kind.startswith(_NPU_ENGINE) for kind in kinds) and not any(
        kind.startswith(("3d", "video", "graphics")) for kind in kinds
    )


@dataclass(slots=True)
class _Account:
    last_ns: int
    total_ns: int = 0
    """Since the account was opened."""


@dataclass(slots=True)
class EngineTimes:
    """Accounts of every process on every engine."""

    busiest_ns: dict[str, int] = field(default_factory=dict)
    """LUID → sum over readings of what the busiest engine worked for everyone."""
    kinds: dict[str, set[str]] = field(default_factory=dict)
    """LUID → kinds of engines seen."""
    _accounts: dict[tuple[int, Engine], _Account] = field(default_factory=dict)
    _ended_ns: dict[tuple[int, str], int] = field(default_factory=dict)
    """(process id, LUID) → time of engines it no longer has open: what it did stays done."""
    _broken: set[tuple[int, str]] = field(default_factory=set)
    _read_ns: int | None = None

    def add(self, ticks: Mapping[str, int], now_ns: int, keep: Callable[[int], bool]) -> None:
        """Take in a reading: instance → value in 100 ns. ``keep``: whether an ended process' time is still asked for.

        An instance first seen at the first reading, or with more time than it can have got since the last
        one, begins at 0; any other that appears counts in full, as it did not exist before.
        """
        most_ns = 0 if self._read_ns is None else now_ns - self._read_ns + _LONGEST_PACKET_NS
        self._read_ns = now_ns
        worked: dict[Engine, int] = {}
        seen: set[tuple[int, Engine]] = set()
        for name, value in ticks.items():
            if (parsed := parse_engine(name)) is None or value < 0:
                continue
            seen.add(parsed)
            pid, engine = parsed
            self.kinds.setdefault(engine.luid, set()).add(engine.kind)
            now_at_ns = value * _NS_PER_TICK
            if parsed not in self._accounts:
                self._accounts[parsed] = _Account(now_at_ns if now_at_ns > most_ns else 0)
            account = self._accounts[parsed]
            delta_ns, account.last_ns = now_at_ns - account.last_ns, now_at_ns
            if 0 <= delta_ns <= most_ns:
                account.total_ns += delta_ns
                worked[engine] = worked.get(engine, 0) + delta_ns
            else:
                self._broken.add((pid, engine.luid))
        self._end(self._accounts.keys() - seen, keep)
        busiest: dict[str, int] = {}
        for engine, delta_ns in worked.items():
            busiest[engine.luid] = max(delta_ns, busiest.get(engine.luid, 0))
        for luid, delta_ns in busiest.items():
            self.busiest_ns[luid] = self.busiest_ns.get(luid, 0) + delta_ns

    def _end(self, gone: Iterable[tuple[int, Engine]], keep: Callable[[int], bool]) -> None:
        for pid, engine in gone:
            key = pid, engine.luid
            self._ended_ns[key] = self._ended_ns.get(key, 0) + self._accounts.pop((pid, engine)).total_ns
        here = {(pid, engine.luid) for pid, engine in self._accounts}
        self._ended_ns = {key: time_ns for key, time_ns in self._ended_ns.items() if keep(key[0])}
        self._broken = {key for key in self._broken if key in here or keep(key[0])}

    def of(self, luid: str, pids: frozenset[int]) -> int:
        """Return the time of all engines of an adapter together for some processes, in ns."""
        open_ns = sum(
            account.total_ns for (pid, engine), account in self._accounts.items() if engine.luid == luid and pid in pids
        )
        return open_ns + sum(ns for (pid, at), ns in self._ended_ns.items() if at == luid and pid in pids)

    def broken(self, luid: str) -> frozenset[int]:
        """Return the processes whose values on an adapter jump back and forth."""
        return frozenset(pid for pid, at in self._broken if at == luid)
