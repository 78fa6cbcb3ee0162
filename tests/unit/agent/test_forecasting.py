"""What a forecast is made from: the case's longest prompt, the model's files, this host's free memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchfleet.failures import Failure, Reason
from benchfleet_agent import case_run, fit, forecasting
from benchfleet_agent.jobs import CaseOrder, JobOrder, Outcome, PromptOrder, SyntheticOrder
from benchfleet_agent.probes import DeviceInfo, Reading, Unavailable
from benchfleet_agent.runtimes import Endpoint, Loaded, Model
from fakes.specs import job_spec

BIG = Model("phi", "phi-cpu:1", "cpu", "CPUExecutionProvider", size_bytes=4_000_000_000, context_length=100)
SMALL = Model("phi", "phi-small-cpu:1", "cpu", size_bytes=1_000_000_000)


def order(**changes: Any) -> CaseOrder:
    return dataclasses.replace(JobOrder.from_proto("job-1", job_spec()).cases[0], **changes)


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting, "free_memory", lambda device: (fit.RAM, 5_000_000_000))


def test_before_a_model_is_here_its_size_is_the_catalogs() -> None:
    found = forecasting.forecast_case(order(), BIG, None)
    assert found.required_bytes == fit.CPU_FIXED_BYTES + 7_600_000_000
    assert (found.kv_cache_bytes, found.fits) == (None, False)


def test_once_it_is_here_its_files_and_its_configuration_decide(tmp_path: Path) -> None:
    decoder = {"num_hidden_layers": 10, "num_attention_heads": 4, "head_size": 8}
    config = {"model": {"context_length": 50, "decoder": decoder}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    (tmp_path / "model.onnx").write_bytes(bytes(1_000))
    found = forecasting.forecast_case(order(max_tokens=4_000, concurrency=3), BIG, tmp_path)
    assert found.kv_cache_bytes == 2 * 10 * 4 * 8 * 4 * 50 * 3  # no longer than the context
    assert found.fits is True


def test_a_configuration_that_claims_the_moon_stays_a_number_of_the_wire(tmp_path: Path) -> None:
    decoder = {"num_hidden_layers": 1 << 60, "num_attention_heads": 1 << 60, "head_size": 1 << 60}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder}}))
    found = forecasting.forecast_case(order(), BIG, tmp_path)
    assert found.required_bytes is not None
    assert found.required_bytes < 1 << 63


def test_a_model_in_memory_and_a_server_elsewhere_are_not_forecast() -> None:
    loaded = forecasting.forecast_case(order(runtime="endpoint"), dataclasses.replace(BIG, loaded=True), None)
    assert (loaded.fits, loaded.required_bytes) == (None, None)
    assert "already" in loaded.basis
    remote = forecasting.forecast_case(order(runtime="endpoint"), BIG, None, remote=True)
    assert (remote.fits, remote.available_bytes) == (None, None)
    assert "another machine" in remote.basis


@pytest.mark.parametrize(("size", "device", "fits"), [
    (3_000_000_000, "cpu", True), (4_500_000_000, "cpu", None), (6_000_000_000, "cpu", False),
    (6_000_000_000, None, None),
])  # fmt: skip
def test_the_overhead_of_foundry_local_is_no_other_runtimes(size: int, device: str | None, fits: bool | None) -> None:
    model = dataclasses.replace(BIG, size_bytes=size, device=device)
    found = forecasting.forecast_case(order(runtime="endpoint"), model, None)
    assert (found.required_bytes, found.fits) == (size, fits)
    assert "SmolLM2" not in found.basis


def test_the_longest_prompt_counts() -> None:
    prompts = tuple(PromptOrder(text[:1], ({"role": "user", "content": text},), None) for text in ("a" * 8, "b" * 400))
    assert forecasting.longest_prompt(order(prompts=prompts)) == 101
    assert forecasting.longest_prompt(order(prompts=SyntheticOrder(777, 3))) == 777


def test_a_case_that_is_left_out_names_what_would_fit() -> None:
    runtime: Any = SimpleNamespace(models=lambda: [BIG, SMALL])
    failure = forecasting.refuse_unfit(forecasting.forecast_case(order(), BIG, None), BIG, runtime)
    assert failure.reason is Reason.DOES_NOT_FIT
    assert "smaller ones here: phi-small-cpu:1" in failure.message


def test_only_a_case_that_ran_out_of_memory_is_told_of_smaller_models() -> None:
    runtime: Any = SimpleNamespace(models=lambda: [BIG, SMALL])
    oom = forecasting.with_smaller(Failure(Reason.OUT_OF_MEMORY, "bad_alloc"), BIG, runtime)
    assert oom.message == "bad_alloc; smaller ones here: phi-small-cpu:1"
    other = Failure(Reason.LOAD_FAILED, "x")
    assert forecasting.with_smaller(other, BIG, runtime) is other


class FakeGpus:
    """Two GPUs, and one that shares the host's memory."""

    def metrics(self) -> tuple[str, ...]:
        return ("device_busy_ratio", "device_memory_used_bytes")

    def discover(self) -> None:
        """Found at once."""

    def devices(self) -> tuple[DeviceInfo, ...]:
        return tuple(
            DeviceInfo(name, "gpu", name, memory_bytes=size) for name, size in (("a", 100), ("b", 80), ("c", None))
        )

    def read(self, targets: Any) -> list[Reading]:
        return [Reading("a", (0.5, 90)), Reading("b", (0.5, 10)), Reading("c", (0.5, 1))]

    def close(self) -> None:
        """Nothing is held."""


class NoGpus(FakeGpus):
    def discover(self) -> None:
        raise Unavailable("no driver")


def test_a_gpus_free_memory_is_what_its_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(forecasting, "default_probes", lambda: (NoGpus(), FakeGpus()))
    assert forecasting.free_memory("gpu") == (fit.VRAM, 70)
    monkeypatch.setattr(forecasting, "default_probes", lambda: (NoGpus(),))
    memory, available = forecasting.free_memory("gpu")
    assert memory == fit.RAM
    assert available is None or available > 1_000_000
    assert forecasting.free_memory("cpu")[0] == fit.RAM


@pytest.mark.parametrize(("asked", "actual", "told"), [
    ("CUDAExecutionProvider", "CPUExecutionProvider", True), ("CUDAExecutionProvider", "CUDAExecutionProvider", False),
    ("CUDAExecutionProvider", None, False), (None, "CPUExecutionProvider", False),
])  # fmt: skip
def test_a_case_on_another_provider_than_asked_for_says_so(asked: str | None, actual: str | None, told: bool) -> None:
    model = dataclasses.replace(BIG, execution_provider=asked)
    loaded = Loaded(1, actual, Endpoint("http://127.0.0.1:1/v1", "x"))
    outcome = case_run._with_provider(Outcome("succeeded"), model, loaded)
    assert outcome.status == "succeeded"
    assert (outcome.failure is not None and outcome.failure.reason is Reason.EP_MISMATCH) is told
