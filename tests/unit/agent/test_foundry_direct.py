"""The child's half of the path without HTTP, with a fake SDK: stamps, the final usage, limits that cancel."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from benchfleet_agent.child import Message
from benchfleet_agent.runtimes import foundry_direct


class FakeRequest:
    """Holds what it was given; remembers that it was cancelled."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.cancelled = threading.Event()

    def __enter__(self) -> FakeRequest:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to release."""

    def add_item(self, item: Any) -> None:
        self.items.append(item)

    def cancel(self) -> None:
        self.cancelled.set()


class FakeStream:
    """Pieces, then the final answer."""

    def __init__(self, pieces: Iterator[str], final: Any) -> None:
        self._pieces, self.final_response = pieces, final

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to release."""

    def __iter__(self) -> Iterator[Any]:
        return (SimpleNamespace(text=text) for text in self._pieces)


class Final:
    def __init__(self, answer: Any) -> None:
        self.item_count = 1
        self._answer = answer

    def __enter__(self) -> Final:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to release."""

    def get_item(self, index: int) -> Any:
        return SimpleNamespace(text=json.dumps(self._answer))


def run(script: Callable[[FakeRequest], Iterator[str]], answer: Any, **command: Any) -> Message:
    requests: list[FakeRequest] = []

    def request() -> FakeRequest:
        requests.append(FakeRequest())
        return requests[-1]

    class Session:
        def __init__(self, model: object) -> None:
            assert model == "the model"

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to release."""

        def set_streaming(self, enabled: bool) -> None:
            assert enabled

        def process_streaming_request(self, one: FakeRequest) -> FakeStream:
            return FakeStream(script(one), Final(answer))

        def process_request(self, one: FakeRequest) -> Final:
            return Final(answer)

    sdk = SimpleNamespace(
        ChatSession=Session, Request=request, TextItem=lambda text, kind: text,
        TextItemType=SimpleNamespace(OPENAI_JSON=1),
    )  # fmt: skip
    sent: list[Message] = []
    protocol: Any = SimpleNamespace(send=lambda event, **fields: sent.append({"event": event, **fields}))
    full = {"request_id": "r", "body": {"stream": True}, "limits_s": {"request": 60.0}, **command}
    foundry_direct._chat(sdk, "the model", full, protocol)
    (told,) = sent
    assert told["event"] == "chatted"
    if requests and requests[0].items:
        assert json.loads(requests[0].items[0]) == full["body"]
    return told


def test_pieces_are_stamped_in_order_and_the_usage_comes_from_the_final_answer() -> None:
    told = run(lambda request: iter(["role", "a", "b"]), {"usage": {"completion_tokens": 2}})
    stamps = [stamp for stamp, _ in told["chunks"]]
    assert [text for _, text in told["chunks"]] == ["role", "a", "b"]
    assert told["start_ns"] <= stamps[0] <= stamps[1] <= stamps[2] <= told["end_ns"]
    assert told["usage"] == {"completion_tokens": 2}
    assert (told["overdue"], told["reason"]) == (None, None)


def test_an_answer_in_one_piece() -> None:
    told = run(lambda request: iter(()), {"usage": {"completion_tokens": 2}}, body={"stream": False})
    ((_, text),) = told["chunks"]
    assert json.loads(text)["usage"] == told["usage"]


@pytest.mark.parametrize(("limits", "pieces", "limit"), [
    ({"request": 60.0, "first_token": 0.01}, [], "first_token"),
    ({"request": 60.0, "first_token": 30.0, "token": 0.01}, ["role", "a"], "token"),
    ({"request": 0.01, "first_token": 30.0, "token": 20.0}, ["role", "a"], "request"),
])  # fmt: skip
def test_a_limit_that_passes_cancels_the_request(limits: dict[str, float], pieces: list[str], limit: str) -> None:
    def stall(request: FakeRequest) -> Iterator[str]:
        yield from pieces
        assert request.cancelled.wait(30)
        raise OSError("request cancelled by caller")

    told = run(stall, {}, limits_s=limits)
    assert told["overdue"] == limit
    assert told["message"]
    assert len(told["chunks"]) == len(pieces)


def test_a_native_failure_is_told_with_its_reason() -> None:
    def fail(request: FakeRequest) -> Iterator[str]:
        yield "role"
        raise MemoryError

    told = run(fail, {})
    assert told["reason"] == "out_of_memory"
    assert told["end_ns"] >= told["start_ns"]


def test_a_request_that_is_due_later_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now, naps = [1_000_000_000], list[float]()

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += max(1, int(seconds * 1e9))

    monkeypatch.setattr(foundry_direct, "perf_counter_ns", lambda: now[0])
    monkeypatch.setattr(foundry_direct, "sleep", sleep)
    foundry_direct._wait_until(1_200_000_000)
    assert now[0] >= 1_200_000_000
    assert naps[0] == pytest.approx(0.1995)
