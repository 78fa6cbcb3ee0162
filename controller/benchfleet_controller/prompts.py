r"""Prompt sets from texts and from files: ``.txt``, ``.json``, ``.jsonl`` and ``.csv``, in UTF-8.

- ``.txt``: one prompt a line; blank lines and lines that begin with ``#`` are skipped. One a line, and not a
  paragraph each, because that is what people paste; a prompt of several lines goes into JSON (``\n``) or CSV.
- ``.json``: an array of strings, or of objects with ``prompt`` or ``messages``, and optionally ``id`` and
  ``max_tokens``, ``tags`` and ``expected`` (what a good answer mentions); or an object whose one key
  ``prompts`` holds such an array.
- ``.jsonl``: one such string or object a line.
- ``.csv``: a column ``prompt``, optionally ``id`` and ``max_tokens``; separated by commas.

Prompts without an id are called p1, p2, … by their place in the set.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchfleet_controller.plan import ChatMessage, Prompt, PromptSet
from benchfleet_controller.quality import AspectError, check_aspects

MAXIMUM_FILE_BYTES = 16 << 20
MAXIMUM_PROMPTS = 10_000
MAXIMUM_PROMPT_CHARACTERS = 1 << 20
MAXIMUM_TOKENS = 1 << 20
ROLES = ("system", "user", "assistant")
_KEYS = ("id", "prompt", "messages", "max_tokens", "tags", "expected")
_COLUMNS = ("id", "prompt", "max_tokens")
_PROBLEMS_TOLD = 20
_NO_SPACE = re.compile(r"[^\s,]")

_KINDS = {dict: "an object", list: "an array", str: "a text", bool: "true or false", type(None): "null"}


class PromptError(Exception):
    """Prompts make no sense; one line a problem, each saying file, place and reason."""


def inline_prompts(entries: Sequence[Any], name: str = "inline", where: str = "") -> PromptSet:
    """A set of texts, or of objects as in ``.json`` files; ``where`` begins the errors. Raises `PromptError`."""
    return _set(name, ((f"prompt {index}", entry) for index, entry in enumerate(entries, start=1)), where or name)


def load_prompts(path: Path, name: str | None = None) -> PromptSet:
    """A set from a file, named after it unless named. Raises `PromptError` with file, line or place, and reason."""
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise PromptError(f"{path}: prompts are read from {', '.join(_READERS)} files")
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise PromptError(f"{path} is over {MAXIMUM_FILE_BYTES >> 20} MiB; split it into several sets")
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return _set(path.stem if name is None else name, read(str(path), content), str(path))


def _text(_where: str, content: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: it also breaks at U+2028 and form feeds, which editors do not count as lines.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"line {number}", line.strip()


def _json(where: str, content: str) -> Iterator[tuple[str, Any]]:
    document = _parsed(where, content, 1)
    if isinstance(document, dict) and set(document) == {"prompts"}:
        document = document["prompts"]
    if not isinstance(document, list):
        raise PromptError(f"{where}: expected an array of texts or objects, not {_kind(document)}")
    lines = _lines_of_elements(content)
    for index, entry in enumerate(document, start=1):
        line = next(lines, None)  # none when a key came twice
        yield f"prompt {index}" if line is None else f"line {line}, prompt {index}", entry


def _lines_of_elements(content: str) -> Iterator[int]:
    """Where each element of the document's first array begins; the document is known to be JSON."""
    decode = json.JSONDecoder().raw_decode
    line, counted, end = 1, 0, content.index("[") + 1
    while (first := _NO_SPACE.search(content, end)) is not None and first[0] != "]":
        line += content.count("\n", counted, first.start())
        counted = first.start()
        yield line
        end = decode(content, counted)[1]


