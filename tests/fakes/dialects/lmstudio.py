"""A fake LM Studio, from its documents (https://lmstudio.ai/docs/developer/rest). Never the real one."""

from __future__ import annotations

from typing import Any

from fakes.dialects import FakeServer, Reply

MODEL = "lmstudio-community/gemma-3-270m-it-qat"


class FakeLmStudio(FakeServer):
    """Version 1 of the API, or only version 0. Says 200 to every path."""

    def __init__(self, *models: str, version: int = 1) -> None:
        super().__init__(*(models or (MODEL,)))
        self.version = version
        self.instances: dict[str, str] = {}
        self.polls = 0

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        if (method, path) == ("GET", "/api/v0/models"):
            return Reply({"object": "list", "data": [self._v0(name) for name in self.names]})
        if self.version == 1 and path.startswith("/api/v1/models"):
            return self._v1(method, path.removeprefix("/api/v1/models"), body)
        return super().native(method, path, body)

    def unknown(self, method: str, path: str) -> Reply:
        return Reply({"error": f"Unexpected endpoint or method. ({method} {path}). Returning 200 anyway"})

    def _v1(self, method: str, path: str, body: Any) -> Reply | None:
        if (method, path) == ("GET", ""):
            embedding = {"type": "embedding", "key": "text-embedding-nomic", "loaded_instances": []}
            return Reply({"models": [*(self._entry(name) for name in self.names), embedding]})
        if (method, path) == ("POST", "/load"):
            if body["model"] not in self.names:
                return Reply({"error": {"message": "model not found"}}, 404)
            self.instances[f"{body['model']}:2"] = body["model"]
            said = {"model_instance_id": f"{body['model']}:2", "config": {"context_length": 4096}}
            return Reply({**said, "load_time_seconds": 9.099})
        if (method, path) == ("POST", "/unload"):
            self.instances.pop(body["instance_id"])
            return Reply(body)
        if (method, path) == ("POST", "/download"):
            return Reply(self._job(body["model"], 0))
        if method == "GET" and path.startswith("/download/status/job_"):
            self.polls += 1
            return Reply(self._job(path.removeprefix("/download/status/job_").replace("+", "/"), self.polls))
        return None

    def _job(self, name: str, polls: int) -> dict[str, Any]:
        done = polls >= 2
        if done and name not in self.names:
            self.names.append(name)
        job = {"job_id": f"job_{name.replace('/', '+')}", "status": "completed" if done else "downloading"}
        return {**job, "total_size_bytes": 1000, "downloaded_bytes": 500 * polls}

    def _entry(self, name: str) -> dict[str, Any]:
        loaded = [instance for instance, model in self.instances.items() if model == name]
        return {
            "type": "llm", "publisher": "lmstudio-community", "key": name, "display_name": name,
            "architecture": "gemma3", "quantization": {"name": "Q4_0", "bits_per_weight": 4},
            "size_bytes": 241_410_208, "params_string": "270M",
            "loaded_instances": [{"id": instance, "config": {"context_length": 4096}} for instance in loaded],
            "max_context_length": 32_768, "format": "gguf",
            "capabilities": {"vision": False, "trained_for_tool_use": True}, "description": None,
        }  # fmt: skip

    def _v0(self, name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "type": "llm", "publisher": "x", "arch": "llama",
            "compatibility_type": "gguf", "quantization": "Q4_K_M", "state": "not-loaded",
            "max_context_length": 131_072,
        }  # fmt: skip
