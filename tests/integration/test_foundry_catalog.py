"""The real Foundry Local SDK asked for models of a fake catalog on loopback, and for what the operator has himself."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import reference_model
from benchfleet_agent.runtimes import Placement, foundry_session
from benchfleet_agent.runtimes.foundry import FoundryRuntime
from benchfleet_agent.runtimes.foundry_link import FoundrySettings
from fakes.model_catalog import FakeCatalog, Listed, running_catalog

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("foundry_local_sdk") is None, reason="needs foundry-local-sdk"),
    pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="building the tiny model needs onnx"),
]
SMALL = Listed("phi-fake-mini-generic-cpu", "phi-fake-mini", version=4)
LARGE = Listed("phi-fake-large-generic-cpu", "phi-fake-large", version=2, size_bytes=900 << 20)


def nothing(message: str, fraction: float | None) -> None:
    """A progress callback that ignores."""


@pytest.fixture
def files(reference_cache: Path) -> Path:
    """A model's files that load."""
    return reference_model.directory(reference_cache, reference_model.TINY_VARIANT)


@pytest.fixture
def catalog() -> Iterator[FakeCatalog]:
    with running_catalog(SMALL, LARGE) as catalog:
        yield catalog


@pytest.fixture
def settings(tmp_path: Path, catalog: FakeCatalog) -> FoundrySettings:
    return FoundrySettings(
        tmp_path / "data", tmp_path / "reference", tmp_path / "logs", tmp_path / "cache", catalog_urls=(catalog.url,)
    )


def failing(work: Callable[[], object]) -> WorkFailed:
    with pytest.raises(WorkFailed) as caught:
        work()
    return caught.value


def test_the_operators_own_catalog_is_listed_and_aliases_resolve(settings: FoundrySettings) -> None:
    runtime = FoundryRuntime(settings)
    found = {model.variant: model for model in runtime.models()}
    assert {SMALL.variant, LARGE.variant} < set(found)
    small = found[SMALL.variant]
    assert (small.alias, small.device, small.execution_provider) == ("phi-fake-mini", "cpu", "CPUExecutionProvider")
    assert (small.size_bytes, small.license, small.cached) == (1 << 20, "MIT", False)
    assert runtime.resolve("phi-fake-mini", None).variant == SMALL.variant
    assert "did you mean phi-fake-mini" in failing(lambda: runtime.resolve("phi-fake-mni", None)).failure.message
    without = failing(lambda: runtime.resolve("phi-fake-mini-generic-cpu", None)).failure
    assert without.reason is Reason.MODEL_NOT_FOUND
    assert SMALL.variant in without.message


@pytest.mark.parametrize("fault", [404, 403, "garbage", "truncated"])
def test_a_catalog_that_fails_costs_only_itself(
    settings: FoundrySettings, catalog: FakeCatalog, fault: int | str
) -> None:
    catalog.fault = fault
    runtime = FoundryRuntime(settings)
    assert {model.alias for model in runtime.models()} == set(reference_model.MODELS)
    assert "could not be asked" in failing(lambda: runtime.resolve("phi-fake-mini", None)).failure.message
    assert catalog.requests


def test_a_slow_catalog_is_waited_for(settings: FoundrySettings, catalog: FakeCatalog) -> None:
    catalog.fault = "slow"
    assert FoundryRuntime(settings).resolve("phi-fake-mini", None).variant == SMALL.variant


def test_a_cached_model_needs_no_download_and_can_be_removed(
    settings: FoundrySettings, catalog: FakeCatalog, files: Path
) -> None:
    assert settings.model_cache_dir is not None
    directory = catalog.cache(settings.model_cache_dir, SMALL, files)
    runtime = FoundryRuntime(settings)
    model = runtime.resolve("phi-fake-mini", "cpu")
    assert model.cached
    pulled = runtime.pull(model, nothing, lambda: False, 60)
    assert pulled.cached
    session = runtime.open(model, Placement())
    try:
        session.prepare(nothing)
        assert session.directory() == directory
        assert session.load(60).endpoint.base_url.endswith("/v1")
    finally:
        session.close(20)
    freed = runtime.remove(model)
    assert freed is not None
    assert freed > 500_000
    assert not (directory / "model.onnx").exists()
    assert failing(lambda: runtime.remove(model)).failure.reason is Reason.NOT_CACHED
    assert not runtime.resolve("phi-fake-mini", "cpu").cached


