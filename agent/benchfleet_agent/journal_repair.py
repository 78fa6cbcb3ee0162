"""Checking a journal and repairing a damaged one: what is intact is kept, what was lost is put on record.

Sequences stay gapless for whoever follows: in place of a lost event stands a ``ProgressReported`` that says so, and a
job that lost events does not end as finished. The damaged file is kept aside.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from benchfleet.failures import Failure, Reason
from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_agent.journal_file import (
    SCHEMA,
    SELECT_JOBS,
    SELECT_RELEASED,
    SELECT_REPAIRS,
    SELECT_SERVING,
    HeldJob,
    JournalDamaged,
    Repair,
    connect,
    held_job,
    journal_path,
    outer_fault,
    read_repairs,
    write_repairs,
)
from benchfleet_agent.journal_log import DamagedLog, examine_log

LOST_EVENT = "lost: this event was damaged on the host's disk"
MOST_EVENTS = 1 << 24
"""No job has more; a number above it is damage."""
MOST_LOST_AT_END = 10_000
"""Lost events that are stood in for after the last intact one."""


DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError)
"""What reading a damaged file raises; the second when SQLite's own message quotes damaged bytes."""


class _Unsound(Exception):
    """The journal is not what was written; says where that was noticed."""


def repaired(directory: Path, unix_ns: int) -> dict[str, int]:
    """Check the journal of a data directory, which nobody else may have open, and repair it where it is damaged.

    Returns the bytes of each job's events; what was lost is in the table ``repairs``. Reads everything that is held.
    Raises `JournalDamaged` when nothing of the file can be read, `sqlite3.DatabaseError` (`outer_fault`), `OSError`.
    """
    path = journal_path(directory)
    finished = directory / "journal.repaired.sqlite"
    if not path.exists() and finished.exists():  # an agent died between the last two steps of a repair
        finished.rename(path)
    if not path.exists():
        return {}
    log = _mend_log(path, unix_ns)
    try:
        with contextlib.closing(_open_damaged(path)) as db:
            sizes = check(db)
    except (_Unsound, *DAMAGE) as error:
        if isinstance(error, sqlite3.DatabaseError) and outer_fault(error):
            raise
        return _rebuild(path, finished, f"{error}{'; its log was damaged, too' if log else ''}", unix_ns)
    if log is not None:
        with contextlib.closing(connect(path)) as db:
            write_repairs(db, _of_damaged_log(db, log, unix_ns))
    return sizes


def check(db: sqlite3.Connection) -> dict[str, int]:
    """Read a whole journal; returns the bytes of each job's events. Raises `_Unsound`, `sqlite3.DatabaseError`."""
    _ask(db, "PRAGMA quick_check(1)")
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone():
        return {}  # an agent was killed when it had just made the file
    _ask(db, "PRAGMA integrity_check(jobs)")  # with its index
    db.executescript(SCHEMA)  # of an older agent's file tables are missing, which is no damage
    for question in (SELECT_REPAIRS, SELECT_SERVING, SELECT_RELEASED):
        db.execute(question).fetchall()
    jobs = {job.job_id: job for job in map(_row, db.execute(SELECT_JOBS))}
    sizes = dict.fromkeys(jobs, 0)
    last = dict.fromkeys(jobs, 0)
    ended = dict.fromkeys(jobs, False)
    for job_id, sequence, checksum, body in db.execute(
        "SELECT job_id, sequence, crc32, body FROM events ORDER BY job_id, sequence"
    ):
        if job_id not in jobs or sequence != last[job_id] + 1 or not _intact(checksum, body):
            raise _Unsound(f"event {sequence} of job {job_id} is not what was written")
        if sequence == 1 and not _agrees(jobs[job_id], body):
            raise _Unsound(f"job {job_id} is not what was written")
        if sequence == jobs[job_id].last_sequence:
            ended[job_id] = event_pb2.Event.FromString(body).HasField("job_finished")
        last[job_id], sizes[job_id] = sequence, sizes[job_id] + len(body)
    for job_id, job in jobs.items():
        if last[job_id] != job.last_sequence or not last[job_id] or ended[job_id] != job.ended:
            raise _Unsound(f"events of job {job_id} are missing")
    return sizes


