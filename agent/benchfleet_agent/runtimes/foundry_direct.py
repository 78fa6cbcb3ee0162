"""Chat without HTTP: one request to the model in this child's own process, its pieces stamped as they come out.

Used inside the child process, possibly under another interpreter: standard library and the SDK only. A request is
OpenAI's JSON, given to a session of its own, so that memory is sized for prompt and answer as the web service sizes
it, and no request sees what an earlier one left. Answered by::

    chatted{request_id, start_ns, chunks [[stamp_ns, JSON text]…], usage, end_ns, overdue, reason, message}

Stamps are perf_counter nanoseconds, taken when the application gets the piece. ``usage`` is null when the model did
not say; ``overdue`` names the limit that ended the request: ``request``, ``first_token`` or ``token``.
"""

from __future__ import annotations

import gc
import json
import threading
from time import perf_counter_ns, sleep
from typing import Any

from benchfleet_agent.child import Message, Protocol
from benchfleet_agent.runtimes.foundry_errors import explain

_NEVER_NS = 1 << 62
_NS_PER_S = 1_000_000_000


class Deadline:
    """Cancels a request when its limit passes; the limit moves with every token. Used by two threads."""

    def __init__(self, request: Any, limits_s: dict[str, float | None], start_ns: int) -> None:
        self._request = request
        self._limits_ns = {name: int(limit * _NS_PER_S) for name, limit in limits_s.items() if limit}
        self._end_ns = start_ns + self._limits_ns.get("request", _NEVER_NS)
        self._name, self._at_ns = "request", self._end_ns
        self._set("first_token", start_ns)
        # A token may bring a nearer limit, which is then noticed a tenth of it late at most.
        self._look_s = min(60.0, max(0.01, min(self._limits_ns.values(), default=_NEVER_NS) / _NS_PER_S / 10))
        self._changed = threading.Event()
        self._ended = False
        self.passed: str | None = None
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)
        self._thread.start()

    def token(self, stamp_ns: int) -> None:
        """A token came."""
        self._name, self._at_ns = "request", self._end_ns
        self._set("token", stamp_ns)

    def end(self) -> None:
        """The request ended; nothing is cancelled from now on."""
        self._ended = True
        self._changed.set()
        self._thread.join()

    def _set(self, name: str, since_ns: int) -> None:
        at_ns = since_ns + self._limits_ns.get(name, _NEVER_NS)
        if at_ns < self._end_ns:
            self._name, self._at_ns = name, at_ns

    def _watch(self) -> None:
        while not self._ended:
            left_ns = self._at_ns - perf_counter_ns()
            if left_ns <= 0:
                self.passed = self.passed or self._name
                self._request.cancel()  # has no effect before the native call has begun: until it has
                left_ns = _NS_PER_S // 100
            self._changed.wait(min(left_ns / _NS_PER_S, self._look_s))


def start_chat(sdk: Any, model: Any, command: Message, protocol: Protocol) -> None:
    """Begin one request on a thread of its own; its answer goes out when it has ended."""
    if gc.isenabled():
        # A full collection among many live objects stops the process for tens of milliseconds.
        gc.collect()
        gc.freeze()
        gc.disable()
    arguments = (sdk, model, command, protocol)
    threading.Thread(target=_chat, args=arguments, name="chat", daemon=True).start()


def _chat(sdk: Any, model: Any, command: Message, protocol: Protocol) -> None:
    chunks: list[tuple[int, str]] = []
    answer: Message = {"request_id": command["request_id"], "chunks": chunks, "usage": None, "overdue": None,
                       "reason": None, "message": None, "start_ns": None}  # fmt: skip
    try:
        with sdk.ChatSession(model) as session, sdk.Request() as request:
            streamed = bool(command["body"].get("stream"))
            if streamed:
                session.set_streaming(True)
            request.add_item(sdk.TextItem(json.dumps(command["body"]), sdk.TextItemType.OPENAI_JSON))
            if (due_ns := command.get("scheduled_ns")) is not None:
                _wait_until(due_ns)
            answer["start_ns"] = start_ns = perf_counter_ns()
            deadline = Deadline(request, command["limits_s"], start_ns)
            try:
                final = _stream(session, request, chunks, deadline) if streamed else _whole(session, request, chunks)
            finally:
                answer["end_ns"] = perf_counter_ns()
                deadline.end()
                answer["overdue"] = deadline.passed
            answer["usage"] = final.get("usage")
    except Exception as error:  # noqa: BLE001  whatever it is, the parent must hear of it
        answer["reason"], answer["message"] = explain("chat", error)
    answer.setdefault("end_ns", perf_counter_ns())
    protocol.send("chatted", **answer)


def _stream(session: Any, request: Any, chunks: list[tuple[int, str]], deadline: Deadline) -> Message:
    """Collect the pieces of a streamed answer; returns the final answer as OpenAI's JSON."""
    with session.process_streaming_request(request) as pieces:
        for piece in pieces:
            stamp_ns = perf_counter_ns()
            text = piece.text
            chunks.append((stamp_ns, text))
            # The role's piece is no token; the only other piece without a text says how it ended.
            if len(chunks) > 1:
                deadline.token(stamp_ns)
        with pieces.final_response as final:
            return _parsed(final)


def _whole(session: Any, request: Any, chunks: list[tuple[int, str]]) -> Message:
    with session.process_request(request) as final:
        stamp_ns = perf_counter_ns()
        answer = _parsed(final)
        chunks.append((stamp_ns, json.dumps(answer)))
        return answer


def _parsed(final: Any) -> Message:
    answer = json.loads(final.get_item(0).text) if final.item_count else {}
    return answer if isinstance(answer, dict) else {}


def _wait_until(moment_ns: int) -> None:
    """Sleep until shortly before the moment, then look at the clock: a sleep may last 50 µs longer than asked."""
    while (left_ns := moment_ns - perf_counter_ns()) > 0:
        sleep(max(0.0, left_ns / _NS_PER_S - 0.0005))
