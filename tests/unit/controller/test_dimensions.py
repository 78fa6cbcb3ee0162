"""What cases are compared by, and what is held equal meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from benchfleet_controller.dimensions import (
    CONDITIONS,
    DIMENSIONS,
    group_name,
    held_columns,
    matches,
    nearest,
    quantisation_of,
    stratum,
)

CASE: dict[str, Any] = {
    "host": "a", "device": "cpu", "device_asked": None, "model": "phi", "model_asked": "phi", "variant": "phi-cpu:1",
    "runtime": "foundry", "execution_provider": "CPUExecutionProvider", "driver_version": None, "concurrency": 4,
    "request_rate_per_s": None, "temperature": 0.0, "run_id": "r1", "run_name": "abc123", "path": None,
}  # fmt: skip


def test_what_the_runtime_says_of_quantisation_wins_over_names() -> None:
    assert quantisation_of(CASE | {"quantisation": "int4"}) == "int4"
    assert group_name(CASE | {"quantisation": "int4", "variant": "phi-fp16:1"}, ("quantisation",)) == "int4"


def test_a_runs_name_stands_for_its_commit() -> None:
    assert group_name(CASE, ("commit",)) == group_name(CASE, ("name",)) == "abc123"


@pytest.mark.parametrize(
    ("variant", "quantisation"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "q4_k_m"),
        ("smollm2:135m-instruct-q8_0", "q8_0"),
        ("phi-4-mini-int4-awq-block-32", "int4"),
        ("mlx-community/gemma-3-1b-it-4bit", "4bit"),
        ("qwen2.5-0.5b-fp16", "fp16"),
        ("openai/gpt-oss-20b-mxfp4", "mxfp4"),
        ("phi-4-mini-instruct-cuda-gpu:5", None),
        ("squint8ball", None),
    ],
)
def test_quantisation_is_what_the_name_says_or_unknown(variant: str, quantisation: str | None) -> None:
    assert quantisation_of({"variant": variant, "model": "m"}) == quantisation


def test_the_model_is_asked_where_the_variant_does_not_say() -> None:
    assert quantisation_of({"variant": "x:1", "model": "tiny", "model_asked": "tiny-q4_0"}) == "q4_0"


def test_groups_are_named_by_what_was_found_and_unknown_is_said() -> None:
    assert group_name(CASE, ("host", "device", "ep")) == "a / cpu / CPUExecutionProvider"
    assert group_name(CASE, ("driver", "quantisation")) == "unknown / unknown"
    assert group_name(CASE, ("concurrency", "request_rate_per_s", "temperature")) == "4 / none / 0"
    assert group_name(CASE, ("name", "path")) == "abc123 / http"


@pytest.mark.parametrize(
    ("by", "free"),
    [
        (("host",), {"host"}),
        (("ep",), {"device_asked"}),
        (("variant",), {"device_asked", "model_asked"}),
        (("quantisation",), {"model_asked"}),
        (("driver",), set()),
        (("concurrency",), {"concurrency"}),
        (("run",), set()),
        (("host", "max_tokens"), {"host", "max_tokens"}),
    ],
)
def test_all_is_held_equal_but_what_is_compared_and_what_it_changes(by: tuple[str, ...], free: set[str]) -> None:
    model = "one_model" if "device" in by or "ep" in by else "model_asked"
    everything = {"host", "device_asked", model, "runtime", "path", *CONDITIONS}
    assert set(held_columns(by)) == everything - free


def test_cases_compared_as_cases_hold_nothing_equal() -> None:
    assert stratum(CASE, ("case",)) == ()


def test_a_path_of_before_there_were_several_is_http() -> None:
    assert stratum(CASE, ("host",)) == stratum(CASE | {"path": "http"}, ("host",))
    assert stratum(CASE, ("host",)) != stratum(CASE | {"path": "direct"}, ("host",))


def test_the_nearest_case_says_what_differs_least() -> None:
    others = [CASE | {"concurrency": 1, "max_tokens": 9}, CASE | {"concurrency": 8}]
    assert nearest(CASE, others, ("host",)) == "concurrency 4 instead of 8"
    assert nearest(CASE, [], ("host",)) == ""


def test_filters_take_what_was_asked_and_what_was_found() -> None:
    asked = CASE | {"model_asked": "phi-alias", "model": "phi"}
    assert matches(asked, "model", "PHI")
    assert matches(asked, "model", "phi-alias")
    assert matches(CASE, "temperature", "0")
    assert not matches(CASE, "driver", "550")
    assert "quantisation" in DIMENSIONS


def test_across_devices_a_variant_asked_for_by_its_id_is_its_alias() -> None:
    named = {"model": "tiny", "model_asked": "tiny-cuda:1", "variant": "tiny-cuda:1", "device": "gpu"}
    by_alias = {"model": "tiny", "model_asked": "tiny", "variant": "tiny-cpu:1", "device": "cpu"}

    assert stratum(named, ("device",)) == stratum(by_alias, ("device",))
    assert stratum(named, ("host",)) != stratum(by_alias, ("host",))
