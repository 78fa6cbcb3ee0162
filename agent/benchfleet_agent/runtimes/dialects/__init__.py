"""Servers that already run, by the protocol they add to OpenAI's: one file each, told apart by harmless questions."""

from __future__ import annotations

from benchfleet_agent.runtimes.dialects.client import Client
from benchfleet_agent.runtimes.dialects.foundry_sdk import FoundryCli, FoundrySdk
from benchfleet_agent.runtimes.dialects.foundry_service import FoundryService
from benchfleet_agent.runtimes.dialects.generic import Dialect, Ready
from benchfleet_agent.runtimes.dialects.llamacpp import LlamaCpp
from benchfleet_agent.runtimes.dialects.lmstudio import LmStudio
from benchfleet_agent.runtimes.dialects.ollama import Ollama

DIALECTS: tuple[type[Dialect], ...] = (FoundrySdk, FoundryService, Ollama, LmStudio, LlamaCpp, FoundryCli, Dialect)
"""In the order of asking: the surest signs first, ``/models/loaded`` late (SDK 2.x asks the network for it), the
dialect that everybody speaks last."""

__all__ = ["DIALECTS", "Client", "Dialect", "Ready", "detect"]


def detect(client: Client) -> Dialect:
    """The dialect of a server: some GET requests, each answered or refused at once.

    Raises `benchfleet_agent.runtimes.dialects.client.Unanswered` when the server does not answer.
    """
    for kind in DIALECTS:
        if (found := kind.detect(client)) is not None:
            return found
    raise AssertionError("the last dialect fits every server")