def test_a_damaged_download_is_fetched_again(
    settings: FoundrySettings, catalog: FakeCatalog, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foundry_session, "RETRY_PAUSES_S", ())
    assert settings.model_cache_dir is not None
    directory = catalog.cache(settings.model_cache_dir, SMALL, files)
    (directory / "model.onnx").unlink()
    runtime = FoundryRuntime(settings)
    model = runtime.resolve("phi-fake-mini", None)
    assert model.cached  # Foundry Local believes it
    said: list[str] = []
    failure = failing(lambda: runtime.pull(model, lambda message, _: said.append(message), lambda: False, 60)).failure
    assert any("model.onnx is missing" in message and "again" in message for message in said)
    assert failure.reason is Reason.DOWNLOAD_FAILED  # no network here: what matters is that it was not believed


def test_a_pull_that_is_cancelled_ends_at_once(settings: FoundrySettings) -> None:
    runtime = FoundryRuntime(settings)
    model = runtime.resolve("phi-fake-large", None)
    cancelled = threading.Event()
    cancelled.set()
    failure = failing(lambda: runtime.pull(model, nothing, cancelled.is_set, 60)).failure
    assert failure.reason is Reason.CANCELLED


def test_offline_a_downloaded_model_is_listed_resolved_and_loaded(
    settings: FoundrySettings, catalog: FakeCatalog, files: Path
) -> None:
    assert settings.model_cache_dir is not None
    catalog.cache(settings.model_cache_dir, SMALL, files)
    assert FoundryRuntime(settings).resolve("phi-fake-mini", None).cached  # the SDK keeps what the catalog said
    asked = catalog.requests
    runtime = FoundryRuntime(replace(settings, offline=True))
    assert {model.variant for model in runtime.models()} - known_variants() == {SMALL.variant}
    model = runtime.resolve("phi-fake-mini", "cpu")
    session = runtime.open(model, Placement())
    try:
        session.prepare(nothing)
        assert session.load(60).endpoint.model == SMALL.variant
    finally:
        session.close(20)
    assert catalog.requests == asked


def known_variants() -> set[str]:
    return {entry.variant for entry in reference_model.MODELS.values()}


def test_a_local_model_runs_by_alias_and_by_path(tmp_path: Path, reference_cache: Path, files: Path) -> None:
    root = tmp_path / "models"
    mine = root / "someone" / "Mine V2"
    shutil.copytree(files, mine)
    (mine / "benchfleet.toml").write_text('license = "mit"\nversion = 3\n')
    settings = FoundrySettings(tmp_path / "data", reference_cache, tmp_path / "logs", offline=True, model_roots=(root,))
    runtime = FoundryRuntime(settings)
    model = runtime.resolve("mine-v2", None)
    assert (model.variant, model.license, model.cached) == ("mine-v2-local-cpu:3", "mit", True)
    assert model in runtime.models()
    assert runtime.resolve(str(mine), "cpu") == runtime.resolve("someone/Mine V2", None) == model
    session = runtime.open(model, Placement())
    try:
        session.prepare(nothing)
        loaded = session.load(60)
        assert loaded.endpoint.base_url.endswith("/catalogs/local/v1")
        assert loaded.execution_provider == "CPUExecutionProvider"
    finally:
        session.close(20)
    assert failing(lambda: runtime.remove(model)).failure.reason is Reason.UNSUPPORTED
    for path in ("/etc", str(root / ".." / "cache"), "someone/nothing"):
        assert failing(lambda path=path: runtime.resolve(path, None)).failure.reason is Reason.PATH_NOT_ALLOWED  # type: ignore[misc]
    assert failing(lambda: runtime.resolve(str(root / "someone"), None)).failure.reason is Reason.CORRUPT_MODEL
    assert "only for cpu" in failing(lambda: runtime.resolve(str(mine), "gpu")).failure.message
    (mine / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "gone.onnx"}}}))
    broken = runtime.open(model, Placement())
    assert "gone.onnx is missing" in failing(lambda: broken.prepare(nothing)).failure.message
