"""A server that already runs, found by its URL: never started or stopped here, and used as politely as it allows.

What it can do beyond OpenAI's protocol is its dialect's matter (`benchfleet_agent.runtimes.dialects`). A model that a
case put into memory is taken out after the case; one that was there stays.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import (
    Endpoint,
    Loaded,
    Model,
    Placement,
    Progress,
    RuntimeDescription,
    port_owner,
    server_discovery,
)
from benchfleet_agent.runtimes.dialects import Client, Dialect, Ready, detect
from benchfleet_agent.runtimes.dialects.client import (
    API_KEY_VARIABLE,
    NO_KEY,
    Unanswered,
    is_remote,
    normalise_url,
)
from benchfleet_agent.runtimes.dialects.foundry_location import locate

__all__ = [
    "API_KEY_VARIABLE",
    "NAME",
    "URL_VARIABLE",
    "EndpointRuntime",
    "EndpointSettings",
    "is_remote",
    "normalise_url",
]

T = TypeVar("T")
NAME = "endpoint"
URL_VARIABLE = "FOUNDRY_LOCAL_ENDPOINT"
"""Where the server is when no setting says it."""
TIMEOUT_S = 5.0
DETECTED_S = 60.0
"""How long a server is taken for what it was."""
OWNER_S = 5.0
UNLOAD_S = 60.0
LINGER_S = 600.0
"""How much longer than its deadline a load is listened for: the server cannot be told to stop."""
CLOSE_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the server is."""

    url: str = ""
    """``http://HOST:PORT``, with or without ``/v1``; empty: whatever server is found running on this host, which gets
    no key."""
    api_key: str = field(default=NO_KEY, repr=False)
    timeout_s: float = TIMEOUT_S
    """For questions to the server; benchmark requests have their own limits."""
    tokenizers: Mapping[str, Path] = field(default_factory=dict)
    """A ``tokenizer.json`` by model id or alias; ``*``: for any other."""

    @classmethod
    def from_environment(
        cls, url: str, tokenizers: Mapping[str, Path] | None = None, environment: Mapping[str, str] = os.environ
    ) -> EndpointSettings:
        """Settings for a URL, with the key the environment holds."""
        return cls(url, environment.get(API_KEY_VARIABLE, "").strip() or NO_KEY, tokenizers=tokenizers or {})


