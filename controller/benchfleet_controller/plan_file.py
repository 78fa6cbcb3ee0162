"""Plans from TOML or JSON files, flags and the environment.

Flags win over the file, the file over the environment, the environment over the defaults. A file's top-level keys:

- ``name``, ``seed``, ``rounds``, ``warmup``, ``max_tokens``, ``temperature``, ``top_p``, ``stream``, ``endpoint``;
- ``models``, ``devices``, ``runtimes``, ``concurrency``: one value or a list; every combination is a case;
- ``hosts``: a table ``name = "address"``, ``[[hosts]]`` with ``name`` and ``address``, or a list of HOST texts as
  on the command line;
- ``prompts``: a file (relative to the plan), a list of texts or prompt objects, or a table of such by name;
- ``deadlines``: ``prepare_s``, ``load_s``, ``request_s``, ``first_token_s``, ``token_s``.

docs/plan.md documents them with an example.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchfleet_controller.inventory import InventoryError, check_distinct, host_target, resolve_hosts, toml_problem
from benchfleet_controller.plan import Deadlines, HostTarget, Plan, PromptSet
from benchfleet_controller.plan_limits import excesses, problems_of, shown
from benchfleet_controller.prompts import PromptError, inline_prompts, load_prompts

MAXIMUM_FILE_BYTES = 16 << 20


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
class Overrides(PlanDraft):
    """What the command line's flags say. None: not given."""

    prompts_file: Path | None = None
    prompts: tuple[str, ...] | None = None


_FLAGS = {
    "models": "--model", "devices": "--device", "runtimes": "--runtime", "endpoint_url": "--endpoint",
    "warmup_rounds": "--warmup", "concurrencies": "--concurrency", "prepare_s": "--prepare-timeout",
    "load_s": "--load-timeout", "request_s": "--request-timeout", "first_token_s": "--first-token-timeout",
    "token_s": "--token-timeout",
}  # fmt: skip
"""Flags that are not called as their field."""


