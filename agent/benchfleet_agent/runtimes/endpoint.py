"""Any OpenAI-compatible server that already runs: found by its URL, never started, loaded or stopped here.

Plain on purpose: ``GET /v1/models`` and nothing a particular server adds.
"""

from __future__ import annotations

import difflib
import http.client
import ipaddress
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import Endpoint, Loaded, Model, Placement, Progress, RuntimeDescription

NAME = "endpoint"
API_KEY_VARIABLE = "BENCHFLEET_ENDPOINT_API_KEY"
"""The environment variable that holds the server's key; a key is never a setting, so no file or log shows it."""
TIMEOUT_S = 5.0
_MAXIMUM_ANSWER_BYTES = 8 << 20
_NO_KEY = "not-needed"


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the server is."""

    url: str
    """``http://HOST:PORT``, with or without ``/v1``."""
    api_key: str = field(default=_NO_KEY, repr=False)
    timeout_s: float = TIMEOUT_S
    """For questions to the server; benchmark requests have their own limits."""

    @classmethod
    def from_environment(cls, url: str, environment: Mapping[str, str] = os.environ) -> EndpointSettings:
        """Settings for a URL, with the key the environment holds."""
        return cls(url, environment.get(API_KEY_VARIABLE, "").strip() or _NO_KEY)


