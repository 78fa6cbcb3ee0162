"""Loads that a server is asked for: waited for, given up, undone. No socket: the dialect is a stand-in."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model, Placement
from benchfleet_agent.runtimes.dialects import Client, Dialect, Ready
from benchfleet_agent.runtimes.endpoint import DETECTED_S, EndpointRuntime, EndpointSession, EndpointSettings

SOME = Model("m", "m")


class SlowDialect(Dialect):
    """Loads when it is let; keeps what it loaded."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.let, self.unloaded = threading.Event(), threading.Event()

    def load(self, model: Model, timeout_s: float) -> Ready:
        self.let.wait(10)
        return Ready(model.variant, self.client.base_url, 1, loaded_here=True)

    def unload(self, model: Model, timeout_s: float) -> None:
        self.unloaded.set()


def slow_session(model: Model = SOME, **settings: Any) -> tuple[EndpointSession, SlowDialect]:
    runtime = EndpointRuntime(EndpointSettings("http://127.0.0.1:9", **settings))
    assert runtime._client is not None
    runtime._dialect = dialect = SlowDialect(runtime._client)
    runtime._detected = runtime._clock()
    return runtime.open(model, Placement()), dialect


@pytest.mark.parametrize("killed", [True, False])
def test_a_load_nobody_waits_for_is_undone_when_it_comes(killed: bool) -> None:
    session, dialect = slow_session()
    if killed:
        session.kill()
    with pytest.raises(WorkFailed) as caught:
        session.load(0.0)
    assert caught.value.failure.reason is (Reason.CANCELLED if killed else Reason.LOAD_TIMEOUT)
    assert not dialect.unloaded.is_set()
    dialect.let.set()
    assert dialect.unloaded.wait(10)


def test_what_the_case_loaded_is_unloaded_once_at_the_latest_when_it_closes() -> None:
    session, dialect = slow_session()
    dialect.let.set()
    session.load(10.0)
    session.close(1.0)
    assert dialect.unloaded.is_set()
    assert session.unload(1.0) is None


@pytest.mark.parametrize(
    ("model", "file"),
    [
        (Model("qwen", "qwen-4bit"), "of-variant"),
        (Model("phi", "phi-4bit"), "of-alias"),
        (Model("m", "m"), "of-others"),
    ],
)
def test_the_tokenizer_that_the_owner_named_for_a_model_goes_with_it(model: Model, file: str) -> None:
    named = {"qwen-4bit": Path("of-variant"), "phi": Path("of-alias"), "*": Path("of-others")}
    session, dialect = slow_session(model, tokenizers=named)
    dialect.let.set()
    assert session.load(10.0).endpoint.tokenizer == Path(file)


def test_without_one_there_is_none() -> None:
    session, dialect = slow_session()
    dialect.let.set()
    assert session.load(10.0).endpoint.tokenizer is None


@pytest.mark.parametrize(("path", "url"), [("/tokenize", "http://127.0.0.1:9/tokenize"), ("", "")])
def test_where_a_server_counts_texts_goes_with_its_models(monkeypatch: pytest.MonkeyPatch, path: str, url: str) -> None:
    monkeypatch.setattr(SlowDialect, "tokenize_path", path)
    session, dialect = slow_session()
    dialect.let.set()
    assert session.load(10.0).endpoint.tokenize_url == url


def test_a_long_load_does_not_have_the_server_asked_again_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    session, dialect = slow_session()
    dialect.let.set()
    load = dialect.load

    def long(model: Model, timeout_s: float) -> Ready:
        session._runtime._detected -= 10 * DETECTED_S
        return load(model, timeout_s)

    monkeypatch.setattr(dialect, "load", long)
    monkeypatch.setattr(session._runtime, "_detect", pytest.fail)
    assert session.load(10.0).endpoint.model == "m"
