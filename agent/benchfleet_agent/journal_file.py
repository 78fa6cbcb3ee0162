"""The journal's file: its tables, who may open it, and reading it beside the agent that writes it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import timestamp_pb2

from benchfleet.failures import Reason
from benchfleet.v1 import job_pb2

PATIENCE_S = 5.0
"""How long a reader's lock, held for a moment while a file is opened or closed, is waited for."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  job_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, held_by TEXT NOT NULL, spec BLOB NOT NULL,
  state INTEGER NOT NULL, last_sequence INTEGER NOT NULL, accepted_unix_ns INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
  job_id TEXT NOT NULL, sequence INTEGER NOT NULL, crc32 INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (job_id, sequence)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS repairs (
  unix_ns INTEGER NOT NULL, job_id TEXT NOT NULL, lost TEXT NOT NULL, message TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS serving (
  only_row INTEGER PRIMARY KEY CHECK (only_row = 1), pid INTEGER NOT NULL, address TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS released (
  number INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL UNIQUE, last_sequence INTEGER NOT NULL
);
"""

SELECT_JOBS = "SELECT job_id, run_id, held_by, spec, state, last_sequence, accepted_unix_ns FROM jobs"

SELECT_REPAIRS = "SELECT unix_ns, job_id, lost, message FROM repairs ORDER BY unix_ns DESC, job_id"
SELECT_SERVING = "SELECT pid, address FROM serving"
SELECT_RELEASED = "SELECT job_id FROM released"
"""Jobs that were given back: most are forgotten, some wait for a second follower."""


class JournalFull(Exception):
    """The disk is full, or the journal's bound is reached (``reason`` says which); what was written before is safe."""

    def __init__(self, message: str, reason: Reason = Reason.DISK_FULL) -> None:
        super().__init__(message)
        self.reason = reason


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
    size_bytes: int = 0
    """What its events take, without the file's own structure."""

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
            size_bytes=self.size_bytes,
        )


@dataclass(frozen=True, slots=True)
class Repair:
    """What was lost when a damaged journal was repaired."""

    unix_ns: int
    """When it was repaired."""
    job_id: str
    """Empty: no job in particular."""
    lost: str
    """Sequences, such as ``5, 9-12`` or ``after 40``; empty: unknown."""
    message: str
    """What happened and where the damaged file is kept, for people."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The agent that has the journal open."""

    pid: int
    address: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a journal held at one moment."""

    jobs: tuple[HeldJob, ...] = ()
    """Oldest first."""
    repairs: tuple[Repair, ...] = ()
    """Newest first."""
    serving: Serving | None = None
    """None: no agent runs on it."""


def journal_path(directory: Path) -> Path:
    """Where the journal of a data directory is."""
    return directory / "journal.sqlite"


def connect(path: Path) -> sqlite3.Connection:
    """Open a journal for writing: what is committed survives a power cut. Raises `sqlite3.Error`."""
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=PATIENCE_S)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db


_OUTER = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
}  # fmt: skip


def outer_fault(error: sqlite3.Error) -> bool:
    """Whether the disk, permissions or another process are at fault, and not what the file holds."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _OUTER  # above are finer distinctions


def lock(directory: Path) -> sqlite3.Connection:
    """Take a data directory until the connection is closed or the process dies. Raises `JournalInUse`.

    SQLite's own file lock, on an empty file beside the journal: it works alike on every system, ends with the process,
    and leaves the journal readable for others.
    """
    # Whoever asks `is_locked` holds it for a moment, too.
    db = sqlite3.connect(directory / "agent.lock", check_same_thread=False, isolation_level=None, timeout=0.2)
    try:
        db.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        db.close()
        if "locked" not in str(error):
            raise
        message = f"another agent is using {directory}; stop it, or give this one its own --data-dir"
        raise JournalInUse(message) from None
    return db


def is_locked(directory: Path) -> bool:
    """Whether an agent runs on a data directory."""
    if not (directory / "agent.lock").exists():
        return False
    try:
        lock(directory).close()
    except (JournalInUse, sqlite3.OperationalError):  # the latter: it belongs to another user
        return True
    return False


def read_contents(directory: Path) -> Contents:
    """What a data directory's journal holds, changing nothing, also while an agent runs on it.

    Raises `JournalDamaged`, and `OSError` when it cannot be opened.
    """
    path = journal_path(directory)
    if not path.exists():
        return Contents()
    with _reading(path) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        sizes = dict(db.execute("SELECT job_id, sum(length(body)) FROM events GROUP BY job_id"))
        held = f"{SELECT_JOBS} WHERE job_id NOT IN ({SELECT_RELEASED})" if "released" in tables else SELECT_JOBS
        rows = db.execute(f"{held} ORDER BY accepted_unix_ns, job_id").fetchall()
        repairs = read_repairs(db) if "repairs" in tables else ()
        found = db.execute(SELECT_SERVING).fetchall() if "serving" in tables else []
    serving = [Serving(*row) for row in found if is_locked(directory)]
    return Contents(tuple(held_job(row, sizes) for row in rows), repairs, *serving)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    db = None
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=PATIENCE_S)
        db.execute("BEGIN")  # one moment for all questions
        yield db
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be read: {error}") from None
    except sqlite3.DatabaseError as error:
        raise JournalDamaged(f"{path} is not a readable journal ({error})") from None
    finally:
        if db is not None:
            db.close()


def read_repairs(db: sqlite3.Connection) -> tuple[Repair, ...]:
    """Repairs on record, newest first."""
    return tuple(Repair(*row) for row in db.execute(SELECT_REPAIRS))


def write_repairs(db: sqlite3.Connection, repairs: Sequence[Repair]) -> None:
    """Put repairs on record."""
    rows = [(one.unix_ns, one.job_id, one.lost, one.message) for one in repairs]
    db.executemany("INSERT INTO repairs VALUES (?, ?, ?, ?)", rows)


def held_job(row: Sequence[object], sizes: Mapping[str, int]) -> HeldJob:
    """A row of `SELECT_JOBS`; ``sizes``: bytes by job id."""
    job_id, run_id, held_by, spec, state, last_sequence, accepted = row
    assert isinstance(spec, bytes)
    assert isinstance(state, int)
    assert isinstance(last_sequence, int)
    assert isinstance(accepted, int)
    return HeldJob(
        str(job_id),
        str(run_id),
        str(held_by),
        spec,
        job_pb2.JobState.ValueType(state),
        last_sequence,
        accepted,
        sizes.get(str(job_id), 0),
    )
