"""score: how good the answers of a run are, by what their prompts expect or by a judge."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchfleet_controller.commands import UsageError, say, store_of
from benchfleet_controller.judge import RUBRIC_VERSION, Judge, JudgeError
from benchfleet_controller.prompts import PromptError, load_prompts
from benchfleet_controller.quality import Score, expected_of
from benchfleet_controller.report import Column, render_table
from benchfleet_controller.store import Aspects, Row, Store, score_row

_KEPT_AT_ONCE = 20
_COLUMNS = (
    Column("host", "Host"),
    Column("model", "Model"),
    Column("device", "Device"),
    Column("scorer", "Scorer"),
    Column("prompt_id", "Prompt"),
    Column("answers", "Answers"),
    Column("scored", "Scored"),
    Column("score_ratio", "Score"),
    Column("cut_short", "Cut short"),
    Column("reason", "Why not"),
)


def score_command(options: argparse.Namespace) -> int:
    """Score a run's answers and show what came out."""
    store = store_of(options)
    run_id = store.resolve_run(options.run)
    if (options.judge is None) != (options.judge_model is None):
        raise UsageError("a judge is --judge URL and --judge-model M together")
    if options.judge:
        _judge(store, run_id, options.judge, options.judge_model, again=options.again)
    else:
        aspects = _aspects_of(store, run_id, options.expected)
        if not aspects:
            raise UsageError(
                "the run's prompts do not say what is expected of answers: give --expected FILE with prompts that do "
                '("expected": ["Paris", "/sei?ne/"]), or let a model judge with --judge URL --judge-model M'
            )
        store.score_run(run_id, aspects)
    sys.stdout.write(render_table(store.score_summary([run_id]), _COLUMNS, options.format))
    return 0


def _aspects_of(store: Store, run_id: str, file: Path | None) -> Aspects:
    if file is None:
        return expected_of(store.run(run_id)["plan"])
    try:
        prompts = load_prompts(file)
    except PromptError as error:
        raise UsageError(str(error)) from None
    return {("", prompt.prompt_id): prompt.expected for prompt in prompts.prompts if prompt.expected}


def _judge(store: Store, run_id: str, url: str, model: str, *, again: bool) -> None:
    """Ask the judge about every answer it has not judged yet; what it said is kept as it comes."""
    try:
        judge = Judge.at(url, model)
    except JudgeError as error:
        raise UsageError(str(error)) from None
    questions = _questions(store.run(run_id)["plan"])
    known = set() if again else store.scored([run_id], judge.name)
    answers = [one for one in store.answers_to_score([run_id]) if one["request_id"] not in known]
    # The same answer to the same prompt gets one grade: a greedy judge would only repeat itself.
    graded: dict[tuple[str, str, str], Score] = {}
    pending: list[Row] = []
    try:
        for number, answer in enumerate(answers, start=1):
            key = (answer["prompt_set"], answer["prompt_id"], answer["text"] or "")
            if key not in graded:
                graded[key] = judge.score(questions(*key[:2]), key[2])
            detail = {"model": judge.model, "rubric": RUBRIC_VERSION}
            pending.append(score_row(answer, judge.name, graded[key], detail))
            if len(pending) >= _KEPT_AT_ONCE or number == len(answers):
                store.replace_scores(pending)
                pending = []
                say(f"judged {number} of {len(answers)} answers")
    except JudgeError as error:
        raise UsageError(str(error)) from None
    finally:
        if pending:
            store.replace_scores(pending)


def _questions(plan: Mapping[str, Any] | None) -> Callable[[str, str], str]:
    """The prompt's text by (prompt set, prompt), as far as the plan has it."""
    texts = {
        (prompts["name"], prompt["prompt_id"]): "\n".join(message["content"] for message in prompt["messages"])
        for prompts in (plan or {}).get("prompt_sets") or ()
        for prompt in prompts.get("prompts") or ()
    }
    return lambda prompts, prompt: texts.get((prompts, prompt), f"(prompt {prompt}, whose text is not stored)")