def _ask(db: sqlite3.Connection, question: str) -> None:
    (said,) = db.execute(question).fetchone()
    if said != "ok":
        raise _Unsound(" ".join(str(said).split()))


def _row(row: tuple[object, ...]) -> HeldJob:
    try:
        job = held_job(row, {})
    except AssertionError:
        job = None
    if job is None or job.state not in job_pb2.JobState.values():
        raise _Unsound(f"the entry of job {row[0]!r} is not what was written")
    return job


def _intact(checksum: object, body: object) -> bool:
    return isinstance(body, bytes) and zlib.crc32(body) == checksum


def _agrees(job: HeldJob, first: bytes) -> bool:
    try:
        spec = job_pb2.JobSpec.FromString(job.spec)
    except DecodeError:
        return False
    # As messages: other versions of the library may write the same message in other bytes.
    same = event_pb2.Event.FromString(first).job_started.spec == spec
    return bool(same and (job.run_id, job.held_by) == (spec.run_id, spec.held_by))


def _mend_log(path: Path, unix_ns: int) -> DamagedLog | None:
    """Replace a damaged write-ahead log by its good frames, keeping the damaged one aside.

    What is missing then shows when the journal is checked.
    """
    log = path.with_name(f"{path.name}-wal")
    found = examine_log(log.read_bytes()) if log.exists() else None
    if found is not None and found.mended is not None:
        aside = _aside(path, unix_ns)
        aside.mkdir()
        shutil.copy2(log, aside)
        mended = path.with_name("journal.mended-wal")
        with mended.open("wb") as file:
            file.write(found.mended)
            file.flush()
            os.fsync(file.fileno())
        mended.replace(log)
        path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    return found


def _of_damaged_log(db: sqlite3.Connection, log: DamagedLog, unix_ns: int) -> list[Repair]:
    """What a damaged log means for a journal that is sound, and for the jobs that were being written."""
    what = f"the journal's log was damaged ({log.bad_frames} of {log.frames} writes)"
    if not log.cut:
        return [Repair(unix_ns, "", "", f"{what}; no event of a job was lost")]
    message = f"{what} or cut off at its end; the last events before the agent died may be lost"
    running = db.execute("SELECT job_id, last_sequence FROM jobs WHERE state = ?", (int(job_pb2.JOB_STATE_RUNNING),))
    found = [Repair(unix_ns, job_id, f"after {last}", message) for job_id, last in running]
    return found or [Repair(unix_ns, "", "", message)]


def _rebuild(path: Path, finished: Path, why: str, unix_ns: int) -> dict[str, int]:
    aside = _aside(path, unix_ns)
    building = path.with_name("journal.building.sqlite")
    for leftover in (*_files(building), *_files(finished)):
        leftover.unlink(missing_ok=True)
    try:
        with contextlib.closing(_open_damaged(path, lenient=True)) as old, contextlib.closing(connect(building)) as new:
            new.execute("BEGIN IMMEDIATE")
            repairs = _salvage(old, new, f"the journal was damaged ({why}); the damaged file is in {aside}", unix_ns)
            write_repairs(new, repairs)
            new.execute("COMMIT")
            sizes = check(new)
    except (_Unsound, *DAMAGE) as error:
        if isinstance(error, sqlite3.DatabaseError) and outer_fault(error):
            raise
        raise JournalDamaged(
            f"{path} is not a readable journal ({why}); move it away and start the agent again"
        ) from None
    building.rename(finished)
    aside.mkdir()
    for part in _files(path):
        if part.exists():
            part.rename(aside / part.name)
    finished.rename(path)
    return sizes


