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
from pathlib import Path

from benchfleet.failures import Reason
from benchfleet.quantities import quantity
from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_agent.journal_file import (
    SELECT_JOBS,
    SELECT_RELEASED,
    Contents,
    HeldJob,
    JournalDamaged,
    JournalFull,
    JournalInUse,
    connect,
    held_job,
    journal_path,
    lock,
    outer_fault,
    read_repairs,
)
from benchfleet_agent.journal_repair import repaired

__all__ = ["HeldJob", "Journal", "JournalDamaged", "JournalFull", "JournalInUse"]

RESERVE_BYTES = 1 << 20
"""Kept aside so that a full disk still leaves room to write down that it is full."""
MINIMUM_FREE_BYTES = 64 << 20
"""Below this no job is accepted: it would end with ``disk_full``."""
MOST_TOMBSTONES = 1_000
"""Released jobs whose last sequence is remembered, for followers who come too late."""
ROOM_RATIO = 1 / 16
"""Part of the bound that must be free for a job to be accepted: it would soon end with ``journal_full``."""


class Journal:
    """The jobs and events of one agent. Safe from several threads.

    What was damaged is repaired when it is opened (`benchfleet_agent.journal_repair`), which reads all that is held.
    ``max_bytes`` bounds the events of all jobs together, without the file's own structure; None: the disk does.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock_ns = clock_ns
        self._wall_clock_ns = wall_clock_ns
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        self._reserve = directory / "reserve"
        with contextlib.ExitStack() as undo:
            try:
                # Held for life: a second agent on the same data directory would mix up the jobs.
                self._owner = undo.enter_context(contextlib.closing(lock(directory)))
                self._sizes = repaired(directory, wall_clock_ns())
                self._db = undo.enter_context(contextlib.closing(connect(journal_path(directory))))
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("DELETE FROM serving")
                self._forget_given_back()
                self._db.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                raise _translated(error, directory) from None
            undo.pop_all()
        with contextlib.suppress(OSError):
            self._keep_reserve()

    @property
    def directory(self) -> Path:
        """The data directory."""
        return self._directory

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
            self._owner.close()

    def serve(self, address: str) -> None:
        """Write down who has the journal open, for those who read it beside."""
        with self._lock, self._transaction():
            self._db.execute("INSERT OR REPLACE INTO serving VALUES (1, ?, ?)", (os.getpid(), address))

    def contents(self) -> Contents:
        """Everything but the events."""
        with self._lock:
            repairs = read_repairs(self._db)
        return Contents(tuple(self.jobs()), repairs)

    def has_room(self) -> bool:
        """Whether there is enough disk for another job."""
        return shutil.disk_usage(self._directory).free >= MINIMUM_FREE_BYTES

    def accept(self, job_id: str, spec: job_pb2.JobSpec, first: event_pb2.Event) -> HeldJob:
        """Write a new job and its first event. Raises `JournalFull`, also when a job would find too little room."""
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
            self._check_bound(int((self._max_bytes or 0) * ROOM_RATIO))
            self._db.execute("DELETE FROM released WHERE job_id = ?", (job_id,))
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
        """Write a job's terminal event and its state: beyond the bound, and on a full disk into the reserve."""
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
                    message = f"event {sequence} of job {job_id} is damaged on disk; restart the agent to repair it"
                    raise JournalDamaged(message)
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
        """All jobs held, oldest first, without those that were given back."""
        held = f"{SELECT_JOBS} WHERE job_id NOT IN ({SELECT_RELEASED})"
        with self._lock:
            rows = self._db.execute(f"{held} ORDER BY accepted_unix_ns, job_id").fetchall()
        return [held_job(row, self._sizes) for row in rows]

    def job(self, job_id: str) -> HeldJob | None:
        """One job, also one that was given back and is not forgotten yet; or None."""
        with self._lock:
            row = self._db.execute(f"{SELECT_JOBS} WHERE job_id = ?", (job_id,)).fetchone()
        return held_job(row, self._sizes) if row else None

    def give_back(self, job_id: str) -> None:
        """Note that an ended job may be forgotten: at the latest when room is needed or the journal is opened again."""
        with self._lock, self._transaction():
            self._mark_released(job_id)

    def release(self, job_id: str) -> None:
        """Forget an ended job and its events; its last sequence is remembered for a while."""
        with self._lock, self._transaction():
            self._mark_released(job_id)
            self._forget(job_id)

    def released_at(self, job_id: str) -> int | None:
        """The last sequence of a released job; None when there was none, or too many since."""
        with self._lock:
            row = self._db.execute("SELECT last_sequence FROM released WHERE job_id = ?", (job_id,)).fetchone()
        return int(row[0]) if row else None

    def shrink(self) -> None:
        """Give the room that released jobs took back to the disk, if it has enough left to do so."""
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("VACUUM")

    def _mark_released(self, job_id: str) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO released (job_id, last_sequence) SELECT job_id, last_sequence FROM jobs "
            "WHERE job_id = ?",
            (job_id,),
        )
        self._db.execute(
            "DELETE FROM released WHERE number <= (SELECT max(number) FROM released) - ? "
            "AND job_id NOT IN (SELECT job_id FROM jobs)",
            (MOST_TOMBSTONES,),
        )

    def _forget(self, job_id: str) -> None:
        self._db.execute("DELETE FROM events WHERE job_id = ?", (job_id,))
        self._db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
        self._sizes.pop(job_id, None)

    def _forget_given_back(self) -> None:
        rows = self._db.execute("SELECT job_id FROM jobs WHERE job_id IN (SELECT job_id FROM released)").fetchall()
        for (job_id,) in rows:
            self._forget(job_id)

    def _check_bound(self, size: int) -> None:
        """Make room if that helps; raise `JournalFull` if it does not."""
        if self._max_bytes is None:
            return
        if sum(self._sizes.values()) + size > self._max_bytes:
            self._forget_given_back()
        held = sum(self._sizes.values())
        if held + size > self._max_bytes:
            message = (
                f"the agent's journal holds {quantity(held, 'bytes')} of the {quantity(self._max_bytes, 'bytes')} that "
                "journal.max_bytes allows; fetch ended jobs with `benchfleet collect`, or give them up with "
                "`benchfleet-agent jobs --release JOB` on that host"
            )
            raise JournalFull(message, Reason.JOURNAL_FULL)

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
        size = sum(len(row[3]) for row in rows)
        if state is None:
            self._check_bound(size)
        self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
        if state is None:
            self._db.execute("UPDATE jobs SET last_sequence = ? WHERE job_id = ?", (sequence, job_id))
        else:
            self._db.execute(
                "UPDATE jobs SET last_sequence = ?, state = ? WHERE job_id = ?", (sequence, int(state), job_id)
            )
        self._sizes[job_id] = self._sizes.get(job_id, 0) + size
        return sequence

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        before = dict(self._sizes)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            self._sizes = before
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError):
                raise _translated(error, self._directory) from None
            raise

    def _keep_reserve(self) -> None:
        if self._reserve.exists() and self._reserve.stat().st_size == RESERVE_BYTES:
            return
        with self._reserve.open("wb") as file:
            file.write(b"\0" * RESERVE_BYTES)
            file.flush()
            os.fsync(file.fileno())


def _translated(error: sqlite3.DatabaseError, directory: Path) -> Exception:
    text, path = str(error), journal_path(directory)
    if "full" in text or "disk I/O" in text:
        return JournalFull(f"the disk of {directory} is full ({text}); free some space and run again")
    if outer_fault(error):
        return OSError(f"{path}: {text}")
    if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return JournalDamaged(f"{path} is not a readable journal ({text}); move it away and start the agent again")
    return error
