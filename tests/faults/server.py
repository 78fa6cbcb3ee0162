"""An OpenAI-compatible server that keeps its own record of what it answered. Standard library only.

Run as a process (``python server.py --record FILE [--host H] [--seed N]``); its first line is ``{"port": N}``; it ends
with its stdin. Every answer is unlike every other, so that a stored row says which answer it came from. The record has
a line when a request was read (with the whole answer's hash and counts) and one when the last byte of its answer had
been handed to the system; times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

MODEL = "recorded"
FIRST_TOKEN_S = 0.015
TOKEN_GAP_S = 0.002
MOST_TOKENS = 12


@dataclass(slots=True)
class Server:
    """The listening socket, a thread a connection, and the file of what was answered."""

    listener: socket.socket
    record: int
    draw: random.Random
    requests: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    connections: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self) -> None:
        """Accept for ever."""
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection, next(self.connections)), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        pending = b""
        with contextlib.suppress(OSError), connection:
            while (request := _read(connection, pending)) is not None:
                path, body, pending = request
                if path == "/v1/models":
                    _send_json(connection, "200 OK", {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
                elif path == "/v1/chat/completions" and body is not None:
                    self._answer(connection, number, body)
                else:
                    _send_json(connection, "404 Not Found", {"error": {"message": f"no {path} here"}})

    def _answer(self, connection: socket.socket, number: int, body: dict[str, Any]) -> None:
        with self.lock:
            request, tokens = next(self.requests), self.draw.randint(2, MOST_TOKENS)
            salt = self.draw.getrandbits(64)
        pieces = [f"answer{request:06d}-{salt:016x}"] + [f" w{index}" for index in range(1, tokens)]
        digest = hashlib.sha256(b"\0" + "".join(pieces).encode()).hexdigest()
        prompt_tokens = 5 + request % 50
        facts = {"connection": number, "sha256": digest, "tokens": tokens, "prompt_tokens": prompt_tokens}
        self._note({"request": request, "received_ns": time.perf_counter_ns(), **facts})
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            + _event(_delta({"role": "assistant", "content": ""}))
        )
        due = time.perf_counter() + FIRST_TOKEN_S
        for piece in pieces:
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.sendall(_event(_delta({"content": piece})))
            due += TOKEN_GAP_S
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
        last = _event(_delta({}, "stop")) + _event({**_HEAD, "choices": [], "usage": usage})
        connection.sendall(last + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self._note({"request": request, "answered_ns": time.perf_counter_ns()})

    def _note(self, line: dict[str, Any]) -> None:
        os.write(self.record, json.dumps(line).encode() + b"\n")  # one append a line: whole or not there


_HEAD = {"id": "chatcmpl-recorded", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL}


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {**_HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(document: object) -> bytes:
    return _chunk(b"data: " + json.dumps(document).encode() + b"\n\n")


def _read(connection: socket.socket, data: bytes) -> tuple[str, dict[str, Any] | None, bytes] | None:
    """The next request's path and body, and what was read beyond it; None at the end."""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    while len(rest) < length:
        part = connection.recv(65536)
        if not part:
            return None
        rest += part
    return lines[0].split(" ")[1], json.loads(rest[:length]) if length else None, rest[length:]


def _send_json(connection: socket.socket, status: str, document: object) -> None:
    data = json.dumps(document).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)


def main() -> int:
    """Listen, say where, serve until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    listener = socket.create_server((arguments.host, 0), backlog=128)
    record = os.open(arguments.record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    server = Server(listener, record, random.Random(arguments.seed))
    threading.Thread(target=server.serve, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