def normalise_url(url: str) -> str:
    """The API's base URL: ``/v1`` appended when missing, no trailing slash, a bare ``host:port`` means http.

    Raises `WorkFailed` ``invalid_spec`` when it is no http(s) URL or carries credentials.
    """
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port  # raises for a port that is none
    except ValueError as error:
        raise WorkFailed(
            Reason.INVALID_SPEC, f"the endpoint's URL is malformed ({error}); write http://HOST:PORT"
        ) from None
    if parts.username is not None or parts.password is not None:
        # Not repeated in the message: it would end in a log.
        message = f"the endpoint's URL contains credentials; put the key in {API_KEY_VARIABLE} instead"
        raise WorkFailed(Reason.INVALID_SPEC, message)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WorkFailed(Reason.INVALID_SPEC, f"{url!r} is no http or https URL; write http://HOST:PORT")
    if parts.query or parts.fragment:
        raise WorkFailed(Reason.INVALID_SPEC, "the endpoint's URL has a query or a fragment; leave it out")
    path = parts.path.rstrip("/")
    # A versioned path (/v1, /api/v0, /openai/v1) is the server's own choice and stays.
    if not re.search(r"/v\d+$", path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def is_remote(base_url: str) -> bool:
    """Whether the host is not this one by its name: anything but ``localhost`` and loopback addresses."""
    host = (urllib.parse.urlsplit(base_url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


class EndpointRuntime:
    """An OpenAI-compatible server at a URL."""

    name = NAME

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        if not re.fullmatch(r"[\x21-\x7e]+", settings.api_key):
            # http.client's own error for such a header would show the key.
            message = f"the key in {API_KEY_VARIABLE} has blanks or characters beyond ASCII; correct it"
            raise WorkFailed(Reason.INVALID_SPEC, message)
        self._base_url = normalise_url(settings.url)
        self._remote = is_remote(self._base_url)
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if not self._remote:
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy cannot reach this host's loopback
        self._opener = urllib.request.build_opener(*handlers)

    def describe(self) -> RuntimeDescription:
        """Say whether the server answers (one short request)."""
        try:
            self._list()
        except WorkFailed as error:
            return RuntimeDescription(NAME, False, error.failure.message)
        return RuntimeDescription(NAME, True)

    def models(self) -> list[Model]:
        """What ``GET /v1/models`` lists.

        Raises `WorkFailed`: ``runtime_unavailable`` when nothing answers, ``http_error``, ``bad_response``.
        """
        return [
            Model(alias=_alias(entry["id"]), variant=entry["id"], context_length=_context_length(entry))
            for entry in self._list()
        ]

    def resolve(self, model: str, device: str | None) -> Model:
        """Pin a name to one listed id: the exact id, or the only id that an alias begins.

        Raises `WorkFailed`: ``model_not_found`` (with near names), ``unsupported`` for a device (a server does
        not say what it computes on), and what `models` raises.
        """
        if device is not None:
            message = f"an endpoint does not say which device it uses, so {device} cannot be asked for; leave it out"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        listed = self.models()
        for candidate in listed:
            if candidate.variant == model:
                return candidate
        begun = [candidate for candidate in listed if _begins(candidate.variant, model)]
        if len(begun) == 1:
            return begun[0]
        if begun:
            choices = ", ".join(candidate.variant for candidate in begun[:8])
            raise WorkFailed(Reason.MODEL_NOT_FOUND, f"{model!r} fits {len(begun)} models; name one: {choices}")
        names = [name for candidate in listed for name in {candidate.variant, candidate.alias}]
        near = difflib.get_close_matches(model, names, n=3, cutoff=0.4) or sorted(c.variant for c in listed)[:3]
        advice = f"it has {' and '.join(near)}" if near else "it lists no model at all; load one there first"
        raise WorkFailed(Reason.MODEL_NOT_FOUND, f"{self._base_url} has no model {model!r}; {advice}")

    def open(self, model: Model, placement: Placement) -> EndpointSession:
        """A session for one case. Raises `WorkFailed` ``unsupported`` when processors are named."""
        if placement.cpus:
            message = "a server that benchfleet did not start cannot be pinned to processors; leave out `cpus`"
            raise WorkFailed(Reason.UNSUPPORTED, message)
        return EndpointSession(self, Endpoint(self._base_url, model.variant, self._settings.api_key, self._remote))

    def _list(self) -> list[dict[str, Any]]:
        url = f"{self._base_url}/models"
        headers = {"Accept": "application/json"}
        if self._settings.api_key != _NO_KEY:
            headers["Authorization"] = f"Bearer {self._settings.api_key}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (http and https only, see normalise_url)
        try:
            with self._opener.open(request, timeout=self._settings.timeout_s) as answer:
                body = answer.read(_MAXIMUM_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise WorkFailed(Reason.HTTP_ERROR, _explain_status(url, error.code)) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            message = f"nothing usable answers at {url} ({cause}); start the server or correct the URL"
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, message) from None
        return _read_models(url, body)


class EndpointSession:
    """One model of the server, for one case; there is nothing to start and nothing to end."""

    def __init__(self, runtime: EndpointRuntime, endpoint: Endpoint) -> None:
        self._runtime = runtime
        self._endpoint = endpoint

    def prepare(self, progress: Progress) -> None:
        """Nothing to do: the server has its models."""

    def load(self, timeout_s: float) -> Loaded:
        """Ask whether the server still lists the model; it loads when the first request comes.

        Raises `WorkFailed` as `EndpointRuntime.resolve`.
        """
        self._runtime.resolve(self._endpoint.model, None)
        return Loaded(load_ns=None, execution_provider=None, endpoint=self._endpoint)

    def directory(self) -> None:
        """Unknown: the server has its files."""

    def process_ids(self) -> tuple[int, ...]:
        """Unknown: benchfleet did not start the server."""
        return ()

    def check(self) -> None:
        """Raise `WorkFailed` ``runtime_crashed`` when the server does not answer any more."""
        try:
            self._runtime.models()
        except WorkFailed as error:
            if error.failure.reason is Reason.RUNTIME_UNAVAILABLE:
                raise WorkFailed(Reason.RUNTIME_CRASHED, error.failure.message) from None
            raise

    def unload(self, timeout_s: float) -> int | None:
        """None: an OpenAI-compatible server has no call for it."""
        return None

    def close(self, timeout_s: float) -> None:
        """Nothing to end."""

    def kill(self) -> None:
        """Nothing to end."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host; it ends as an error instead."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        return None


def _explain_status(url: str, status: int) -> str:
    if status in (401, 403):
        return f"{url} answered HTTP {status}: set the server's key in {API_KEY_VARIABLE} on the agent's host"
    if 300 <= status < 400:
        return f"{url} answered HTTP {status}, a redirect, which is not followed; give the server's final URL"
    return f"{url} answered HTTP {status}; is it an OpenAI-compatible server?"


def _read_models(url: str, body: bytes) -> list[dict[str, Any]]:
    try:
        if len(body) > _MAXIMUM_ANSWER_BYTES:
            raise ValueError(f"more than {_MAXIMUM_ANSWER_BYTES} bytes")
        entries = json.loads(body)["data"] or []  # Ollama answers null for an empty list
        models = [entry for entry in entries if isinstance(entry["id"], str)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"{url} does not answer as an OpenAI-compatible server does ({type(error).__name__}: {error})"
        raise WorkFailed(Reason.BAD_RESPONSE, f"{message}; correct the URL") from None
    return models


def _begins(variant: str, alias: str) -> bool:
    """Whether an alias begins an id at a boundary: ``qwen2.5`` begins ``qwen2.5:0.5b``, not ``qwen2.55``."""
    return bool(alias) and variant.startswith(alias) and not variant[len(alias)].isalnum()


def _alias(variant: str) -> str:
    """The id without a tag or version (``name:tag``)."""
    return variant.partition(":")[0] or variant


def _context_length(entry: Mapping[str, Any]) -> int | None:
    for key in ("context_length", "max_model_len", "max_context_length"):  # llama.cpp, vLLM, LM Studio name it so
        value = entry.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
