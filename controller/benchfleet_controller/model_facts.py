"""What users say of models: ``models.json``, ``{alias: {"capabilities": ["chat"], "size_mb": 800}}``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchfleet_controller.plan import ModelFacts

MAXIMUM_FILE_BYTES = 1 << 20
_KEYS = ("capabilities", "size_mb")


class ModelFactsError(Exception):
    """A ``models.json`` makes no sense; one line a problem, each saying file, place and reason."""


def load_model_facts(path: Path) -> tuple[ModelFacts, ...]:
    """The models of a file, in its order. Raises `ModelFactsError` with every problem at once."""
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise ModelFactsError(f"{path} is over {MAXIMUM_FILE_BYTES >> 20} MiB: it names models, nothing else")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelFactsError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ModelFactsError(f"{path} is not UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ModelFactsError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFactsError(f"{path}: cannot be read: {error}") from None
    return model_facts(document, str(path))


def model_facts(document: Any, where: str) -> tuple[ModelFacts, ...]:
    """The models of a parsed document; ``where`` begins the errors. Raises `ModelFactsError`."""
    if not isinstance(document, dict) or not document:
        raise ModelFactsError(f'{where}: expected {{"alias": {{"capabilities": ["chat"], "size_mb": 800}}}}')
    problems: list[str] = []
    found = []
    for alias, entry in document.items():
        place = f"{where}: {ascii(alias)[1:-1][:100]}"
        if not alias.strip() or not alias.isprintable():
            problems.append(f"{place}: a model's name must be printable and not empty")
        elif not isinstance(entry, dict):
            problems.append(f'{place}: must be an object such as {{"capabilities": ["chat"], "size_mb": 800}}')
        elif unknown := [key for key in entry if key not in _KEYS]:
            problems.append(f"{place}: unknown key {unknown[0][:100]!r}; known are {', '.join(_KEYS)}")
        else:
            capabilities, size = entry.get("capabilities", []), entry.get("size_mb")
            if not isinstance(capabilities, list) or not all(isinstance(tag, str) and tag for tag in capabilities):
                problems.append(f"{place}: capabilities must be a list of texts")
            elif size is not None and (isinstance(size, bool) or not isinstance(size, int | float) or size < 0):
                problems.append(f"{place}: size_mb must be a number of megabytes")
            else:
                size_bytes = None if size is None else int(size * 1_000_000)
                found.append(ModelFacts(alias, tuple(capabilities), size_bytes))
    if problems:
        raise ModelFactsError("\n".join(problems))
    return tuple(found)
