"""A run over its hosts: check everything first, record it, start the jobs, follow them to their ends.

Hosts work in parallel; agents that share a machine take turns, for they would measure each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import getpass
import platform
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from benchfleet.failures import Failure, Reason
from benchfleet.v1 import job_pb2
from benchfleet_controller import fleet
from benchfleet_controller.fleet import Agent
from benchfleet_controller.follow import Watch, follow
from benchfleet_controller.plan import HostTarget, JobPlan, Offer, Plan, expand
from benchfleet_controller.problems import HostProblem, Refused
from benchfleet_controller.store import Store
from benchfleet_controller.writer import UNENDED, Writer

Say = Callable[[str], None]


@dataclass(slots=True)
class Campaign:
    """One run: its jobs and what became of them."""

    plan: Plan
    run_id: str
    jobs: tuple[JobPlan, ...]
    problems: list[HostProblem] = field(default_factory=list)
    """Hosts that were lost or refused after the run had begun."""
    started: set[str] = field(default_factory=set)
    """Jobs an agent accepted."""
    ended: set[str] = field(default_factory=set)
    """Jobs whose last event is stored."""

    @property
    def left_running(self) -> list[JobPlan]:
        """Jobs that were started and whose end is not stored."""
        return [job for job in self.jobs if job.job_id in self.started - self.ended]


def holder() -> str:
    """Who runs this, for other people: ``user@machine``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user in a container
        user = "someone"
    return f"{user}@{platform.node() or 'unknown'}"


async def prepare(plan: Plan, store: Store, say: Say, *, detach: bool) -> tuple[Campaign, list[Agent]]:
    """Check hosts and models, then record the run. Raises `Refused` with nothing started or written."""
    agents, problems = await fleet.connect_all(plan.hosts)
    offered: dict[tuple[str, str, str], tuple[Offer, ...]] = {}
    for agent in agents:
        try:
            agent.check_idle()
            offered |= await fleet.check_models(agent, plan, say)
        except HostProblem as problem:
            problems.append(problem)
    for group in fleet.by_machine(agents):
        if len(group) > 1:
            names = ", ".join(agent.target.name for agent in group)
            if detach:
                message = f"--detach cannot make {names} take turns on their one machine; leave it out, or name one"
                problems.append(HostProblem(group[0].target, Failure(Reason.UNSUPPORTED, message)))
                continue
            say(f"{names} share one machine ({group[0].host.hostname}): they run one after another")
    if problems:
        for agent in agents:
            await agent.close()
        raise Refused(problems)
    run_id = str(uuid.uuid4())
    campaign = Campaign(plan, run_id, expand(plan, lambda: str(uuid.uuid4()), offered))
    created = datetime.datetime.now(datetime.UTC)
    store.record_run(run_id, plan, campaign.jobs, held_by=holder(), created_at=created)
    for agent in agents:
        store.record_host(agent.host, agent.target.name, agent.target.address)
    return campaign, agents


async def carry_out(campaign: Campaign, agents: list[Agent], store: Store, watch: Watch) -> None:
    """Start all jobs and follow them; problems of single hosts end in the campaign, not as exceptions.

    When cancelled, jobs that an agent accepted go on there; those that were not started are marked so.
    """
    writer = Writer(store)
    jobs = {job.host.name: job for job in campaign.jobs}

    async def one_after_another(group: list[Agent]) -> None:
        for agent in group:
            await _carry_out_job(campaign, jobs[agent.target.name], agent, store, writer, watch)

    tasks = [asyncio.create_task(one_after_another(group)) for group in fleet.by_machine(agents)]
    try:
        await asyncio.gather(*tasks)
    except BaseException as error:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(error, asyncio.CancelledError):
            failure = Failure(Reason.CANCELLED, "the controller was interrupted before this job was started")
            _mark_unstarted(campaign, store, failure)
        raise


async def start_only(campaign: Campaign, agents: list[Agent], store: Store) -> None:
    """Start all jobs and leave them (``--detach``). Agents that share a machine are refused beforehand."""
    jobs = {job.host.name: job for job in campaign.jobs}
    for agent in agents:
        await _start(campaign, jobs[agent.target.name], agent, store)


async def cancel(targets: list[tuple[str, HostTarget]]) -> list[HostProblem]:
    """Ask jobs (id and host) to end; the hosts that could not be told."""
    problems = []
    for job_id, target in targets:
        try:
            agent = await fleet.connect(target)
        except HostProblem as problem:
            problems.append(problem)
            continue
        try:
            await agent.cancel(job_id)
        except HostProblem as problem:
            if problem.failure.reason is not Reason.JOB_NOT_FOUND:
                problems.append(problem)
        finally:
            await agent.close()
    return problems


