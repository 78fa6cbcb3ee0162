"""The kinds of faults: what each does to a run under load."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from benchfleet_agent.journal_file import read_contents

from . import namespaces
from .processes import SIGSTOP, AgentProcess, TrialFailed, wait_until
from .scene import Inject, Scene
from .world import COLLECT_S, clock_library, fill, mounting_missing


def controller_killed(scene: Scene) -> None:
    scene.somewhere()
    scene.kill_controller()
    for _ in range(scene.draw.randint(0, 2)):  # and whoever fetches the rest, too
        scene.run = scene.world.collect()
        time.sleep(scene.draw.uniform(0.6, 2.0))
        scene.kill_controller()


def controller_killed_while_it_starts(scene: Scene) -> None:
    time.sleep(scene.draw.uniform(0.5, 2.0))
    scene.kill_controller()


def agent_killed(scene: Scene) -> None:
    scene.somewhere()
    scene.kill_agent()


def agent_killed_while_frozen(scene: Scene) -> None:
    scene.somewhere()
    scene.stop_agent()
    scene.world.agent.signal(SIGSTOP)
    time.sleep(scene.draw.uniform(0.05, 0.4))
    scene.kill_agent()


def load_killed(scene: Scene) -> None:
    scene.somewhere()
    scene.kill_child("benchfleet_agent.load")


def runtime_killed(scene: Scene) -> None:
    scene.somewhere()
    scene.kill_child("foundry_child")


def host_restarted(scene: Scene) -> None:
    scene.somewhere()
    if scene.draw.random() < 0.5:
        scene.kill_controller()
    scene.kill_agent(tree=True)


def agent_frozen(scene: Scene) -> None:
    scene.somewhere()
    scene.stop_agent()


def agent_frozen_for_long(scene: Scene) -> None:
    """Longer than the controller's patience with silence (a ping after 10 s, 5 s without an answer)."""
    scene.somewhere()
    scene.stop_agent(30.0)


def controller_frozen(scene: Scene) -> None:
    scene.somewhere()
    scene.stop_controller()


def several_at_once(scene: Scene) -> None:
    last: Inject = scene.draw.choice((Scene.stop_agent, Scene.kill_agent))
    faults: tuple[Inject, ...] = (Scene.stop_controller, _cut, Scene.kill_controller)
    for fault in (*scene.draw.sample(faults, scene.draw.randint(1, 3)), last):
        scene.somewhere(0, 0.3)
        fault(scene)


def two_controllers(scene: Scene) -> None:
    """A colleague collects from the agent while the run goes on; the owner's controller may die meanwhile."""
    scene.somewhere(0.02, 0.4)
    other = scene.world.directory / f"{scene.name}.duckdb"
    second = scene.world.collect_elsewhere(other)
    scene.fault()
    if scene.draw.random() < 0.5:
        scene.somewhere(0.4, 0.8)
        scene.kill_controller()
    done = second.wait(COLLECT_S)
    if done.code != 0:
        scene.extra.append(f"the colleague's collect ended with {done.code}: {done.err[-800:]}")
    if other.exists():  # or the run had ended before the colleague came
        with duckdb.connect(str(other), read_only=True) as connection:
            ((copied, doubled),) = connection.execute(
                "SELECT count(DISTINCT request_id), count(*) - count(DISTINCT request_id) FROM requests"
            ).fetchall()
        if copied != scene.total or doubled:
            scene.extra.append(f"the colleague has {copied} of {scene.total} requests, {doubled} of them twice")


def _cut(scene: Scene) -> None:
    assert scene.world.relay
    scene.fault()
    scene.world.relay.cut()
    time.sleep(scene.draw.uniform(0, 3.0 if scene.long else 1.0))
    scene.world.relay.flow()


def connection_reset(scene: Scene) -> None:
    for _ in range(scene.draw.randint(1, 3)):
        scene.somewhere(0.02, 0.5)
        _cut(scene)


def slow_relay(scene: Scene) -> None:
    assert scene.world.relay
    scene.world.wait_for_answers(scene.first_answer + 1, scene.run)
    scene.fault()
    scene.world.relay.delay(0.1)


