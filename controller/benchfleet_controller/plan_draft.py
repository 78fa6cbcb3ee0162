"""What was given for a plan by file, flags and environment, and the plan it makes.

Flags win over the file, the file over the environment, the environment over the defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchfleet_controller.model_facts import ModelFactsError, load_model_facts
from benchfleet_controller.plan import (
    ALL_DEVICES,
    DEFAULT_ROUNDS,
    Conditions,
    Deadlines,
    HostTarget,
    ModelFacts,
    Plan,
    PromptSet,
    Stop,
)
from benchfleet_controller.plan_limits import MAXIMUM_ROUNDS, contradictions, excesses, problems_of, shown
from benchfleet_controller.prompts import PromptError, inline_prompts, load_prompts

DEFAULT_PROMPT_COUNT = 4
DEFAULT_IN_FLIGHT = 64
"""The most requests in flight in an open loop whose plan does not say."""
DEFAULT_BLOCKS_OF_ALL = 2
"""Devices of one host are compared with each other, so their cases are interleaved."""
DEFAULT_MAXIMUM_ROUNDS = 50
"""The most rounds when they stop by their interval and the plan does not say."""


class PlanError(Exception):
    """A plan makes no sense; one line a problem, each saying where and what to do."""


@dataclass(frozen=True, slots=True)
class PlanDraft:
    """What a plan file says, checked key by key. None: the file does not say."""

    name: str | None = None
    hosts: tuple[HostTarget, ...] | None = None
    models: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] | None = None
    endpoint_url: str | None = None
    rounds: int | None = None
    warmup_rounds: int | None = None
    blocks: int | None = None
    concurrencies: tuple[int, ...] | None = None
    prompt_sets: tuple[PromptSet, ...] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool | None = None
    prepare_s: float | None = None
    load_s: float | None = None
    request_s: float | None = None
    first_token_s: float | None = None
    token_s: float | None = None
    rates: tuple[float, ...] | None = None
    arrival: str | None = None
    round_duration_s: float | None = None
    minimum_duration_s: float | None = None
    interval_ratio: float | None = None
    maximum_rounds: int | None = None
    prompt_token_counts: tuple[int, ...] | None = None
    prompt_count: int | None = None
    prefix_cache: str | None = None
    page_cache: str | None = None
    idle_pause_s: float | None = None
    idle_baseline_s: float | None = None
    deterministic: bool | None = None
    certificate: bool | None = None
    goodput: str | None = None
    model_facts: tuple[ModelFacts, ...] | None = None
    paths: tuple[str, ...] | None = None
    keep_warm_period_s: float | None = None
    skip_unfit: bool | None = None
    require_ac: bool | None = None
    cool_temperature_c: float | None = None
    maximum_background_ratio: float | None = None
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Overrides(PlanDraft):
    """What the command line's flags say. None: not given."""

    models_file: Path | None = None
    prompts_file: Path | None = None
    prompts: tuple[str, ...] | None = None


_FLAGS = {
    "models": "--model", "devices": "--device", "runtimes": "--runtime", "endpoint_url": "--endpoint",
    "warmup_rounds": "--warmup", "concurrencies": "--concurrency", "prepare_s": "--prepare-timeout",
    "load_s": "--load-timeout", "request_s": "--request-timeout", "first_token_s": "--first-token-timeout",
    "token_s": "--token-timeout", "rates": "--rate", "minimum_duration_s": "--min-duration",
    "interval_ratio": "--until-within", "maximum_rounds": "--max-rounds", "prompt_token_counts": "--prompt-tokens",
    "idle_pause_s": "--idle-pause", "idle_baseline_s": "--idle-baseline", "paths": "--path",
    "keep_warm_period_s": "--keep-warm",
    "cool_temperature_c": "--wait-until-cool", "maximum_background_ratio": "--max-background-load",
    "wait_s": "--condition-timeout",
}  # fmt: skip
"""Flags that are not called as their field."""


def build_plan(draft: PlanDraft | None, overrides: Overrides, environment: Mapping[str, str]) -> Plan:
    """Put file, flags and environment together and check the whole. Raises `PlanError` with every problem at once."""
    given = _given(draft) if draft else {}
    flags = _given(overrides)
    problems = [
        f"{_FLAGS.get(name, '--' + name.replace('_', '-'))} {problem}"
        for name, value in flags.items()
        for _, problem in problems_of(name, value)
    ]
    flag_prompts, wrong = _flag_prompts(flags.pop("prompts_file", None), flags.pop("prompts", None))
    flag_models, wrong_models = _flag_models(flags.pop("models_file", None), flags)
    if (flag_prompts and "prompt_token_counts" not in flags) or "prompt_token_counts" in flags:
        given.pop("prompt_token_counts" if flag_prompts else "prompt_sets", None)  # one of the two replaces the plan's
    given |= flags | flag_prompts | flag_models
    wrong += wrong_models
    defaults, wrong_defaults = _environment(environment, given)
    problems += wrong + wrong_defaults
    if overrides.endpoint_url and "endpoint" not in given.get("runtimes", ("endpoint",)):
        problems.append("--endpoint is given, but the runtimes do not name it; add --runtime endpoint")
    chosen: dict[str, Any] = {"name": "run"} | defaults | given
    if chosen.get("endpoint_url") and "runtimes" not in chosen:
        chosen["runtimes"] = ("endpoint",)
    if not chosen.get("hosts"):
        problems.append("no host is named; add --host NAME=ADDRESS (an agent's address) or [hosts] to the plan")
    if not chosen.get("models"):
        problems.append("no model is named; add --model, for example --model smollm2-135m, or models to the plan")
    if problems:
        raise PlanError("\n".join(problems))
    return _assembled(chosen)


