"""The endpoint runtime without a socket: its opener is replaced by one that answers from memory."""

from __future__ import annotations

import contextlib
import email.message
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.endpoint_policy import EndpointPolicy
from benchfleet_agent.runtimes import Model, Placement
from benchfleet_agent.runtimes.endpoint import (
    API_KEY_VARIABLE,
    EndpointRuntime,
    EndpointSettings,
    is_remote,
    normalise_url,
)
from benchfleet_agent.runtimes.port_owner import PortOwner
from fakes.dialects import FakeServer, MemoryOpener, Reply, serving
from fakes.dialects.foundry import FakeFoundryService
from fakes.dialects.ollama import FakeOllama

Answer = bytes | Exception


class Listing(FakeServer):
    """Answers the listing as told, and knows no other path."""

    def __init__(self, listing: bytes) -> None:
        super().__init__()
        self.listing = listing

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        return Reply(self.listing) if path == "/v1/models" else None


class PlainOpener(MemoryOpener):
    """A server that is nothing but OpenAI-compatible; `answer` is its listing, or what is raised for it."""

    def __init__(self, answer: Answer) -> None:
        self.listing = Listing(b"")
        super().__init__(self.listing)
        self.answer = answer

    def open(self, request: urllib.request.Request, timeout: float) -> Any:
        refused = (
            isinstance(self.answer, urllib.error.HTTPError)
            and urllib.parse.urlsplit(request.full_url).path != "/v1/models"
        )
        self.problem = self.answer if isinstance(self.answer, Exception) and not refused else None
        self.listing.listing = b"" if isinstance(self.answer, Exception) else self.answer
        return super().open(request, timeout)


def listing(*ids: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name} for name in ids]}).encode()


def runtime_with(answer: Answer, url: str = "http://127.0.0.1:8080", **settings: Any) -> EndpointRuntime:
    runtime = EndpointRuntime(EndpointSettings(url, **settings), find_service=no_service, find_owner=hidden_owner)
    put_opener(runtime, PlainOpener(answer))
    return runtime


def put_opener(runtime: EndpointRuntime, opener: MemoryOpener) -> MemoryOpener:
    assert runtime._client is not None
    runtime._client._opener = opener  # type: ignore[assignment]
    return opener


def no_service() -> str | None:
    return None


def hidden_owner(port: int) -> PortOwner:
    return PortOwner(reason=f"nobody tells who has port {port}")


def opener_of(runtime: EndpointRuntime) -> PlainOpener:
    assert runtime._client is not None
    opener: Any = runtime._client._opener
    assert isinstance(opener, PlainOpener)
    return opener


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1"),
        (" http://host:1/v1/ ", "http://host:1/v1"),
        ("http://host:1/api/v0", "http://host:1/api/v0"),
        ("http://host:1/catalogs/local/v1", "http://host:1/catalogs/local/v1"),
        ("https://host/openai", "https://host/openai/v1"),
        ("localhost:11434", "http://localhost:11434/v1"),
        ("http://[::1]:9", "http://[::1]:9/v1"),
    ],
)
def test_v1_is_appended_when_missing(url: str, expected: str) -> None:
    assert normalise_url(url) == expected


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host:port", "http://h/?a=b", "http://[::1"])
def test_a_malformed_url_is_an_invalid_spec(url: str) -> None:
    with pytest.raises(WorkFailed) as caught:
        normalise_url(url)
    assert caught.value.failure.reason is Reason.INVALID_SPEC


def test_credentials_in_the_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(WorkFailed) as caught:
        normalise_url("http://user:hunter2@host")
    assert caught.value.failure.reason is Reason.INVALID_SPEC
    assert "hunter2" not in caught.value.failure.message


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("http://127.0.0.1/v1", False),
        ("http://127.8.9.1/v1", False),
        ("http://localhost:5/v1", False),
        ("http://box.localhost/v1", False),
        ("http://[::1]:5/v1", False),
        ("http://192.168.1.5/v1", True),
        ("http://windows-host:5273/v1", True),
        ("http://localhost.example.org/v1", True),
    ],
)
def test_remote_means_not_loopback(url: str, remote: bool) -> None:
    assert is_remote(url) is remote


def test_the_key_comes_from_the_environment_and_never_shows() -> None:
    settings = EndpointSettings.from_environment("http://127.0.0.1:1", environment={API_KEY_VARIABLE: " hunter2\n"})
    runtime = runtime_with(listing("m"), "http://127.0.0.1:1", api_key=settings.api_key)
    loaded = runtime.open(runtime.resolve("m", None), Placement()).load(1.0)
    assert loaded.endpoint.api_key == "hunter2"
    assert "hunter2" not in repr(settings) + repr(loaded) + repr(runtime)
    assert {request.get_header("Authorization") for request in opener_of(runtime).seen} == {"Bearer hunter2"}