def half_open_relay(scene: Scene) -> None:
    assert scene.world.relay
    scene.somewhere()
    scene.fault()
    scene.world.relay.hold()
    # Long enough for both ends to find out by themselves (ping after 10 s, 5 s without an answer).
    time.sleep(20.0 if scene.long else scene.draw.uniform(0.5, 2.0))
    if scene.draw.random() < 0.5:
        scene.world.relay.cut(refuse=False)


def cable_out(scene: Scene) -> None:
    assert scene.world.namespaces
    scene.somewhere()
    scene.fault()
    scene.world.namespaces.unplug()
    time.sleep(25.0 if scene.long and scene.draw.random() < 0.3 else scene.draw.uniform(0.5, 2.0))


def black_hole(scene: Scene) -> None:
    assert scene.world.namespaces
    scene.somewhere()
    scene.fault()
    scene.world.namespaces.swallow()
    time.sleep(25.0 if scene.long and scene.draw.random() < 0.3 else scene.draw.uniform(0.5, 2.0))


def lost_packets(scene: Scene) -> None:
    assert scene.world.namespaces
    scene.fault()
    scene.world.namespaces.drop(5)
    scene.somewhere(0.9, 1.0)


def delayed_packets(scene: Scene) -> None:
    assert scene.world.namespaces
    scene.fault()
    scene.world.namespaces.delay(200)
    scene.somewhere(0.9, 1.0)


def clock_jumped(scene: Scene) -> None:
    world = scene.world
    for _ in range(scene.draw.randint(1, 3)):
        scene.somewhere(0.02, 0.6)
        scene.fault()
        jump = scene.draw.choice((-86_400, -3_600, -5, 5, 3_600, 86_400))
        world.set_clock(scene.draw.choice((world.agent_clock, world.controller_clock)), jump)


def agents_disk_full(scene: Scene) -> None:
    """What ends once the disk is full is refused, as if the agent were killed then; what was written before stays."""
    scene.somewhere(0.02, 0.5)
    scene.fault()
    scene.kills_ns.append(time.perf_counter_ns())
    filler = fill(scene.world.directory / "agent-disk")
    scene.run.wait(COLLECT_S)
    filler.unlink()
    for job in scene.world.jobs(scene.name).values():
        if job.state == "failed" and job.reason != "disk_full":
            scene.extra.append(f"a full disk is called {job.reason}")


def controllers_disk_full(scene: Scene) -> None:
    scene.somewhere(0.02, 0.5)
    scene.fault()
    filler = fill(scene.world.directory / "controller-disk")
    done = scene.run.wait(COLLECT_S)
    filler.unlink()
    if done.code != 0 and "full" not in done.err:
        scene.extra.append(f"a full disk is not named: {done.code} {done.err[-500:]}")
    scene.run = scene.world.collect()


def journal_damaged(scene: Scene) -> None:
    _damage_journal(scene, "journal.sqlite")


def journals_log_damaged(scene: Scene) -> None:
    _damage_journal(scene, "journal.sqlite-wal")


def _damage_journal(scene: Scene, name: str) -> None:
    """The agent dies, and a file of its journal is not what it was when it comes back."""
    agent = scene.world.agent
    scene.somewhere(0.2, 0.8)
    if scene.draw.random() < 0.5:
        scene.kill_controller()
    scene.kills_ns.append(agent.kill())
    path = agent.data_dir / name
    if not path.exists() or not path.stat().st_size:
        return
    scene.fault()
    scene.damage = True
    how = damage(path, scene.draw)
    try:
        agent.start()
    except TrialFailed:
        words = agent.log()[-1500:]
        if "Traceback" in words or "journal" not in words:
            scene.extra.append(f"a damaged journal ({how}) is not named: {words}")
        scene.damaged.append(words)
        scene.repairs = None
        for part in agent.data_dir.glob("journal.sqlite*"):
            part.rename(part.with_name(f"damaged-{part.name}"))  # what the message says
        agent.start()
    scene.damaged += _said(agent)
    if scene.repairs is not None:
        scene.repairs = read_contents(agent.data_dir).repairs


