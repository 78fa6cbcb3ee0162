"""The floor: a socket, a stamp after each read, everything else afterwards. Also run as a program of its own."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.answers import Answer, answer_from_stamps
from benchmarks.peers.client import MODEL, Client, Command, Load

WARM_UP = 2
PROMPT = "Tell me a story about a lighthouse."


def command(_programs: Path, load: Load, _folder: Path) -> Command:
    """This file as a program."""
    numbers = (str(load.requests), str(load.concurrency), str(load.tokens))
    return Command((sys.executable, __file__, load.server, *numbers))


def parse(text: str) -> list[Answer]:
    """Lists of [start, [arrival of each token-bearing chunk, …], tokens] in nanoseconds, one a request."""
    return [answer_from_stamps(start_ns, token_ns, tokens) for start_ns, token_ns, tokens in json.loads(text)]


def token_stamps(pieces: list[tuple[int, bytes]]) -> list[int]:
    """The arrival of each token-bearing event: the stamp of the read that brought its end."""
    found = []
    body = b""
    for stamp_ns, piece in pieces:
        *lines, body = (body + piece).split(b"\n\n")
        found += [stamp_ns] * sum(bears_token(line) for line in lines)
    return found


def bears_token(event: bytes) -> bool:
    """Whether an SSE event (between HTTP's chunk lines) carries text."""
    at = event.find(b"data: {")
    if at < 0:
        return False
    choices = json.loads(event[at + 6 :]).get("choices")
    return bool(choices and (choices[0]["delta"].get("content") or choices[0]["delta"].get("reasoning_content")))


def ask(connection: socket.socket, request: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Send and read to the end of the chunked body: t0 and every read with its stamp."""
    pieces = []
    start_ns = time.perf_counter_ns()
    connection.sendall(request)
    while True:
        piece = connection.recv(65536)
        pieces.append((time.perf_counter_ns(), piece))
        if piece.endswith(b"0\r\n\r\n"):  # events end with an empty line, so only the last chunk can
            return start_ns, pieces
        if not piece:
            raise SystemExit("the server closed the connection")


def main() -> None:
    """Arguments: server, requests, concurrency, tokens."""
    address = urlsplit(sys.argv[1])
    requests, concurrency, tokens = map(int, sys.argv[2:])
    body = json.dumps(
        {"model": MODEL, "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": PROMPT}]}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    request = (head + body).encode()
    answers: list[Any] = []

    def work(waiting: deque[int]) -> None:
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                try:
                    waiting.popleft()
                except IndexError:
                    return
                start_ns, pieces = ask(connection, request)
                stamps = token_stamps(pieces)
                answers.append((start_ns, stamps, len(stamps)))

    work(deque(range(WARM_UP)))
    answers.clear()
    waiting = deque(range(requests))
    threads = [threading.Thread(target=work, args=(waiting,)) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(sorted(answers), sys.stdout)


CLIENT = Client("raw socket", (), command, "stdout", parse, warm_up=WARM_UP)

if __name__ == "__main__":
    main()