def test_a_key_that_is_no_header_is_refused_and_not_shown() -> None:
    with pytest.raises(WorkFailed) as caught:
        EndpointRuntime(EndpointSettings("http://127.0.0.1:1", api_key="hunter2\r\nX: y"))
    assert "hunter2" not in str(caught.value)


def test_no_key_sends_no_authorization() -> None:
    runtime = runtime_with(listing("m"))
    runtime.models()
    requests = opener_of(runtime).seen
    assert requests[-1].full_url == "http://127.0.0.1:8080/v1/models"
    assert not any(request.has_header("Authorization") for request in requests)


def test_loopback_uses_no_proxy_and_nobody_follows_redirects() -> None:
    here = EndpointRuntime(EndpointSettings("http://127.0.0.1:1"))
    proxies = [h for h in here._client._opener.handlers if isinstance(h, urllib.request.ProxyHandler)]  # type: ignore[union-attr]
    assert not any(getattr(handler, "proxies", {}) for handler in proxies)


def test_models_lists_ids_and_what_the_server_says_of_them() -> None:
    body = {"data": [{"id": "qwen2.5:0.5b", "max_model_len": 4096}, {"id": "phi-4-mini", "context_length": True}]}
    models = runtime_with(json.dumps(body).encode()).models()
    assert models == [
        Model(alias="qwen2.5", variant="qwen2.5:0.5b", context_length=4096),
        Model(alias="phi-4-mini", variant="phi-4-mini"),
    ]


def test_an_empty_list_may_be_null() -> None:
    assert runtime_with(b'{"object":"list","data":null}').models() == []


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'{"data": 3}', b'{"data": [{}]}', b'{"error": "x"}', b"\xff", b"[" * 100_000, b" " * (9 << 20)],
)
def test_an_answer_that_is_no_listing_is_a_bad_response(body: bytes) -> None:
    with pytest.raises(WorkFailed) as caught:
        runtime_with(body).models()
    assert caught.value.failure.reason is Reason.BAD_RESPONSE
    assert "http://127.0.0.1:8080/v1/models" in caught.value.failure.message


@pytest.mark.parametrize("error", [urllib.error.URLError(ConnectionRefusedError(111, "refused")), TimeoutError("slow")])
def test_nothing_answering_is_runtime_unavailable(error: Exception) -> None:
    runtime = runtime_with(error)
    with pytest.raises(WorkFailed) as caught:
        runtime.models()
    assert caught.value.failure.reason is Reason.RUNTIME_UNAVAILABLE
    assert "start the server" in caught.value.failure.message
    description = runtime.describe()
    assert not description.available
    assert description.reason == caught.value.failure.message


@pytest.mark.parametrize(("status", "advice"), [(401, API_KEY_VARIABLE), (307, "redirect"), (404, "OpenAI-compatible")])
def test_a_refusal_names_the_status_and_the_remedy(status: int, advice: str) -> None:
    error = urllib.error.HTTPError("http://x", status, "", email.message.Message(), io.BytesIO())
    with pytest.raises(WorkFailed) as caught:
        runtime_with(error).models()
    assert caught.value.failure.reason is Reason.HTTP_ERROR
    assert str(status) in caught.value.failure.message
    assert advice in caught.value.failure.message


@pytest.mark.parametrize(
    ("name", "variant"),
    [("phi-4-mini:2", "phi-4-mini:2"), ("phi-4-mini", "phi-4-mini:2"), ("qwen2.5:7b", "qwen2.5:7b")],
)
def test_resolve_takes_an_exact_id_or_the_alias_that_begins_it(name: str, variant: str) -> None:
    runtime = runtime_with(listing("qwen2.5:7b", "qwen2.5:0.5b", "phi-4-mini:2", "phi-4-minimal:2"))
    assert runtime.resolve(name, None).variant == variant


def test_an_exact_id_wins_over_longer_ones() -> None:
    assert runtime_with(listing("llama-8b", "llama")).resolve("llama", None).variant == "llama"


def test_an_ambiguous_alias_names_the_choices() -> None:
    with pytest.raises(WorkFailed) as caught:
        runtime_with(listing("qwen2.5:7b", "qwen2.5:0.5b")).resolve("qwen2.5", None)
    assert caught.value.failure.reason is Reason.MODEL_NOT_FOUND
    assert "qwen2.5:7b, qwen2.5:0.5b" in caught.value.failure.message


