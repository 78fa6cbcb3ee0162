"""Runtimes that other packages bring: entry points of the group ``benchfleet.runtimes`` (docs/adapters.md).

An entry point names either a whole `Runtime` or an *adapter*, an object with ``load`` and ``generate``. It is imported
first in a child process, which says what it is: an import that fails, hangs or ends its process disables one plug-in,
never the agent. An adapter is never imported here at all, `adapter_server` serves it from a child for each case.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import ChildTimeout
from benchfleet_agent.runtimes import (
    PLUGIN_GROUP,
    Model,
    Placement,
    Progress,
    PullingRuntime,
    RemovingRuntime,
    Runtime,
    RuntimeDescription,
    Session,
    UnloadingRuntime,
)
from benchfleet_agent.runtimes.adapter_session import CLOSE_S, AdapterSession, command
from benchfleet_agent.runtimes.dialects import client
from benchfleet_agent.runtimes.dialects.generic import choose, lower, text, whole
from benchfleet_agent.runtimes.foundry_link import ChildLink, FoundrySettings

EXAMINE_S = 60.0
"""How long an import may take; large libraries need many seconds for it."""
DESCRIBE_S = 8.0
"""How long a question about the host waits for that."""
RETRY_S = 300.0
"""How soon a broken plug-in is tried again."""
LISTED_S = 30.0
"""How long a list of models is used."""
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_DEVICES = ("cpu", "gpu", "npu")
_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plug-in, not imported."""

    name: str
    value: str
    """``package.module:object``."""
    distribution: str
    version: str
    problem: str = ""
    """Why it cannot be used under its name."""

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return f"{self.value} of {self.distribution} {self.version}".strip()


