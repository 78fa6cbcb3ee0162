"""Verdicts: only like with like, sure or honestly not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchfleet_controller.compare import Comparison, Rounds, Verdict, compare


def case(case_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "case_id": case_id, "run_id": "r1", "host": "a", "device": "cpu", "device_asked": None, "runtime": "foundry",
        "model": "tiny", "model_asked": "tiny", "variant": "tiny:1", "execution_provider": "CPU", "status": "succeeded",
        "prompt_set": "default", "concurrency": 1, "max_tokens": 16, "stream": True, "temperature": 0.0, "top_p": 1.0,
        "tokens_source": "usage", "accounting": "consistent", "stamp_source": "socket", "requests": 40, "failed": 0,
        "ttft_n": 40, "e2e_n": 40, "ttft_p50_s": 0.1, "decode_tokens_per_s": 100.0, "ram_peak_bytes": 1000,
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
    memory = run({"ram_peak_bytes": 2000}, (), "ram_peak_bytes")
    assert (memory.verdict, memory.ratio) == (Verdict.INCONCLUSIVE, 2.0)


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


def test_regressions_are_the_worse_ones_beyond_the_limit() -> None:
    worse = run({"ttft_p50_s": 0.2}, (0.19, 0.2, 0.21, 0.2))
    comparison = Comparison(("host",), "a", (worse,))
    assert comparison.regressions(50) == (worse,)
    assert comparison.regressions(150) == ()


def test_unknown_names_are_told_with_the_known() -> None:
    for arguments, known in (
        ((("os",), None, []), "known are host"), ((("host",), "x", []), "there are: a"),
        ((("host",), None, ["speed"]), "known are ttft_avg_s"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=known):
            compare([case("c1")], *arguments)
