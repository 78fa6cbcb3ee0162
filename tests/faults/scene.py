"""One trial: a run under load, what befalls it, the recovery, the reckoning."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import psutil

from benchfleet_agent.journal_file import Repair

from .processes import SIGCONT, SIGKILL, SIGSTOP, Command, Finished, TrialFailed
from .reckoning import Named, Tally, confine, reckon
from .world import PROMPTS, RUN_S, World


@dataclass(slots=True)
class Scene:
    """What a fault may touch, and what it leaves for the reckoning."""

    world: World
    name: str
    draw: random.Random
    long: bool
    """Take the time that the long run allows."""
    rounds: int = 0
    concurrency: int = 0
    faults: int = 0
    kills_ns: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """What was said about files that the trial damaged; empty: nothing was damaged, or nobody noticed."""
    repairs: Sequence[Repair] | None = ()
    """What the agent's record says was lost; None: its journal had to be moved away."""
    damage: bool = False
    extra: list[str] = field(default_factory=list)
    run: Command = field(init=False)
    first_answer: int = field(init=False)
    first_request: int = field(init=False)

    def begin(self) -> None:
        """Start the run."""
        self.rounds, self.concurrency = self.draw.randint(3, 8), self.draw.choice((1, 2, 4))
        self.first_answer = self.world.answered()
        self.first_request = self.world.server.record().count('"received_ns"')
        self.run = self.world.run(self.name, self.rounds, self.concurrency)

    @property
    def total(self) -> int:
        """Requests of the run when nothing disturbs it."""
        return PROMPTS * (self.rounds + 1)

    def somewhere(self, low: float = 0.02, high: float = 0.8) -> None:
        """Wait until a random part of the requests is answered, and a moment more."""
        part = int(self.draw.uniform(low, high) * self.total)
        self.world.wait_for_answers(self.first_answer + max(1, part), self.run)
        time.sleep(self.draw.uniform(0, 0.05))

    def fault(self) -> None:
        """Count one."""
        self.faults += 1

    # Faults ----------------------------------------------------------------------------------------------------

    def kill_agent(self, *, tree: bool = False) -> None:
        """SIGKILL the agent (``tree``: and all it started), start it again on its data."""
        self.fault()
        self.kills_ns.append(self.world.agent.kill(tree=tree))
        time.sleep(self.draw.uniform(0, 0.5))
        self.world.agent.start()

    def kill_controller(self) -> None:
        """SIGKILL whoever follows."""
        self.fault()
        self.run.kill()

    def kill_child(self, word: str) -> None:
        """SIGKILL the agent's child whose command line holds the word."""
        for child in self.world.agent.children(word):
            moment = time.perf_counter_ns()
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
                self.fault()
                self.kills_ns.append(moment)

    def stop_agent(self, seconds: float | None = None) -> None:
        """Freeze the agent for a while."""
        self.fault()
        self.world.agent.signal(SIGSTOP)
        time.sleep(self._frozen_s if seconds is None else seconds)
        self.world.agent.signal(SIGCONT)

    def stop_controller(self) -> None:
        """Freeze whoever follows for a while."""
        self.fault()
        with contextlib.suppress(ProcessLookupError):
            self.run.signal(SIGSTOP)
            time.sleep(self._frozen_s)
            self.run.signal(SIGCONT)

    @property
    def _frozen_s(self) -> float:
        return 30.0 if self.long and self.draw.random() < 0.3 else self.draw.uniform(0.2, 1.5)

    # Recovery and reckoning --------------------------------------------------------------------------------------

    def recover(self) -> Finished | None:
        """Bring everything back and fetch what is left; what the run said if it came to its end."""
        world = self.world
        if world.relay:
            world.relay.delay(0)
            world.relay.flow()
        if world.namespaces:
            world.namespaces.heal()
        if not world.agent.alive:
            world.agent.start()
        done = None
        with contextlib.suppress(ProcessLookupError):
            self.run.signal(SIGCONT)
        if self.run.process.poll() != -SIGKILL:
            done = self.run.wait(RUN_S)
            if done.code not in (0, 1, 4):
                raise TrialFailed(f"the run ended with {done.code}: {done.err[-1500:]}")
        world.collect_all(self.name)
        return done

    def reckon(self) -> Tally:
        """Judge."""
        world = self.world
        deadline = time.monotonic() + 5
        tapped = world.tap.jobs if world.tap else {}
        while time.monotonic() < deadline and any(not seen.ended for seen in tapped.values() if seen.sequences):
            time.sleep(0.02)
        answers = world.answers(self.name, self.first_request)
        jobs = world.jobs(self.name)
        tally = reckon(
            answers, world.requests(self.name), list(jobs.values()), self.kills_ns, self.concurrency, damage=self.damage
        )
        tally.faults = self.faults
        if self.damage:
            confine(tally, self._named(jobs), self._sequences(jobs))
        for problem in [*world.inconsistent(self.name, destroyed=self.damage), *self.extra]:
            tally.wrong += 1
            tally.problems.append(problem)
        if self.damage and tally.destroyed and not self.damaged:
            tally.lost, tally.destroyed = tally.lost + tally.destroyed, 0
            tally.problems.append("a damaged file lost answers and nobody said so")
        if "Traceback" in (log := world.agent.log()):
            tally.wrong += 1
            tally.problems.append(f"the agent's log: {log[log.index('Traceback') :][:1500]}")
        return tally

    def _named(self, jobs: Iterable[str]) -> Named:
        """The events whose loss is on record."""
        if self.repairs is None:
            return Named("everything")
        nameless = any(not one.job_id and "cannot be named" in one.message for one in self.repairs)
        lost = [one.lost for one in self.repairs if one.job_id in jobs]
        return Named(*(["everything"] if nameless else []), *lost)

    def _sequences(self, jobs: Iterable[str]) -> dict[str, int]:
        """Where the reader beside saw each answer."""
        seen = self.world.tap.jobs if self.world.tap else {}
        return {digest: number for job in jobs if job in seen for digest, number in seen[job].places.items()}


Inject = Callable[[Scene], None]