def test_an_unknown_model_suggests_near_names() -> None:
    with pytest.raises(WorkFailed) as caught:
        runtime_with(listing("phi-4-mini", "qwen2.5:7b")).resolve("phi4-mini", None)
    assert caught.value.failure.reason is Reason.MODEL_NOT_FOUND
    assert "phi-4-mini" in caught.value.failure.message


def test_a_server_without_models_says_so() -> None:
    with pytest.raises(WorkFailed, match="no model at all"):
        runtime_with(listing()).resolve("x", None)


def test_a_device_cannot_be_asked_for() -> None:
    with pytest.raises(WorkFailed) as caught:
        runtime_with(listing("m")).resolve("m", "gpu")
    assert caught.value.failure.reason is Reason.UNSUPPORTED


def test_a_foreign_server_cannot_be_pinned() -> None:
    with pytest.raises(WorkFailed) as caught:
        runtime_with(listing("m")).open(Model("m", "m"), Placement(cpus=(0,)))
    assert caught.value.failure.reason is Reason.UNSUPPORTED


def test_a_session_loads_nothing_and_is_marked_remote() -> None:
    runtime = runtime_with(listing("m"), "http://10.0.0.7:8080")
    session = runtime.open(runtime.resolve("m", None), Placement())
    session.prepare(lambda message, fraction: None)
    loaded = session.load(1.0)
    assert loaded.load_ns is None
    assert loaded.execution_provider is None
    assert loaded.endpoint.remote
    assert (loaded.endpoint.base_url, loaded.endpoint.model) == ("http://10.0.0.7:8080/v1", "m")
    assert runtime.remote
    assert session.process_ids() == ()
    session.check()
    assert session.unload(1.0) is None
    session.close(1.0)
    session.kill()


def test_a_server_that_went_away_is_a_crashed_runtime() -> None:
    runtime = runtime_with(listing("m"))
    session = runtime.open(runtime.resolve("m", None), Placement())
    opener_of(runtime).answer = urllib.error.URLError(ConnectionRefusedError(111, "refused"))
    with pytest.raises(WorkFailed) as caught:
        session.check()
    assert caught.value.failure.reason is Reason.RUNTIME_CRASHED


def test_a_busy_server_is_not_taken_for_a_dead_one() -> None:
    runtime = runtime_with(listing("m"))
    session = runtime.open(runtime.resolve("m", None), Placement())
    opener_of(runtime).answer = urllib.error.URLError(TimeoutError("slow"))
    session.check()


def test_a_memory_that_cannot_be_measured_is_said() -> None:
    runtime = runtime_with(listing("m"), "http://127.0.0.1:5273")
    session = runtime.open(runtime.resolve("m", None), Placement())
    said: list[str] = []
    session.prepare(lambda message, fraction: said.append(message))
    assert said == ["the runtime's memory is not measured: nobody tells who has port 5273"]


def test_the_servers_processes_are_charged_and_asked_for_again_only_after_a_while() -> None:
    asked: list[int] = []

    def owner(port: int) -> PortOwner:
        asked.append(port)
        return PortOwner((4711,))

    runtime = EndpointRuntime(EndpointSettings("http://localhost:9"), find_service=no_service, find_owner=owner)
    put_opener(runtime, PlainOpener(listing("m")))
    session = runtime.open(runtime.resolve("m", None), Placement())
    assert session.process_ids() == (4711,), "what is there before the case is known before it"
    session.prepare(lambda message, fraction: None)
    assert [session.process_ids() for _ in range(20)] == [(4711,)] * 20
    assert asked == [9, 9]
    assert not runtime.remote


def test_a_tunnel_on_loopback_leads_to_another_machine() -> None:
    def owner(port: int) -> PortOwner:
        return PortOwner(reason="a tunnel", forwarder="ssh")

    runtime = EndpointRuntime(EndpointSettings("http://localhost:9"), find_service=no_service, find_owner=owner)
    put_opener(runtime, PlainOpener(listing("m")))
    session = runtime.open(runtime.resolve("m", None), Placement())
    session.prepare(lambda message, fraction: None)
    assert session.load(1.0).endpoint.remote


def test_what_a_server_is_is_asked_once_a_minute() -> None:
    now = [0.0]
    runtime = EndpointRuntime(EndpointSettings("http://127.0.0.1:1"), clock=lambda: now[0], find_service=no_service)
    opener = put_opener(runtime, PlainOpener(listing("m")))
    first = runtime.dialect()
    asked = len(opener.seen)
    assert runtime.dialect() is first
    assert len(opener.seen) == asked
    now[0] = 61.0
    assert runtime.dialect() is not first


