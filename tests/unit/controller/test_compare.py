"""Verdicts: only like with like, sure or honestly not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchfleet_controller.compare import Rounds, Verdict, compare


def case(case_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "case_id": case_id, "run_id": "r1", "host": "a", "device": "cpu", "device_asked": None, "runtime": "foundry",
        "model": "tiny", "model_asked": "tiny", "variant": "tiny:1", "execution_provider": "CPU", "status": "succeeded",
        "prompt_set": "default", "concurrency": 1, "max_tokens": 16, "stream": True, "temperature": 0.0, "top_p": 1.0,
        "tokens_source": "usage", "accounting": "consistent", "stamp_source": "socket", "requests": 40, "failed": 0,
        "ttft_n": 40, "e2e_n": 40, "ttft_p50_s": 0.1, "decode_tokens_per_s": 100.0, "ram_peak_bytes": 1000,
        "vram_peak_bytes": 1000,
    } | fields  # fmt: skip


def rounds(*values: float) -> Rounds:
    return Rounds(np.array(values), np.ones(len(values)))


def run(
    b: dict[str, Any], values: tuple[float, ...], metric: str = "ttft_p50_s", by: tuple[str, ...] = ("host",)
) -> Any:
    around = {(metric, "c1"): rounds(0.099, 0.1, 0.101, 0.1), (metric, "c2"): rounds(*values)}
    comparison = compare([case("c1"), case("c2", **({"host": "b"} | b))], by, None, [metric], around)
    return comparison.rows[1]


@pytest.mark.parametrize(
    ("value", "values", "verdict"),
    [
        (0.05, (0.049, 0.05, 0.051, 0.05), Verdict.BETTER),
        (0.2, (0.19, 0.2, 0.21, 0.2), Verdict.WORSE),
        (0.1, (0.1, 0.1, 0.1, 0.1), Verdict.SAME),
        (0.11, (0.05, 0.2, 0.08, 0.11), Verdict.INCONCLUSIVE),
        (0.2, (0.2, 0.2), Verdict.INCONCLUSIVE),
        (None, (), Verdict.NOT_COMPARABLE),
    ],
)
def test_verdicts(value: float | None, values: tuple[float, ...], verdict: Verdict) -> None:
    row = run({"ttft_p50_s": value}, values)
    assert row.verdict is verdict
    assert bool(row.why) == (verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_COMPARABLE))
    if value is not None:
        assert row.ratio == pytest.approx(value / 0.1)


def test_higher_is_better_for_rates() -> None:
    row = run({"decode_tokens_per_s": 200.0}, (0.2, 0.2, 0.2, 0.2), "decode_tokens_per_s")
    assert (row.verdict, row.ratio) == (Verdict.BETTER, 2.0)
    assert row.low is not None
    assert row.low <= 2 <= row.high


@pytest.mark.parametrize("condition", ["prompt_set", "concurrency", "max_tokens"])
def test_other_conditions_are_never_compared(condition: str) -> None:
    row = run({condition: 99}, (0.2, 0.2, 0.2))
    assert (row.verdict, row.ratio) == (Verdict.NOT_COMPARABLE, None)
    assert f"{condition} 99 instead of" in row.why


def test_differences_are_said_or_refuse() -> None:
    flagged = run({"execution_provider": "CUDA", "tokens_source": "estimate"}, (0.1, 0.1, 0.1))
    assert flagged.verdict is not Verdict.NOT_COMPARABLE
    assert flagged.flags == ("execution_provider CUDA instead of CPU", "tokens_source estimate instead of usage")
    refused = run({"tokens_source": "estimate"}, (1, 1, 1), "decode_tokens_per_s")
    assert (refused.verdict, "counted differently" in refused.why) == (Verdict.NOT_COMPARABLE, True)
    by_device = run({"host": "a", "device": "gpu", "device_asked": "gpu", "variant": "x"}, (0.1,), by=("device",))
    assert by_device.flags == ()
    by_run = run({"host": "a", "run_id": "r2", "variant": "tiny:2"}, (0.1,), by=("run",))
    assert (by_run.verdict, by_run.why) == (Verdict.NOT_COMPARABLE, "variant tiny:2 instead of tiny:1")


def test_percentiles_need_enough_values_and_single_values_are_inconclusive() -> None:
    few = run({"e2e_p95_s": 2.0, "e2e_n": 10}, (2, 2, 2), "e2e_p95_s")
    assert few.verdict is Verdict.NOT_COMPARABLE  # the baseline has none
    memory = run({"vram_peak_bytes": 2000}, (), "vram_peak_bytes")
    assert (memory.verdict, memory.ratio) == (Verdict.INCONCLUSIVE, 2.0)
    assert memory.why == "one value a case: 3 runs on each side are needed"


def test_each_stratum_has_its_own_baseline_and_failed_cases_stay_out() -> None:
    cases = [
        case("a1"), case("a2", model="big", model_asked="big", ttft_p50_s=1.0), case("b1", host="b", ttft_p50_s=0.2),
        case("b2", host="b", model="big", model_asked="big", ttft_p50_s=3.0),
        case("c1", host="c", status="failed", requests=0),
    ]  # fmt: skip
    found = compare(cases, ("host",), "b", ["ttft_p50_s"])
    assert [(r.conditions["model"], r.group, r.ratio) for r in found.rows] == [
        ("tiny", "a", 0.5), ("tiny", "b", 1.0), ("big", "a", pytest.approx(1 / 3)), ("big", "b", 1.0),
    ]  # fmt: skip


def test_a_rank_test_that_could_agree_and_does_not_withdraws_the_verdict() -> None:
    spread = {("ttft_p50_s", "c1"): rounds(*[0.1] * 7, 0.5), ("ttft_p50_s", "c2"): rounds(*[0.1] * 7, 9.0)}
    rows = compare([case("c1"), case("c2", host="b", ttft_p50_s=0.3)], ("host",), None, ["ttft_p50_s"], spread).rows
    assert rows[1].p_value is not None
    assert rows[1].p_value > 0.05
    assert rows[1].verdict is Verdict.INCONCLUSIVE


def test_p_values_are_corrected_for_the_number_of_comparisons() -> None:
    values = {("ttft_p50_s", f"c{n}"): rounds(*(n * value for value in (0.099, 0.1, 0.101, 0.102))) for n in (1, 2, 3)}
    cases = [case(f"c{n}", host=f"h{n}", ttft_p50_s=0.1 * n) for n in (1, 2, 3)]
    two = compare(cases[:2], ("host",), None, ["ttft_p50_s"], values).rows[1]
    three = compare(cases, ("host",), None, ["ttft_p50_s"], values).rows
    assert two.p_value == pytest.approx(2 / 70)  # all of four above all of four
    assert [row.p_value for row in three] == [None, pytest.approx(4 / 70), pytest.approx(4 / 70)]
    assert three[1].verdict is Verdict.WORSE  # with so few rounds no rank test could deny it


def test_an_inconclusive_row_says_how_many_more_rounds_would_decide() -> None:
    row = run({"ttft_p50_s": 0.105}, (0.09, 0.12, 0.1, 0.11))
    assert row.verdict is Verdict.INCONCLUSIVE
    assert row.more_rounds is not None
    assert f"about {row.more_rounds} more rounds on each side would decide" in row.why


def test_single_values_are_compared_over_several_runs() -> None:
    loads = [case(f"a{n}", load_s=1.0 + n / 100) for n in range(3)]
    loads += [case(f"b{n}", host="b", load_s=2.0 + n / 100) for n in range(3)]
    row = compare(loads, ("host",), None, ["load_s"]).rows[1]
    assert (row.verdict, row.rounds, row.baseline_rounds) == (Verdict.WORSE, 3, 3)


def test_unknown_names_are_told_with_the_known() -> None:
    for arguments, known in (
        ((("os",), None, []), "known are host"), ((("host",), "x", []), "there are: a"),
        ((("host",), None, ["speed"]), "known are ttft_avg_s"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=known):
            compare([case("c1")], *arguments)
