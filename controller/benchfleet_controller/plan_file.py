"""Plans from TOML or JSON files, flags and the environment. Flags win over the file, the file over the environment.

The file's keys are documented, with an example, in docs/plan.md.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchfleet_controller.inventory import InventoryError, check_name, resolve_hosts
from benchfleet_controller.plan import DEVICES, Deadlines, HostTarget, Plan, PromptSet
from benchfleet_controller.prompts import inline_prompts, load_prompts

MAXIMUM_CONCURRENCY = 256
MAXIMUM_ROUNDS = 10_000
MAXIMUM_TOKENS = 1 << 20


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


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line's flags say. None: not given."""

    name: str | None = None
    hosts: tuple[HostTarget, ...] | None = None
    models: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] | None = None
    endpoint_url: str | None = None
    rounds: int | None = None
    warmup_rounds: int | None = None
    concurrencies: tuple[int, ...] | None = None
    prompts_file: Path | None = None
    prompts: tuple[str, ...] | None = None
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


def load_plan(path: Path) -> PlanDraft:
    """Read a plan file. Raises `PlanError` with every problem of the file at once."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PlanError(f"the plan {path} is not UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise PlanError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise PlanError(f"{path}: a plan is a table of keys, not a {type(document).__name__}")
    return _Reader(path).read(document)


def build_plan(draft: PlanDraft | None, overrides: Overrides, environment: Mapping[str, str]) -> Plan:
    """Put file, flags and environment together and check the whole. Raises `PlanError`, `PromptError`."""
    chosen: dict[str, Any] = _environment(environment)
    for source in (draft or PlanDraft(), overrides):
        for field in fields(source):
            value = getattr(source, field.name)
            if value is not None:
                chosen[field.name] = value
    if overrides.prompts_file is not None:
        chosen["prompt_sets"] = (load_prompts(overrides.prompts_file),)
    elif overrides.prompts is not None:
        chosen["prompt_sets"] = (inline_prompts(overrides.prompts),)
    for name in ("prompts_file", "prompts"):
        chosen.pop(name, None)
    if chosen.get("endpoint_url") and "runtimes" not in chosen:
        chosen["runtimes"] = ("endpoint",)
    deadlines = {field.name: chosen.pop(field.name, None) for field in fields(Deadlines)}
    if not chosen.get("hosts"):
        raise PlanError("no host is named; add --host NAME=ADDRESS (an agent's address) or [hosts] to the plan")
    if not chosen.get("models"):
        raise PlanError("no model is named; add --model, for example --model smollm2-135m, or models to the plan")
    chosen.setdefault("name", "run")
    plan = replace(Plan(chosen["name"], chosen["hosts"], chosen["models"]), **chosen, deadlines=Deadlines(**deadlines))
    if problems := _problems(plan):
        raise PlanError("\n".join(problems))
    return plan


def _environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The seed workshop's variables as defaults."""
    chosen: dict[str, Any] = {}

    def number(variable: str, key: str, kind: Callable[[str], Any]) -> None:
        if text := environment.get(variable, "").strip():
            try:
                chosen[key] = kind(text)
            except ValueError:
                raise PlanError(f"the environment variable {variable} must be a number, not {text!r}") from None

    if models := [name.strip() for name in environment.get("BENCH_MODELS", "").split(",") if name.strip()]:
        chosen["models"] = tuple(models)
    number("BENCH_ROUNDS", "rounds", int)
    number("BENCH_MAX_TOKENS", "max_tokens", int)
    number("BENCH_TEMPERATURE", "temperature", float)
    if prompt := environment.get("BENCH_PROMPT", "").strip():
        chosen["prompt_sets"] = (inline_prompts([prompt], "BENCH_PROMPT"),)
    if stream := environment.get("BENCH_STREAM", "").strip():
        if stream not in ("0", "1"):
            raise PlanError(f"the environment variable BENCH_STREAM must be 0 or 1, not {stream!r}")
        chosen["stream"] = stream == "1"
    if endpoint := environment.get("FOUNDRY_LOCAL_ENDPOINT", "").strip():
        chosen["endpoint_url"] = endpoint
    return chosen


