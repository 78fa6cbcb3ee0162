"""One request as it was measured: the row that leaves the load process.

Every moment (``*_ns``) is a ``time.perf_counter_ns()`` integer of the load process's host, which other processes
on that host share on Linux, macOS and Windows. null always means: this did not happen, or was not seen; never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchfleet.failures import Reason


class Status(StrEnum):
    """How a request ended."""

    OK = "ok"
    """A complete answer with at least one token."""
    FAILED = "failed"
    """Anything else; ``reason`` says what."""


class TokensSource(StrEnum):
    """Who counted the output tokens; the three are never mixed without a flag."""

    USAGE = "usage"
    """The server, in its ``usage`` object."""
    TOKENIZER = "tokenizer"
    """We, with the model's own tokenizer, over the text that arrived; hidden tokens cannot be seen so."""
    ESTIMATE = "estimate"
    """A guess from the text that arrived: `benchfleet_agent.load.accounting.estimate_tokens`."""


class StampSource(StrEnum):
    """What took the arrival stamps, best first."""

    KERNEL = "kernel"
    """The kernel when the packet arrived (SO_TIMESTAMPNS): untouched by scheduling and by the interpreter's lock."""
    SOCKET = "socket"
    """The reading thread, right after the socket read returned."""
    APP = "app"
    """The application, after the chunk was parsed: only for runtimes without a socket, never by the load process."""


class Accounting(StrEnum):
    """Whether the stream's chunks and the server's token count tell the same story, or why not.

    A closed list; of several that hold, the first in this order is given.
    """

    INCOMPLETE = "incomplete"
    """The request failed: nothing was compared."""
    NOT_STREAMED = "not_streamed"
    """The answer came as one body, asked for or because the server ignored ``stream``: no times between tokens."""
    NO_USAGE = "no_usage"
    """The server sent no token count; ``tokens_source`` says who counted instead."""
    CONSISTENT = "consistent"
    """Every counted token arrived in a chunk of its own."""
    STRUCTURE_TOKENS_COUNTED = "structure_tokens_counted"
    """Consistent but for counted tokens that only mark structure and have no chunk: the end-of-text token, the markers
    around streamed reasoning."""
    HIDDEN_TOKENS = "hidden_tokens"
    """The server counted tokens that it never sent (hidden reasoning): they took time but have no arrival."""
    SEVERAL_TOKENS_PER_CHUNK = "several_tokens_per_chunk"
    """Fewer chunks than tokens, and the text is too long for one token a chunk: gaps are between chunks, not tokens."""
    FEWER_CHUNKS_THAN_TOKENS = "fewer_chunks_than_tokens"
    """Fewer chunks than tokens, cause unproven: hidden tokens, tokens without text, or several tokens a chunk."""
    MORE_CHUNKS_THAN_TOKENS = "more_chunks_than_tokens"
    """More chunks than counted tokens: the server splits tokens, or its count leaves tokens out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request, from the moment before its first byte was written to its end."""

    request_id: str
    prompt_id: str
    status: Status
    reason: Reason | None = None
    """Why it failed; null when ok."""
    message: str | None = None
    """For people, what happened and what to do; null when ok."""
    http_status: int | None = None
    """null: no response arrived."""

    scheduled_ns: int | None = None
    """Open loop: when it was due. null: a closed loop, where nothing is."""
    position: int = 0
    """Place in its round, from 0, in the order of starting."""
    prompt_prefix: str = ""
    """Words put before the prompt so that no prefix cache helps; empty: none."""

    start_ns: int | None = None
    """t0: just before the request's body was written. null: nothing could be sent (no connection)."""
    sent_ns: int | None = None
    """The whole request was with the operating system (the write returned); never after ``headers_ns``."""
    headers_ns: int | None = None
    """The response's headers were complete."""
    first_byte_ns: int | None = None
    """The first byte of the response's body arrived."""
    role_ns: int | None = None
    """First chunk that names a role; no token by itself."""
    first_reasoning_ns: int | None = None
    """First chunk with reasoning text."""
    first_content_ns: int | None = None
    """First chunk of the answer itself: content or tool-call text."""
    last_content_ns: int | None = None
    """Last token-bearing chunk: content, reasoning or tool-call text."""
    finish_ns: int | None = None
    """Chunk with the finish reason."""
    usage_ns: int | None = None
    """Last chunk with a ``usage`` object."""
    done_ns: int | None = None
    """``[DONE]``, or the end of the body. null: neither was seen."""
    end_ns: int
    """The load process was finished with the request, whatever became of it."""

    token_ns: tuple[int, ...] = ()
    """Arrival of each token-bearing chunk, in nanoseconds since ``start_ns``; TTFT is the first one.
    Empty when nothing was streamed."""
    piece_lengths: tuple[int, ...] = ()
    """Characters of ``text`` in each of these chunks: cuts the text into what arrived together."""
    other_lengths: tuple[int, ...] = ()
    """Characters of reasoning and tool-call text in each of them. Empty: there was none."""
    chunks: int = 0
    """Number of token-bearing chunks."""
    coalesced_chunks: int = 0
    """Chunks that arrived in the same socket read as an earlier one and so share its stamp;
    beyond about 5 % of ``chunks``, percentiles of the gaps are unreliable."""

    prompt_tokens: int | None = None
    """As counted by the server; null when it did not say (the chat template is the server's)."""
    cached_prompt_tokens: int | None = None
    """Of these, found in the server's prefix cache; null when it did not say."""
    output_tokens: int | None = None
    """All output tokens, seen or not, as counted by ``tokens_source``."""
    visible_tokens: int | None = None
    """Output tokens that arrived as text (content, tool calls or streamed reasoning); null when not known."""
    reasoning_tokens: int | None = None
    """Output tokens spent on reasoning, seen or hidden; null when not known."""
    hidden_tokens: int | None = None
    """Counted by the server but never arrived (``output_tokens - visible_tokens``); null when not known."""
    tokens_source: TokensSource | None = None
    """null: no tokens to count."""
    accounting: Accounting

    finish_reason: str | None = None
    """The server's word (``stop``, ``length``, ``tool_calls`` …)."""
    text: str = ""
    """The answer's content; tool calls are not in it."""
    reasoning_text: str = ""
    stamp_source: StampSource | None = None
    """The worst source of any stamp of this request; null: nothing arrived."""
    server_prefill_s: float | None = None
    """What the server itself says prefill took; null: it does not say."""
    server_decode_s: float | None = None
    """The same of decoding."""
    server_prefill_tokens: int | None = None
    """Prompt tokens that it computed in that prefill, without those from its cache; null: it does not say."""
    server_decode_tokens: int | None = None
    """Tokens that it computed in that decoding; null: it does not say."""
    connect_duration_ns: int | None = None
    """How long the fresh connection took (TCP, and TLS where used), before ``start_ns`` and in no other figure.
    null: an open connection was used, or none could be made."""

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> RequestRecord:
        """Read a record; keys it does not know are skipped (an event has a few of its own).

        Raises TypeError for a missing field and ValueError for a word outside the closed lists.
        """
        known = {field.name: message[field.name] for field in dataclasses.fields(cls) if field.name in message}
        for name in ("token_ns", "piece_lengths", "other_lengths"):
            known[name] = tuple(known.get(name, ()))
        for name, words in _WORDS.items():
            if known.get(name) is not None:
                known[name] = words(known[name])
        return cls(**known)


_WORDS: dict[str, type[StrEnum]] = {
    "status": Status,
    "reason": Reason,
    "tokens_source": TokensSource,
    "accounting": Accounting,
    "stamp_source": StampSource,
}
