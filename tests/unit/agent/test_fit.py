"""Whether a model fits: sizes in, a forecast out."""

from __future__ import annotations

import pytest

from benchfleet_agent import fit
from benchfleet_agent.fit import RAM, VRAM, CacheShape, forecast, smaller
from benchfleet_agent.runtimes import Model

SHAPE = CacheShape(layers=30, kv_heads=3, head_size=64)
GB = 10**9


def test_a_tokens_keys_and_values_in_every_layer() -> None:
    assert SHAPE.bytes_per_token(4) == 2 * 30 * 3 * 64 * 4 == 46_080


def test_the_need_is_what_smollm2_was_measured_to_take() -> None:
    found = forecast(RAM, weights_bytes=90_823_696, shape=SHAPE, tokens=67, concurrency=1, available_bytes=GB)
    assert found.required_bytes == pytest.approx(255_074_304, rel=0.05)  # measured after one such request
    assert found.kv_cache_bytes == 67 * 46_080
    assert found.fits is True


def test_the_cache_grows_with_tokens_and_with_requests_in_flight() -> None:
    sizes = [
        forecast(
            RAM, weights_bytes=1, shape=SHAPE, tokens=tokens, concurrency=concurrency, available_bytes=None
        ).kv_cache_bytes
        for tokens, concurrency in ((1000, 1), (2000, 1), (1000, 4))
    ]
    assert sizes == [46_080_000, 92_160_000, 184_320_000]


@pytest.mark.parametrize(
    ("memory", "available", "fits"),
    [(RAM, 3 * GB, True), (RAM, GB, False), (RAM, None, None),
     (VRAM, 3 * GB, True), (VRAM, int(1.1 * GB), None), (VRAM, int(0.9 * GB), False)],
)  # fmt: skip
def test_close_calls_are_left_open_where_the_overhead_is_not_measured(
    memory: str, available: int | None, fits: bool | None
) -> None:
    found = forecast(memory, weights_bytes=GB, shape=None, tokens=1, concurrency=1, available_bytes=available)
    assert found.fits is fits
    assert found.kv_cache_bytes is None


def test_a_model_of_unknown_size_is_not_judged() -> None:
    found = forecast(RAM, weights_bytes=None, shape=SHAPE, tokens=1, concurrency=1, available_bytes=1)
    assert (found.required_bytes, found.fits) == (None, None)
    assert "does not say" in found.basis


def model(alias: str, device: str, size: int | None, *capabilities: str) -> Model:
    return Model(alias, f"{alias}-{device}:1", device, size_bytes=size, capabilities=capabilities)


def test_smaller_variants_are_of_the_same_alias_first_and_never_toys() -> None:
    big = model("phi", "cpu", 9 * GB)
    offered = [big, model("phi", "gpu", 5 * GB), model("qwen", "cpu", 7 * GB), model("tiny", "cpu", 1, "test"),
               model("vast", "cpu", 20 * GB), model("unknown", "cpu", None)]  # fmt: skip
    assert smaller(big, offered) == ["phi-gpu:1", "qwen-cpu:1"]
    assert smaller(big, offered, spare=0.6) == ["phi-gpu:1"]
    assert smaller(model("x", "cpu", None), offered) == []


def test_the_message_says_need_supply_and_what_to_do() -> None:
    found = forecast(RAM, weights_bytes=8 * GB, shape=None, tokens=1, concurrency=1, available_bytes=2 * GB)
    message = fit.does_not_fit("phi-cpu:1", found, ["qwen-cpu:1"])
    assert "15,273 MB of RAM" in message
    assert "2,000 MB are free" in message
    assert "qwen-cpu:1" in message
    assert fit.spare_of(found) == pytest.approx(0.131, abs=0.001)
