"""What does measuring cost? The agent at rest, the sampler at work, and the model's speed with and without it.

Four parts, each against its target where it has one:

- the agent at rest: resident memory and CPU time of a served agent that nobody asks anything;
- sampling: CPU time of the sampler's thread with the default probes at 100 ms, looking at a busy process tree;
- the agent in a job: its memory, and its CPU time with sampling on and off;
- the model: tokens/s of the real runtime with the reference model, with the agent's sampling every 100 ms on and off,
  in slices of a second and a half in turn: A B B A. Everything else the agent does goes on in both.

    python -m benchmarks.overhead --write docs/overhead.md

Exit code 1 when a target is missed. Needs an idle machine: on a busy one the ratio's interval holds both sides of its
target, and the verdict is that nothing can be said.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
from benchmarks.pausable_agent import REST, SAMPLE

from benchfleet.v1 import agent_service_pb2, agent_service_pb2_grpc, event_pb2, job_pb2
from benchfleet_agent.probes import Targets, default_probes, describe
from benchfleet_agent.probes.system import host_cpu_ns
from benchfleet_agent.sampler import Label, Sampler
from benchfleet_controller.demo import running_agent

REST_MB, REST_RATIO, SAMPLING_RATIO, SPEED_RATIO = 60.0, 0.002, 0.01, 0.99
SETTLE_S = 5.0
PERIOD_MS = 100
SLICE_S, GUARD_S = 1.5, 0.05
"""Long enough for a hundred tokens, shorter than what the machine's speed needs to drift. Tokens so near to the edge of
a slice count for neither side."""
LONGEST_S = 3600.0
"""How long the job would last; it is cancelled."""
QUIET_RATIO = 0.05
"""Share of all processors that other programs may have used for the figures to be quoted."""
TEXT = "Explain how a steam engine turns heat into motion, step by step, for somebody who has never seen one."

PAGE = """\
# What measuring costs

Written by `python -m benchmarks.overhead --write docs/overhead.md` on {date}: {machine}, Python {python}.

{others}

| what | measured | target | |
| --- | --- | --- | --- |
{rows}

In a job: the agent's own process, its children (load process, runtime) apart; with sampling off it keeps the journal of
the requests and streams it, with sampling on that of the readings as well.

At rest: an agent started with `benchfleet-agent serve`, {settle_s:g} s after it listens, over {seconds:g} s; most
systems count CPU time in ticks of 10 ms.

Sampling: CPU time of a process that does nothing but run the sampler with the default probes at their own periods
(fast ones every {on_ms} ms) on a tree of three busy processes of 64 MiB and 8 threads each. The median of three spans
of {seconds:g} s counts, all are given.

Tokens/s: Foundry Local's runtime with the model {model} on all cores, asked by the load process without a pause for
answers of up to {max_tokens} tokens. Its agent keeps its journal and streams to a follower throughout; it samples
every {on_ms} ms in one slice of {slice_s} s and not in the other (`benchmarks/pausable_agent.py`). A pair is two
slices, every other pair in the other order. The rate of a slice is that of the gaps between tokens of an answer that
lie in it. The ratio is the median over pairs, which single disturbances do not move, the interval a bootstrap of it.
Half of the ratios lie between {lower:.3f} and {upper:.3f}.

## Probes here

