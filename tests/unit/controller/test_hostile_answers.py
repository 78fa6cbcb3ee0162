"""Everything an agent says is poisoned, goes through a real database and comes out of every command and format.

What a host, a model or a server says must not steer a terminal, run in a spreadsheet or a page, or break a table.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from benchfleet.failures import Failure, Reason
from benchfleet.v1 import event_pb2
from benchfleet_controller import cli
from benchfleet_controller.commands import say
from benchfleet_controller.live import Progress
from benchfleet_controller.report.exports import render_table, to_json
from benchfleet_controller.store import Store
from fakes import lab

POISON = (
    "=cmd|'/C calc'!A0\x1b]0;pwned\x07\x1b[2J\x9b31m\u202etxt\u2028</script><script>alert(1)</script>"
    "<img src=x onerror=y>|a|`b`\r\n# Owned\n::error::owned\n[click](javascript:alert(2)) ![seen](http://evil.example/x.png)\\|"
)
LINKING = {"case_id", "round_id", "request_id", "run_id", "prompt_id", "prompt_set", "device_id", "metric"}
"""What ties rows together; were it poisoned, they would only be lost."""
DECISIVE = {"status", "tokens_source", "kind", "phase", "device", "accounting"}
"""What decides whether there is a result to show."""
DANGEROUS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""All that steers a terminal but the end of a line."""


