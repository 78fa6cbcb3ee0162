"""Foundry Local's execution providers beside the CPU's: which it offers here, and which are on the host already.

They are large downloads of their own (hundreds of megabytes for CUDA), so only a pull fetches them; whatever else is
asked registers what is there. Of those it downloads itself Foundry Local keeps a folder ``…-ep`` beside the model
cache; Windows keeps its own out of sight, so what was fetched here is written down, too.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchfleet_agent.runtimes import ExecutionProvider

NOTES = "fetched-providers.json"
_FOLDERS = {"cuda": "cuda-ep", "webgpu": "webgpu-ep"}
_DEVICES = {
    "cuda": ("gpu",),
    "nvtensorrt": ("gpu",),
    "trtrtx": ("gpu",),
    "webgpu": ("gpu",),
    "migraphx": ("gpu",),
    "dml": ("gpu",),
    "openvino": ("gpu", "npu"),
    "qnn": ("npu",),
    "vitis": ("npu",),
    "ryzen": ("npu",),
}
"""What a provider computes on, by a word in its name."""


@dataclass(frozen=True, slots=True)
class ProviderShelf:
    """What was downloaded to this host."""

    cache_dir: Path
    """Where Foundry Local keeps models; its providers lie beside it."""
    data_dir: Path
    """The agent's, for what it fetched itself."""

    def has(self, name: str) -> bool:
        """Whether a provider is on the host, as far as can be told."""
        lower = name.lower()
        folders = [folder for word, folder in _FOLDERS.items() if word in lower]
        return any((self.cache_dir.parent / folder).is_dir() for folder in folders) or name in self._noted()

    def note(self, names: Iterable[str]) -> None:
        """Write down that these were fetched."""
        with contextlib.suppress(OSError):  # then it is only fetched again
            self.data_dir.mkdir(parents=True, exist_ok=True)
            (self.data_dir / NOTES).write_text(json.dumps(sorted({*self._noted(), *names})), encoding="utf-8")

    def _noted(self) -> set[str]:
        try:
            found = json.loads((self.data_dir / NOTES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()
        return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


def absent_for(device: str | None, offered: Iterable[ExecutionProvider]) -> list[str]:
    """Names of the offered providers that could serve a device (None: any) and are not on the host."""
    return [one.name for one in offered if not one.downloaded and (device is None or device in devices_of(one.name))]


def devices_of(name: str) -> tuple[str, ...]:
    """What a provider may compute on; of an unknown one nothing is ruled out."""
    lower = name.lower()
    return next((devices for word, devices in _DEVICES.items() if word in lower), ("gpu", "npu"))
