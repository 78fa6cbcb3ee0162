"""LM Studio: its REST API, version 1 (https://lmstudio.ai/docs/developer/rest) and the older version 0.

It answers unknown paths with HTTP 200 and an error object, so only the shape of an answer tells anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model, Progress
from benchfleet_agent.runtimes.dialects.client import Client, Refused
from benchfleet_agent.runtimes.dialects.generic import PROBE_S, Dialect, Ready, alias_of, entries, lower, text, whole

V1, V0 = "/api/v1/models", "/api/v0/models"
POLL_S = 1.0


class LmStudio(Dialect):
    """LM Studio's server, version 1 of its API."""

    name: ClassVar[str] = "lmstudio"
    title: ClassVar[str] = "LM Studio"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"list", "pull", "load", "unload", "usage_in_stream", "can_pick_variant", "multi_model"}
    )
    advice: ClassVar[str] = "do it in LM Studio, under My Models"

    @classmethod
    def detect(cls, client: Client) -> Dialect | None:
        """``GET /api/v1/models``, else ``GET /api/v0/models``."""
        if _fits(client.probe(V1, PROBE_S), "models", "key", "loaded_instances"):
            return cls(client, "API v1")
        if _fits(client.probe(V0, PROBE_S), "data", "id", "compatibility_type"):
            return LmStudioV0(client, "API v0")
        return None

    def models(self) -> list[Model]:
        """What is on the host."""
        return [_model(entry) for entry in entries(V1, self.client.get(V1), "models", "key") if _is_chat(entry)]

    def load(self, model: Model, timeout_s: float) -> Ready:
        """Load one instance, unless there is one; requests go to that instance."""
        if instances := self._instances(model.variant):
            return Ready(instances[0], self.client.base_url)
        try:
            said = self.client.send("POST", f"{V1}/load", {"model": model.variant}, timeout_s)
        except Refused as error:
            reason = Reason.MODEL_NOT_FOUND if error.status == 404 else Reason.LOAD_FAILED
            raise WorkFailed(reason, f"LM Studio could not load {model.variant}: {error.said[:300]}") from None
        said = said if isinstance(said, dict) else {}
        # Names moved between releases of the API.
        name = text(said.get("model_instance_id")) or text(said.get("instance_id")) or model.variant
        seconds = said.get("load_time_seconds")
        load_ns = int(seconds * 1e9) if isinstance(seconds, int | float) and not isinstance(seconds, bool) else None
        return Ready(name, self.client.base_url, load_ns, loaded_here=True)

    def unload(self, model: Model, timeout_s: float) -> None:
        """Unload every instance. Raises `WorkFailed` ``not_loaded``."""
        instances = self._instances(model.variant)
        if not instances:
            raise WorkFailed(Reason.NOT_LOADED, f"{model.variant} is not in LM Studio's memory")
        for instance in instances:
            self.client.send("POST", f"{V1}/unload", {"instance_id": instance}, timeout_s)

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """Have LM Studio download it and ask how far it is. Cancelling leaves the download to LM Studio."""
        job = self.client.send("POST", f"{V1}/download", {"model": model.variant}, timeout_s)
        last, since = -1, time.monotonic()
        while True:
            job = job if isinstance(job, dict) else {}
            state, got = job.get("status"), whole(job.get("downloaded_bytes")) or 0
            if state in ("completed", "already_downloaded"):
                return self.resolve(model.variant, None)
            if state not in ("downloading", "paused") or not text(job.get("job_id")):
                raise WorkFailed(Reason.DOWNLOAD_FAILED, f"LM Studio could not download {model.variant} ({state})")
            if got != last:
                last, since = got, time.monotonic()
            if time.monotonic() - since > timeout_s:
                message = f"the download of {model.variant} stood still for {timeout_s:g} s; look at LM Studio"
                raise WorkFailed(Reason.DOWNLOAD_FAILED, message)
            total = whole(job.get("total_size_bytes"))
            progress(f"{model.variant}: {state}", got / total if total else None)
            if cancelled():
                raise WorkFailed(Reason.CANCELLED, f"no longer waiting for {model.variant}; LM Studio downloads on")
            time.sleep(POLL_S)
            job = self.client.get(f"{V1}/download/status/{job['job_id']}")

    def _instances(self, key: str) -> list[str]:
        for entry in entries(V1, self.client.get(V1), "models", "key"):
            if entry["key"] == key:
                return _instances(entry)
        return []


class LmStudioV0(Dialect):
    """An LM Studio before version 1 of its API: lists more than OpenAI's protocol does, loads on the first request."""

    name: ClassVar[str] = "lmstudio"
    title: ClassVar[str] = "LM Studio's older API"
    advice: ClassVar[str] = "update LM Studio, or do it there"

    def models(self) -> list[Model]:
        """What is on the host."""
        found = entries(V0, self.client.get(V0), "data", "id")
        return [_model_v0(entry) for entry in found if _is_chat(entry)]


def _is_chat(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") not in ("embedding", "embeddings")


def _instances(entry: Mapping[str, Any]) -> list[str]:
    loaded = entry.get("loaded_instances")
    found = [one.get("id") for one in loaded if isinstance(one, dict)] if isinstance(loaded, list) else []
    return [name for name in found if isinstance(name, str)]


def _model(entry: Mapping[str, Any]) -> Model:
    key = str(entry["key"])
    quantization, tags = entry.get("quantization"), entry.get("capabilities")
    quantization = quantization.get("name") if isinstance(quantization, dict) else quantization
    tags = tags if isinstance(tags, dict) else {}
    words = [text(entry.get("params_string")), text(quantization), text(entry.get("format"))]
    loaded = entry.get("loaded_instances") or [{}]
    config = loaded[0].get("config") if isinstance(loaded[0], dict) else None
    config = config if isinstance(config, dict) else {}
    return Model(
        alias=key.rpartition("/")[2],
        variant=key,
        size_bytes=whole(entry.get("size_bytes")),
        context_length=whole(config.get("context_length")) or whole(entry.get("max_context_length")),
        capabilities=(
            *(word.lower() for word in words if word),
            *(["vision"] if tags.get("vision") else []),
            *(["tools"] if tags.get("trained_for_tool_use") else []),
        ),
        cached=True,
        loaded=bool(_instances(entry)),
        quantisation=lower(quantization),
    )


def _model_v0(entry: Mapping[str, Any]) -> Model:
    words = [text(entry.get("quantization")), text(entry.get("compatibility_type"))]
    return Model(
        alias=alias_of(str(entry["id"])),
        variant=str(entry["id"]),
        context_length=whole(entry.get("loaded_context_length")) or whole(entry.get("max_context_length")),
        capabilities=tuple(word.lower() for word in words if word),
        cached=True,
        loaded=entry.get("state") == "loaded",
        quantisation=lower(entry.get("quantization")),
    )


def _fits(document: Any, key: str, *names: str) -> bool:
    found = document.get(key) if isinstance(document, dict) else None
    if not isinstance(found, list):
        return False
    # An empty list is an LM Studio without models: only its answer to this path holds one under that key.
    return all(isinstance(entry, dict) and all(name in entry for name in names) for entry in found)
