from __future__ import annotations

from typing import Any

import pytest

from benchfleet_controller.findings import MOST, findings
from benchfleet_controller.outliers import Outlier, Reason
from fakes.case_results import case

MIB = 1 << 20


def on(host: str, rate: float | None = 50.0, half: float = 1.0, **fields: Any) -> dict[str, Any]:
    ends = None if rate is None else [rate - half, rate + half]
    row = case(case_id=f"c-{host}", host=host, decode_tokens_per_s=rate, intervals={"decode_tokens_per_s": ends})
    return row | fields


def test_intervals_that_lie_apart_make_a_fastest() -> None:
    (told,) = findings([on("slow", 50.0), on("quick", 100.0)])
    assert told == (
        "Fastest of 2: quick with 100.0 ±1.0 tokens/s (5 rounds); slowest: slow with 50.0 ±1.0 (5 rounds), "
        "2.00 times slower; their intervals lie apart."
    )


def test_intervals_that_overlap_make_none() -> None:
    (told,) = findings([on("a", 50.0, 3.0), on("b", 52.0, 3.0)])
    assert told.endswith("1.04 times slower; their intervals overlap, so which is faster is not sure.")


def test_without_intervals_nothing_is_sure() -> None:
    (told,) = findings([on("a", 50.0, intervals={}), on("b", 99.0, intervals={})])
    assert told.endswith("too few rounds to be sure.")


def test_answers_in_one_piece_are_held_against_each_other_by_latency() -> None:
    (told,) = findings([on("a", None, e2e_avg_s=2.0), on("b", None, e2e_avg_s=1.0)])
    assert told.startswith("Fastest of 2: b with 1.000 s an answer (5 rounds); slowest: a with 2.000")


def test_only_the_same_work_is_set_against_each_other() -> None:
    (told,) = findings([on("a", 50.0), on("b", 60.0), on("b", 900.0, case_id="c-short", prompt_set="short")])
    assert "900" not in told


def test_one_case_alone_is_neither_fast_nor_slow() -> None:
    assert findings([on("a")]) == ("A makes 50.0 ±1.0 tokens/s (5 rounds).",)
    assert findings([]) == ()
    assert findings([on("a", failed=40)]) == ()


def test_a_contradicted_device_is_fastest_of_nothing() -> None:
    cases = [on("a"), on("b", 60.0), on("c", 900.0, device_proof="contradicted", device_evidence=["it ran on CPU"])]
    fastest, contradicted = findings(cases)
    assert "900" not in fastest
    assert contradicted == "C is in no comparison, its device is contradicted: it ran on CPU."


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"decode_limit_ratio": 0.7, "efficiency": "memory-bound at 70% of this host's limit"},
            "A: memory-bound at 70%",
        ),
        (
            {"rounds_invalid": 1, "round_troubles": [{"trouble": "suspended", "worst": "the machine slept 9 s"}]},
            "A has 1 invalid of 5 rounds: the machine slept 9 s.",
        ),
        ({"rounds_suspicious": 2, "round_troubles": [{"worst": "hot"}]}, "A has 2 suspicious of 5 rounds: hot."),
        ({"spread_ratio": 0.14}, "Rounds of a lie 14% of their mean apart."),
        (
            {"cold_ttft_s": 1.1, "ttft_p50_s": 0.04, "load_s": 0.5},
            "waits 1.1 s for its first token on a instead of 0.04 s, after 0.5 s of loading.",
        ),
        (
            {"unload_s": 0.1, "ram_before_unload_bytes": 500 * MIB, "ram_given_back_bytes": 100 * MIB},
            "After unloading, a still holds 80% of its 500 MiB until the runtime ends.",
        ),
    ],
)
def test_each_surprise_has_its_numbers(fields: dict[str, Any], told: str) -> None:
    sentences = findings([on("a", **fields)])
    assert len(sentences) == 2
    assert told in sentences[1]


@pytest.mark.parametrize(
    "fields",
    [
        {"spread_ratio": 0.1},
        {"cold_ttft_s": 0.12, "ttft_p50_s": 0.03},  # three times, and nobody feels it
        {"cold_ttft_s": 1.2, "ttft_p50_s": 0.5},
        {"unload_s": 0.1, "ram_before_unload_bytes": 500, "ram_given_back_bytes": 400},
        {"unload_s": None, "ram_before_unload_bytes": 500, "ram_given_back_bytes": 0},  # nothing was unloaded
        {"kwh_per_million_tokens": 0.5, "energy_scope": "parts"},
        {"rounds_invalid": 0, "rounds_suspicious": 0, "round_troubles": []},
    ],
)
def test_the_ordinary_is_not_told(fields: dict[str, Any]) -> None:
    assert len(findings([on("a", **fields)])) == 1


def test_energies_of_different_scopes_are_not_set_against_each_other() -> None:
    one: dict[str, Any] = {"kwh_per_million_tokens": 0.5, "energy_scope": "parts"}
    other: dict[str, Any] = {"kwh_per_million_tokens": 1.5, "energy_scope": "gpu_board"}
    assert len(findings([on("a", **one), on("b", **other)])) == 1
    told = findings([on("a", **one), on("b", **other | {"energy_scope": "parts"})])[1]
    assert told == "A million output tokens take 0.5 kWh on a and 1.5 on b (parts, gross)."


def test_outliers_are_counted_by_request() -> None:
    marked = [Outlier(f"r{n // 2}", "c-a", m, 2.0, 1.0, 2.0, 4.0, Reason.BUSY_HOST, "")
              for n, m in enumerate(("ttft_s", "e2e_s", "e2e_s"))]  # fmt: skip
    assert findings([on("a")], marked)[1] == "2 of 40 requests took unusually long, most (2) for busy host."
    assert len(findings([on("a", requests=400)], marked)) == 1


def test_there_are_never_too_many_sentences() -> None:
    all_of_it: dict[str, Any] = {
        "decode_limit_ratio": 0.7, "efficiency": "memory-bound", "rounds_invalid": 1, "spread_ratio": 0.5,
        "cold_ttft_s": 9.0, "kwh_per_million_tokens": 1.0, "energy_scope": "parts",
        "ram_before_unload_bytes": 500, "ram_given_back_bytes": 0,
    }  # fmt: skip
    assert len(findings([on("a", **all_of_it), on("b", 60.0, **all_of_it)])) == MOST


def test_names_say_what_sets_cases_apart() -> None:
    told = findings(
        [on("a", 50.0, concurrency=1), on("a", 60.0, case_id="c2", model="big"), on("a", 70.0, case_id="c3")]
    )
    assert "a" not in told[0].split()
    assert "slowest: tiny with 50.0" in told[0]
