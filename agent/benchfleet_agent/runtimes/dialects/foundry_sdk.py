"""Foundry Local's own HTTP services: SDK 2.x's in another program, and the older one of SDK 1.x and the CLI preview.

SDK 2.x (tried on 2.2.1): chat wants a variant's id, ``/models/load/ALIAS`` an alias, so HTTP alone cannot choose the
variant: what was loaded is looked up afterwards, and another one than the pinned is a failure, not a benchmark. Its
public catalog asks the network (4 s when offline), so the local catalog, under ``/catalogs/local``, is asked first.
"""

from __future__ import annotations

import re
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any, ClassVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model
from benchfleet_agent.runtimes.dialects.client import Client, Refused
from benchfleet_agent.runtimes.dialects.generic import PROBE_S, Dialect, Ready, choose, context_length, names_of, whole

LOCAL = "/catalogs/local"
CATALOG_S = 20.0
_SUFFIX = re.compile(r"-([a-z]+)-(cpu|gpu|npu)(?::\d+)?$")
_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "trtrtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "vitis": "VitisAIExecutionProvider",
}


class FoundrySdk(Dialect):
    """The service of a program that uses Foundry Local's SDK 2.x."""

    name: ClassVar[str] = "foundry_sdk"
    title: ClassVar[str] = "Foundry Local's service"
    capabilities: ClassVar[frozenset[str]] = frozenset({"list", "load", "unload", "usage_in_stream", "multi_model"})
    tells_device: ClassVar[bool] = True
    variants_by_device: ClassVar[bool] = True
    health_path: ClassVar[str] = "/status"
    advice: ClassVar[str] = "use the program that runs it, or benchfleet's own runtime foundry"

    def __init__(self, client: Client, pid: int | None) -> None:
        super().__init__(client)
        self._pid = pid

    @classmethod
    def detect(cls, client: Client) -> Dialect | None:
        """``GET /status`` with ``modelCachePath`` and ``pid``."""
        status = client.probe("/status", PROBE_S)
        if isinstance(status, dict) and "modelCachePath" in status and "pid" in status:
            return cls(client, whole(status["pid"]))
        return None

    def models(self) -> list[Model]:
        """Both catalogs: models registered by hand, then the public ones."""
        local = self._catalog(LOCAL)
        known = {one.variant for one in local}
        return local + [one for one in self._catalog("") if one.variant not in known]

    def resolve(self, model: str, device: str | None) -> Model:
        """As every dialect, the local catalog first: it answers without the network."""
        local = self._catalog(LOCAL)
        if any(model in (one.variant, one.alias) for one in local):
            return choose(model, device, local, self.client.root, by_device=True)
        return choose(model, device, self.models(), self.client.root, by_device=True)

    def process_ids(self) -> tuple[int, ...]:
        """The service says its process id."""
        return () if self._pid is None else (self._pid,)

    def load(self, model: Model, timeout_s: float) -> Ready:
        """Load by alias; fails when the service chose another variant than the pinned."""
        catalog = self._catalog_of(model)
        base_url = f"{self.client.root}{catalog}/v1"
        if model.variant in self._loaded(catalog):
            return Ready(model.variant, base_url)
        begin = time.perf_counter_ns()
        self._ask(catalog, "load", model, timeout_s)
        load_ns = time.perf_counter_ns() - begin
        loaded = self._loaded(catalog)
        if model.variant not in loaded:
            others = [name for name in loaded if alias_of(name) == model.alias]
            message = (
                f"asked for {model.alias}, the service loaded {' and '.join(others) or 'nothing'} and not "
                f"{model.variant}; over HTTP it chooses the variant itself: have {model.variant} loaded by its program"
            )
            raise WorkFailed(Reason.EP_MISMATCH if others else Reason.LOAD_FAILED, message)
        # The variant says what it is for; nobody here says what it runs on.
        return Ready(model.variant, base_url, load_ns, loaded_here=True)

    def unload(self, model: Model, timeout_s: float) -> None:
        """Unload by alias. Raises `WorkFailed` ``not_loaded``, ``model_in_use``."""
        catalog = self._catalog_of(model)
        if model.variant not in self._loaded(catalog):
            raise WorkFailed(Reason.NOT_LOADED, f"{model.variant} is not in memory")
        self._ask(catalog, "unload", model, timeout_s)

    def name_in_path(self, model: Model) -> str:
        """What ``/models/load`` and ``/models/unload`` want."""
        return model.alias

    def _ask(self, catalog: str, verb: str, model: Model, timeout_s: float) -> Any:
        path = f"{catalog}/models/{verb}/{urllib.parse.quote(self.name_in_path(model), safe='')}"
        try:
            return self.client.get(path, timeout_s)
        except Refused as error:
            raise _failure(verb, model.variant, error) from None

    def _catalog_of(self, model: Model) -> str:
        if self.client.base_url.endswith(f"{LOCAL}/v1"):
            return LOCAL
        return LOCAL if any(one.variant == model.variant for one in self._catalog(LOCAL)) else ""

    def _catalog(self, catalog: str) -> list[Model]:
        url = f"{self.client.root}{catalog}/v1/models"
        try:
            found = self.listing(url, CATALOG_S)
        except Refused as error:
            if error.status == 404:  # before 2.2 there was no local catalog
                return []
            raise
        if not found:
            return []
        loaded = self._loaded(catalog)
        return [foundry_model(entry["id"], loaded, context_length(entry)) for entry in found]

    def _loaded(self, catalog: str) -> list[str]:
        return names_of(f"{catalog}/models/loaded", self.client.get(f"{catalog}/models/loaded", CATALOG_S))


