"""Columns of values into tables, and out of messages: the two statements that events become.

Columns are dicts of numpy arrays that DuckDB scans in place (0.7 to 3 million rows a second; executemany does 2,400).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from benchfleet_controller.store import schema

Columns = Mapping[str, npt.NDArray[Any]]


def insert(connection: duckdb.DuckDBPyConnection, table: str, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Append columns of equal length to a table; columns not named are NULL."""
    types = {column.name: column.type for column in schema.BY_NAME[table].columns}
    names = ", ".join(columns)
    # Not every duckdb heeds the mask of a masked array, so it travels as a column.
    masks = {f"{name}_absent": c.mask for name, c in columns.items() if isinstance(c, np.ma.MaskedArray)}
    values = ", ".join(
        f"CASE WHEN NOT {name}_absent THEN {name}::{types[name]} END"
        if f"{name}_absent" in masks
        else f"{name}::{types[name]}"
        for name in columns
    )
    connection.register("incoming", {name: np.ma.getdata(c) for name, c in columns.items()} | masks)
    try:
        connection.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM incoming")  # noqa: S608 - our names
    finally:
        connection.unregister("incoming")


def insert_rows(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append a few rows of equal keys."""
    if rows:
        insert(connection, table, {name: objects(row[name] for row in rows) for name in rows[0]})


def update_rows(connection: duckdb.DuckDBPyConnection, table: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Set columns of rows that exist, found by ``key``; all rows have equal keys, and ``key`` is one of them.

    One statement for all: a statement a row takes most of the time of a commit that many jobs share.
    """
    if not rows:
        return
    types = {column.name: column.type for column in schema.BY_NAME[table].columns}
    sets = ", ".join(f"{name} = incoming.{name}::{types[name]}" for name in rows[0] if name != key)
    connection.register("incoming", {name: objects(row[name] for row in rows) for name in rows[0]})
    try:
        connection.execute(f"UPDATE {table} SET {sets} FROM incoming WHERE {table}.{key} = incoming.{key}")  # noqa: S608
    finally:
        connection.unregister("incoming")


def optional(message: Any, name: str) -> Any:
    """A field that may be absent; None: it is."""
    return getattr(message, name) if message.HasField(name) else None


def objects(values: Iterable[Any]) -> npt.NDArray[Any]:
    """A one-dimensional object array (`numpy.array` would make lists of equal length a matrix)."""
    listed = list(values)
    return np.fromiter(listed, object, len(listed))
