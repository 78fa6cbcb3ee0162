"""What may make numbers mislead, with advice: one closed list of warnings over results and hosts. Pure.

Rows are those of `store`: ``case_results`` and ``hosts_of_runs``. A missing key is an unknown, never an alarm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from benchfleet_controller import stats

Row = Mapping[str, Any]

_FEW_ROUNDS = 3
_BUSY_CLIENT_RATIO = 0.8
_COALESCED_RATIO = 0.05
_SWAP_GROWTH_BYTES = 64 * 1024 * 1024


class Code(StrEnum):
    """Every warning there is."""

    FEW_ROUNDS = "few_rounds"
    FEW_REQUESTS = "few_requests"
    NO_WARMUP = "no_warmup"
    REQUESTS_FAILED = "requests_failed"
    EP_DIFFERS = "ep_differs"
    EP_UNPROVEN = "ep_unproven"
    VARIANT_UNKNOWN = "variant_unknown"
    TOKENS_ESTIMATED = "tokens_estimated"
    TOKENS_SOURCE_MIXED = "tokens_source_mixed"
    TOKENS_HIDDEN = "tokens_hidden"
    SEVERAL_TOKENS_PER_CHUNK = "several_tokens_per_chunk"
    CHUNKS_COALESCED = "chunks_coalesced"
    CHUNKS_AND_TOKENS_DIFFER = "chunks_and_tokens_differ"
    NOT_STREAMED = "not_streamed"
    PROMPTS_CACHED = "prompts_cached"
    REMOTE_ENDPOINT = "remote_endpoint"
    READINGS_DROPPED = "readings_dropped"
    CLIENT_BUSY = "client_busy"
    SWAPPED = "swapped"
    ON_BATTERY = "on_battery"
    HOST_CHANGED = "host_changed"
    MACHINE_SHARED = "machine_shared"
    AGENTS_DIFFER = "agents_differ"
    HOST_PROBLEM = "host_problem"


@dataclass(frozen=True, slots=True)
class Warned:
    """One warning: about what, what it is, and what to do."""

    code: Code
    subject: str
    message: str
    advice: str


def check(cases: Sequence[Row], hosts: Sequence[Row] = ()) -> tuple[Warned, ...]:
    """All warnings, cases first, each once."""
    found = [warned for case in cases if case.get("status") != "skipped" for warned in _of_case(case)]
    found += _of_hosts(hosts)
    return tuple(dict.fromkeys(found))


def _of_case(case: Row) -> Iterator[Warned]:
    subject = " / ".join(str(case[key]) for key in ("host", "runtime", "model", "device") if case.get(key))
    if (case.get("concurrency") or 1) != 1:
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
        yield from _of_tokens(case, warn)
    yield from _of_conditions(case, warn)


def _of_sampling(case: Row, n: int, warn: Any) -> Iterator[Warned]:
    if (case.get("rounds") or 0) < _FEW_ROUNDS:
        message = f"{case.get('rounds') or 0} counted rounds: no interval can be given"
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


def _of_tokens(case: Row, warn: Any) -> Iterator[Warned]:
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
    cached, prompt = case.get("cached_prompt_tokens") or 0, case.get("prompt_tokens") or 0
    if cached:
        message = f"{cached} of {prompt} prompt tokens came from a prefix cache: TTFT and prefill look better"
        yield warn(Code.PROMPTS_CACHED, message, "use prompts without a common beginning or switch the cache off")


def _of_conditions(case: Row, warn: Any) -> Iterator[Warned]:
    asked, actual = case.get("ep_requested"), case.get("ep_actual")
    if asked and actual and asked != actual:
        message = f"ran on {actual} although the variant is for {asked}"
        yield warn(Code.EP_DIFFERS, message, "check the driver and the execution provider with `benchfleet doctor`")
    elif asked and not actual and case.get("device") in ("gpu", "npu"):
        message = f"nothing proves that {asked} did the work"
        yield warn(Code.EP_UNPROVEN, message, "look at gpu_busy_ratio and vram_peak_bytes of the case")
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


def _of_hosts(hosts: Sequence[Row]) -> Iterator[Warned]:
    by_name: dict[str, list[Row]] = defaultdict(list)
    by_machine: dict[str, list[Row]] = defaultdict(list)
    for host in hosts:
        by_name[host["host"]].append(host)
        if host.get("machine_id"):
            by_machine[host["machine_id"]].append(host)
    for name, seen in by_name.items():
        yield from _of_host(name, seen)
    for sharing in by_machine.values():
        if together := _overlapping(sharing):
            message = "these hosts are one machine and their jobs ran at the same time: they took each other's time"
            yield Warned(Code.MACHINE_SHARED, ", ".join(sorted(together)), message, "run them in turn")
    versions = {host["agent_version"] for host in hosts if host.get("agent_version")}
    if len(versions) > 1:
        message = f"agents have different versions: {', '.join(sorted(versions))}"
        yield Warned(Code.AGENTS_DIFFER, "fleet", message, "upgrade all agents to one version")


def _overlapping(jobs: Sequence[Row]) -> set[str]:
    """Hosts of jobs whose times overlap; jobs with unknown times count as overlapping nobody."""
    timed = sorted(
        (job for job in jobs if job.get("started_at") and job.get("finished_at")), key=lambda job: job["started_at"]
    )
    return {
        name
        for earlier, later in pairwise(timed)
        if later["started_at"] < earlier["finished_at"]
        for name in (earlier["host"], later["host"])
    }


def _of_host(name: str, seen: Sequence[Row]) -> Iterator[Warned]:
    if any(host.get("on_battery") for host in seen):
        yield Warned(Code.ON_BATTERY, name, "it ran on battery: clocks may be throttled", "plug it in and run again")
    for earlier, later in pairwise(seen):
        changed = [k for k in _IDENTITY if k in earlier and k in later and earlier[k] != later[k]]
        if changed:
            message = f"it changed between runs: {', '.join(changed)}"
            yield Warned(Code.HOST_CHANGED, name, message, "differences between these runs may come from that")
    for problem in seen[-1].get("problems") or ():
        yield Warned(Code.HOST_PROBLEM, name, str(problem.get("message")), str(problem.get("advice")))


_IDENTITY = (
    "host_id", "machine_id", "cpu_model", "logical_cores", "memory_bytes", "os_version", "devices", "runtimes",
    "agent_version", "python_version", "on_battery",
)  # fmt: skip
