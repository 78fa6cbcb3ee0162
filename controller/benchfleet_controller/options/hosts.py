"""Options of the commands about hosts."""

from __future__ import annotations

import argparse

from benchfleet_controller.options import HOST_HELP, add_format, add_inventory

DEVICES = ("cpu", "gpu", "npu")
ENDPOINT_HELP = "an OpenAI-compatible server, as the agent sees it"


def hosts(hosts: argparse.ArgumentParser) -> None:
    """`benchfleet hosts`."""
    hosts.add_argument("host", nargs="*", metavar="HOST", help=f"{HOST_HELP} (default: all known)")
    add_inventory(hosts)
    add_format(hosts)


def models(models: argparse.ArgumentParser) -> None:
    """`benchfleet models`."""
    models.add_argument("host", nargs="+", metavar="HOST", help=HOST_HELP)
    models.add_argument("--runtime", metavar="R", help="only this runtime's (default: all)")
    models.add_argument("--endpoint", metavar="URL", help=f"those of {ENDPOINT_HELP}")
    models.add_argument("--device", choices=DEVICES, help="only variants for this device")
    add_inventory(models)
    add_format(models)


def doctor(doctor: argparse.ArgumentParser) -> None:
    """`benchfleet doctor`."""
    doctor.epilog = "example: benchfleet doctor lab1 lab2 --model smollm2-135m"
    doctor.add_argument("host", nargs="+", metavar="HOST", help=HOST_HELP)
    doctor.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="M",
        help="check that it is offered, is there, loads and answers one short request; repeat for more",
    )
    doctor.add_argument("--measure", action="store_true", help="measure memory bandwidth and compute (some seconds)")
    doctor.add_argument("--refresh", action="store_true", help="with --measure: also when that was done before")
    _add_runtime(doctor)
    add_inventory(doctor)
    add_format(doctor)


def pull(pull: argparse.ArgumentParser) -> None:
    """`benchfleet pull`."""
    pull.formatter_class = argparse.RawDescriptionHelpFormatter
    pull.epilog = (
        "examples:\n"
        "  benchfleet pull lab1 lab2 smollm2-135m\n"
        "  benchfleet pull lab1 --model phi-4-mini --model qwen2.5-0.5b --device gpu\n"
        "An interrupted pull goes on where it stopped when it is asked for again."
    )
    pull.add_argument("host", metavar="HOST", help=HOST_HELP)
    pull.add_argument("words", nargs="*", metavar="MODEL", help="alias or variant id; further hosts go before it")
    pull.add_argument("--model", action="append", default=[], metavar="M", help="a model; all words are hosts then")
    pull.add_argument("--timeout", type=float, metavar="S", help="give up after S seconds (default 6 h)")
    _add_runtime(pull)
    add_inventory(pull)
    add_format(pull)


def rm(rm: argparse.ArgumentParser) -> None:
    """`benchfleet rm`."""
    _add_hosts_and_model(rm)
    rm.add_argument("--yes", action="store_true", help="do not ask")
    _add_runtime(rm)
    add_inventory(rm)
    add_format(rm)


def unload(unload: argparse.ArgumentParser) -> None:
    """`benchfleet unload`."""
    _add_hosts_and_model(unload)
    _add_runtime(unload)
    add_inventory(unload)
    add_format(unload)


def certs(certs: argparse.ArgumentParser) -> None:
    """`benchfleet certs`."""
    from benchfleet_controller.certs_options import add_options

    add_options(certs)
    add_format(certs)


def _add_hosts_and_model(command: argparse.ArgumentParser) -> None:
    command.usage = "%(prog)s [options] HOST [HOST ...] MODEL\n       %(prog)s [options] HOST [HOST ...] --model M"
    command.add_argument("words", nargs="+", metavar="HOST MODEL", help=f"{HOST_HELP}; the last word is the model")
    command.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="M",
        help="alias or variant id; repeat for more; all words are hosts then",
    )


def _add_runtime(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=DEVICES, help="the model's variant for this device")
    command.add_argument("--runtime", metavar="R", help="whose model (default foundry)")
    command.add_argument("--endpoint", metavar="URL", help=ENDPOINT_HELP)