def load_plan(path: Path, names: Mapping[str, str] | None = None) -> PlanDraft:
    """Read a plan file; ``names`` (name to address) are the hosts it may name without an address.

    Raises `PlanError` with every problem of the file at once.
    """
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise PlanError(
                f"the plan {path} is over {MAXIMUM_FILE_BYTES >> 20} MiB; put long prompts into their own files"
            )
        text = path.read_text(encoding="utf-8-sig")
        document = (
            json.loads(text, object_pairs_hook=_object) if path.suffix.lower() == ".json" else tomllib.loads(text)
        )
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PlanError(f"the plan {path} is not UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise PlanError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # tomllib's error is a ValueError
        raise PlanError(f"{path}: {toml_problem(error, text)}") from None
    if not isinstance(document, dict):
        raise PlanError(f"{path}: a plan is a table of keys, not {shown(document)}")
    return _Reader(path, names or {}).read(document)


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
    given |= flags | flag_prompts
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
    deadlines = Deadlines(**{field.name: chosen.pop(field.name, None) for field in fields(Deadlines)})
    plan = Plan(**chosen, deadlines=deadlines)
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


class _Reader:
    """Reads a plan's table and gathers its problems."""

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        self._path = path
        self._names = names
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
        self._deadlines = {field.name: (field.name, self._of(float)) for field in fields(Deadlines)}

    def read(self, document: Mapping[str, Any]) -> PlanDraft:
        """The draft. Raises `PlanError` when anything was wrong."""
        top = {key: value for key, value in document.items() if key != "deadlines"}
        found = self._table("", top, self._keys, also=("deadlines",))
        deadlines = document.get("deadlines", {})
        if isinstance(deadlines, dict):
            found |= self._table("deadlines.", deadlines, self._deadlines)
        else:
            self._say("deadlines", "must be a table of seconds, such as [deadlines] and then request_s = 60")
        if found.get("endpoint_url") and "endpoint" not in found.get("runtimes", ("endpoint",)):
            self._say("endpoint", 'is given, but runtimes does not name it; add "endpoint" to runtimes')
        if self._problems:
            raise PlanError("\n".join(self._problems))
        return PlanDraft(**found)

    def _table(
        self,
        prefix: str,
        table: Mapping[str, Any],
        known: Mapping[str, tuple[str, Callable[[str, Any], Any]]],
        also: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key not in known:
                near = difflib.get_close_matches(key.lower(), (*known, *also), n=1)
                hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join((*known, *also))}"
                self._say(prefix + (key if key.isprintable() else ascii(key)), f"is no key of a plan; {hint}")
                continue
            field, read = known[key]
            before = len(self._problems)
            found[field] = read(prefix + key, value)
            if len(self._problems) == before:
                for where, problem in problems_of(field, found[field]):
                    self._say(prefix + key + (where if isinstance(value, list) else ""), problem)
        return found

    def _say(self, key: str, problem: str) -> None:
        self._problems.append(f"{self._path}: {key[:100]} {problem}")

    def _of(self, kind: type) -> Callable[[str, Any], Any]:
        def read(key: str, value: Any) -> Any:
            wanted = (int, float) if kind is float else kind
            if isinstance(value, wanted) and (kind is bool or not isinstance(value, bool)):
                return value
            self._say(key, f"must be {_KINDS[kind]}, not {shown(value)}")
            return None

        return read

    def _list(self, kind: type) -> Callable[[str, Any], Any]:
        one = self._of(kind)

        def read(key: str, value: Any) -> Any:
            if isinstance(value, list):
                return tuple(one(f"{key}[{index}]", each) for index, each in enumerate(value))
            return (one(key, value),)

        return read

    def _hosts(self, key: str, value: Any) -> Any:
        found: list[HostTarget] = []
        if not value or not isinstance(value, dict | list):
            self._say(key, 'must name at least one host: write [hosts] and then name = "address" lines')
            return None
        listed = isinstance(value, list)
        entries: list[tuple[str, str, Any]]
        if isinstance(value, list):
            entries = [(f"{key}[{index}]", "", entry) for index, entry in enumerate(value)]
        else:
            entries = [(f"{key}.{name}" if name.isprintable() else key, name, entry) for name, entry in value.items()]
        for place, name, entry in entries:
            where = f"{self._path}: {place}"
            try:
                if listed and isinstance(entry, dict) and _is_host(entry):
                    found.append(host_target(entry["name"], entry["address"], where))
                elif not isinstance(entry, str):
                    wanted = "a table of name and address, both texts" if listed else "an address"
                    self._say(place, f"must be {wanted}, not {shown(entry)}")
                elif listed:
                    found += resolve_hosts([entry], self._names, {})
                else:
                    found.append(host_target(name, entry, where))
            except InventoryError as error:
                text = str(error)
                self._problems.append(text if text.startswith(where) else f"{where}: {text}")
        try:
            check_distinct(found)
        except InventoryError as error:
            self._problems.append(f"{self._path}: {key}: {error}")
        return tuple(found)

    def _prompts(self, key: str, value: Any) -> Any:
        named = isinstance(value, dict)
        sets = list(value.items()) if isinstance(value, dict) else [("", value)]
        found = []
        for name, entry in sets:
            place = f"{self._path}: {key}.{name}" if named and name.isprintable() else f"{self._path}: {key}"
            if named and (wrong := [problem for _, problem in problems_of("name", name)]):
                self._problems += [f"{place}: a set's name {problem}" for problem in wrong]
                continue
            try:
                if isinstance(entry, str):
                    chosen = load_prompts(self._path.parent / Path(entry).expanduser())
                elif isinstance(entry, list):
                    chosen = inline_prompts(entry, name or "inline", place)
                else:
                    raise PromptError(f"{place} must be a file's name or a list of prompts, not {shown(entry)}")
                found.append(PromptSet(name or chosen.name, chosen.prompts))
            except PromptError as error:
                lines = str(error).splitlines()
                self._problems += [line if line.startswith(place) else f"{place}: {line}" for line in lines]
        if not sets:
            self._say(key, "must not be empty; name a file, texts, or sets of such")
        return tuple(found)


def _is_host(entry: dict[str, Any]) -> bool:
    return set(entry) == {"name", "address"} and all(isinstance(text, str) for text in entry.values())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:100]!r} is given twice; give it once")
    return found


_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
