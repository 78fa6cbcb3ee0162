"""Rewrites what follows from the program: tables of docs/ (schema, metrics, warnings), the help text. `make docs`.

Columns of tables and telemetry are described where they are declared, columns of views in the page itself: their
rows are kept, and a new one is written with the words "(to be described)", on which a test fails.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import duckdb

from benchfleet.samples import SAMPLE_METRICS
from benchfleet_controller import help_text
from benchfleet_controller.checks.codes import TOLD
from benchfleet_controller.cli import parser
from benchfleet_controller.store import pooling, schema
from benchfleet_controller.store.migrations import migrate
from benchfleet_controller.store.views import VIEWS

DOCS = Path(__file__).parent
HELP_TEXT = Path(help_text.__file__)
TO_DESCRIBE = "(to be described)"


def main() -> None:
    """Rewrite the pages in place."""
    page = DOCS / "schema.md"
    page.write_text(schema_page(page.read_text(encoding="utf-8")), encoding="utf-8")
    HELP_TEXT.write_text(help_module(), encoding="utf-8")
    page = DOCS / "warnings.md"
    page.write_text(warnings_page(page.read_text(encoding="utf-8")), encoding="utf-8")
    page = DOCS / "metrics.md"
    page.write_text(metrics_page(page.read_text(encoding="utf-8")), encoding="utf-8")


def schema_page(text: str) -> str:
    """The page with the rows of every table and view as the program makes them."""
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(str(Path(folder) / "empty.duckdb")) as connection:
        migrate(connection, 0)
        columns = connection.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns ORDER BY 1, ordinal_position"
        ).fetchall()
    told = {(table.name, column.name): column.comment for table in schema.TABLES for column in table.columns}
    comments = {table.name: table.comment for table in schema.TABLES}
    for name in (*(name for name in VIEWS if name not in pooling.VIEWS), *comments):
        if f"\n## {name}\n" not in text:
            text = text.replace(
                "\n## schema_migrations\n", f"\n## {name}\n\n{comments[name]}\n\n## schema_migrations\n"
            )
        start = text.index(f"\n## {name}\n") + 1
        end = text.find("\n## ", start)
        section = text[start : end if end >= 0 else len(text)]
        kept = dict(re.findall(r"^\| `(\w+)` \| [^|]*\| (.*) \|$", section, re.MULTILINE))
        rows = ["| column | type | what |", "| --- | --- | --- |"]
        for table, column, kind in columns:
            if table == name:
                what = told.get((name, column)) or kept.get(column, TO_DESCRIBE)
                rows.append(f"| `{column}` | {kind} | {what} |")
        head = section.split("\n| column |")[0].rstrip()
        text = text[:start] + head + "\n\n" + "\n".join(rows) + "\n" + text[start + len(section) :]
    return text


def help_module() -> str:
    """The module with the top-level help, as argparse writes it 80 columns wide."""
    os.environ["COLUMNS"] = "80"
    text = parser("").format_help().replace("\\", "\\\\").replace('"', '\\"')
    return f'"""What `benchfleet --help` says; made by docs/regenerate.py."""\n\nHELP = """\\\n{text}"""\n'


def warnings_page(text: str) -> str:
    """The page with a row for every warning there is."""
    head = text[: text.index("| code |")]
    rows = ["| code | what it means | what to do |", "| --- | --- | --- |"]
    rows += [f"| `{code}` | {what} | {advice} |" for code, (what, advice) in TOLD.items()]
    return head + "\n".join(rows) + "\n"


def metrics_page(text: str) -> str:
    """The page with the rows of the telemetry columns as the contract declares them."""
    rows = ["| column | unit | kind | of | what |", "| --- | --- | --- | --- | --- |"]
    for metric in SAMPLE_METRICS:
        window = f" ({metric.window})" if metric.window else ""
        rows.append(
            f"| `{metric.name}` | {metric.unit} | {metric.kind}{window} | {metric.scope} | {metric.description} |"
        )
    pattern = re.escape("| column | unit | kind | of | what |") + r"\n(?:\|.*\n)+"
    return re.sub(pattern, lambda _: "\n".join(rows) + "\n", text, count=1)


if __name__ == "__main__":
    main()
