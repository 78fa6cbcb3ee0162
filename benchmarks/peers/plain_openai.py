"""The loop everybody writes with the ``openai`` package. Also run as a program of its own."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.client import MODEL, Client, Command, Load
from benchmarks.peers.raw_socket import PROMPT, parse

WARM_UP = 2


def command(_programs: Path, load: Load, _folder: Path) -> Command:
    """This file as a program."""
    numbers = (str(load.requests), str(load.concurrency), str(load.tokens))
    return Command((sys.executable, __file__, load.server, *numbers))


def main() -> None:
    """Arguments: server, requests, concurrency, tokens. Tokens are the usage's, or else one a chunk."""
    import openai

    requests, concurrency, tokens = map(int, sys.argv[2:])
    client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
    answers: list[tuple[int, list[int], int]] = []
    errors: list[Exception] = []

    def ask() -> None:
        stamps: list[int] = []
        counted = 0
        start_ns = time.perf_counter_ns()
        stream = client.chat.completions.create(
            model=MODEL,
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=tokens,
            messages=[{"role": "user", "content": PROMPT}],
        )
        for chunk in stream:
            delta = chunk.choices[0].delta if chunk.choices else None
            if delta and (delta.content or getattr(delta, "reasoning_content", None)):
                stamps.append(time.perf_counter_ns())
            if chunk.usage:
                counted = chunk.usage.completion_tokens
        answers.append((start_ns, stamps, counted or len(stamps)))

    def work(waiting: deque[int]) -> None:
        while not errors:
            try:
                waiting.popleft()
            except IndexError:
                return
            try:
                ask()
            except openai.APIError as error:
                errors.append(error)

    work(deque(range(WARM_UP)))
    answers.clear()
    waiting = deque(range(requests))
    threads = [threading.Thread(target=work, args=(waiting,)) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise SystemExit(str(errors[0]))
    json.dump(sorted(answers), sys.stdout)


CLIENT = Client("plain openai", (), command, "stdout", parse, warm_up=WARM_UP)

if __name__ == "__main__":
    main()
