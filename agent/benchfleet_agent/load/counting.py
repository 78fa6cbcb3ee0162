"""A tokenizer for servers that do not count. ``tokenizers`` is optional and imported when it is needed."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed

CountTokens = Callable[[str], int]
"""The number of tokens in a text, special tokens not added."""


class Tokenizer:
    """Counts with a ``tokenizer.json``, read at the first use: it takes 25 MB and more, and most servers count.

    Raises `WorkFailed`: ``unsupported`` without the library, ``invalid_spec`` when there is no such file, or (at the
    first use) when it is none.
    """

    def __init__(self, path: str) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise WorkFailed(Reason.UNSUPPORTED, "tokenizer_path needs the package tokenizers: pip install it")
        if not Path(path).is_file():
            raise WorkFailed(Reason.INVALID_SPEC, f"{path} is no tokenizer.json: there is no such file")
        self._path = path
        self._lock = threading.Lock()
        self._tokenizer: Any = None

    def __call__(self, text: str) -> int:
        """The tokens in a text."""
        if not text:
            return 0
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._read()
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _read(self) -> Any:
        try:
            return importlib.import_module("tokenizers").Tokenizer.from_file(self._path)
        except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
            raise WorkFailed(Reason.INVALID_SPEC, f"{self._path} is no tokenizer.json: {error}") from None
