from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from benchfleet_controller.checks import Code, check, load_shape
from benchfleet_controller.host_rules import Trouble

CLEAN: dict[str, Any] = {
    "host": "a", "runtime": "foundry", "model": "tiny", "device": "cpu", "status": "succeeded", "variant": "tiny:1",
    "rounds": 10, "requests": 40, "failed": 0, "warmup_rounds": 1, "tokens_source": "usage", "accounting": "consistent",
    "concurrency": 1,
}  # fmt: skip
OPEN: dict[str, Any] = {
    "request_rate_per_s": 4.0, "arrival": "constant", "requests": 40, "rounds": 10, "e2e_avg_s": 0.1,
}  # fmt: skip
NARROW: dict[str, Any] = {"interval_ratio": 0.05, "maximum_rounds": 10, "ttft_avg_s": 1.0, "e2e_avg_s": 2.0}
APART = {
    "scope": "gpu_board", "method": "counter", "gross_j": 1500.0, "second_method": "power", "second_j": 1200.0,
    "disagreement_ratio": 0.2,
}  # fmt: skip
HOST: dict[str, Any] = {"host": "a", "machine_id": "m", "agent_version": "1", "on_battery": None, "problems": []}
DRIVER: dict[str, Any] = {"devices": [{"display_name": "GPU", "driver_version": "580"}]}
OTHER_DRIVER: dict[str, Any] = {"devices": [{"display_name": "GPU", "driver_version": "590"}]}


def _span(start: int, end: int) -> dict[str, Any]:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return {"started_at": begin + timedelta(minutes=start), "finished_at": begin + timedelta(minutes=end)}


def test_agents_that_took_turns_on_one_machine_are_no_alarm() -> None:
    assert check([], [HOST | _span(0, 1), HOST | {"host": "b"} | _span(1, 2)]) == ()


def test_nothing_to_say_and_unknown_is_no_alarm() -> None:
    assert check([CLEAN], [HOST]) == ()
    assert check([CLEAN | {"status": "skipped", "variant": None}]) == ()
    assert (
        check([CLEAN | {"energy": [APART | {"disagreement_ratio": 0.1}, APART | {"disagreement_ratio": None}]}]) == ()
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"rounds": 2}, Code.FEW_ROUNDS),
        ({"requests": 19}, Code.FEW_REQUESTS),
        ({"warmup_rounds": 0}, Code.NO_WARMUP),
        ({"failed": 1}, Code.REQUESTS_FAILED),
        ({"ep_requested": "CUDA", "ep_actual": "CPU"}, Code.DEVICE_CONTRADICTED),
        ({"ep_requested": "CUDA", "device": "gpu"}, Code.DEVICE_UNPROVEN),
        ({"device_proof": "contradicted", "device_evidence": ["why"]}, Code.DEVICE_CONTRADICTED),
        ({"device": "npu", "device_proof": "unproven", "device_evidence": ["why"]}, Code.DEVICE_UNPROVEN),
        ({"spread_ratio": 0.11, "spread_metric": "decode_tokens_per_s"}, Code.HIGH_SPREAD),
        ({"forecast": {"fits": False, "memory": "ram"}}, Code.DOES_NOT_FIT),
        ({"forecast": {"required_bytes": 100, "memory": "ram"}, "ram_peak_bytes": 151}, Code.FORECAST_OFF),
        ({"forecast": {"required_bytes": 100, "memory": "vram"}, "vram_peak_bytes": 60}, Code.FORECAST_OFF),
        ({"status": "failed", "reason": "out_of_memory", "forecast": {"fits": True}}, Code.DOES_NOT_FIT),
        *(({"round_troubles": [{"trouble": word, "rounds": [1], "worst": "w"}]}, Code(word)) for word in Trouble),
        ({"unloads": 1}, Code.MODEL_UNLOADED),
        ({"variant": None}, Code.VARIANT_UNKNOWN),
        ({"tokens_source": "estimate"}, Code.TOKENS_ESTIMATED),
        ({"tokens_source": "estimate+usage"}, Code.TOKENS_SOURCE_MIXED),
        ({"accounting": "consistent+hidden_tokens"}, Code.TOKENS_HIDDEN),
        ({"accounting": "several_tokens_per_chunk"}, Code.SEVERAL_TOKENS_PER_CHUNK),
        ({"accounting": "fewer_chunks_than_tokens"}, Code.CHUNKS_AND_TOKENS_DIFFER),
        ({"accounting": "not_streamed"}, Code.NOT_STREAMED),
        ({"cached_prompt_tokens": 5, "prompt_tokens": 9}, Code.PROMPTS_CACHED),
        ({"remote": True}, Code.REMOTE_ENDPOINT),
        ({"energy": [APART]}, Code.ENERGY_DISAGREES),
        ({"dropped_readings": 3}, Code.READINGS_DROPPED),
        ({"coalesced_ratio": 0.5}, Code.CHUNKS_COALESCED),
        ({"load_cpu_ratio": 0.9}, Code.CLIENT_BUSY),
        ({"swap_growth_bytes": 1 << 30}, Code.SWAPPED),
        ({"prefix_cache": "allowed"}, Code.PREFIX_CACHE_ALLOWED),
        ({"prompt_token_count": 64, "prompt_tokens_min": 64, "prompt_tokens_max": 65}, Code.PROMPT_LENGTH_DIFFERS),
        ({"page_cache": "dropped", "page_cache_ratio": None}, Code.PAGE_CACHE_NOT_DROPPED),
        ({"page_cache": "dropped", "page_cache_ratio": 0.06}, Code.PAGE_CACHE_NOT_DROPPED),
        ({"lateness_avg_s": 0.011, "e2e_avg_s": 1.0}, Code.REQUESTS_LATE),
        (OPEN | {"requests_per_s": 3.3}, Code.RATE_NOT_REACHED),
        ({"ttft_error_s": 0.003, "ttft_p50_s": 0.1}, Code.INSTRUMENT_COARSE),
        ({"itl_error_s": 0.001, "itl_p50_s": 0.01}, Code.INSTRUMENT_COARSE),
        (NARROW | {"intervals": {"ttft_avg_s": [0.9, 1.1]}}, Code.INTERVAL_NOT_REACHED),
        (NARROW | {"intervals": {"e2e_avg_s": [1.8, 2.2]}}, Code.INTERVAL_NOT_REACHED),
    ],
)
def test_each_case_warning(fields: dict[str, Any], code: Code) -> None:
    (warned,) = check([CLEAN | fields, CLEAN | fields])  # the same one is said once
    assert warned.code is code
    assert warned.advice


