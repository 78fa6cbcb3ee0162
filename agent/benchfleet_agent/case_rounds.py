"""The rounds of a case whose model is loaded: what is sent, what is waited for between them, what they come to."""

from __future__ import annotations

import contextlib
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent.conditions import Conditions, wait_until_met
from benchfleet_agent.direct_link import DirectLink
from benchfleet_agent.host_state import HostState
from benchfleet_agent.host_state.readers import HostStates
from benchfleet_agent.idle_baseline import leave_alone
from benchfleet_agent.jobs import CaseOrder, Outcome, PromptOrder, SyntheticOrder, case_outcome
from benchfleet_agent.load.record import RequestRecord, Status
from benchfleet_agent.load_link import LoadLink
from benchfleet_agent.recorder import Recorder
from benchfleet_agent.rounds import RoundResult, rate_failure
from benchfleet_agent.runtimes import Session
from benchfleet_agent.synthetic import compose

Load = LoadLink | DirectLink
LONG_WAIT_S = 5.0
"""No runtime unloads a model that was used more recently."""
KEEP_WARM = PromptOrder("keep-warm", ({"role": "user", "content": "Hi."},), 1)


class CaseRounds:
    """Carries out a case's rounds and records them.

    ``phase`` labels the samples (phase, round id), ``interrupted`` raises when the case must end, ``wait`` waits some
    seconds or until it is cancelled, ``runtime_seen`` says whether the runtime's processor time is told apart from that
    of other programs, ``is_loaded`` asks the runtime whether it still holds the model (None: it does not say).
    """

    def __init__(
        self,
        order: CaseOrder,
        recorder: Recorder,
        session: Session,
        load: Load,
        states: HostStates,
        *,
        phase: Callable[[str, str], None],
        interrupted: Callable[[], None],
        wait: Callable[[float], object],
        conditions: Conditions | None = None,
        runtime_seen: bool = True,
        is_loaded: Callable[[], bool | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._order = order
        self._recorder = recorder
        self._session = session
        self._load = load
        self._states = states
        self._phase = phase
        self._interrupted = interrupted
        self._wait = wait
        self._conditions = conditions
        self._runtime_seen = runtime_seen
        self._is_loaded = is_loaded
        self._clock = clock
        self._index = 0
        self._turn = 0
        """Like the index, without rounds to keep warm: those must not change what the others send."""
        self._used_at = clock()
        self._given_up = False
        """Whether a counted round of an open loop did not send all that was due."""
        self._unloaded: bool | None = None
        """Whether the runtime has unloaded the model since the last round; None: not asked, or it does not say."""

    def carry_out(self) -> Outcome:
        """Warm up, count rounds until there are enough, then the request after a pause. Raises `WorkFailed`."""
        order = self._order
        prompts = order.prompts
        if isinstance(prompts, SyntheticOrder):
            prompts = self._compose(prompts)
        for _ in range(order.warmup_rounds):
            self._round("warmup", prompts, self._pace())
        counted: list[RequestRecord] = []
        results: list[RoundResult] = []
        while not order.stop.enough(results):
            self._wait_for_host()
            records, duration_s = self._round("counted", prompts, self._pace())
            counted += records
            results.append(round_result(records, duration_s))
        if order.idle_pause_s is not None:
            self._recorder.progress(order.case_id, f"idle for {order.idle_pause_s:g} s", None)
            self._pause(order.idle_pause_s, keep_warm=False)
            self._tell_if_unloaded(order.idle_pause_s)
            self._round("idle", prompts[:1], {})
        return self._outcome(counted)

    def _outcome(self, counted: Sequence[RequestRecord]) -> Outcome:
        order = self._order
        outcome = case_outcome([_failure(record) for record in counted])
        if order.rate_per_s is not None and outcome.status == "succeeded":
            late = [_seconds(r.scheduled_ns, r.start_ns) for r in counted if r.scheduled_ns and r.start_ns]
            latency = [_seconds(r.start_ns, r.done_ns) for r in counted if r.start_ns and r.done_ns]
            if failure := rate_failure(late, latency, order.rate_per_s, order.concurrency, given_up=self._given_up):
                return Outcome("failed", failure)
        return outcome

    def _round(
        self, kind: str, prompts: Sequence[PromptOrder], pace: dict[str, Any]
    ) -> tuple[list[RequestRecord], float]:
        """Carry out one round and record it; its requests and its duration in seconds."""
        order, recorder = self._order, self._recorder
        round_id, index, turn = str(uuid.uuid4()), self._index, self._turn
        self._index += 1
        self._turn += kind != "keepwarm"
        unloaded, self._unloaded = self._unloaded, None
        recorder.round_started(order.case_id, round_id, index, kind, self._states.take(), model_unloaded=unloaded)
        self._phase("round" if kind == "counted" else "warmup", round_id)
        records: list[RequestRecord] = []

        def take(record: RequestRecord) -> None:
            recorder.request_finished(order.case_id, round_id, record)
            records.append(record)

        # In a closed loop without a duration each prompt is sent as often as it takes to have that many in flight.
        closed = kind in ("counted", "warmup") and not any(pace.values())
        requests = requests_of(prompts, turn, fewest=order.concurrency if closed else 1)
        command = {"round_id": round_id, "requests": requests, **pace}
        if not order.allow_prefix_cache:
            # Another run's words must differ too, unless answers are to be compared with that run's.
            seed = f"{order.seed}" if order.deterministic else order.case_id
            command["prefix_seed"] = f"{seed}/{kind}/{index if kind == 'keepwarm' else turn}"
        finished = self._load.round(command, self._session, take)
        self._phase("loaded", "")
        self._given_up |= kind == "counted" and bool(finished.get("given_up"))
        self._used_at = self._clock()
        failed = sum(record.status is Status.FAILED for record in records)
        state = self._states.take()
        if not self._runtime_seen:
            state = replace(state, background_cpu_ratio=None)
        recorder.round_finished(order.case_id, round_id, finished, len(records), failed, state)
        return records, _seconds(finished["start_ns"], finished["end_ns"])

    def _pace(self) -> dict[str, Any]:
        """How the requests of a round follow each other: fields of the load process's ``round``."""
        order = self._order
        pace: dict[str, Any] = {"duration_s": order.round_duration_s}
        if order.rate_per_s is not None:
            # By the plan's seed, so that every host gets the same arrivals.
            seed = f"{order.seed}/{self._turn}"
            pace |= {
                "rate_per_s": order.rate_per_s,
                "arrival": "poisson" if order.poisson else "constant",
                "seed": seed,
            }
        return pace

    def _compose(self, asked: SyntheticOrder) -> tuple[PromptOrder, ...]:
        self._recorder.progress(self._order.case_id, f"composing prompts of {asked.token_count} tokens", None)

        def count(text: str) -> int | None:
            probe = PromptOrder("calibration", ({"role": "user", "content": text},), 1)
            records, _ = self._round("calibration", [probe], {})
            if records[0].status is Status.FAILED and records[0].reason is not Reason.EMPTY_ANSWER:
                raise WorkFailed(records[0].reason or Reason.INTERNAL, records[0].message or "")
            return records[0].prompt_tokens

        return compose(asked, f"{self._order.seed}", count)

    def _wait_for_host(self) -> None:
        """Let a counted round begin only when the job's conditions hold. Raises `WorkFailed`."""
        if self._conditions is None:
            return
        begin, states = self._clock(), self._states.anew()

        def look() -> HostState:
            self._phase("loaded", "")  # reads every probe now
            return states.take()

        def report(message: str) -> None:
            self._recorder.progress(self._order.case_id, message, None)

        wait_until_met(self._conditions, look, self._pause, report, self._clock)
        self._tell_if_unloaded(self._clock() - begin)

    def _pause(self, seconds: float, *, keep_warm: bool = True) -> None:
        """Wait, but notice the runtime's end and a cancelled job, and keep the model loaded if that is asked."""
        period_s = self._order.keep_warm_s if keep_warm else None

        def wait(slice_s: float) -> None:
            if period_s is not None and self._clock() - self._used_at >= period_s:
                self._round("keepwarm", [KEEP_WARM], {})
            self._wait(slice_s)

        def check() -> None:
            self._interrupted()
            self._session.check()

        leave_alone(seconds, wait, check, self._clock)

    def _tell_if_unloaded(self, waited_s: float) -> None:
        """Say and keep what the next request will pay for, where the runtime tells."""
        if waited_s < LONG_WAIT_S:
            return
        with contextlib.suppress(WorkFailed):
            loaded = self._is_loaded()
            self._unloaded = None if loaded is None else not loaded
            if loaded is False:
                message = f"the runtime unloaded the model within {waited_s:.0f} s: the next request loads it again"
                self._recorder.progress(self._order.case_id, message, None)


def requests_of(prompts: Sequence[PromptOrder], turn: int, fewest: int = 1) -> list[dict[str, Any]]:
    """A round's requests: all prompts, starting with another one each round, so that none is always first.

    They are repeated, each as often as the others, until there are ``fewest``.
    """
    shift = turn % len(prompts)
    return [
        {
            "request_id": str(uuid.uuid4()),
            "prompt_id": prompt.prompt_id,
            "messages": list(prompt.messages),
            **({"max_tokens": prompt.max_tokens} if prompt.max_tokens else {}),
        }
        for prompt in (*prompts[shift:], *prompts[:shift]) * -(-fewest // len(prompts))
    ]


def round_result(records: Sequence[RequestRecord], duration_s: float) -> RoundResult:
    """A round's means, as `StopRule` wants them; rates by chunks, which is near enough to decide when to stop."""
    ok = [record for record in records if record.status is Status.OK]
    first = [record.token_ns[0] / 1e9 for record in ok if record.token_ns]
    gaps = sum(len(record.token_ns) - 1 for record in ok if record.token_ns)
    decode_s = sum(record.token_ns[-1] - record.token_ns[0] for record in ok if record.token_ns) / 1e9
    latency = [_seconds(r.start_ns, r.done_ns) for r in ok if r.start_ns and r.done_ns]
    return RoundResult(
        duration_s=duration_s,
        ttft_s=statistics.fmean(first) if first else None,
        tokens_per_s=gaps / decode_s if decode_s > 0 else None,
        e2e_s=statistics.fmean(latency) if latency else None,
    )


def _seconds(start_ns: int | None, end_ns: int | None) -> float:
    return ((end_ns or 0) - (start_ns or 0)) / 1e9


def _failure(record: RequestRecord) -> Failure | None:
    if record.status is Status.OK:
        return None
    return Failure(record.reason or Reason.INTERNAL, record.message or "")
