"""Rows as text: aligned tables for terminals, Markdown, JSON and CSV. Pure.

Tables and Markdown are for people: human units, no control characters (names and answers come from other machines and
could carry terminal escapes). JSON and CSV are for programs: base units, absent is null or an empty cell.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from benchfleet_controller import metrics

Row = Mapping[str, Any]
Format = Literal["table", "json", "csv", "md"]
FORMATS: tuple[Format, ...] = ("table", "json", "csv", "md")

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_FORMULA_STARTS = ("=", "+", "-", "@")
_STEERING = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON leaves as it is and a terminal would obey."""
_UNPRINTABLE = re.compile(rf"[\x00-\x08\x0b-\x1f]|{_STEERING.pattern}")
_ABSENT = "–"


class Figure(str):
    """A number already written for people, such as ``0.133 ±0.004``: shown as it is and aligned as a number."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a listing: the row's key (= JSON name) and its heading for people."""

    name: str
    label: str = ""

    @property
    def heading(self) -> str:
        """The label, or the name."""
        return self.label or self.name


def render_table(rows: Sequence[Row], columns: Sequence[Column | str], format: str = "table") -> str:  # noqa: A002
    """Rows in one of `FORMATS`, ending in a newline. Raises ValueError naming the formats for another one."""
    chosen = [Column(column) if isinstance(column, str) else column for column in columns]
    if format == "json":
        return to_json([{column.name: row.get(column.name) for column in chosen} for row in rows])
    if format == "csv":
        return _csv(rows, chosen)
    if format == "md":
        return _markdown(rows, chosen)
    if format == "table":
        return _table(rows, chosen)
    raise ValueError(f"unknown format {format!r}: known are {', '.join(FORMATS)}")


def to_json(value: object) -> str:
    """Stable JSON with an ending newline; NaN and infinities are null, moments ISO 8601.

    It may be printed: what steers terminals is written as escapes, which mean the same.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n"
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def clean(text: str) -> str:
    """Text without terminal escapes and control or direction-changing characters, on one line."""
    without = _ESCAPES.sub("", text)
    return "".join(
        character
        if unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Cs")
        else " " * character.isspace()
        for character in without
    )


def human(name: str, value: object) -> str:
    """A value for people, cleaned; the metric registry and the ending of the name say how."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Figure):
        return clean(value)
    if name in metrics.BY_NAME:
        return metrics.BY_NAME[name].human(value)
    if isinstance(value, int | float) and name.endswith("_bytes"):
        return metrics.human_bytes(value)
    if isinstance(value, int | float) and name.endswith("_ratio"):
        return f"{value:.0%}"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return clean(", ".join(str(one) for one in value))
    if isinstance(value, Mapping):
        return clean(", ".join(f"{key} {one}" for key, one in value.items()))
    return clean(str(value))


def markdown_cell(text: str) -> str:
    """Text that stays in its cell and is shown as written."""
    return re.sub(r"([\\|`\[\]])", r"\\\1", clean(text)).replace("<", "&lt;")


def sentence(text: str, style: str) -> str:
    """Text outside a table that is shown as written: on one line, and in Markdown without meaning."""
    return markdown_cell(text) if style == "md" else clean(text)


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _csv(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    writer.writerows([_csv_cell(row.get(column.name)) for column in columns] for row in rows)
    return out.getvalue()


def _csv_cell(value: object) -> object:
    """Spreadsheets run cells that look like formulas, so text that could be one is quoted with an apostrophe.

    What steers terminals is left out: CSV has no escape for it (JSON keeps it).
    """
    plain = _plain(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, list | dict):
        plain = json.dumps(plain, ensure_ascii=False)
    if isinstance(plain, str):
        shown = _UNPRINTABLE.sub("", plain)
        return f"'{shown}" if shown.lstrip().startswith(_FORMULA_STARTS) else shown
    return plain


def _markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    lines = [
        "| " + " | ".join(markdown_cell(column.heading) for column in columns) + " |",
        "|" + "|".join(" ---: " if _is_numeric(rows, column.name) else " --- " for column in columns) + "|",
    ]
    lines += [
        "| " + " | ".join(markdown_cell(human(column.name, row.get(column.name))) for column in columns) + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    cells = [[clean(column.heading) for column in columns]]
    cells += [[human(column.name, row.get(column.name)) for column in columns] for row in rows]
    widths = [max(_width(line[i]) for line in cells) for i in range(len(columns))]
    right = [_is_numeric(rows, column.name) for column in columns]
    lines = []
    for line in cells:
        padded = [
            " " * (width - _width(cell)) + cell if flush else cell + " " * (width - _width(cell))
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def _width(text: str) -> int:
    """Columns of a terminal the text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _is_numeric(rows: Sequence[Row], name: str) -> bool:
    values = [row.get(name) for row in rows]
    return any(v is not None for v in values) and all(
        v is None or (isinstance(v, int | float | Figure) and not isinstance(v, bool)) for v in values
    )
