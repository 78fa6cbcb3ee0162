"""The loopback server: ``python -m benchfleet_agent.instrument.loopback_server``, a chat endpoint that knows.

Its first line is ``listening{port}``; ``{"do": "truth"}`` is answered with ``truth{answers}``, what was sent since the
last time: [{request_id, received_ns, sent_ns}], perf_counter stamps taken just before each send. It ends when its
stdin does. A request's last message says what to send and when: {request_id, tokens, first_token_ns, gap_ns}.

A thread a connection, because each then sleeps in the kernel to the nanosecond of its own schedule: a selector's
timeout is rounded to milliseconds, and one loop would send chunks that are due together one after the other.
What a thread does between two sleeps is one send of bytes made beforehand and one stamp, so nobody waits long for
the interpreter. Standard library only.
"""

from __future__ import annotations

import argparse
import gc
import json
import socketserver
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from time import perf_counter_ns, sleep
from typing import Any

from benchfleet_agent.child import die_with_parent, take_protocol
from benchfleet_agent.instrument.certificate import NS_PER_S, Schedule

SWITCH_INTERVAL_S = 0.0005
"""How long a thread that parses a request may keep the interpreter from one whose chunk is due."""
MAXIMUM_BODY_BYTES = 1 << 16
MAXIMUM_TOKENS = 10_000


class LoopbackServer(socketserver.ThreadingTCPServer):
    """Listens on a free port of 127.0.0.1."""

    # Not http.server's: that one asks the resolver for the host's name, which can take seconds.
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, late_ns: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.late_ns = late_ns
        """Every other chunk leaves so much later than it is due: for tests of who is blamed."""
        self._answers: list[dict[str, Any]] = []

    def tell(self, answer: dict[str, Any]) -> None:
        """Keep what was sent."""
        self._answers.append(answer)

    def take_answers(self) -> list[dict[str, Any]]:
        """What was sent since the last time."""
        taken, self._answers = self._answers, []
        return taken


class Handler(BaseHTTPRequestHandler):
    """One connection, kept while the client wants it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def parse_request(self) -> bool:
        """Stamp the request before the parsing, which takes as long as a whole loopback round trip."""
        self._received_ns = perf_counter_ns()
        return super().parse_request()

    def do_POST(self) -> None:
        """Stream an answer on its schedule."""
        try:
            length = min(int(self.headers["Content-Length"]), MAXIMUM_BODY_BYTES)
            body = json.loads(self.rfile.read(length))
            wish = json.loads(body["messages"][-1]["content"])
            request_id = str(wish["request_id"])
            schedule = Schedule(min(int(wish["tokens"]), MAXIMUM_TOKENS), wish["first_token_ns"], wish["gap_ns"])
            due_ns = schedule.due_ns(self._received_ns)
        except (ValueError, TypeError, KeyError, IndexError):
            self.close_connection = True
            self.send_error(400)
            return
        token, end = token_chunk(), end_chunk(schedule.tokens)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent_ns: list[int] = []
        late_ns = 0
        for moment_ns in due_ns:
            sleep_until(moment_ns + late_ns)
            sent_ns.append(perf_counter_ns())
            self.connection.sendall(token)
            late_ns = self.server.late_ns - late_ns
        # The end leaves a gap later, so that it never shares a read with the last token; the truth is there first,
        # so that whoever has seen the end can ask for it.
        self.server.tell({"request_id": request_id, "received_ns": self._received_ns, "sent_ns": sent_ns})
        sleep_until(due_ns[-1] + schedule.gap_ns if due_ns else 0)
        self.connection.sendall(end)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Nothing is written while others stream."""


def sleep_until(moment_ns: int) -> None:
    """Return at the moment, or at once when it has passed."""
    while (left_ns := moment_ns - perf_counter_ns()) > 0:
        sleep(left_ns / NS_PER_S)


def token_chunk() -> bytes:
    """The write that carries one token."""
    return _http_chunk(_event(_completion_chunk([{"index": 0, "delta": {"content": " tok"}, "finish_reason": None}])))


def end_chunk(tokens: int) -> bytes:
    """The write that ends an answer: finish reason, usage, ``[DONE]`` and the end of the body."""
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
    finish = _completion_chunk([{"index": 0, "delta": {}, "finish_reason": "length"}])
    events = _event(finish) + _event({**_completion_chunk([]), "usage": usage}) + b"data: [DONE]\n\n"
    return _http_chunk(events) + b"0\r\n\r\n"


def _completion_chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": "chatcmpl-loopback", "object": "chat.completion.chunk", "created": 0, "model": "loopback"}
    return {**head, "choices": choices}


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def main() -> int:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(
        prog="python -m benchfleet_agent.instrument.loopback_server", description="The loopback server."
    )
    parser.add_argument("--late-ms", type=float, default=0.0, help="send every other chunk late, for tests")
    late_ns = int(parser.parse_args().late_ms * 1e6)
    protocol = take_protocol()
    die_with_parent()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # It lives for seconds and makes little: a collection would only stop the streams.
    gc.disable()
    server = LoopbackServer(late_ns)
    threading.Thread(target=server.serve_forever, name="accept", daemon=True).start()
    protocol.send("listening", port=server.server_address[1])
    while (command := protocol.receive()) is not None:
        if command.get("do") == "truth":
            protocol.send("truth", answers=server.take_answers())
    return 0


if __name__ == "__main__":
    sys.exit(main())
