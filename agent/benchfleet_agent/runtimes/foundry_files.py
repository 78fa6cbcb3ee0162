"""A model's directory as files: what its configuration says, how large it is, whether it arrived whole.

Foundry Local believes a download that was interrupted by sleep: the files have their full length and zeros inside,
count as cached and fail at the load (https://github.com/microsoft/Foundry-Local/issues/906). Its catalog names the
size of a model in mebibytes and no digests, so damage is looked for in the files themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_NAME = "genai_config.json"
CPU_PROVIDER = "CPUExecutionProvider"
UNFINISHED_NAME = "download.tmp"
"""Foundry Local's sign in a model's directory that its download has not ended."""
SIZE_TOLERANCE = 0.02
"""The catalog rounds to mebibytes and need not count small files."""
_BLOCK_BYTES = 4096
_LOOKS = 64
"""Blocks looked at in a large file, evenly spaced and its last one among them."""
_MOST_EMPTY = _LOOKS // 8
_LARGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What genai_config.json says; None: it does not.

    https://onnxruntime.ai/docs/genai/reference/config.html
    """

    context_length: int | None = None
    layers: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    execution_provider: str | None = None
    """The provider it selects for the decoder; none listed means the CPU."""


def read_facts(directory: Path) -> ModelFacts | None:
    """The facts of a model's directory; None when it has no configuration that can be read."""
    config = _config(directory)
    if config is None:
        return None
    model = config["model"]
    decoder = model.get("decoder")
    decoder = decoder if isinstance(decoder, dict) else {}
    options = decoder.get("session_options")
    providers = options.get("provider_options", []) if isinstance(options, dict) else []
    named = [name for entry in providers if isinstance(entry, dict) for name in entry]
    return ModelFacts(
        context_length=_count(model, "context_length"),
        layers=_count(decoder, "num_hidden_layers"),
        kv_heads=_count(decoder, "num_key_value_heads") or _count(decoder, "num_attention_heads"),
        head_size=_count(decoder, "head_size"),
        execution_provider=named[0] if named else CPU_PROVIDER,
    )


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory; what cannot be looked at counts nothing."""
    return sum(size for _, size in _files(directory))


def damage_of(directory: Path, expected_bytes: int | None = None) -> str | None:
    """Why a model's directory is not whole, for people; None: nothing speaks against it.

    ``expected_bytes`` is the catalog's figure. Reads the configuration and some blocks of each large file.
    """
    if (directory / UNFINISHED_NAME).exists() or (directory.parent / UNFINISHED_NAME).exists():
        return "its download has not ended"
    config = _config(directory)
    if config is None:
        return f"{CONFIG_NAME} is missing or no model configuration"
    missing = [name for name in _graphs(config["model"]) if not (directory / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    found = size_of(directory)
    if expected_bytes and found < expected_bytes * (1 - SIZE_TOLERANCE) - _LARGE_BYTES:
        return f"its files hold {found} bytes, the catalog says {expected_bytes}"
    for path, size in _files(directory):
        if size == 0 and path.suffix in (".onnx", ".data", ".json"):
            return f"{path.name} is empty"
        if size >= _LARGE_BYTES and _is_hollow(path, size):
            return f"{path.name} has its length, but long stretches of it are zeros"
    return None


def _is_hollow(path: Path, size: int) -> bool:
    """Whether the end or an eighth of the blocks looked at are nothing but zeros; weights have no such stretches."""
    nothing = bytes(_BLOCK_BYTES)
    empty = 0
    last = size - _BLOCK_BYTES
    try:
        with path.open("rb") as file:
            for look in range(_LOOKS):
                file.seek(last * look // (_LOOKS - 1))
                empty += file.read(_BLOCK_BYTES) == nothing
    except OSError:
        return True
    return empty > _MOST_EMPTY


def _config(directory: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and isinstance(config.get("model"), dict) else None


def _graphs(model: dict[str, Any]) -> Iterator[str]:
    """The graph files a configuration names: one a part (decoder, embedding, vision, …)."""
    for part in model.values():
        if isinstance(part, dict) and isinstance(part.get("filename"), str) and part["filename"]:
            yield part["filename"]


def _files(directory: Path) -> Iterator[tuple[Path, int]]:
    for path in directory.rglob("*"):
        try:
            if path.is_file():
                yield path, path.stat().st_size
        except OSError:
            continue


def _count(table: dict[str, Any], name: str) -> int | None:
    value = table.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
