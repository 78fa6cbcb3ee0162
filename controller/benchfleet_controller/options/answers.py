"""Options of the commands that answer."""

from __future__ import annotations

import argparse

from benchfleet_controller.options import RUN_HELP, add_format, add_goodput, add_price, path


def show(show: argparse.ArgumentParser) -> None:
    """`benchfleet show`."""
    show.add_argument("run", nargs="?", default="last", metavar="RUN", help=f"{RUN_HELP} (default last)")
    add_goodput(show)
    add_price(show)
    show.add_argument("--lifecycle", action="store_true", help="cold and warm: loads, pauses, memory at each stage")
    show.add_argument("--outliers", action="store_true", help="requests out of the ordinary, and why")
    add_format(show)


def compare(compare: argparse.ArgumentParser) -> None:
    """`benchfleet compare`."""
    compare.epilog = (
        "examples:\n  benchfleet compare last --by host --baseline one-core\n  benchfleet compare NEW --baseline OLD\n"
        "  benchfleet compare last --by host,device --where model=smollm2-135m\n"
        "  benchfleet compare last --by host --answers\n"
        "  benchfleet compare last --baseline main --fail-on-regression 5%\n"
        "exit codes of the gate: 0 same or better, 3 worse, 5 nobody knows (too few rounds, or not comparable)."
    )
    compare.formatter_class = argparse.RawDescriptionHelpFormatter
    compare.add_argument("run", nargs="*", metavar="RUN", help=f"{RUN_HELP}; several are put together (default last)")
    compare.add_argument(
        "--by",
        metavar="WHAT",
        help="host, device, model, runtime, path, ep, variant, quantisation, driver, a parameter such as concurrency, "
        "run, name or case, or several with commas (default: host; of several runs, run)",
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
    add_price(compare)
    compare.add_argument("--answers", action="store_true", help="are the answers the same, and where do they part")
    compare.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="M",
        help="only this metric; repeat for more; all: every one that was measured",
    )
    compare.add_argument(
        "--fail-on-regression",
        metavar="PCT",
        help="exit with 3 when something is surely worse by more than PCT, with 5 when that cannot be told",
    )
    add_format(compare)


def select(select: argparse.ArgumentParser) -> None:
    """`benchfleet select`."""
    select.epilog = (
        "examples:\n"
        "  benchfleet select last --max-ttft-p95 500ms --max-ram 2GiB --license mit,apache-2.0\n"
        "  benchfleet select RUN1 RUN2 --max-latency-p95 3 --capability summarization --prefer memory\n"
        "times in seconds or with ms; sizes as 2GiB, 800MB or bytes. What is not measured never passes.\n"
        "exit codes: 0 a recommendation, which JSON and text call sure or not; 1 nothing passes."
    )
    select.formatter_class = argparse.RawDescriptionHelpFormatter
    select.add_argument("run", nargs="*", metavar="RUN", help=f"{RUN_HELP}; several are put together (default last)")
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
    select.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only cases such as host=lab1; repeat for more",
    )
    select.add_argument("--models", type=path, metavar="FILE", help="models.json (default: the one of the run)")
    select.add_argument(
        "--prefer",
        choices=("latency", "ttft", "throughput", "memory", "disk", "quality"),
        default="latency",
        help="what decides among those that pass (default latency, its p95)",
    )
    add_format(select)


def score(score: argparse.ArgumentParser) -> None:
    """`benchfleet score`."""
    score.epilog = (
        "examples:\n"
        "  benchfleet score last                              by what the run's prompts expect\n"
        "  benchfleet score last --expected prompts.json      by what these prompts expect, after the fact\n"
        "  benchfleet score last --judge http://127.0.0.1:8080/v1 --judge-model qwen2.5-7b\n"
        "scores enter show, compare, select and reports as quality_ratio. A judge's key is BENCHFLEET_JUDGE_API_KEY."
    )
    score.formatter_class = argparse.RawDescriptionHelpFormatter
    score.add_argument("run", nargs="?", default="last", metavar="RUN", help=f"{RUN_HELP} (default last)")
    score.add_argument("--expected", type=path, metavar="FILE", help="prompts with what is expected, by prompt id")
    score.add_argument("--judge", metavar="URL", help="an OpenAI-compatible server that judges answers")
    score.add_argument("--judge-model", metavar="M", help="the model that judges")
    score.add_argument("--again", action="store_true", help="judge answers that this judge has judged before too")
    add_format(score)


def baseline(baseline: argparse.ArgumentParser) -> None:
    """`benchfleet baseline`."""
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
    baseline.add_argument("what", nargs="?", metavar="RUN", help=f"for set: {RUN_HELP} (default last)")
    baseline.add_argument("-o", "--output", type=path, metavar="FILE", help="for export: where to (default stdout)")
    baseline.add_argument("--force", action="store_true", help="for export: overwrite an existing file")
    add_format(baseline)


def report(report: argparse.ArgumentParser) -> None:
    """`benchfleet report`."""
    report.add_argument("run", nargs="?", default="last", metavar="RUN", help=f"{RUN_HELP} (default last)")
    report.add_argument(
        "-o", "--output", type=path, required=True, metavar="FILE", help="ends in .html, .md, .csv, .json or .parquet"
    )
    report.add_argument(
        "--charts", choices=("svg", "png"), help="with .md: draw the charts into a folder beside it, and show them"
    )
    add_price(report)
    report.add_argument("--force", action="store_true", help="overwrite an existing file")
    add_goodput(report)
