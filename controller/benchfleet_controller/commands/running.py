"""Runs: run, collect, cancel, demo."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchfleet_controller import campaign as campaigns
from benchfleet_controller.campaign import Campaign
from benchfleet_controller.commands import EXIT_HOST, UsageError, known_names, say, store_of, targets
from benchfleet_controller.commands.answers import run_text
from benchfleet_controller.commands.comparing import comparison_of
from benchfleet_controller.inventory import all_hosts, load_inventory
from benchfleet_controller.levels import levels
from benchfleet_controller.live import Progress
from benchfleet_controller.metrics import DEFAULT_COMPARED
from benchfleet_controller.plan import HostTarget, Plan
from benchfleet_controller.plan_draft import Overrides, build_plan
from benchfleet_controller.plan_file import load_plan
from benchfleet_controller.problems import HostProblem
from benchfleet_controller.report.comparing import comparison_text
from benchfleet_controller.store import Store

EXIT_DONE, EXIT_CASE_FAILED, EXIT_INTERRUPTED = 0, 1, 130


def run(options: argparse.Namespace) -> int:
    """Benchmark models on hosts."""
    store = store_of(options)
    plan = plan_of(options, store)
    with Progress([host.name for host in plan.hosts]) as progress:
        outcome = carry_out(plan, store, progress, detach=options.detach, cancel=options.cancel)
    if outcome is None:
        return EXIT_INTERRUPTED
    campaign, code = outcome
    if options.detach:
        print(campaign.run_id)
        say(f"the jobs go on; fetch them with: benchfleet collect {campaign.run_id[:8]}")
        return code
    show_results(store, campaign.run_id, options.format)
    return code


def plan_of(options: argparse.Namespace, store: Store) -> Plan:
    """The plan from the file, the flags and the environment."""
    names = {**known_names(store), **load_inventory(options.inventory)}
    draft = load_plan(options.plan, names) if options.plan else None
    overrides = Overrides(
        name=options.name,
        hosts=targets(options, store, options.host) if options.host else None,
        models=tuple(options.model) or None,
        devices=tuple(options.device) or None,
        runtimes=tuple(options.runtime) or None,
        endpoint_url=options.endpoint,
        rounds=options.rounds,
        warmup_rounds=options.warmup,
        blocks=options.blocks,
        models_file=options.models,
        concurrencies=_levels("--concurrency", options.concurrency, int),
        rates=_levels("--rate", options.rate, float),
        arrival=options.arrival,
        prompt_token_counts=_levels("--prompt-tokens", options.prompt_tokens, int),
        prompt_count=options.prompt_count,
        prefix_cache=options.prefix_cache,
        page_cache=options.page_cache,
        round_duration_s=options.round_duration,
        minimum_duration_s=options.min_duration,
        interval_ratio=_share("--until-within", options.until_within),
        maximum_rounds=options.max_rounds,
        goodput=options.goodput,
        deterministic=options.deterministic,
        idle_pause_s=options.idle_pause,
        idle_baseline_s=options.idle_baseline,
        certificate=options.certificate,
        paths=tuple(options.path) or None,
        keep_warm_period_s=options.keep_warm,
        skip_unfit=options.skip_unfit,
        require_ac=options.require_ac,
        cool_temperature_c=options.wait_until_cool,
        maximum_background_ratio=_share("--max-background-load", options.max_background_load),
        wait_s=options.condition_timeout,
        prompts_file=options.prompts,
        prompts=tuple(options.prompt) or None,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        stream=options.stream,
        load_s=options.load_timeout,
        request_s=options.request_timeout,
        first_token_s=options.first_token_timeout,
        token_s=options.token_timeout,
    )
    return build_plan(draft, overrides, os.environ)


def carry_out(
    plan: Plan, store: Store, progress: Progress, *, detach: bool = False, cancel: bool = False
) -> tuple[Campaign, int] | None:
    """Run a plan to its end; the campaign and the exit code, or None when interrupted (what goes on was said)."""
    campaign: Campaign | None = None

    async def go() -> None:
        nonlocal campaign
        campaign, agents = await campaigns.prepare(plan, store, progress.say, detach=detach)
        progress.say(f"run {campaign.run_id} ({plan.name}), database {store.path}")
        try:
            if detach:
                await campaigns.start_only(campaign, agents, store)
            else:
                await campaigns.carry_out(campaign, agents, store, progress.watch)
        finally:
            for agent in agents:
                await agent.close()

    try:
        asyncio.run(go())
    except KeyboardInterrupt:
        if campaign is None:
            say("interrupted before anything was started")
        else:
            _say_what_goes_on(campaign, store, cancel)
        return None
    assert campaign is not None
    for problem in campaign.problems:
        say(f"benchfleet: {problem}")
    return campaign, exit_code(campaign, store)


def exit_code(campaign: Campaign, store: Store) -> int:
    """0 all succeeded, 1 some case failed or a job ended before its time, 4 a host was lost or refused."""
    if campaign.problems:
        return EXIT_HOST
    failed = any(job.state in ("failed", "cancelled") for job in store.run_jobs(campaign.run_id)) or any(
        run.failed for run in store.runs() if run.run_id == campaign.run_id
    )
    return EXIT_CASE_FAILED if failed else EXIT_DONE


def show_results(store: Store, run_id: str, style: str) -> None:
    """Print a run's results, and the comparison when there is something to compare."""
    sys.stdout.write(run_text(store, run_id, style))
    if style in ("json", "csv"):
        return
    cases = store.case_results([run_id], itl=False)
    for dimension in ("host", "model", "device"):
        if len({case[dimension] for case in cases if case["status"] == "succeeded"}) > 1:
            comparison = comparison_of(
                store, [run_id], (dimension,), None, DEFAULT_COMPARED, measured=True, found=cases
            )
            sys.stdout.write("\n" + comparison_text(comparison, style))