def _assembled(chosen: dict[str, Any]) -> Plan:
    """The plan, its combinations checked. Raises `PlanError`."""
    if problems := list(contradictions(chosen)):
        raise PlanError("\n".join(problems))
    if lengths := chosen.pop("prompt_token_counts", None):
        count = chosen.get("prompt_count") or DEFAULT_PROMPT_COUNT
        chosen["prompt_sets"] = tuple(PromptSet.synthetic(length, count) for length in lengths)
    chosen.pop("prompt_count", None)
    if ALL_DEVICES in chosen.get("devices", ()) and not (
        chosen.get("minimum_duration_s") or chosen.get("interval_ratio")
    ):
        chosen.setdefault("blocks", min(DEFAULT_BLOCKS_OF_ALL, chosen.get("rounds", DEFAULT_ROUNDS)))
    if ALL_DEVICES in chosen.get("devices", ()) and not list(contradictions(chosen | {"deterministic": True})):
        chosen.setdefault("deterministic", True)  # so that answers of devices can be compared
    if chosen.get("rates"):
        chosen.setdefault("concurrencies", (DEFAULT_IN_FLIGHT,))
    deadlines = Deadlines(**{field.name: chosen.pop(field.name, None) for field in fields(Deadlines)})
    stop = Stop(**{field.name: chosen.pop(field.name, None) for field in fields(Stop)})
    conditions = Conditions(**{field.name: chosen.pop(field.name, None) for field in fields(Conditions)})
    plan = Plan(**chosen, deadlines=deadlines, stop=stop, conditions=conditions)
    if plan.stop.maximum_rounds is None and (stop.minimum_duration_s or stop.interval_ratio):
        # A duration ends by itself: nothing but what is asked for may cut it short.
        most = MAXIMUM_ROUNDS if stop.minimum_duration_s else max(plan.rounds, DEFAULT_MAXIMUM_ROUNDS)
        plan = dataclasses.replace(plan, stop=dataclasses.replace(stop, maximum_rounds=most))
    if too_much := list(excesses(plan)):
        raise PlanError("\n".join(too_much))
    return plan


def _given(draft: PlanDraft) -> dict[str, Any]:
    return {field.name: value for field in fields(draft) if (value := getattr(draft, field.name)) is not None}


def _flag_prompts(file: Path | None, texts: tuple[str, ...] | None) -> tuple[dict[str, Any], list[str]]:
    """The prompt set that the flags give, and what is wrong with it."""
    if file is not None and texts is not None:
        return {}, ["--prompts and --prompt exclude each other; give a file or texts"]
    try:
        if file is not None:
            return {"prompt_sets": (load_prompts(file),)}, []
        if texts is not None:
            return {"prompt_sets": (inline_prompts(texts, where="--prompt"),)}, []
    except PromptError as error:
        return {}, str(error).splitlines()
    return {}, []


def _flag_models(file: Path | None, flags: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The models that ``--models FILE`` gives (unless ``--model`` chooses among them), and what is wrong with it."""
    if file is None:
        return {}, []
    try:
        facts = load_model_facts(file)
    except ModelFactsError as error:
        return {}, str(error).splitlines()
    return {"model_facts": facts} | ({} if "models" in flags else {"models": tuple(one.alias for one in facts)}), []


def _environment(environment: Mapping[str, str], taken: Container[str]) -> tuple[dict[str, Any], list[str]]:
    """The seed workshop's variables for the fields that nothing else gives, and what is wrong with them."""
    chosen: dict[str, Any] = {}
    problems: list[str] = []
    for variable, (field, kind, read) in _VARIABLES.items():
        text = environment.get(variable, "").strip()
        if not text or field in taken:
            continue
        try:
            if (value := read(text)) == ():
                continue
        except (ValueError, KeyError):
            problems.append(f"the environment variable {variable} must be {kind}, not {shown(text)}")
            continue
        except PromptError as error:
            problems.append(str(error))
            continue
        wrong = [problem for _, problem in problems_of(field, value)]
        problems += [f"the environment variable {variable} {problem}" for problem in wrong]
        if not wrong:
            chosen[field] = value
    return chosen, problems


_VARIABLES: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "FOUNDRY_LOCAL_ENDPOINT": ("endpoint_url", "a URL", str),
    "BENCH_MODELS": ("models", "a list", lambda text: tuple(part.strip() for part in text.split(",") if part.strip())),
    "BENCH_ROUNDS": ("rounds", "a whole number", int),
    "BENCH_PROMPT": ("prompt_sets", "a text", lambda text: (inline_prompts([text], "BENCH_PROMPT"),)),
    "BENCH_STREAM": ("stream", "0 or 1", lambda text: {"0": False, "1": True}[text]),
    "BENCH_MAX_TOKENS": ("max_tokens", "a whole number", int),
    "BENCH_TEMPERATURE": ("temperature", "a number", float),
}
