"""What is said of one request, by a client or by the server that knows. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Answer:
    """One request. None, or no gaps: the client does not report it."""

    ttft_s: float | None
    """Time to the first token."""
    itl_s: float | None
    """Mean time from token to token."""
    gaps_s: tuple[float, ...] = ()
    """Single gaps between chunks."""
    tokens_per_s: float | None = None
    """Decode rate."""
    remark: str = ""
    """What the client says about its own numbers."""


def answer_from_stamps(start_ns: int, token_ns: Sequence[int], tokens: int) -> Answer:
    """The usual formulas over arrivals of chunks: TTFT to the first, `tokens` - 1 intervals from first to last."""
    if not token_ns:
        return Answer(None, None)
    gaps_s = tuple((later - earlier) / NS_PER_S for earlier, later in itertools.pairwise(token_ns))
    decode_s = (token_ns[-1] - token_ns[0]) / NS_PER_S
    ttft_s = (token_ns[0] - start_ns) / NS_PER_S
    if tokens < 2 or decode_s <= 0:
        return Answer(ttft_s, None, gaps_s)
    return Answer(ttft_s, decode_s / (tokens - 1), gaps_s, (tokens - 1) / decode_s)


def true_answer(entry: Mapping[str, Any], tokens: int, tokens_per_chunk: int) -> Answer:
    """What the server did: `entry` of its truth, in which it streamed so many tokens.

    TTFT counts from the request's arrival to just before the first token left. The rate is that of the tokens that
    became visible after the first chunk, whose own tokens took no visible time.
    """
    sent_ns = [stamp_ns for label, stamp_ns in entry["steps"] if label == "token"]
    return answer_from_stamps(entry["received_ns"], sent_ns, tokens - tokens_per_chunk + 1)
