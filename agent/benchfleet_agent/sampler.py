"""The sampler: reads the probes on time, labels what they say, and hands it on in columns.

One daemon thread serves all probes. The schedule has no drift, and a tick that comes too late is
dropped and counted, never made up for in a burst. At the edge of a phase every probe is read once, and
that reading ends the old phase and begins the new one: counters are exact at edges.

A call into a driver can hang and cannot be ended from outside. Such a probe is left behind with the thread
that is in it; another thread takes over the others, and the probe comes back when its call returns.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import EdgeProbe, Probe, Reading, Targets, Unavailable, Value, checked, gaps_of
from benchfleet_agent.sample_batch import Label, SampleBatch
from benchfleet_agent.track import Track, backoff_ns, next_due, slowdown, sweep

__all__ = ["Label", "SampleBatch", "Sampler", "backoff_ns", "next_due", "slowdown"]

_log = logging.getLogger(__name__)

FAST_PERIOD_MS = 100
"""Probes made for this period or less follow the job's sample period; slower ones keep their own."""
FLUSH_PERIOD_NS = 1_000_000_000
LATEST_NS = 3_000_000_000
"""How old a value may be to count as the latest."""
STALL_NS = 2_000_000_000
STALL_PERIODS = 5
"""A call that takes longer than both `STALL_NS` and this many periods of its probe is taken to hang."""
DISCOVER_PATIENCE_NS = 10_000_000_000
"""What finding a source may take when a job starts: a driver that wakes its GPU needs seconds."""
_UNLABELLED_PERIOD_NS = 20_000_000
_WATCH_PERIOD_S = 1.0
_EDGE_PATIENCE_S = 1.0
"""How long an edge waits for a reading that the thread is in; a hung driver must not hang the job."""


