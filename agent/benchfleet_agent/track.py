"""One probe as the sampler keeps it: its schedule, its health, and what it read under the current label."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Probe, Reading, Unavailable, Value, failure_text, require_known
from benchfleet_agent.sample_batch import Label, SampleBatch

_log = logging.getLogger(__name__)

LONGEST_BACKOFF_NS = 30_000_000_000
FIRST_BACKOFF_NS = 200_000_000
_REDISCOVER_AFTER = 3
"""A probe that failed this often in a row is discovered anew before it is read again."""
_UNAVAILABLE_FAILURES = 20
"""What a missing driver counts for: it does not come within seconds."""
_MOST_HALVINGS = 6
_COST_WEIGHT = 0.1


def next_due(due_ns: int, now_ns: int, period_ns: int) -> tuple[int, int]:
    """Return (next due time, ticks dropped) for a tick of the grid that is over at ``now_ns``.

    The next tick is the first of ``due_ns + k * period_ns``, k ≥ 1, not in the past.
    """
    following = due_ns + period_ns
    if following >= now_ns:
        return following, 0
    dropped = -(-(now_ns - following) // period_ns)
    return following + dropped * period_ns, dropped


def slowdown(cost_us: float, budget_us: float) -> int:
    """Return by how much to lengthen a probe's period: halve the rate until the cost is within the budget."""
    halvings = 0
    while halvings < _MOST_HALVINGS and cost_us > budget_us * 2**halvings:
        halvings += 1
    return int(2**halvings)


def backoff_ns(failure_count: int) -> int:
    """Return how long to leave a probe alone after its nth failure in a row (n ≥ 1)."""
    return min(FIRST_BACKOFF_NS << min(failure_count - 1, 20), LONGEST_BACKOFF_NS)


@dataclass(slots=True)
class _Pending:
    """Readings of one device that were not handed on yet."""

    sample_ns: list[int] = field(default_factory=list)
    cost_us: list[int] = field(default_factory=list)
    rows: list[tuple[Value, ...]] = field(default_factory=list)