def database_damaged(scene: Scene) -> None:
    """The controller dies inside a commit, and its write-ahead log is damaged."""
    world = scene.world
    log = world.database.with_name(f"{world.database.name}.wal")
    scene.somewhere(0.02, 0.3)
    wait_until(lambda: (log.exists() and log.stat().st_size > 64) or not scene.run.running, 30, "a commit is going on")
    scene.kill_controller()
    if not log.exists():
        return
    damage(log, scene.draw)
    scene.run = world.collect()
    done = scene.run.wait(COLLECT_S)
    if done.code != 0:
        if f"{log.name}" not in done.err or "move" not in done.err:
            scene.extra.append(f"a damaged database log: not said what to do: {done.err[-800:]}")
        log.rename(log.with_suffix(".damaged"))
        scene.run = world.collect()


def damage(path: Path, draw: random.Random) -> str:
    """Flip some bytes of a file, or cut its tail off; what was done."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if draw.random() < 0.4:
            cut = draw.randint(1, max(1, size // 3))
            file.truncate(size - cut)
            return f"{path.name}: {cut} of {size} bytes cut off"
        places = sorted(draw.randrange(size) for _ in range(draw.choice((1, 3, 64))))
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ draw.randint(1, 255)]))
        return f"{path.name}: {len(places)} of {size} bytes flipped"


def _said(agent: AgentProcess) -> list[str]:
    return [line for line in agent.log().splitlines() if "damage" in line or "corrupt" in line]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: where it is possible, and how often it is drawn."""

    name: str
    inject: Inject
    setting: str = "plain"
    weight: int = 4
    fresh: bool = False
    """Needs a world of its own."""
    slow: bool = False
    missing: Callable[[], str | None] = lambda: None
    gap: str = ""
    """Why the promise is known not to hold; shown, and left out of the sum."""


_clocks = functools.cache(lambda: None if clock_library() else "a C compiler is missing (or not Linux)")
_namespaces = functools.cache(namespaces.missing)
_disks = functools.cache(mounting_missing)

LOG_GAP = "a write-ahead log that was cut exactly between two of its frames cannot be told from a shorter one"
KINDS = (
    Kind("controller killed", controller_killed, weight=8),
    Kind("controller killed while it starts", controller_killed_while_it_starts),
    Kind("agent killed", agent_killed, weight=8),
    Kind("agent killed while frozen", agent_killed_while_frozen),
    Kind("load process killed", load_killed, weight=6),
    Kind("host restarted (all killed)", host_restarted, weight=6),
    Kind("runtime killed (Foundry Local)", runtime_killed, "foundry", weight=6),
    Kind("agent killed (Foundry Local)", agent_killed, "foundry"),
    Kind("agent frozen", agent_frozen),
    Kind("agent frozen for 30 s", agent_frozen_for_long, weight=1, fresh=True, slow=True),
    Kind("controller frozen", controller_frozen),
    Kind("several at once", several_at_once, weight=8),
    Kind("two controllers, one killed", two_controllers, fresh=True),
    Kind("connections reset (relay)", connection_reset, weight=6),
    Kind("200 ms delay (relay)", slow_relay, weight=3),
    Kind("half-open (relay)", half_open_relay),
    Kind("cable out (namespaces)", cable_out, "namespaces", missing=_namespaces),
    Kind("half-open (namespaces)", black_hole, "namespaces", missing=_namespaces),
    Kind("5 % loss (namespaces)", lost_packets, "namespaces", missing=functools.cache(namespaces.loss_missing)),
    Kind("200 ms delay (netem)", delayed_packets, "namespaces", missing=functools.cache(namespaces.netem_missing)),
    Kind("wall clock jumped", clock_jumped, "clocks", missing=_clocks),
    Kind("agent's disk full", agents_disk_full, "disks", missing=_disks),
    Kind("controller's disk full", controllers_disk_full, "disks", missing=_disks),
    Kind("agent's journal damaged", journal_damaged, fresh=True, weight=5),
    Kind("agent's journal log damaged", journals_log_damaged, fresh=True, weight=3, gap=LOG_GAP),
    Kind("database's log damaged", database_damaged, weight=6, fresh=True),
)
