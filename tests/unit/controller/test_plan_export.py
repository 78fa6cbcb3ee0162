"""A plan that a report shows is a plan file: read back, it makes the same plan."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller.plan import ChatMessage, HostTarget, ModelFacts, Plan, Prompt, PromptSet
from benchfleet_controller.plan_draft import Overrides, build_plan
from benchfleet_controller.plan_export import plan_document
from benchfleet_controller.plan_file import load_plan
from benchfleet_controller.report import ReportData, render_report
from benchfleet_controller.report.html import HtmlReport, render_html

HOSTS = (HostTarget("lab1", "192.168.1.20:50551"), HostTarget("lab2", "[fd00::20]:50551"))
TALK = Prompt(
    "talk", (ChatMessage("system", "Be ```brief```."), ChatMessage("user", "Hi </pre> \u202e")), 5, ("a",), ("hi",)
)
SETS = (PromptSet("short", (Prompt("q", (ChatMessage("user", "Why?"),)), TALK)), PromptSet("two", (TALK,)))
PLANS: dict[str, dict[str, Any]] = {
    "the least": {},
    "prompts": {"prompt_sets": SETS, "temperature": 0.5, "top_p": 0.9, "seed": 7},
    "synthetic": {"prompt_token_counts": (128, 256), "prompt_count": 2, "concurrencies": (1, 4), "paths": ("direct",)},
    "open loop": {"rates": (0.5, 2.0), "arrival": "constant", "round_duration_s": 30.0, "goodput": "ttft=0.5"},
    "all devices": {"devices": ("all",), "rounds": 5},
    "all but answers": {"devices": ("all",), "blocks": 1, "deterministic": False},
    "until sure": {"interval_ratio": 0.02, "maximum_rounds": 9, "require_ac": True, "wait_s": 60.0},
    "an endpoint": {"endpoint_url": "http://127.0.0.1:5273/v1", "certificate": False, "stream": False, "load_s": 60.0},
    "facts": {"model_facts": (ModelFacts("tiny", ("chat",), 500_000), ModelFacts("other")), "idle_pause_s": 5.0},
    "upkeep": {"keep_warm_period_s": 20.0, "skip_unfit": True, "page_cache": "drop", "prefix_cache": "allow"},
}  # fmt: skip


def _plan(name: str) -> Plan:
    return build_plan(None, Overrides(hosts=HOSTS, models=("tiny",), name=name, **PLANS[name]), {})


def _stored(plan: Plan) -> dict[str, Any]:
    """As the database gives it."""
    stored: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    return stored


def _read(text: str, path: Path) -> Plan:
    path.write_text(text, encoding="utf-8")
    return build_plan(load_plan(path), Overrides(), {})


def _of_its_models(plan: Plan) -> Plan:
    return dataclasses.replace(plan, model_facts=tuple(one for one in plan.model_facts if one.alias in plan.models))


@pytest.mark.parametrize("name", PLANS)
def test_the_exported_plan_is_read_back_as_the_same(name: str, tmp_path: Path) -> None:
    plan = _plan(name)

    assert _read(json.dumps(plan_document(_stored(plan))), tmp_path / "plan.json") == _of_its_models(plan)


@pytest.mark.parametrize("ending", [".md", ".html"])
def test_the_plan_copied_from_a_report_is_read_back_as_the_same(ending: str, tmp_path: Path) -> None:
    plan = _plan("prompts")
    run = {"run_id": "r1", "name": "prompts", "plan": _stored(plan), "seed": 7}
    data = ReportData(run, hosts=[], cases=[])
    if ending == ".md":
        (copied,) = re.findall(r"^(````+)json\n(.*?)\n\1$", render_report(data, ".md"), re.MULTILINE | re.DOTALL)
        text = copied[1]
    else:
        import html

        page = render_html(HtmlReport(data))
        (copied,) = re.findall(r'<pre id="plan"[^>]*>(.*?)</pre>', page, re.DOTALL)
        text = html.unescape(copied)

    assert _read(text, tmp_path / "plan.json") == plan


def test_every_field_of_a_plan_is_exported() -> None:
    """A new field of `Plan` without a key here would be lost silently."""
    everything = _stored(dataclasses.replace(_plan("open loop"), endpoint_url="http://x/v1", devices=("all",)))
    given = set(plan_document(everything))
    elsewhere = {"endpoint_url": "endpoint", "warmup_rounds": "warmup", "concurrencies": "concurrency", "rates": "rate",
                 "paths": "path", "prompt_sets": "prompts"}  # fmt: skip
    optional = {"idle_pause_s", "idle_baseline_s", "keep_warm_period_s", "conditions", "deadlines", "model_facts"}

    assert {elsewhere.get(field.name, field.name) for field in dataclasses.fields(Plan)} - optional <= given