Of readings one directly after the other, so of warm caches and without what is read less often than at every tick (the
parts of the runtime's memory, four times a second). What sampling costs in all stands above.

| probe | period, ms | one reading, µs | metrics |
| --- | ---: | ---: | ---: |
{probes}
"""


@dataclass(frozen=True)
class Finding:
    """One measured quantity against its target."""

    what: str
    measured: str
    target: str
    kept: bool | None
    """None: too uncertain to say, or there is no target."""

    @property
    def verdict(self) -> str:
        if not self.target:
            return "no target"
        return "too noisy to say" if self.kept is None else "kept" if self.kept else "**not kept**"


def at_rest(seconds: float) -> list[Finding]:
    """Resident memory and CPU share of an agent that serves nobody."""
    with tempfile.TemporaryDirectory() as folder, running_agent(Path(folder), "all"):
        agent = _agent()
        time.sleep(SETTLE_S)
        before = agent.cpu_times()
        time.sleep(seconds)
        after = agent.cpu_times()
        memory_mb = agent.memory_info().rss / 1e6
    share = max(0.0, after.user + after.system - before.user - before.system) / seconds
    return [
        Finding("agent at rest: resident", f"{memory_mb:.1f} MB", f"≤ {REST_MB:.0f} MB", memory_mb <= REST_MB),
        Finding("agent at rest: CPU", f"{share:.3%} of a core", f"≤ {REST_RATIO:.1%}", share <= REST_RATIO),
    ]


def sampling(seconds: float) -> list[Finding]:
    """CPU share of the sampler with the default probes, on a tree of busy processes; the median of three spans."""
    context = multiprocessing.get_context("spawn")
    root = context.Process(target=_busy_tree, daemon=False)
    root.start()
    try:
        _wait_for_tree(root.pid or 0)
        shares = []
        sampler = Sampler(default_probes(), lambda _: None, fast_period_ms=PERIOD_MS)
        sampler.start()
        sampler.set_targets(Targets((root.pid or 0,), os.getpid()))
        sampler.set_label(Label("overhead", "round", "round"))
        for _ in range(3):
            begun, cpu_ns = time.perf_counter_ns(), time.process_time_ns()
            time.sleep(seconds)
            shares.append((time.process_time_ns() - cpu_ns) / (time.perf_counter_ns() - begun))
        sampler.stop()
    finally:
        for process in (*psutil.Process(root.pid).children(recursive=True), psutil.Process(root.pid)):
            process.kill()
        root.join()
    share = statistics.median(shares)
    measured = f"{share:.2%} of a core ({', '.join(f'{one:.2%}' for one in sorted(shares))})"
    return [Finding("sampling every 100 ms: CPU", measured, f"≤ {SAMPLING_RATIO:.0%}", share <= SAMPLING_RATIO)]


def _busy_tree() -> None:
    """A process with two children, with threads and memory like a runtime's; the children work a little."""
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        context.Process(target=_work, daemon=True).start()
    _work()


def _work() -> None:
    ballast = bytearray(os.urandom(4096)) * 16_384  # 64 MiB resident
    for _ in range(8):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    while ballast:
        ballast[0] = sum(ballast[:2048]) % 251
        time.sleep(0.005)


def _wait_for_tree(pid: int) -> None:
    deadline = time.monotonic() + 30
    while len(psutil.Process(pid).children(recursive=True)) < 2:
        if time.monotonic() > deadline:
            raise RuntimeError("the busy processes did not start")
        time.sleep(0.05)
    time.sleep(2.0)


def speed(pairs: int, max_tokens: int, model: str) -> tuple[list[Finding], list[float]]:
    """Tokens/s with sampling over tokens/s without, one ratio a pair; and what the agent itself uses."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_agent(Path(folder), "all", "benchmarks.pausable_agent") as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        agent = _agent()
        job_id = _start_job(stub, max_tokens, model)
        with ThreadPoolExecutor(1) as threads:
            events: list[event_pb2.Event] = []
            measuring = threading.Event()
            done = threads.submit(_follow, stub, job_id, events, measuring)
            while not measuring.wait(1.0):
                if done.done():
                    done.result()
                    raise RuntimeError("the job ended before it measured anything")
            time.sleep(SETTLE_S)  # the first requests after a load
            slices, share_on, share_off, memory_mb = _take_turns(agent, pairs)
            stub.CancelJob(agent_service_pb2.CancelJobRequest(job_id=job_id))
            done.result()
    rates = slice_rates(_arrivals_ns(events), slices)
    # A B B A: pairs take turns in which slice comes first.
    on_off = [(rates[2 * pair + pair % 2], rates[2 * pair + 1 - pair % 2]) for pair in range(pairs)]
    ratios = [on / off for on, off in on_off if on is not None and off is not None]
    middle = statistics.median(ratios)
    low, high = interval(ratios)
    measured = f"{middle:.4f} (95 % interval {low:.4f} to {high:.4f}, {len(ratios)} pairs)"
    kept = True if low >= SPEED_RATIO else False if high < SPEED_RATIO else None
    return [
        Finding("agent in a job: resident", f"{memory_mb:.1f} MB", "", None),
        Finding("agent in a job: CPU, sampling on", f"{share_on:.2%} of a core", "", None),
        Finding("agent in a job: CPU, sampling off", f"{share_off:.2%} of a core", "", None),
        Finding("tokens/s with sampling / without", measured, f"≥ {SPEED_RATIO}", kept),
    ], ratios


def _take_turns(agent: psutil.Process, pairs: int) -> tuple[list[tuple[int, int]], float, float, float]:
    """Let the agent sample and rest from it in turn; returns the slices, its share of a core in each, and its MB."""
    slices: list[tuple[int, int]] = []
    used_s = {True: 0.0, False: 0.0}
    for pair in range(pairs):
        for samples in (True, False) if pair % 2 == 0 else (False, True):
            agent.send_signal(SAMPLE if samples else REST)
            begun, before = time.perf_counter_ns(), agent.cpu_times()
            time.sleep(SLICE_S)
            slices.append((begun, time.perf_counter_ns()))
            after = agent.cpu_times()
            used_s[samples] += after.user + after.system - before.user - before.system
    agent.send_signal(SAMPLE)
    total_s = SLICE_S * pairs
    return slices, used_s[True] / total_s, used_s[False] / total_s, agent.memory_info().rss / 1e6


def slice_rates(arrivals_ns: Sequence[Sequence[int]], slices: Sequence[tuple[int, int]]) -> list[float | None]:
    """Tokens/s in each slice, of the gaps between the tokens of one answer that lie in it; None: there is none."""
    begins = np.concatenate([np.asarray(one[:-1], np.int64) for one in arrivals_ns if len(one) > 1])
    ends = np.concatenate([np.asarray(one[1:], np.int64) for one in arrivals_ns if len(one) > 1])
    rates: list[float | None] = []
    for start_ns, end_ns in slices:
        within = (begins >= start_ns + GUARD_S * 1e9) & (ends <= end_ns - GUARD_S * 1e9)
        took_ns = int((ends - begins)[within].sum())
        rates.append(float(within.sum() * 1e9 / took_ns) if took_ns else None)
    return rates


def _agent() -> psutil.Process:
    """The agent that was started last."""
    (agent,) = [child for child in psutil.Process().children() if "serve" in child.cmdline()]
    return agent


def interval(ratios: Sequence[float], resamples: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of paired ratios."""
    drawn = np.random.default_rng(1).choice(np.asarray(ratios), (resamples, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _start_job(stub: agent_service_pb2_grpc.AgentServiceStub, max_tokens: int, model: str) -> str:
    """Start a job that goes on until it is cancelled."""
    prompts = [
        job_pb2.Prompt(
            prompt_id=f"p{number}", messages=[job_pb2.ChatMessage(role="user", content=f"{TEXT} ({number})")]
        )
        for number in range(3)
    ]
    case = job_pb2.CaseSpec(
        case_id=str(uuid.uuid4()),
        runtime="foundry",
        model=model,
        prompt_set="steam",
        round_count=1,
        concurrency=1,
        stream=True,
        sampling=job_pb2.SamplingSpec(max_tokens=max_tokens, temperature=0.0, seed=1),
        stop=job_pb2.StopSpec(round_duration_s=LONGEST_S),
    )
    spec = job_pb2.JobSpec(
        run_id=str(uuid.uuid4()),
        held_by="benchmarks/overhead.py",
        prompt_sets=[job_pb2.PromptSet(name="steam", prompts=prompts)],
        cases=[case],
        sample_period_ms=PERIOD_MS,
        skip_certificate=True,
        idle_baseline_s=0,
    )
    job_id = str(uuid.uuid4())
    stub.StartJob(agent_service_pb2.StartJobRequest(job_id=job_id, spec=spec))
    return job_id


def _follow(
    stub: agent_service_pb2_grpc.AgentServiceStub,
    job_id: str,
    events: list[event_pb2.Event],
    measuring: threading.Event,
) -> None:
    """Take a job's events until its end; ``measuring`` is set with the first counted round."""
    for answer in stub.StreamJobEvents(agent_service_pb2.StreamJobEventsRequest(job_id=job_id)):
        events += answer.events
        for event in answer.events:
            if event.HasField("round_started") and event.round_started.kind == "counted":
                measuring.set()
            failed = event.HasField("case_finished") and event.case_finished.status == "failed"
            if failed and event.case_finished.failure.reason != "cancelled":
                raise RuntimeError(f"the case failed: {event.case_finished.failure.message}")


def _arrivals_ns(events: Iterable[event_pb2.Event]) -> list[list[int]]:
    """When the chunks of each answer arrived."""
    requests = [event.request_finished for event in events if event.HasField("request_finished")]
    return [[one.start_ns + offset for offset in one.token_offset_ns] for one in requests if one.status == "ok"]


@dataclass(frozen=True)
class Work:
    """Processor time so far, in seconds: of the whole machine, and of this benchmark with its ended children."""

    busy_s: float
    total_s: float
    own_s: float

    @classmethod
    def now(cls) -> Work:
        (busy_ns, total_ns), own = host_cpu_ns(psutil.cpu_times()._asdict()), os.times()
        return cls(busy_ns / 1e9, total_ns / 1e9, own.user + own.system + own.children_user + own.children_system)


def others_ratio(before: Work, after: Work) -> float | None:
    """Share of all processors that other programs used; None: this system does not count the time of children."""
    if os.name != "posix" or after.total_s <= before.total_s:
        return None
    others_s = after.busy_s - before.busy_s - (after.own_s - before.own_s)
    return max(0.0, others_s) / (after.total_s - before.total_s)


def judged(ratio: float | None) -> str:
    """What other work on the machine makes of the figures."""
    if ratio is None:
        return "Whether other work ran on the machine meanwhile is not known here: quote figures of a quiet one only."
    said = f"Other programs used {ratio:.1%} of the machine's processors meanwhile"
    if ratio <= QUIET_RATIO:
        return f"{said}, little enough to quote the figures."
    return f"{said}, so the figures are provisional: make the page anew on a quiet machine before quoting it."


def page(
    findings: Sequence[Finding], ratios: Sequence[float], others: float | None, arguments: argparse.Namespace
) -> str:
    """The page docs/overhead.md."""
    rows = [f"| {f.what} | {f.measured} | {f.target or '–'} | {f.verdict} |" for f in findings]
    probes = [
        f"| {p.probe_id} | {p.period_ms} | {'–' if p.cost_us is None else f'{p.cost_us:.0f}'} | "
        f"{len(p.metrics) if p.available else 'not available here'} |"
        for p in describe(default_probes())
    ]
    now = datetime.datetime.now(datetime.UTC)
    lower, _, upper = statistics.quantiles(ratios, n=4)
    return PAGE.format(
        date=f"{now.day} {now:%B %Y}",
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical cores",
        python=platform.python_version(),
        others=judged(others),
        rows="\n".join(rows),
        settle_s=SETTLE_S,
        on_ms=PERIOD_MS,
        slice_s=SLICE_S,
        lower=lower,
        upper=upper,
        probes="\n".join(probes),
        **vars(arguments),
    )


def main() -> int:
    """Measure, print, and write the page when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a span at rest and of sampling")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--model", default="smollm2-135m", help="the reference model, or another alias")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the page there")
    arguments = parser.parse_args()
    before = Work.now()
    findings = [*at_rest(arguments.seconds), *sampling(arguments.seconds)]
    of_speed, ratios = speed(arguments.pairs, arguments.max_tokens, arguments.model)
    findings += of_speed
    others = others_ratio(before, Work.now())
    for finding in findings:
        print(f"{finding.what}: {finding.measured}; target {finding.target or 'none'}: {finding.verdict}")
    print(judged(others))
    if arguments.write:
        arguments.write.write_text(page(findings, ratios, others, arguments), encoding="utf-8")
    return 1 if any(finding.kept is False for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
