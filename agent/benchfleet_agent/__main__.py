"""benchfleet-agent: reads its settings, serves until a signal, and can say what this host offers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchfleet import __version__
from benchfleet.tls import require_tls13

if TYPE_CHECKING:
    import grpc

    from benchfleet.v1 import host_pb2
    from benchfleet_agent.access import AccessControl
    from benchfleet_agent.config import AgentConfig
    from benchfleet_agent.journal import Journal
    from benchfleet_agent.journal_file import Contents

EXIT_USAGE = 2
EXIT_UNABLE = 4
STOP_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    require_tls13()
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
        help="allow listening beyond this machine without a certificate: anyone who reaches the port can run jobs",
    )
    serve.set_defaults(command=_serve)

    doctor = commands.add_parser("doctor", help="what is wrong with this host, and what to do about it")
    doctor.set_defaults(command=_doctor)

    probes = commands.add_parser("probes", help="what telemetry this host offers, at what cost")
    probes.add_argument("name", nargs="?", metavar="NAME", help="one probe only, with what its metrics mean")
    probes.add_argument("--format", choices=("table", "json"), default="table")
    probes.set_defaults(command=_probes)

    jobs = commands.add_parser("jobs", help="jobs whose events no controller has fetched yet, and giving them up")
    jobs.add_argument("--format", choices=("table", "json"), default="table")
    which = jobs.add_mutually_exclusive_group()
    which.add_argument("--release", metavar="JOB", help="forget this ended job (its id, or a unique prefix)")
    which.add_argument("--release-ended", action="store_true", help="forget all jobs that ended")
    jobs.add_argument("--yes", action="store_true", help="release without being asked; what is not stored is lost")
    jobs.set_defaults(command=_jobs)

    join = commands.add_parser(
        "join", help="make this host a member of a lab, with the line of `benchfleet certs enrol`"
    )
    join.add_argument("address", metavar="HOST:PORT", help="where `benchfleet certs enrol` waits")
    join.add_argument("token", metavar="TOKEN", help="what it printed; good for ten minutes and for one host")
    join.add_argument("--force", action="store_true", help="also when this host belongs to another lab")
    join.set_defaults(command=_join)

    for command in (serve, doctor, probes, jobs, join):
        command.add_argument("--data-dir", type=Path, metavar="DIR", help="where the agent keeps its journal and logs")
        command.add_argument("--config", type=Path, metavar="FILE", help="agent.toml (see deploy/agent.toml)")
    return parser


def _settings(options: argparse.Namespace) -> AgentConfig:
    config = _config(options)
    config.check_listen()
    return config


def _config(options: argparse.Namespace) -> AgentConfig:
    from benchfleet_agent.config import load_config, override, parse_cpus

    cpus = getattr(options, "runtime_cpus", None)
    flags = {
        "listen": getattr(options, "listen", None),
        "data_dir": options.data_dir.expanduser() if options.data_dir else None,
        "insecure_plaintext": getattr(options, "insecure_plaintext", None),
        "cpus": parse_cpus(cpus) if cpus else None,
    }
    return override(load_config(options.config), flags)


def _inventory(config: AgentConfig, contents: Callable[[], Contents]) -> Callable[[], host_pb2.Host]:
    """Who this host is; its probes are looked at once, the rest (``contents`` of the journal, too) whenever asked."""
    from benchfleet_agent.config import ConfigError
    from benchfleet_agent.host import HostIdentity, fingerprint
    from benchfleet_agent.journal_upkeep import find_problems
    from benchfleet_agent.limits import Limits
    from benchfleet_agent.probe_selection import probes_to_list
    from benchfleet_agent.probes import describe

    try:
        identity = HostIdentity.load(config.data_dir)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    probes = describe(probes_to_list(config.probes))
    limits = Limits(config.data_dir, config.foundry.cpus)

    def inventory() -> host_pb2.Host:
        host = fingerprint(identity, config.data_dir, probes).to_proto()
        host.problems.extend(find_problems(contents(), config.journal, time.time_ns()))
        if (measured := limits.current()) is not None:
            host.limits.CopyFrom(measured)
        return host

    return inventory


def _serve(options: argparse.Namespace) -> int:
    from benchfleet_agent.config import ConfigError
    from benchfleet_agent.journal import Journal, JournalDamaged, JournalFull, JournalInUse

    config = _settings(options)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        (config.data_dir / "logs").mkdir(parents=True, exist_ok=True)
        journal = Journal(config.data_dir, max_bytes=config.journal.max_bytes)
    except (JournalInUse, JournalDamaged, JournalFull) as error:
        return _complain(str(error), EXIT_UNABLE)
    except OSError as error:
        raise ConfigError(f"the data directory {config.data_dir} cannot be used: {error.strerror or error}") from None
    try:
        return asyncio.run(_serve_until_signal(config, journal))
    finally:
        journal.close()


async def _serve_until_signal(config: AgentConfig, journal: Journal) -> int:
    from benchfleet.addresses import join_address, split_address
    from benchfleet.tls import TlsError
    from benchfleet_agent.executor import Runtimes
    from benchfleet_agent.journal_upkeep import close_damaged, find_problems
    from benchfleet_agent.limits import Limits
    from benchfleet_agent.service import AgentService, start_server

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(number, stop.set)
    try:
        credentials, access = _security(config)
    except TlsError as error:
        return _complain(str(error))
    limits = Limits(config.data_dir, config.foundry.cpus)
    inventory = _inventory(config, journal.contents)
    logs = config.data_dir / "logs"
    service = AgentService(journal, Runtimes(config), inventory, logs, limits.measure, config.access)
    for problem in find_problems(journal.contents(), config.journal, time.time_ns()):
        logging.warning("%s; %s", problem.message, problem.advice)
    for job_id in close_damaged(journal):
        logging.warning("job %s lost events when the journal was damaged and is closed", job_id)
    for job_id in await service.close_unfinished():
        logging.warning("job %s was left unfinished by a killed agent and is closed", job_id)
    address = join_address(*split_address(config.listen))
    try:
        server = await start_server(service, address, credentials, access)
    except RuntimeError:
        return _complain(f"{address} is taken, perhaps by another agent; choose another with --listen", EXIT_UNABLE)
    journal.serve(address)
    how = "mutual TLS" if credentials else "clear text"
    logging.info("benchfleet-agent %s listens on %s (%s), data in %s", __version__, address, how, config.data_dir)
    try:
        await stop.wait()
    finally:
        logging.info("stopping")
        if not await service.stop(STOP_S):
            logging.error("the running job did not end within %g s", STOP_S)
        await server.stop(1.0)
    return 0


def _security(config: AgentConfig) -> tuple[grpc.ServerCredentials | None, AccessControl | None]:
    """TLS and who may do what, when this host has a certificate. Raises `TlsError`."""
    from benchfleet.tls import TlsError, server_credentials
    from benchfleet_agent.access import AccessControl, AccessPolicy, Revocations
    from benchfleet_agent.renewal import Renewal

    files = config.credentials()
    if files is None:
        if config.access != AccessPolicy():
            message = "agent.toml says who may do what ([access]), but in clear text nobody has a name"
            raise TlsError(f"{message}; enrol this host with `benchfleet certs enrol NAME`, or take the table out")
        return None, None
    try:
        access = AccessControl(config.access, Revocations(files.revocations), Renewal(files))
    except (OSError, ValueError) as error:
        raise TlsError(f"{files.revocations} cannot be used: {error}; enrol again, or copy it again") from None
    return server_credentials(files, logging.warning), access


def _join(options: argparse.Namespace) -> int:
    from benchfleet.enrolment import EnrolmentError, Token
    from benchfleet_agent.enrolment import join

    directory = _config(options).data_dir / "tls"
    try:
        joined = join(options.address, Token.parse(options.token), directory, force=options.force)
    except EnrolmentError as error:
        return _complain(str(error), EXIT_UNABLE)
    print(f"this host is {joined.name} ({', '.join(joined.addresses)}), certified until {joined.not_after:%Y-%m-%d}")
    print(f"its key and certificate are in {directory}; an agent that runs with them reads them by itself")
    print("to serve the network: benchfleet-agent serve --listen 0.0.0.0:50551")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from benchfleet_agent.executor import Runtimes
    from benchfleet_agent.journal_file import Contents, JournalDamaged, read_contents

    config = _settings(options)
    contents, wrong = Contents(), 0
    try:
        contents = read_contents(config.data_dir)
    except (JournalDamaged, OSError) as error:
        print(f"error: {error}; `benchfleet-agent serve` repairs it as far as possible")
        wrong = 1
    host = _inventory(config, lambda: contents)()
    print(f"{host.hostname}: {host.cpu_model}, {host.memory_bytes / 2**30:.1f} GiB, {host.os_name} {host.os_version}")
    wrong += _examine_certificate(config)
    for runtime in Runtimes(config).all():
        description = runtime.describe()
        state = f"available, version {description.version}" if description.available else f"no: {description.reason}"
        wrong += not description.available
        print(f"runtime {description.name}: {state}")
    for probe in host.probes:
        state = f"available, {probe.cost_us:.0f} µs a reading" if probe.available else f"no: {probe.unavailable_reason}"
        print(f"probe {probe.probe_id}: {state}")
    for problem in host.problems:
        wrong += problem.severity == "error"
        print(f"{problem.severity}: {problem.message}; {problem.advice}")
    return 1 if wrong else 0


def _examine_certificate(config: AgentConfig) -> int:
    """Print what there is to say about this host's certificate; returns the number of errors."""
    import datetime

    from benchfleet.tls import TlsError, certificate_end, expiry_warning

    files = config.credentials()
    if files is None:
        print("certificate: none; other machines reach this agent through an SSH tunnel only")
        return 0
    try:
        end = certificate_end(files.read().certificate)
    except TlsError as error:
        print(f"error: certificate: {error}")
        return 1
    now = datetime.datetime.now(datetime.UTC)
    warning = expiry_warning(end, now)
    if warning is None:
        print(f"certificate: valid until {end:%Y-%m-%d}")
        return 0
    print(f"{'warning' if end > now else 'error'}: the certificate {warning}; enrol this host again, or renew it with "
          "`benchfleet certs renew`")  # fmt: skip
    return int(end <= now)


def _probes(options: argparse.Namespace) -> int:
    from benchfleet_agent.probe_selection import probes_to_list
    from benchfleet_agent.probes.listing import carry_out

    return carry_out(options, probes_to_list(_config(options).probes))


def _jobs(options: argparse.Namespace) -> int:
    from benchfleet_agent.held_jobs import carry_out

    return carry_out(options, _config(options))


def _complain(message: str, code: int = EXIT_USAGE) -> int:
    print(f"benchfleet-agent: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
