"""What an HTTP error means: status and body in, a reason and a message for people out. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from benchfleet.failures import Failure, Reason

_EXCERPT_LENGTH = 400
# OpenAI: context_length_exceeded; Foundry Local: "exceeds the model's maximum context length" (400, or
# when streamed an error object after 200);
# llama.cpp: "exceeds the available context size"; vLLM: "maximum context length is"; others: "context window".
_OVERFLOW = re.compile(
    r"context[ _]?(length|size|window)|exceed_context|maximum context|prompt is too long", re.IGNORECASE
)
# Foundry Local's legacy service says so with 400 or 500 (https://github.com/microsoft/Foundry-Local/issues/92).
_NO_MODEL = re.compile(r"No OpenAIService provider found|No model matching", re.IGNORECASE)
OUT_OF_MEMORY = re.compile(
    r"bad_alloc|out of memory|(?:failed|unable) to allocate|insufficient (?:gpu |device )?memory|"
    r"requires more system memory|(?:cudaMalloc|alloc\w*) failed",
    re.IGNORECASE,
)
"""ONNX Runtime, CUDA, ggml and Ollama, as they say it in an error's text."""
_NOT_LOADED = re.compile(r"not loaded|must be loaded", re.IGNORECASE)
_OVERFLOW_STATUSES = frozenset({400, 413, 422, 500})


def http_failure(status: int, body: str, location: str | None = None) -> Failure:
    """The failure behind a response that is no success (redirects are never followed)."""
    said = error_message(body)
    words = f"HTTP {status}" + (f": {said}" if said else "")
    if 300 <= status < 400:
        target = f" to {location}" if location else ""
        return Failure(Reason.REDIRECTED, f"HTTP {status} redirects{target}; name that address as the endpoint")
    if status == 429:
        return Failure(Reason.RATE_LIMITED, f"{words} (lower the concurrency or wait)")
    if status in _OVERFLOW_STATUSES and _OVERFLOW.search(body):
        return Failure(Reason.CONTEXT_OVERFLOW, f"{words} (shorten the prompt or lower max_tokens)")
    if status >= 500 and OUT_OF_MEMORY.search(body):
        return out_of_memory(words)
    if _NO_MODEL.search(body) or (status == 404 and "model" in body.lower()):
        return Failure(Reason.MODEL_NOT_FOUND, words)
    if status == 400 and _NOT_LOADED.search(body):
        return Failure(Reason.NOT_LOADED, words)
    return Failure(Reason.HTTP_ERROR, words)


def stream_failure(said: str) -> Failure:
    """The failure behind an error object inside a stream; Foundry Local refuses even a whole request that way."""
    if _OVERFLOW.search(said):
        return Failure(Reason.CONTEXT_OVERFLOW, f"the server reported: {said} (shorten the prompt or lower max_tokens)")
    if OUT_OF_MEMORY.search(said):
        return out_of_memory(f"the server reported: {said}")
    if _NO_MODEL.search(said):
        return Failure(Reason.MODEL_NOT_FOUND, f"the server reported: {said}")
    return Failure(Reason.STREAM_ERROR, f"the server reported: {said}")


def out_of_memory(words: str) -> Failure:
    """The failure of a server that says that memory ran out."""
    return Failure(Reason.OUT_OF_MEMORY, f"{words} (lower the concurrency or max_tokens, or take a smaller model)")


def error_message(body: str) -> str:
    """The server's own words: ``error.message``, ``message``, ``detail`` or ``error`` of a JSON body, else the body."""
    try:
        said = describe_error(json.loads(body))
    except ValueError:
        said = body
    return " ".join(said.split())[:_EXCERPT_LENGTH]


def describe_error(error: Any) -> str:
    """The text inside an error object, however the server nests it."""
    while isinstance(error, dict):
        inner = next((error[name] for name in ("error", "message", "detail") if error.get(name)), None)
        if inner is None:
            return json.dumps(error)
        error = inner
    return error if isinstance(error, str) else json.dumps(error)
