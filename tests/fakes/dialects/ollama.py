"""A fake Ollama, from its documents (https://github.com/ollama/ollama/blob/main/docs/api.md); not the real one."""

from __future__ import annotations

import json
from typing import Any

from fakes.dialects import FakeServer, Reply

SIZE_BYTES = 2_019_393_189


class FakeOllama(FakeServer):
    """Has models with tags; a model in memory lies in device memory by `vram_ratio`."""

    def __init__(self, *models: str, vram_ratio: float = 1.0, library: tuple[str, ...] = ()) -> None:
        super().__init__(*models)
        self.loaded: list[str] = []
        self.vram_ratio = vram_ratio
        self.library = library
        self.load_error = ""

    def native(self, method: str, path: str, body: Any) -> Reply | None:
        if method == "GET":
            return {
                "/api/version": lambda: Reply({"version": "0.12.6"}),
                "/api/tags": lambda: Reply({"models": [self._tag(name) for name in self.names]}),
                "/api/ps": lambda: Reply({"models": [self._running(name) for name in self.loaded]}),
            }.get(path, lambda: super(FakeOllama, self).native(method, path, body))()
        if (method, path) == ("POST", "/api/generate"):
            return self._generate(body)
        if (method, path) == ("POST", "/api/pull"):
            return self._pull(body["model"])
        if (method, path) == ("DELETE", "/api/delete"):
            if body["model"] not in self.names:
                return Reply({"error": f"model '{body['model']}' not found"}, 404)
            self.names.remove(body["model"])
            return Reply(b"")
        return None

    def unknown(self, method: str, path: str) -> Reply:
        return Reply(b"404 page not found", 404, "text/plain")

    def _generate(self, body: Any) -> Reply:
        name = body["model"]
        if name not in self.names:
            return Reply({"error": f"model '{name}' not found"}, 404)
        if self.load_error:
            return Reply({"error": self.load_error}, 500)
        if body.get("keep_alive") == 0:
            self.loaded = [one for one in self.loaded if one != name]
        elif name not in self.loaded:
            self.loaded.append(name)
        reason = "unload" if body.get("keep_alive") == 0 else "load"
        return Reply({"model": name, "created_at": "", "response": "", "done": True, "done_reason": reason})

    def _pull(self, name: str) -> Reply:
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if name not in self.library:
            lines.append({"error": "pull model manifest: file does not exist"})
        else:
            lines += [
                {"status": "pulling aa", "digest": "sha256:aa", "total": 100, "completed": done} for done in (50, 100)
            ]
            lines += [{"status": "verifying sha256 digest"}, {"status": "writing manifest"}, {"status": "success"}]
            self.names.append(name)
        return Reply("".join(json.dumps(line) + "\n" for line in lines).encode(), kind="application/x-ndjson")

    def _tag(self, name: str) -> dict[str, Any]:
        details = {"format": "gguf", "family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"}
        return {"name": name, "model": name, "size": SIZE_BYTES, "digest": "a80c", "details": details}

    def _running(self, name: str) -> dict[str, Any]:
        vram = int(SIZE_BYTES * self.vram_ratio)
        return {**self._tag(name), "expires_at": "2026-01-01T00:00:00Z", "size_vram": vram, "context_length": 4096}
