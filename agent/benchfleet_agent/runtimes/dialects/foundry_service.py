"""Foundry Local's legacy service (up to 0.8): ``/openai/*`` and ``/foundry/list``. Never run here: from its documents.

Sources: https://learn.microsoft.com/azure/foundry-local/reference/reference-rest and the client of
foundry-local-sdk 0.5.1. Loaded models leave memory after 600 s without a request unless the load says otherwise.
"""

from __future__ import annotations

import json
import logging
import re
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter_ns
from typing import Any, ClassVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model, Progress
from benchfleet_agent.runtimes.dialects.client import Client, Refused, Unanswered
from benchfleet_agent.runtimes.dialects.foundry_sdk import alias_of, foundry_model
from benchfleet_agent.runtimes.dialects.generic import PROBE_S, Dialect, Ready, entries, names_of, text, whole

IDLE_S = 3600
"""How long a model we load may stay without a request, pauses between rounds included."""
CATALOG_S = 30.0
_MEGABYTE = 1 << 20
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_FRACTION = re.compile(r",\s*(\d(?:\.\d+)?)\s*\)")
_log = logging.getLogger(__name__)


class FoundryService(Dialect):
    """The service behind ``foundry service start``."""

    name: ClassVar[str] = "foundry_service"
    title: ClassVar[str] = "Foundry Local's legacy service"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"list", "pull", "load", "unload", "exact_token_count", "can_pick_variant", "multi_model"}
    )
    tells_device: ClassVar[bool] = True
    variants_by_device: ClassVar[bool] = True
    health_path: ClassVar[str] = "/openai/status"
    advice: ClassVar[str] = "use `foundry cache remove NAME` on that host"

    @classmethod
    def detect(cls, client: Client) -> Dialect | None:
        """``GET /openai/status``; the case of its keys varied."""
        status = client.probe("/openai/status", PROBE_S)
        keys = {key.lower() for key in status} if isinstance(status, dict) else set()
        return cls(client) if {"endpoints", "modeldirpath"} <= keys else None

    def models(self) -> list[Model]:
        """The catalog, and what is cached and not in it. An unreachable catalog costs only itself."""
        cached = names_of("/openai/models", self.client.get("/openai/models"))
        loaded = names_of("/openai/loadedmodels", self.client.get("/openai/loadedmodels"))
        found = [_model(entry, cached, loaded) for entry in self._catalog()]
        known = {one.variant for one in found}
        extra = [replace(foundry_model(name, loaded), cached=True) for name in cached if name not in known]
        return found + extra

    def load(self, model: Model, timeout_s: float) -> Ready:
        """``/openai/load/NAME`` with a long time to live."""
        if model.variant in names_of("/openai/loadedmodels", self.client.get("/openai/loadedmodels")):
            return Ready(model.variant, self.client.base_url)
        name = urllib.parse.quote(model.variant, safe="")
        begin = perf_counter_ns()
        try:
            self._get_loose(f"/openai/load/{name}?ttl={IDLE_S}", timeout_s)
        except Refused as error:
            raise _failure(model.variant, error) from None
        load_ns = perf_counter_ns() - begin
        if model.variant not in names_of("/openai/loadedmodels", self.client.get("/openai/loadedmodels")):
            message = f"the service answered the load of {model.variant} but does not list it as loaded"
            raise WorkFailed(Reason.LOAD_FAILED, f"{message}; look at `foundry service diag`")
        return Ready(model.variant, self.client.base_url, load_ns, loaded_here=True)

    def unload(self, model: Model, timeout_s: float) -> None:
        """``/openai/unload/NAME``. Raises `WorkFailed` ``not_loaded``."""
        if model.variant not in names_of("/openai/loadedmodels", self.client.get("/openai/loadedmodels")):
            raise WorkFailed(Reason.NOT_LOADED, f"{model.variant} is not in memory")
        self._get_loose(f"/openai/unload/{urllib.parse.quote(model.variant, safe='')}?force=true", timeout_s)

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """``POST /openai/download``: lines of progress, then one JSON object."""
        entry = next((one for one in self._catalog() if one["name"] == model.variant), None)
        if entry is None:
            raise WorkFailed(Reason.MODEL_NOT_FOUND, f"the catalog has no {model.variant}")
        answer: dict[str, Any] = {}
        for line in self.client.lines("/openai/download", _download(entry), timeout_s):
            if cancelled():
                raise WorkFailed(Reason.CANCELLED, f"the download of {model.variant} was ended on request")
            words = line.decode(errors="replace").strip()
            if words.startswith("{"):
                answer = _result(words)
            elif (fraction := read_progress(words)) is not None:
                progress(model.variant, fraction)
        if not answer.get("success"):
            said = answer.get("errormessage") or "it ended without a result"
            raise WorkFailed(Reason.DOWNLOAD_FAILED, f"the service could not download {model.variant}: {said}")
        return self.resolve(model.variant, None)

    def _catalog(self) -> list[dict[str, Any]]:
        try:
            document = self.client.get("/foundry/list", CATALOG_S)
            key = "models" if isinstance(document, dict) else None
            return entries("/foundry/list", document, key, "name")
        except WorkFailed as error:  # throttled or offline: what is cached can still be measured
            if isinstance(error, Unanswered) and not error.timed_out:
                raise  # that is the service itself
            _log.warning("the service's catalog is left out: %s", error.failure.message)
            return []

    def _get_loose(self, path: str, timeout_s: float) -> None:
        """A GET whose answer may be no JSON."""
        try:
            self.client.get(path, timeout_s)
        except WorkFailed as error:
            if error.failure.reason is not Reason.BAD_RESPONSE:
                raise


