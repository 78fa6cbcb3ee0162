"""Prompt sets from files: ``.txt``, ``.json``, ``.jsonl`` and ``.csv``.

- ``.txt``: one prompt a line; blank lines and lines that begin with ``#`` are skipped.
- ``.json``: an array of strings, or of objects with ``prompt`` or ``messages``, and optionally ``id`` and
  ``max_tokens`` (``tags`` and ``expected`` are allowed and not used yet).
- ``.jsonl``: one such string or object a line.
- ``.csv``: a column ``prompt``, optionally ``id`` and ``max_tokens``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchfleet_controller.plan import ChatMessage, Prompt, PromptSet

MAXIMUM_FILE_BYTES = 64 << 20
MAXIMUM_PROMPT_CHARACTERS = 1 << 20
ROLES = ("system", "user", "assistant")
_KEYS = {"id", "prompt", "messages", "max_tokens", "tags", "expected"}


class PromptError(Exception):
    """A prompt file makes no sense; says file, place and reason."""


def inline_prompts(texts: Sequence[str], name: str = "inline") -> PromptSet:
    """A set of the texts themselves. Raises `PromptError`."""
    return _set(name, [(f"prompt {index}", text) for index, text in enumerate(texts, start=1)], name)


def load_prompts(path: Path) -> PromptSet:
    """A set from a file, named after it. Raises `PromptError` with file, line or index, and reason."""
    readers = {".txt": _text, ".json": _json, ".jsonl": _json_lines, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PromptError(f"{path}: prompts are read from {', '.join(readers)} files")
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise PromptError(f"{path} is over 64 MiB; split it")
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return _set(path.stem, list(reader(str(path), content)), str(path))


def _text(where: str, content: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"line {number}", line.strip()


def _json(where: str, content: str) -> Iterator[tuple[str, Any]]:
    try:
        document = json.loads(content)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    if isinstance(document, dict) and set(document) == {"prompts"}:
        document = document["prompts"]
    if not isinstance(document, list):
        raise PromptError(f"{where}: expected an array of strings or objects")
    for index, entry in enumerate(document):
        yield f"entry {index + 1}", entry


def _json_lines(where: str, content: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise PromptError(f"{where}: line {number}, column {error.colno}: {error.msg}") from None


def _csv(where: str, content: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(content, newline=""))
    if "prompt" not in (reader.fieldnames or ()):
        raise PromptError(f"{where}: line 1: the header needs a column named prompt")
    try:
        for row in reader:
            entry: dict[str, Any] = {"prompt": row["prompt"] or ""}
            if row.get("id"):
                entry["id"] = row["id"]
            if row.get("max_tokens"):
                entry["max_tokens"] = _whole(row["max_tokens"] or "")
            yield f"line {reader.line_num}", entry
    except csv.Error as error:
        raise PromptError(f"{where}: line {reader.line_num}: {error}") from None


def _set(name: str, entries: Sequence[tuple[str, Any]], where: str) -> PromptSet:
    prompts: dict[str, Prompt] = {}
    for index, (place, entry) in enumerate(entries, start=1):
        prompt = _prompt(f"{where}: {place}", f"p{index}", entry)
        if prompt.prompt_id in prompts:
            raise PromptError(f"{where}: {place}: the id {prompt.prompt_id!r} is used twice")
        prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise PromptError(f"{where}: there is no prompt in it")
    return PromptSet(name, tuple(prompts.values()))


def _prompt(where: str, default_id: str, entry: Any) -> Prompt:
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise PromptError(f"{where}: a prompt is a string or an object, not {type(entry).__name__}")
    if unknown := sorted(set(entry) - _KEYS):
        raise PromptError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    if ("prompt" in entry) == ("messages" in entry):
        raise PromptError(f"{where}: give either prompt or messages")
    prompt_id = entry.get("id", default_id)
    if not isinstance(prompt_id, str) or not prompt_id.isprintable() or not 0 < len(prompt_id) <= 200:
        raise PromptError(f"{where}: id must be a short printable text")
    max_tokens = entry.get("max_tokens")
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise PromptError(f"{where}: max_tokens must be a whole number of at least 1")
    given = entry.get("messages", [{"role": "user", "content": entry.get("prompt")}])
    if not isinstance(given, list) or not given:
        raise PromptError(f"{where}: messages must be a list that is not empty")
    return Prompt(prompt_id, tuple(_message(where, message) for message in given), max_tokens)


def _message(where: str, message: Any) -> ChatMessage:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise PromptError(f"{where}: a message is an object with role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"{where}: role must be one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise PromptError(f"{where}: the prompt is empty")
    if len(content) > MAXIMUM_PROMPT_CHARACTERS:
        raise PromptError(f"{where}: the prompt is over a million characters")
    return ChatMessage(role, content)


def _whole(text: str) -> int | str:
    return int(text) if text.strip().isdecimal() else text
