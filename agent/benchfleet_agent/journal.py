"""The journal: every job's events, numbered without gaps, on disk before anyone hears of them.

SQLite in WAL mode with ``synchronous=FULL``: an append has returned only once it would survive a power cut
(measured 0.1 to 0.2 ms here, which is why requests are written one by one and samples once a second).
What is on disk is what goes over the wire: serialized ``Event`` messages, each with its CRC-32.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import timestamp_pb2

from benchfleet.v1 import event_pb2, job_pb2

RESERVE_BYTES = 1 << 20
"""Kept aside so that a full disk still leaves room to write down that it is full."""
MINIMUM_FREE_BYTES = 64 << 20
"""Below this no job is accepted: it would end with ``disk_full``."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  job_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, held_by TEXT NOT NULL, spec BLOB NOT NULL,
  state INTEGER NOT NULL, last_sequence INTEGER NOT NULL, accepted_unix_ns INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
  job_id TEXT NOT NULL, sequence INTEGER NOT NULL, crc32 INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;
"""


class JournalFull(Exception):
    """The disk is full; what was written before is safe."""


class JournalInUse(Exception):
    """Another agent has this data directory."""


class JournalDamaged(Exception):
    """The file is not a journal, or an event's checksum does not match."""


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job in the journal."""

    job_id: str
    run_id: str
    held_by: str
    spec: bytes
    state: job_pb2.JobState.ValueType
    last_sequence: int
    accepted_unix_ns: int

    @property
    def ended(self) -> bool:
        """Whether its last event is terminal."""
        return self.state != job_pb2.JOB_STATE_RUNNING

    def to_proto(self) -> job_pb2.Job:
        """The job for the wire."""
        accepted = timestamp_pb2.Timestamp()
        accepted.FromNanoseconds(self.accepted_unix_ns)
        return job_pb2.Job(
            job_id=self.job_id,
            run_id=self.run_id,
            held_by=self.held_by,
            state=self.state,
            last_sequence=self.last_sequence,
            accept_time=accepted,
        )


class Journal:
    """The jobs and events of one agent. Safe from several threads."""

    def __init__(
        self,
        directory: Path,
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._clock_ns = clock_ns
        self._wall_clock_ns = wall_clock_ns
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        self._reserve = directory / "reserve"
        path = directory / "journal.sqlite"
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=0)
            # Held for life: a second agent on the same data directory would mix up the jobs.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise JournalInUse(
                    f"another agent is using {directory}; stop it, or give this one its own --data-dir"
                ) from None
            raise _translated(error, directory) from None
        except sqlite3.DatabaseError as error:
            raise JournalDamaged(
                f"{path} is not a readable journal ({error}); move it away and start the agent again"
            ) from None
        with contextlib.suppress(OSError):
            self._keep_reserve()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def has_room(self) -> bool:
        """Whether there is enough disk for another job."""
        return shutil.disk_usage(self._directory).free >= MINIMUM_FREE_BYTES

    def accept(self, job_id: str, spec: job_pb2.JobSpec, first: event_pb2.Event) -> HeldJob:
        """Write a new job and its first event. Raises `JournalFull`."""
        with contextlib.suppress(OSError):
            self._keep_reserve()
        job = HeldJob(
            job_id,
            spec.run_id,
            spec.held_by,
            spec.SerializeToString(deterministic=True),
            job_pb2.JOB_STATE_RUNNING,
            0,
            self._wall_clock_ns(),
        )
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job_id, job.run_id, job.held_by, job.spec, int(job.state), 0, job.accepted_unix_ns),
            )
            self._write(job_id, [first], None)
        return self._require(job_id)

    def append(self, job_id: str, events: Sequence[event_pb2.Event]) -> int:
        """Number and write events; returns the last sequence, which is durable. Raises `JournalFull`."""
        with self._lock, self._transaction():
            return self._write(job_id, events, None)

    def finish(self, job_id: str, state: job_pb2.JobState.ValueType, last: event_pb2.Event) -> None:
        """Write a job's terminal event and its state; on a full disk the reserve makes room for it."""
        try:
            with self._lock, self._transaction():
                self._write(job_id, [last], state)
        except JournalFull:
            self._reserve.unlink(missing_ok=True)
            with self._lock, self._transaction():
                self._write(job_id, [last], state)

    def read(self, job_id: str, committed_sequence: int, limit_bytes: int) -> list[event_pb2.Event]:
        """Events above a sequence, ascending, about ``limit_bytes`` of them. Raises `JournalDamaged`."""
        found: list[event_pb2.Event] = []
        size = 0
        with self._lock:
            rows = self._db.execute(
                "SELECT sequence, crc32, body FROM events WHERE job_id = ? AND sequence > ? ORDER BY sequence",
                (job_id, committed_sequence),
            )
            for sequence, checksum, body in rows:
                if zlib.crc32(body) != checksum:
                    raise JournalDamaged(f"event {sequence} of job {job_id} is damaged on disk")
                found.append(event_pb2.Event.FromString(body))
                size += len(body)
                if size >= limit_bytes:
                    break
        return found

    def first_sequence(self, job_id: str) -> int:
        """The first event still held; 0 when there is none."""
        with self._lock:
            row = self._db.execute("SELECT min(sequence) FROM events WHERE job_id = ?", (job_id,)).fetchone()
        return int(row[0] or 0)

    def jobs(self) -> list[HeldJob]:
        """All jobs held, oldest first."""
        with self._lock:
            rows = self._db.execute(f"{_SELECT} ORDER BY accepted_unix_ns, job_id").fetchall()
        return [_held(row) for row in rows]

    def job(self, job_id: str) -> HeldJob | None:
        """One job, or None."""
        with self._lock:
            row = self._db.execute(f"{_SELECT} WHERE job_id = ?", (job_id,)).fetchone()
        return _held(row) if row else None

    def release(self, job_id: str) -> None:
        """Forget an ended job and its events."""
        with self._lock, self._transaction():
            self._db.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
            self._db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))

    def _require(self, job_id: str) -> HeldJob:
        job = self.job(job_id)
        assert job is not None
        return job

    def _write(self, job_id: str, events: Sequence[event_pb2.Event], state: job_pb2.JobState.ValueType | None) -> int:
        row = self._db.execute("SELECT last_sequence FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        sequence = int(row[0])
        rows = []
        for event in events:
            sequence += 1
            event.sequence = sequence
            event.event_ns = self._clock_ns()
            event.event_time.FromNanoseconds(self._wall_clock_ns())
            body = event.SerializeToString()
            rows.append((job_id, sequence, zlib.crc32(body), body))
        self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
        if state is None:
            self._db.execute("UPDATE jobs SET last_sequence = ? WHERE job_id = ?", (sequence, job_id))
        else:
            self._db.execute(
                "UPDATE jobs SET last_sequence = ?, state = ? WHERE job_id = ?", (sequence, int(state), job_id)
            )
        return sequence

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise _translated(error, self._directory) from None
            raise

    def _keep_reserve(self) -> None:
        if self._reserve.exists() and self._reserve.stat().st_size == RESERVE_BYTES:
            return
        with self._reserve.open("wb") as file:
            file.write(b"\0" * RESERVE_BYTES)
            file.flush()
            os.fsync(file.fileno())


_SELECT = "SELECT job_id, run_id, held_by, spec, state, last_sequence, accepted_unix_ns FROM jobs"


def _held(row: Sequence[object]) -> HeldJob:
    job_id, run_id, held_by, spec, state, last_sequence, accepted = row
    assert isinstance(spec, bytes)
    assert isinstance(state, int)
    assert isinstance(last_sequence, int)
    assert isinstance(accepted, int)
    return HeldJob(
        str(job_id), str(run_id), str(held_by), spec, job_pb2.JobState.ValueType(state), last_sequence, accepted
    )


def _translated(error: sqlite3.OperationalError, directory: Path) -> Exception:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return JournalFull(f"the disk of {directory} is full ({text}); free some space and run again")
    return error