def test_foundry_local_is_found_again_at_its_new_port(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = MemoryOpener(FakeFoundryService())

    def build(*handlers: Any) -> Any:
        return moved

    runtime = EndpointRuntime(
        EndpointSettings("http://localhost:5273"),
        find_service=lambda: "http://127.0.0.1:58338/",
        find_owner=hidden_owner,
    )
    put_opener(runtime, PlainOpener(urllib.error.URLError(ConnectionRefusedError(111, ""))))
    monkeypatch.setattr(urllib.request, "build_opener", build)
    model = runtime.resolve("phi-4-mini", "cpu")
    session = runtime.open(model, Placement())
    session.prepare(lambda message, fraction: None)
    assert session.load(5.0).endpoint.base_url == "http://127.0.0.1:58338/v1"


@contextlib.contextmanager
def moving(server: FakeServer) -> Iterator[tuple[EndpointRuntime, Callable[[], None]]]:
    """A runtime for a server on a real port, and a way to move the server to another port."""
    with contextlib.ExitStack() as stack:
        now = stack.enter_context(contextlib.ExitStack())
        places = [now.enter_context(serving(server))]
        runtime = EndpointRuntime(
            EndpointSettings(places[0]), find_service=lambda: places[-1], find_owner=hidden_owner, clock=lambda: 0.0
        )

        def move() -> None:
            now.close()
            places.append(stack.enter_context(serving(server)))

        yield runtime, move


@pytest.mark.parametrize("what", ["models", "resolve", "pull", "unload", "describe", "load"])
def test_a_service_that_moved_within_the_minute_is_asked_at_its_new_port(what: str) -> None:
    server = FakeFoundryService()
    with moving(server) as (runtime, move):
        model = runtime.resolve("phi-4-mini", "cpu")
        session = runtime.open(model, Placement())
        session.prepare(lambda message, fraction: None)
        server.loaded = [model.variant] if what == "unload" else []
        move()
        if what == "models":
            assert len(runtime.models()) == 2
        elif what == "resolve":
            assert runtime.resolve("phi-4-mini", "cpu") == model
        elif what == "pull":
            assert runtime.pull(model, lambda *_: None, lambda: False, 5.0).cached
        elif what == "unload":
            runtime.unload(model)
            assert server.loaded == []
        elif what == "describe":
            assert runtime.describe().available
        else:
            loaded = session.load(5.0)
            assert loaded.load_ns is not None
            assert loaded.endpoint.base_url == runtime.describe().endpoint_url
            assert server.loaded == [model.variant]


def test_a_server_that_only_takes_its_time_has_not_moved() -> None:
    asked: list[str] = []

    def find() -> str | None:
        asked.append("foundry")
        return "http://127.0.0.1:1"

    runtime = EndpointRuntime(EndpointSettings("http://localhost:5273"), find_service=find)
    put_opener(runtime, PlainOpener(TimeoutError("slow")))
    with pytest.raises(WorkFailed):
        runtime.models()
    assert asked == []


def test_a_description_says_what_the_server_is_and_can() -> None:
    said = runtime_with(listing("m")).describe()
    assert (said.dialect, said.endpoint_url, said.capabilities) == (
        "openai",
        "http://127.0.0.1:8080/v1",
        frozenset({"list"}),
    )


def test_a_model_not_listed_yet_can_be_asked_of_a_library_only() -> None:
    runtime = runtime_with(listing("m"))
    with pytest.raises(WorkFailed) as caught:
        runtime.pullable("new", None)
    assert caught.value.failure.reason is Reason.UNSUPPORTED
    library = runtime_with(listing())
    put_opener(library, MemoryOpener(FakeOllama("old:1")))
    assert library.pullable("new:1", None) == Model("new:1", "new:1", cached=False, loaded=False)
    assert library.pullable("old:1", None).cached


def test_a_model_of_another_registry_is_pulled_only_where_agent_toml_lists_it() -> None:
    policy = EndpointPolicy.of(allow=["https://hf.co"])

    def pullable(name: str, check: Callable[[str], object] | None) -> Model:
        runtime = EndpointRuntime(
            EndpointSettings("http://127.0.0.1:8080"), find_service=no_service, check_source=check
        )
        put_opener(runtime, MemoryOpener(FakeOllama()))
        return runtime.pullable(name, None)

    assert pullable("hf.co/user/m", policy.check).variant == "hf.co/user/m"
    for name, check in (
        ("10.0.0.7/user/m", policy.check),
        ("hf.co/user/m", EndpointPolicy.of().check),
        ("a.b/m", None),
    ):
        with pytest.raises(WorkFailed) as caught:
            pullable(name, check)
        assert caught.value.failure.reason is Reason.ENDPOINT_NOT_ALLOWED
