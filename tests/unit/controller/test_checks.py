from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from benchfleet_controller.checks import Code, check

CLEAN: dict[str, Any] = {
    "host": "a", "runtime": "foundry", "model": "tiny", "device": "cpu", "status": "succeeded", "variant": "tiny:1",
    "rounds": 10, "requests": 40, "failed": 0, "warmup_rounds": 1, "tokens_source": "usage", "accounting": "consistent",
    "concurrency": 1,
}  # fmt: skip
HOST: dict[str, Any] = {"host": "a", "machine_id": "m", "agent_version": "1", "on_battery": None, "problems": []}


def _span(start: int, end: int) -> dict[str, Any]:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    return {"started_at": begin + timedelta(minutes=start), "finished_at": begin + timedelta(minutes=end)}


def test_agents_that_took_turns_on_one_machine_are_no_alarm() -> None:
    assert check([], [HOST | _span(0, 1), HOST | {"host": "b"} | _span(1, 2)]) == ()


def test_nothing_to_say_and_unknown_is_no_alarm() -> None:
    assert check([CLEAN], [HOST]) == ()
    assert check([CLEAN | {"status": "skipped", "variant": None}]) == ()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"rounds": 2}, Code.FEW_ROUNDS),
        ({"requests": 19}, Code.FEW_REQUESTS),
        ({"warmup_rounds": 0}, Code.NO_WARMUP),
        ({"failed": 1}, Code.REQUESTS_FAILED),
        ({"ep_requested": "CUDA", "ep_actual": "CPU"}, Code.EP_DIFFERS),
        ({"ep_requested": "CUDA", "device": "gpu"}, Code.EP_UNPROVEN),
        ({"variant": None}, Code.VARIANT_UNKNOWN),
        ({"tokens_source": "estimate"}, Code.TOKENS_ESTIMATED),
        ({"tokens_source": "estimate+usage"}, Code.TOKENS_SOURCE_MIXED),
        ({"accounting": "consistent+hidden_tokens"}, Code.TOKENS_HIDDEN),
        ({"accounting": "several_tokens_per_chunk"}, Code.SEVERAL_TOKENS_PER_CHUNK),
        ({"accounting": "fewer_chunks_than_tokens"}, Code.CHUNKS_AND_TOKENS_DIFFER),
        ({"accounting": "not_streamed"}, Code.NOT_STREAMED),
        ({"cached_prompt_tokens": 5, "prompt_tokens": 9}, Code.PROMPTS_CACHED),
        ({"remote": True}, Code.REMOTE_ENDPOINT),
        ({"dropped_readings": 3}, Code.READINGS_DROPPED),
        ({"coalesced_ratio": 0.5}, Code.CHUNKS_COALESCED),
        ({"load_cpu_ratio": 0.9}, Code.CLIENT_BUSY),
        ({"swap_growth_bytes": 1 << 30}, Code.SWAPPED),
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
        ([HOST | {"problems": [{"severity": "warning", "message": "m", "advice": "do"}]}], Code.HOST_PROBLEM),
    ],
)
def test_each_host_warning(hosts: list[dict[str, Any]], code: Code) -> None:
    (warned,) = check([], hosts)
    assert warned.code is code
