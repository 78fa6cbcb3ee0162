"""The sampler: reads the probes on time, labels what they say, and hands it on in columns.

One daemon thread serves all probes. The schedule has no drift, and a tick that comes too late is
dropped and counted, never made up for in a burst. At the edge of a phase the caller's thread reads every
probe once, and that reading ends the old phase and begins the new one: counters are exact at edges.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import EdgeProbe, Probe, Reading, Targets, Unavailable, Value, failure_text, gaps_of
from benchfleet_agent.sample_batch import Label, SampleBatch

__all__ = ["Label", "SampleBatch", "Sampler", "backoff_ns", "next_due", "slowdown"]

_log = logging.getLogger(__name__)

FAST_PERIOD_MS = 100
"""Probes made for this period or less follow the job's sample period; slower ones keep their own."""
FLUSH_PERIOD_NS = 1_000_000_000
LONGEST_BACKOFF_NS = 30_000_000_000
FIRST_BACKOFF_NS = 200_000_000
_REDISCOVER_AFTER = 3
"""A probe that failed this often in a row is discovered anew before it is read again."""
_MOST_HALVINGS = 6
_COST_WEIGHT = 0.1
_UNLABELLED_PERIOD_NS = 20_000_000
_EDGE_PATIENCE_S = 1.0
"""How long an edge waits for a reading that the thread is in; a hung driver must not hang the job."""


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


class _Track:
    """One probe with its schedule, its health and what it read under the current label."""

    def __init__(self, probe: Probe, period_ns: int) -> None:
        self.probe = probe
        self.names = probe.metrics()
        self.period_ns = period_ns
        self.lock = threading.Lock()  # held while the probe is used
        self.due_ns = 0
        self.failures = 0
        self.discovered = False
        self.reason: str | None = None
        self.cost_us = 0.0
        self.label: Label | None = None
        self.missed_label: Label | None = None  # of an edge that came while a reading hung
        self.pending: dict[str, _Pending] = {}
        self.pending_since_ns = 0

    def discover(self) -> None:
        """Find the source; raises whatever the probe raises."""
        with suppress(Exception):
            self.probe.close()
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

    def note_success(self, cost_us: float) -> None:
        """Remember that the probe reads, and what it costs."""
        if self.reason is not None:
            _log.info("probe %s reads again", self.probe.probe_id)
        self.reason, self.failures = None, 0
        # The first reading opens files and fills caches: alone, it must not lower the rate.
        before = self.cost_us or min(cost_us, self.probe.budget_us)
        self.cost_us = before + (cost_us - before) * (_COST_WEIGHT if self.cost_us else 0)

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