async def collect(
    store: Store, hosts: tuple[HostTarget, ...], run_id: str | None, watch: Watch, say: Say
) -> tuple[int, list[HostProblem]]:
    """Fetch what the hosts still hold, following running jobs to their ends.

    Jobs this store does not know are adopted, unless a run is named. Returns how many jobs were fetched and
    the hosts that could not be asked.
    """
    agents, problems = await fleet.connect_all(hosts)
    writer = Writer(store)

    async def fetch(agent: Agent) -> int:
        count = 0
        try:
            held = await agent.jobs()
            # What has ended first: following the one that runs may take hours.
            for job in sorted(held, key=lambda job: job.state == job_pb2.JOB_STATE_RUNNING):
                if run_id is not None and job.run_id != run_id:
                    continue
                try:
                    foreign = run_id is None and await asyncio.to_thread(_is_foreign, store, job)
                    count += await _fetch_job(agent, job, store, writer, watch, say, foreign=foreign)
                except HostProblem as problem:  # the next job may fare better
                    problems.append(problem)
            await _close_unheld(agent, {job.job_id for job in held}, store, writer, run_id, say)
        except HostProblem as problem:
            problems.append(problem)
        finally:
            with contextlib.suppress(Exception):
                await agent.close()
        return count

    return sum(await asyncio.gather(*(fetch(agent) for agent in agents))), problems


def _is_foreign(store: Store, job: job_pb2.Job) -> bool:
    """Whether somebody else runs the job into another database."""
    if job.held_by == holder():
        return False
    known = store.path.exists() and any(one.job_id == job.job_id for one in store.run_jobs(job.run_id))
    return not known or store.run(job.run_id)["plan"] is None


async def _fetch_job(
    agent: Agent, job: job_pb2.Job, store: Store, writer: Writer, watch: Watch, say: Say, *, foreign: bool
) -> bool:
    """Fetch one job; False when there was nothing to fetch.

    A foreign job is copied and stays on its agent, for its owner would lose it; naming the run takes it away.
    """
    ended = job.state != job_pb2.JOB_STATE_RUNNING
    if foreign and ended and await writer.committed_sequence(job.job_id) >= job.last_sequence:
        return False
    kept = f", stays there for {job.held_by}" if foreign else ""
    state = "ended" if ended else "still running"
    try:
        spec = await agent.spec(job.job_id)
    except HostProblem as problem:
        if problem.failure.reason is not Reason.JOB_NOT_FOUND:
            raise
        return False  # its owner was quicker
    target = agent.target
    say(f"{target.name}: job {job.job_id} ({state}, {job.last_sequence} events{kept})")
    await asyncio.to_thread(store.adopt_job, job.job_id, spec, agent.host, target.name, target.address)
    await follow(agent, job.job_id, writer, watch, release=not foreign)
    return True


async def _close_unheld(
    agent: Agent, held: set[str], store: Store, writer: Writer, run_id: str | None, say: Say
) -> None:
    """End the jobs of this host that its agent does not know: they would wait for ever.

    A job that waits for its turn on a shared machine is left alone, and so is one whose controller is just starting it;
    should one be closed here that starts after all, its first event opens it again.
    """
    if not store.path.exists():
        return
    unreleased = await asyncio.to_thread(store.open_jobs)
    for job in unreleased:
        if job.host_name != agent.target.name or job.job_id in held or run_id not in (None, job.run_id):
            continue
        if job.state not in UNENDED:  # the controller was killed between the agent's answer and this note of it
            await writer.mark_released(job.job_id)
            continue
        if any(other.run_id == job.run_id and other.job_id != job.job_id for other in unreleased):
            continue
        message = (
            "its agent knows no such job: the controller ended before it was started, or the agent's data were removed"
        )
        await writer.mark_failed(job.job_id, Failure(Reason.JOB_NOT_FOUND, message))
        say(f"{agent.target.name}: job {job.job_id} is closed: {message}")


async def _carry_out_job(
    campaign: Campaign, job: JobPlan, agent: Agent, store: Store, writer: Writer, watch: Watch
) -> None:
    try:
        if await _start(campaign, job, agent, store):
            await follow(agent, job.job_id, writer, watch)
            campaign.ended.add(job.job_id)
    except HostProblem as problem:
        campaign.problems.append(problem)


async def _start(campaign: Campaign, job: JobPlan, agent: Agent, store: Store) -> bool:
    spec = job.to_proto(campaign.plan, campaign.run_id, holder())
    try:
        await agent.start(job.job_id, spec)
    except HostProblem as problem:
        campaign.problems.append(problem)
        await asyncio.to_thread(store.mark_job, job.job_id, "failed", problem.failure)
        return False
    campaign.started.add(job.job_id)
    return True


def _mark_unstarted(campaign: Campaign, store: Store, failure: Failure) -> None:
    refused = {problem.target.name for problem in campaign.problems}
    for job in campaign.jobs:
        if job.job_id not in campaign.started and job.host.name not in refused:
            store.mark_job(job.job_id, "cancelled", failure)
