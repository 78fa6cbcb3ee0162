"""Stream shapes whose truth is known: what the scripted server plays to every client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.answers import Answer, true_answer

ASKED_TOKENS = 64
TTFT_MS = 50
GAP_MS = 10


@dataclass(frozen=True, slots=True)
class Shape:
    """How a server may stream. ``changes`` are fields of the scripted server's ``Script``."""

    name: str
    meaning: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = ASKED_TOKENS
    """Visible ones."""
    gap_ms: float = GAP_MS
    ttft_ms: float = TTFT_MS
    visible: bool = True
    """The stream tells the true rate: every token arrived, in a chunk of its own or counted by the server."""

    @property
    def script(self) -> dict[str, Any]:
        """For the server."""
        plain = {"tag": self.name, "tokens": self.tokens, "ttft_ms": self.ttft_ms, "gap_ms": self.gap_ms}
        return plain | dict(self.changes)

    def truth(self, entry: Mapping[str, Any]) -> Answer:
        """What the server did, from the truth's `entry` of such a request."""
        return true_answer(entry, self.tokens, self.changes.get("tokens_per_chunk", 1))


PLAIN = Shape("plain", "one token a chunk, usage at the end")
ODD = (
    Shape("role early", "a role chunk with empty content 5 ms after the request", {"role": "early"}),
    Shape("role null", "the same with null content", {"role": "early", "role_content": None}),
    Shape("comments", "SSE comments before and between tokens", {"comments": True}),
    Shape("think", "the first half is `reasoning_content`", {"reasoning": ASKED_TOKENS // 2}),
    Shape("multi4", "four tokens a chunk", {"tokens_per_chunk": 4}),
    Shape(
        "multi4 think",
        "four tokens a chunk, the first half is `reasoning_content`",
        {"tokens_per_chunk": 4, "reasoning": ASKED_TOKENS // 2},
    ),
    Shape("multi4 no usage", "four tokens a chunk, no usage", {"tokens_per_chunk": 4, "usage": False}, visible=False),
    Shape("no usage", "no usage", {"usage": False}),
    Shape("short no usage", "half of the tokens asked for, no usage", {"usage": False}, ASKED_TOKENS // 2),
    Shape("empty tail", "finish and usage 100 ms after the last token", {"finish_delay_ms": 100}),
    Shape("gap", "one stall of 200 ms", {"stall_at": ASKED_TOKENS // 2, "stall_ms": 200}),
    Shape(
        "hidden",
        "half of the tokens are waited for and counted in usage, but never sent",
        {"hidden": ASKED_TOKENS // 2},
        ASKED_TOKENS // 2,
        visible=False,
    ),
)
CROWD = Shape("32 streams", "32 streams side by side at 50 tokens/s", tokens=100, gap_ms=20, ttft_ms=200)
ERROR = Shape("error 500", "every request gets HTTP 500", {"status": 500})
BY_NAME = {shape.name: shape for shape in (PLAIN, *ODD, CROWD, ERROR)}
