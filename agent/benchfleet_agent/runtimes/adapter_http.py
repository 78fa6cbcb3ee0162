"""The HTTP side of an adapter: chat completions over loopback, a chunk for every piece of text as it is made."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import h11

MAXIMUM_BODY_BYTES = 16 << 20
SAMPLING = ("temperature", "top_p", "seed")
DEFAULT_TOKENS = 512
_COUNTS = ("prompt_tokens", "completion_tokens")

Message = dict[str, Any]


class ClientGone(Exception):
    """Nobody reads the answer any more."""


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


class Generation:
    """One answer as it is made: text pieces, then what the adapter counted."""

    def __init__(self, made: str | Iterable[Any]) -> None:
        self._made = [made] if isinstance(made, str) else made
        self.counts: dict[str, Any] = {}

    def pieces(self) -> Iterator[str]:
        """Text as it comes; an object among it says ``prompt_tokens``, ``completion_tokens``, ``finish_reason``."""
        for piece in self._made:
            if isinstance(piece, Mapping):
                self.counts |= piece
            elif not isinstance(piece, str):
                raise TypeError(f"generate gave a {type(piece).__name__}; pieces are text, counts an object")
            elif piece:
                yield piece

    def close(self) -> None:
        """Stop making it."""
        close = getattr(self._made, "close", None)
        if callable(close):
            close()

    @property
    def finish_reason(self) -> str:
        """Why it ended."""
        return str(self.counts.get("finish_reason") or "stop")

    @property
    def usage(self) -> dict[str, int] | None:
        """OpenAI's usage object; None unless the adapter counted both."""
        found = {name: self.counts[name] for name in _COUNTS if isinstance(self.counts.get(name), int)}
        return found | {"total_tokens": sum(found.values())} if len(found) == len(_COUNTS) else None


class Server:
    """The loopback server: a thread a connection; answers are made one after the other unless the adapter says."""

    def __init__(self, adapter: Any, model: str) -> None:
        self._adapter = adapter
        self._model = model
        self._turn = threading.Lock() if not getattr(adapter, "concurrent", False) else None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        machine = h11.Connection(h11.SERVER)
        with connection:
            try:
                while (request := _receive(machine, connection)) is not None:
                    self._answer(Reply(machine, connection), *request)
                    if machine.our_state is h11.MUST_CLOSE:
                        return
                    machine.start_next_cycle()
            except (ClientGone, OSError, h11.ProtocolError):  # the client left, or speaks no HTTP
                return

    def _answer(self, reply: Reply, method: str, path: str, body: bytes) -> None:
        if (method, path) == ("GET", "/v1/models"):
            reply.json(200, {"object": "list", "data": [{"id": self._model, "object": "model"}]})
        elif (method, path) == ("POST", "/v1/chat/completions"):
            self._complete(reply, body)
        else:
            reply.error(404, f"there is no {method} {path} here")

    def _complete(self, reply: Reply, body: bytes) -> None:
        try:
            wish = json.loads(body)
            messages = [dict(message) for message in wish["messages"]]
            limit = int(wish.get("max_tokens") or wish.get("max_completion_tokens") or DEFAULT_TOKENS)
            sampling = {name: wish[name] for name in SAMPLING if wish.get(name) is not None}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reply.error(400, f"no chat completion request: {describe(error)}")
            return
        if wish.get("model") != self._model:
            reply.error(404, f"model {wish.get('model')!r} is not the one that is loaded, {self._model!r}")
            return
        if self._turn is None:
            self._generate(reply, wish, messages, limit, sampling)
            return
        with self._turn:
            self._generate(reply, wish, messages, limit, sampling)

    def _generate(
        self, reply: Reply, wish: Message, messages: list[Message], limit: int, sampling: dict[str, Any]
    ) -> None:
        generation = None
        try:
            generation = Generation(self._adapter.generate(messages, max_tokens=limit, **sampling))
            if wish.get("stream"):
                _stream(reply, generation, self._model, usage=_wants_usage(wish))
            else:
                _whole(reply, generation, self._model)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 (whatever the adapter raises is the client's to hear)
            reply.error(500, describe(error))
        finally:
            if generation is not None:
                generation.close()


class Reply:
    """One HTTP answer."""

    def __init__(self, machine: h11.Connection, connection: socket.socket) -> None:
        self._machine = machine
        self._connection = connection
        self._streaming = False

    def json(self, status: int, document: object) -> None:
        """A whole answer."""
        data = json.dumps(document).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        self._send(h11.Response(status_code=status, headers=headers), h11.Data(data=data), h11.EndOfMessage())

    def event(self, payload: object) -> None:
        """A piece of a stream, in one write; the first begins it."""
        words = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
        events: list[h11.Event] = [h11.Data(data=f"data: {words}\n\n".encode())]
        if not self._streaming:
            self._streaming = True
            headers = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
            events.insert(0, h11.Response(status_code=200, headers=headers))
        self._send(*events)

    def end(self) -> None:
        """The stream's end."""
        self._send(h11.Data(data=b"data: [DONE]\n\n"), h11.EndOfMessage())

    def error(self, status: int, message: str) -> None:
        """A failure: an HTTP status, or an error object when the stream has begun; no ``[DONE]`` follows it."""
        document = {"error": {"message": message, "type": "server_error", "code": status}}
        if not self._streaming:
            self.json(status, document)
            return
        self.event(document)
        self._send(h11.EndOfMessage())

    def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._machine.send(event) or b"" for event in events)
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise ClientGone from error


def _receive(machine: h11.Connection, connection: socket.socket) -> tuple[str, str, bytes] | None:
    """The next request: method, path, body; None at the end of the connection."""
    request: h11.Request | None = None
    body = b""
    while True:
        event = machine.next_event()
        if event is h11.NEED_DATA:
            machine.receive_data(connection.recv(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAXIMUM_BODY_BYTES:
                return None
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request.method.decode("ascii"), request.target.decode("ascii").partition("?")[0], body
        else:
            return None


def _stream(reply: Reply, generation: Generation, model: str, *, usage: bool) -> None:
    first = True
    for piece in generation.pieces():
        delta = {"role": "assistant", "content": piece} if first else {"content": piece}
        reply.event(_chunk(model, delta, None))
        first = False
    reply.event(_chunk(model, {}, generation.finish_reason))
    if usage and generation.usage:
        reply.event({**_head(model, "chat.completion.chunk"), "choices": [], "usage": generation.usage})
    reply.end()


def _whole(reply: Reply, generation: Generation, model: str) -> None:
    message = {"role": "assistant", "content": "".join(generation.pieces())}
    choice = {"index": 0, "message": message, "finish_reason": generation.finish_reason}
    usage = {"usage": generation.usage} if generation.usage else {}
    reply.json(200, {**_head(model, "chat.completion"), "choices": [choice], **usage})


def _chunk(model: str, delta: Message, finish_reason: str | None) -> Message:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**_head(model, "chat.completion.chunk"), "choices": [choice]}


def _head(model: str, kind: str) -> Message:
    return {"id": "chatcmpl-adapter", "object": kind, "created": 0, "model": model}


def _wants_usage(wish: Message) -> bool:
    options = wish.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))
