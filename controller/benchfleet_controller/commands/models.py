"""What hosts can serve, and what is done about it: models, pull, rm, unload."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from benchfleet.addresses import split_address
from benchfleet.failures import Failure, Reason
from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import host_pb2
from benchfleet_controller import fleet
from benchfleet_controller.commands import EXIT_HOST, UsageError, known_names, say, store_of, targets
from benchfleet_controller.fleet import Agent, absent_providers, explain, refusals
from benchfleet_controller.inventory import load_inventory
from benchfleet_controller.live import printable
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.problems import HostProblem
from benchfleet_controller.pulling import PullProgress
from benchfleet_controller.report import Column, render_table

EXIT_FAILED = 1
DEFAULT_RUNTIME = "foundry"
CALL_S = 150.0
"""Removing or unloading may have to start the runtime and ask a catalog first."""
RETRY_PAUSES_S = (1.0, 4.0)
"""Before a pull whose connection broke is asked for again; it goes on where it stopped."""
LARGEST_VERSION = 1024
"""``NAME:N`` with a smaller N is a model and its version, with a larger one a host and its port."""
FAILED_WORK = frozenset({Reason.DOWNLOAD_FAILED, Reason.BUILD_FAILED, Reason.CORRUPT_MODEL, Reason.DISK_FULL,
                         Reason.EP_MISSING, Reason.CANCELLED})  # fmt: skip
"""What the host tried and could not do; any other failure is a host that refused."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A model as the user names it, for the requests about one model."""

    runtime: str
    endpoint_url: str
    model: str
    device: str

    def fields(self) -> dict[str, str]:
        """The request's fields."""
        return {"runtime": self.runtime, "endpoint_url": self.endpoint_url, "model": self.model, "device": self.device}


def models(options: argparse.Namespace) -> int:
    """List what hosts can serve."""
    chosen = targets(options, store_of(options), options.host)

    async def ask(agent: Agent) -> list[dict[str, Any]]:
        found = await agent.models(options.runtime or "", options.endpoint or "")
        if missing := absent_providers(found):
            say(f"{agent.target.name}: {printable(missing)}")
        rows = [{"host": agent.target.name, **_row(model)} for model in found.models]
        return [row for row in rows if options.device in (None, row["device"])]

    rows, problems = asyncio.run(_each(chosen, ask))
    names = (
        "host", "alias", "variant", "runtime", "device", "ep", "size_bytes", "license", "context_length",
        "capabilities", "cached", "loaded",
    )  # fmt: skip
    sys.stdout.write(render_table(rows, list(names), options.format))
    return _tell(problems)


def pull(options: argparse.Namespace) -> int:
    """Fetch models on hosts, side by side, each host one model after the other."""
    store = store_of(options)
    inventory = load_inventory(options.inventory)
    hosts, names = split_words([options.host, *options.words], {*inventory, *known_names(store)}, named=options.model)
    chosen = targets(options, store, hosts)
    asked = [Asked(*_runtime(options), name, options.device or "") for name in names]
    with PullProgress([(target.name, name) for target in chosen for name in names]) as progress:

        async def fetch(agent: Agent) -> list[dict[str, Any]]:
            return [await _pull(agent, one, options.timeout or 0.0, progress) for one in asked]

        rows, problems = asyncio.run(_each(chosen, fetch))
    labels = {"host": "Host", "model": "Model", "variant": "Variant", "size_bytes": "Size", "state": "State",
              "message": "Message"}  # fmt: skip
    sys.stdout.write(render_table(rows, [Column(*pair) for pair in labels.items()], options.format))
    code = _tell(problems)
    if any(row["state"] == "refused" for row in rows):
        return EXIT_HOST
    return code or (EXIT_FAILED if any(row["state"] == "failed" for row in rows) else 0)


