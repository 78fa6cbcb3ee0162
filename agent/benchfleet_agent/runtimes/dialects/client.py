"""Questions to one server: JSON in, JSON out, with short timeouts. Benchmark requests never pass here."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from benchfleet.addresses import is_loopback
from benchfleet.failures import Reason, WorkFailed

API_KEY_VARIABLE = "BENCHFLEET_ENDPOINT_API_KEY"
"""The environment variable that holds the server's key; a key is never a setting, so no file or log shows it."""
NO_KEY = "not-needed"
MAXIMUM_ANSWER_BYTES = 8 << 20
_EXCERPT_BYTES = 2_000
_SHORTEST_KEY = 8
"""Anything shorter is no secret and may be part of any word."""


class Refused(WorkFailed):
    """The server answered with an HTTP error."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(Reason.HTTP_ERROR, message)
        self.status = status
        self.said = said
        """The answer's body, as text, its beginning."""


class Unanswered(WorkFailed):
    """Nothing usable came back."""

    def __init__(self, message: str, *, timed_out: bool, refused: bool = False) -> None:
        super().__init__(Reason.RUNTIME_UNAVAILABLE, message)
        self.timed_out = timed_out
        """It may be there and busy; else nobody listens."""
        self.refused = refused
        """Nobody listens at the port: the request was certainly not begun."""


class Client:
    """One server at ``base_url`` (the OpenAI API's, with its version) and ``root`` (without)."""

    def __init__(self, base_url: str, api_key: str = NO_KEY, timeout_s: float = 5.0) -> None:
        if not re.fullmatch(r"[\x21-\x7e]+", api_key):
            # http.client's own error for such a header would show the key.
            message = f"the key in {API_KEY_VARIABLE} has blanks or characters beyond ASCII; correct it"
            raise WorkFailed(Reason.INVALID_SPEC, message)
        self.base_url = base_url
        self.root = root_of(base_url)
        self.timeout_s = timeout_s
        self.remote = is_remote(base_url)
        self._api_key = api_key
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if not self.remote:
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy cannot reach this host's loopback
        self._opener = urllib.request.build_opener(*handlers)

    @property
    def port(self) -> int:
        """The TCP port."""
        parts = urllib.parse.urlsplit(self.base_url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def get(self, url: str, timeout_s: float | None = None) -> Any:
        """The JSON behind a URL; a path is one under ``root``. Raises `Refused`, `Unanswered`, ``bad_response``."""
        return self._json(self._request(url, "GET", None), timeout_s)

    def send(self, method: str, url: str, body: Mapping[str, Any], timeout_s: float | None = None) -> Any:
        """Send JSON; the JSON that came back, None for an empty body. Raises as `get`."""
        return self._json(self._request(url, method, body), timeout_s)

    def lines(self, url: str, body: Mapping[str, Any], timeout_s: float) -> Iterator[bytes]:
        """POST JSON and yield the answer's lines as they come; ``timeout_s`` bounds the silence between two."""
        request = self._request(url, "POST", body)
        try:
            with self._open(request, timeout_s) as answer:
                while line := answer.readline(MAXIMUM_ANSWER_BYTES):
                    yield self._without_key(line)
        except (OSError, http.client.HTTPException) as error:
            raise self._unanswered(request.full_url, error) from None

    def probe(self, path: str, timeout_s: float) -> Any:
        """The JSON of a path, or None when the server answers otherwise. Raises `Unanswered` when it does not."""
        try:
            return self.get(path, timeout_s)
        except Unanswered:
            raise
        except WorkFailed:
            return None

    def _request(self, url: str, method: str, body: Mapping[str, Any] | None) -> urllib.request.Request:
        headers = {"Accept": "application/json"}
        if self._api_key != NO_KEY:
            headers["Authorization"] = f"Bearer {self._api_key}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        full = self.root + url if url.startswith("/") else url
        return urllib.request.Request(full, data, headers, method=method)  # noqa: S310 (http and https only)

    def _open(self, request: urllib.request.Request, timeout_s: float | None) -> Any:
        try:
            return self._opener.open(request, timeout=self.timeout_s if timeout_s is None else timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                said = self._without_key(_excerpt(error)).decode(errors="replace")
            raise Refused(_explain_status(request.full_url, error.code, said), error.code, said) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unanswered(request.full_url, error) from None

    def _json(self, request: urllib.request.Request, timeout_s: float | None) -> Any:
        url = request.full_url
        with self._open(request, timeout_s) as answer:
            try:
                body = answer.read(MAXIMUM_ANSWER_BYTES + 1)
            except (OSError, http.client.HTTPException) as error:
                raise self._unanswered(url, error) from None
        if not body.strip():
            return None
        try:
            if len(body) > MAXIMUM_ANSWER_BYTES:
                raise ValueError(f"more than {MAXIMUM_ANSWER_BYTES} bytes")
            return json.loads(self._without_key(body))
        except (ValueError, RecursionError) as error:
            raise bad_answer(url, error) from None

    def _without_key(self, said: bytes) -> bytes:
        """Some servers repeat the key they refuse; it must not end in a message."""
        key = self._api_key
        return said if key == NO_KEY or len(key) < _SHORTEST_KEY else said.replace(key.encode(), b"***")

    def _unanswered(self, url: str, error: Exception) -> Unanswered:
        cause = getattr(error, "reason", None) or error
        timed_out = isinstance(cause, TimeoutError) or isinstance(error, TimeoutError)
        why = self._without_key(str(cause).encode(errors="replace")).decode()
        return Unanswered(
            f"nothing usable answers at {url} ({why}); start the server or correct the URL",
            timed_out=timed_out,
            refused=isinstance(cause, ConnectionRefusedError),
        )


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


def root_of(base_url: str) -> str:
    """Where a server's own paths begin: the base URL without API version and without Foundry Local's catalog."""
    return re.sub(r"(/catalogs/local|/api)?/v\d+$", "", base_url)


def is_remote(base_url: str) -> bool:
    """Whether the host is not this one by its name: anything but ``localhost`` and loopback addresses."""
    host = (urllib.parse.urlsplit(base_url).hostname or "").rstrip(".")
    return not (is_loopback(host) or host.endswith(".localhost"))  # RFC 6761, section 6.3


def bad_answer(url: str, error: Exception | str) -> WorkFailed:
    """The failure for an answer that is not what this kind of server says."""
    what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return WorkFailed(
        Reason.BAD_RESPONSE, f"{url} does not answer as its kind of server does ({what}); correct the URL"
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host; it ends as an error instead."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        return None


def _excerpt(error: urllib.error.HTTPError) -> bytes:
    try:
        return bytes(error.read(_EXCERPT_BYTES))
    except (OSError, http.client.HTTPException):
        return b""


def _explain_status(url: str, status: int, said: str) -> str:
    words = " ".join(said.split())[:300]
    if status in (401, 403):
        return f"{url} answered HTTP {status}: set the server's key in {API_KEY_VARIABLE} on the agent's host"
    if 300 <= status < 400:
        return f"{url} answered HTTP {status}, a redirect, which is not followed; give the server's final URL"
    if words:
        return f"{url} answered HTTP {status}: {words}"
    return f"{url} answered HTTP {status}; is it an OpenAI-compatible server?"
