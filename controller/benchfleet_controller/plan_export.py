"""A stored plan as the document `plan_file` reads, so that a run can be repeated from its report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchfleet_controller.plan import ALL_DEVICES

_SAME = (
    "name", "runtimes", "rounds", "prefix_cache", "page_cache", "idle_pause_s", "idle_baseline_s", "deterministic",
    "certificate", "goodput", "keep_warm_period_s", "skip_unfit", "max_tokens", "temperature", "top_p", "seed",
    "stream",
)  # fmt: skip
"""Keys that are called as their field."""
_CALLED = {"warmup_rounds": "warmup", "concurrencies": "concurrency", "paths": "path"}
_TABLES = ("stop", "conditions", "deadlines")


def plan_document(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan-file form of a plan as the table ``runs`` holds it; `plan_file.load_plan` reads it back as the same.

    What the plan left open stays open; of what models can do, only what concerns its own models is kept.
    """
    found: dict[str, Any] = {key: plan.get(key) for key in _SAME[:1]}
    found["hosts"] = {host["name"]: host["address"] for host in plan.get("hosts") or ()} or None
    found["models"] = _models(plan)
    found["devices"] = [device for device in plan.get("devices") or () if device] or None
    found |= {key: plan.get(key) for key in _SAME[1:]}
    found |= {key: plan.get(field) for field, key in _CALLED.items()}
    found["endpoint"] = plan.get("endpoint_url") or None
    if (plan.get("blocks") or 1) > 1 or ALL_DEVICES in (plan.get("devices") or ()):
        found["blocks"] = plan.get("blocks")
    if plan.get("rates"):
        found |= {"rate": plan["rates"], "arrival": plan.get("arrival")}
    found |= _prompts(plan.get("prompt_sets") or ())
    for name in _TABLES:
        found[name] = {key: value for key, value in (plan.get(name) or {}).items() if value is not None} or None
    return {key: value for key, value in found.items() if value is not None}


def _models(plan: Mapping[str, Any]) -> Any:
    facts = {one["alias"]: one for one in plan.get("model_facts") or ()}
    models = list(plan.get("models") or ())
    if not models or not set(models) <= set(facts):
        return models or None
    return {
        model: {"capabilities": list(facts[model].get("capabilities") or ())}
        | ({} if facts[model].get("size_bytes") is None else {"size_mb": facts[model]["size_bytes"] / 1_000_000})
        for model in models
    }


def _prompts(sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Given prompts by set, or lengths and number of synthetic ones."""
    if lengths := [one["token_count"] for one in sets if one.get("token_count") is not None]:
        return {"prompt_tokens": lengths, "prompt_count": max(one["prompt_count"] for one in sets)}
    return {"prompts": {one["name"]: [_prompt(prompt) for prompt in one["prompts"]] for one in sets} or None}


def _prompt(prompt: Mapping[str, Any]) -> dict[str, Any]:
    messages = prompt["messages"]
    alone = len(messages) == 1 and messages[0]["role"] == "user"
    text = {"prompt": messages[0]["content"]} if alone else {"messages": [dict(one) for one in messages]}
    more = {key: prompt.get(key) for key in ("max_tokens", "tags", "expected")}
    return {"id": prompt["prompt_id"], **text, **{key: value for key, value in more.items() if value}}
