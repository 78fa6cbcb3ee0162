"""Serves a plug-in's adapter as an OpenAI-compatible HTTP server: a child process of its own.

Run as ``python -m benchfleet_agent.runtimes.adapter_server`` by `benchfleet_agent.runtimes.plugins`. Whatever the
adapter does to its process (a crash, a leak, a library that prints) stays here. docs/adapters.md has the protocol.

Commands are ``{"do": NAME, …}``; each is answered by the event named here or by ``failed{reason, message}``:

=========  ==============  ===================================================
command    fields          answer
=========  ==============  ===================================================
examine    name            examined{kind, models}
start      name, cpus      started{pid}
load       model           loaded{load_ns, execution_provider}
serve                      serving{url}
unload                     unloaded{duration_ns}
=========  ==============  ===================================================

A closed stdin ends it.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchfleet_agent.child import Message, Protocol, die_with_parent, take_protocol
from benchfleet_agent.runtimes import PLUGIN_GROUP
from benchfleet_agent.runtimes.adapter_http import SAMPLING, Server, describe

RUNTIME_METHODS = ("describe", "models", "resolve", "open")


class Broken(Exception):
    """The plug-in cannot be used; says why and what to change."""

    reason = "runtime_unavailable"


class LoadFailed(Broken):
    """The adapter raised in ``load``."""

    reason = "load_failed"


def import_object(name: str) -> Any:
    """The object behind an entry point. Raises `Broken`, whatever importing it does."""
    found = list(importlib.metadata.entry_points(group=PLUGIN_GROUP, name=name))
    if len(found) != 1:
        raise Broken(f"{len(found)} entry points {name!r} in the group {PLUGIN_GROUP}, not one")
    try:
        return found[0].load()
    except BaseException as error:
        raise Broken(f"importing {found[0].value} failed: {describe(error)}") from error


def kind_of(thing: Any) -> str:
    """``runtime`` or ``adapter``, by the methods an object (or a class) has. Raises `Broken` for neither."""
    if all(callable(getattr(thing, method, None)) for method in RUNTIME_METHODS):
        return "runtime"
    missing = [method for method in ("load", "generate") if not callable(getattr(thing, method, None))]
    if missing:
        raise Broken(
            f"{_name(thing)} has no {' and no '.join(missing)}: an adapter needs load(model_id) and "
            f"generate(messages, max_tokens, **sampling), a runtime {', '.join(RUNTIME_METHODS)}"
        )
    arguments: list[Any] = [None] if inspect.isclass(thing) else []
    try:
        inspect.signature(thing.load).bind(*arguments, "model")
        inspect.signature(thing.generate).bind(*arguments, [], max_tokens=1, **dict.fromkeys(SAMPLING))
    except TypeError as error:
        raise Broken(
            f"{_name(thing)} does not fit load(model_id) and generate(messages, max_tokens, **sampling): {error}"
        ) from None
    except ValueError:  # a signature that cannot be read, of C code
        pass
    return "adapter"


def make(thing: Any) -> Any:
    """The adapter: an object as it is, a class called without arguments. Raises `Broken`."""
    if not inspect.isclass(thing):
        return thing
    try:
        return thing()
    except BaseException as error:
        raise Broken(f"{_name(thing)}() failed: {describe(error)}") from error


def read_models(listed: Any) -> list[dict[str, Any]]:
    """What an adapter's ``models`` gave: names, or objects with an ``id``. Raises `Broken`."""
    found: list[dict[str, Any]] = []
    try:
        for one in listed:
            entry = {"id": one} if isinstance(one, str) else dict(one)
            if not isinstance(entry["id"], str) or not entry["id"]:
                raise TypeError("an id must be a text")
            json.dumps(entry)
            found.append(entry)
    except (TypeError, ValueError, KeyError) as error:
        raise Broken(f"models() must give names, or objects with an id: {describe(error)}") from error
    return found


def _name(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", None) or type(thing).__qualname__)


class Service:
    """What the process does: one adapter, one model."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._adapter: Any = None
        self._model = ""

    def handle(self, command: Message) -> None:
        """Carry out one command and answer it."""
        handlers: dict[str, Callable[[Message], None]] = {
            "examine": self._examine,
            "start": self._start,
            "load": self._load,
            "serve": self._serve,
            "unload": self._unload,
        }
        try:
            handlers[str(command.get("do"))](command)
        except Broken as error:
            self._protocol.send("failed", reason=error.reason, message=str(error))
        except Exception as error:  # noqa: BLE001 (the parent must hear of it)
            self._protocol.send("failed", reason="runtime_unavailable", message=describe(error))

    def _examine(self, command: Message) -> None:
        thing = import_object(command["name"])
        kind = kind_of(thing)
        models: list[dict[str, Any]] | None = None
        if kind == "adapter" and callable(getattr(thing, "models", None)):
            try:
                models = read_models(make(thing).models())
            except Broken:
                raise
            except BaseException as error:
                raise Broken(f"models() failed: {describe(error)}") from error
        self._protocol.send("examined", kind=kind, models=models)

    def _start(self, command: Message) -> None:
        if command.get("cpus"):
            from benchfleet_agent.runtimes.foundry_pinning import pin

            pin(command["cpus"])
        self._adapter = make(import_object(command["name"]))
        self._protocol.send("started", pid=os.getpid())

    def _load(self, command: Message) -> None:
        begin = time.perf_counter_ns()
        try:
            self._adapter.load(command["model"])
        except BaseException as error:
            raise LoadFailed(f"load({command['model']!r}) failed: {describe(error)}") from error
        load_ns = time.perf_counter_ns() - begin
        self._model = command["model"]
        provider = getattr(self._adapter, "execution_provider", None)
        said = provider if isinstance(provider, str) else None
        self._protocol.send("loaded", load_ns=load_ns, execution_provider=said)

    def _serve(self, _command: Message) -> None:
        self._protocol.send("serving", url=Server(self._adapter, self._model).url)

    def _unload(self, _command: Message) -> None:
        begin = time.perf_counter_ns()
        unload = getattr(self._adapter, "unload", None)
        if callable(unload):
            unload()
        self._protocol.send("unloaded", duration_ns=time.perf_counter_ns() - begin if callable(unload) else None)


def main() -> int:
    """Carry out commands until stdin ends."""
    protocol = take_protocol()
    die_with_parent()
    service = Service(protocol)
    while (command := protocol.receive()) is not None:
        service.handle(command)
    sys.stderr.flush()
    # The adapter's threads and its libraries' exit handlers may take for ever, and nobody needs them.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
