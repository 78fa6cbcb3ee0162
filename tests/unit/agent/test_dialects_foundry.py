"""Foundry Local's services, three generations: what they are asked and what their answers mean."""

from __future__ import annotations

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model
from benchfleet_agent.runtimes.dialects import Client, Dialect, detect
from benchfleet_agent.runtimes.dialects.foundry_location import locate, parse_status
from benchfleet_agent.runtimes.dialects.foundry_service import read_progress
from fakes.dialects import FakeServer, MemoryOpener, Reply
from fakes.dialects.foundry import CPU, GPU, FakeFoundryCli, FakeFoundrySdk, FakeFoundryService

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


class TestFoundryService:
    @pytest.mark.parametrize("shape", ["list", "object"])
    def test_models_come_from_the_catalog_with_what_is_cached_and_loaded(self, shape: str) -> None:
        server = FakeFoundryService((CPU,), shape=shape)
        server.loaded = [CPU]
        gpu, cpu = asked(server).models()
        assert (gpu.variant, gpu.device, gpu.execution_provider) == (GPU, "gpu", "CUDAExecutionProvider")
        assert (gpu.cached, cpu.cached, cpu.loaded) == (False, True, True)
        assert (cpu.alias, cpu.license, cpu.size_bytes) == ("phi-4-mini", "MIT", 3686 << 20)
        assert cpu.capabilities == ("chat-completion", "tools")

    def test_a_throttled_catalog_leaves_what_is_cached(self) -> None:
        (model,) = asked(FakeFoundryService((CPU,), catalog=False)).models()
        assert (model.variant, model.device, model.cached) == (CPU, "cpu", True)

    def test_an_alias_means_the_best_device_or_the_one_asked_for(self) -> None:
        dialect = asked(FakeFoundryService())
        assert dialect.resolve("phi-4-mini", None).variant == GPU
        assert dialect.resolve("phi-4-mini", "cpu").variant == CPU
        with pytest.raises(WorkFailed, match="no 'phi-4-mini' for npu"):
            dialect.resolve("phi-4-mini", "npu")

    def test_a_load_outlives_the_pauses_of_a_run(self) -> None:
        server = FakeFoundryService()
        dialect = asked(server)
        model = dialect.resolve(CPU, None)
        assert dialect.load(model, 5).loaded_here
        assert any(path.endswith("?ttl=3600") for _, path, _ in server.requests)
        dialect.unload(model, 5)
        assert server.loaded == []

    @pytest.mark.parametrize(
        ("status", "said", "reason"),
        [
            (400, "No OpenAIService provider found for modelName x", Reason.MODEL_NOT_FOUND),
            (500, "No OpenAIService provider found for modelName x", Reason.MODEL_NOT_FOUND),
            (404, "", Reason.MODEL_NOT_FOUND),
            (500, "EP cuda is not registered", Reason.EP_MISSING),
            (500, "Failed to allocate memory", Reason.OUT_OF_MEMORY),
            (500, "boom", Reason.LOAD_FAILED),
        ],
    )
    def test_a_refused_load_is_told_by_its_words(self, status: int, said: str, reason: Reason) -> None:
        server = FakeFoundryService()
        server.load_reply = Reply({"error": said}, status)
        with pytest.raises(WorkFailed) as caught:
            asked(server).load(Model("x", CPU), 5)
        assert reason_of(caught) is reason

    def test_a_load_that_is_answered_but_not_done_is_a_failure(self) -> None:
        server = FakeFoundryService()
        server.load_reply = Reply(b"ok")
        with pytest.raises(WorkFailed, match="does not list it as loaded"):
            asked(server).load(Model("x", CPU), 5)

    def test_a_download_tells_its_progress(self) -> None:
        said: list[float | None] = []
        server = FakeFoundryService(())
        pulled = asked(server).pull(Model("phi", CPU), lambda message, fraction: said.append(fraction), never, 5)
        assert said == [0.25, 0.8]
        assert pulled.cached
        (body,) = [body for method, _, body in server.requests if method == "POST"]
        assert (body["model"]["Name"], body["model"]["ProviderType"]) == (CPU, "AzureFoundryLocal")

    @pytest.mark.parametrize(
        ("words", "fraction"), [('("a", 0.5)', 0.5), ("Total 42.50% done", 0.425), ("hello", None), ("250%", 1.0)]
    )
    def test_progress_comes_in_two_shapes(self, words: str, fraction: float | None) -> None:
        assert read_progress(words) == fraction


class TestFoundrySdk:
    def test_the_local_catalog_is_enough_when_it_has_the_model(self) -> None:
        server = FakeFoundrySdk((TINY,), (GPU, CPU))
        dialect = asked(server)
        server.requests.clear()
        assert dialect.resolve("tiny-random", None).device == "cpu"
        assert {path for _, path, _ in server.requests} == {
            "/catalogs/local/v1/models",
            "/catalogs/local/models/loaded",
        }

    def test_models_of_both_catalogs_are_listed_and_served_from_their_own(self) -> None:
        dialect = asked(FakeFoundrySdk((TINY,), (GPU, CPU)))
        assert [model.variant for model in dialect.models()] == [TINY, GPU, CPU]
        assert dialect.load(dialect.resolve(TINY, None), 5).base_url == "http://127.0.0.1:9/catalogs/local/v1"
        assert dialect.load(dialect.resolve(GPU, None), 5).base_url == "http://127.0.0.1:9/v1"

    def test_the_process_is_the_one_the_service_names(self) -> None:
        assert asked(FakeFoundrySdk((TINY,))).process_ids() == (4711,)

    def test_another_variant_than_the_pinned_one_is_no_benchmark(self) -> None:
        dialect = asked(FakeFoundrySdk(public=(GPU, CPU)))
        with pytest.raises(WorkFailed, match=GPU) as caught:
            dialect.load(dialect.resolve("Phi-4-mini-instruct", "cpu"), 5)
        assert reason_of(caught) is Reason.EP_MISMATCH

    def test_what_was_loaded_is_unloaded_by_its_alias(self) -> None:
        server = FakeFoundrySdk((TINY,))
        dialect = asked(server)
        model = dialect.resolve("tiny-random", None)
        assert dialect.load(model, 5).loaded_here
        assert not dialect.load(model, 5).loaded_here
        dialect.unload(model, 5)
        assert server.loaded == []

    def test_the_older_service_loads_the_very_variant(self) -> None:
        server = FakeFoundryCli(GPU, CPU)
        dialect = asked(server)
        assert dialect.load(dialect.resolve("Phi-4-mini-instruct", "cpu"), 5).loaded_here
        assert server.loaded == [CPU]


class TestLocation:
    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("🟢 Model management service is running on http://localhost:5273/openai/status", "http://localhost:5273"),
            ("🟢 Service is Started on http://127.0.0.1:58338/, PID 22320!", "http://127.0.0.1:58338"),
            ('{"state": "Running", "urls": ["http://127.0.0.1:51454"], "pid": 3}', "http://127.0.0.1:51454"),
            ("on http://[::1]:5273 now", "http://[::1]:5273"),
            ("🔴 Service is not running", None),
            ("", None),
        ],
    )
    def test_the_url_is_read_out_of_either_commands_words(self, text: str, url: str | None) -> None:
        assert parse_status(text) == url

    def test_the_older_command_is_asked_when_the_newer_one_knows_nothing(self) -> None:
        printed = {"server": "unknown command", "service": "running on http://127.0.0.1:7/openai/status"}
        assert locate(lambda command: printed[command[1]]) == "http://127.0.0.1:7"
        assert locate(lambda command: "") is None