class Sampler:
    """Samples a job. Not running between jobs: an idle agent reads nothing.

    ``emit`` gets each batch once, in order for each probe, from the sampler's thread or from the caller
    of `set_label`, `flush` or `stop`; it must be quick and must not wait for that caller.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        emit: Callable[[SampleBatch], None],
        *,
        fast_period_ms: int = FAST_PERIOD_MS,
        clock: Callable[[], int] = time.perf_counter_ns,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._wait = wait
        self._tracks = [
            _Track(
                probe,
                1_000_000
                * (fast_period_ms if probe.period_ms <= FAST_PERIOD_MS else max(probe.period_ms, fast_period_ms)),
            )
            for probe in probes
        ]
        self._targets = Targets()
        self._label: Label | None = None
        self._measured: set[str] = set()
        self._dropped = 0
        self._state_lock = threading.Lock()
        self._emit_lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Ticks dropped to stay on time since the sampler was made, and readings that could not be handed on."""
        return self._dropped

    def start(self) -> None:
        """Discover the probes and begin; nothing is read before the first label."""
        if self._thread is not None:
            raise RuntimeError("the sampler runs already")
        self._stopping.clear()
        for track in self._tracks:
            with track.lock:
                track.failures, track.discovered = 0, False
                self._discover(track)
                track.due_ns = 0 if track.discovered else self._clock() + backoff_ns(track.failures)
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, hand on what is pending and close the probes. Harmless when not running."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout=_EDGE_PATIENCE_S * 2)
        self.flush()
        for track in self._tracks:
            with self._held(track) as held:
                if held:
                    track.label = None
                    with suppress(Exception):
                        track.probe.close()
        self._label = None

    def set_targets(self, targets: Targets) -> None:
        """Look at these processes from the next reading on."""
        self._targets = targets

    def set_label(self, label: Label) -> None:
        """Begin a phase: one reading of every probe, now, ends the old phase and begins the new one.

        Returns when the old phase has been handed on. A probe whose reading hangs is left out.
        """
        with self._state_lock:
            if label.case_id and (self._label is None or label.case_id != self._label.case_id):
                self._measured.clear()
            self._label = label
        for track in self._tracks:
            with self._held(track) as held:
                if held:
                    self._cross_edge(track, label)
                else:
                    track.missed_label = label
                    self._count_dropped(1)
                    track.reason = f"a reading has not returned for more than {_EDGE_PATIENCE_S:g} s"

    def _cross_edge(self, track: _Track, label: Label) -> None:
        edge = self._read(track, at_edge=True) if track.discovered else None
        with self._emit_lock:
            if edge is not None and track.label is not None:
                track.append(*edge)
            batches = track.take()
            track.label, track.missed_label = label, None
            track.due_ns = track.due_ns or self._clock() + track.period_ns
            if edge is not None:
                sample_ns, cost_us, readings = edge
                # Paid for once: by the old phase, if there is one.
                track.append(sample_ns, 0 if batches else cost_us, readings)
            self._hand_on(batches)

    def flush(self) -> None:
        """Hand on everything read so far."""
        for track in self._tracks:
            with self._held(track) as held:
                if held:
                    with self._emit_lock:
                        self._hand_on(track.take())

    def unmeasured(self) -> dict[str, str]:
        """Return the metrics without any value in the latest case, with the reason for each."""
        with self._state_lock:
            measured = set(self._measured)
        reasons = dict.fromkeys(BY_NAME, "no probe of this agent measures it")
        for track in self._tracks:
            with self._held(track) as held:
                gaps = gaps_of(track.probe) if held and not track.reason else {}
            for name in track.names:
                reasons[name] = track.reason or gaps.get(name, f"the probe {track.probe.probe_id} gave no value")
        return {name: reason for name, reason in reasons.items() if name not in measured}

    def tick(self) -> int:
        """Read what is due and hand on what is old enough; return when the next probe is due."""
        for track in self._tracks:
            if track.label is not None and track.due_ns <= self._clock():
                self._serve(track)
        due = [track.due_ns for track in self._tracks if track.label is not None]
        return min(due, default=self._clock() + _UNLABELLED_PERIOD_NS)

    def _serve(self, track: _Track) -> None:
        with track.lock:
            self._read_due(track)
            old_enough = bool(track.pending) and self._clock() - track.pending_since_ns >= FLUSH_PERIOD_NS
            if not old_enough and track.missed_label is None:
                return
            # Taken in order, but handed on without holding the probe: a slow disk must not delay an edge's reading.
            self._emit_lock.acquire()
            batches = track.take()
            if track.missed_label is not None:
                track.label, track.missed_label = track.missed_label, None
        try:
            self._hand_on(batches)
        finally:
            self._emit_lock.release()

    def _read_due(self, track: _Track) -> None:
        due_ns = track.due_ns
        if not track.discovered:
            self._discover(track)
        reading = self._read(track, at_edge=False) if track.discovered else None
        now = self._clock()
        if reading is None:
            track.due_ns = now + backoff_ns(track.failures)
            return
        if track.missed_label is None:  # else it lies across an edge and belongs to no phase
            track.append(*reading)
        track.due_ns, dropped = next_due(due_ns, now, track.period_ns * slowdown(track.cost_us, track.probe.budget_us))
        self._count_dropped(dropped)

    def _discover(self, track: _Track) -> None:
        try:
            track.discover()
        except Unavailable as error:
            track.note_failure(error)
            track.failures = 20  # a missing driver does not come within seconds
        except Exception as error:  # noqa: BLE001 - a broken library costs one probe, never the agent
            track.note_failure(error)
        else:
            track.reason = None

    def _read(self, track: _Track, *, at_edge: bool) -> tuple[int, int, Sequence[Reading]] | None:
        probe = track.probe
        read = probe.read_at_edge if at_edge and isinstance(probe, EdgeProbe) else probe.read
        start = self._clock()
        try:
            readings = read(self._targets)
        except Exception as error:  # noqa: BLE001 - a failing probe backs off, the others go on
            track.note_failure(error)
            return None
        took_ns = self._clock() - start
        if at_edge:
            track.reason, track.failures = None, 0  # edges read more: no measure of what a tick costs
        else:
            track.note_success(took_ns / 1e3)
        with self._state_lock:
            for reading in readings:
                self._measured.update(
                    name for name, value in zip(track.names, reading.values, strict=True) if value is not None
                )
        return start + took_ns // 2, min(took_ns // 1000, 2**31 - 1), readings

    def _hand_on(self, batches: list[SampleBatch]) -> None:
        for batch in batches:
            try:
                self._emit(batch)
            except Exception:  # noqa: BLE001 - sampling goes on; the loss is counted
                _log.exception("%d readings of %s were lost", len(batch.sample_ns), batch.probe_id)
                self._count_dropped(len(batch.sample_ns))

    def _count_dropped(self, count: int) -> None:
        if count:
            with self._state_lock:
                self._dropped += count

    @contextmanager
    def _held(self, track: _Track) -> Iterator[bool]:
        """Hold a probe, waiting for a reading in progress but not for a hung one."""
        held = track.lock.acquire(timeout=_EDGE_PATIENCE_S)
        try:
            yield held
        finally:
            if held:
                track.lock.release()

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_ns = self.tick() - self._clock()
            if wait_ns > 0:
                self._wait(self._stopping, wait_ns / 1e9)
