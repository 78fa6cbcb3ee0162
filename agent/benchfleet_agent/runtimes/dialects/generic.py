"""What every OpenAI-compatible server can do, and the class that the others extend."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Model, Progress
from benchfleet_agent.runtimes.dialects.client import Client, bad_answer

PROBE_S = 2.0
"""How long a server may take to answer a question that only tells its kind."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A model that answers."""

    name: str
    """What requests call it."""
    base_url: str
    load_ns: int | None = None
    """Duration of the load; None: it was loaded already, or is loaded by the first request."""
    execution_provider: str | None = None
    """What it runs on, as the server says after the load; None: it does not say."""
    loaded_here: bool = False
    """This load put it into memory."""


class Dialect:
    """A server of which nothing is known but that it speaks OpenAI's protocol: it lists, and loads when asked first."""

    name: ClassVar[str] = "openai"
    title: ClassVar[str] = "an OpenAI-compatible server"
    capabilities: ClassVar[frozenset[str]] = frozenset({"list"})
    tells_device: ClassVar[bool] = False
    """Whether a device can be asked for: the server has variants by device, or says where a loaded model lies."""
    variants_by_device: ClassVar[bool] = False
    """Whether one alias stands for a variant for each device."""
    health_path: ClassVar[str] = ""
    """A path under the root that is answered at once; empty: the listing."""
    tokenize_path: ClassVar[str] = ""
    """A path under the root that counts a text's tokens (`Endpoint.tokenize_url`); empty: there is none."""
    advice: ClassVar[str] = "use the program that runs it"
    """Who can do what this dialect cannot."""

    def __init__(self, client: Client, version: str | None = None, components: Mapping[str, str] | None = None) -> None:
        self.client = client
        self.version = version
        self.components = dict(components or {})

    @classmethod
    def detect(cls, client: Client) -> Dialect | None:
        """The dialect, if the server speaks it. Asks without side effects. Raises `Unanswered`."""
        return cls(client)

    def models(self) -> list[Model]:
        """What the server lists. Raises `WorkFailed`: ``runtime_unavailable``, ``http_error``, ``bad_response``."""
        return [
            Model(alias=alias_of(entry["id"]), variant=entry["id"], context_length=context_length(entry))
            for entry in self.listing()
        ]

    def resolve(self, model: str, device: str | None) -> Model:
        """Pin a name (and a device) to one model. Raises `WorkFailed` ``model_not_found``, ``unsupported``."""
        if device is not None and not self.tells_device:
            message = f"{self.title} does not say which device it uses, so {device} cannot be asked for; leave it out"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        return choose(model, device, self.models(), self.client.root, by_device=self.variants_by_device)

    def health(self) -> None:
        """Ask for a sign of life. Raises `WorkFailed`."""
        self.client.get(self.health_path or f"{self.client.base_url}/models")

    def process_ids(self) -> tuple[int, ...]:
        """Processes the server itself names; empty: it names none."""
        return ()

    def load(self, model: Model, timeout_s: float) -> Ready:
        """Make the model answer. Here: see that it is still listed; the first request loads it."""
        self.resolve(model.variant, None)
        return Ready(model.variant, self.client.base_url)

    def unload(self, model: Model, timeout_s: float) -> None:
        """Take it out of memory."""
        raise self.cannot("unload a model")

    def source(self, model: str) -> str | None:
        """Where a pull of that name would go besides the server's own library, as ``scheme://host``; None: nowhere."""
        return "/".join(model.split("/")[:3]) if "://" in model else None

    def pull(self, model: Model, progress: Progress, cancelled: Callable[[], bool], timeout_s: float) -> Model:
        """Download it."""
        raise self.cannot("download a model")

    def remove(self, model: Model) -> int | None:
        """Delete it; bytes freed."""
        raise self.cannot("delete a model")

    def listing(self, url: str = "", timeout_s: float | None = None) -> list[dict[str, Any]]:
        """The entries of OpenAI's ``GET /models``."""
        url = url or f"{self.client.base_url}/models"
        return entries(url, self.client.get(url, timeout_s), "data", "id")

    def cannot(self, what: str) -> WorkFailed:
        """The failure for what this server has no call for."""
        return WorkFailed(Reason.UNSUPPORTED, f"{self.title} has no call to {what}; {self.advice}")