def _aside(path: Path, unix_ns: int) -> Path:
    name = f"damaged-{datetime.datetime.fromtimestamp(unix_ns / 1e9, datetime.UTC):%Y%m%dT%H%M%SZ}"
    places = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
    return next(place for place in map(path.with_name, places) if not place.exists())


def _files(path: Path) -> tuple[Path, ...]:
    # The log before its file: a file without its log is an older journal, a log without its file is nothing.
    return (path.with_name(f"{path.name}-shm"), path.with_name(f"{path.name}-wal"), path)


def _open_damaged(path: Path, *, lenient: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=0)
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    if lenient:
        db.execute("PRAGMA writable_schema=ON")  # SQLite then reads what is there of a file that is cut off
    return db


@dataclass(frozen=True, slots=True)
class _Job:
    """What is left of a job."""

    job_id: str
    row: HeldJob | None
    last: int


def _salvage(old: sqlite3.Connection, new: sqlite3.Connection, why: str, unix_ns: int) -> list[Repair]:
    """Copy all that is intact."""
    # What was repaired before stays on record where it can be read.
    repairs: list[Repair] = []
    with contextlib.suppress(*DAMAGE):
        repairs += read_repairs(old)
    jobs = list(_jobs_left(old))
    complete = _is_readable(old, "SELECT * FROM jobs")
    if not jobs and not (complete and _is_readable(old, "SELECT * FROM events")):
        raise _Unsound(why)
    found = [Repair(unix_ns, job.job_id, lost, why) for job in jobs if (lost := _copy(job, old, new)) is not None]
    # What was fetched stays fetched. Of a job that is here nothing is taken for granted: it is offered again.
    here = {job.job_id for job in jobs}
    for job_id, last in _tolerant(old, "SELECT job_id, last_sequence FROM released ORDER BY number"):
        if isinstance(job_id, str) and isinstance(last, int) and job_id not in here:
            new.execute("INSERT OR IGNORE INTO released (job_id, last_sequence) VALUES (?, ?)", (job_id, last))
    if not complete:
        found.append(Repair(unix_ns, "", "", f"{why}; jobs of which nothing is left cannot be named"))
    return [*repairs, *(found or [Repair(unix_ns, "", "", f"{why}; no event of a job was lost")])]


def _is_readable(db: sqlite3.Connection, question: str) -> bool:
    try:
        for _ in db.execute(question):
            pass
    except DAMAGE:
        return False
    return True


def _jobs_left(db: sqlite3.Connection) -> Iterator[_Job]:
    rows: dict[str, HeldJob | None] = {}
    for order in ("ASC", "DESC"):  # from both ends up to the damage
        for row in _tolerant(db, f"{SELECT_JOBS} ORDER BY rowid {order}"):
            with contextlib.suppress(_Unsound):
                job = _row(row)
                rows.setdefault(job.job_id, job)
    for question in (
        "SELECT min(job_id) FROM events WHERE job_id > ?",
        "SELECT max(job_id) FROM events WHERE job_id < ?",
    ):
        for job_id in _walk(db, question):
            rows.setdefault(job_id, None)
    for job_id, held in rows.items():
        highest = next((int(value or 0) for (value,) in _tolerant(db, _MAX, job_id) if isinstance(value, int)), 0)
        bounds = [bound for bound in (highest, held.last_sequence if held else 0) if 0 < bound <= MOST_EVENTS]
        yield _Job(job_id, held, max(bounds, default=0))


_MAX = "SELECT max(sequence) FROM events WHERE job_id = ?"
_ONE = "SELECT crc32, body FROM events WHERE job_id = ? AND sequence = ?"


def _walk(db: sqlite3.Connection, question: str) -> Iterator[str]:
    here: object = "" if "min" in question else "\U0010ffff"
    seen: set[object] = set()
    while True:
        here = next((value for (value,) in _tolerant(db, question, here)), None)
        if not isinstance(here, str) or here in seen:
            return
        seen.add(here)
        yield here