class Track:
    """One probe with its schedule, its health and what it read under the current label.

    Whoever uses the probe holds ``lock``; a call that hangs holds it until it returns.
    """

    def __init__(self, probe: Probe, period_ns: int) -> None:
        self.probe = probe
        self.names: tuple[str, ...] = ()
        self.reason: str | None = None
        try:
            self.names = probe.metrics()
        except Exception as error:  # noqa: BLE001 - its readings will not have the shape it declared, and fail
            self.reason = failure_text(error)
        self.empty = tuple(range(len(self.names)))
        """Places in ``names`` of the metrics without any value in the latest case. Guarded by the sampler."""
        self.period_ns = period_ns
        self.lock = threading.Lock()
        self.due_ns = 0
        self.failures = 0
        self.discovered = False
        self.faults: dict[str, str] = {}
        self.cost_us = 0.0
        self.label: Label | None = None
        self.missed_label: Label | None = None  # of an edge that came while a reading hung
        self.pending: dict[str, _Pending] = {}
        self.pending_since_ns = 0
        # The call in progress: since when, and until when it is thought to be healthy. Guarded by the sampler.
        self.busy_since_ns: int | None = None
        self.busy_until_ns = 0
        self.stalled = False

    def discover(self) -> None:
        """Find the source; raises whatever the probe raises."""
        with suppress(Exception):
            self.probe.close()
        require_known(self.names)
        self.probe.discover()
        self.discovered = True

    def note_failure(self, error: Exception) -> None:
        """Remember why the probe does not read."""
        reason = failure_text(error)
        if self.reason != reason:
            _log.info("probe %s does not read: %s", self.probe.probe_id, reason)
        self.reason = reason
        self.failures += 1
        if self.failures >= _REDISCOVER_AFTER:
            self.discovered = False

    def note_absence(self, error: Unavailable) -> None:
        """Remember that there is nothing to read for now."""
        self.note_failure(error)
        self.failures = _UNAVAILABLE_FAILURES

    def note_success(self, cost_us: float, faults: dict[str, str]) -> None:
        """Remember that the probe reads, and what it costs."""
        self.note_healthy(faults)
        # The first reading opens files and fills caches: alone, it must not lower the rate.
        before = self.cost_us or min(cost_us, self.probe.budget_us)
        self.cost_us = before + (cost_us - before) * (_COST_WEIGHT if self.cost_us else 0)

    def note_healthy(self, faults: dict[str, str]) -> None:
        """Remember that the probe reads, whatever this reading cost."""
        if self.reason is not None:
            _log.info("probe %s reads again", self.probe.probe_id)
        self.reason, self.failures = None, 0
        for name, fault in faults.items():
            if self.faults.get(name) is None:
                _log.warning("probe %s, %s: %s", self.probe.probe_id, name, fault)
            self.faults[name] = fault

    def append(self, sample_ns: int, cost_us: int, readings: Sequence[Reading]) -> None:
        """Keep readings until they are taken."""
        if not self.pending:
            self.pending_since_ns = sample_ns
        for reading in readings:
            pending = self.pending.setdefault(reading.device_id, _Pending())
            pending.sample_ns.append(sample_ns)
            pending.cost_us.append(cost_us)
            pending.rows.append(reading.values)

    def take(self) -> list[SampleBatch]:
        """Return what is pending as columns and forget it."""
        pending, self.pending = self.pending, {}
        if self.label is None:
            return []
        return [
            SampleBatch(self.label, self.probe.probe_id, device_id, part.sample_ns, part.cost_us, columns)
            for device_id, part in pending.items()
            if (columns := self._columns(part.rows))
        ]

    def _columns(self, rows: list[tuple[Value, ...]]) -> dict[str, list[Value]]:
        columns = zip(self.names, zip(*rows, strict=True), strict=True)
        return {name: list(column) for name, column in columns if any(value is not None for value in column)}

    def why_empty(self, gaps: dict[str, str]) -> dict[str, str]:
        """Why each of the probe's metrics (and each metric of single devices in ``gaps``) has no value."""
        plain = f"the probe {self.probe.probe_id} gave no value"
        reasons = {
            name: self.reason or gaps.get(name) or self.faults.get(name) or plain
            for name in self.names
            if name in BY_NAME
        }
        return reasons | {name: reason for name, reason in gaps.items() if "@" in name}


def sweep(
    tracks: Iterable[Track], work: Callable[[Track], None], patience_s: float, give_up: Callable[[Track], None]
) -> None:
    """Do ``work`` for each probe in turn on a thread, until a call into one takes longer than ``patience_s``.

    That one is left behind with its thread and given to ``give_up``, and another thread goes on with the rest.
    Anything else that takes long, such as a slow disk, is waited for.
    """
    todo = collections.deque(tracks)
    while todo:
        current: list[Track] = []
        helper = threading.Thread(target=_carry_out, args=(work, todo, current), name="sampler-edge", daemon=True)
        helper.start()
        while helper.is_alive():
            before = current[-1:]
            helper.join(patience_s)
            if helper.is_alive() and before and current[-1:] == before and before[0].busy_since_ns is not None:
                todo = _withdraw(todo)
                give_up(before[0])
                break


def _carry_out(work: Callable[[Track], None], todo: collections.deque[Track], current: list[Track]) -> None:
    while True:
        try:
            current.append(todo.popleft())
        except IndexError:
            return
        work(current[-1])


def _withdraw(todo: collections.deque[Track]) -> collections.deque[Track]:
    """Take what is left, one by one: each probe is either the helper's or ours."""
    rest: collections.deque[Track] = collections.deque()
    with suppress(IndexError):
        while True:
            rest.append(todo.popleft())
    return rest