def entries(url: str, document: Any, key: str | None, name: str) -> list[dict[str, Any]]:
    """The objects of a listing that have a text under `name`. Raises `WorkFailed` ``bad_response``.

    `key` is where the list lies; None: the document is the list.
    """
    try:
        # Ollama answers null for an empty list.
        found = (document if key is None else document[key]) or []
        if not isinstance(found, list):
            raise TypeError(f"{key or 'the answer'} is no list")
        return [entry for entry in found if isinstance(entry[name], str)]
    except (KeyError, TypeError, IndexError) as error:
        raise bad_answer(url, error) from None


def names_of(url: str, document: Any) -> list[str]:
    """A list of names, or of objects with an ``id`` or a ``name``. Raises `WorkFailed` ``bad_response``."""
    if document is None:
        return []
    if not isinstance(document, list):
        raise bad_answer(url, "no list")
    found = [entry if isinstance(entry, str) else entry.get("id") or entry.get("name")
             for entry in document if isinstance(entry, str | dict)]  # fmt: skip
    return [name for name in found if isinstance(name, str)]


def choose(model: str, device: str | None, listed: Sequence[Model], where: str, *, by_device: bool = False) -> Model:
    """The listed model of that name: by exact id, else by alias, else the only id that the name begins.

    Of variants by device (`by_device`) with one alias the device decides; without one, Foundry Local's own order (NPU,
    GPU, CPU; a vendor's before a generic one), whatever is cached, so that hosts choose alike.
    Raises `WorkFailed` ``model_not_found`` with near names.
    """
    matches = [one for one in listed if one.variant == model]
    by_alias = not matches
    matches = matches or sorted((one for one in listed if one.alias == model), key=_preference)
    by_alias = by_alias and by_device and bool(matches)
    matches = matches or [one for one in listed if _begins(one.variant, model)]
    if device is not None and by_device:
        fitting = [one for one in matches if one.device == device]
        if not fitting:
            others = ", ".join(one.variant for one in matches[:8])
            raise WorkFailed(Reason.MODEL_NOT_FOUND, f"{where} has no {model!r} for {device}, only {others}")
        matches = fitting
    if len(matches) == 1 or (matches and by_alias):
        return matches[0]
    if matches:
        choices = ", ".join(one.variant for one in matches[:8])
        raise WorkFailed(Reason.MODEL_NOT_FOUND, f"{model!r} fits {len(matches)} models; name one: {choices}")
    names = [name for one in listed for name in {one.variant, one.alias}]
    near = difflib.get_close_matches(model, names, n=3, cutoff=0.4) or sorted(one.variant for one in listed)[:3]
    advice = f"it has {' and '.join(near)}" if near else "it lists no model at all; load one there first"
    raise WorkFailed(Reason.MODEL_NOT_FOUND, f"{where} has no model {model!r}; {advice}")


def _preference(model: Model) -> tuple[int, bool]:
    order = ("npu", "gpu", "cpu")
    return order.index(model.device) if model.device in order else len(order), "-generic-" in model.variant


def _begins(variant: str, alias: str) -> bool:
    """Whether an alias begins an id at a boundary: ``qwen2.5`` begins ``qwen2.5:0.5b``, not ``qwen2.55``."""
    return bool(alias) and variant.startswith(alias) and not variant[len(alias) : len(alias) + 1].isalnum()


def alias_of(variant: str) -> str:
    """The id without a tag or version (``name:tag``)."""
    return variant.partition(":")[0] or variant


def context_length(entry: Mapping[str, Any]) -> int | None:
    """The context length under the names servers give it."""
    for key in ("context_length", "max_model_len", "max_context_length"):  # llama.cpp, vLLM, LM Studio
        if (value := whole(entry.get(key))) is not None:
            return value
    return None


def whole(value: object) -> int | None:
    """A positive whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def text(value: object) -> str | None:
    """A text that is not empty, else None."""
    return value if isinstance(value, str) and value else None


def lower(value: object) -> str | None:
    """`text` in lower case."""
    return value.lower() if isinstance(value, str) and value else None
