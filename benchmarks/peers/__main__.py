"""The peers and benchfleet on one server that knows: ``python -m benchmarks.peers``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.peers import aiperf, benchrig, environments, genai_bench, guidellm, ours, plain_openai, raw_socket
from benchmarks.peers.client import MODEL
from benchmarks.peers.measurement import QUICK, Amount, Measurement
from benchmarks.peers.report import report
from benchmarks.peers.server import running_server
from benchmarks.peers.targets import judge
from benchmarks.peers.tokenizer import write_tokenizer

OURS = (raw_socket.CLIENT, plain_openai.CLIENT, ours.CLIENT)
PEERS = (aiperf.CLIENT, benchrig.CLIENT, genai_bench.CLIENT)
ON_REQUEST = (guidellm.CLIENT,)


def main() -> int:
    """Exit code 1 when a target is missed, 2 on wrong usage."""
    names = ", ".join(client.name for client in PEERS)
    extra = ", ".join(client.name for client in ON_REQUEST)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", metavar="NAME,…", help=f"these peers of {names}, {extra}; an empty text: none")
    parser.add_argument("--with", dest="also", metavar="NAME", action="append", default=[], help=f"also {extra}")
    parser.add_argument("--quick", action="store_true", help="a smoke test: too few requests to judge by")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the clients (default 1)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the tables there")
    arguments = parser.parse_args()
    known = {client.name.lower(): client for client in (*PEERS, *ON_REQUEST)}
    wanted = [client.name.lower() for client in PEERS] if arguments.only is None else arguments.only.lower().split(",")
    chosen = [name for name in dict.fromkeys([*wanted, *map(str.lower, arguments.also)]) if name]
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"not a peer: {', '.join(unknown)}; known are {names}, {extra}")
    clients = [*OURS, *(known[name] for name in chosen)]
    amount = QUICK if arguments.quick else Amount()
    start_s = time.monotonic()
    with running_server(MODEL) as server:
        tokenizer = write_tokenizer(environments.FOLDER / "tokenizer")
        results = Measurement(server, clients, tokenizer, amount, arguments.seed).measure()
    verdicts = judge(results)
    text = report(results, verdicts, clients, amount, arguments.seed)
    print(text)
    print(f"took {time.monotonic() - start_s:.0f} s", file=sys.stderr)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    missed = [verdict.text for verdict in verdicts if not verdict.kept]
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