def _json_lines(where: str, content: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parsed(where, line, number)


def _parsed(where: str, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise PromptError(f"{where}: line {line}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; arrays nested without end
        raise PromptError(f"{where}: line {first_line}: cannot be read: {error}") from None


def _csv(where: str, content: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        columns = [(column or "").strip().lower() for column in reader.fieldnames or ()]
        if "prompt" not in columns:
            raise PromptError(f"{where}: line 1: the header needs a column named prompt (separate columns by commas)")
        if unknown := [column for column in columns if column not in _COLUMNS]:
            raise PromptError(f"{where}: line 1: unknown column {unknown[0]!r}; known are {', '.join(_COLUMNS)}")
        reader.fieldnames = columns
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row:
                raise PromptError(f"{where}: {place}: more cells than columns; put quotes around texts with commas")
            entry: dict[str, Any] = {"prompt": row["prompt"] or ""}
            if row.get("id"):
                entry["id"] = row["id"]
            if tokens := (row.get("max_tokens") or "").strip():
                entry["max_tokens"] = int(tokens) if tokens.isdecimal() and len(tokens) < 10 else tokens
            yield place, entry
    except csv.Error as error:
        raise PromptError(f"{where}: line {reader.line_num}: {error}; long texts fit better into .jsonl") from None


_READERS: dict[str, Callable[[str, str], Iterator[tuple[str, Any]]]] = {
    ".txt": _text,
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
}


def _set(name: str, entries: Iterator[tuple[str, Any]], where: str) -> PromptSet:
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    if not name.isprintable() or not 0 < len(name) <= 200:
        problems.append(f"{where}: {name[:100]!r} cannot be a prompt set's name; use letters, digits and dashes")
    for index, (place, entry) in enumerate(entries, start=1):
        if index > MAXIMUM_PROMPTS:
            problems.append(f"{where}: over {MAXIMUM_PROMPTS} prompts; split them into several sets")
            break
        try:
            prompt = _prompt(f"{where}: {place}", f"p{index}", entry)
        except PromptError as error:
            problems.append(str(error))
            continue
        if first := places.get(prompt.prompt_id):
            problems.append(
                f"{where}: {place}: the id {prompt.prompt_id!r} is already that of {first}; ids differ in a set"
            )
        prompts[prompt.prompt_id] = prompt
        places[prompt.prompt_id] = place
    if not prompts and not problems:
        problems.append(f"{where}: there is no prompt in it; write at least one")
    if len(problems) > _PROBLEMS_TOLD:
        problems[_PROBLEMS_TOLD:] = [f"{where}: and {len(problems) - _PROBLEMS_TOLD} problems more"]
    if problems:
        raise PromptError("\n".join(problems))
    return PromptSet(name, tuple(prompts.values()))


def _prompt(where: str, default_id: str, entry: Any) -> Prompt:
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise PromptError(f"{where}: a prompt is a text or an object, not {_kind(entry)}")
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            raise PromptError(f"{where}: unknown key {key[:100]!r}; {hint}")
    if ("prompt" in entry) == ("messages" in entry):
        raise PromptError(f"{where}: give either prompt or messages")
    prompt_id = entry.get("id", default_id)
    if isinstance(prompt_id, int) and not isinstance(prompt_id, bool):
        prompt_id = str(prompt_id)
    if not isinstance(prompt_id, str) or not prompt_id.isprintable() or not 0 < len(prompt_id) <= 200:
        raise PromptError(f"{where}: id must be a short printable text")
    max_tokens = entry.get("max_tokens")
    if max_tokens is not None and (
        isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or not 1 <= max_tokens <= MAXIMUM_TOKENS
    ):
        raise PromptError(f"{where}: max_tokens must be a whole number between 1 and {MAXIMUM_TOKENS}")
    tags, expected = (_texts(where, key, entry.get(key, [])) for key in ("tags", "expected"))
    try:
        check_aspects(expected)
    except AspectError as error:
        raise PromptError(f"{where}: {error}") from None
    given = entry.get("messages", [{"role": "user", "content": entry.get("prompt")}])
    if not isinstance(given, list) or not given:
        raise PromptError(f"{where}: messages must be a list that is not empty")
    return Prompt(prompt_id, tuple(_message(where, message) for message in given), max_tokens, tags, expected)


def _texts(where: str, key: str, values: Any) -> tuple[str, ...]:
    listed = [values] if isinstance(values, str) else values
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise PromptError(f"{where}: {key} must be a text or a list of texts")
    return tuple(listed)


def _message(where: str, message: Any) -> ChatMessage:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise PromptError(f"{where}: a message is an object with role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"{where}: role must be one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise PromptError(f"{where}: the prompt must be a text, not {_kind(content)}")
    if not content.strip():
        raise PromptError(f"{where}: the prompt is empty")
    if len(content) > MAXIMUM_PROMPT_CHARACTERS:
        raise PromptError(f"{where}: the prompt is over {MAXIMUM_PROMPT_CHARACTERS} characters; shorten it")
    try:
        content.encode()
    except UnicodeEncodeError:  # half an emoji, as JSON's \ud83d alone gives; it cannot be sent
        raise PromptError(f"{where}: the prompt holds half a surrogate pair, which is no text") from None
    return ChatMessage(role, content)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
