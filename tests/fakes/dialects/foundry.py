"""Fake Foundry Local services: the legacy one from its documents and taken for it by SDK 0.5.1's client, SDK 1.x's from
its client, never the real ones.

SDK 2.x's is recorded from 2.2.1; tests with the real one stand beside those with the fake.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

from fakes.dialects import FakeServer, Reply

GPU, CPU = "Phi-4-mini-instruct-cuda-gpu:5", "Phi-4-mini-instruct-generic-cpu:5"


class FakeFoundryService(FakeServer):
    """Legacy: a catalog with two variants of one alias."""

    def __init__(self, cached: tuple[str, ...] = (GPU, CPU), *, catalog: bool = True, shape: str = "list") -> None:
        super().__init__(*cached)
        self.loaded: list[str] = []
        self.catalog = catalog
        self.shape = shape
        self.load_reply: Reply | None = None

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        name = urllib.parse.unquote(path.partition("?")[0].rpartition("/")[2])
        if method == "POST" and path == "/openai/download":
            self.names.append(body["model"]["Name"])
            words = '("model.onnx.data", 0.25)\nTotal 80.00% Downloading\n{"Success": true, "ErrorMessage": null}\n'
            return Reply(words.encode(), kind="text/plain")
        if path == "/openai/status":
            return Reply({"Endpoints": ["http://127.0.0.1:5273"], "ModelDirPath": "/cache", "PipeName": "agent"})
        if path == "/foundry/list":
            listed = [_entry(GPU, "GPU", "CUDAExecutionProvider"), _entry(CPU, "CPU", "CPUExecutionProvider")]
            if not self.catalog:
                return Reply({"error": "Too Many Requests"}, 429)
            return Reply(listed if self.shape == "list" else {"models": listed})
        if path == "/openai/models":
            return Reply(self.names)
        if path == "/openai/loadedmodels":
            return Reply(self.loaded)
        if path.startswith("/openai/load/"):
            if self.load_reply is not None:
                return self.load_reply
            if name not in self.names:
                return Reply({"error": f"No OpenAIService provider found for modelName {name}"}, 400)
            self.loaded.append(name)
            return Reply(b"", kind="text/plain")
        if path.startswith("/openai/unload/"):
            self.loaded.remove(name)
            return Reply(b"", kind="text/plain")
        return super().native(method, path, body)


class FakeFoundrySdk(FakeServer):
    """SDK 2.x: two catalogs; loads by alias and picks the variant itself (the first listed)."""

    def __init__(self, local: tuple[str, ...] = (), public: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.catalogs = {"/catalogs/local": list(local), "": list(public)}
        self.loaded: list[str] = []

    def answer(self, method: str, path: str, body: Any) -> Reply:
        if path == "/catalogs/local/v1/chat/completions":
            path = "/v1/chat/completions"
        return super().answer(method, path, body)

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        if path == "/status":
            return Reply({"endpoints": ["http://127.0.0.1:34547"], "modelCachePath": "/cache", "pid": 4711})
        catalog = "/catalogs/local" if path.startswith("/catalogs/local/") else ""
        rest, names = path.removeprefix(catalog), self.catalogs[catalog]
        if rest == "/v1/models":
            found = [{"created": 1, "id": name, "object": "model", "owned_by": "local"} for name in names]
            return Reply({"data": found, "object": "list"})
        if rest == "/models/loaded":
            return Reply([name for name in names if name in self.loaded])
        for verb in ("load", "unload"):
            if rest.startswith(f"/models/{verb}/"):
                return self._ask(verb, urllib.parse.unquote(rest.removeprefix(f"/models/{verb}/")), names)
        return None

    def find(self, asked: str, names: list[str]) -> list[str]:
        """The variants that a name in the path means."""
        return [name for name in names if ":" not in asked and name.startswith(asked)]

    def _ask(self, verb: str, asked: str, names: list[str]) -> Reply:
        found = self.find(asked, names)
        if not found:
            message = f"Model not found: No model matching '{asked}'"
            return Reply({"error": {"code": None, "message": message, "type": "invalid_request_error"}}, 404)
        if verb == "load":
            self.loaded.append(found[0])
        else:
            self.loaded = [name for name in self.loaded if name not in found]
        return Reply({"status": f"{verb}ed"})


class FakeFoundryCli(FakeFoundrySdk):
    """SDK 1.x and the CLI preview, from its client's source: one catalog, loads by id, no ``/status``."""

    def __init__(self, *models: str) -> None:
        super().__init__(public=models)

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        if path == "/status" or path.startswith("/catalogs/"):
            return None
        return super().native(method, path, body)

    def find(self, asked: str, names: list[str]) -> list[str]:
        return [name for name in names if name == asked]


def _entry(name: str, device: str, provider: str) -> dict[str, Any]:
    return {
        "name": name, "displayName": name, "providerType": "AzureFoundry", "uri": f"azureml://{name}", "version": "5",
        "modelType": "ONNX", "promptTemplate": {"prompt": "<|user|>"}, "publisher": "Microsoft", "alias": "phi-4-mini",
        "task": "chat-completion", "runtime": {"deviceType": device, "executionProvider": provider}, "fileSizeMb": 3686,
        "supportsToolCalling": True, "license": "MIT", "maxOutputTokens": 2048,
        "modelSettings": {"parameters": []}, "licenseDescription": "MIT", "parentModelUri": f"azureml://{device}",
    }  # fmt: skip
