"""Execution providers that come apart from Foundry Local: found, registered when they are here, fetched by a pull."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import ChildTimeout, Message
from benchfleet_agent.runtimes.foundry import FoundryRuntime
from benchfleet_agent.runtimes.foundry_link import FoundrySettings
from benchfleet_agent.runtimes.foundry_providers import ProviderShelf, devices_of
from fakes.scripted_foundry import GOOD, LISTING, Made, ScriptedChild, made, settings, with_script

__all__ = ["made", "settings"]  # fixtures

CUDA, QNN = "CUDAExecutionProvider", "QNNExecutionProvider"
OFFERED: list[Message] = [
    {"event": "description", "versions": {}, "eps": [{"name": name, "registered": False} for name in (CUDA, QNN)]}
]
CPU_ONLY: list[Message] = [{"event": "models", "models": [one for one in LISTING if one["device"] == "cpu"]}]
FAILED: list[Message] = [{"event": "failed", "reason": "ep_missing", "message": "no network"}]


def failing(work: Callable[[], object]) -> WorkFailed:
    with pytest.raises(WorkFailed) as caught:
        work()
    return caught.value


def asked(made: Made) -> list[list[str]]:
    return [[message["do"] for message in child.sent] for child in made]


def registered(made: Made) -> list[list[str]]:
    return [message["names"] for child in made for message in child.sent if message["do"] == "register_eps"]


def put_cuda_there(settings: FoundrySettings) -> None:
    (settings.cache_dir.parent / "cuda-ep").mkdir(parents=True)


def test_a_listing_downloads_no_provider_and_says_what_is_not_here(settings: FoundrySettings, made: Made) -> None:
    with_script(describe=OFFERED, models=CPU_ONLY)
    runtime = FoundryRuntime(settings)
    runtime.models()
    assert [(one.name, one.downloaded, one.registered) for one in runtime.providers()] == [
        (CUDA, False, False),
        (QNN, False, False),
    ]
    assert registered(made) == []


def test_a_provider_that_is_here_is_registered_before_the_catalog_is_asked(
    settings: FoundrySettings, made: Made
) -> None:
    put_cuda_there(settings)
    with_script(describe=OFFERED)
    runtime = FoundryRuntime(settings)
    assert any(model.device == "gpu" for model in runtime.models())
    assert asked(made) == [["start", "describe", "register_eps", "models"]]
    assert registered(made) == [[CUDA]]
    assert [one.registered for one in runtime.providers()] == [True, False]


def test_a_provider_that_will_not_register_costs_only_its_variants(settings: FoundrySettings, made: Made) -> None:
    put_cuda_there(settings)
    with_script(describe=OFFERED, register_eps=FAILED, models=CPU_ONLY)
    runtime = FoundryRuntime(settings)
    assert runtime.resolve("phi-4-mini", "cpu").device == "cpu"
    assert [one.registered for one in runtime.providers()] == [False, False]


@pytest.mark.parametrize(
    ("model", "device", "missing"),
    [("phi-4-mini", "gpu", CUDA), ("phi-4-mini-cuda-gpu:2", None, CUDA), ("phi-4-mini", "npu", QNN)],
)
def test_a_variant_behind_a_provider_that_is_not_here_is_no_unknown_model(
    settings: FoundrySettings, made: Made, model: str, device: str | None, missing: str
) -> None:
    with_script(describe=OFFERED, models=CPU_ONLY)
    failure = failing(lambda: FoundryRuntime(settings).resolve(model, device)).failure
    assert failure.reason is Reason.EP_MISSING
    assert missing in failure.message
    assert f"benchfleet pull HOST {model} --device" in failure.message
    assert registered(made) == []  # nothing is downloaded while a controller waits for a name


def test_a_pull_fetches_the_provider_with_progress_then_the_variant_it_shows(
    settings: FoundrySettings, made: Made
) -> None:
    fetching: list[Message] = [
        {"event": "progress", "message": CUDA, "fraction": 0.5},
        {"event": "eps_registered", "names": [CUDA]},
    ]
    runtime = FoundryRuntime(settings)
    with_script(describe=OFFERED, models=CPU_ONLY, register_eps=fetching)
    model = runtime.pullable("phi-4-mini", "gpu")
    assert (model.variant, model.device, model.cached) == ("phi-4-mini", "gpu", False)
    seen: list[tuple[str, float | None]] = []

    def progress(message: str, fraction: float | None) -> None:
        seen.append((message, fraction))
        if fraction == 0.5:  # from now on the catalog shows what the provider can run
            ScriptedChild.script = {**GOOD, "describe": OFFERED, "register_eps": fetching}

    pulled = runtime.pull(model, progress, lambda: False, 60)
    assert pulled.variant == "phi-4-mini-cuda-gpu:2"
    assert (CUDA, 0.5) in seen
    assert [CUDA] in registered(made)
    assert [QNN] not in registered(made)  # it serves no GPU
    assert ProviderShelf(settings.cache_dir, settings.data_dir / "foundry").has(CUDA)


@pytest.mark.parametrize(("trouble", "words"), [(ChildTimeout("late"), "stood still"), (FAILED, "no network")])
def test_a_provider_that_cannot_be_had_fails_the_pull_and_says_why(
    settings: FoundrySettings, trouble: list[Message] | Exception, words: str
) -> None:
    runtime = FoundryRuntime(settings)
    with_script(describe=OFFERED, models=CPU_ONLY, register_eps=trouble)
    model = runtime.pullable("phi-4-mini", "gpu")
    failure = failing(lambda: runtime.pull(model, lambda *_: None, lambda: False, 60)).failure
    assert failure.reason is Reason.EP_MISSING
    assert words in failure.message


def test_what_was_fetched_is_remembered_where_no_folder_tells(tmp_path: Path) -> None:
    shelf = ProviderShelf(tmp_path / "cache" / "models", tmp_path / "data")
    assert not shelf.has(QNN)
    shelf.note([QNN])
    shelf.note([CUDA])
    assert shelf.has(QNN)
    assert shelf.has(CUDA)
    (tmp_path / "data" / "fetched-providers.json").write_text("{")
    assert not shelf.has(QNN)
    (tmp_path / "cache" / "webgpu-ep").mkdir(parents=True)
    assert shelf.has("WebGpuExecutionProvider")


def test_an_unknown_provider_rules_out_no_accelerator() -> None:
    assert devices_of("WebGpuExecutionProvider") == ("gpu",)
    assert devices_of("OpenVINOExecutionProvider") == ("gpu", "npu")
    assert devices_of("NewExecutionProvider") == ("gpu", "npu")
