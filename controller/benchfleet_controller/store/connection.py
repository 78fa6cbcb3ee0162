"""Opening the one DuckDB file: for as short as possible, with patience, and with errors that say what to do.

One engine serves the process and the file is attached to it for one operation: starting an engine takes far longer.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import duckdb

from benchfleet_controller.store import migrations

_RETRY_S = 0.05
_ENGINE_LOCK = threading.RLock()
"""DuckDB refuses a second opening of a file in one process, so openings of this process queue here."""
_FILE = "benchfleet_file"
"""What the file is called while it is attached."""


@functools.cache
def _engine() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:")


class StoreError(Exception):
    """Something is wrong with the benchmark database; ``str()`` says what to do."""


class StoreMissing(StoreError):
    """There is no such file, and the operation only reads."""


class StoreBusy(StoreError):
    """Another process held the file for longer than we wait."""


class StoreTooNew(StoreError):
    """The file was written by a newer benchfleet."""


class NotAStore(StoreError):
    """The file is not a benchfleet database; it was not touched."""


class StoreFull(StoreError):
    """The disk is full; nothing of the operation was kept."""


class SequenceGap(StoreError):
    """Events do not follow the committed sequence; follow the job again from there."""


class NoSuchRun(StoreError):
    """No run, or more than one, answers to the text."""


@contextmanager
def opened(path: Path, *, write: bool, wait_s: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """The file, open; a write is one transaction, committed at the end of the block and rolled back by an exception.

    Raises a `StoreError`. A missing file is made by a write only; an older one is brought up to date first.
    """
    if write:
        with held(path, wait_s=wait_s) as transaction, transaction() as connection:
            yield connection
        return
    with _ENGINE_LOCK, _interruptible():
        if not path.exists():
            raise StoreMissing(f"no benchmark database at {path}: run `benchfleet run` first or name it with --db")
        deadline = time.monotonic() + wait_s
        with _attached(path, write=False, deadline=deadline) as connection:
            if migrations.up_to_date(connection) or not _prepared(connection, path, write=False):
                with _translated(path):
                    yield connection
                return
        with _attached(path, write=True, deadline=deadline) as connection, _transaction(connection, path):
            _prepared(connection, path, write=True)
        with _attached(path, write=False, deadline=deadline) as connection, _translated(path):
            yield connection


@contextmanager
def held(path: Path, *, wait_s: float) -> Iterator[Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]]]:
    """The file, open for several writes of one thread: each call begins a transaction, which ends with its block.

    Opening and closing is most of what a small write costs, but nobody else gets at the file meanwhile. As `opened`
    otherwise.
    """
    with _ENGINE_LOCK, _interruptible():
        worthless = _is_new(path)
        try:
            with _attached(path, write=True, deadline=time.monotonic() + wait_s) as connection:
                current = migrations.up_to_date(connection)

                @contextmanager
                def transaction() -> Iterator[duckdb.DuckDBPyConnection]:
                    nonlocal current, worthless
                    with _transaction(connection, path):
                        if not current:
                            _prepared(connection, path, write=True)
                        yield connection
                    current, worthless = True, False

                yield transaction
        except StoreFull:
            if worthless:  # DuckDB leaves a torso that it would not open again
                for part in (path, path.with_name(f"{path.name}.wal")):
                    part.unlink(missing_ok=True)
            raise


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection, path: Path) -> Iterator[None]:
    with _translated(path):
        connection.execute("BEGIN TRANSACTION")
        try:
            yield
        except BaseException:
            connection.rollback()
            raise
        connection.execute("COMMIT")


def _is_new(path: Path) -> bool:
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


def _prepared(connection: duckdb.DuckDBPyConnection, path: Path, *, write: bool) -> bool:
    """Check whose file it is and bring it up to date (write); True: it is ours but must be migrated first (read)."""
    with _translated(path):
        current = migrations.version(connection)
        if current is None or (current == 0 and not write):
            raise NotAStore(f"{path} is a DuckDB database, but not benchfleet's: name another file with --db")
        if current > migrations.LATEST:
            raise StoreTooNew(
                f"{path} was written by a newer benchfleet (schema {current}, this one knows {migrations.LATEST}): "
                "upgrade benchfleet or name another file with --db"
            )
        if not migrations.needed(connection):
            return False
        if write:
            migrations.migrate(connection, current)
        return True


@contextmanager
def _attached(path: Path, *, write: bool, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
    _attach(path, write=write, deadline=deadline)
    connection = _engine().cursor()
    try:
        connection.execute(f"USE {_FILE}")
        connection.execute("SET TimeZone = 'UTC'")
        yield connection
    finally:
        # Closing rolls back what was not committed; detaching writes the log into the file.
        connection.close()
        with _translated(path):
            _engine().execute(f"DETACH {_FILE}")


def _attach(path: Path, *, write: bool, deadline: float) -> None:
    if write:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the directory of {path}: {error}; name another file with --db") from error
    if path.is_dir():
        raise NotAStore(f"{path} is a directory: name a file with --db")
    # An empty file is what a killed first start leaves; DuckDB takes it for a new database only when writing.
    if not write and _is_new(path):
        raise StoreMissing(f"{path} is empty: run `benchfleet run` first or name another file with --db")
    named = str(path).replace("'", "''")
    while True:
        try:
            _engine().execute(f"ATTACH '{named}' AS {_FILE} (TYPE duckdb{'' if write else ', READ_ONLY'})")
            return
        except duckdb.Error as error:
            if not _is_lock(error):
                raise _as_store_error(path, error) from error
            if time.monotonic() >= deadline:
                raise StoreBusy(
                    f"{path} is in use by another process: wait for it to end or name another file with --db ({error})"
                ) from error
            time.sleep(_RETRY_S)


@contextmanager
def _interruptible() -> Iterator[None]:
    """DuckDB takes a Ctrl-C that comes in the midst of its work for itself; raise what Python would have raised."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from error


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise _as_store_error(path, error) from error


def _is_lock(error: duckdb.Error) -> bool:
    text = str(error)
    return any(
        sign in text
        for sign in (
            "Could not set lock",
            "Conflicting lock",
            "being used by another process",  # Windows
            "already open",
            "different configuration than existing connections",
        )
    )


def _as_store_error(path: Path, error: duckdb.Error) -> StoreError:
    text = str(error)
    if "No space left" in text or "not enough space" in text or "disk is full" in text.lower():
        return StoreFull(f"the disk of {path} is full: nothing was stored; free space and run `benchfleet collect`")
    if "not a valid DuckDB database file" in text or "not a DuckDB" in text or "magic bytes" in text:
        return NotAStore(f"{path} is not a DuckDB database: name another file with --db")
    if "newer version of DuckDB" in text or "version number" in text or "storage version" in text:
        return StoreTooNew(f"{path} was written by a newer DuckDB: upgrade the duckdb package ({text})")
    if "Permission denied" in text or "read-only" in text.lower():
        return StoreError(
            f"{path} cannot be opened as needed: check its permissions or name another with --db ({text})"
        )
    if "WAL" in text and "replay" in text.lower():
        return StoreError(
            f"{path} has a damaged write-ahead log: move {path}.wal away to open it without the last changes, "
            f"then run `benchfleet collect` to fetch what agents still hold ({text})"
        )
    if isinstance(error, duckdb.IOException):
        return StoreError(f"{path} cannot be used: {text}")
    return StoreError(f"the database refused an operation on {path}: {text}")
