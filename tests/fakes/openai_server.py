"""A scriptable OpenAI-compatible server on loopback that knows when it sent what.

Run it as a process of its own (``python openai_server.py [--port N] [--model NAME]``); its first line is
``{"port": N}``. ``GET /v1/models`` lists that model, or none.
A request's script is its last message's content from the first brace on when that is a JSON object of `Script`'s
fields; else the default. ``POST /scripts`` with a JSON list of such objects sets the defaults: each request takes the
next, the last stays; what a request carries itself overrides it field by field.
Chunks leave on an absolute schedule, counted from the moment the request was read. ``GET /truth`` returns, and
forgets, one entry per finished request: ``tag``, ``body`` (without messages), ``prefix`` (text before the script),
``connection`` (number), ``received_ns`` and ``steps`` [[label, ns], …], stamped with ``time.perf_counter_ns()`` just
before each send: the same clock as every other process on the machine. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import socket
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

MAXIMUM_HANG_S = 60.0
FAULTS = ("cut", "reset", "hang", "error", "broken_json", "bad_utf8", "no_object")
TOKEN = " tok"  # 4 bytes: what an average token of English has


@dataclass(frozen=True, slots=True)
class Script:
    """What one answer looks like. Times are milliseconds after the request was read."""

    tag: str = ""
    tokens: int = 16
    """Visible tokens, streamed reasoning included."""
    ttft_ms: float = 20.0
    """First visible token, when nothing is hidden before it."""
    gap_ms: float = 2.0
    token_text: str = TOKEN
    role: str = "before"
    """``none``, ``early`` (at role_ms), ``before`` (a chunk just before the first token), ``with`` (in its chunk)."""
    role_ms: float = 5.0
    role_content: str | None = ""
    """The role chunk's content; some servers say null."""
    comments: bool = False
    """SSE comments before the first token and between tokens."""
    reasoning: int = 0
    """The first tokens are reasoning_content."""
    reasoning_key: str = "reasoning_content"
    hidden: int = 0
    """Tokens counted and waited for but never sent, before the visible ones."""
    details: bool = False
    """Usage says how many tokens were reasoning."""
    tool_call: bool = False
    """The tokens are a tool call's arguments."""
    tokens_per_chunk: int = 1
    chunks_per_write: int = 1
    usage: bool = True
    stop_token: bool = False
    """The end-of-text token is counted."""
    cached: int | None = None
    finish_reason: str = "length"
    finish_delay_ms: float = 0.0
    """From the last token to the finish and usage chunks."""
    stall_at: int = -1
    """The chunk before which everything stops for stall_ms."""
    stall_ms: float = 0.0
    end: str = "done"
    """``done``; ``no_done`` and ``no_finish`` (the body just ends); ``cut`` (no end of the body, after fault_at
    chunks), ``cut_after_finish``, ``reset``, ``hang``, ``error`` (an error object), ``broken_json``, ``bad_utf8``,
    ``no_object``; without any response: ``drop``, ``garbage``."""
    fault_at: int = 4
    line_end: str = "\n"
    split_utf8: bool = False
    """Every chunk leaves in two writes, broken inside a character (give token_text one)."""
    big_line_bytes: int = 0
    """One more token-bearing chunk of that size in the middle."""
    status: int = 200
    location: str = ""
    error: str = "it failed"
    ignore_stream: bool = False
    close: bool = False
    """The connection is closed after the answer."""


@dataclass(slots=True)
class Step:
    """One write."""

    due_ms: float
    label: str
    data: bytes
    times: int = 1
    """How many chunks with this label the write holds."""


def http_chunk(data: bytes) -> bytes:
    """A chunk of HTTP's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(script: Script, payload: object) -> bytes:
    """One SSE event."""
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
    return f"data: {text}{script.line_end}{script.line_end}".encode()


def chunk(delta: dict[str, Any] | None, finish_reason: str | None = None, **extra: Any) -> dict[str, Any]:
    """One chat completion chunk; no choices without a delta."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "fake"}
    return {**head, "system_fingerprint": "fp_0123456789abcdef", "choices": choices, **extra}


def usage(script: Script) -> dict[str, Any]:
    """The token count a server would send."""
    completion = script.tokens + script.hidden + script.stop_token
    found: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": completion, "total_tokens": 7 + completion}
    if script.details:
        found["completion_tokens_details"] = {"reasoning_tokens": script.reasoning + script.hidden}
    if script.cached is not None:
        found["prompt_tokens_details"] = {"cached_tokens": script.cached}
    return found