def _copy(job: _Job, old: sqlite3.Connection, new: sqlite3.Connection) -> str | None:
    """Copy one job; returns the sequences that are lost, None when it is whole."""
    first, last = _event(old, job.job_id, 1) or _first_again(job), None
    if first is None:
        return "everything"
    lost: list[int] = []
    before = first
    for sequence in range(1, job.last + 1):
        event = _event(old, job.job_id, sequence)
        if event is None:
            lost.append(sequence)
            continue
        for missing in _before(sequence, lost):
            _insert(new, job.job_id, first if missing == 1 else _stand_in(missing, before))
        _insert(new, job.job_id, event)
        before = last = event
    if last is None:
        return "everything"
    state, end = job_pb2.JOB_STATE_RUNNING, last.sequence
    if last.HasField("job_finished"):
        state, lost = last.job_finished.state, [sequence for sequence in lost if sequence < end]
    else:
        # Where the end is lost, too, it is written again, saying so.
        stop = min(job.last - (job.row is not None and job.row.ended), end + MOST_LOST_AT_END)
        for missing in range(end + 1, stop + 1):
            _insert(new, job.job_id, _stand_in(missing, last))
        end = max(end, stop)
        lost = [sequence for sequence in lost if sequence <= end + 1]
    if lost and state == job_pb2.JOB_STATE_FINISHED:
        state = job_pb2.JOB_STATE_FAILED
        failure = Failure(Reason.EVENTS_RELEASED, loss_message(_ranges(lost)))
        last.job_finished.CopyFrom(event_pb2.JobFinished(state=state, failure=failure.to_proto()))
        _insert(new, job.job_id, last)
    spec = first.job_started.spec
    accepted = job.row.accepted_unix_ns if job.row else first.event_time.ToNanoseconds()
    row = (job.job_id, spec.run_id, spec.held_by, spec.SerializeToString(deterministic=True), int(state), end, accepted)
    new.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    return _ranges(lost) if lost else None


def _before(sequence: int, lost: list[int]) -> list[int]:
    """The lost sequences right before an intact one."""
    count = 0
    while count < len(lost) and lost[-1 - count] == sequence - 1 - count:
        count += 1
    return lost[len(lost) - count :]


def _insert(db: sqlite3.Connection, job_id: str, event: event_pb2.Event) -> None:
    body = event.SerializeToString()
    db.execute("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?)", (job_id, event.sequence, zlib.crc32(body), body))


def loss_message(lost: str) -> str:
    """Why a job that lost events ends as failed, for people."""
    return (
        f"the journal on this host's disk was damaged and events of this job are lost ({lost}); what is intact is kept"
    )


def _event(db: sqlite3.Connection, job_id: str, sequence: int) -> event_pb2.Event | None:
    for checksum, body in _tolerant(db, _ONE, job_id, sequence):
        if isinstance(body, bytes) and _intact(checksum, body):
            event = event_pb2.Event.FromString(body)
            return event if event.sequence == sequence else None
    return None


def _first_again(job: _Job) -> event_pb2.Event | None:
    """A job's first event out of its entry, without the host it was taken on."""
    if job.row is None:
        return None
    try:
        spec = job_pb2.JobSpec.FromString(job.row.spec)
    except DecodeError:
        return None
    event = event_pb2.Event(sequence=1, job_started=event_pb2.JobStarted(spec=spec))
    event.event_time.FromNanoseconds(job.row.accepted_unix_ns)
    return event


def _stand_in(sequence: int, before: event_pb2.Event) -> event_pb2.Event:
    return event_pb2.Event(
        sequence=sequence,
        event_ns=before.event_ns,
        event_time=before.event_time,
        progress_reported=event_pb2.ProgressReported(message=LOST_EVENT),
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as ``5, 9-12``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _tolerant(db: sqlite3.Connection, question: str, *values: object) -> Iterator[tuple[object, ...]]:
    """Rows up to where the file is damaged."""
    with contextlib.suppress(*DAMAGE):
        yield from db.execute(question, values)
