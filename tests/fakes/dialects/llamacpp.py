"""A fake llama.cpp server, recorded from the real one (xllamacpp 2026.10.11549); as a router from its documents."""

from __future__ import annotations

from typing import Any, ClassVar

from fakes.dialects import FakeServer, Reply

PATH = "/models/SmolLM2-135M-Instruct.Q4_1.gguf"
TIMINGS = {
    "cache_n": 0, "prompt_n": 32, "prompt_ms": 201.348, "prompt_per_token_ms": 6.29, "prompt_per_second": 158.9,
    "predicted_n": 4, "predicted_ms": 58.648, "predicted_per_token_ms": 19.5, "predicted_per_second": 51.1,
}  # fmt: skip


class FakeLlamaCpp(FakeServer):
    """Serves the one model it was started with; ``/health`` says 503 for the first `loading` times."""

    chunk_extras: ClassVar[dict[str, Any]] = {"timings": TIMINGS}

    def __init__(self, loading: int = 0) -> None:
        super().__init__(PATH)
        self.loading = loading

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        if (method, path) == ("GET", "/health"):
            if self.loading:
                self.loading -= 1
                return Reply({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, 503)
            return Reply({"status": "ok"})
        if (method, path) == ("GET", "/props"):
            settings = {"params": {"seed": 4_294_967_295, "temperature": 0.8}, "n_ctx": 2048}
            said = {"default_generation_settings": settings, "total_slots": 1, "model_path": PATH}
            return Reply({**said, "model_ftype": "Q4_1", "build_info": "b11549-0123abc"})
        if (method, path) == ("POST", "/tokenize"):
            return Reply({"tokens": list(range(len(body["content"].split())))})
        if (method, path) == ("GET", "/v1/models"):
            return Reply({"models": [], "object": "list", "data": [self._entry()]})
        return None

    def unknown(self, method: str, path: str) -> Reply:
        return Reply({"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404)

    def _entry(self) -> dict[str, Any]:
        meta = {"vocab_type": 2, "n_vocab": 49_152, "n_ctx": 2048, "n_ctx_train": 8192, "n_embd": 576}
        meta |= {"n_params": 134_515_008, "size": 96_576_768, "ftype": "Q4_1"}  # type: ignore[dict-item]
        return {"id": PATH, "aliases": [PATH], "object": "model", "owned_by": "llamacpp", "meta": meta}


class FakeLlamaRouter(FakeLlamaCpp):
    """Loads on request; a load takes `steps` questions for its status, or fails."""

    def __init__(self, *models: str, steps: int = 1, fails: bool = False) -> None:
        super().__init__()
        self.names = list(models)
        self.state = dict.fromkeys(models, "unloaded")
        self.steps = steps
        self.fails = fails

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        if (method, path) == ("GET", "/props"):
            return Reply({"role": "router", "default_generation_settings": {"params": {}, "n_ctx": 0}})
        if (method, path) in (("GET", "/models"), ("GET", "/v1/models")):
            return Reply({"object": "list", "data": [self._model(name) for name in self.names]})
        if (method, path) == ("POST", "/models/load"):
            self.state[body["model"]] = "loading"
            return Reply({"success": True})
        if (method, path) == ("POST", "/models/unload"):
            self.state[body["model"]] = "unloaded"
            return Reply({"success": True})
        return super().native(method, path, body)

    def _model(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = {"value": self.state[name], "args": ["llama-server"]}
        if status["value"] == "loading":
            self.steps -= 1
            if self.steps <= 0:
                self.state[name] = "unloaded" if self.fails else "loaded"
                status = {"value": self.state[name], **({"failed": True, "exit_code": 1} if self.fails else {})}
        return {"id": name, "in_cache": True, "path": f"/models/{name}.gguf", "status": status}
