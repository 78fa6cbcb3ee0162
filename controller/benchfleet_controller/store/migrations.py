"""How an older file becomes a newer one: ordered steps, each run once, in the transaction of the opening.

A new step goes to the end of `MIGRATIONS` and never changes afterwards. Views are made anew whenever they differ from
this program's, and metrics added to the contract get their column by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import duckdb

from benchfleet.samples import SAMPLE_METRICS
from benchfleet_controller.store import condensed
from benchfleet_controller.store.pooling import TIE_BLOCKS
from benchfleet_controller.store.schema import TABLES
from benchfleet_controller.store.views import VIEWS

APPLICATION = "benchfleet"


def m001_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """The first tables."""
    _declared(connection, 1)


def m002_measurement(connection: duckdb.DuckDBPyConnection) -> None:
    """Load shapes, conditions of a case, answers to compare, instrument certificates."""
    _declared(connection, 2)


def m003_baselines(connection: duckdb.DuckDBPyConnection) -> None:
    """Named baselines; cases in blocks."""
    _declared(connection, 3)


def m004_conditions(connection: duckdb.DuckDBPyConnection) -> None:
    """Conditions of rounds, proof of device, limits of machines, forecasts, scores of answers."""
    _declared(connection, 4)


def m005_observations(connection: duckdb.DuckDBPyConnection) -> None:
    """What servers say of their own times; models unloaded in a pause; lengths of thoughts in chunks; quantisation."""
    _declared(connection, 5)
    connection.execute(TIE_BLOCKS.format(jobs="true"))


def _declared(connection: duckdb.DuckDBPyConnection, version: int) -> None:
    """What `schema` says came with a version."""
    for table in TABLES:
        if script := table.ddl(version):
            connection.execute(script)


MIGRATIONS: tuple[Callable[[duckdb.DuckDBPyConnection], None], ...] = (
    m001_tables,
    m002_measurement,
    m003_baselines,
    m004_conditions,
    m005_observations,
)
LATEST = len(MIGRATIONS)
_VIEWS_NAME = "views " + hashlib.sha256(repr((VIEWS, [m.name for m in SAMPLE_METRICS])).encode()).hexdigest()[:16]
"""Views hold no data: they are made anew whenever the program's, or the metrics under them, differ."""


def up_to_date(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the file is ours and as this program wants it: one small query, for it is asked at every opening."""
    try:
        steps = connection.execute(
            "SELECT application, version, name FROM schema_migrations ORDER BY applied_at"
        ).fetchall()
    except duckdb.Error:  # an empty file, or somebody else's: `version` tells which
        return False
    views = [name for _, _, name in steps if name.startswith("views ")]
    return (
        {application for application, _, _ in steps} == {APPLICATION}
        and max(number for _, number, _ in steps) == LATEST
        and views[-1:] == [_VIEWS_NAME]
    )


def version(connection: duckdb.DuckDBPyConnection) -> int | None:
    """The file's schema version; 0: an empty file; None: somebody else's database."""
    tables = {row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables").fetchall()}
    if not tables:
        return 0
    if "schema_migrations" not in tables or not {"runs", "jobs", "cases"} <= tables:
        return None
    rows = connection.execute("SELECT application, max(version) FROM schema_migrations GROUP BY 1").fetchall()
    return int(rows[0][1]) if len(rows) == 1 and rows[0][0] == APPLICATION else None


def needed(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether `migrate` would change anything in a file of ours that is not newer than this program."""
    return version(connection) != LATEST or bool(_missing_sample_columns(connection)) or not _has_our_views(connection)


def migrate(connection: duckdb.DuckDBPyConnection, current: int) -> None:
    """Bring the file from version ``current`` to `LATEST`; the caller holds the transaction."""
    if current == 0:
        connection.execute(
            "CREATE TABLE schema_migrations "
            "(application VARCHAR, version INTEGER, name VARCHAR, applied_at TIMESTAMPTZ)"
        )
        connection.execute("COMMENT ON TABLE schema_migrations IS 'Steps that made this file what it is.'")
    for number, step in enumerate(MIGRATIONS[current:], start=current + 1):
        step(connection)
        connection.execute(
            "INSERT INTO schema_migrations VALUES (?, ?, ?, now())", [APPLICATION, number, step.__name__]
        )
    for name, type_ in _missing_sample_columns(connection):
        connection.execute(f"ALTER TABLE samples ADD COLUMN {name} {type_}")
    if not _has_our_views(connection):
        for name, (query, comment) in VIEWS.items():
            connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
            connection.execute(f"COMMENT ON VIEW {name} IS '{comment}'")
            if name == "request_metrics":  # what is condensed rests on it, and the other views on what is condensed
                condensed.create_tables(connection)
        connection.execute("INSERT INTO schema_migrations VALUES (?, ?, ?, now())", [APPLICATION, LATEST, _VIEWS_NAME])


def _has_our_views(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the last views made in the file are those of this program."""
    last = connection.execute(
        "SELECT name FROM schema_migrations WHERE name LIKE 'views %' ORDER BY applied_at DESC LIMIT 1"
    ).fetchall()
    return last == [(_VIEWS_NAME,)]


def _missing_sample_columns(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    rows = connection.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'samples'")
    present = {row[0] for row in rows.fetchall()}
    return [(m.name, "BIGINT" if m.integer else "DOUBLE") for m in SAMPLE_METRICS if m.name not in present]
