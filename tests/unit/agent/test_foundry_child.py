"""The Foundry Local child's half, in this process, with a fake SDK; and its pinning with a fake system."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchfleet.failures import Reason
from benchfleet_agent.child import Message
from benchfleet_agent.reference_model import TINY_VARIANT as TINY
from benchfleet_agent.runtimes import foundry_child, foundry_errors, foundry_pinning
from benchfleet_agent.runtimes.foundry import FoundryRuntime
from benchfleet_agent.runtimes.foundry_link import FoundrySettings as Settings


class Events(list[Message]):
    """Collects what the child would send."""

    def send(self, event: str, **fields: Any) -> None:
        self.append({"event": event, **fields})


class FoundryLocalException(Exception):
    """Named as the SDK's: the child knows it by its name."""

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.error_code = code


class FakeModel:
    """A model of the fake catalog."""

    def __init__(self, path: str, properties: dict[str, Any]) -> None:
        self.path, self.properties, self.trouble = path, properties, None
        self.info = SimpleNamespace(runtime=None)

    def get_path(self) -> str:
        return self.path

    def get_string_property(self, key: str) -> str | None:
        return self.properties.get(key)

    def get_int_property(self, key: str, default: int = 0) -> int:
        return int(self.properties.get(key, default))

    def load(self) -> None:
        if self.trouble:
            raise self.trouble

    def unload(self) -> None:
        """Succeed."""


class FakeCatalog:
    """A local catalog that refuses a second registration, as the SDK's does."""

    def __init__(self) -> None:
        self.models: dict[str, FakeModel] = {}
        self.registrations = 0

    def get_model_variant(self, variant: str) -> FakeModel | None:
        return self.models.get(variant)

    def unregister_model(self, variant: str) -> None:
        del self.models[variant]

    def register_model(self, path: str, variant: str, metadata: Any) -> None:
        if variant in self.models:
            raise FoundryLocalException(f"x.cc:1 void f(int) model_id is already registered: {variant}", 3)
        self.registrations += 1
        self.models[variant] = FakeModel(path, dict(metadata.properties))