def poison(message: Message, spared: set[str]) -> None:
    """Put poison before every text of a message, however deep."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entries: Any = value
            if field.message_type.fields_by_name["value"].cpp_type == field.CPPTYPE_STRING:
                for key in list(entries):
                    entries[key] = POISON + entries[key]
        elif field.cpp_type == field.CPPTYPE_MESSAGE:
            for one in value if field.is_repeated else [value]:
                poison(one, spared)
        elif field.cpp_type == field.CPPTYPE_STRING and field.name not in spared:
            if field.is_repeated:
                value[:] = [POISON + one for one in value]
            else:
                setattr(message, field.name, POISON + value)


def poisoned(path: Path, spared: set[str]) -> Path:
    """The database of a run on two hosts that poison all they say, but for these fields."""

    class PoisonedStore(Store):
        def commit_many(self, batches: Any, *more: Any) -> Any:
            for event in itertools.chain.from_iterable(batches.values()):
                kind = getattr(event, str(event.WhichOneof("kind")))
                names = [one.name for one in kind.spec.prompt_sets] if isinstance(kind, event_pb2.JobStarted) else []
                poison(kind, spared)
                for place, name in enumerate(names):
                    kind.spec.prompt_sets[place].name = name
            return super().commit_many(batches, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "Store", PoisonedStore)
        lab.lab_store(path, rounds=4, samples=20)
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned(tmp_path_factory.mktemp("hostile") / "b.duckdb", LINKING | DECISIVE)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "b.duckdb"
    lab.lab_store(path, rounds=4, samples=20)
    return path


def run(database: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    code = cli.main([*arguments, "--db", str(database)])
    shown = capsys.readouterr()
    assert code in (0, 1), (arguments, shown.err)
    return shown.out, shown.err


COMMANDS = (
    ("runs",),
    ("show", "last"),
    ("show", "last", "--lifecycle"),
    ("show", "last", "--outliers"),
    ("compare", "last", "--by", "host"),
    ("compare", "last", "--by", "model"),
    ("select", "last"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("style", ["table", "md", "csv", "json"])
def test_no_command_lets_an_answer_steer_a_terminal(
    database: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], style: str
) -> None:
    out, err = run(database, capsys, *command, "--format", style)

    assert out
    assert not DANGEROUS.search(out + err)
    if style == "json":
        json.loads(out)
    if style == "csv":
        assert_no_formulas(out)
    if style == "md":
        assert_tables_whole(out)
        assert_nothing_active(out)


def test_not_even_where_every_word_is_poisoned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = poisoned(tmp_path / "b.duckdb", LINKING)
    for command in COMMANDS:
        out, err = run(path, capsys, *command)
        assert not DANGEROUS.search(out + err), command


def assert_no_formulas(text: str) -> None:
    rows = list(csv.reader(io.StringIO(text)))
    assert rows
    assert {len(row) for row in rows if row} == {len(rows[0])}
    for row in rows[1:]:
        for cell in row:
            number = re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell)
            assert number or not cell.lstrip().startswith(("=", "+", "-", "@")), cell


def assert_tables_whole(text: str) -> None:
    width = None
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))
        width = width or cells
        assert cells == width, line


def assert_nothing_active(text: str) -> None:
    assert not re.search(r"<\s*(script|img)", text, re.IGNORECASE)
    assert not re.search(r"(?<!\\)(?:\\\\)*\]\((javascript:|http://evil)", text)
    assert not re.search(r"^(# Owned|::error)", text, re.MULTILINE)


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ .*", text, re.MULTILINE)


def test_a_markdown_report_keeps_its_shape(
    database: Path, honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(database, capsys, "report", "last", "-o", str(tmp_path / "r.md"))
    run(honest, capsys, "report", "last", "-o", str(tmp_path / "honest.md"))
    text, plain = ((tmp_path / name).read_text(encoding="utf-8") for name in ("r.md", "honest.md"))

    assert not DANGEROUS.search(text)
    assert_tables_whole(text)
    assert_nothing_active(text)
    assert "Owned" in text  # it is shown, as text
    assert {one for one in headings(text) if "Owned" not in one} <= set(headings(plain))


def test_a_csv_report_runs_nothing_in_a_spreadsheet(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(database, capsys, "report", "last", "-o", str(tmp_path / "r.csv"))
    assert_no_formulas((tmp_path / "r.csv").read_text(encoding="utf-8"))


def test_json_and_parquet_hold_what_was_said_exactly(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import duckdb

    run(database, capsys, "report", "last", "-o", str(tmp_path / "r.json"))
    run(database, capsys, "report", "last", "-o", str(tmp_path / "r.parquet"))
    text = (tmp_path / "r.json").read_text(encoding="utf-8")

    assert not DANGEROUS.search(text)
    assert any(one.startswith(POISON) for one in strings(json.loads(text)))
    names = duckdb.execute(f"SELECT DISTINCT variant FROM '{tmp_path / 'r.parquet'}'").fetchall()
    assert names
    assert all(one.startswith(POISON) for (one,) in names)


def strings(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(strings(one) for one in value.values()))
    if isinstance(value, list):
        return set().union(*(strings(one) for one in value))
    return {value} if isinstance(value, str) else set()


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_a_page_holds_no_element_that_an_answer_brought(
    database: Path, honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(database, capsys, "report", "last", "-o", str(tmp_path / "r.html"))
    run(honest, capsys, "report", "last", "-o", str(tmp_path / "honest.html"))
    text, plain = ((tmp_path / name).read_text(encoding="utf-8") for name in ("r.html", "honest.html"))
    page, expected = Page(text), Page(plain)

    assert set(page.tags) <= set(expected.tags)
    assert "img" not in page.tags
    assert page.tags.count("script") <= expected.tags.count("script")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for name, value in page.attributes if name in ("href", "src") and ":" in value.partition("/")[0]]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_what_an_agent_refuses_with_is_said_as_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    cli.complain(f"host: {Failure(Reason.HOST_BUSY, POISON).message}")
    say(POISON)
    err = capsys.readouterr().err

    assert "Owned" in err
    assert not DANGEROUS.search(err)


def test_progress_of_a_hostile_agent_is_plain_text() -> None:
    stream = io.StringIO()
    event = event_pb2.Event(progress_reported=event_pb2.ProgressReported(case_id="c", message=POISON))
    with Progress(["lab"], stream) as progress:
        progress.say(POISON)
        progress.watch("lab", event)

    assert not DANGEROUS.search(stream.getvalue())


def test_json_for_a_terminal_is_the_same_json() -> None:
    assert json.loads(to_json({"a": [POISON, "ä", 1.5]})) == {"a": [POISON, "ä", 1.5]}
    assert "ä" in to_json("ä")


@pytest.mark.parametrize("text", ["=1+1", " =1+1", "\x00=1+1", "\x1b[0m@SUM(A1)", "\t-1", "+cmd", "\u202e=1"])
def test_a_cell_that_looks_like_a_formula_is_quoted(text: str) -> None:
    assert_no_formulas(render_table([{"a": text}], ["a"], "csv"))
