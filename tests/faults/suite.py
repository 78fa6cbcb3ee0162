"""Many trials: drawn by a seed, some side by side, added up by kind, told as a table."""

from __future__ import annotations

import math
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .kinds import KINDS, Kind
from .reckoning import Tally
from .scene import Scene
from .world import World

TRIALS_OF_A_WORLD = 8


@dataclass(slots=True)
class Result:
    """What became of a kind."""

    trials: int = 0
    tally: Tally = field(default_factory=Tally)
    not_run: str = ""
    gap: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Trials of one world, in order, each with its number."""

    setting: str
    trials: tuple[tuple[int, Kind], ...]

    @property
    def slow(self) -> bool:
        """Whether it had better begin early."""
        return any(kind.slow for _, kind in self.trials)


def plan(count: int, seed: int, kinds: Sequence[Kind]) -> list[Batch]:
    """Draw so many trials: first every kind once, then by weight, each part in batches of what can share a world.

    Fewer than there are kinds: any of them.
    """
    draw = random.Random(seed)
    first = draw.sample(list(kinds), min(count, len(kinds)))
    more = draw.choices(list(kinds), [kind.weight for kind in kinds], k=count - len(first))
    numbered = list(enumerate((*first, *more), start=1))
    return [batch for part in (numbered[: len(first)], numbered[len(first) :]) for batch in _batches(part, draw)]


def _batches(numbered: Sequence[tuple[int, Kind]], draw: random.Random) -> list[Batch]:
    batches = [Batch(kind.setting, ((number, kind),)) for number, kind in numbered if kind.fresh]
    shared: dict[str, list[tuple[int, Kind]]] = defaultdict(list)
    for number, kind in numbered:
        if not kind.fresh:
            shared[kind.setting].append((number, kind))
    for setting, trials in shared.items():
        batches += [Batch(setting, tuple(part)) for part in _parts(trials)]
    draw.shuffle(batches)
    return sorted(batches, key=lambda batch: not batch.slow)


class Suite:
    """Carries out trials; ``long`` lets faults take their time.

    After ``enough_s`` seconds none begins but what makes every kind come once.
    """

    def __init__(self, seed: int, *, long: bool = False, enough_s: float = math.inf) -> None:
        self.seed = seed
        self.results = {kind.name: Result(gap=kind.gap) for kind in KINDS}
        self._long = long
        self._enough_s = enough_s
        self._begun = time.monotonic()
        self._directory = Path(tempfile.mkdtemp(prefix="benchfleet-faults-"))
        self._once = 0
        """Trials, counted from the first, by which every kind has come once."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def run(self, count: int, *, kinds: Sequence[Kind] = KINDS, workers: int = 2) -> dict[str, Result]:
        """Carry out so many trials of the kinds that are possible here."""
        possible = []
        for kind in kinds:
            if reason := kind.missing():
                self.results[kind.name].not_run = reason
            else:
                possible.append(kind)
        self._once = len(possible)
        pool = ThreadPoolExecutor(workers)
        try:
            for future in [pool.submit(self._carry_out, batch) for batch in plan(count, self.seed, possible)]:
                future.result()
        finally:
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            shutil.rmtree(self._directory, ignore_errors=True)
        return self.results

    def total(self) -> Tally:
        """All kinds together, without those of a known gap."""
        tally = Tally()
        for result in self.results.values():
            if not result.gap:
                tally.add(result.tally)
        return tally

    def _carry_out(self, batch: Batch) -> None:
        left = list(batch.trials)
        while left and not self._stopped.is_set():
            first = left[0][0]
            seed = self.seed * 100_003 + first
            number, kind = left[0]
            if self._enough(number):
                return
            try:
                with World(self._directory / f"world{first}", batch.setting, seed) as world:
                    while left and not self._stopped.is_set():
                        number, kind = left.pop(0)
                        if self._enough(number):
                            return
                        if not self._trial(world, number, kind):
                            break  # what comes next shall not suffer from it
            except Exception:  # noqa: BLE001 - one world less, and said so
                self._note(number, kind, Tally(wrong=1, problems=[traceback.format_exc(limit=4)]))
                if left and left[0][0] == number:
                    left.pop(0)

    def _enough(self, number: int) -> bool:
        return number > self._once and time.monotonic() - self._begun > self._enough_s

    def _trial(self, world: World, number: int, kind: Kind) -> bool:
        """Carry out one; once more when its moment had passed before anything could be done."""
        tally = self._attempt(world, f"trial{number}", random.Random(self.seed * 1_000_003 + number), kind)
        if tally.kept and not tally.faults:
            draw = random.Random(self.seed * 1_000_033 + number)
            tally.add(self._attempt(world, f"trial{number}again", draw, kind))
        self._note(number, kind, tally)
        return tally.kept

    def _attempt(self, world: World, name: str, draw: random.Random, kind: Kind) -> Tally:
        scene = Scene(world, name, draw, self._long)
        try:
            scene.begin()
            kind.inject(scene)
            scene.recover()
            return scene.reckon()
        except Exception:  # noqa: BLE001 - told with the trial's number
            return Tally(faults=scene.faults, wrong=1, problems=[traceback.format_exc(limit=4)])

    def _note(self, number: int, kind: Kind, tally: Tally) -> None:
        with self._lock:
            result = self.results[kind.name]
            result.trials += 1
            tally.problems = [f"trial {number} ({kind.name}): {problem}" for problem in tally.problems]
            result.tally.add(tally)
            words = (
                f"{tally.faults} faults, {tally.expected} expected, {tally.stored} stored, {tally.in_flight} in flight"
            )
            print(f"{number:4} {kind.name}: {words}{'' if tally.kept else '  BROKEN'}", file=sys.stderr, flush=True)
            for problem in tally.problems:
                print(f"     {problem}", file=sys.stderr, flush=True)


COLUMNS = ("trials", "faults", "expected", "stored", "lost", "twice", "wrong", "in flight", "destroyed")


def table(results: dict[str, Result]) -> str:
    """The results as Markdown."""
    lines = ["| fault | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    whole = Result()
    for name, result in results.items():
        if result.trials:
            lines.append(_line(f"{name} (known gap)" if result.gap else name, result))
            if not result.gap:
                whole.trials += result.trials
                whole.tally.add(result.tally)
        else:
            reason = result.not_run or "not drawn"
            lines.append(f"| {name} | not run: {reason} |" + " |" * (len(COLUMNS) - 1))
    return "\n".join([*lines, _line("**all**", whole)])


def _line(name: str, result: Result) -> str:
    tally = result.tally
    values = (
        result.trials, tally.faults, tally.expected, tally.stored, tally.lost, tally.twice, tally.wrong,
        tally.in_flight, tally.destroyed,
    )  # fmt: skip
    return f"| {name} | " + " | ".join(f"{value:,}" for value in values) + " |"


def _parts(trials: Sequence[tuple[int, Kind]]) -> list[Sequence[tuple[int, Kind]]]:
    return [trials[start : start + TRIALS_OF_A_WORLD] for start in range(0, len(trials), TRIALS_OF_A_WORLD)]
