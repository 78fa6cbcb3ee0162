"""What an answer was: chunks with their arrival stamps in; moments, token counts and a verdict out. Pure.

Rules (the project's design, "Rules of measurement"): the role chunk is no token; content, reasoning and tool-call
text are; a server's token count and the chunks it sent are compared, never assumed to agree. Nothing here reads a
clock or a socket.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent.load.counting import CountTokens
from benchfleet_agent.load.http_errors import describe_error, stream_failure
from benchfleet_agent.load.record import Accounting, TokensSource
from benchfleet_agent.load.server_timings import ServerTimings, read_timings

BYTES_PER_TOKEN = 4
"""The rule of thumb for English text in common vocabularies; only ever used for an ``estimate``."""
LONGEST_PLAUSIBLE_TOKEN_BYTES = 8
"""Chunks longer than this on average hold several tokens each."""
_REASONING_MARKERS = 3
"""Tokens around streamed reasoning that servers count and never send: ``<think>``, ``</think>`` and its newline."""
_NATURAL_ENDS = frozenset({"stop", "tool_calls", "function_call"})
_TOKENIZER_TOLERANCE = 0.1  # encoding a text again need not give the very tokens that were generated


class End(Enum):
    """How the body ended, as the client saw it."""

    DONE = "done"
    """``[DONE]``."""
    BODY = "body"
    """The body's regular end without ``[DONE]``."""
    CUT = "cut"
    """The connection broke off."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The server's ``usage`` object; None: it does not say."""

    prompt_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    cached_prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Counts:
    """The token columns of `RequestRecord`, by the same names."""

    accounting: Accounting
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    output_tokens: int | None = None
    visible_tokens: int | None = None
    reasoning_tokens: int | None = None
    hidden_tokens: int | None = None
    tokens_source: TokensSource | None = None


