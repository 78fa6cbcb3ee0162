"""Listings and reports: for people safe and readable, for programs exact and stable."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller.checks import check
from benchfleet_controller.compare import compare
from benchfleet_controller.report import (
    CASE_COLUMNS,
    Column,
    ReportData,
    ReportError,
    render_report,
    render_table,
    write_report,
)
from benchfleet_controller.report.cases import (
    INTERVAL_NOTE,
    PERCENTILE_NOTE,
    case_for_people,
    half_width,
    notes_of,
)
from benchfleet_controller.report.exports import Figure

GOLDEN = Path(__file__).parents[2] / "golden"
ROWS: list[dict[str, Any]] = [
    {"name": "=cmd()", "size_bytes": 2048, "ttft_p50_s": 0.12345, "ok": True},
    {"name": "a|b\x1b[31mred\x1b[0m\n漢字", "size_bytes": None, "ttft_p50_s": float("nan"), "ok": None},
]
COLUMNS = ["name", "size_bytes", "ttft_p50_s", "ok"]


def case(case_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "case_id": case_id, "run_id": "r1", "host": "a", "device": "cpu", "device_asked": None, "runtime": "foundry",
        "model": "tiny", "model_asked": "tiny", "variant": "tiny:1", "execution_provider": "CPU", "status": "succeeded",
        "prompt_set": "default", "concurrency": 1, "max_tokens": 16, "stream": True, "temperature": 0.0, "top_p": 1.0,
        "tokens_source": "usage", "accounting": "consistent", "stamp_source": "socket", "requests": 40, "failed": 0,
        "ttft_n": 40, "e2e_n": 40, "ttft_p50_s": 0.1, "decode_tokens_per_s": 100.0, "ram_peak_bytes": 1000,
    } | fields  # fmt: skip


def data() -> ReportData:
    cases = [
        case(
            "c1",
            rounds=3,
            e2e_avg_s=0.5,
            e2e_p95_s=0.75,
            ttft_avg_s=0.1,
            ram_peak_bytes=1 << 28,
            warmup_rounds=1,
            itl_p50_s=0.01,
            ttft_error_s=0.0004,
            itl_error_s=0.00002,
        ),
        case("c2", host="b", rounds=3, ttft_p50_s=0.2, decode_tokens_per_s=50.0, warmup_rounds=1),
        case(
            "c3",
            host="b",
            model="big",
            model_asked="big",
            status="failed",
            reason="load_failed",
            message="no | room",
            requests=0,
        ),
    ]
    host = {"host": "a", "cpu_model": "Test CPU", "logical_cores": 4, "memory_bytes": 8 << 30, "os_name": "Linux",
            "os_version": "6.1", "agent_version": "0.1.0", "machine_id": "m1",
            "devices": [{"display_name": "Test GPU", "driver_version": "1.0"}]}  # fmt: skip
    run = {"run_id": "r1", "name": "lab", "created_at": datetime(2026, 1, 1, tzinfo=UTC), "seed": 42,
           "held_by": "me@here", "benchfleet_version": "0.1.0", "plan": {"models": ["tiny"]}}  # fmt: skip
    comparison = compare(cases, ("host",), None, ["ttft_p50_s", "decode_tokens_per_s"])
    answers = [{"case_id": "c1", "prompt_id": "p1", "text": "Blue\n<b>sky</b>", "reasoning_text": ""}]
    failures = [{"case_id": "c2", "reason": "http_error", "n": 2, "message": "HTTP 500"}]
    certificates: list[dict[str, Any]] = [
        {"host": "a", "concurrency": 1, "stamp_source": "socket", "ttft_error_p50_s": 0.0002,
         "ttft_error_p99_s": 0.0004, "itl_error_p50_s": 0.00001, "itl_error_p99_s": 0.00002, "jitter_s": 0.00001,
         "cpu_per_token_s": 0.0003, "rss_bytes": 50 << 20, "failure_reason": None},
        {"host": "b", "failure_reason": "internal", "failure_message": "no port is free"},
    ]  # fmt: skip
    warnings = check(cases, [host], certificates)
    return ReportData(run, [host], cases, comparison, warnings, answers, failures, certificates=certificates)


def test_tables_are_aligned_and_carry_no_escapes() -> None:
    lines = render_table(ROWS, COLUMNS).splitlines()
    assert lines[0].split() == COLUMNS
    assert lines[1].split() == ["=cmd()", "2", "KiB", "0.123", "yes"]
    assert lines[2].split() == ["a|bred", "漢字", "–", "–", "–"]
    assert "\x1b" not in "".join(lines)
    assert render_table([], COLUMNS) == "  ".join(COLUMNS) + "\n"


def test_markdown_cells_stay_in_their_cells() -> None:
    assert render_table(ROWS, ["name"], "md").splitlines()[3] == "| a\\|bred 漢字 |"


def test_json_has_base_units_and_null() -> None:
    assert json.loads(render_table(ROWS, COLUMNS, "json")) == [ROWS[0], ROWS[1] | {"ttft_p50_s": None}]


def test_csv_defuses_formulas_but_not_numbers() -> None:
    rows = [*ROWS, {"name": "-x", "size_bytes": -5, "ttft_p50_s": -0.5}]
    table = list(csv.reader(io.StringIO(render_table(rows, COLUMNS, "csv"))))
    assert [line[0] for line in table] == ["name", "'=cmd()", "a|b[31mred[0m\n漢字", "'-x"]
    assert table[2][1:] == ["", "", ""]
    assert table[3][1:3] == ["-5", "-0.5"]
    with pytest.raises(ValueError, match="known are table, json, csv, md"):
        render_table(rows, COLUMNS, "xml")


@pytest.mark.parametrize("ending", [".md", ".json", ".csv"])
def test_reports_are_as_they_were(ending: str) -> None:
    assert render_report(data(), ending) == (GOLDEN / f"report{ending}").read_text(encoding="utf-8")


def test_json_report_carries_the_names_people_began_with() -> None:
    document = json.loads(render_report(data(), ".json"))
    assert list(document)[:5] == ["schema_version", "run", "hosts", "cases", "comparison"]
    first = document["cases"][0]
    assert set(CASE_COLUMNS) <= set(first)
    assert (first["alias"], first["latency_avg"], first["latency_p95"], first["tokens_per_sec_avg"], first["rounds"],
            first["first_token_latency_avg"]) == ("tiny", 0.5, 0.75, 100.0, 3, 0.1)  # fmt: skip


def test_half_an_interval_has_the_digits_of_its_value_or_the_one_it_takes() -> None:
    assert half_width("ttft_p50_s", [0.1, 0.2]) == "0.050"
    assert half_width("ttft_p50_s", [0.1, 0.1004]) == "0.0002"
    assert half_width("decode_tokens_per_s", [90.0, 92.0]) == "1.0"
    assert half_width("ttft_p50_s", [0.1, 0.1]) == "0.000"


def test_marks_say_what_they_mean_only_where_they_are() -> None:
    columns = [Column("ttft_p50_s"), Column("ttft_p95_s")]
    known = case("c1", ttft_p95_s=0.2, intervals={"ttft_p50_s": [0.09, 0.13]})
    rows = [case_for_people(known), case_for_people(known | {"ttft_n": 19, "intervals": None})]

    assert [(row["ttft_p50_s"], row["ttft_p95_s"]) for row in rows] == [("0.100 ±0.020", "0.200"), ("0.100", "0.200*")]
    assert notes_of(rows[:1], columns) == [INTERVAL_NOTE]
    assert notes_of(rows[1:], columns) == [PERCENTILE_NOTE]
    assert case_for_people(case("c2", ttft_p95_s=0.2, ttft_n=None))["ttft_p95_s"] == "0.200"  # n unknown: no mark


def test_figures_are_aligned_as_numbers_and_cleaned() -> None:
    rows: list[dict[str, Any]] = [{"x": Figure("1.0 ±0.2")}, {"x": Figure("22.0\x1b[2J")}, {"x": None}]
    assert render_table(rows, ["x"]).splitlines()[1:] == ["1.0 ±0.2", "    22.0", "       –"]
    assert render_table(rows, ["x"], "md").splitlines()[1] == "| ---: |"


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.md"
    write_report(path, data())
    first = path.read_text(encoding="utf-8")
    with pytest.raises(ReportError, match="--force"):
        write_report(path, data())
    write_report(path, data(), force=True)
    assert path.read_text(encoding="utf-8") == first
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ReportError, match=r"end the file in \.md, \.json, \.csv"):
        write_report(tmp_path / "out.doc", data())
    with pytest.raises(ReportError, match="cannot write"):
        write_report(tmp_path / "none" / "out.md", data())
