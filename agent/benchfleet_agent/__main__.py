"""benchfleet-agent: reads its settings, serves until a signal, and can say what this host offers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchfleet import __version__

if TYPE_CHECKING:
    from benchfleet.v1 import host_pb2
    from benchfleet_agent.config import AgentConfig
    from benchfleet_agent.journal import Journal

EXIT_USAGE = 2
EXIT_UNABLE = 4
STOP_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    # Libraries of runtimes and drivers may be missing, each disables one plug-in; without this one nothing is sampled.
    if importlib.util.find_spec("psutil") is None:
        return _complain("the agent is not completely installed (no psutil); run: pip install 'benchfleet[agent]'")
    from benchfleet_agent.config import ConfigError

    try:
        return int(options.command(options))
    except ConfigError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (head, less) has seen enough
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchfleet-agent",
        description="Runs benchmark jobs on this host, next to Foundry Local or another runtime.",
        epilog="example: benchfleet-agent serve --listen 127.0.0.1:50551 --data-dir ~/benchfleet-agent",
    )
    parser.add_argument("--version", action="version", version=f"benchfleet-agent {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve controllers until stopped (SIGTERM or Ctrl-C)")
    serve.add_argument("--listen", metavar="ADDR", help="HOST:PORT to listen on (default 127.0.0.1:50551)")
    serve.add_argument("--runtime-cpus", metavar="LIST", help="pin runtimes to these processors: 0, 0-3, all")
    serve.add_argument(
        "--insecure-plaintext",
        action="store_true",
        default=None,
        help="allow listening beyond this machine without TLS: anyone who reaches the port can run jobs",
    )
    serve.set_defaults(command=_serve)

    doctor = commands.add_parser("doctor", help="what is wrong with this host, and what to do about it")
    doctor.set_defaults(command=_doctor)

    probes = commands.add_parser("probes", help="what telemetry this host offers, at what cost")
    probes.add_argument("--format", choices=("table", "json"), default="table")
    probes.set_defaults(command=_probes)

    for command in (serve, doctor, probes):
        command.add_argument("--data-dir", type=Path, metavar="DIR", help="where the agent keeps its journal and logs")
        command.add_argument("--config", type=Path, metavar="FILE", help="agent.toml (see deploy/agent.toml)")
    return parser


def _settings(options: argparse.Namespace) -> AgentConfig:
    from benchfleet_agent.config import load_config, override, parse_cpus

    cpus = getattr(options, "runtime_cpus", None)
    flags = {
        "listen": getattr(options, "listen", None),
        "data_dir": options.data_dir.expanduser() if options.data_dir else None,
        "insecure_plaintext": getattr(options, "insecure_plaintext", None),
        "cpus": parse_cpus(cpus) if cpus else None,
    }
    config = override(load_config(options.config), flags)
    config.check_listen()
    return config


def _inventory(config: AgentConfig) -> Callable[[], host_pb2.Host]:
    """Who this host is; its probes are looked at once, the rest whenever asked."""
    from benchfleet_agent.config import ConfigError
    from benchfleet_agent.host import HostIdentity, fingerprint
    from benchfleet_agent.probes import default_probes, describe

    try:
        identity = HostIdentity.load(config.data_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    probes = describe(default_probes())
    return lambda: fingerprint(identity, config.data_dir, probes).to_proto()


def _serve(options: argparse.Namespace) -> int:
    from benchfleet_agent.config import ConfigError
    from benchfleet_agent.journal import Journal, JournalDamaged, JournalFull, JournalInUse

    config = _settings(options)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        (config.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        journal = Journal(config.data_dir)
    except (JournalInUse, JournalDamaged, JournalFull) as error:
        return _complain(str(error), EXIT_UNABLE)
    except OSError as error:
        raise ConfigError(f"the data directory {config.data_dir} cannot be used: {error.strerror or error}") from None
    try:
        return asyncio.run(_serve_until_signal(config, journal))
    finally:
        journal.close()


async def _serve_until_signal(config: AgentConfig, journal: Journal) -> int:
    from benchfleet.transport import join_address, split_address
    from benchfleet_agent.executor import Runtimes
    from benchfleet_agent.service import AgentService, start_server

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(number, stop.set)
    service = AgentService(journal, Runtimes(config), _inventory(config), config.data_dir / "logs")
    for job_id in await service.close_unfinished():
        logging.warning("job %s was left unfinished by a killed agent and is closed", job_id)
    address = join_address(*split_address(config.listen))
    try:
        server = await start_server(service, address)
    except RuntimeError:
        return _complain(f"{address} is taken, perhaps by another agent; choose another with --listen", EXIT_UNABLE)
    logging.info("benchfleet-agent %s listens on %s, data in %s", __version__, address, config.data_dir)
    try:
        await stop.wait()
    finally:
        logging.info("stopping")
        if not await service.stop(STOP_S):
            logging.error("the running job did not end within %g s", STOP_S)
        await server.stop(1.0)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from benchfleet_agent.executor import Runtimes

    config = _settings(options)
    host = _inventory(config)()
    print(f"{host.hostname}: {host.cpu_model}, {host.memory_bytes / 2**30:.1f} GiB, {host.os_name} {host.os_version}")
    wrong = 0
    for runtime in Runtimes(config).all():
        description = runtime.describe()
        state = f"available, version {description.version}" if description.available else f"no: {description.reason}"
        wrong += not description.available
        print(f"runtime {description.name}: {state}")
    for probe in host.probes:
        print(f"probe {probe.probe_id}: {'available' if probe.available else 'no: ' + probe.unavailable_reason}")
    for problem in host.problems:
        wrong += problem.severity == "error"
        print(f"{problem.severity}: {problem.message}; {problem.advice}")
    return 1 if wrong else 0


def _probes(options: argparse.Namespace) -> int:
    from benchfleet_agent.probes import default_probes, describe

    rows = describe(default_probes())
    if options.format == "json":
        print(
            json.dumps(
                [
                    {
                        "id": row.probe_id,
                        "available": row.available,
                        "reason": row.reason,
                        "cost_us": row.cost_us,
                        "metrics": list(row.metrics),
                        "period_ms": row.period_ms,
                    }
                    for row in rows
                ],
                indent=2,
            )
        )
        return 0
    for row in rows:
        state = f"available, {row.cost_us:.0f} µs a reading" if row.cost_us is not None else f"no: {row.reason}"
        print(f"{row.probe_id}  every {row.period_ms} ms  {state}\n    {', '.join(row.metrics)}")
    return 0


def _complain(message: str, code: int = EXIT_USAGE) -> int:
    print(f"benchfleet-agent: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