def installed(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> list[Plugin]:
    """The installed plug-ins, by name. Reads package metadata; imports nothing."""
    points = importlib.metadata.entry_points(group=PLUGIN_GROUP) if entry_points is None else entry_points
    found = []
    for point in points:
        distribution = getattr(point, "dist", None)
        name, version = (distribution.name, distribution.version) if distribution else ("", "")
        found.append(Plugin(point.name, point.value, name, version))
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def admit(found: Collection[Plugin], built_in: Collection[str]) -> list[Plugin]:
    """The plug-ins with what is wrong with their names: taken ones, doubles, ones that are no name. Pure."""
    counts = Counter(plugin.name for plugin in found)
    admitted = []
    for plugin in found:
        problem = ""
        if plugin.name in built_in:
            problem = f"the name {plugin.name} belongs to benchfleet's own runtime; name the entry point otherwise"
        elif not _NAME.fullmatch(plugin.name):
            problem = f"{plugin.name!r} is no runtime's name: small letters, digits, - and _, a letter first"
        elif counts[plugin.name] > 1:
            others = " and ".join(other.origin for other in found if other.name == plugin.name)
            problem = f"{others} all want the name {plugin.name}; uninstall all but one"
        admitted.append(replace(plugin, problem=problem))
    return admitted


def runtimes(log_dir: Path, built_in: Collection[str]) -> dict[str, Runtime]:
    """The plug-ins' runtimes by name, the broken ones too: they say why. Those that clash are named after their origin.

    Imports nothing.
    """
    found: dict[str, Runtime] = {}
    for plugin in admit(installed(), built_in):
        name = plugin.name
        if name in built_in or name in found:
            name = f"{plugin.name} ({plugin.distribution or plugin.value})"
        found[name] = PluginRuntime(replace(plugin, name=name), log_dir, entry=plugin.name)
    return found


@dataclass(frozen=True, slots=True)
class Examined:
    """What a child process found out about a plug-in."""

    problem: str = ""
    """Why it cannot be used; empty: it can."""
    kind: str = ""
    """``adapter`` or ``runtime``."""
    models: tuple[Model, ...] | None = None
    """Those an adapter lists; None: it lists none, any name may be asked for."""


class PluginRuntime:
    """One plug-in as a runtime. Methods may be called by several threads."""

    def __init__(
        self,
        plugin: Plugin,
        log_dir: Path,
        *,
        entry: str | None = None,
        examine: Callable[[], Examined] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = plugin.name
        self._plugin = plugin
        self._entry = entry or plugin.name
        self._log_dir = log_dir
        self._examine = examine or self._examine_in_child
        self._clock = clock
        self._lock = threading.Lock()
        self._examination: _Examination | None = None
        self._inner: Runtime | None = None

    def describe(self) -> RuntimeDescription:
        """What it is; unavailable with a reason when it is broken. Waits some seconds for its first import."""
        plugin = self._plugin
        components = {plugin.distribution: plugin.version} if plugin.distribution else {}

        def broken(reason: str) -> RuntimeDescription:
            return RuntimeDescription(self.name, False, reason, plugin.version or None, components)

        try:
            examined = self._known(DESCRIBE_S)
            if examined is None:
                return broken(f"{plugin.origin} is still being imported after {DESCRIBE_S:g} s; ask again")
            if examined.kind == "runtime":
                said = self._runtime(examined).describe()
                return replace(said, name=self.name, components={**components, **said.components})
        except WorkFailed as error:
            return broken(error.failure.message)
        except Exception as error:  # noqa: BLE001 (other people's code)
            return broken(f"{plugin.origin}: describe() failed: {type(error).__name__}: {error}")
        capabilities = {"load", "unload", "serve"} | ({"list"} if examined.models is not None else set())
        return RuntimeDescription(
            self.name, True, None, plugin.version or None, components, frozenset(capabilities), "openai"
        )

    @property
    def remote(self) -> bool:
        """Whether the server it names is on another machine."""
        url = self.describe().endpoint_url
        return bool(url) and client.is_remote(url)

    def models(self) -> list[Model]:
        """What it lists; nothing when it does not list, or is broken: `describe` says why."""
        try:
            examined = self._usable(LISTED_S)
        except WorkFailed as error:
            _log.warning("runtime %s lists nothing: %s", self.name, error.failure.message)
            return []
        if examined.kind == "runtime":
            return self._guarded("models", self._runtime(examined).models)
        return list(examined.models or ())

    def resolve(self, model: str, device: str | None) -> Model:
        """The listed model of that name; where nothing is listed, the name as it is. Raises `WorkFailed`."""
        examined = self._usable()
        if examined.kind == "runtime":
            inner = self._runtime(examined)
            return self._guarded("resolve", lambda: inner.resolve(model, device))
        if examined.models is None:
            return Model(alias=model, variant=model, device=device)
        by_device = any(one.device for one in examined.models)
        if device is not None and not by_device:
            message = f"{self._plugin.origin} does not say which device it uses; leave out {device}"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        return choose(model, device, examined.models, f"runtime {self.name}", by_device=by_device)

    def open(self, model: Model, placement: Placement) -> Session:
        """A session for one case."""
        examined = self._usable()
        if examined.kind == "runtime":
            inner = self._runtime(examined)
            return self._guarded("open", lambda: inner.open(model, placement))
        return AdapterSession(self._link(f"adapter child ({self.name})"), self._entry, model, placement)

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """As the plug-in does it, if it does."""
        inner = self._own()
        if isinstance(inner, PullingRuntime):
            return inner.pull(model, progress, cancelled, timeout_s)
        raise self._cannot("download models")

    def remove(self, model: Model) -> int | None:
        """As the plug-in does it, if it does."""
        inner = self._own()
        if isinstance(inner, RemovingRuntime):
            return inner.remove(model)
        raise self._cannot("delete models")

    def unload(self, model: Model) -> None:
        """As the plug-in does it, if it does."""
        inner = self._own()
        if not isinstance(inner, UnloadingRuntime):
            raise self._cannot("unload models outside a case")
        inner.unload(model)

    def _own(self) -> Runtime | None:
        """The plug-in's runtime, if it brings one."""
        examined = self._usable()
        return self._runtime(examined) if examined.kind == "runtime" else None

    def _cannot(self, what: str) -> WorkFailed:
        return WorkFailed(Reason.UNSUPPORTED, f"runtime {self.name} ({self._plugin.origin}) cannot {what}")

    def _usable(self, fresh_s: float | None = None) -> Examined:
        examined = self._known(EXAMINE_S + CLOSE_S, fresh_s)
        assert examined is not None  # the examination has a deadline of its own
        return examined

    def _known(self, wait_s: float, fresh_s: float | None = None) -> Examined | None:
        """What the examination found, at most so old; None when it is not through yet.

        Without `fresh_s` a good one is kept for ever: another import would disturb what is being measured.
        Raises `WorkFailed` for a broken plug-in.
        """
        if self._plugin.problem:
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, self._plugin.problem)
        with self._lock:
            last = self._examination
            if last is None or last.older_than(RETRY_S if last.broken else fresh_s):
                self._examination = last = _Examination(self._examine, self._clock)
        examined = last.wait(wait_s)
        if examined is not None and examined.problem:
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, f"{self._plugin.origin}: {examined.problem}")
        return examined

    def _runtime(self, examined: Examined) -> Runtime:
        """The plug-in's own runtime: imported here, after a child has survived the same import."""
        with self._lock:
            if self._inner is None:
                try:
                    (point,) = importlib.metadata.entry_points(group=PLUGIN_GROUP, name=self._entry)
                    made = point.load()
                    self._inner = made() if isinstance(made, type) else made
                except Exception as error:
                    message = f"{self._plugin.origin} could not be made: {type(error).__name__}: {error}"
                    raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, message) from error
            return self._inner

    def _guarded(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except WorkFailed:
            raise
        except Exception as error:
            _log.exception("runtime %s", self.name)
            message = f"{self._plugin.origin}: {what}() failed: {type(error).__name__}: {error}"
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, message) from error

    def _link(self, name: str) -> ChildLink:
        settings = FoundrySettings(self._log_dir.parent, self._log_dir.parent, self._log_dir)
        return ChildLink(settings, name)

    def _examine_in_child(self) -> Examined:
        link = self._link(f"plug-in {self.name}")
        try:
            link.spawn(command())
            answer = link.ask({"do": "examine", "name": self._entry}, "examined", EXAMINE_S)
        except WorkFailed as error:
            return Examined(error.failure.message)
        except ChildTimeout:
            return Examined(f"its import took longer than {EXAMINE_S:g} s")
        finally:
            link.kill()
        return read_examined(answer)


