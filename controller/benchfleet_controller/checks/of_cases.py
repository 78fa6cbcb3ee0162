"""Warnings about single cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from benchfleet_controller import proof, stats
from benchfleet_controller.checks.codes import Code, Warn, Warned
from benchfleet_controller.checks.of_rounds import of_rounds
from benchfleet_controller.energy import MOST_DISAGREEMENT

Row = Mapping[str, Any]

_FEW_ROUNDS = 3
_BUSY_CLIENT_RATIO = 0.8
_FORECAST_RATIO = 1.5
_COALESCED_RATIO = 0.05
_SWAP_GROWTH_BYTES = 64 * 1024 * 1024
_LATE_RATIO = 0.01
_RATE_RATIO = 0.95
_CACHED_RATIO = 0.05
_TTFT_ERROR_RATIO = 0.02
_ITL_ERROR_RATIO = 0.05


def load_shape(case: Row) -> str:
    """How requests followed each other, for people: ``×4`` (so many at once) or ``5/s poisson``; empty: unknown."""
    rate, concurrency = case.get("request_rate_per_s"), case.get("concurrency")
    if rate is not None:
        return f"{rate:g}/s {case.get('arrival') or ''}".rstrip()
    return f"×{concurrency}" if concurrency else ""


def of_case(case: Row, several_prompt_sets: bool) -> Iterator[Warned]:
    """Warnings about one case."""
    keys = ("host", "runtime", "model", "device", *(("prompt_set",) if several_prompt_sets else ()))
    subject = " / ".join(str(case[key]) for key in keys if case.get(key))
    if case.get("request_rate_per_s") is not None:
        subject += f" / {load_shape(case)}"
    elif (case.get("concurrency") or 1) != 1:
        subject += f" / concurrency {case['concurrency']}"

    def warn(code: Code, message: str, advice: str) -> Warned:
        return Warned(code, subject, message, advice)

    requests, failed = case.get("requests") or 0, case.get("failed") or 0
    if failed:
        yield warn(
            Code.REQUESTS_FAILED,
            f"{failed} of {requests} requests failed and are in no latency",
            "read the reasons: numbers of the rest may be those of a struggling server",
        )
    if requests > failed:
        yield from _of_sampling(case, requests - failed, warn)
        yield from _of_load(case, requests, warn)
        yield from _of_tokens(case, warn)
        yield from _of_prompts(case, warn)
        yield from _of_instrument(case, warn)
    yield from _of_conditions(case, warn)


def _of_sampling(case: Row, n: int, warn: Warn) -> Iterator[Warned]:
    if (case.get("rounds") or 0) < _FEW_ROUNDS:
        message = f"{case.get('rounds') or 0} counted rounds: too few to tell how sure the values are"
        yield warn(Code.FEW_ROUNDS, message, f"use --rounds {_FEW_ROUNDS} or more; 10 tell small differences")
    if not stats.supports_percentile(n, 0.95):
        yield warn(
            Code.FEW_REQUESTS,
            f"{n} requests cannot support a 95th percentile: p95 is close to the slowest one",
            "at least 20 counted requests are needed: more rounds or more prompts",
        )
    if case.get("warmup_rounds") == 0:
        message = "no warm-up round: first-time costs are in the results"
        yield warn(Code.NO_WARMUP, message, "use --warmup 1")


def _of_tokens(case: Row, warn: Warn) -> Iterator[Warned]:
    sources = set((case.get("tokens_source") or "").split("+"))
    accounting = set((case.get("accounting") or "").split("+"))
    if len(sources) > 1:
        message = f"token counts come from {' and '.join(sorted(sources))}"
        yield warn(Code.TOKENS_SOURCE_MIXED, message, "compare times instead of token rates")
    elif "estimate" in sources:
        message = "the server sent no token counts: they are estimated from the text"
        yield warn(Code.TOKENS_ESTIMATED, message, "compare token rates only with others of the same model")
    if "hidden_tokens" in accounting:
        yield warn(
            Code.TOKENS_HIDDEN,
            "the server counted tokens it never sent (hidden reasoning)",
            "decode tokens/s is over visible tokens; TTFT includes the unseen ones",
        )
    if "several_tokens_per_chunk" in accounting:
        message = "chunks hold several tokens: gaps are between chunks, not tokens"
        yield warn(Code.SEVERAL_TOKENS_PER_CHUNK, message, "read TPOT instead of ITL")
    if accounting & {"fewer_chunks_than_tokens", "more_chunks_than_tokens"}:
        yield warn(
            Code.CHUNKS_AND_TOKENS_DIFFER,
            "counted tokens and chunks differ without a proven cause",
            "decode_basis says which were used: 'chunks' makes tokens/s a lower bound",
        )
    if "not_streamed" in accounting:
        message = "answers came in one piece: no TTFT, ITL or decode rate"
        yield warn(Code.NOT_STREAMED, message, "use --stream and a server that streams")
    if (case.get("coalesced_ratio") or 0) > _COALESCED_RATIO:
        message = f"{case['coalesced_ratio']:.0%} of the chunks arrived together with another: their gaps are not seen"
        advice = "trust TTFT and whole answers, not ITL or the decode rate; the server sends faster than it can be read"
        yield warn(Code.CHUNKS_COALESCED, message, advice)


def _of_load(case: Row, requests: int, warn: Warn) -> Iterator[Warned]:
    """What was asked of the rounds and not had: an interval, a rate."""
    wanted = case.get("interval_ratio")
    widths = _widths(case)
    if wanted and widths and (case.get("rounds") or 0) >= (case.get("maximum_rounds") or 1):
        name, width = max(widths.items(), key=lambda item: item[1])
        if width > wanted:
            message = f"{name} is known to ±{width:.1%} after the most rounds allowed, not to ±{wanted:.1%}"
            yield warn(Code.INTERVAL_NOT_REACHED, message, "allow more with --max-rounds, or longer ones")
    rate, latency = case.get("request_rate_per_s"), case.get("e2e_avg_s")
    late = case.get("lateness_avg_s")
    if late is not None and latency and late > _LATE_RATIO * latency:
        message = f"requests went out {_ms(late)} late on average, {late / latency:.1%} of the mean latency"
        advice = "users would have waited that much longer: allow more in flight with --concurrency or lower the rate"
        yield warn(Code.REQUESTS_LATE, message, advice)
    answered = case.get("requests_per_s")
    if rate and answered is not None and latency is not None and requests:
        # A round ends with its last answer, which no arrival pays for; Poisson arrivals come in chance numbers.
        usual = rate / (1 + rate * (case.get("rounds") or 1) * latency / requests)
        chance = 2 / math.sqrt(requests) if case.get("arrival") == "poisson" else 0.0
        if answered < min(_RATE_RATIO, 1 - chance) * usual:
            message = f"{answered:.3g} of {rate:g} requests/s were answered"
            advice = "more than the runtime can take: its latency grows as long as the round lasts; lower the rate"
            yield warn(Code.RATE_NOT_REACHED, message, advice)


def _of_prompts(case: Row, warn: Warn) -> Iterator[Warned]:
    cached, prompt = case.get("cached_prompt_tokens") or 0, case.get("prompt_tokens") or 0
    if cached:
        message = f"{cached} of {prompt} prompt tokens came from a prefix cache: TTFT and prefill look better"
        yield warn(Code.PROMPTS_CACHED, message, "use prompts without a common beginning or switch the cache off")
    if case.get("prefix_cache") == "allowed":
        message = "prompts went as they are: a prefix cache may have spared the runtime their prefill"
        advice = "read TTFT as that of repeated prompts, or use --prefix-cache defeat"
        yield warn(Code.PREFIX_CACHE_ALLOWED, message, advice)
    asked, least, most = (case.get(key) for key in ("prompt_token_count", "prompt_tokens_min", "prompt_tokens_max"))
    if asked and least is not None and most is not None and (least, most) != (asked, asked):
        counted = f"{least}" if least == most else f"{least} to {most}"
        message = f"prompts of {asked} tokens were asked for, the server counted {counted}"
        yield warn(Code.PROMPT_LENGTH_DIFFERS, message, "name results by the counted length")
    if case.get("page_cache") == "dropped" and "page_cache_ratio" in case:
        held = case["page_cache_ratio"]
        if held is None or held > _CACHED_RATIO:
            known = "it is not known how much" if held is None else f"{held:.0%}"
            message = (
                f"{known} of the model's files was in memory when the load began, although they were to be dropped"
            )
            yield warn(Code.PAGE_CACHE_NOT_DROPPED, message, "do not call the load time cold")


def _of_instrument(case: Row, warn: Warn) -> Iterator[Warned]:
    pairs = (("TTFT", "ttft", _TTFT_ERROR_RATIO), ("ITL", "itl", _ITL_ERROR_RATIO))
    for name, key, most in pairs:
        error, value = case.get(f"{key}_error_s"), case.get(f"{key}_p50_s")
        if error is not None and value and error > most * value:
            message = f"the agent's stamps are coarse here: {name} p50 is known to ±{_ms(error)} ({error / value:.1%})"
            advice = "trust no smaller difference; close other programs and run again"
            yield warn(Code.INSTRUMENT_COARSE, message, advice)


def _widths(case: Row) -> dict[str, float]:
    """Relative half widths of the intervals that decide when rounds are enough, by name for people."""
    found = {}
    for name, key in (("TTFT", "ttft_avg_s"), ("decode rate", "decode_tokens_per_s"), ("latency", "e2e_avg_s")):
        ends = (case.get("intervals") or {}).get(key)
        width = stats.relative_half_width(stats.Interval(*ends), case.get(key)) if ends else None
        if width is not None:
            found[name] = width
    if len(found) > 1:
        found.pop("latency", None)  # it decides only where nothing is streamed
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _of_conditions(case: Row, warn: Warn) -> Iterator[Warned]:
    yield from _of_device(case, warn)
    yield from of_rounds(case, warn)
    yield from _of_forecast(case, warn)
    yield from _of_energy(case, warn)
    if case.get("variant") is None:
        message = "the exact variant is unknown"
        yield warn(Code.VARIANT_UNKNOWN, message, "name the model by its variant id to pin it")
    if case.get("remote"):
        message = "the endpoint is on another machine: latencies include the network, telemetry is not the server's"
        yield warn(Code.REMOTE_ENDPOINT, message, "run an agent on that machine")
    if case.get("dropped_readings"):
        message = f"{case['dropped_readings']} telemetry readings were dropped to stay on time"
        yield warn(Code.READINGS_DROPPED, message, "the host was overloaded: sample less often")
    if (case.get("load_cpu_ratio") or 0) > _BUSY_CLIENT_RATIO:
        message = f"the load process used {case['load_cpu_ratio']:.0%} of a core: it may be the bottleneck"
        yield warn(Code.CLIENT_BUSY, message, "lower the concurrency")
    if (case.get("swap_growth_bytes") or 0) > _SWAP_GROWTH_BYTES:
        message = "the host began to swap during the case"
        yield warn(Code.SWAPPED, message, "use a smaller model or free memory: times are those of the disk")


def _of_device(case: Row, warn: Warn) -> Iterator[Warned]:
    verdict, evidence = case.get("device_proof"), case.get("device_evidence") or ()
    if "device_proof" not in case:  # rows of elsewhere: by what is declared alone
        declared = proof.Declared(case.get("device"), case.get("ep_requested"), case.get("ep_actual"))
        judged = proof.judge(declared, case.get("busy_cores"), ())
        verdict, evidence = judged.verdict, judged.evidence
    if verdict == proof.Verdict.CONTRADICTED:
        advice = "check the driver and the execution provider with `benchfleet doctor`; comparisons leave it out"
        yield warn(Code.DEVICE_CONTRADICTED, "; ".join(evidence), advice)
    elif verdict == proof.Verdict.UNPROVEN and case.get("device") in proof.ACCELERATORS:
        message = f"nothing proves that the {case['device']} did the work: {'; '.join(evidence)}"
        yield warn(Code.DEVICE_UNPROVEN, message, "do not take it for that device's speed before this is clear")


def _of_energy(case: Row, warn: Warn) -> Iterator[Warned]:
    for one in case.get("energy") or ():
        ratio = one.get("disagreement_ratio")
        if ratio is not None and ratio > MOST_DISAGREEMENT:
            message = (
                f"{one['scope']}: {one['method']} says {one['gross_j']:.3g} J, {one['second_method']} "
                f"{one['second_j']:.3g} J: {ratio:.0%} apart"
            )
            yield warn(Code.ENERGY_DISAGREES, message, "one of the two is wrong: check with a meter at the plug")


def _of_forecast(case: Row, warn: Warn) -> Iterator[Warned]:
    """A forecast that what happened denies."""
    forecast = case.get("forecast") or {}
    need, free = forecast.get("required_bytes"), forecast.get("available_bytes")
    sizes = f" ({_gib(need)} needed, {_gib(free)} free, by {forecast.get('basis')})" if need and free else ""
    if forecast.get("fits") is False and case.get("status") == "succeeded":
        message = f"it was forecast not to fit in {forecast.get('memory')}{sizes}, and it ran"
        yield warn(Code.DOES_NOT_FIT, message, "part of it may lie in slower memory: look at swap and memory pressure")
    elif forecast.get("fits") and case.get("reason") in ("out_of_memory", "does_not_fit"):
        message = f"it was forecast to fit in {forecast.get('memory')}{sizes}, and it did not"
        yield warn(Code.DOES_NOT_FIT, message, "free memory, shorten the context or take a smaller model")
    peak = case.get("vram_peak_bytes" if forecast.get("memory") == "vram" else "ram_peak_bytes")
    if need and peak and case.get("status") == "succeeded" and not 1 / _FORECAST_RATIO < peak / need < _FORECAST_RATIO:
        message = f"{_gib(need)} of {forecast.get('memory')} were forecast, {_gib(peak)} were used: {peak / need:.2g} ×"
        advice = f"do not trust forecasts for this model ({forecast.get('basis')})"
        yield warn(Code.FORECAST_OFF, message, advice)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
