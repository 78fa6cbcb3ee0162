"""Requests without HTTP: what a runtime's child says becomes the same rows as over HTTP."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import ChildTimeout, Message
from benchfleet_agent.direct_link import DirectLink
from benchfleet_agent.jobs import CaseOrder, JobOrder
from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status, TokensSource
from benchfleet_agent.runtimes import Endpoint
from fakes.specs import job_spec

ENDPOINT = Endpoint("http://127.0.0.1:1/v1", "tiny:1")
USAGE = {"prompt_tokens": 7, "completion_tokens": 2}


def case_order(**changes: Any) -> CaseOrder:
    return dataclasses.replace(JobOrder.from_proto("job-1", job_spec()).cases[0], **changes)


def piece(finish: str | None = None, **delta: Any) -> str:
    return json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]})


GOOD = [
    (1_000, piece(role="assistant", content="")),
    (1_100, piece(content="a")),
    (1_250, piece(content="bc")),
    (1_300, piece("stop")),
]


class FakeSession:
    """A session that answers each request with what a test gives it."""

    def __init__(self, **answer: Any) -> None:
        self.answer: Message = {"start_ns": 1_000, "end_ns": 2_000, "chunks": GOOD, "usage": USAGE, **answer}
        self.asked: list[Message] = []
        self.most = 0
        self.waiting: deque[Message] = deque()
        self.late = 0
        self.gone: WorkFailed | None = None

    def send_direct(self, command: Message) -> None:
        self.asked.append(command)
        self.waiting.append({"request_id": command["request_id"], **self.answer})
        self.most = max(self.most, len(self.waiting))

    def receive_direct(self, timeout_s: float) -> Message:
        if self.late:
            self.late -= 1
            raise ChildTimeout("late")
        if self.gone:
            raise self.gone
        return self.waiting.popleft()

    def check(self) -> None:
        if self.gone:
            raise self.gone


def carry_out(session: FakeSession, requests: int = 1, **changes: Any) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    link = DirectLink(session, lambda: None)
    link.open(ENDPOINT, case_order(**changes), None)
    asked = [
        {"request_id": f"r{number}", "prompt_id": "p", "messages": [{"role": "user", "content": "hi"}]}
        for number in range(requests)
    ]
    finished = link.round({"requests": asked}, session, records.append)  # type: ignore[arg-type]
    assert finished["start_ns"] <= finished["end_ns"]
    return records


def test_a_request_has_the_moments_that_exist_and_no_others() -> None:
    (record,) = carry_out(FakeSession())
    assert (record.status, record.accounting, record.tokens_source) == (
        Status.OK, Accounting.CONSISTENT, TokensSource.USAGE,
    )  # fmt: skip
    assert (record.start_ns, record.role_ns, record.first_content_ns) == (1_000, 1_000, 1_100)
    assert (record.last_content_ns, record.finish_ns, record.done_ns, record.end_ns) == (1_250, 1_300, 2_000, 2_000)
    assert record.token_ns == (100, 250)
    assert (record.text, record.piece_lengths, record.finish_reason) == ("abc", (1, 2), "stop")
    assert (record.prompt_tokens, record.output_tokens, record.visible_tokens) == (7, 2, 2)
    assert record.stamp_source is StampSource.APP
    assert (record.sent_ns, record.headers_ns, record.first_byte_ns, record.http_status) == (None, None, None, None)
    assert record.coalesced_chunks == 0


def test_what_decides_an_answer_is_sent_and_so_are_the_limits() -> None:
    session = FakeSession()
    carry_out(session, max_tokens=9, temperature=0.0, top_p=1.0, seed=4, request_s=5.0, first_token_s=2.0, token_s=1.0)
    (command,) = session.asked
    body = command["body"]
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("tiny:1", 9, 0.0, 4)
    assert body["stream"] is True
    assert command["limits_s"] == {"request": 5.0, "first_token": 2.0, "token": 1.0}


def test_no_more_requests_are_in_flight_than_asked_for() -> None:
    session = FakeSession()
    assert len(carry_out(session, requests=7, concurrency=3)) == 7
    assert session.most == 3


@pytest.mark.parametrize(
    ("limit", "reason"),
    [("request", Reason.REQUEST_TIMEOUT), ("first_token", Reason.FIRST_TOKEN_TIMEOUT), ("token", Reason.TOKEN_TIMEOUT)],
)
def test_the_limit_that_passed_is_the_reason(limit: str, reason: Reason) -> None:
    session = FakeSession(overdue=limit, usage=None, reason="cancelled", message="request cancelled by caller")
    (record,) = carry_out(session, request_s=5.0, first_token_s=2.0, token_s=1.0)
    assert (record.status, record.reason, record.accounting) == (Status.FAILED, reason, Accounting.INCOMPLETE)
    assert record.chunks == 2
    assert record.done_ns is None


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("internal", "9024 tokens, which exceeds the model's maximum context length", Reason.CONTEXT_OVERFLOW),
        ("out_of_memory", "bad_alloc", Reason.OUT_OF_MEMORY),
        ("from the future", "?", Reason.INTERNAL),
    ],
)
def test_a_native_failure_keeps_its_reason(reason: str, message: str, expected: Reason) -> None:
    (record,) = carry_out(FakeSession(chunks=[], usage=None, reason=reason, message=message))
    assert record.reason is expected
    assert message in (record.message or "")
    assert record.stamp_source is None


def test_an_answer_without_a_finish_is_still_judged_by_what_came() -> None:
    (record,) = carry_out(FakeSession(chunks=[(1_000, piece("stop", role="assistant"))], usage=None))
    assert record.reason is Reason.EMPTY_ANSWER
    (garbled,) = carry_out(FakeSession(chunks=[(1_000, "<html>")]))
    assert garbled.reason is Reason.BAD_RESPONSE


def test_tool_calls_come_under_message_and_count_as_tokens() -> None:
    call = {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    chunk = json.dumps({"choices": [{"message": call, "finish_reason": "tool_calls"}]})
    (record,) = carry_out(FakeSession(chunks=[(1_500, chunk)], usage={"completion_tokens": 1}))
    assert (record.status, record.chunks, record.first_content_ns) == (Status.OK, 1, 1_500)


def test_an_unstreamed_answer_has_no_token_times() -> None:
    whole = {"choices": [{"message": {"content": "abc"}, "finish_reason": "stop"}], "usage": USAGE}
    (record,) = carry_out(FakeSession(chunks=[(2_000, json.dumps(whole))]), stream=False)
    assert (record.text, record.token_ns, record.accounting) == ("abc", (), Accounting.NOT_STREAMED)
    assert record.output_tokens == 2


def test_requests_that_die_with_the_runtime_are_rows() -> None:
    session = FakeSession()
    session.late, session.gone = 1, WorkFailed(Reason.RUNTIME_CRASHED, "killed by signal 11")
    records: list[RequestRecord] = []
    link = DirectLink(session, lambda: None)
    link.open(ENDPOINT, case_order(concurrency=2), None)
    request = {"prompt_id": "p", "messages": [{"role": "user", "content": "hi"}]}
    requests = [{"request_id": name, **request} for name in ("a", "b", "c")]
    with pytest.raises(WorkFailed):
        link.round({"requests": requests}, session, records.append)  # type: ignore[arg-type]
    assert [(record.request_id, record.reason) for record in records] == [
        ("a", Reason.RUNTIME_CRASHED), ("b", Reason.RUNTIME_CRASHED),
    ]  # fmt: skip


def test_a_cancelled_case_ends_while_an_answer_is_awaited() -> None:
    def interrupted() -> None:
        raise WorkFailed(Reason.CANCELLED, "the job was cancelled")

    session = FakeSession()
    link = DirectLink(session, interrupted)
    link.open(ENDPOINT, case_order(), None)
    request = {"request_id": "a", "prompt_id": "p", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(WorkFailed) as caught:
        link.round({"requests": [request]}, session, lambda record: None)  # type: ignore[arg-type]
    assert caught.value.failure.reason is Reason.CANCELLED


def test_a_session_without_it_is_refused() -> None:
    with pytest.raises(WorkFailed) as caught:
        DirectLink.of(object(), lambda: None)  # type: ignore[arg-type]
    assert caught.value.failure.reason is Reason.UNSUPPORTED
