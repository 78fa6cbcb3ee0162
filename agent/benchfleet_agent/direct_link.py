"""Rounds without HTTP: what `LoadLink` is for the load process, for a runtime that answers in its own process.

The runtime's child takes the stamps (source ``app``); requests, their order and their accounting are the load
process's own, so that what differs between the two paths is HTTP. Moments of a connection (sent, headers, first
byte) do not exist here and stay empty.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol, Self, runtime_checkable

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent.child import ChildTimeout
from benchfleet_agent.jobs import CaseOrder
from benchfleet_agent.load.accounting import Answer, End, account, verdict
from benchfleet_agent.load.feed import Feed
from benchfleet_agent.load.process import pace_of
from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status
from benchfleet_agent.load.settings import LoadSettings, RequestSpec
from benchfleet_agent.runtimes import Endpoint, Session

POLL_S = 0.5
"""How often the runtime's life and the case's end are looked at while an answer is awaited."""
Message = dict[str, Any]


@runtime_checkable
class DirectSession(Protocol):
    """A session whose runtime answers without HTTP."""

    def send_direct(self, command: Message) -> None:
        """Begin a chat request. Raises `WorkFailed` when the runtime is gone."""

    def receive_direct(self, timeout_s: float) -> Message:
        """The next request that ended. Raises `ChildTimeout`; `WorkFailed` when the runtime is gone."""


class DirectLink:
    """One case's requests, without a load process. ``interrupted`` raises when the case must end."""

    def __init__(self, session: DirectSession, interrupted: Callable[[], None]) -> None:
        self._session = session
        self._interrupted = interrupted
        self._settings: LoadSettings | None = None

    @classmethod
    def of(cls, session: Session, interrupted: Callable[[], None]) -> Self:
        """The link to a session. Raises `WorkFailed` ``unsupported`` when its runtime answers over HTTP only."""
        if not isinstance(session, DirectSession):
            raise WorkFailed(Reason.UNSUPPORTED, "this runtime answers over HTTP only; leave out `path`")
        return cls(session, interrupted)

    @property
    def pid(self) -> int | None:
        """None: no process of its own; the agent paces, the runtime's child takes the stamps."""
        return None

    def open(self, endpoint: Endpoint, order: CaseOrder, model_directory: Path | None) -> Message:
        """Keep what every request says; versions and stamp source as `LoadLink.open`."""
        self._settings = LoadSettings(
            base_url=endpoint.base_url, model=endpoint.model, stream=order.stream, max_tokens=order.max_tokens,
            temperature=order.temperature, top_p=order.top_p, seed=order.seed, concurrency=order.concurrency,
            request_timeout_s=order.request_s, first_token_timeout_s=order.first_token_s,
            token_timeout_s=order.token_s,
        )  # fmt: skip
        return {"versions": {"python": platform.python_version()}, "stamp_source": StampSource.APP.value}

    def round(self, command: Mapping[str, Any], session: Session, take: Callable[[RequestRecord], None]) -> Message:
        """Carry out a round (fields of the load process's ``round``); `take` gets every request that ended.

        Raises `WorkFailed` when the runtime is gone, after `take` has got the requests that died with it.
        """
        settings = self._settings
        assert settings is not None, "round before open"
        specs = [RequestSpec.from_dict(request) for request in command["requests"]]
        start_ns = perf_counter_ns()
        feed = Feed(specs, pace_of(command), start_ns)
        flying: dict[str, RequestSpec] = {}
        more = True
        try:
            while more or flying:
                while more and len(flying) < settings.concurrency:
                    if (spec := feed.next(perf_counter_ns())) is None:
                        more = False
                        break
                    self._session.send_direct(_command(spec, settings))
                    flying[spec.request_id] = spec
                if not flying:
                    break
                answer = self._receive(session)
                take(_record(flying.pop(answer["request_id"]), answer, settings))
        except WorkFailed as error:
            for spec in flying.values():
                take(_died(spec, error.failure))
            raise
        return {"start_ns": start_ns, "end_ns": perf_counter_ns(), "cpu_ns": None, "rss_bytes": None}

    def stop(self, timeout_s: float) -> None:
        """Nothing of its own runs."""

    def kill(self) -> None:
        """Nothing of its own runs; who kills the session ends its requests."""

    def _receive(self, session: Session) -> Message:
        while True:
            self._interrupted()
            try:
                return self._session.receive_direct(POLL_S)
            except ChildTimeout:
                session.check()


def _command(spec: RequestSpec, settings: LoadSettings) -> Message:
    limits: dict[str, float | None] = {"request": settings.request_timeout_s}
    if settings.stream:
        limits |= {"first_token": settings.first_token_timeout_s, "token": settings.token_timeout_s}
    return {"do": "chat", "request_id": spec.request_id, "body": spec.body(settings), "limits_s": limits,
            "scheduled_ns": spec.scheduled_ns}  # fmt: skip