def read_progress(words: str) -> float | None:
    """The fraction in a line of a download: ``("model.onnx", 0.5)`` or ``Total 42.5%``."""
    if found := _PERCENT.search(words):
        return min(1.0, float(found[1]) / 100)
    found = _FRACTION.search(words)
    return min(1.0, float(found[1])) if found else None


def _result(words: str) -> dict[str, Any]:
    try:
        return {key.lower(): value for key, value in json.loads(words).items()}
    except ValueError:
        return {}


def _download(entry: Mapping[str, Any]) -> dict[str, Any]:
    model = {
        "Name": entry["name"],
        "Uri": entry.get("uri"),
        "Publisher": entry.get("publisher"),
        "ProviderType": "AzureFoundryLocal",
        "PromptTemplate": entry.get("promptTemplate"),
    }
    return {"model": model, "token": "", "IgnorePipeReport": True}


def _model(entry: Mapping[str, Any], cached: list[str], loaded: list[str]) -> Model:
    name = str(entry["name"])
    runtime, size = entry.get("runtime"), entry.get("fileSizeMb")
    runtime = runtime if isinstance(runtime, dict) else {}
    task = text(entry.get("task"))
    device = text(runtime.get("deviceType"))
    return Model(
        alias=text(entry.get("alias")) or alias_of(name),
        variant=name,
        device=device.lower() if device else None,
        execution_provider=text(runtime.get("executionProvider")),
        size_bytes=int(size * _MEGABYTE) if isinstance(size, int | float) and size else None,
        license=text(entry.get("license")),
        context_length=whole(entry.get("contextLength")),
        capabilities=(*([task] if task else []), *(["tools"] if entry.get("supportsToolCalling") else [])),
        cached=name in cached,
        loaded=name in loaded,
    )


def _failure(variant: str, error: Refused) -> WorkFailed:
    """Unknown and uncached models come as 400, 404 or 500, told apart by words only."""
    said, lower = " ".join(error.said.split())[:300], error.said.lower()
    reason = Reason.LOAD_FAILED
    if "no openaiservice provider found" in lower or "not found" in lower or error.status == 404:
        reason = Reason.MODEL_NOT_FOUND
    elif "is not registered" in lower or "execution provider" in lower:
        reason = Reason.EP_MISSING
    elif "memory" in lower:
        reason = Reason.OUT_OF_MEMORY
    return WorkFailed(reason, f"the service could not load {variant} (HTTP {error.status}): {said}")
