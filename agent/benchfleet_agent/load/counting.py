"""A tokenizer for servers that do not count, in a process of its own. ``tokenizers`` is optional.

Reading a ``tokenizer.json`` takes half a second during which the interpreter can do nothing else, and 25 MB and more:
in the load process that would falsify the stamps of every open stream. So `benchfleet_agent.load.token_counter` reads
it before the first request is sent, and counts what it is given.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable
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

    Raises `WorkFailed`: ``unsupported`` without the library, ``invalid_spec`` when the file is no tokenizer; a call
    raises ``internal`` when the process is gone.
    """

    def __init__(self, path: str) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise WorkFailed(Reason.UNSUPPORTED, "tokenizer_path needs the package tokenizers: pip install it")
        self._lock = threading.Lock()
        command = [sys.executable, "-m", "benchfleet_agent.load.token_counter", path]
        self._child = Child("tokenizer", command, log_path=Path(os.devnull))
        if (answer := self._answer(START_S))["event"] != "ready":
            self.close()
            raise WorkFailed(Reason.INVALID_SPEC, f"{path} is no tokenizer.json: {answer.get('message')}")

    def __call__(self, text: str) -> int:
        """The tokens in a text."""
        if not text:
            return 0
        with self._lock:
            try:
                self._child.send({"text": text})
            except ChildGone as error:
                raise WorkFailed(Reason.INTERNAL, str(error)) from None
            return int(self._answer(COUNT_S)["count"])

    def close(self) -> None:
        """End the process."""
        self._child.kill()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            return self._child.receive(timeout_s)
        except (ChildGone, ChildTimeout) as error:
            self.close()
            raise WorkFailed(Reason.INTERNAL, str(error)) from None
