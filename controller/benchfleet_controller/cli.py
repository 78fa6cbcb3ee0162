"""benchfleet: parse, call, print; nothing else.

Commands live in `commands` and are imported when used; the top-level help is a text made beforehand (`make docs`), for
argparse alone takes longer than Python itself.
"""

from __future__ import annotations

import os
import sys

from benchfleet import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

EXIT_DONE = 0
EXIT_CASE_FAILED = 1
EXIT_USAGE = 2
EXIT_REGRESSION = 3
EXIT_HOST = 4
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ.get("COMP_LINE", ""))
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given in ([], ["-h"], ["--help"]):
        from benchfleet_controller.help_text import HELP

        sys.stdout.write(HELP)
        return EXIT_DONE if given else EXIT_USAGE
    if given == ["--version"]:
        print(f"benchfleet {__version__}")
        return EXIT_DONE
    # Only the named command's options are built: they are most of the time that --help takes.
    chosen = next((word for word in given if word in COMMANDS), "")
    options = parser(chosen).parse_args(given)
    if not hasattr(options, "command"):
        parser("").error("name a command; benchfleet --help lists them")
    return _carry_out(options)


def _carry_out(options: argparse.Namespace) -> int:
    try:
        command = _function("commands", options.command)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("benchfleet"):
            raise
        return complain(
            f"the controller is not completely installed ({error}); run: pip install 'benchfleet[controller]'"
        )
    from benchfleet_controller.commands import KNOWN_ERRORS

    if hasattr(options, "insecure_plaintext"):
        from benchfleet_controller.credentials import choose

        choose(options.certs, insecure_plaintext=options.insecure_plaintext)
    try:
        return command(options)
    except KNOWN_ERRORS as error:
        return complain(str(error), getattr(error, "exit_code", EXIT_USAGE))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (head, less) has seen enough
        return EXIT_DONE


def _complete(line: str) -> None:
    """Answer a shell that completes ``line``, and end; only the options of the command in it are built."""
    import argcomplete

    from benchfleet_controller.completers import attach

    asked = parser(next((word for word in line.split() if word in COMMANDS), ""))
    attach(asked)
    argcomplete.autocomplete(asked)


def complain(message: str, code: int = EXIT_USAGE) -> int:
    """Say on stderr what is wrong, each line once; returns the exit code."""
    from benchfleet_controller.live import printable

    for line in message.splitlines():
        print(f"benchfleet: {printable(line)}", file=sys.stderr)
    return code


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The command line: with the options of every command, or of the chosen one only."""
    import argparse

    top = argparse.ArgumentParser(
        prog="benchfleet",
        description="Benchmarks local language models across machines: which hardware, device and model\n"
        "is better for this work, by how much, and how sure.",
        epilog="examples:\n"
        "  benchfleet demo\n"
        "  benchfleet run --host lab1=192.168.1.20 --host lab2=192.168.1.21 --model smollm2-135m\n"
        "  benchfleet compare last --by host\n"
        "  benchfleet report last -o report.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"benchfleet {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for name, (function, text, options) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(command=function)
        if chosen is None or chosen == name:
            _function("options", ":add_database")(command)
            _function("options", options)(command)
    return top


def _function(package: str, name: str) -> Callable[..., int]:
    """``module:function`` below a package of this one, imported now."""
    import importlib

    module, _, function = name.partition(":")
    path = f"benchfleet_controller.{package}" + (f".{module}" if module else "")
    found: Callable[..., int] = getattr(importlib.import_module(path), function)
    return found


COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("running:demo", "the main job on this machine, with everything embedded", "running:demo"),
    "run": ("running:run", "benchmark models on hosts", "running:run"),
    "runs": ("answers:runs", "list runs, newest first", ":add_format"),
    "show": ("answers:show", "one run's results, a line a case", "answers:show"),
    "collect": ("running:collect", "fetch what hosts still hold, e.g. after Ctrl-C", "running:collect"),
    "cancel": ("running:cancel", "end a run's jobs on their hosts and fetch what they have", "running:cancel"),
    "compare": ("comparing:compare_command", "which is better, by how much, how sure", "answers:compare"),
    "score": ("scoring:score_command", "how good the answers are, by what was expected or by a judge", "answers:score"),
    "select": ("selecting:select_command", "which model to take under limits, and why", "answers:select"),
    "baseline": ("baselines:baseline", "named results that later runs are compared with", "answers:baseline"),
    "report": ("reporting:report", "write a run's report to a file", "answers:report"),
    "hosts": ("hosts:hosts", "known hosts, and whether they answer", "hosts:hosts"),
    "models": ("models:models", "what a host can serve", "hosts:models"),
    "pull": ("models:pull", "fetch models on hosts before a run needs them", "hosts:pull"),
    "rm": ("models:rm", "remove a model's files from hosts", "hosts:rm"),
    "unload": ("models:unload", "take a model out of hosts' memory", "hosts:unload"),
    "certs": ("certs:certs", "a lab's certificates: who may reach which agent", "hosts:certs"),
    "completion": ("completion:completion", "how a shell completes benchfleet's commands", "completion:completion"),
    "doctor": ("hosts:doctor", "what is wrong with a host, and what to do about it", "hosts:doctor"),
}
"""Every command: its function in `commands`, what it is for, and what adds its options in `options`."""


if __name__ == "__main__":
    sys.exit(main())
