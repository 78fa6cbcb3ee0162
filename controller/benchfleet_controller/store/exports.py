"""Results as files that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb


def write_parquet(connection: duckdb.DuckDBPyConnection, path: Path, run_ids: Sequence[str] | None) -> None:
    """The view ``case_results`` of some runs (None: of all) as one Parquet file, replaced if it exists.

    Columns, types and units are those of docs/schema.md. Raises duckdb.Error where the file cannot be written.
    """
    where = "" if run_ids is None else "WHERE c.run_id IN (SELECT unnest($runs))"
    sql = f"""COPY (SELECT c.* FROM case_results c JOIN runs USING (run_id) {where}
        ORDER BY runs.created_at, c.run_id, c.host, c.case_index) TO $path (FORMAT parquet)"""  # noqa: S608 - our text
    parameters = {"path": str(path)} | ({} if run_ids is None else {"runs": list(run_ids)})
    connection.execute(sql, parameters)
