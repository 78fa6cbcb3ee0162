"""Plans from TOML or JSON files.

A file's top-level keys:

- ``name``, ``seed``, ``rounds``, ``warmup``, ``max_tokens``, ``temperature``, ``top_p``, ``stream``, ``endpoint``,
  ``arrival``, ``prefix_cache``, ``page_cache``, ``idle_pause_s``, ``idle_baseline_s``, ``deterministic``,
  ``certificate``, ``goodput``, ``blocks``, ``keep_warm_period_s``, ``skip_unfit``;
- ``models``, ``devices``, ``runtimes``, ``concurrency``, ``rate``, ``prompt_tokens``, ``path``: one value or a list;
  every combination is a case (``models`` may also be a ``models.json`` or such a table);
- ``hosts``: a table ``name = "address"``, ``[[hosts]]`` with ``name`` and ``address``, or a list of HOST texts as
  on the command line;
- ``prompts``: a file (relative to the plan), a list of texts or prompt objects, or a table of such by name;
- ``deadlines``: ``prepare_s``, ``load_s``, ``request_s``, ``first_token_s``, ``token_s``;
- ``stop``: ``round_duration_s``, ``minimum_duration_s``, ``interval_ratio``, ``maximum_rounds``;
- ``conditions``: ``require_ac``, ``cool_temperature_c``, ``maximum_background_ratio``, ``wait_s``.

docs/plan.md documents them with an example.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchfleet_controller.inventory import InventoryError, check_distinct, host_target, resolve_hosts, toml_problem
from benchfleet_controller.levels import levels
from benchfleet_controller.model_facts import ModelFactsError, load_model_facts, model_facts
from benchfleet_controller.plan import Conditions, Deadlines, HostTarget, ModelFacts, PromptSet, Stop
from benchfleet_controller.plan_draft import PlanDraft, PlanError
from benchfleet_controller.plan_limits import problems_of, shown
from benchfleet_controller.prompts import PromptError, inline_prompts, load_prompts

MAXIMUM_FILE_BYTES = 16 << 20


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


class _Reader:
    """Reads a plan's table and gathers its problems."""

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        self._path = path
        self._names = names
        self._problems: list[str] = []
        self._facts: tuple[ModelFacts, ...] = ()
        self._keys: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
            "name": ("name", self._of(str)),
            "hosts": ("hosts", self._hosts),
            "models": ("models", self._models),
            "devices": ("devices", self._list(str)),
            "runtimes": ("runtimes", self._list(str)),
            "endpoint": ("endpoint_url", self._of(str)),
            "rounds": ("rounds", self._of(int)),
            "warmup": ("warmup_rounds", self._of(int)),
            "blocks": ("blocks", self._of(int)),
            "concurrency": ("concurrencies", self._levels(int)),
            "rate": ("rates", self._levels(float)),
            "arrival": ("arrival", self._of(str)),
            "prompt_tokens": ("prompt_token_counts", self._levels(int)),
            "prompt_count": ("prompt_count", self._of(int)),
            "prefix_cache": ("prefix_cache", self._of(str)),
            "page_cache": ("page_cache", self._of(str)),
            "idle_pause_s": ("idle_pause_s", self._of(float)),
            "idle_baseline_s": ("idle_baseline_s", self._of(float)),
            "deterministic": ("deterministic", self._of(bool)),
            "certificate": ("certificate", self._of(bool)),
            "goodput": ("goodput", self._of(str)),
            "path": ("paths", self._list(str)),
            "keep_warm_period_s": ("keep_warm_period_s", self._of(float)),
            "skip_unfit": ("skip_unfit", self._of(bool)),
            "prompts": ("prompt_sets", self._prompts),
            "max_tokens": ("max_tokens", self._of(int)),
            "temperature": ("temperature", self._of(float)),
            "top_p": ("top_p", self._of(float)),
            "seed": ("seed", self._of(int)),
            "stream": ("stream", self._of(bool)),
        }
        self._deadlines = {field.name: (field.name, self._of(float)) for field in fields(Deadlines)}
        self._stop = {
            field.name: (field.name, self._of(int if field.name == "maximum_rounds" else float))
            for field in fields(Stop)
        }
        self._conditions = {
            field.name: (field.name, self._of(bool if field.name == "require_ac" else float))
            for field in fields(Conditions)
        }

    def read(self, document: Mapping[str, Any]) -> PlanDraft:
        """The draft. Raises `PlanError` when anything was wrong."""
        tables = {
            "deadlines": (self._deadlines, "seconds", "request_s = 60"),
            "stop": (self._stop, "limits", "round_duration_s = 30"),
            "conditions": (self._conditions, "conditions", "require_ac = true"),
        }
        top = {key: value for key, value in document.items() if key not in tables}
        found = self._table("", top, self._keys, also=tuple(tables))
        for name, (known, what, example) in tables.items():
            table = document.get(name, {})
            if isinstance(table, dict):
                found |= self._table(f"{name}.", table, known)
            else:
                self._say(name, f"must be a table of {what}, such as [{name}] and then {example}")
        if self._facts:
            found["model_facts"] = self._facts
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

    def _levels(self, kind: Callable[[str], Any]) -> Callable[[str, Any], Any]:
        """A list of numbers, or a text such as ``1..32``."""
        listed = self._list(kind if isinstance(kind, type) else float)

        def read(key: str, value: Any) -> Any:
            if not isinstance(value, str):
                return listed(key, value)
            try:
                return levels(value, kind)
            except ValueError:
                self._say(key, f"must be numbers, or a range such as 1..32, not {shown(value)}")
                return ()

        return read

    def _models(self, key: str, value: Any) -> Any:
        """Names; or a ``models.json``, or a table such as its, which also say what the models can do."""
        try:
            if isinstance(value, dict):
                self._facts = model_facts(value, f"{self._path}: {key}")
            elif isinstance(value, str) and value.endswith(".json"):
                self._facts = load_model_facts(self._path.parent / Path(value).expanduser())
            else:
                return self._list(str)(key, value)
        except ModelFactsError as error:
            lines = str(error).splitlines()
            place = f"{self._path}: {key}"
            self._problems += [line if line.startswith(place) else f"{place}: {line}" for line in lines]
        return tuple(one.alias for one in self._facts)

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
