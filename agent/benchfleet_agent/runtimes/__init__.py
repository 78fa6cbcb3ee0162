"""What serves models: one file per runtime, one small interface, a registry by name.

A `Runtime` lives as long as the agent and answers questions; a `Session` lives for one case and holds
the model. Failures are `benchfleet.failures.WorkFailed` with a reason from the closed list. A runtime
whose library is missing describes itself as unavailable and never harms the agent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

PLUGIN_GROUP = "benchfleet.runtimes"
"""The entry points by which other packages bring runtimes and adapters (docs/adapters.md)."""
CAPABILITIES = {
    "list": "lists what it can serve",
    "pull": "fetches models",
    "load": "loads on request",
    "unload": "unloads on request",
    "remove": "deletes models",
    "serve": "is started and ended by the agent",
    "direct": "answers without HTTP, too",
    "timings": "tells how long prefill and decoding took by its own clock, which is kept",
    "usage_in_stream": "counts tokens in streamed answers",
    "exact_token_count": "can count a prompt's tokens without answering it",
    "can_pick_variant": "loads the very variant that is asked for, not its own choice for an alias",
    "can_register_eps": "fetches and registers execution providers",
    "cancel_on_disconnect": "stops computing when its client leaves",
    "prefix_cache_control": "has a switch for its prefix cache in requests",
    "multi_model": "holds several models in memory at once",
}
"""Words of `RuntimeDescription.capabilities`, with what each says. A word is there where it is known; one that is
missing may be true all the same."""

Progress = Callable[[str, float | None], None]
"""Called with a message for people and the fraction done (0 to 1, None when unknown)."""


@dataclass(frozen=True, slots=True)
class Model:
    """One variant a runtime can serve. None: the runtime does not say."""

    alias: str
    variant: str
    device: str | None = None
    """``cpu``, ``gpu`` or ``npu``."""
    execution_provider: str | None = None
    size_bytes: int | None = None
    license: str | None = None
    context_length: int | None = None
    capabilities: tuple[str, ...] = ()
    cached: bool | None = None
    loaded: bool | None = None
    quantisation: str | None = None
    """How its weights are stored, in lower case: ``int4``, ``q4_k_m``."""


@dataclass(frozen=True, slots=True)
class ExecutionProvider:
    """A provider that a runtime could use on this host."""

    name: str
    downloaded: bool
    """Whether it is on the host; variants for one that is not may be missing from the listing."""
    registered: bool
    """Whether the runtime could use it when it was last asked."""


@dataclass(frozen=True, slots=True)
class RuntimeDescription:
    """What a host's inventory says of a runtime."""

    name: str
    available: bool
    reason: str | None = None
    """Why it is not available, and what would make it so."""
    version: str | None = None
    components: dict[str, str] = field(default_factory=dict)
    """Versions of the parts, e.g. ``{"onnxruntime": "1.31.0"}``."""
    capabilities: frozenset[str] = frozenset()
    """What it can be asked to do and what it tells, of `CAPABILITIES`."""
    dialect: str = ""
    """The protocol an endpoint speaks, e.g. ``ollama``; empty: no endpoint, or it did not answer."""
    endpoint_url: str = ""
    """Where it serves; empty: it serves only while a case runs."""
    found: bool = False
    """It was found running on the host; nobody set it up for this agent."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the load process sends requests."""

    base_url: str
    model: str
    """The name the server wants in the request's ``model`` field."""
    api_key: str = field(default="not-needed", repr=False)
    remote: bool = False
    """Not on the agent's host: no process metrics, and latencies include the network."""
    tokenizer: Path | None = None
    """The model's ``tokenizer.json`` where it is known apart from the model's directory."""
    tokenize_url: str = ""
    """Where the server counts a text's tokens when it is asked, as llama.cpp's does; empty: it does not."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready: what loading took, and what the runtime says it runs on."""

    load_ns: int | None
    """Duration of the load call; None when the runtime loads on the first request."""
    execution_provider: str | None
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a case's runtime may run. Empty: anywhere."""

    cpus: tuple[int, ...] = ()
    """Logical processors the runtime is pinned to (Linux and Windows)."""


