from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchfleet_controller import cli
from fakes.scored_run import recorded_answers


def test_answers_are_scored_when_their_job_ends(tmp_path: Path) -> None:
    store = recorded_answers(tmp_path / "b.duckdb", ("Paris", "Seine"), ["Paris.", "Paris on the Seine", "London"])
    found = store.score_summary(["r1"])

    assert [(row["scorer"], row["answers"], row["scored"], row["score_ratio"]) for row in found] == [
        ("expected", 3, 3, pytest.approx(0.5))
    ]


def test_events_that_come_again_score_nothing_twice(tmp_path: Path) -> None:
    store = recorded_answers(tmp_path / "b.duckdb", ("Paris",), ["Paris."])
    store.score_run("r1")

    assert store.score_summary(["r1"])[0]["answers"] == 1


def test_what_is_expected_may_come_after_the_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "b.duckdb"
    recorded_answers(database, (), ["Paris.", "London."])
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps([{"id": "p1", "prompt": "…", "expected": ["paris"]}]), encoding="utf-8")

    assert cli.main(["score", "last", "--db", str(database)]) == 2
    assert "give --expected FILE" in capsys.readouterr().err
    assert cli.main(["score", "last", "--db", str(database), "--expected", str(expected), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["prompt_id"], row["answers"], row["score_ratio"]) == ("p1", 2, 0.5)


def test_a_bad_pattern_is_named_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "b.duckdb"
    recorded_answers(database, (), ["Paris."])
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps([{"id": "p1", "prompt": "…", "expected": ["/(/"]}]), encoding="utf-8")

    assert cli.main(["score", "last", "--db", str(database), "--expected", str(expected)]) == 2
    assert "the expected pattern /(/ is no regular expression" in capsys.readouterr().err


def test_half_a_judge_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "b.duckdb"
    recorded_answers(database, (), ["Paris."])

    assert cli.main(["score", "last", "--db", str(database), "--judge", "http://127.0.0.1:1/v1"]) == 2
    assert "--judge-model" in capsys.readouterr().err
