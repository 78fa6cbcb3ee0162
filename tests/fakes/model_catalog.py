"""A fake model catalog on loopback: speaks what Foundry Local's SDK asks of Azure's gallery, with faults on request.

Only the listing can be faked: where a model's files are fetched from is fixed in the native library, so a download
from here fails unless the model is laid into the cache first (`FakeCatalog.cache`).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PUBLISHER = "Fake"


@dataclass(frozen=True)
class Listed:
    """One variant that the catalog offers."""

    name: str
    alias: str
    version: int = 1
    device: str = "cpu"
    provider: str = "CPUExecutionProvider"
    size_bytes: int = 1 << 20
    license: str = "MIT"

    @property
    def variant(self) -> str:
        return f"{self.name}:{self.version}"

    def entry(self) -> dict[str, Any]:
        """As the gallery writes it."""
        base = "azureml://registries/azureml/models"
        return {
            "assetId": f"{base}/{self.name}/versions/{self.version}",
            "entityId": f"entity-{self.name}",
            "annotations": {
                "tags": {"alias": self.alias, "task": "chat-completion", "foundryLocal": ""},
                "systemCatalogData": {"publisher": PUBLISHER, "displayName": self.alias, "license": self.license},
            },
            "properties": {
                "id": self.variant,
                "name": self.name,
                "version": self.version,
                "variantInfo": {
                    "parents": [{"assetId": f"{base}/{self.alias}/versions/1"}],
                    "variantMetadata": {
                        "modelType": "ONNX",
                        "device": self.device,
                        "executionProvider": self.provider,
                        "fileSizeBytes": self.size_bytes,
                    },
                },
            },
        }


@dataclass
class FakeCatalog:
    """The running catalog. ``fault``: an HTTP status, "garbage", "slow" or "truncated"; None: it answers."""

    url: str = ""
    models: list[Listed] = field(default_factory=list)
    fault: int | str | None = None
    slow_s: float = 0.5
    requests: int = 0

    def cache(self, cache_dir: Path, model: Listed, files: Path) -> Path:
        """Lay a model's files where a finished download would have put them."""
        directory = cache_dir / PUBLISHER / f"{model.name}-{model.version}"
        shutil.copytree(files, directory)
        (directory / "inference_model.json").write_text(json.dumps({"Name": model.variant, "PromptTemplate": {}}))
        return directory


@contextlib.contextmanager
def running_catalog(*models: Listed) -> Iterator[FakeCatalog]:
    """The catalog on a free port of this machine."""
    catalog = FakeCatalog(models=list(models))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            catalog.requests += 1
            body = json.dumps(
                {"totalCount": len(catalog.models), "value": [m.entry() for m in catalog.models]}
            ).encode()
            if isinstance(catalog.fault, int):
                self._answer(catalog.fault, b"{}")
            elif catalog.fault == "garbage":
                self._answer(200, b"<html>proxy login</html>")
            elif catalog.fault == "truncated":
                self._answer(200, body[: len(body) // 2], length=len(body))
            else:
                if catalog.fault == "slow":
                    time.sleep(catalog.slow_s)
                self._answer(200, body)

        def _answer(self, status: int, body: bytes, length: int | None = None) -> None:
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Nothing to say."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        catalog.url = f"http://127.0.0.1:{server.server_port}/asset-gallery/v1.0/models"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield catalog
        server.shutdown()
        thread.join()
