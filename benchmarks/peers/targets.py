"""What benchfleet promises of itself against the peers, held against what was measured. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.peers import ours, plain_openai, raw_socket
from benchmarks.peers.errors import Rate, Spread, percent
from benchmarks.peers.measurement import Figures, Results
from benchmarks.peers.shapes import BY_NAME

OURS, PLAIN, RAW = ours.CLIENT.name, plain_openai.CLIENT.name, raw_socket.CLIENT.name
TTFT_ABOVE_RAW_MS = 0.1
CROWD_TOLERANCE_MS = {"TTFT": 0.1, "ITL": 0.01}
"""Two clients this close in a crowd are equally near the truth: chance decides which is nearer."""
RATE_RATIO = 0.01
CPU_RATIO = 0.5
RSS_BYTES = 80_000_000
CONSISTENT = "consistent"
Select = Callable[[Figures], Spread | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and whether it is kept."""

    text: str
    kept: bool


def judge(results: Results) -> list[Verdict]:
    """All targets; one of ours that was not measured counts as missed, a peer's that was not cannot be judged by."""
    rates = results.rates.get(OURS, {})
    gone = [
        Verdict(f"{what}: {name} left no result", kept=False)
        for what, found, needed in (
            ("one stream", results.plain, (OURS, PLAIN, RAW)),
            ("32 streams", results.crowd, (OURS, PLAIN)),
            ("odd streams", results.rates, (OURS,)),
            ("exit code", results.exit_codes, (OURS,)),
        )
        for name in needed
        if name not in found
    ]
    if gone:
        return gone
    return [
        *_first_token(results.plain),
        *_gaps(results.plain),
        *(_rate(shape, rate) for shape, rate in rates.items()),
        *_cost(results.plain, "one stream"),
        *_cost(results.crowd, "32 streams"),
        *_crowd(results.crowd),
        _exit_code(results.exit_codes[OURS]),
    ]


def _peers(figures: Mapping[str, Figures], select: Select, statistic: str) -> dict[str, float]:
    """The statistic of every peer that reports it."""
    found = {}
    for name, row in figures.items():
        spread = select(row)
        if name not in (OURS, PLAIN, RAW) and spread is not None:
            found[name] = getattr(spread, statistic)
    return found


def _below_every_peer(figures: Mapping[str, Figures], what: str, select: Select, statistic: str) -> Iterator[Verdict]:
    mine = select(figures[OURS])
    if mine is None:
        yield Verdict(f"{what}: benchfleet reports none", kept=False)
        return
    value = getattr(mine, statistic)
    for name, theirs in _peers(figures, select, statistic).items():
        yield Verdict(f"{what} below {name}'s: {value:.3f} against {theirs:.3f} ms", value < theirs)


def _first_token(figures: Mapping[str, Figures]) -> Iterator[Verdict]:
    mine, floor = figures[OURS].errors.ttft, figures[RAW].errors.ttft
    if mine is not None and floor is not None:
        limit = floor.p50 + TTFT_ABOVE_RAW_MS
        text = (
            f"TTFT error p50 at most the raw socket's + {TTFT_ABOVE_RAW_MS} ms: {mine.p50:.3f} against {limit:.3f} ms"
        )
        yield Verdict(text, mine.p50 <= limit)
    yield from _below_every_peer(figures, "TTFT error p50", lambda row: row.errors.ttft, "p50")


def _gaps(figures: Mapping[str, Figures]) -> Iterator[Verdict]:
    yield from _below_every_peer(figures, "ITL error p99, means of requests,", lambda row: row.errors.itl, "p99")
    yield from _below_every_peer(figures, "ITL error p99, single gaps,", lambda row: row.errors.gaps, "p99")


def _rate(shape: str, rate: Rate) -> Verdict:
    error = rate.error
    said = "no rate" if error is None else percent(error)
    near = error is not None and abs(error) <= RATE_RATIO
    if BY_NAME[shape].visible:
        return Verdict(f"decode rate on '{shape}' within {RATE_RATIO:.0%}: {said}", near)
    flagged = rate.remark not in ("", CONSISTENT)
    text = f"decode rate on '{shape}', where the truth is not to be seen, within {RATE_RATIO:.0%} or flagged: {said}, "
    return Verdict(f"{text}accounting {rate.remark or 'none'}", near or flagged)


def _cost(figures: Mapping[str, Figures], what: str) -> Iterator[Verdict]:
    mine, plain = figures[OURS], figures[PLAIN].cpu_us_per_token
    if plain and mine.cpu_us_per_token is not None:
        ratio = mine.cpu_us_per_token / plain
        text = f"CPU per token, {what}, at most {CPU_RATIO} of plain openai's: {ratio:.2f}"
        yield Verdict(text, ratio <= CPU_RATIO)
    text = f"load process, {what}, at most {RSS_BYTES / 1e6:.0f} MB: {mine.rss_bytes / 1e6:.0f} MB"
    yield Verdict(text, mine.rss_bytes <= RSS_BYTES)


def _crowd(figures: Mapping[str, Figures]) -> Iterator[Verdict]:
    selects: dict[str, Select] = {"TTFT": lambda row: row.errors.ttft, "ITL": lambda row: row.errors.itl}
    for what, select in selects.items():
        mine = select(figures[OURS])
        for statistic in ("p50", "p99"):
            peers = _peers(figures, select, statistic)
            if mine is None or not peers:
                continue
            best = min(peers, key=lambda name: peers[name])
            value, more = getattr(mine, statistic), CROWD_TOLERANCE_MS[what]
            text = f"{what} {statistic} among 32 streams as near the truth as {best}'s: {value:.3f} against "
            yield Verdict(f"{text}{peers[best]:.3f} ms (+ {more})", value <= peers[best] + more)


def _exit_code(code: int | None) -> Verdict:
    return Verdict(f"exit code when every request fails is not 0: {code}", code not in (0, None))