def _problems(plan: Plan) -> list[str]:
    """Everything that is wrong with a plan's values."""
    checks = [
        (1 <= plan.rounds <= MAXIMUM_ROUNDS, f"rounds must lie between 1 and {MAXIMUM_ROUNDS}, not {plan.rounds}"),
        (0 <= plan.warmup_rounds <= MAXIMUM_ROUNDS, f"warmup must not be negative, not {plan.warmup_rounds}"),
        (1 <= plan.max_tokens <= MAXIMUM_TOKENS, f"max_tokens must lie between 1 and {MAXIMUM_TOKENS}"),
        (plan.temperature is None or 0 <= plan.temperature <= 2, "temperature must lie between 0 and 2"),
        (plan.top_p is None or 0 < plan.top_p <= 1, "top_p must be above 0 and at most 1"),
        (bool(plan.concurrencies), "concurrency must not be an empty list"),
        (len({*plan.models}) == len(plan.models), "a model is named twice"),
        (len({host.name for host in plan.hosts}) == len(plan.hosts), "two hosts have the same name"),
        (len({prompts.name for prompts in plan.prompt_sets}) == len(plan.prompt_sets), "two prompt sets have one name"),
        ("endpoint" not in plan.runtimes or bool(plan.endpoint_url), "the runtime endpoint needs --endpoint URL"),
        (plan.name.isprintable() and 0 < len(plan.name) <= 200, "name must be a short printable text"),
    ]
    problems = [message for fine, message in checks if not fine]
    problems += [
        f"concurrency must lie between 1 and {MAXIMUM_CONCURRENCY}, not {number}"
        for number in plan.concurrencies
        if not 1 <= number <= MAXIMUM_CONCURRENCY
    ]
    problems += [f"device must be cpu, gpu or npu, not {d!r}" for d in plan.devices if d not in ("", *DEVICES)]
    problems += [f"{m[:100]!r} cannot be a model's name" for m in plan.models if not m.strip() or not m.isprintable()]
    for field in fields(Deadlines):
        seconds = getattr(plan.deadlines, field.name)
        if seconds is not None and not 0 < seconds <= 86_400:
            problems.append(f"the time limit {field.name} must lie between 0 and 86400 seconds, not {seconds:g}")
    return problems


class _Reader:
    """Reads a plan's table and gathers its problems."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: list[str] = []
        self._keys: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
            "name": ("name", self._of(str)),
            "hosts": ("hosts", self._hosts),
            "models": ("models", self._list(str)),
            "devices": ("devices", self._list(str)),
            "runtimes": ("runtimes", self._list(str)),
            "endpoint": ("endpoint_url", self._of(str)),
            "rounds": ("rounds", self._of(int)),
            "warmup": ("warmup_rounds", self._of(int)),
            "concurrency": ("concurrencies", self._list(int)),
            "prompts": ("prompt_sets", self._prompts),
            "max_tokens": ("max_tokens", self._of(int)),
            "temperature": ("temperature", self._of(float)),
            "top_p": ("top_p", self._of(float)),
            "seed": ("seed", self._of(int)),
            "stream": ("stream", self._of(bool)),
        }

    def read(self, document: Mapping[str, Any]) -> PlanDraft:
        """The draft. Raises `PlanError` when anything was wrong."""
        found: dict[str, Any] = {}
        for key, value in document.items():
            if key == "deadlines":
                found |= self._deadlines(value)
            elif key not in self._keys:
                self._unknown(key, [*self._keys, "deadlines"])
            else:
                name, read = self._keys[key]
                found[name] = read(key, value)
        if found.get("models") == ():
            self._say("models", "is empty; name at least one, for example smollm2-135m")
        if self._problems:
            raise PlanError("\n".join(self._problems))
        return PlanDraft(**found)

    def _say(self, key: str, problem: str) -> None:
        self._problems.append(f"{self._path}: {key} {problem}")

    def _unknown(self, key: str, known: list[str]) -> None:
        near = difflib.get_close_matches(key, known, n=1)
        self._say(key, f"is no key of a plan; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(known)}")

    def _of(self, kind: type) -> Callable[[str, Any], Any]:
        def read(key: str, value: Any) -> Any:
            wanted = (int, float) if kind is float else kind
            if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
                self._say(key, f"must be {_KINDS[kind]}, not {value!r}"[:300])
                return None
            return value

        return read

    def _list(self, kind: type) -> Callable[[str, Any], Any]:
        def read(key: str, value: Any) -> Any:
            values = value if isinstance(value, list) else [value]
            one = self._of(kind)
            return tuple(one(f"{key}[{index}]" if isinstance(value, list) else key, v) for index, v in enumerate(values))

        return read

    def _hosts(self, key: str, value: Any) -> Any:
        if not isinstance(value, dict) or not all(isinstance(address, str) for address in value.values()):
            self._say(key, 'must be a table: [hosts] and then name = "address" lines')
            return None
        try:
            for name in value:
                check_name(name, key)
            return resolve_hosts([f"{name}={address}" for name, address in value.items()], {}, {})
        except InventoryError as error:
            self._say(key, str(error))
            return None

    def _prompts(self, key: str, value: Any) -> Any:
        if isinstance(value, str):
            return (load_prompts(self._path.parent / value),)
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return (inline_prompts(value),)
        if isinstance(value, dict):
            sets = []
            for name, entry in value.items():
                (chosen,) = self._prompts(f"{key}.{name}", entry) or (None,)
                if chosen is not None:
                    sets.append(replace(chosen, name=name))
            return tuple(sets)
        self._say(key, "must be a file name, a list of texts, or a table of such by name")
        return None

    def _deadlines(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._say("deadlines", "must be a table of seconds")
            return {}
        known = [field.name for field in fields(Deadlines)]
        found = {}
        for key, seconds in value.items():
            if key in known:
                found[key] = self._of(float)(f"deadlines.{key}", seconds)
            else:
                self._unknown(f"deadlines.{key}", [f"deadlines.{name}" for name in known])
        return found


_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