def token_due_ms(script: Script, number: int) -> float:
    """When chunk `number` (from 0) leaves: when its last token is there."""
    last = min(script.tokens, (number + 1) * script.tokens_per_chunk) - 1
    stall = script.stall_ms if 0 <= script.stall_at <= number else 0.0
    return script.ttft_ms + (script.hidden + last) * script.gap_ms + stall


def deltas(script: Script) -> list[tuple[float, dict[str, Any]]]:
    """The token-bearing deltas with their times."""
    found = []
    for number in range(-(-script.tokens // script.tokens_per_chunk)):
        first = number * script.tokens_per_chunk
        text = script.token_text * (min(script.tokens, first + script.tokens_per_chunk) - first)
        if first < script.reasoning:
            delta: dict[str, Any] = {script.reasoning_key: text}
        elif script.tool_call:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
        else:
            delta = {"content": text}
        found.append((token_due_ms(script, number), delta))
    if script.big_line_bytes:
        due_ms = found[len(found) // 2][0]
        found.insert(len(found) // 2 + 1, (due_ms, {"content": "x" * script.big_line_bytes}))
    return found


def last_steps(script: Script, last_ms: float) -> list[Step]:
    """What follows the tokens: an end, or a fault."""
    steps = []
    if script.end in FAULTS:
        error = event(script, {"error": {"message": script.error, "type": "server_error"}})
        lines = {"error": error, "broken_json": b'data: {"choices": [\n\n', "no_object": b'data: "just text"\n\n'}
        lines["bad_utf8"] = b'data: {"a": "\xff"}\n\n'
        if script.end in lines:
            steps.append(Step(last_ms, "fault", lines[script.end]))
    elif script.end != "no_finish":
        end_ms = last_ms + script.finish_delay_ms
        steps.append(Step(end_ms, "finish", event(script, chunk({}, script.finish_reason))))
        if script.usage:
            steps.append(Step(end_ms, "usage", event(script, chunk(None, usage=usage(script)))))
        if script.end == "done":
            steps.append(Step(end_ms, "done", event(script, "[DONE]")))
    return steps


def stream_steps(script: Script) -> list[Step]:
    """Everything a streamed answer writes after its headers, in order."""
    steps: list[Step] = []
    tokens = deltas(script)
    role = {"role": "assistant", "content": script.role_content}
    if script.role == "early":
        steps.append(Step(script.role_ms, "role", event(script, chunk(role))))
    elif script.role == "before" and tokens:
        steps.append(Step(tokens[0][0], "role", event(script, chunk(role))))
    elif script.role == "with" and tokens:
        tokens[0] = (tokens[0][0], {"role": "assistant", **tokens[0][1]})
    if script.comments:
        steps.append(Step(script.role_ms, "comment", b": still working\n\n"))
    for number, (due_ms, delta) in enumerate(tokens[: script.fault_at] if script.end in FAULTS else tokens):
        if script.comments:
            steps.append(Step(due_ms, "comment", b": ping\n\n"))
        data = event(script, chunk(delta))
        if script.split_utf8:
            at = next(index for index, byte in enumerate(data) if byte >= 0x80) + 1
            steps += [Step(due_ms, "part", data[:at]), Step(due_ms + script.gap_ms / 2, "token", data[at:])]
        elif number % script.chunks_per_write and steps[-1].label == "token":
            # Server-side coalescing: the write leaves when its last chunk is due.
            steps[-1] = Step(due_ms, "token", steps[-1].data + data, steps[-1].times + 1)
        else:
            steps.append(Step(due_ms, "token", data))
    steps += last_steps(script, steps[-1].due_ms if steps else script.ttft_ms)
    for step in steps:
        step.data = http_chunk(step.data)
    if script.end not in ("cut", "cut_after_finish", "reset", "hang"):
        steps.append(Step(steps[-1].due_ms if steps else script.ttft_ms, "end", b"0\r\n\r\n"))
    return steps


def response_head(status: int, content_type: str, *extra: str) -> bytes:
    """The status line and headers."""
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Type: {content_type}", *extra]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole_steps(script: Script) -> list[Step]:
    """An answer in one body: not streamed, or an error."""
    extra = [f"Location: {script.location}"] if script.location else []
    if script.status != 200:
        document: dict[str, Any] = {"error": {"message": script.error, "type": "invalid_request_error"}}
        due_ms = 0.0
    else:
        due_ms = script.ttft_ms + (script.hidden + script.tokens - 1) * script.gap_ms
        message = {"role": "assistant", "content": script.token_text * script.tokens}
        document = chunk(None, object="chat.completion")
        document["choices"] = [{"index": 0, "message": message, "finish_reason": script.finish_reason}]
        if script.usage:
            document["usage"] = usage(script)
    data = json.dumps(document).encode()
    if script.end == "cut":
        data, extra = data[: len(data) // 2], [*extra, f"Content-Length: {len(data)}"]
    else:
        extra.append(f"Content-Length: {len(data)}")
    return [Step(due_ms, "whole", response_head(script.status, "application/json", *extra) + data)]


@dataclass(slots=True)
class Server:
    """The listening socket, a thread a connection, and the truth."""

    listener: socket.socket
    models: list[str] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)
    connections: itertools.count[int] = field(default_factory=itertools.count)
    defaults: deque[Script] = field(default_factory=deque)
    default: Script = Script()

    def serve(self) -> None:
        """Accept for ever."""
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = next(self.connections)
            threading.Thread(target=self._connection, args=(connection, number), daemon=True).start()

    def _connection(self, connection: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), connection:
            pending = b""
            while (request := read_request(connection, pending)) is not None:
                method, path, body, pending = request
                if method == "GET":
                    answer_json(connection, self._take_truth() if path == "/truth" else self._models())
                elif path == "/scripts":
                    self.defaults = deque(dataclasses.replace(Script(), **fields) for fields in body)
                    answer_json(connection, {})
                elif not self._answer(connection, number, body):
                    return

    def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}

    def _next_default(self) -> Script:
        with contextlib.suppress(IndexError):
            self.default = self.defaults.popleft()
        return self.default

    def _take_truth(self) -> list[dict[str, Any]]:
        taken, self.truth = self.truth, []
        return taken

    def _answer(self, connection: socket.socket, number: int, body: dict[str, Any]) -> bool:
        """Play the script; False when the connection is not to be used again."""
        received_ns = time.perf_counter_ns()
        script = read_script(body, self._next_default())
        if script.end == "drop":
            return False
        if script.end == "garbage":
            connection.sendall(b"220 mail.example ESMTP\r\n")
            return False
        stamps: list[tuple[str, int]] = []
        if body.get("stream") and not script.ignore_stream and script.status == 200:
            head = ["Transfer-Encoding: chunked", "Cache-Control: no-cache"] + ["Connection: close"] * script.close
            connection.sendall(response_head(200, "text/event-stream", *head))
            steps = stream_steps(script)
        else:
            steps = whole_steps(script)
        try:
            play(connection, steps, received_ns, stamps)
        finally:
            shown = {name: value for name, value in body.items() if name != "messages"}
            entry = {"tag": script.tag, "body": shown, "connection": number, "received_ns": received_ns}
            self.truth.append(entry | {"prefix": split_content(body)[0], "steps": stamps})
        if script.end == "hang":
            connection.settimeout(MAXIMUM_HANG_S)
            connection.recv(1)  # until the client gives up
        if script.end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not script.close and script.end not in ("hang", "reset", "cut", "cut_after_finish")


def play(connection: socket.socket, steps: list[Step], origin_ns: int, stamps: list[tuple[str, int]]) -> None:
    """Write each step when it is due and stamp it."""
    send, sleep, now = connection.sendall, time.sleep, time.perf_counter_ns
    for step in steps:
        wait_s = (origin_ns - now()) / 1e9 + step.due_ms / 1e3
        if wait_s > 0:
            sleep(wait_s)
        stamp_ns = now()
        send(step.data)
        stamps.extend([(step.label, stamp_ns)] * step.times)


def read_request(connection: socket.socket, data: bytes) -> tuple[str, str, Any, bytes] | None:
    """The next request: method, path, JSON body and what was read beyond it; None at the end of the connection."""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    while len(rest) < length:
        part = connection.recv(65536)
        if not part:
            return None
        rest += part
    return method, path, json.loads(rest[:length]) if length else {}, rest[length:]


def split_content(body: dict[str, Any]) -> tuple[str, str]:
    """The last message's text: what comes before the script, and the script."""
    content = str(body["messages"][-1].get("content", "")) if body.get("messages") else ""
    start = max(0, content.find("{"))
    return content[:start], content[start:]


def read_script(body: dict[str, Any], default: Script) -> Script:
    """The default with what the request carries."""
    try:
        fields = json.loads(split_content(body)[1])
    except (ValueError, TypeError):
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    return dataclasses.replace(default, **fields)


def answer_json(connection: socket.socket, document: object) -> None:
    """A plain JSON response."""
    data = json.dumps(document).encode()
    connection.sendall(response_head(200, "application/json", f"Content-Length: {len(data)}") + data)


def main() -> int:
    """Listen, say where, serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", action="append", default=[])
    arguments = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", arguments.port), backlog=512)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.setswitchinterval(0.0005)
    # A server whose starter is gone has no purpose: its stdin ends.
    threading.Thread(target=Server(listener, arguments.model).serve, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
