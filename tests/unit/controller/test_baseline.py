"""Baselines: the same bytes for the same results, and what a file may do wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from benchfleet_controller.baseline import Baseline, BaselineError
from benchfleet_controller.compare import Rounds, Verdict, compare

CASE: dict[str, Any] = {
    "case_id": "c1", "run_id": "r1", "host": "a", "runtime": "foundry", "model": "tiny", "model_asked": "tiny",
    "status": "succeeded", "requests": 40, "failed": 0, "ttft_n": 40, "ttft_p50_s": 0.1234567891,
    "prompt_set": "default", "concurrency": 1,
    "started_at": object(),
}  # fmt: skip
ROUNDS = {("ttft_p50_s", "c1"): Rounds(np.array([0.12, math.nan, 0.13, 0.12]), np.array([1.0, 0.0, 2.0, 1.0]))}


KEY = "a foundry tiny prompt_set=default concurrency=1"


def made(case_id: str = "c1", run_id: str = "r1") -> Baseline:
    rounds = {(metric, case_id): values for (metric, _), values in ROUNDS.items()}
    return Baseline.of("main", [CASE | {"case_id": case_id, "run_id": run_id}], rounds)


def test_a_document_comes_back_as_it_was_to_six_digits_and_in_the_same_bytes() -> None:
    text = made().to_json()
    back = Baseline.from_json(text, "main.json")

    assert back.to_json() == text
    assert back.cases[0]["ttft_p50_s"] == 0.123457
    assert "started_at" not in back.cases[0]
    np.testing.assert_array_equal(back.rounds["ttft_p50_s", KEY].values, [0.12, math.nan, 0.13, 0.12])
    assert json.loads(text)["name"] == "main"


def test_another_run_of_the_same_plan_changes_only_numbers() -> None:
    assert made("other", "run").to_json() == made().to_json()
    twice = [CASE | {"case_id": name, "ttft_p50_s": value} for name, value in (("x", 0.1), ("a", 0.2))]
    cases = json.loads(Baseline.of("main", twice, {}).to_json())["cases"]
    assert [(key, case["ttft_p50_s"]) for key, case in cases.items()] == [(KEY, 0.1), (f"{KEY} #2", 0.2)]


def test_a_document_of_the_first_version_is_still_read() -> None:
    first = {
        "benchfleet_baseline": 1, "name": "main", "run_id": "r1", "cases": [CASE | {"started_at": None}],
        "rounds": [
            {"metric": "ttft_p50_s", "case_id": "c1", "values": [0.12, None, 0.13, 0.12], "weights": [1, 0, 2, 1]},
        ],
    }  # fmt: skip
    assert Baseline.from_json(json.dumps(first), "x").to_json() == made().to_json()


def test_a_run_is_compared_with_a_document_like_with_a_run() -> None:
    document = Baseline.from_json(made().to_json(), "x")
    then = [dict(case) | {"run_id": "r1"} for case in document.cases]
    now = CASE | {"case_id": "c2", "run_id": "r2", "ttft_p50_s": 0.5}
    rounds = {**document.rounds, ("ttft_p50_s", "c2"): Rounds(np.array([0.5, 0.5, 0.5]), np.ones(3))}
    row = compare([*then, now], ("run",), "r1", ["ttft_p50_s"], rounds).rows[1]
    assert (row.group, row.verdict) == ("r2", Verdict.WORSE)
    assert row.ratio == pytest.approx(0.5 / 0.123457)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-5], "is no JSON"),
        (lambda _: "[]", "is no baseline"),
        (lambda _: '{"a": 1}', "is no baseline"),
        (lambda text: text.replace('"benchfleet_baseline": 2', '"benchfleet_baseline": 9'), "has version 9"),
        (lambda text: text.replace('"name": "main"', '"name": 3'), "must be a text"),
        (lambda text: text.replace('"cases"', '"crates"'), "KeyError('cases')"),
        (lambda text: text.replace('"host": "a"', '"host": 1', 1), "a case needs case_id and host"),
        (lambda text: text.replace('"failed": 0', '"failed": "no"'), "failed must be a number or null"),
        (lambda text: text.replace('"by_round"', '"rounds_of"'), "KeyError('by_round')"),
        (lambda text: text.replace("0.123457", '"fast"'), "ttft_p50_s must be a number or null"),
        (lambda text: text.replace('"weights"', '"w"'), "KeyError('weights')"),
        (lambda text: text.replace('"values": [', '"values": [\n7,'), "equal length"),
    ],
)
def test_a_file_that_is_no_baseline_says_why(change: Any, said: str) -> None:
    with pytest.raises(BaselineError) as error:
        Baseline.from_json(change(made().to_json()), "main.json")
    assert str(error.value).startswith("main.json: ")
    assert said in str(error.value)