class FoundryCli(FoundrySdk):
    """The service of SDK 1.x and of the CLI preview (``foundry server``): it loads by id and has one catalog."""

    name: ClassVar[str] = "foundry_cli"
    title: ClassVar[str] = "Foundry Local's CLI service"
    capabilities: ClassVar[frozenset[str]] = frozenset({"list", "load", "unload", "can_pick_variant", "multi_model"})
    health_path: ClassVar[str] = "/models/loaded"
    advice: ClassVar[str] = "use `foundry model` on that host"

    @classmethod
    def detect(cls, client: Client) -> Dialect | None:
        """``GET /models/loaded`` with a list of names."""
        loaded = client.probe("/models/loaded", PROBE_S)
        is_list = isinstance(loaded, list) and all(isinstance(name, str) for name in loaded)
        return cls(client, None) if is_list else None

    def models(self) -> list[Model]:
        """Its one catalog."""
        return self._catalog("")

    def resolve(self, model: str, device: str | None) -> Model:
        """As every dialect."""
        return choose(model, device, self.models(), self.client.root, by_device=True)

    def name_in_path(self, model: Model) -> str:
        """The id: this one can choose the variant."""
        return model.variant

    def _catalog_of(self, model: Model) -> str:
        return ""


def foundry_model(variant: str, loaded: Sequence[str], context: int | None = None) -> Model:
    """What an id of Foundry Local says: ``NAME-PROVIDER-DEVICE:VERSION``."""
    found = _SUFFIX.search(variant)
    provider, device = (found[1], found[2]) if found else (None, None)
    # The provider of "generic-gpu" is chosen at load time (CUDA if registered, else WebGPU), so it is not known here.
    named = "CPUExecutionProvider" if (provider, device) == ("generic", "cpu") else _PROVIDERS.get(provider or "")
    return Model(
        alias=alias_of(variant),
        variant=variant,
        device=device,
        execution_provider=named,
        context_length=context,
        cached=True if variant in loaded else None,
        loaded=variant in loaded,
    )


def alias_of(variant: str) -> str:
    """The id without provider, device and version; for the models of the catalog that is nearly always the alias."""
    return _SUFFIX.sub("", variant) or variant


def _failure(verb: str, variant: str, error: Refused) -> WorkFailed:
    said = error.said.lower()
    reason = Reason.LOAD_FAILED
    if "not found" in said or error.status == 404:
        reason = Reason.MODEL_NOT_FOUND
    elif "not cached" in said or "not downloaded" in said:
        reason = Reason.NOT_CACHED
    elif "still using" in said or "in use" in said:
        reason = Reason.MODEL_IN_USE
    elif "not registered" in said:
        reason = Reason.EP_MISSING
    elif "memory" in said:
        reason = Reason.OUT_OF_MEMORY
    return WorkFailed(reason, f"the service could not {verb} {variant}: {' '.join(error.said.split())[:300]}")