class EndpointRuntime:
    """The server at a URL. Methods may be called by several threads."""

    name = NAME

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        find_service: Callable[[], str | None] = locate,
        find_servers: Callable[[], Sequence[str]] = server_discovery.candidates,
        find_owner: Callable[[int], port_owner.PortOwner] = port_owner.find,
        check_source: Callable[[str], object] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._find_service = find_service
        self._find_servers = find_servers
        self._find_owner = find_owner
        self._check_source = check_source or _refuse_source
        self._client = self._client_of(settings.url) if settings.url else None
        self._lock = threading.Lock()
        self._dialect: Dialect | None = None
        self._detected = 0.0

    @property
    def remote(self) -> bool:
        """Whether the URL names another machine; a server that is found is on this one."""
        return self._client is not None and self._client.remote

    def describe(self) -> RuntimeDescription:
        """Say what answers: a few short requests."""
        try:
            self.ask(lambda dialect: dialect.health())
            dialect = self.dialect()
        except WorkFailed as error:
            self._forget()
            url = self._client.base_url if self._client else ""
            return RuntimeDescription(NAME, False, error.failure.message, endpoint_url=url)
        return self._described(dialect)

    def _described(self, dialect: Dialect) -> RuntimeDescription:
        return RuntimeDescription(
            NAME,
            True,
            version=dialect.version,
            components={dialect.name: dialect.version, **dialect.components} if dialect.version else dialect.components,
            capabilities=dialect.capabilities,
            dialect=dialect.name,
            endpoint_url=dialect.client.base_url,
            found=self.found,
        )

    @property
    def found(self) -> bool:
        """Whether the server is one that was found running here, and not set."""
        return not self._settings.url

    def dialect(self) -> Dialect:
        """What the server speaks, asked anew after a minute; Foundry Local's service is looked for where it is now.

        Raises `WorkFailed` ``runtime_unavailable``.
        """
        with self._lock:
            if self._dialect is None or self._clock() - self._detected > DETECTED_S:
                self._dialect = self._detect()
                self._detected = self._clock()
            return self._dialect

    def ask(self, question: Callable[[Dialect], T]) -> T:
        """Put a question to the server; when nobody listens at its port any more, once more to where it is now."""
        dialect = self.dialect()
        try:
            return question(dialect)
        except Unanswered as error:
            if error.timed_out:
                raise
            self._forget()
            now = self.dialect()
            if now.client.base_url == dialect.client.base_url and not error.refused:
                raise  # it broke off and is there: asking for the same again may break it again
        return question(now)

    def models(self) -> list[Model]:
        """All models of the server.

        Raises `WorkFailed`: ``runtime_unavailable`` when nothing answers, ``http_error``, ``bad_response``.
        """
        return self.ask(lambda dialect: dialect.models())

    def resolve(self, model: str, device: str | None) -> Model:
        """Pin a name to one listed id: the exact id, or the only id that an alias begins.

        Raises `WorkFailed`: ``model_not_found`` (with near names), ``unsupported`` for a device where the server does
        not say what it computes on, and what `models` raises.
        """
        return self.ask(lambda dialect: dialect.resolve(model, device))

    def open(self, model: Model, placement: Placement) -> EndpointSession:
        """A session for one case. Raises `WorkFailed` ``unsupported`` when processors are named."""
        if placement.cpus:
            message = "a server that benchfleet did not start cannot be pinned to processors; leave out `cpus`"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        return EndpointSession(self, model)

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """Have the server download a model."""
        return self.ask(lambda dialect: dialect.pull(model, progress, cancelled, timeout_s))

    def pullable(self, model: str, device: str | None) -> Model:
        """The model of that name; one that the server does not list yet goes by its name.

        Raises `WorkFailed` ``endpoint_not_allowed`` for a name that would have the server ask another one.
        """
        self.ask(lambda dialect: dialect.health())
        dialect = self.dialect()
        if "pull" not in dialect.capabilities:
            raise dialect.cannot("download a model")
        if (source := dialect.source(model)) is not None:
            self._check_source(source)
        try:
            return dialect.resolve(model, device)
        except WorkFailed as error:
            if error.failure.reason is not Reason.MODEL_NOT_FOUND or dialect.variants_by_device:
                raise
        return Model(alias=model, variant=model, device=device, cached=False, loaded=False)

    def remove(self, model: Model) -> int | None:
        """Have the server delete a model."""
        return self.ask(lambda dialect: dialect.remove(model))

    def unload(self, model: Model) -> None:
        """Have the server take a model out of memory."""
        self.ask(lambda dialect: dialect.unload(model, UNLOAD_S))

    def endpoint(self, model: Model, dialect: Dialect, ready: Ready, *, remote: bool) -> Endpoint:
        """Where the load process sends requests for a model that is ready; ``dialect`` is what it was loaded by."""
        known = self._settings.tokenizers
        tokenizer = known.get(model.variant) or known.get(model.alias) or known.get("*")
        away = is_remote(ready.base_url) or remote
        tokenize_url = f"{dialect.client.root}{dialect.tokenize_path}" if dialect.tokenize_path else ""
        return Endpoint(ready.base_url, ready.name, self._settings.api_key, away, tokenizer, tokenize_url)

    def owner(self, dialect: Dialect) -> port_owner.PortOwner:
        """The server's processes on this host."""
        if dialect.client.remote:
            return port_owner.PortOwner(reason="the server is on another machine; run an agent there")
        if pids := dialect.process_ids():
            return port_owner.PortOwner(pids)
        return self._find_owner(dialect.client.port)

    def _forget(self) -> None:
        with self._lock:
            self._dialect = None

    def _client_of(self, url: str) -> Client:
        return Client(normalise_url(url), self._settings.api_key, self._settings.timeout_s)

    def _detect(self) -> Dialect:
        if self._client is None:
            return self._discover()
        try:
            return detect(self._client)
        except Unanswered as error:
            if not self._settings.url:  # it was found, and is gone
                self._client = None
                return self._discover()
            moved = None if self._client.remote or error.timed_out else self._find_service()
            if moved is None or normalise_url(moved) == self._client.base_url:
                raise
            _log.warning("nothing listens at %s any more; Foundry Local's service is at %s", self._client.root, moved)
            found = detect(self._client_of(moved))
            self._client = found.client
            return found

    def _discover(self) -> Dialect:
        """The first server that is found running here, Foundry Local's by its own word first."""
        service = self._find_service()
        for url in dict.fromkeys([*([service] if service else []), *self._find_servers()]):
            with contextlib.suppress(WorkFailed):
                found = detect(self._client_of(url))
                if type(found) is not Dialect or found.models():  # of the rest, only what lists models is a server
                    self._client = found.client
                    return found
        message = "no server is set and none was found running on this host; give its URL with --endpoint"
        raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, message)


def _refuse_source(source: str) -> object:
    raise WorkFailed(Reason.ENDPOINT_NOT_ALLOWED, f"this agent may not have models fetched from {source}")


