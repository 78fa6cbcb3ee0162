"""llama.cpp's server (https://github.com/ggml-org/llama.cpp/tree/master/tools/server), alone or as a router.

Alone it serves the one model it was started with. As a router (started without a model) it starts a process for each
model that is asked for. The last chunk of a stream carries its own ``timings`` beside ``usage``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model
from benchfleet_agent.runtimes.dialects.client import Client, Refused
from benchfleet_agent.runtimes.dialects.generic import PROBE_S, Dialect, Ready, entries, lower, text, whole

POLL_S = 0.1


class LlamaCpp(Dialect):
    """A llama.cpp server with one model."""

    name: ClassVar[str] = "llamacpp"
    title: ClassVar[str] = "llama.cpp's server"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"list", "timings", "usage_in_stream", "exact_token_count", "prefix_cache_control"}
    )
    health_path: ClassVar[str] = "/health"
    tokenize_path: ClassVar[str] = "/tokenize"
    advice: ClassVar[str] = "start llama-server with another model, or without one as a router"

    @classmethod
    def detect(cls, client: Client) -> Dialect | None:
        """``GET /props``."""
        props = client.probe("/props", PROBE_S)
        if not isinstance(props, dict) or "default_generation_settings" not in props:
            return None
        kind = LlamaRouter if props.get("role") == "router" else cls
        return kind(client, text(props.get("build_info")))

    def models(self) -> list[Model]:
        """The model it serves, with the context it was started with."""
        return [_model(entry) for entry in self.listing()]

    def load(self, model: Model, timeout_s: float) -> Ready:
        """Wait until it has loaded (HTTP 503 until then)."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.client.get("/health")
            except Refused as error:
                if error.status != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
            else:
                return Ready(model.variant, self.client.base_url)


class LlamaRouter(LlamaCpp):
    """A llama.cpp server that starts a server of its own for each model."""

    title: ClassVar[str] = "llama.cpp's router"
    capabilities: ClassVar[frozenset[str]] = LlamaCpp.capabilities | {
        "load", "unload", "can_pick_variant", "multi_model",
    }  # fmt: skip
    advice: ClassVar[str] = "put the file into its models directory, or take it out there"

    def models(self) -> list[Model]:
        """Every model in its cache or models directory."""
        return [_model(entry) for entry in entries("/models", self.client.get("/models"), "data", "id")]

    def load(self, model: Model, timeout_s: float) -> Ready:
        """Ask for it and wait until its status is ``loaded``."""
        if self._status(model.variant)[0] == "loaded":
            return Ready(model.variant, self.client.base_url)
        begin = time.perf_counter_ns()
        self.client.send("POST", "/models/load", {"model": model.variant}, timeout_s)
        while (found := self._status(model.variant))[0] != "loaded":
            status, failed = found
            if failed:
                raise WorkFailed(Reason.LOAD_FAILED, f"{model.variant} could not be loaded; see llama-server's log")
            if (time.perf_counter_ns() - begin) / 1e9 > timeout_s:
                raise WorkFailed(Reason.LOAD_TIMEOUT, f"{model.variant} is still {status} after {timeout_s:g} s")
            time.sleep(POLL_S)
        load_ns = time.perf_counter_ns() - begin
        return Ready(model.variant, self.client.base_url, load_ns, loaded_here=True)

    def unload(self, model: Model, timeout_s: float) -> None:
        """End the model's process. Raises `WorkFailed` ``not_loaded``."""
        if self._status(model.variant)[0] != "loaded":
            raise WorkFailed(Reason.NOT_LOADED, f"{model.variant} is not loaded")
        self.client.send("POST", "/models/unload", {"model": model.variant}, timeout_s)

    def _status(self, variant: str) -> tuple[str, bool]:
        """The model's status and whether its last load failed."""
        for entry in entries("/models", self.client.get("/models"), "data", "id"):
            if entry["id"] == variant:
                status = entry.get("status")
                status = status if isinstance(status, dict) else {"value": status}
                return str(status.get("value")), bool(status.get("failed"))
        raise WorkFailed(Reason.MODEL_NOT_FOUND, f"the router has no model {variant}")


def _model(entry: Mapping[str, Any]) -> Model:
    variant = str(entry["id"])
    meta, status = entry.get("meta"), entry.get("status")
    meta = meta if isinstance(meta, dict) else {}
    value = status.get("value") if isinstance(status, dict) else status
    quantization = text(meta.get("ftype")) or quantization_of(variant)
    return Model(
        alias=_alias(variant),
        variant=variant,
        size_bytes=whole(meta.get("size")),
        context_length=whole(meta.get("n_ctx")) or whole(meta.get("n_ctx_train")),
        capabilities=(quantization.lower(),) if quantization else (),
        cached=True,
        # Without a status it is a server with one model, which it has loaded before it answers.
        loaded=value in (None, "loaded"),
        quantisation=lower(quantization),
    )


def quantization_of(variant: str) -> str | None:
    """The quantisation that a GGUF file's or repository's name ends in: ``model-Q4_K_M.gguf``, ``org/model:Q8_0``."""
    found = re.search(r"[.:_-]((?:IQ|Q|BF|F|MXFP)\d+(?:_[0-9A-Z]+)*)(?:\.gguf)?$", variant, re.IGNORECASE)
    return found[1] if found else None


def _alias(variant: str) -> str:
    """A file's stem, or a repository's name without tag."""
    name = PurePosixPath(variant.replace("\\", "/")).name
    return name.removesuffix(".gguf") if name.endswith(".gguf") else name.partition(":")[0] or variant