@pytest.mark.parametrize(
    ("hosts", "code"),
    [
        ([HOST | {"on_battery": True}], Code.ON_BATTERY),
        ([HOST | {"devices": [1]}, HOST | {"devices": [2]}], Code.HOST_CHANGED),
        ([HOST | _span(0, 2), HOST | {"host": "b"} | _span(1, 3)], Code.MACHINE_SHARED),
        ([HOST, HOST | {"host": "b", "machine_id": "n", "agent_version": "2"}], Code.AGENTS_DIFFER),
        ([HOST | DRIVER, HOST | {"host": "b", "machine_id": "n"} | OTHER_DRIVER], Code.DRIVERS_DIFFER),
        ([HOST | {"problems": [{"severity": "warning", "message": "m", "advice": "do"}]}], Code.HOST_PROBLEM),
    ],
)
def test_each_host_warning(hosts: list[dict[str, Any]], code: Code) -> None:
    (warned,) = check([], hosts)
    assert warned.code is code


@pytest.mark.parametrize(
    "fields",
    [
        {"prefix_cache": "defeated"},
        {"device_proof": "unproven", "device_evidence": ["of a CPU nobody minds"]},
        {"device": "gpu", "device_proof": "confirmed", "device_evidence": ["seen"]},
        {"device": "gpu", "device_proof": None},
        {"spread_ratio": 0.1, "spread_metric": "e2e_avg_s"},
        {"forecast": {"fits": True}},
        {"forecast": {"fits": None}},
        {"unloads": 0},
        {"unloads": None},
        {"forecast": {"required_bytes": 100, "memory": "ram"}, "ram_peak_bytes": 149, "vram_peak_bytes": 900},
        {"forecast": {"required_bytes": 100, "memory": "ram"}, "ram_peak_bytes": None},
        {"prompt_token_count": 64, "prompt_tokens_min": 64, "prompt_tokens_max": 64},
        {"page_cache": "dropped", "page_cache_ratio": 0.05},
        {"page_cache": "dropped"},
        {"page_cache": "kept", "page_cache_ratio": 1.0},
        {"lateness_avg_s": 0.01, "e2e_avg_s": 1.0},
        OPEN | {"requests_per_s": 3.9},
        # A round that took 10 s and 3 s more for its last answer kept its rate all the same.
        OPEN | {"requests_per_s": 40 / 13, "rounds": 3, "e2e_avg_s": 1.0},
        OPEN | {"requests_per_s": 3.3, "arrival": "poisson"},
        {"ttft_error_s": 0.002, "ttft_p50_s": 0.1, "itl_error_s": 0.0005, "itl_p50_s": 0.01},
        NARROW | {"intervals": {"ttft_avg_s": [0.96, 1.04], "e2e_avg_s": [1.0, 3.0]}},
        NARROW | {"intervals": {"ttft_avg_s": [0.5, 1.5]}, "rounds": 9},
        NARROW | {"intervals": {"ttft_avg_s": None}},
    ],
)
def test_what_is_as_it_was_asked_for_is_no_alarm(fields: dict[str, Any]) -> None:
    assert check([CLEAN | fields]) == ()


