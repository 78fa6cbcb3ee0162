"""Loads that a server is asked for: waited for, given up, undone. No socket: the dialect is a stand-in."""

from __future__ import annotations

import threading

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model, Placement
from benchfleet_agent.runtimes.dialects import Client, Dialect, Ready
from benchfleet_agent.runtimes.endpoint import EndpointRuntime, EndpointSession, EndpointSettings


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


def slow_session() -> tuple[EndpointSession, SlowDialect]:
    runtime = EndpointRuntime(EndpointSettings("http://127.0.0.1:9"))
    assert runtime._client is not None
    runtime._dialect = dialect = SlowDialect(runtime._client)
    runtime._detected = runtime._clock()
    return runtime.open(Model("m", "m"), Placement()), dialect


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
