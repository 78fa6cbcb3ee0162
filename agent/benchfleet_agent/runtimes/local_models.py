"""Models that lie in the operator's own directories: found under the roots, named, described.

A directory is a model when it holds genai_config.json. A file ``benchfleet.toml`` beside it may say what that file
cannot, every key optional::

    alias = "my-model"             # default: the directory's name
    version = 2                    # default: 1
    license = "mit"
    quantisation = "int4"          # how its weights are stored
    capabilities = ["tools"]
    reasoning = ["<think>", "</think>"]   # what begins and ends its reasoning, which is then streamed apart
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model
from benchfleet_agent.runtimes.foundry_files import CONFIG_NAME, CPU_PROVIDER, ModelFacts, read_facts, size_of

DECLARATION_NAME = "benchfleet.toml"
DEEPEST = 4
"""Levels below a root that are looked at: publisher, model, variant, and one to spare."""
MOST_DIRECTORIES = 5_000
"""A root with more is a mistake (someone's home directory); the rest is left out."""
TASK = "chat-completion"
_NOT_IN_NAMES = re.compile(r"[^a-z0-9._-]+")
_GPU = ("cuda", "dml", "webgpu", "trtrtx", "tensorrt", "rocm", "migraphx")
_NPU = ("qnn", "vitis", "ryzenai")
_PROVIDERS = {
    "cpu": CPU_PROVIDER,
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
_TYPES: dict[str, type] = {
    "alias": str,
    "version": int,
    "license": str,
    "quantisation": str,
    "capabilities": list,
    "reasoning": list,
}


@dataclass(frozen=True, slots=True)
class LocalModel:
    """One directory with a model in it."""

    path: Path
    model: Model
    reasoning: tuple[str, str] | None = None
    """What begins and ends its reasoning; None: it is not declared to reason."""


def scan(roots: Sequence[Path]) -> list[LocalModel]:
    """The models under the roots, by path. Looks at directories only, `DEEPEST` levels deep, and follows no links.

    Of two with one variant id the first keeps it. A directory whose declaration makes no sense is left out.
    """
    found: dict[str, LocalModel] = {}
    for root in roots:
        for directory in _directories(root):
            try:
                one = describe(directory)
            except WorkFailed:
                continue
            found.setdefault(one.model.variant, one)
    return list(found.values())


def describe(directory: Path) -> LocalModel:
    """What a model's directory is. Raises `WorkFailed` ``corrupt_model`` saying what is wrong with it."""
    facts = read_facts(directory)
    if facts is None:
        message = f"{directory} is no model directory: it holds no {CONFIG_NAME} that can be read"
        raise WorkFailed(Reason.CORRUPT_MODEL, message)
    said = _declaration(directory)
    alias = _NOT_IN_NAMES.sub("-", str(said.get("alias") or directory.name).lower()).strip("-._") or "model"
    device = _device(facts)
    markers = said.get("reasoning")
    capabilities = [TASK, *(str(word) for word in said.get("capabilities", []) if word != TASK)]
    if markers and "reasoning" not in capabilities:
        capabilities.append("reasoning")
    model = Model(
        alias=alias,
        variant=f"{alias}-local-{device}:{said.get('version', 1)}",
        device=device,
        execution_provider=provider_name(facts.execution_provider),
        size_bytes=size_of(directory),
        license=said.get("license"),
        context_length=facts.context_length,
        capabilities=tuple(capabilities),
        cached=True,
        quantisation=said["quantisation"].lower() if said.get("quantisation") else None,
    )
    return LocalModel(directory, model, (markers[0], markers[1]) if markers else None)


def _directories(root: Path) -> Iterator[Path]:
    """Directories with a model in them, in order; below one there is no other."""
    base = len(root.parts)
    for seen, (folder, below, names) in enumerate(os.walk(root)):
        path = Path(folder)
        if seen >= MOST_DIRECTORIES:
            return
        if CONFIG_NAME in names:
            below.clear()
            yield path
        elif len(path.parts) - base >= DEEPEST:
            below.clear()
        else:
            below[:] = sorted(name for name in below if not name.startswith("."))


def _declaration(directory: Path) -> dict[str, Any]:
    path = directory / DECLARATION_NAME
    if not path.is_file():
        return {}
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkFailed(Reason.CORRUPT_MODEL, f"{path} cannot be read: {error}") from None
    for key, value in said.items():
        if key not in _TYPES:
            message = f"{path}: unknown key {key}; there are {', '.join(sorted(_TYPES))}"
            raise WorkFailed(Reason.CORRUPT_MODEL, message)
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise WorkFailed(Reason.CORRUPT_MODEL, f"{path}: {key} must be a {_TYPES[key].__name__}")
    markers = said.get("reasoning", ["", ""])
    if len(markers) != 2 or not all(isinstance(marker, str) for marker in markers):
        raise WorkFailed(Reason.CORRUPT_MODEL, f"{path}: reasoning must be two texts, its begin and its end")
    if said.get("version", 1) < 0:
        raise WorkFailed(Reason.CORRUPT_MODEL, f"{path}: version must not be negative")
    return said


def provider_name(named: str | None) -> str | None:
    """The provider's name as ONNX Runtime has it; genai_config.json says ``cuda`` for CUDAExecutionProvider."""
    return _PROVIDERS.get(named.lower(), named) if named else None


def _device(facts: ModelFacts) -> str:
    named = (facts.execution_provider or "").lower()
    if any(word in named for word in _GPU):
        return "gpu"
    return "npu" if any(word in named for word in _NPU) else "cpu"