def test_messages_name_what_was_asked_and_what_came() -> None:
    (length,) = check([CLEAN | {"prompt_token_count": 64, "prompt_tokens_min": 60, "prompt_tokens_max": 70}])
    assert "64 tokens were asked for, the server counted 60 to 70" in length.message
    (coarse,) = check([CLEAN | {"ttft_error_s": 0.003, "ttft_p50_s": 0.1}])
    assert "TTFT p50 is known to ±3 ms (3.0%)" in coarse.message
    (wide,) = check([CLEAN | NARROW | {"intervals": {"ttft_avg_s": [0.9, 1.1]}}])
    assert "TTFT is known to ±10.0% after the most rounds allowed, not to ±5.0%" in wide.message


def test_a_certificate_that_failed_is_said_of_its_host() -> None:
    failed = {"host": "a", "failure_reason": "internal", "failure_message": "no port"}
    (warned,) = check([CLEAN], [], [{"host": "b", "failure_reason": None}, failed])
    assert (warned.code, warned.subject) == (Code.CERTIFICATE_MISSING, "a")
    assert "no port" in warned.message


def test_subjects_name_the_load_and_the_prompts_where_there_are_several() -> None:
    cases = [
        CLEAN | {"remote": True, "prompt_set": "short", "request_rate_per_s": 5.0, "arrival": "poisson"},
        CLEAN | {"remote": True, "prompt_set": "long", "concurrency": 8},
    ]
    assert [warned.subject for warned in check(cases)] == [
        "a / foundry / tiny / cpu / short / 5/s poisson",
        "a / foundry / tiny / cpu / long / concurrency 8",
    ]


def test_the_load_of_a_case_for_people() -> None:
    assert load_shape({"concurrency": 4}) == "×4"
    assert load_shape({"concurrency": 64, "request_rate_per_s": 0.5, "arrival": "constant"}) == "0.5/s constant"
    assert load_shape({}) == ""


@pytest.mark.parametrize(
    ("trouble", "conditions", "advised", "not_advised"),
    [
        ("power_changed", {}, "--require-ac", "plugged"),
        ("power_changed", {"require_ac": True}, "plugged in", "--require-ac"),
        ("throttled", {}, "--wait-until-cool", "cooling"),
        ("throttled", {"cool_temperature_c": 55.0}, "began at 55 °C", "--wait-until-cool"),
        ("background_load", {}, "--max-background-load", "after rounds"),
        ("background_load", {"maximum_background_ratio": 0.1}, "after rounds had begun", "--max-background-load"),
    ],
)
def test_nobody_is_advised_to_do_what_the_plan_does(
    trouble: str, conditions: dict[str, Any], advised: str, not_advised: str
) -> None:
    found = [{"trouble": trouble, "rounds": [2], "worst": "w"}]
    (warned,) = check([CLEAN | {"round_troubles": found, "conditions": conditions}])
    assert advised in warned.advice
    assert not_advised not in warned.advice


def test_rounds_in_trouble_are_named() -> None:
    def message(trouble: str, rounds: list[int]) -> str:
        found = [{"trouble": trouble, "rounds": rounds, "worst": "the worst"}]
        return check([CLEAN | {"round_troubles": found}])[0].message

    assert message("throttled", [2, 7]) == "rounds 2, 7 of 10: the worst"
    assert message("throttled", list(range(1, 11))) == "all rounds: the worst"
    assert message("throttled", list(range(1, 10))) == "rounds 1, 2, 3, 4, 5, … of 10: the worst"
    assert message("suspended", [3]) == "round 3 of 10: the worst; they stay in the results and spoil them"
