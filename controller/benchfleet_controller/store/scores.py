"""Scores of answers: which answers there are to score, and the table ``scores``.

What prompts expect is scored in the transaction that stores a job's end, so that no result goes without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb

from benchfleet_controller.quality import EXPECTED, Score, expected_of, score
from benchfleet_controller.store.columns import insert_rows
from benchfleet_controller.store.queries import Row, rows

_ANSWERS = """
SELECT q.request_id, q.run_id, q.case_id, q.prompt_id, c.prompt_set, q.text, q.finish_reason
FROM requests q JOIN cases c USING (case_id)
WHERE q.run_id IN (SELECT unnest(?)) AND q.status = 'ok' AND NOT q.warmup ORDER BY q.case_id, q.start_ns
"""
Aspects = Mapping[tuple[str, str], Sequence[str]]
"""By prompt set and prompt what is expected; the set is empty for a prompt of any set."""
_SUMMARY = """
SELECT j.host_name AS host, coalesce(c.alias, c.model) AS model, coalesce(c.device, c.device_asked) AS device,
       s.scorer, s.prompt_id, count(*) AS answers, count(s.score) AS scored, avg(s.score) AS score_ratio,
       count(*) FILTER (WHERE q.finish_reason = 'length') AS cut_short, any_value(s.reason) AS reason
FROM scores s JOIN requests q USING (request_id)
JOIN cases c ON c.case_id = s.case_id JOIN jobs j ON j.job_id = c.job_id
WHERE s.run_id IN (SELECT unnest(?)) GROUP BY ALL ORDER BY host, model, device, scorer, prompt_id
"""


def score_run(connection: duckdb.DuckDBPyConnection, run_id: str, aspects: Aspects | None = None) -> int:
    """Score a run's answers by what its prompts expect, or by ``aspects``; how many were scored."""
    if aspects is None:
        aspects = expected_of(rows(connection, "SELECT plan FROM runs WHERE run_id = ?", [run_id])[0]["plan"])
    if not aspects:
        return 0
    scored = []
    for answer in answers_to_score(connection, [run_id]):
        wanted = aspects.get((answer["prompt_set"], answer["prompt_id"])) or aspects.get(("", answer["prompt_id"]))
        if wanted:
            found = score(answer["text"] or "", wanted)
            detail = {"found": found.found, "missing": found.missing}
            scored.append(score_row(answer, EXPECTED, found, detail))
    if scored:
        replace_scores(connection, scored)
    return len(scored)


def score_row(answer: Row, scorer: str, found: Score, detail: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``scores`` for one of `answers_to_score`."""
    return {
        "request_id": answer["request_id"],
        "run_id": answer["run_id"],
        "case_id": answer["case_id"],
        "prompt_id": answer["prompt_id"],
        "scorer": scorer,
        "score": found.value,
        "detail": json.dumps(detail, ensure_ascii=False),
        "reason": found.reason,
        "scored_at": datetime.now(UTC).isoformat(),
    }


def answers_to_score(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """Ok answers of counted rounds."""
    return rows(connection, _ANSWERS, [list(run_ids)])


def scored(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str], scorer: str) -> set[str]:
    """Requests that a scorer has scored already."""
    sql = "SELECT request_id FROM scores WHERE run_id IN (SELECT unnest(?)) AND scorer = ?"
    return {row[0] for row in connection.execute(sql, [list(run_ids), scorer]).fetchall()}


def replace_scores(connection: duckdb.DuckDBPyConnection, scores: Sequence[Mapping[str, Any]]) -> None:
    """Keep scores; earlier ones of the same requests and scorer go."""
    for scorer in {str(one["scorer"]) for one in scores}:
        mine = [one["request_id"] for one in scores if one["scorer"] == scorer]
        connection.execute("DELETE FROM scores WHERE scorer = ? AND request_id IN (SELECT unnest(?))", [scorer, mine])
    insert_rows(connection, "scores", scores)


def summary(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> list[Row]:
    """Mean scores by host, model, device, scorer and prompt."""
    return rows(connection, _SUMMARY, [list(run_ids)])