class FakeBuilder:
    """Collects metadata."""

    def __init__(self) -> None:
        self.properties: dict[str, Any] = {}

    def __enter__(self) -> FakeBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to release."""

    def set_string_property(self, key: str, value: str) -> None:
        self.properties[key] = value

    def set_int_property(self, key: str, value: int) -> None:
        self.properties[key] = value


@pytest.fixture
def catalog() -> FakeCatalog:
    return FakeCatalog()


@pytest.fixture
def service(catalog: FakeCatalog, monkeypatch: pytest.MonkeyPatch) -> foundry_child.Service:
    manager = SimpleNamespace(get_catalog=lambda kind: catalog, close=lambda: None, urls=None)
    configuration: Any = lambda *arguments, **named: SimpleNamespace(**named)  # noqa: E731
    configuration.WebService = SimpleNamespace
    sdk = SimpleNamespace(
        CatalogType=SimpleNamespace(LOCAL=1, PUBLIC=0),
        LogLevel=SimpleNamespace(WARNING="w"),
        Configuration=configuration,
        ModelInfoBuilder=FakeBuilder,
        FoundryLocalException=FoundryLocalException,
        FoundryLocalManager=SimpleNamespace(initialize=lambda configuration: None, instance=manager),
    )
    monkeypatch.setitem(sys.modules, "foundry_local_sdk", sdk)
    return foundry_child.Service(Events())  # type: ignore[arg-type]


def tell(service: foundry_child.Service, **command: Any) -> Message:
    events: Any = service._protocol
    events.clear()
    service.handle(command)
    return dict(events[-1])


def started(service: foundry_child.Service) -> foundry_child.Service:
    answer = tell(service, do="start", app_name="b", data_dir="d", model_cache_dir="m", logs_dir="l")
    assert answer["event"] == "started"
    return service


def test_the_child_registers_once_and_replaces_a_stale_registration(
    service: foundry_child.Service, catalog: FakeCatalog, tmp_path: Path
) -> None:
    started(service)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    command = {"do": "register", "variant": TINY, "alias": "tiny-random", "license": "mit"}
    assert tell(service, **command, path=str(first)) == {"event": "registered", "variant": TINY, "replaced": False}
    assert tell(service, **command, path=str(first))["replaced"] is False
    assert catalog.registrations == 1
    assert tell(service, **command, path=str(second))["replaced"] is True
    assert catalog.models[TINY].path == str(second)
    assert catalog.models[TINY].properties["task"] == "chat-completion"
    assert tell(service, **{**command, "license": "other"}, path=str(second))["replaced"] is True
    answer = tell(service, **command, path=str(tmp_path / "gone"))
    assert (answer["event"], answer["reason"]) == ("failed", "not_cached")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("genai.cc:204 fl::G::G(std::string, fl::E) failed to load model x: File doesn't exist", "corrupt_model"),
        ("failed to load model x: [json.exception.parse_error.101] parse error at line 1", "corrupt_model"),
        ("failed to load model x: Protobuf parsing failed.", "corrupt_model"),
        ("failed to load model x: std::bad_alloc", "out_of_memory"),
        ("x requires CUDA which is not registered. Call DownloadAndRegisterEps() first.", "ep_missing"),
        ("failed to load model x: something else", "load_failed"),
    ],
)  # fmt: skip
def test_a_load_failure_is_classified_by_its_words(
    service: foundry_child.Service, catalog: FakeCatalog, text: str, reason: str
) -> None:
    started(service)
    catalog.models["x"] = model = FakeModel("nowhere", {})
    model.trouble = FoundryLocalException(text)  # type: ignore[assignment]
    answer = tell(service, do="load", variant="x")
    assert (answer["event"], answer["reason"]) == ("failed", reason)
    assert "genai.cc" not in answer["message"]


def test_load_reports_what_the_configuration_selects(
    service: foundry_child.Service, catalog: FakeCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(service)
    monkeypatch.setattr(foundry_child, "provider_is_absent", lambda provider: False)
    config = tmp_path / "genai_config.json"
    catalog.models["x"] = FakeModel(str(tmp_path), {})
    for options, provider in (("[]", "CPUExecutionProvider"), ('[{"cuda": {}}]', "cuda")):
        config.write_text(f'{{"model":{{"decoder":{{"session_options":{{"provider_options":{options}}}}}}}}}')
        answer = tell(service, do="load", variant="x")
        assert answer["execution_provider"] == provider
        assert answer["load_ns"] >= 0
    config.write_text("{}")
    assert tell(service, do="load", variant="x")["execution_provider"] is None
    assert tell(service, do="unload")["event"] == "unloaded"
    assert tell(service, do="unload")["reason"] == "not_loaded"


@pytest.mark.parametrize(
    ("mapped", "provider", "fell_back"),
    [("/usr/lib/libcuda.so.1", "cuda", False), ("/usr/lib/libm.so", "CPUExecutionProvider", True)],
)
def test_a_load_that_fell_back_to_the_cpu_says_so(
    service: foundry_child.Service, catalog: FakeCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    mapped: str, provider: str, fell_back: bool,
) -> None:  # fmt: skip
    started(service)
    monkeypatch.setattr(foundry_child, "sys", SimpleNamespace(platform="linux"))
    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r-xp 0 0 0 {mapped}\n")
    monkeypatch.setattr(foundry_child, "Path", lambda path: maps if path == "/proc/self/maps" else Path(path))
    (tmp_path / "genai_config.json").write_text(
        '{"model":{"decoder":{"session_options":{"provider_options":[{"cuda": {}}]}}}}'
    )
    catalog.models["x"] = FakeModel(str(tmp_path), {})
    answer = tell(service, do="load", variant="x")
    assert (answer["execution_provider"], answer["fell_back"]) == (provider, fell_back)


def test_commands_out_of_order_or_unknown_are_answered(service: foundry_child.Service) -> None:
    assert tell(service, do="load", variant="x")["reason"] == "internal"
    assert tell(service, do="fly")["reason"] == "internal"
    assert tell(started(service), do="load", variant="x")["reason"] == "model_not_found"
    assert tell(service, do="load")["reason"] == "internal"  # a missing field never ends the child
    assert tell(service, do="stop")["event"] == "stopped"


def test_a_missing_sdk_is_runtime_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foundry_local_sdk", None)
    service = foundry_child.Service(Events())  # type: ignore[arg-type]
    answer = tell(service, do="start", app_name="b", data_dir="d", model_cache_dir="m", logs_dir="l")
    assert answer["reason"] == "runtime_unavailable"
    assert "pip install foundry-local-sdk" in answer["message"]


@pytest.mark.parametrize(
    ("command", "code", "text", "reason"),
    [
        ("download", 6, "operation failed after 4 attempts", "download_failed"),
        ("download", 2, "write failed: No space left on device", "disk_full"),
        ("download", 5, "cancelled", "cancelled"),
        ("models", 6, "no route", "connection_failed"),
        ("register", 3, "model_path must contain a regular genai_config.json file", "corrupt_model"),
        ("serve", 2, "address in use", "runtime_unavailable"),
        ("unload", 4, "sessions live", "internal"),
        ("load", 1, "not implemented", "unsupported"),
    ],
)
def test_every_native_failure_has_a_reason(command: str, code: int, text: str, reason: str) -> None:
    assert foundry_errors.reason_for(command, code, text) == reason
    Reason(reason)


def test_an_offline_child_asks_only_itself_and_downloads_nothing(
    service: foundry_child.Service, catalog: FakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    sdk: Any = sys.modules["foundry_local_sdk"]
    monkeypatch.setattr(sdk.FoundryLocalManager, "initialize", seen.append)
    start = {"do": "start", "app_name": "b", "data_dir": "d", "model_cache_dir": "m", "logs_dir": "l"}
    assert tell(service, **start, catalog_urls=["https://far/models"], offline=True)["event"] == "started"
    ((url, _),) = seen[0].catalog_urls
    with pytest.raises(urllib.error.HTTPError) as answered:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, b"{}", timeout=5)
    assert answered.value.code == 404
    answered.value.close()
    catalog.models[TINY] = FakeModel("m", {})
    catalog.models[TINY].is_cached = False  # type: ignore[attr-defined]
    answer = tell(service, do="download", variant=TINY)
    assert (answer["event"], answer["reason"]) == ("failed", "not_cached")


def test_unload_waits_for_a_requests_session_to_end(
    service: foundry_child.Service, catalog: FakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(service)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    catalog.models["x"] = FakeModel("nowhere", {})
    tell(service, do="load", variant="x")
    refusals = [FoundryLocalException("cannot unload model 'x': 1 session(s) still using it")] * 2

    def unload() -> None:
        if refusals:
            raise refusals.pop()

    catalog.models["x"].unload = unload  # type: ignore[method-assign]
    assert tell(service, do="unload")["event"] == "unloaded"
    assert len(waits) == 2


def test_a_pinned_model_gets_as_many_threads_as_processors(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.onnx").write_bytes(b"weights")
    config = model / "genai_config.json"
    config.write_text('{"model": {"decoder": {"filename": "model.onnx"}}}')
    for _ in range(2):  # a view that exists is made anew
        view = foundry_pinning.with_threads(model, tmp_path / "views", 3)
        assert (view / "model.onnx").read_bytes() == b"weights"
        written = json.loads((view / "genai_config.json").read_text())
        assert written["model"]["decoder"]["session_options"] == {"intra_op_num_threads": 3}
    assert "intra_op_num_threads" not in config.read_text()
    config.write_text('{"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}')
    assert foundry_pinning.with_threads(model, tmp_path / "views", 3) == model
    config.write_text("{")
    assert foundry_pinning.with_threads(model, tmp_path / "views", 3) == model


def test_pinning_checks_the_processors_before_it_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[tuple[int, list[int]]] = []
    os = SimpleNamespace(
        sched_getaffinity=lambda pid: {0, 1},
        sched_setaffinity=lambda pid, cpus: pinned.append((pid, cpus)),
        listdir=lambda path: ["11", "12"],
    )
    monkeypatch.setattr(foundry_pinning, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(foundry_pinning, "os", os)
    monkeypatch.setattr(foundry_pinning, "_keep_mask", lambda: None)
    assert foundry_pinning.pin([]) == []
    assert foundry_pinning.pin([1, 1]) == [1]
    assert pinned == [(11, [1]), (12, [1])]
    with pytest.raises(foundry_errors.CommandFailed) as caught:
        foundry_pinning.pin([1, 9])
    assert caught.value.reason == "invalid_spec"
    assert "no processor 9 here" in str(caught.value)


def test_pinning_is_refused_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foundry_pinning, "sys", SimpleNamespace(platform="darwin"))
    with pytest.raises(foundry_errors.CommandFailed) as caught:
        foundry_pinning.pin([0])
    assert caught.value.reason == "unsupported"


def test_an_interpreter_that_does_not_run_is_said(tmp_path: Path) -> None:
    broken = Settings(tmp_path, tmp_path, tmp_path, python=str(tmp_path / "no-python"))
    description = FoundryRuntime(broken).describe()
    assert not description.available
    assert "no-python" in (description.reason or "")


def test_another_interpreter_sees_only_our_package(tmp_path: Path) -> None:
    command = Settings(tmp_path, tmp_path, tmp_path, python="/opt/arm/python").child_command()
    assert command[:3] == ["/opt/arm/python", "-E", "-P"]
    assert Path(command[-1]).name == "benchfleet_agent"
