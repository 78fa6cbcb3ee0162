"""What the parent may ask of the load process, validated where it comes in."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed

MAXIMUM_CONCURRENCY = 1024
NO_KEY = "not-needed"
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Where requests go and how: the fields of ``open``. None for a sampling parameter: it is not sent."""

    base_url: str
    """The API's base, e.g. ``http://127.0.0.1:5273/v1``; ``/chat/completions`` is appended."""
    model: str
    api_key: str = field(default=NO_KEY, repr=False)
    stream: bool = True
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    concurrency: int = 1
    """Requests in flight: that many workers, each with a connection of its own."""
    request_timeout_s: float = 600.0
    """From t0 to the end of the answer."""
    first_token_timeout_s: float | None = None
    """From t0 to the first token; streaming only."""
    token_timeout_s: float | None = None
    """From each token to the next sign of progress; streaming only."""
    tokenizer_path: str | None = None
    """A ``tokenizer.json`` that counts when answers do not say how many tokens they hold."""
    tokenize_url: str | None = None
    """Where the server counts when it is asked, for want of such a file (`benchfleet_agent.load.token_counter`)."""
    spool_path: Path | None = None
    """Where finished requests are noted besides (`benchfleet_agent.load.spooling`)."""

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return self.base_url.startswith("https:")

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> LoadSettings:
        """Read ``open``. Raises `WorkFailed` ``invalid_spec`` with what is wrong."""
        concurrency = _number(message, "concurrency", 1, whole=True)
        if concurrency is None or not 1 <= concurrency <= MAXIMUM_CONCURRENCY:
            raise _invalid(f"concurrency must lie between 1 and {MAXIMUM_CONCURRENCY}")
        base_url = _text(message, "base_url")
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _invalid("base_url must be http://HOST:PORT/… or https://HOST:PORT/…")
        return cls(
            base_url=base_url.rstrip("/"),
            model=_text(message, "model"),
            api_key=message.get("api_key") or NO_KEY,
            stream=bool(message.get("stream", True)),
            max_tokens=_whole(message, "max_tokens"),
            temperature=_number(message, "temperature"),
            top_p=_number(message, "top_p"),
            seed=_whole(message, "seed"),
            concurrency=int(concurrency),
            request_timeout_s=positive(message, "request_timeout_s") or 600.0,
            first_token_timeout_s=positive(message, "first_token_timeout_s"),
            token_timeout_s=positive(message, "token_timeout_s"),
            tokenizer_path=None if message.get("tokenizer_path") is None else _text(message, "tokenizer_path"),
            tokenize_url=None if message.get("tokenize_url") is None else _text(message, "tokenize_url"),
            spool_path=None if message.get("spool_path") is None else Path(_text(message, "spool_path")),
        )


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request to send."""

    request_id: str
    prompt_id: str
    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int | None = None
    """Overrides `LoadSettings.max_tokens`; None does not."""
    position: int = 0
    """Place in the round, in the order of starting."""
    prefix: str = ""
    """Put before the first message's text; empty: nothing."""
    scheduled_ns: int | None = None
    """Open loop: when it is due (perf_counter)."""

    @classmethod
    def from_dict(cls, message: Any) -> RequestSpec:
        """Read one of ``round``'s requests. Raises `WorkFailed` ``invalid_spec``."""
        if not isinstance(message, dict):
            raise _invalid("a request must be an object")
        messages = message.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise _invalid("a request needs messages: a list of {role, content}")
        return cls(
            request_id=_text(message, "request_id"),
            prompt_id=_text(message, "prompt_id"),
            messages=tuple(messages),
            max_tokens=_whole(message, "max_tokens"),
        )

    def body(self, settings: LoadSettings) -> dict[str, object]:
        """The request's JSON: everything that decides the answer is sent explicitly, what is None is left out."""
        first = self.messages[0]
        messages = [{**first, "content": self.prefix + str(first.get("content") or "")}, *self.messages[1:]]
        body: dict[str, object] = {
            "model": settings.model,
            "messages": messages if self.prefix else list(self.messages),
        }
        if settings.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        optional = {
            "max_tokens": settings.max_tokens if self.max_tokens is None else self.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": settings.seed,
        }
        return body | {name: value for name, value in optional.items() if value is not None}


def _invalid(message: str) -> WorkFailed:
    return WorkFailed(Reason.INVALID_SPEC, message)


def _text(message: Mapping[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not value:
        raise _invalid(f"{name} must be a text")
    return value


def _number(
    message: Mapping[str, Any], name: str, default: float | None = None, *, whole: bool = False
) -> float | None:
    value = message.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise _invalid(f"{name} must be a {'whole ' if whole else ''}number")
    return value


def _whole(message: Mapping[str, Any], name: str) -> int | None:
    value = _number(message, name, whole=True)
    return None if value is None else int(value)


def positive(message: Mapping[str, Any], name: str) -> float | None:
    """A number above 0, or None when it is not there. Raises `WorkFailed` ``invalid_spec``."""
    value = _number(message, name)
    if value is not None and not value > 0:
        raise _invalid(f"{name} must be above 0")
    return value