class Session(Protocol):
    """One model in one case. Called by one thread; `kill` may come from another."""

    def prepare(self, progress: Progress) -> None:
        """Make the model present on the host (download or build). May take minutes."""

    def load(self, timeout_s: float) -> Loaded:
        """Load and serve the model; on ``load_timeout`` the session is killed."""

    def directory(self) -> Path | None:
        """Where the model's files lie, once prepared; None: not known, or not on this host."""

    def process_ids(self) -> tuple[int, ...]:
        """Roots of the process trees that hold the model; empty when unknown or remote."""

    def check(self) -> None:
        """Raise `WorkFailed` (``runtime_crashed``) when the runtime is gone, saying how it ended."""

    def unload(self, timeout_s: float) -> int | None:
        """Unload the model; its duration in ns, or None when the runtime cannot."""

    def close(self, timeout_s: float) -> None:
        """Stop whatever the session started; kill it past the deadline. Never raises; idempotent."""

    def kill(self) -> None:
        """End it now. Never raises; idempotent."""


class Runtime(Protocol):
    """Something that serves models on this host."""

    name: str

    def describe(self) -> RuntimeDescription:
        """Say what it is, without starting anything heavy."""

    def models(self) -> list[Model]:
        """All variants it could serve."""

    def resolve(self, model: str, device: str | None) -> Model:
        """Pin an alias or a variant id (and a device, if given) to one variant.

        Raises `WorkFailed` ``model_not_found`` and names the near ones.
        """

    def open(self, model: Model, placement: Placement) -> Session:
        """A session for one case; starts no process before `Session.prepare`."""


@runtime_checkable
class RemoteRuntime(Protocol):
    """A runtime that may be on another machine."""

    @property
    def remote(self) -> bool:
        """Whether it is: nothing of this host then speaks of its work."""


def is_remote(runtime: Runtime) -> bool:
    """Whether a runtime is on another machine."""
    return isinstance(runtime, RemoteRuntime) and runtime.remote


@runtime_checkable
class PullingRuntime(Protocol):
    """A runtime that can make models present on the host."""

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """Download the model unless it is there; the model as it is now.

        ``timeout_s`` bounds the silence between two signs of progress. Raises `WorkFailed`: ``unsupported`` (saying
        who can), ``model_not_found``, ``download_failed``, ``disk_full``, ``cancelled``.
        """


@runtime_checkable
class LibraryRuntime(Protocol):
    """A pulling runtime that lists only what the host has: what it could pull, it knows by name only."""

    def pullable(self, model: str, device: str | None) -> Model:
        """What `PullingRuntime.pull` is asked for under a name: the listed model, else one of that name, unlisted.

        Raises `WorkFailed`: ``unsupported`` (saying who can), ``runtime_unavailable``.
        """


@runtime_checkable
class ProvidingRuntime(Protocol):
    """A runtime whose variants depend on execution providers that come apart from it."""

    def providers(self) -> tuple[ExecutionProvider, ...]:
        """The providers beside the CPU's, as `Runtime.models` last found them; nothing is asked anew."""


@runtime_checkable
class RemovingRuntime(Protocol):
    """A runtime that can delete models from the host."""

    def remove(self, model: Model) -> int | None:
        """Delete the model's files; bytes freed, None when the runtime does not say.

        Raises `WorkFailed`: ``unsupported`` (saying who can), ``model_not_found``, ``model_in_use``.
        """


@runtime_checkable
class UnloadingRuntime(Protocol):
    """A runtime that can take models out of memory outside a case."""

    def unload(self, model: Model) -> None:
        """Take the model out of memory. Raises `WorkFailed`: ``unsupported`` (saying who can), ``not_loaded``."""