class Sampler:
    """Samples a job. Not running between jobs: an idle agent reads nothing.

    ``emit`` gets each batch once, in order for each probe, from threads of the sampler or from the caller
    of `flush` or `stop`; it must be quick and must not wait for the caller of any method.
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
            Track(
                probe,
                1_000_000
                * (fast_period_ms if probe.period_ms <= FAST_PERIOD_MS else max(probe.period_ms, fast_period_ms)),
            )
            for probe in probes
        ]
        self._targets = Targets()
        self._label: Label | None = None
        self._stalls: dict[str, str] = {}
        self._recent: collections.deque[tuple[int, tuple[str, ...], Sequence[Reading]]] = collections.deque()
        self._dropped = 0
        self._state_lock = threading.Lock()
        self._emit_lock = threading.Lock()
        self._stopping = threading.Event()
        self._closed = False
        self._generation = 0
        self._worker: threading.Thread | None = None
        self._watcher: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Ticks dropped to stay on time since the sampler was made, and readings lost or cut off by a hung call."""
        return self._dropped

    def start(self) -> None:
        """Discover the probes and begin; nothing is read before the first label."""
        if self._watcher is not None:
            raise RuntimeError("the sampler runs already")
        self._stopping.clear()
        self._closed = False
        sweep(self._tracks, self._begin, DISCOVER_PATIENCE_NS / 1e9, self._give_up)
        self._take_over()
        self._watcher = threading.Thread(target=self._run_watch, name="sampler-watch", daemon=True)
        self._watcher.start()

    def _begin(self, track: Track) -> None:
        with self._held(track) as held:
            if not held:
                return
            track.failures, track.discovered = 0, False
            self._discover(track, DISCOVER_PATIENCE_NS)
            track.due_ns = 0 if track.discovered else self._clock() + backoff_ns(track.failures)
            if track.missed_label is not None:
                track.label, track.missed_label = track.missed_label, None

    def stop(self) -> None:
        """Stop, hand on what is pending and close the probes. Harmless when not running."""
        self._stopping.set()
        for thread in (self._watcher, self._worker):
            if thread is not None:
                thread.join(timeout=_EDGE_PATIENCE_S * 2)
        self._watcher = self._worker = None
        self.flush()
        for track in self._tracks:
            with self._held(track) as held:
                if held:
                    track.label = None
                    with suppress(Exception):
                        track.probe.close()
        self._label = None
        self._closed = True

    def set_targets(self, targets: Targets) -> None:
        """Look at these processes from the next reading on."""
        self._targets = targets

    def set_label(self, label: Label) -> None:
        """Begin a phase: one reading of every probe, now, ends the old phase and begins the new one.

        Returns when the old phase has been handed on. A probe whose reading hangs is left out.
        """
        with self._state_lock:
            if label.case_id and (self._label is None or label.case_id != self._label.case_id):
                for track in self._tracks:
                    track.empty = tuple(range(len(track.names)))
                self._stalls = {name: t.reason or "" for t in self._tracks if t.stalled for name in t.names}
            self._label = label

        def reach(track: Track) -> None:
            with self._held(track) as held:
                if held:
                    self._cross_edge(track, label)
                    return
            with self._state_lock:
                track.missed_label = label
            if not track.stalled:
                self._count_dropped(1)
                track.reason = f"a reading has not returned for more than {_EDGE_PATIENCE_S:g} s"

        sweep(self._tracks, reach, STALL_NS / 1e9 + _EDGE_PATIENCE_S, self._give_up)

    def _give_up(self, track: Track) -> None:
        with self._state_lock:
            self._mark_stalled(track)

    def _cross_edge(self, track: Track, label: Label) -> None:
        edge = self._read(track, at_edge=True) if track.discovered else None
        with self._emit_lock:
            if edge is not None and track.label is not None:
                track.append(*edge)
            batches = track.take()
            track.label, track.missed_label = track.missed_label or label, None
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

    def latest(self) -> Mapping[str, Mapping[str, Value]]:
        """Return the last value read of each metric, by device id (empty: the host), where it is younger than 3 s."""
        oldest = self._clock() - LATEST_NS
        found: dict[str, dict[str, Value]] = {}
        with self._state_lock:
            recent = [entry for entry in self._recent if entry[0] >= oldest]
        for _, names, readings in recent:
            for reading in readings:
                values = zip(names, reading.values, strict=True)
                known = {name: value for name, value in values if value is not None}
                if known:
                    found.setdefault(reading.device_id, {}).update(known)
        return found

    def unmeasured(self) -> dict[str, str]:
        """Return the metrics without any value in the latest case, with the reason for each.

        Metrics of a probe that hung in this case are among them, also when they had values until then, and so
        is a metric of one device as ``metric@device_id`` where that device alone cannot be read.
        """
        reasons = dict.fromkeys(BY_NAME, "no probe of this agent measures it")
        reads: dict[str, list[str]] = {}
        absent: dict[str, list[str]] = {}
        for track in self._tracks:
            with self._held(track) as held:
                gaps = dict(gaps_of(track.probe)) if held and not track.reason else {}
            for name, reason in track.why_empty(gaps).items():
                found = (absent if track.reason else reads).setdefault(name, [])
                found += [reason] if reason not in found else []
        # Where some probe reads, the absence of another vendor's driver explains nothing.
        reasons |= {name: "; ".join(found) for name, found in (absent | reads).items()}
        with self._state_lock:
            measured = {
                name for track in self._tracks for index, name in enumerate(track.names) if index not in track.empty
            }
            return {name: reason for name, reason in reasons.items() if name not in measured} | self._stalls

    def tick(self, generation: int | None = None) -> int:
        """Read what is due and hand on what is old enough; return when the next probe is due."""
        for track in self._tracks:
            if generation is not None and generation != self._generation:
                break  # another thread has taken over
            if track.label is not None and not track.stalled and track.due_ns <= self._clock():
                self._serve(track)
        due = [track.due_ns for track in self._tracks if track.label is not None and not track.stalled]
        return min(due, default=self._clock() + _UNLABELLED_PERIOD_NS)

    def watch(self) -> None:
        """Leave a probe whose call hangs, and the thread in it, behind: a fresh thread serves the others."""
        now = self._clock()
        with self._state_lock:
            busy = [track for track in self._tracks if track.busy_since_ns is not None and now > track.busy_until_ns]
            hung = [track for track in busy if self._mark_stalled(track)]
        if hung and not self._stopping.is_set():
            self._take_over()

    def _take_over(self) -> None:
        self._generation += 1
        self._worker = threading.Thread(target=self._run, args=(self._generation,), name="sampler", daemon=True)
        self._worker.start()

    def _mark_stalled(self, track: Track) -> bool:
        """Note that a call hangs, once; call it with the state locked."""
        if track.stalled or track.busy_since_ns is None:
            return False
        age_s = (self._clock() - track.busy_since_ns) / 1e9
        probe_id = track.probe.probe_id
        track.stalled = True
        track.reason = f"telemetry stalled: a call of the probe {probe_id} has not returned for {age_s:.1f} s"
        self._stalls |= dict.fromkeys(track.names, track.reason)
        self._dropped += 1
        _log.warning("%s; the other probes go on", track.reason)
        return True

    @contextmanager
    def _calling(self, track: Track, patience_ns: int) -> Iterator[None]:
        """Let a call into a probe be watched. Raises `_Late` for a call that was given up meanwhile."""
        with self._state_lock:
            track.busy_since_ns = self._clock()
            track.busy_until_ns = track.busy_since_ns + max(patience_ns, STALL_PERIODS * track.period_ns)
        try:
            yield
        finally:
            with self._state_lock:
                since_ns, track.busy_since_ns = track.busy_since_ns, None
                late, track.stalled = track.stalled, False
            if late:
                _log.warning("probe %s is back after %.1f s", track.probe.probe_id, (self._clock() - since_ns) / 1e9)
                if self._stopping.is_set():
                    with suppress(Exception):
                        track.probe.close()
                    track.discovered = False
        if late:
            raise _Late

    def _serve(self, track: Track) -> None:
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

    def _read_due(self, track: Track) -> None:
        due_ns = track.due_ns
        if not track.discovered:
            self._discover(track, STALL_NS)
        reading = self._read(track, at_edge=False) if track.discovered else None
        now = self._clock()
        if reading is None:
            track.due_ns = now + backoff_ns(max(track.failures, 1))
            return
        if track.missed_label is None:  # else it lies across an edge and belongs to no phase
            track.append(*reading)
        track.due_ns, dropped = next_due(due_ns, now, track.period_ns * slowdown(track.cost_us, track.probe.budget_us))
        self._count_dropped(dropped)

    def _discover(self, track: Track, patience_ns: int) -> None:
        try:
            with self._calling(track, patience_ns):
                track.discover()
        except _Late:
            track.reason = None  # it was slow, and is there
        except Unavailable as error:
            track.note_absence(error)
        except Exception as error:  # noqa: BLE001 - a broken library costs one probe, never the agent
            track.note_failure(error)
        else:
            track.reason = None

    def _read(self, track: Track, *, at_edge: bool) -> tuple[int, int, Sequence[Reading]] | None:
        probe = track.probe
        read = probe.read_at_edge if at_edge and isinstance(probe, EdgeProbe) else probe.read
        try:
            with self._calling(track, STALL_NS):
                start = self._clock()
                given = read(self._targets)
                took_ns = self._clock() - start
            readings, faults = checked(track.names, given)
        except _Late:
            return None  # neither good nor a failure: it lies across more than one period
        except Exception as error:  # noqa: BLE001 - a failing probe backs off, the others go on
            track.note_failure(error)
            return None
        if at_edge:
            track.note_healthy(faults)  # edges read more: no measure of what a tick costs
        else:
            track.note_success(took_ns / 1e3, faults)
        self._remember(track, start + took_ns // 2, readings)
        return start + took_ns // 2, min(took_ns // 1000, 2**31 - 1), readings

    def _remember(self, track: Track, sample_ns: int, readings: Sequence[Reading]) -> None:
        """Keep a reading for `latest` and `unmeasured`, which are asked seldom: nothing is sorted here."""
        recent = self._recent
        with self._state_lock:
            recent.append((sample_ns, track.names, readings))
            while recent[0][0] < sample_ns - LATEST_NS:
                recent.popleft()
            if track.empty:
                track.empty = tuple(
                    index for index in track.empty if all(reading.values[index] is None for reading in readings)
                )

    def _hand_on(self, batches: list[SampleBatch]) -> None:
        for batch in batches:
            if self._closed:  # a hung call came back when its job was over
                self._count_dropped(len(batch.sample_ns))
                continue
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
    def _held(self, track: Track) -> Iterator[bool]:
        """Hold a probe, waiting for a reading in progress but not for a hung one."""
        held = track.lock.acquire(timeout=0 if track.stalled else _EDGE_PATIENCE_S)
        try:
            yield held
        finally:
            if held:
                track.lock.release()

    def _run(self, generation: int) -> None:
        while not self._stopping.is_set() and generation == self._generation:
            wait_ns = self.tick(generation) - self._clock()
            if wait_ns > 0:
                self._wait(self._stopping, wait_ns / 1e9)

    def _run_watch(self) -> None:
        while not self._stopping.wait(_WATCH_PERIOD_S):
            self.watch()


class _Late(Exception):
    """A call came back after it had been given up."""
