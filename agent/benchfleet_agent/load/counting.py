"""A tokenizer for servers whose answers do not say how many tokens they hold, in a process of its own.

Reading a ``tokenizer.json`` takes half a second during which the interpreter can do nothing else, and 25 MB and more:
in the load process that would falsify the stamps of every open stream. So `benchfleet_agent.load.token_counter` reads
it before the first request is sent, and counts what it is given; or asks a server that counts when it is asked.
``tokenizers`` is optional.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import Child, ChildGone, ChildTimeout

START_S = 30.0
"""Vocabularies of 250,000 tokens take 3 s on a slow machine."""
COUNT_S = 30.0

CountTokens = Callable[[str], int]
"""The number of tokens in a text, special tokens not added."""


class Tokenizer:
    """The process that counts, ready. May be called by several threads.

    ``source`` is what `benchfleet_agent.load.token_counter` is told: a file's ``path``, or the ``url``, ``model`` and
    ``api_key`` of a server. Raises `WorkFailed`: ``unsupported`` without the library that reads files, ``invalid_spec``
    when it does not count; a call raises ``internal`` when it does no longer.
    """

    def __init__(self, source: Mapping[str, str]) -> None:
        if "path" in source and importlib.util.find_spec("tokenizers") is None:
            raise WorkFailed(Reason.UNSUPPORTED, "tokenizer_path needs the package tokenizers: pip install it")
        self._lock = threading.Lock()
        command = [sys.executable, "-m", "benchfleet_agent.load.token_counter"]
        self._child = Child("tokenizer", command, log_path=Path(os.devnull))
        if (answer := self._ask(source, START_S))["event"] != "ready":
            self.close()
            where = f"{source['path']} is no tokenizer.json" if "path" in source else f"{source['url']} does not count"
            raise WorkFailed(Reason.INVALID_SPEC, f"{where}: {answer.get('message')}")

    def __call__(self, text: str) -> int:
        """The tokens in a text."""
        if not text:
            return 0
        with self._lock:
            answer = self._ask({"text": text}, COUNT_S)
        if answer["event"] != "tokens":
            raise WorkFailed(Reason.INTERNAL, f"the tokens were not counted: {answer.get('message')}")
        return int(answer["count"])

    def close(self) -> None:
        """End the process."""
        self._child.kill()

    def _ask(self, message: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
        try:
            self._child.send(message)
            return self._child.receive(timeout_s)
        except (ChildGone, ChildTimeout) as error:
            self.close()
            raise WorkFailed(Reason.INTERNAL, str(error)) from None
