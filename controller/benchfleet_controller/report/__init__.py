"""Reports: one run with its hosts, results, comparison and warnings; and every listing."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchfleet_controller.findings import findings
from benchfleet_controller.report.cases import CASE_COLUMNS, case_document
from benchfleet_controller.report.data import ReportData, comparison_rows
from benchfleet_controller.report.exports import FORMATS, Column, Row, clean, human, render_table, sentence, to_json
from benchfleet_controller.report.markdown import render_markdown
from benchfleet_controller.report.sweeps import sweep_document, sweeps_of

__all__ = [
    "CASE_COLUMNS",
    "FORMATS",
    "REPORT_ENDINGS",
    "SCHEMA_VERSION",
    "Column",
    "ReportData",
    "ReportError",
    "case_document",
    "clean",
    "comparison_rows",
    "human",
    "render_report",
    "render_table",
    "sentence",
    "to_json",
    "write_report",
    "write_text",
    "write_whole",
]

SCHEMA_VERSION = 1
"""Of the JSON report; raised when a name changes its meaning or goes away."""
TEXT_ENDINGS = (".md", ".json", ".csv")
REPORT_ENDINGS = (*TEXT_ENDINGS, ".html", ".parquet")


class ReportError(Exception):
    """The report could not be written; ``str()`` says what to do."""


def render_report(data: ReportData, ending: str) -> str:
    """The report's text. Raises `ReportError` for an unknown ending, naming the known ones."""
    if ending == ".md":
        return render_markdown(data)
    if ending == ".json":
        return to_json(_document(data))
    if ending == ".csv":
        return render_table(data.cases, CASE_COLUMNS, "csv")
    raise ReportError(f"unknown report format {ending or '(no ending)'!r}: end the file in {', '.join(REPORT_ENDINGS)}")


def write_report(path: Path | str, data: ReportData, *, force: bool = False) -> None:
    """Write a text report whole or not at all, in the format its ending names. Raises `ReportError`."""
    target = Path(path)
    text = render_report(data, target.suffix.lower())
    write_whole(target, lambda temporary: write_text(temporary, text), force=force)


def write_text(path: Path, text: str) -> None:
    """The text as UTF-8 with plain line ends, on disk when this returns."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_whole(target: Path, write: Callable[[Path], None], *, force: bool = False) -> None:
    """Have a file written beside its place and moved there: whole or not at all.

    Raises `ReportError`: a file that exists (unless ``force``), or a place that cannot be written.
    """
    if target.is_dir():
        raise ReportError(f"{target} is a directory: name a file")
    if target.exists() and not force:
        raise ReportError(f"{target} exists: use --force to replace it or name another file")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            temporary = Path(folder) / target.name
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(target)
    except OSError as error:
        raise ReportError(f"cannot write {target}: {error.strerror or error}; name another file") from error


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _document(data: ReportData) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run": dict(data.run),
        "hosts": [dict(host) for host in data.hosts],
        "cases": [_case(case) for case in data.cases],
        "comparison": None
        if data.comparison is None
        else {
            "by": list(data.comparison.by),
            "baseline": data.comparison.baseline,
            "rows": comparison_rows(data.comparison),
        },
        "findings": list(findings(data.cases, data.outliers)),
        "warnings": [dataclasses.asdict(warned) for warned in data.warnings],
        "failures": [dict(row) for row in data.failures],
        "answers": [dict(row) for row in data.answers],
        "certificates": [dict(row) for row in data.certificates],
        "sweeps": [sweep_document(sweep) for sweep in sweeps_of(data.cases)],
        "stages": [dict(row) for row in data.stages],
    }


def _case(case: Row) -> dict[str, Any]:
    """A case under its own names and under those of the script many began with (Foundry Local's workshop)."""
    return case_document(case) | {
        "alias": case.get("model"),
        "latency_avg": case.get("e2e_avg_s"),
        "latency_p95": case.get("e2e_p95_s"),
        "tokens_per_sec_avg": case.get("decode_tokens_per_s"),
        "first_token_latency_avg": case.get("ttft_avg_s"),
    }