class _Examination:
    """One examination on a thread of its own."""

    def __init__(self, examine: Callable[[], Examined], clock: Callable[[], float]) -> None:
        self._ended: float | None = None
        self._examine = examine
        self._clock = clock
        self._found: Examined | None = None
        self._thread = threading.Thread(target=self._run, name="plug-in", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> Examined | None:
        """What was found; None when it is not through yet."""
        self._thread.join(timeout_s)
        return self._found

    @property
    def broken(self) -> bool:
        """It found a problem."""
        return self._found is not None and bool(self._found.problem)

    def older_than(self, seconds: float | None) -> bool:
        """Whether it ended longer ago; None: no age is too old."""
        return seconds is not None and self._ended is not None and self._clock() - self._ended > seconds

    def _run(self) -> None:
        try:
            self._found = self._examine()
        except Exception as error:  # noqa: BLE001 (nobody may wait for ever)
            self._found = Examined(f"{type(error).__name__}: {error}")
        self._ended = self._clock()


def read_examined(answer: Mapping[str, Any]) -> Examined:
    """What the child found, as values. Pure."""
    listed = answer.get("models")
    models = None if listed is None else tuple(_model(entry) for entry in listed)
    return Examined(kind=str(answer.get("kind")), models=models)


def _model(entry: Mapping[str, Any]) -> Model:
    device, tags = entry.get("device"), entry.get("capabilities")
    return Model(
        alias=text(entry.get("alias")) or str(entry["id"]),
        variant=str(entry["id"]),
        device=device if device in _DEVICES else None,
        execution_provider=text(entry.get("execution_provider")),
        size_bytes=whole(entry.get("size_bytes")),
        license=text(entry.get("license")),
        context_length=whole(entry.get("context_length")),
        capabilities=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        cached=entry.get("cached") if isinstance(entry.get("cached"), bool) else None,
        loaded=False,
        quantisation=lower(entry.get("quantisation")),
    )
