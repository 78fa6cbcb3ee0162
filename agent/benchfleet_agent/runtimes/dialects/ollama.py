"""Ollama: its native API (https://github.com/ollama/ollama/blob/main/docs/api.md) beside the OpenAI one.

``GET /api/ps`` tells how much of a loaded model lies in device memory, which gives away a silent fallback to the CPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model, Progress
from benchfleet_agent.runtimes.dialects.client import Client, Refused
from benchfleet_agent.runtimes.dialects.generic import (
    PROBE_S,
    Dialect,
    Ready,
    alias_of,
    choose,
    entries,
    lower,
    text,
    whole,
)

KEEP_ALIVE = "10m"
"""How long the model stays between the load and the first request; each request then sets the server's own time."""


class Ollama(Dialect):
    """An Ollama server."""

    name: ClassVar[str] = "ollama"
    title: ClassVar[str] = "Ollama"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"list", "pull", "load", "unload", "remove", "usage_in_stream", "can_pick_variant", "multi_model"}
    )
    tells_device: ClassVar[bool] = True
    health_path: ClassVar[str] = "/api/version"

    @classmethod
    def detect(cls, client: Client) -> Dialect | None:
        """``GET /api/version``."""
        found = client.probe("/api/version", PROBE_S)
        version = text(found.get("version")) if isinstance(found, dict) else None
        return None if version is None else cls(client, version)

    def models(self) -> list[Model]:
        """What is on the host (``/api/tags``), with what is in memory (``/api/ps``)."""
        found = entries("/api/tags", self.client.get("/api/tags"), "models", "name")
        running = self._running()
        return [_model(entry, running.get(entry["name"])) for entry in found]

    def resolve(self, model: str, device: str | None) -> Model:
        """As every dialect; a device that is asked for is held against what ``/api/ps`` says after the load."""
        listed = self.models()
        found = choose(_with_tag(model, [one.variant for one in listed]), None, listed, self.client.root)
        return found if device is None else replace(found, device=device, execution_provider=device)

    def load(self, model: Model, timeout_s: float) -> Ready:
        """Load by a request without a prompt, then ask where it lies."""
        present = self._running()
        load_ns = None
        if model.variant not in present:
            begin = time.perf_counter_ns()
            try:
                body = {"model": model.variant, "keep_alive": KEEP_ALIVE, "stream": False}
                self.client.send("POST", "/api/generate", body, timeout_s)
            except Refused as error:
                raise _load_failure(model.variant, error) from None
            load_ns = time.perf_counter_ns() - begin
            present = self._running()
        provider = placement(present.get(model.variant))
        return Ready(model.variant, self.client.base_url, load_ns, provider, loaded_here=load_ns is not None)

    def unload(self, model: Model, timeout_s: float) -> None:
        """``keep_alive: 0``. Raises `WorkFailed` ``not_loaded``."""
        if model.variant not in self._running():
            raise WorkFailed(Reason.NOT_LOADED, f"{model.variant} is not in Ollama's memory")
        self.client.send("POST", "/api/generate", {"model": model.variant, "keep_alive": 0, "stream": False}, timeout_s)

    def source(self, model: str) -> str | None:
        """A registry in front of namespace and model (``hf.co/…``), which Ollama would ask in place of its library."""
        parts = model.split("/")
        named = len(parts) > 2 or (len(parts) > 1 and (set(".:") & set(parts[0]) or parts[0] == "localhost"))
        return f"https://{parts[0]}" if named and "://" not in model else super().source(model)

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """Download from Ollama's library, layer by layer. A cancelled one is resumed by the next."""
        done: dict[str, tuple[int, int]] = {}
        for line in self.client.lines("/api/pull", {"model": model.variant, "stream": True}, timeout_s):
            if cancelled():
                raise WorkFailed(Reason.CANCELLED, f"the download of {model.variant} was ended on request")
            said = _line(line)
            if problem := text(said.get("error")):
                reason = Reason.DISK_FULL if "no space left" in problem else Reason.DOWNLOAD_FAILED
                reason = Reason.MODEL_NOT_FOUND if "file does not exist" in problem else reason
                raise WorkFailed(reason, f"Ollama could not download {model.variant}: {problem}")
            if (digest := text(said.get("digest"))) and (total := whole(said.get("total"))):
                done[digest] = (whole(said.get("completed")) or 0, total)
            fraction = sum(got for got, _ in done.values()) / sum(of for _, of in done.values()) if done else None
            progress(f"{model.variant}: {text(said.get('status')) or 'downloading'}", fraction)
            if said.get("status") == "success":
                return self.resolve(model.variant, None)
        raise WorkFailed(Reason.DOWNLOAD_FAILED, f"Ollama ended the download of {model.variant} without saying why")

    def remove(self, model: Model) -> int | None:
        """Delete it; layers that other models share stay, so the bytes freed are not known."""
        try:
            self.client.send("DELETE", "/api/delete", {"model": model.variant})
        except Refused as error:
            if error.status == 404:
                raise WorkFailed(Reason.MODEL_NOT_FOUND, f"Ollama has no model {model.variant}") from None
            raise
        return None

    def _running(self) -> dict[str, dict[str, Any]]:
        found = entries("/api/ps", self.client.get("/api/ps"), "models", "name")
        return {entry["name"]: entry for entry in found}


def placement(running: Mapping[str, Any] | None) -> str | None:
    """Where a loaded model lies, from ``size`` and ``size_vram`` of ``/api/ps``: ``cpu``, ``gpu`` or both."""
    if running is None:
        return None
    size, on_device = whole(running.get("size")), running.get("size_vram", 0)
    if size is None or not isinstance(on_device, int):
        return None
    if on_device <= 0:
        return "cpu"
    return "gpu" if on_device >= size else f"gpu+cpu ({on_device / size:.0%} in device memory)"


def _model(entry: Mapping[str, Any], running: Mapping[str, Any] | None) -> Model:
    name = str(entry["name"])
    details = entry.get("details")
    details = details if isinstance(details, dict) else {}
    tags = [text(details.get("parameter_size")), text(details.get("quantization_level"))]
    where = placement(running)
    return Model(
        alias=alias_of(name),
        variant=name,
        device=where.partition("+")[0] if where else None,
        execution_provider=where,
        size_bytes=whole(entry.get("size")),
        # Of a loaded model: the context it was loaded with.
        context_length=whole(running.get("context_length")) if running else None,
        capabilities=tuple(tag.lower() for tag in tags if tag),
        cached=True,
        loaded=running is not None,
        quantisation=lower(tags[1]),
    )


def _with_tag(model: str, names: list[str]) -> str:
    """A name without a tag means ``:latest`` to Ollama, if that is there."""
    latest = f"{model}:latest"
    return latest if model not in names and latest in names else model


def _line(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _load_failure(variant: str, error: Refused) -> WorkFailed:
    lower = error.said.lower()
    if error.status == 404:
        return WorkFailed(Reason.MODEL_NOT_FOUND, f"Ollama has no model {variant}; pull it first")
    if "memory" in lower:
        return WorkFailed(Reason.OUT_OF_MEMORY, f"Ollama could not load {variant}: {error.said[:300]}")
    return WorkFailed(Reason.LOAD_FAILED, f"Ollama could not load {variant}: {error.said[:300]}")
