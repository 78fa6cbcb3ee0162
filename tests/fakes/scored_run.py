"""A run with one case of answers to one prompt, for scoring."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from benchfleet_controller.plan import ChatMessage, HostTarget, Plan, Prompt, PromptSet, expand
from benchfleet_controller.store import Store
from fakes.events import JobEvents, commit_events, failed_request, ok_request

QUESTION = (ChatMessage("user", "What is the capital of France, and on which river does it lie?"),)


def recorded_answers(path: Path, expected: tuple[str, ...], texts: list[str]) -> Store:
    """A run with one case whose counted answers are ``texts``; a warm-up answer and a failed one beside them."""
    prompts = PromptSet("geo", (Prompt("p1", QUESTION, expected=expected),))
    plan = Plan("run", (HostTarget("a", "127.0.0.1:1"),), ("tiny",), prompt_sets=(prompts,))
    ids = iter(["job", "c1"])
    jobs = expand(plan, lambda: next(ids))
    store = Store(path)
    store.record_run("r1", plan, jobs, held_by="me", created_at=datetime.now(UTC))
    job = JobEvents("job")
    job.job_started(jobs[0].to_proto(plan, "r1", "me"))
    job.case_started("c1")
    job.loaded("c1")
    answers = []
    for index, text in enumerate(["Paris, on the Seine.", *texts]):
        answer = ok_request(f"q{index}", 10.0 * index, [0.1, 0.2], 10.0 * index + 1)
        answer.prompt_id, answer.text = "p1", text
        answers.append(answer)
    job.round("c1", "w", 0, 0, 10, answers[:1], warmup=True)
    job.round("c1", "r", 1, 10, 100, [*answers[1:], failed_request("failed", 95)])
    job.case_finished("c1")
    job.job_finished()
    commit_events(store, "job", job.events)
    return store
