"""What the documentation promises is what the program reads and does."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchfleet.samples import SAMPLE_METRICS
from benchfleet_agent.config import AgentConfig, load_config
from benchfleet_agent.load.record import Accounting
from benchfleet_agent.runtimes import CAPABILITIES
from benchfleet_controller import plan as plans
from benchfleet_controller.checks.codes import TOLD, Code
from benchfleet_controller.cli import parser
from benchfleet_controller.inventory import load_inventory
from benchfleet_controller.metrics import CASE_METRICS
from benchfleet_controller.plan_draft import Overrides, build_plan
from benchfleet_controller.plan_file import load_plan

ROOT = Path(__file__).parents[3]
TO_DESCRIBE = "(to be described)"
"""What docs/regenerate.py writes beside a new column of a view."""
GUIDE = (ROOT / "docs/user-guide.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
PLAN = (ROOT / "docs/plan.md").read_text(encoding="utf-8")


def _example() -> str:
    (text,) = re.findall(r"```toml\n(.*?)```", PLAN, re.DOTALL)
    return str(text)


def _commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _options() -> list[str]:
    found = {
        option
        for _, command in _commands()
        for action in command._actions
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    return sorted(found)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_nothing_is_left_to_be_described(page: Path) -> None:
    assert TO_DESCRIBE not in page.read_text(encoding="utf-8")


def test_the_example_in_the_plan_page_loads(tmp_path: Path) -> None:
    path = tmp_path / "nightly.toml"
    path.write_text(_example(), encoding="utf-8")
    plan = build_plan(load_plan(path), Overrides(), {})

    assert plan.name == "nightly"
    assert [host.name for host in plan.hosts] == ["lab1", "lab2", "lab3"]
    assert [host.address for host in plan.hosts][1:] == ["192.168.1.21:50551", "[fd00::20]:50551"]
    assert [prompts.name for prompts in plan.prompt_sets] == ["short", "long"]
    assert plan.concurrencies == (1, 4)
    assert len(plans.expand(plan, lambda: "id")[0].cases) == 4


def test_the_examples_comments_load_too(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('"Hello."\n', encoding="utf-8")
    path = tmp_path / "nightly.toml"
    text = re.sub(r"^# (endpoint|from_file) =", r"\1 =", _example(), flags=re.MULTILINE)
    path.write_text(text.replace('runtimes = ["foundry"]', 'runtimes = ["foundry", "endpoint"]'), encoding="utf-8")
    plan = build_plan(load_plan(path), Overrides(), {})

    assert plan.endpoint_url == "http://127.0.0.1:5273/v1"
    assert [prompts.name for prompts in plan.prompt_sets] == ["short", "long", "from_file"]


def test_the_defaults_in_the_plan_page_are_the_plans() -> None:
    (keys,) = re.findall(r"^## Keys\n(.*?)^###", PLAN, re.MULTILINE | re.DOTALL)
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", keys, re.MULTILINE))
    plan = plans.Plan("run", (), ())

    assert told["rounds"] == str(plan.rounds)
    assert told["warmup"] == str(plan.warmup_rounds)
    assert told["max_tokens"] == str(plan.max_tokens)
    assert told["seed"] == str(plan.seed)
    assert told["temperature"] == f"{plan.temperature:g}"
    assert told["top_p"] == f"{plan.top_p:g}"
    assert (told["concurrency"], plan.concurrencies) == ("1", (1,))
    assert (told["stream"], plan.stream) == ("true", True)


@pytest.mark.parametrize("name", [name for name, _ in _commands()])
def test_every_command_is_in_the_user_guide(name: str) -> None:
    assert f"benchfleet {name}" in GUIDE


@pytest.mark.parametrize("option", _options())
def test_every_option_is_in_the_user_guide(option: str) -> None:
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", GUIDE)


def _command_lines() -> list[str]:
    """Every ``benchfleet …`` line in a code block of the guide, comments and further lines joined away."""
    blocks = re.findall(r"```\w*\n(.*?)```", GUIDE, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"benchfleet (?!\.\.\.)", line)]


@pytest.mark.parametrize("line", _command_lines())
def test_every_command_line_in_the_user_guide_is_one(line: str) -> None:
    words = shlex.split(line.partition(" | ")[0], comments=True)[1:]
    code: Any = 0
    try:
        parser(words[0]).parse_args(words)
    except SystemExit as ended:
        code = ended.code
    assert code == 0


@pytest.mark.parametrize("word", CAPABILITIES)
def test_every_word_of_what_a_runtime_can_is_in_the_user_guide(word: str) -> None:
    assert f"| `{word}` | {CAPABILITIES[word]} |" in GUIDE


@pytest.mark.parametrize("name", [metric.name for metric in CASE_METRICS] + [metric.name for metric in SAMPLE_METRICS])
def test_every_metric_is_in_the_metrics_page(name: str) -> None:
    assert f"| `{name}` |" in METRICS


@pytest.mark.parametrize("word", list(Accounting))
def test_every_accounting_word_is_explained(word: Accounting) -> None:
    assert f"| `{word}` |" in METRICS


def test_the_sample_inventory_loads() -> None:
    assert load_inventory(ROOT / "deploy/fleet.toml")


def test_the_sample_settings_load_and_are_the_defaults() -> None:
    assert load_config(ROOT / "deploy/agent.toml") == AgentConfig()


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("docs/**/*.md"), ROOT / "SECURITY.md", ROOT / "deploy/README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_of_warnings_lists_every_one() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", (ROOT / "docs/warnings.md").read_text(), re.MULTILINE)

    assert listed == [code.value for code in Code]
    assert list(TOLD) == list(Code)


def test_the_workflow_in_the_user_guide_uses_commands_and_options_that_there_are() -> None:
    (workflow,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    commands = dict(_commands())
    joined = workflow.replace("\\\n", " ")
    used = [line for line in re.findall(r"\bbenchfleet (?=[a-z])(.+)", joined) if line.split()[0] in commands]

    assert {line.split()[0] for line in used} == {"hosts", "run", "compare", "report", "baseline"}
    for line in used:
        known = {option for action in commands[line.split()[0]]._actions for option in action.option_strings}
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line)) <= known, line
    assert {"0)", "3)", "5)"} <= set(workflow.split())