def _record(spec: RequestSpec, message: Message, settings: LoadSettings) -> RequestRecord:
    """One request's row: the same accounting as over HTTP, from pieces that are OpenAI's chunks."""
    answer, start_ns, end_ns = Answer(), message.get("start_ns"), int(message["end_ns"])
    failure: Failure | None = None
    try:
        for number, (stamp_ns, text) in enumerate(message["chunks"]):
            piece = json.loads(text)
            if settings.stream:
                answer.chunk(_as_delta(piece), stamp_ns, number)
            else:
                answer.whole(piece)
        if settings.stream and message.get("usage"):
            answer.chunk({"choices": [], "usage": message["usage"]}, end_ns, -1)
    except (WorkFailed, ValueError) as error:
        said = error.failure if isinstance(error, WorkFailed) else None
        failure = said or Failure(Reason.BAD_RESPONSE, f"a piece is no JSON: {error}")
    if message.get("overdue"):
        failure = _overdue(message["overdue"], settings, len(answer.stamps))
    elif message.get("reason"):
        failure = _native(message["reason"], str(message["message"]))
    failure = failure or verdict(answer, End.DONE)
    counts = account(answer, failed=failure is not None)
    began = start_ns or 0
    ended = failure is None or failure.reason is Reason.EMPTY_ANSWER
    return RequestRecord(
        request_id=spec.request_id,
        prompt_id=spec.prompt_id,
        scheduled_ns=spec.scheduled_ns,
        position=spec.position,
        prompt_prefix=spec.prefix,
        status=Status.OK if failure is None else Status.FAILED,
        reason=None if failure is None else failure.reason,
        message=None if failure is None else failure.message,
        start_ns=start_ns,
        role_ns=answer.role_ns,
        first_reasoning_ns=answer.first_reasoning_ns,
        first_content_ns=answer.first_content_ns,
        last_content_ns=answer.stamps[-1] if answer.stamps else None,
        finish_ns=answer.finish_ns,
        usage_ns=answer.usage_ns,
        done_ns=end_ns if ended else None,
        end_ns=end_ns,
        token_ns=tuple(stamp - began for stamp in answer.stamps),
        piece_lengths=tuple(answer.piece_lengths),
        other_lengths=tuple(answer.other_lengths) if any(answer.other_lengths) else (),
        chunks=len(answer.stamps),
        coalesced_chunks=answer.coalesced_chunks,
        prompt_tokens=counts.prompt_tokens,
        cached_prompt_tokens=counts.cached_prompt_tokens,
        output_tokens=counts.output_tokens,
        visible_tokens=counts.visible_tokens,
        reasoning_tokens=counts.reasoning_tokens,
        hidden_tokens=counts.hidden_tokens,
        tokens_source=counts.tokens_source,
        accounting=counts.accounting,
        finish_reason=answer.finish_reason,
        text=answer.text,
        reasoning_text=answer.reasoning_text,
        stamp_source=StampSource.APP if message["chunks"] else None,
    )


def _as_delta(piece: Any) -> Any:
    """In process the runtime streams tool calls under ``message``, where OpenAI has ``delta``."""
    if isinstance(piece, dict):
        for choice in piece.get("choices") or []:
            if isinstance(choice, dict) and "message" in choice and "delta" not in choice:
                choice["delta"] = choice.pop("message")
    return piece


def _overdue(limit: str, settings: LoadSettings, chunks: int) -> Failure:
    if limit == "first_token":
        return Failure(Reason.FIRST_TOKEN_TIMEOUT, f"no token within {settings.first_token_timeout_s:g} s")
    if limit == "token":
        message = f"nothing for {settings.token_timeout_s:g} s after {chunks} chunks"
        return Failure(Reason.TOKEN_TIMEOUT, message)
    message = f"no end of the answer within {settings.request_timeout_s:g} s ({chunks} chunks arrived)"
    return Failure(Reason.REQUEST_TIMEOUT, message)


def _native(reason: str, message: str) -> Failure:
    if "maximum context length" in message:
        return Failure(Reason.CONTEXT_OVERFLOW, message)
    try:
        return Failure(Reason(reason), message)
    except ValueError:
        return Failure(Reason.INTERNAL, f"[{reason}] {message}")


def _died(spec: RequestSpec, failure: Failure) -> RequestRecord:
    return RequestRecord(
        request_id=spec.request_id,
        prompt_id=spec.prompt_id,
        position=spec.position,
        prompt_prefix=spec.prefix,
        scheduled_ns=spec.scheduled_ns,
        status=Status.FAILED,
        reason=failure.reason,
        message=failure.message,
        end_ns=perf_counter_ns(),
        accounting=Accounting.INCOMPLETE,
    )
