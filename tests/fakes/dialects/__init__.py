"""Fake servers, one for each dialect: each answers as its documents or a recording of the real one say.

A `FakeServer` maps a request to an answer and keeps what was loaded; `MemoryOpener` asks it without a socket,
`serving` puts it on a loopback port.
"""

from __future__ import annotations

import contextlib
import email.message
import io
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Reply:
    """What a fake answers: JSON, or bytes as they are (a stream of lines)."""

    body: Any = None
    status: int = 200
    kind: str = "application/json"

    @property
    def data(self) -> bytes:
        """The body's bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class FakeServer:
    """Knows no path but OpenAI's listing; the dialects extend it."""

    chunk_extras: ClassVar[dict[str, Any]] = {}
    """What the last chunk of a stream carries beside usage."""

    def __init__(self, *models: str) -> None:
        self.names = list(models)
        self.requests: list[tuple[str, str, Any]] = []

    def answer(self, method: str, path: str, body: Any) -> Reply:
        """Answer a request, and remember it."""
        self.requests.append((method, path, body))
        if (method, path) == ("POST", "/v1/chat/completions"):
            return self.chat(body)
        return self.native(method, path, body) or self.unknown(method, path)

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        """The paths of this kind of server; None: it has no such path."""
        if (method, path) == ("GET", "/v1/models"):
            return Reply({"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]})
        return None

    def unknown(self, method: str, path: str) -> Reply:
        """What it says to a path it does not have."""
        return Reply({"error": {"message": "Not Found"}}, 404)

    def chat(self, body: Any) -> Reply:
        """Three tokens and a count."""
        head = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}
        chunks: list[Any] = [
            {**head, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
            for piece in (" one", " two", " three")
        ]
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        chunks.append({**head, "choices": [], "usage": usage, **self.chunk_extras})
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
        return Reply("".join(events).encode(), kind="text/event-stream")


class MemoryOpener:
    """Stands in for urllib's opener: asks a fake without a socket."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.problem: Exception | None = None
        self.seen: list[urllib.request.Request] = []

    def open(self, request: urllib.request.Request, timeout: float) -> Any:
        """Answer from memory."""
        assert timeout > 0
        self.seen.append(request)
        if self.problem is not None:
            raise self.problem
        parts = urllib.parse.urlsplit(request.full_url)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        body = json.loads(request.data) if isinstance(request.data, bytes) else None
        reply = self.server.answer(request.get_method(), path, body)
        if reply.status >= 300:
            headers = email.message.Message()
            raise urllib.error.HTTPError(request.full_url, reply.status, "", headers, io.BytesIO(reply.data))
        return io.BytesIO(reply.data)


@contextlib.contextmanager
def serving(server: FakeServer, port: int = 0) -> Iterator[str]:
    """The fake on a loopback port; yields its root URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            reply = server.answer(self.command, self.path, body)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(reply.data)))
            self.end_headers()
            self.wfile.write(reply.data)

        do_GET = do_POST = do_DELETE = _any  # noqa: N815 (http.server's names)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with Listener(("127.0.0.1", port), Handler) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()