def rm(options: argparse.Namespace) -> int:
    """Remove models' files from hosts."""
    chosen, asked = _named(options, "rm")
    names = ", ".join(one.model for one in asked)
    whose = ", ".join(target.name for target in chosen)
    if not options.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing {names} from {whose} needs a terminal to ask on; without one say --yes")
        say(f"remove {printable(names)} from {printable(whose)}? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("nothing is removed")
            return 0

    async def remove(agent: Agent, one: Asked) -> dict[str, Any]:
        answer = await agent.stub.RemoveModel(pb.RemoveModelRequest(**one.fields()), timeout=CALL_S)
        freed = answer.freed_bytes if answer.HasField("freed_bytes") else None
        return {"host": agent.target.name, "variant": answer.model.variant, "freed_bytes": freed}

    return _change(chosen, asked, remove, ["host", "variant", "freed_bytes"], options.format)


def unload(options: argparse.Namespace) -> int:
    """Take models out of hosts' memory."""
    chosen, asked = _named(options, "unload")

    async def forget(agent: Agent, one: Asked) -> dict[str, Any]:
        answer = await agent.stub.UnloadModel(pb.UnloadModelRequest(**one.fields()), timeout=CALL_S)
        return {"host": agent.target.name, "variant": answer.model.variant}

    return _change(chosen, asked, forget, ["host", "variant"], options.format)


def _change(
    chosen: tuple[HostTarget, ...],
    asked: Sequence[Asked],
    change: Callable[[Agent, Asked], Awaitable[dict[str, Any]]],
    columns: list[str],
    form: str,
) -> int:
    """Change one model after the other on every host, whatever was refused before; tells what was done and what not."""
    refused: list[HostProblem] = []

    async def change_all(agent: Agent) -> list[dict[str, Any]]:
        rows = []
        for one in asked:
            try:
                with refusals(agent.target):
                    rows.append(await change(agent, one))
            except HostProblem as problem:
                refused.append(problem)
        return rows

    rows, problems = asyncio.run(_each(chosen, change_all))
    sys.stdout.write(render_table(rows, columns, form))
    return _tell([*problems, *refused])


def _named(options: argparse.Namespace, command: str) -> tuple[tuple[HostTarget, ...], list[Asked]]:
    """The hosts, and the models: those of ``--model``, else the last word."""
    words, names = list(options.words), list(options.model)
    if not names:
        names = [words.pop()]
    if not words:
        raise UsageError(f"name the model too: benchfleet {command} HOST… MODEL")
    asked = [Asked(*_runtime(options), name, options.device or "") for name in names]
    return targets(options, store_of(options), words), asked


def split_words(words: Sequence[str], names: set[str], *, named: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """``HOST… MODEL…`` told apart: the first word is a host, and so is each next one that can only be one.

    That is NAME=ADDRESS, one of the known `names`, an IP address, or an address with a port. ``named`` models
    (``--model``) leave all words to hosts. Raises `UsageError` when no model is left.
    """
    if named:
        return list(words), list(named)
    hosts = list(words[:1])
    rest = list(words[1:])
    while len(rest) > 1 and _is_host(rest[0], names):
        hosts.append(rest.pop(0))
    if not rest:
        raise UsageError("name the models too: benchfleet pull HOST… MODEL…")
    return hosts, rest


def _is_host(word: str, names: set[str]) -> bool:
    if "=" in word or word in names or word == "localhost":
        return True
    head, _, port = word.rpartition(":")
    if port.isdecimal() and int(port) >= LARGEST_VERSION and head:
        return True
    try:
        host, _ = split_address(word)
    except ValueError:
        return False
    return host.replace(".", "").isdecimal() or host.count(":") > 1


def _runtime(options: argparse.Namespace) -> tuple[str, str]:
    """Which runtime, and the endpoint's URL, which alone means the runtime of that name."""
    return options.runtime or ("endpoint" if options.endpoint else DEFAULT_RUNTIME), options.endpoint or ""


async def _each(
    chosen: tuple[HostTarget, ...], work: Callable[[Agent], Awaitable[list[dict[str, Any]]]]
) -> tuple[list[dict[str, Any]], list[HostProblem]]:
    """Do the same on every host at once; the rows, in the hosts' order, and what hosts had against it."""
    agents, problems = await fleet.connect_all(chosen)
    try:
        answers = await asyncio.gather(*(work(agent) for agent in agents), return_exceptions=True)
    finally:
        for agent in agents:
            await agent.close()
    rows: list[dict[str, Any]] = []
    for answer in answers:
        if isinstance(answer, HostProblem):
            problems.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            rows += answer
    return rows, problems


async def _pull(agent: Agent, asked: Asked, timeout_s: float, progress: PullProgress) -> dict[str, Any]:
    """Fetch one model on one host; its row. What went wrong is in it."""
    name = agent.target.name
    row: dict[str, Any] = {
        "host": name,
        "model": asked.model,
        "variant": None,
        "size_bytes": None,
        "state": "failed",
        "message": None,
    }
    request = pb.PullModelRequest(**asked.fields(), timeout_s=timeout_s)
    for pause_s in (*RETRY_PAUSES_S, None):
        try:
            async for response in agent.stub.PullModel(request):
                share = response.fraction if response.HasField("fraction") else None
                progress.report(name, asked.model, response.message, share)
                if response.HasField("model"):
                    size = response.model.size_bytes if response.model.HasField("size_bytes") else None
                    row |= {"variant": response.model.variant, "size_bytes": size, "state": "there"}
            break
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and pause_s is not None:
                progress.report(name, asked.model, "the connection broke; trying again", None)
                await asyncio.sleep(pause_s)
                continue
            failure = explain(error)
            row |= {"state": "failed" if failure.reason in FAILED_WORK else "refused", "message": failure.message}
            break
    if row["state"] == "failed" and row["message"] is None:
        row["message"] = Failure(Reason.INTERNAL, "the agent ended the pull without the model").message
    progress.end(name, asked.model, str(row["message"] or f"{row['variant']} is there"), done=row["state"] == "there")
    return row


def _tell(problems: Sequence[HostProblem]) -> int:
    for problem in problems:
        print(f"benchfleet: {printable(str(problem))}", file=sys.stderr)
    return EXIT_HOST if problems else 0


def _row(model: host_pb2.ModelVariant) -> dict[str, Any]:
    def known(field: str) -> Any:
        return getattr(model, field) if model.HasField(field) else None  # type: ignore[arg-type]

    return {
        "alias": model.alias,
        "variant": model.variant,
        "runtime": model.runtime,
        "device": known("device"),
        "ep": known("execution_provider"),
        "size_bytes": known("size_bytes"),
        "license": known("license"),
        "context_length": known("context_length"),
        "capabilities": list(model.capabilities),
        "cached": known("cached"),
        "loaded": known("loaded"),
    }