class Answer:
    """An answer as it arrives. Feed it `chunk` by chunk, or the `whole` body when nothing was streamed.

    Stamps are perf_counter nanoseconds; keep them, not the chunks: a long answer's parsed chunks would be megabytes.
    """

    def __init__(self) -> None:
        self.streamed = True
        self.stamps = array("q")
        """Arrival of each token-bearing chunk."""
        self.piece_lengths = array("i")
        """Characters of content in each of them; 0: only reasoning or a tool call."""
        self.other_lengths = array("i")
        """Characters of reasoning and tool-call text in each of them."""
        self.reasoning_chunks = 0
        self.coalesced_chunks = 0
        self.role_ns: int | None = None
        self.first_reasoning_ns: int | None = None
        self.first_content_ns: int | None = None
        self.finish_ns: int | None = None
        self.usage_ns: int | None = None
        self.usage: Usage | None = None
        self.server_timings = ServerTimings()
        self.finish_reason: str | None = None
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._tool_text: list[str] = []
        self._last_read = -1

    @property
    def text(self) -> str:
        """The content so far."""
        return "".join(self._content)

    @property
    def reasoning_text(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    @property
    def texts(self) -> tuple[str, str, str]:
        """Content, reasoning and tool-call text: all that tokens turned into."""
        return self.text, self.reasoning_text, "".join(self._tool_text)

    @property
    def empty(self) -> bool:
        """No token arrived."""
        return not (self._content or self._reasoning or self._tool_text)

    def chunk(self, chunk: object, stamp_ns: int, read: int) -> bool:
        """Take a chunk that arrived at `stamp_ns` with socket read number `read`; True when it bears a token.

        Raises `WorkFailed`: ``stream_error`` for an error object, ``bad_response`` for what is no chunk.
        """
        if not isinstance(chunk, dict):
            raise WorkFailed(Reason.BAD_RESPONSE, f"a chunk is no JSON object: {str(chunk)[:100]}")
        if chunk.get("usage"):
            self._take_usage(chunk["usage"], stamp_ns)
        if "timings" in chunk:
            self.server_timings = read_timings(chunk["timings"]) or self.server_timings
        if chunk.get("error") or chunk.get("object") == "error":
            raise _reported(chunk)
        bears_token = False
        before = len(self._content), len(self._reasoning), len(self._tool_text)
        for choice in _choices(chunk):
            delta = choice.get("delta")
            if isinstance(delta, dict):
                if self.role_ns is None and delta.get("role"):
                    self.role_ns = stamp_ns
                bears_token |= self._take_texts(delta, stamp_ns)
            if choice.get("finish_reason"):
                self.finish_ns = stamp_ns
                self.finish_reason = str(choice["finish_reason"])
        if bears_token:
            if read == self._last_read:
                self.coalesced_chunks += 1
            self._last_read = read
            self.stamps.append(stamp_ns)
            content, reasoning, tools = before
            self.piece_lengths.append(sum(map(len, self._content[content:])))
            other = (*self._reasoning[reasoning:], *self._tool_text[tools:])
            self.other_lengths.append(sum(map(len, other)))
        return bears_token

    def whole(self, body: object) -> None:
        """Take an answer that came as one body. Raises `WorkFailed` as `chunk` does."""
        self.streamed = False
        if not isinstance(body, dict):
            raise WorkFailed(Reason.BAD_RESPONSE, f"the answer is no JSON object: {str(body)[:100]}")
        if body.get("error") or body.get("object") == "error":
            raise _reported(body)
        if not isinstance(body.get("choices"), list):
            raise WorkFailed(Reason.BAD_RESPONSE, "the answer has no choices: is this a chat completions endpoint?")
        if body.get("usage"):
            self._take_usage(body["usage"], None)
        self.server_timings = read_timings(body.get("timings")) or self.server_timings
        for choice in _choices(body):
            if isinstance(choice.get("message"), dict):
                self._take_texts(choice["message"], None)
            if choice.get("finish_reason"):
                self.finish_reason = str(choice["finish_reason"])

    def _take_texts(self, delta: Mapping[str, Any], stamp_ns: int | None) -> bool:
        content = _plain_text(delta.get("content")) or _plain_text(delta.get("refusal"))
        # DeepSeek, vLLM and llama.cpp say reasoning_content; Ollama and OpenRouter say reasoning.
        reasoning = _plain_text(delta.get("reasoning_content")) or _plain_text(delta.get("reasoning"))
        tools = _tool_text(delta) if "tool_calls" in delta or "function_call" in delta else ""
        if reasoning:
            self._reasoning.append(reasoning)
            self.reasoning_chunks += 1
            if self.first_reasoning_ns is None:
                self.first_reasoning_ns = stamp_ns
        if content:
            self._content.append(content)
        if tools:
            self._tool_text.append(tools)
        if (content or tools) and self.first_content_ns is None:
            self.first_content_ns = stamp_ns
        return bool(content or reasoning or tools)

    def _take_usage(self, usage: object, stamp_ns: int | None) -> None:
        if isinstance(usage, dict):
            self.usage_ns = stamp_ns
            self.usage = Usage(
                prompt_tokens=_count(usage, "prompt_tokens"),
                output_tokens=_count(usage, "completion_tokens"),
                reasoning_tokens=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
                cached_prompt_tokens=_count(usage.get("prompt_tokens_details"), "cached_tokens"),
            )


def verdict(answer: Answer, end: End) -> Failure | None:
    """Why an answer that ended this way is no answer; None when it is one.

    A connection cut after the finish reason took nothing away: the answer is whole.
    """
    if end is not End.DONE and answer.streamed and answer.finish_reason is None:
        how = "the connection was cut" if end is End.CUT else "the stream ended"
        message = f"{how} after {len(answer.stamps)} chunks, without a finish reason and without [DONE]"
        return Failure(Reason.STREAM_TRUNCATED, message)
    if answer.empty:
        why = f" (finish reason {answer.finish_reason})" if answer.finish_reason else ""
        return Failure(Reason.EMPTY_ANSWER, f"the server finished without a single token of text{why}")
    return None


def account(answer: Answer, *, failed: bool = False, count: CountTokens | None = None) -> Counts:
    """Count the answer's tokens and say whether count and chunks agree (`Accounting`).

    `count` is the model's tokenizer where there is one: it counts when the server does not, and tells hidden tokens
    from several tokens in a chunk when the server does.
    """
    usage = answer.usage
    if failed:
        if usage is None:
            return Counts(Accounting.INCOMPLETE)
        source = None if usage.output_tokens is None else TokensSource.USAGE
        return _with_usage(usage, Accounting.INCOMPLETE, None, None, source)
    if usage is None or usage.output_tokens is None:
        return _without_usage(answer, count)
    accounting, visible = _compare(answer, usage.output_tokens, usage.reasoning_tokens or 0, count)
    reasoning = usage.reasoning_tokens
    if reasoning is None and accounting in (Accounting.CONSISTENT, Accounting.STRUCTURE_TOKENS_COUNTED):
        reasoning = answer.reasoning_chunks  # a chunk a token, so this is exact
    return _with_usage(usage, accounting, visible, reasoning, TokensSource.USAGE)


def estimate_tokens(texts: tuple[str, ...], chunks: int) -> int:
    """Guess the tokens in what arrived: a chunk a token while chunks are short enough for that, else bytes / 4."""
    size_bytes = sum(len(text.encode()) for text in texts)
    if chunks and size_bytes <= chunks * LONGEST_PLAUSIBLE_TOKEN_BYTES:
        return chunks
    return max(chunks, -(-size_bytes // BYTES_PER_TOKEN))


def _compare(answer: Answer, counted: int, reasoning: int, count: CountTokens | None) -> tuple[Accounting, int | None]:
    """The accounting, and how many of the `counted` tokens arrived as text (None: not known)."""
    chunks = len(answer.stamps)
    unseen_reasoning = reasoning if not answer.reasoning_chunks and not answer.reasoning_text else 0
    sendable = counted - unseen_reasoning  # what can have arrived, if the server's reasoning count is right

    def encoded() -> int | None:  # only where it decides: a tokenizer is large and most streams agree
        return sum(count(text) for text in answer.texts) if count else None

    if not answer.streamed:
        if unseen_reasoning:
            return Accounting.NOT_STREAMED, sendable
        return Accounting.NOT_STREAMED, None if (tokens := encoded()) is None else min(tokens, counted)
    natural_end = answer.finish_reason in _NATURAL_ENDS
    if chunks == counted:  # whatever the details say: every token arrived (reasoning inside the content, say)
        return Accounting.CONSISTENT, counted
    if unseen_reasoning and chunks <= sendable:
        all_but_stop = chunks == sendable - 1 and natural_end
        return Accounting.HIDDEN_TOKENS, chunks if all_but_stop else sendable
    if chunks > counted or unseen_reasoning:
        return Accounting.MORE_CHUNKS_THAN_TOKENS, None
    unspoken = natural_end + (_REASONING_MARKERS if answer.reasoning_chunks else 0)
    if counted - chunks <= unspoken:
        return Accounting.STRUCTURE_TOKENS_COUNTED, chunks
    if (tokens := encoded()) is not None:
        if tokens >= counted * (1 - _TOKENIZER_TOLERANCE):
            return Accounting.SEVERAL_TOKENS_PER_CHUNK, counted
        return Accounting.HIDDEN_TOKENS, max(tokens, chunks)  # encoding again may merge what was sent apart
    size_bytes = sum(len(text.encode()) for text in answer.texts)
    if size_bytes > chunks * LONGEST_PLAUSIBLE_TOKEN_BYTES:
        return Accounting.SEVERAL_TOKENS_PER_CHUNK, None
    return Accounting.FEWER_CHUNKS_THAN_TOKENS, None


def _with_usage(
    usage: Usage, accounting: Accounting, visible: int | None, reasoning: int | None, source: TokensSource | None
) -> Counts:
    hidden = None if visible is None or usage.output_tokens is None else usage.output_tokens - visible
    return Counts(
        accounting=accounting,
        prompt_tokens=usage.prompt_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        output_tokens=usage.output_tokens,
        visible_tokens=visible,
        reasoning_tokens=reasoning,
        hidden_tokens=hidden,
        tokens_source=source,
    )


def _without_usage(answer: Answer, count: CountTokens | None) -> Counts:
    chunks = len(answer.stamps)
    if count:
        output, source = sum(count(text) for text in answer.texts), TokensSource.TOKENIZER
        reasoning = count(answer.reasoning_text) if answer.reasoning_text else None
    else:
        output, source = estimate_tokens(answer.texts, chunks), TokensSource.ESTIMATE
        reasoning = estimate_tokens((answer.reasoning_text,), answer.reasoning_chunks) or None
    return Counts(
        accounting=Accounting.NO_USAGE if answer.streamed else Accounting.NOT_STREAMED,
        prompt_tokens=answer.usage.prompt_tokens if answer.usage else None,
        output_tokens=output,
        visible_tokens=output,  # hidden ones, if there are any, nobody counted
        reasoning_tokens=reasoning,
        tokens_source=source,
    )


def _reported(error: Mapping[str, Any]) -> WorkFailed:
    failure = stream_failure(describe_error(error))
    return WorkFailed(failure.reason, failure.message)


def _choices(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise WorkFailed(Reason.BAD_RESPONSE, "choices is no list of objects")
    return choices


def _plain_text(value: object) -> str:
    """Text as the servers write it: a string, or a list of parts (Mistral); anything else is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(str(part.get("text") or "") for part in value if isinstance(part, dict))
    return ""


def _tool_text(delta: Mapping[str, Any]) -> str:
    calls = delta.get("tool_calls") or []
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions.append(delta.get("function_call"))
    return "".join(
        str(function.get("name") or "") + str(function.get("arguments") or "")
        for function in functions
        if isinstance(function, dict)
    )


def _count(details: object, name: str) -> int | None:
    value = details.get(name) if isinstance(details, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
