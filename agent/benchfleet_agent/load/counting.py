"""A tokenizer for servers that do not count. ``tokenizers`` is optional and imported when asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from benchfleet.failures import Reason, WorkFailed

CountTokens = Callable[[str], int]
"""The number of tokens in a text, special tokens not added."""


def load_tokenizer(path: str) -> CountTokens:
    """A counter from a ``tokenizer.json``.

    Raises `WorkFailed` ``unsupported`` without the library, ``invalid_spec`` when the file is none.
    """
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        raise WorkFailed(Reason.UNSUPPORTED, "tokenizer_path needs the package tokenizers: pip install it") from None
    try:
        tokenizer = library.Tokenizer.from_file(path)
    except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
        raise WorkFailed(Reason.INVALID_SPEC, f"{path} is no tokenizer.json: {error}") from None

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) if text else 0

    return count
