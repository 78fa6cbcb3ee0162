"""A judge over HTTP: a fake server that grades by a rule of its own and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from benchfleet_controller import cli
from fakes.scored_run import recorded_answers

pytestmark = pytest.mark.slow


class _FakeJudge(BaseHTTPRequestHandler):
    asked: ClassVar[list[dict[str, object]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"key": self.headers["Authorization"], **body})
        text = body["messages"][-1]["content"]
        grade = "5" if "Answer:\nParis" in text else "hm" if "Answer:\nhm" in text else "Grade: 1"
        reply = json.dumps({"choices": [{"message": {"content": grade}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("BENCHFLEET_JUDGE_API_KEY", "secret-key")
    monkeypatch.setattr(_FakeJudge, "asked", [])
    server = HTTPServer(("127.0.0.1", 0), _FakeJudge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _score(database: Path, judge: str, *more: str) -> int:
    return cli.main(["score", "last", "--db", str(database), "--judge", judge, "--judge-model", "big", *more])


def test_a_judge_grades_every_answer_once(tmp_path: Path, judge: str, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "b.duckdb"
    store = recorded_answers(database, (), ["Paris.", "London.", "Paris.", "hm"])

    assert _score(database, judge, "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["scorer"], row["answers"], row["scored"]) == ("judge:big", 4, 3)
    assert row["score_ratio"] == pytest.approx(2 / 3)
    assert "the judge gave no grade but 'hm'" in row["reason"]
    assert len(_FakeJudge.asked) == 3  # the two equal answers are one question
    assert {one["key"] for one in _FakeJudge.asked} == {"Bearer secret-key"}
    assert "capital of France" in str(_FakeJudge.asked[0]["messages"])

    assert _score(database, judge) == 0
    assert len(_FakeJudge.asked) == 3  # nothing is asked again …
    assert _score(database, judge, "--again") == 0
    assert len(_FakeJudge.asked) == 6  # … unless that is wanted
    assert store.score_summary(["r1"])[0]["answers"] == 4


def test_a_judge_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "b.duckdb"
    recorded_answers(database, (), ["Paris."])

    assert _score(database, "http://127.0.0.1:9") == 2
    assert "cannot be asked" in capsys.readouterr().err