class EndpointSession:
    """One model of the server, for one case."""

    def __init__(self, runtime: EndpointRuntime, model: Model) -> None:
        self._runtime = runtime
        self._model = model
        self._dialect: Dialect | None = None
        self._owner = port_owner.PortOwner()
        self._owner_asked: float | None = None
        self._killed = threading.Event()
        self._to_unload = False

    def prepare(self, progress: Progress) -> None:
        """See that the server is there, and whose process it is; its models are its own matter."""
        self._runtime.ask(lambda dialect: dialect.health())
        self._meet(self._runtime.dialect())
        if self._runtime.found:
            progress(f"found {self._runtime.dialect().title} at {self._runtime.dialect().client.root}", None)
        if self._owner.reason:
            progress(f"the runtime's memory is not measured: {self._owner.reason}", None)

    def load(self, timeout_s: float) -> Loaded:
        """Have the model loaded where the server can be asked for it; else the first request loads it.

        Raises `WorkFailed`: ``load_timeout`` and ``cancelled`` (the server cannot be stopped from loading: what it then
        has loaded is unloaded when it is done), ``load_failed``, ``model_not_found``, ``ep_mismatch``, ….
        """

        def wait(dialect: Dialect) -> tuple[Dialect, Ready]:
            if dialect is not self._dialect:
                self._meet(dialect)
            return dialect, _Load(dialect, self._model, timeout_s).wait(self._killed)

        dialect, ready = self._runtime.ask(wait)
        self._to_unload = ready.loaded_here
        endpoint = self._runtime.endpoint(self._model, dialect, ready, remote=bool(self._owner.forwarder))
        return Loaded(ready.load_ns, ready.execution_provider, endpoint)

    def _meet(self, dialect: Dialect) -> None:
        """Take this for the server, and see whose process it is."""
        self._dialect = dialect
        self._owner = self._runtime.owner(dialect)
        self._owner_asked = time.monotonic()

    def directory(self) -> Path | None:
        """Unknown: the server has its files."""
        return None

    def process_ids(self) -> tuple[int, ...]:
        """The server's processes; empty when it is on another machine, in a container or another user's."""
        now = time.monotonic()
        if self._owner_asked is None or now - self._owner_asked > OWNER_S:
            self._owner = self._runtime.owner(self._dialect or self._runtime.dialect())
            self._owner_asked = now
        return self._owner.pids

    def check(self) -> None:
        """Raise `WorkFailed` ``runtime_crashed`` when nobody listens any more; a busy server may take its time."""
        try:
            (self._dialect or self._runtime.dialect()).health()
        except Unanswered as error:
            if not error.timed_out:
                raise WorkFailed(Reason.RUNTIME_CRASHED, error.failure.message) from None

    def unload(self, timeout_s: float) -> int | None:
        """Unload what this case loaded; its duration in ns, None when the server cannot, or had it before the case."""
        if not self._to_unload or self._dialect is None:
            return None
        self._to_unload = False
        begin = time.perf_counter_ns()
        self._dialect.unload(self._model, timeout_s)
        return time.perf_counter_ns() - begin

    def close(self, timeout_s: float) -> None:
        """Unload what this case loaded, if that has not happened."""
        with contextlib.suppress(WorkFailed):
            self.unload(min(timeout_s, CLOSE_S))

    def kill(self) -> None:
        """Wait for no load any longer; the server itself is not ours to end."""
        self._killed.set()


class _Load(threading.Thread):
    """A load that its caller can stop waiting for. It then unloads what nobody waits for any more."""

    def __init__(self, dialect: Dialect, model: Model, timeout_s: float) -> None:
        super().__init__(name=f"load-{dialect.name}", daemon=True)
        self._dialect = dialect
        self._model = model
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._abandoned = False
        self._ready: Ready | None = None
        self._error: Exception | None = None

    def wait(self, killed: threading.Event) -> Ready:
        """Load; raises what went wrong, ``load_timeout`` or ``cancelled``."""
        self.start()
        deadline = time.monotonic() + self._timeout_s
        while self.is_alive() and not killed.is_set() and time.monotonic() < deadline:
            self.join(0.05)
        with self._lock:
            if self._ready is not None:
                return self._ready
            self._abandoned = True
        what = f"{self._model.variant} at {self._dialect.client.root}"
        if killed.is_set():
            raise WorkFailed(Reason.CANCELLED, f"the load of {what} was no longer waited for")
        if self._error is None:
            message = (
                f"{what} was not loaded within {self._timeout_s:g} s; raise the load timeout or use a smaller model"
            )
            raise WorkFailed(Reason.LOAD_TIMEOUT, message)
        raise self._error

    def run(self) -> None:
        """Load on this thread."""
        try:
            # Longer than anybody waits for it, so that a load that comes late is seen, and undone.
            ready = self._dialect.load(self._model, self._timeout_s + LINGER_S)
        except Exception as error:  # noqa: BLE001 (handed to the caller)
            self._error = error
            return
        with self._lock:
            self._ready = ready
            abandoned = self._abandoned
        if abandoned and ready.loaded_here:
            with contextlib.suppress(WorkFailed):
                self._dialect.unload(self._model, UNLOAD_S)