def collect(options: argparse.Namespace) -> int:
    """Fetch what hosts still hold."""
    store = store_of(options)
    run_id = store.resolve_run(options.run) if options.run else None
    if options.host:
        hosts = targets(options, store, options.host)
    elif run_id is not None:
        hosts = tuple(
            {job.host_name: HostTarget(job.host_name, job.address) for job in store.run_jobs(run_id)}.values()
        )
    else:
        hosts = all_hosts(load_inventory(options.inventory), known_names(store))
    if not hosts:
        raise UsageError("no hosts are known; name them: benchfleet collect --host 192.168.1.20")
    return _collect(store, hosts, run_id)


def cancel(options: argparse.Namespace) -> int:
    """End a run's jobs and fetch what they have."""
    store = store_of(options)
    run_id = store.resolve_run(options.run)
    jobs = [job for job in store.run_jobs(run_id) if not job.released]
    chosen = [(job.job_id, HostTarget(job.host_name, job.address)) for job in jobs]
    if not chosen:
        say("nothing of this run is left on its hosts")
        return EXIT_DONE
    problems = asyncio.run(campaigns.cancel(chosen))
    for problem in problems:
        say(f"benchfleet: {problem}")
    code = _collect(store, tuple({target.name: target for _, target in chosen}.values()), run_id)
    return EXIT_HOST if problems else code


def demo(options: argparse.Namespace) -> int:
    """The main job on this machine."""
    from benchfleet_controller import demo as show

    directory: Path = options.dir or Path("demo")
    database = options.db or os.environ.get("BENCHFLEET_DB")
    return show.run_demo(directory, options.model, options.rounds, Path(database).expanduser() if database else None)


def _collect(store: Store, hosts: tuple[HostTarget, ...], run_id: str | None) -> int:
    problems: list[HostProblem] = []
    with Progress([host.name for host in hosts]) as progress:
        try:
            fetched, problems = asyncio.run(campaigns.collect(store, hosts, run_id, progress.watch, progress.say))
        except KeyboardInterrupt:
            say("interrupted; what was fetched is stored, `benchfleet collect` fetches the rest")
            return EXIT_INTERRUPTED
    for problem in problems:
        say(f"benchfleet: {problem}")
    if fetched:
        say(f"{fetched} job{'' if fetched == 1 else 's'} fetched")
    elif not problems:  # of a host that did not answer nothing is known
        say("the hosts hold nothing that is not stored")
    return EXIT_HOST if problems else EXIT_DONE


def _say_what_goes_on(campaign: Campaign, store: Store, cancel: bool) -> None:
    left = campaign.left_running
    if not left:
        say("interrupted; no job is running")
        return
    names = ", ".join(job.host.name for job in left)
    if cancel:
        problems = asyncio.run(campaigns.cancel([(job.job_id, job.host) for job in left]))
        _collect(store, tuple(job.host for job in left), campaign.run_id)
        for problem in problems:
            say(f"benchfleet: {problem}")
        return
    short = campaign.run_id[:8]
    say(f"interrupted; what arrived is stored and the jobs go on ({names})")
    say(f"fetch the rest with:  benchfleet collect {short}\nor end the jobs with:  benchfleet cancel {short}")


def _levels(flag: str, text: str | None, number: Callable[[str], Any]) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        return levels(text, number)
    except ValueError:
        raise UsageError(f"{flag} takes numbers such as 1,2,4 or a range such as 1..32, not {text!r}") from None


def _share(flag: str, text: str | None) -> float | None:
    """``2%`` or ``0.02``."""
    if text is None:
        return None
    try:
        return float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"{flag} takes a percentage such as 2%, not {text!r}") from None
