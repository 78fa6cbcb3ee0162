"""What each kind of server is taken for and asked, held against fakes of their documents; no socket, no sleep."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import CAPABILITIES, Model
from benchfleet_agent.runtimes.dialects import DIALECTS, Client, Dialect, detect, llamacpp, lmstudio
from benchfleet_agent.runtimes.dialects.client import root_of
from benchfleet_agent.runtimes.dialects.generic import choose
from benchfleet_agent.runtimes.dialects.llamacpp import quantization_of
from benchfleet_agent.runtimes.dialects.ollama import placement
from fakes.dialects import FakeServer, MemoryOpener, Reply
from fakes.dialects.foundry import CPU, FakeFoundryCli, FakeFoundrySdk, FakeFoundryService
from fakes.dialects.llamacpp import FakeLlamaCpp, FakeLlamaRouter
from fakes.dialects.lmstudio import MODEL, FakeLmStudio
from fakes.dialects.ollama import FakeOllama

TINY = "tiny-random-generic-cpu:1"


def asked(server: FakeServer, base_url: str = "http://127.0.0.1:9/v1") -> Dialect:
    client = Client(base_url)
    client._opener = MemoryOpener(server)  # type: ignore[assignment]
    return detect(client)


def silent(message: str, fraction: float | None) -> None:
    """Progress that nobody wants."""


def never() -> bool:
    return False


def reason_of(caught: pytest.ExceptionInfo[WorkFailed]) -> Reason:
    return caught.value.failure.reason


@pytest.mark.parametrize(
    ("server", "name"),
    [
        (FakeServer("m"), "openai"),
        (FakeFoundryService(), "foundry_service"),
        (FakeFoundrySdk((TINY,)), "foundry_sdk"),
        (FakeFoundryCli(CPU), "foundry_cli"),
        (FakeOllama(), "ollama"),
        (FakeLmStudio(), "lmstudio"),
        (FakeLmStudio(version=0), "lmstudio"),
        (FakeLlamaCpp(), "llamacpp"),
        (FakeLlamaRouter("a"), "llamacpp"),
    ],
)
def test_a_server_is_known_by_harmless_questions(server: FakeServer, name: str) -> None:
    dialect = asked(server)
    assert dialect.name == name
    assert {method for method, _, _ in server.requests} == {"GET"}
    dialect.health()
    assert dialect.capabilities <= CAPABILITIES.keys()
    assert ("timings" in dialect.capabilities) == (name == "llamacpp")  # nobody else's are read


def test_a_server_that_says_yes_to_everything_is_no_dialect() -> None:
    class Agreeable(FakeServer):
        def unknown(self, method: str, path: str) -> Reply:
            return Reply({})

    assert asked(Agreeable("m")).name == "openai"


def test_every_dialect_says_who_can_do_what_it_cannot() -> None:
    kinds: tuple[type[Dialect], ...] = (*DIALECTS, lmstudio.LmStudioV0, llamacpp.LlamaRouter)
    for kind in kinds:
        assert kind.advice
        assert kind.title
    dialect = asked(FakeLlamaCpp())
    (model,) = dialect.models()
    for call in (lambda: dialect.pull(model, silent, never, 1), lambda: dialect.remove(model)):
        with pytest.raises(WorkFailed, match="start llama-server with another model") as caught:
            call()
        assert reason_of(caught) is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("base_url", "root"),
    [
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/catalogs/local/v1", "http://h:1"),
        ("http://h:1/api/v0", "http://h:1"),
        ("https://h/openai/v1", "https://h/openai"),
    ],
)
def test_a_servers_own_paths_begin_before_the_apis_version(base_url: str, root: str) -> None:
    assert root_of(base_url) == root


class TestOllama:
    def test_models_say_what_is_known_of_them(self) -> None:
        server = FakeOllama("llama3.2:3b", "qwen2.5:latest")
        server.loaded = ["llama3.2:3b"]
        first, second = asked(server).models()
        assert first == Model(
            alias="llama3.2", variant="llama3.2:3b", device="gpu", execution_provider="gpu", size_bytes=2_019_393_189,
            context_length=4096, capabilities=("3.2b", "q4_k_m"), cached=True, loaded=True,
            quantisation="q4_k_m",
        )  # fmt: skip
        assert (second.device, second.loaded, second.context_length) == (None, False, None)

    def test_a_name_without_a_tag_means_the_latest(self) -> None:
        dialect = asked(FakeOllama("qwen2.5:7b", "qwen2.5:latest"))
        assert dialect.resolve("qwen2.5", None).variant == "qwen2.5:latest"

    @pytest.mark.parametrize(("ratio", "said"), [(1.0, "gpu"), (0.0, "cpu"), (0.61, "gpu+cpu (61% in device memory)")])
    def test_a_silent_fallback_is_told_by_what_it_ran_on(self, ratio: float, said: str) -> None:
        dialect = asked(FakeOllama("m:1", vram_ratio=ratio))
        model = dialect.resolve("m:1", "gpu")
        assert (model.device, model.execution_provider) == ("gpu", "gpu")
        assert dialect.load(model, 5).execution_provider == said

    def test_a_load_is_timed_and_one_that_was_there_is_not_ours(self) -> None:
        server = FakeOllama("m:1")
        dialect = asked(server)
        model = dialect.resolve("m:1", None)
        cold, warm = dialect.load(model, 5), dialect.load(model, 5)
        assert cold.load_ns is not None
        assert (cold.loaded_here, warm.loaded_here, warm.load_ns) == (True, False, None)
        dialect.unload(model, 5)
        assert server.loaded == []
        with pytest.raises(WorkFailed) as caught:
            dialect.unload(model, 5)
        assert reason_of(caught) is Reason.NOT_LOADED

    def test_memory_that_is_not_enough_is_told_apart(self) -> None:
        server = FakeOllama("m:1")
        server.load_error = "model requires more system memory (9.1 GiB) than is available (1.2 GiB)"
        dialect = asked(server)
        with pytest.raises(WorkFailed) as caught:
            dialect.load(dialect.resolve("m:1", None), 5)
        assert reason_of(caught) is Reason.OUT_OF_MEMORY

    def test_a_pull_tells_its_progress_and_ends_with_the_model(self) -> None:
        said: list[float | None] = []
        dialect = asked(FakeOllama(library=("new:1",)))
        pulled = dialect.pull(Model("new", "new:1"), lambda message, fraction: said.append(fraction), never, 5)
        assert pulled.cached
        assert said[:3] == [None, 0.5, 1.0]

    def test_a_pull_that_fails_after_200_fails(self) -> None:
        with pytest.raises(WorkFailed, match="file does not exist") as caught:
            asked(FakeOllama()).pull(Model("x", "x:1"), silent, never, 5)
        assert reason_of(caught) is Reason.MODEL_NOT_FOUND

    @pytest.mark.parametrize(
        ("name", "source"),
        [
            ("m", None),
            ("m:1", None),
            ("library/m:1", None),
            ("hf.co/user/m:q4", "https://hf.co"),
            ("10.0.0.7:5000/user/m", "https://10.0.0.7:5000"),
            ("host:5000/m", "https://host:5000"),
            ("localhost/user/m", "https://localhost"),
            ("router/user/m", "https://router"),
            ("http://router/user/m", "http://router"),
            ("https://hf.co:443/user/m", "https://hf.co:443"),
        ],
    )
    def test_a_name_tells_which_registry_a_pull_would_ask(self, name: str, source: str | None) -> None:
        assert asked(FakeOllama()).source(name) == source

    def test_a_cancelled_pull_ends(self) -> None:
        with pytest.raises(WorkFailed) as caught:
            asked(FakeOllama(library=("new:1",))).pull(Model("new", "new:1"), silent, lambda: True, 5)
        assert reason_of(caught) is Reason.CANCELLED

    def test_a_removed_model_is_gone_and_an_unknown_one_is_said(self) -> None:
        server = FakeOllama("m:1")
        dialect = asked(server)
        assert dialect.remove(Model("m", "m:1")) is None
        assert server.names == []
        with pytest.raises(WorkFailed) as caught:
            dialect.remove(Model("m", "m:1"))
        assert reason_of(caught) is Reason.MODEL_NOT_FOUND

    def test_nothing_is_said_of_a_model_that_is_not_in_memory(self) -> None:
        assert placement(None) is None
        assert placement({"size_vram": 5}) is None


class TestLmStudio:
    def test_models_say_what_is_known_of_them_and_embeddings_are_none(self) -> None:
        (model,) = asked(FakeLmStudio()).models()
        assert model == Model(
            alias="gemma-3-270m-it-qat", variant=MODEL, size_bytes=241_410_208, context_length=32_768,
            capabilities=("270m", "q4_0", "gguf", "tools"), cached=True, loaded=False,
            quantisation="q4_0",
        )  # fmt: skip

    def test_requests_go_to_the_instance_that_was_loaded(self) -> None:
        server = FakeLmStudio()
        dialect = asked(server)
        model = dialect.resolve("gemma-3-270m-it-qat", None)
        ready = dialect.load(model, 5)
        assert (ready.name, ready.load_ns, ready.loaded_here) == (f"{MODEL}:2", 9_099_000_000, True)
        (loaded,) = dialect.models()
        assert (loaded.loaded, loaded.context_length) == (True, 4096)
        assert not dialect.load(model, 5).loaded_here
        dialect.unload(model, 5)
        assert server.instances == {}

    def test_a_download_is_followed_to_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lmstudio, "POLL_S", 0.0)
        said: list[float | None] = []
        dialect = asked(FakeLmStudio())
        dialect.pull(Model("q", "qwen/q"), lambda message, fraction: said.append(fraction), never, 5)
        assert said == [0.0, 0.5]

    def test_the_older_api_lists_only(self) -> None:
        dialect = asked(FakeLmStudio("old", version=0))
        (model,) = dialect.models()
        assert (model.loaded, model.context_length, model.capabilities) == (False, 131_072, ("q4_k_m", "gguf"))
        assert dialect.load(model, 5).load_ns is None


class TestLlamaCpp:
    def test_the_model_is_named_by_its_file_and_has_the_servers_context(self) -> None:
        dialect = asked(FakeLlamaCpp())
        model = dialect.resolve("SmolLM2-135M-Instruct.Q4_1", None)
        assert (model.context_length, model.size_bytes, model.capabilities) == (2048, 96_576_768, ("q4_1",))
        assert dialect.version == "b11549-0123abc"

    def test_a_server_that_still_loads_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llamacpp, "POLL_S", 0.0)
        server = FakeLlamaCpp(loading=3)
        dialect = asked(server)
        assert dialect.load(Model("m", "m"), 60).load_ns is None
        assert server.loading == 0

    def test_a_router_loads_in_a_process_of_the_models_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llamacpp, "POLL_S", 0.0)
        server = FakeLlamaRouter("org/a-GGUF:Q4_K_M", steps=3)
        dialect = asked(server)
        model = dialect.resolve("a-GGUF", None)
        ready = dialect.load(model, 60)
        assert ready.loaded_here
        assert ready.load_ns is not None
        dialect.unload(model, 5)
        assert server.state == {"org/a-GGUF:Q4_K_M": "unloaded"}

    def test_a_routers_failed_load_fails_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llamacpp, "POLL_S", 0.0)
        dialect = asked(FakeLlamaRouter("a", fails=True))
        with pytest.raises(WorkFailed) as caught:
            dialect.load(Model("a", "a"), 60)
        assert reason_of(caught) is Reason.LOAD_FAILED

    @pytest.mark.parametrize(
        ("variant", "found"),
        [("/m/x-Q4_K_M.gguf", "Q4_K_M"), ("org/m:IQ2_XS", "IQ2_XS"), ("m.f16.gguf", "f16"), ("Qwen3", None)],
    )
    def test_names_tell_the_quantisation(self, variant: str, found: str | None) -> None:
        assert quantization_of(variant) == found


def test_of_two_models_with_one_alias_nobody_is_chosen_unless_devices_tell_them_apart() -> None:
    listed = [Model("a", "a:1", device="cpu"), Model("a", "a:2", device="gpu")]
    assert choose("a", None, listed, "x", by_device=True).variant == "a:2"
    with pytest.raises(WorkFailed, match="fits 2 models"):
        choose("a", None, listed, "x")


def test_a_vendors_variant_comes_before_a_generic_one() -> None:
    generic = Model("a", "a-generic-gpu:1", device="gpu")
    vendors = dataclasses.replace(generic, variant="a-cuda-gpu:1")
    assert choose("a", None, [generic, vendors], "x", by_device=True) is vendors


def test_a_listing_that_is_none_is_a_bad_answer() -> None:
    class Odd(FakeOllama):
        def native(self, method: str, path: str, body: Any) -> Reply | None:
            return Reply({"models": "many"}) if path == "/api/tags" else super().native(method, path, body)

    with pytest.raises(WorkFailed) as caught:
        asked(Odd("m")).models()
    assert reason_of(caught) is Reason.BAD_RESPONSE
