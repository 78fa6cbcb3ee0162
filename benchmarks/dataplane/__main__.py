"""The data plane's own speed: from the wire into DuckDB, and a fleet followed at once. `make bench-dataplane`.

    python -m benchmarks.dataplane [--quick] [--write docs/dataplane.md]

Exit code 1 when a budget is missed. Ratios are against a baseline of the same run; absolute times are the machine's.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from pathlib import Path

from benchmarks.dataplane.fleet import follow_fleet
from benchmarks.dataplane.ingest import backlog, growth, ingest
from benchmarks.dataplane.page import page

from benchfleet.tls import CredentialFiles
from benchfleet_controller.authority import Authority
from benchfleet_controller.certificates import new_key

TLS_AGENTS = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there too")
    options = parser.parse_args()
    sizes = (20, 50) if options.quick else (100, 500, 1000)
    seconds = 5 if options.quick else 20
    with tempfile.TemporaryDirectory(prefix="dataplane-") as folder:
        directory = Path(folder)
        rows = 20_000 if options.quick else 1_000_000
        backlogs = [backlog(directory, jobs, rows) for jobs in (1, 10, 100)]
        commits = ((100, 1),) if options.quick else ((10, 1), (100, 1), (1000, 1), (100, 100))
        ingested = [ingest(directory, jobs, held_s) for jobs, held_s in commits]
        grown = growth(directory, 100_000 if options.quick else 10_000_000)
        print("ingest measured", file=sys.stderr)
        fleets = []
        for size in sizes:
            fleets.append(follow_fleet(size, seconds, directory))
            print(f"{size} agents followed", file=sys.stderr)
        agents = 20 if options.quick else TLS_AGENTS
        for kind in ("plain", "tls"):
            (directory / kind).mkdir()
        plain = follow_fleet(agents, seconds, directory / "plain")
        tls = follow_fleet(agents, seconds, directory / "tls", _certificates(directory))
    text, missed = page(backlogs, ingested, grown, fleets, (plain, tls))
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 1 if missed else 0


def _certificates(directory: Path) -> Path:
    """An authority's files for one host, ``localhost``, and for us."""
    now = datetime.datetime.now(datetime.UTC)
    authority = Authority.create(directory / "ca", "benchmark", now)
    host, us = new_key(), new_key()
    certified = authority.issue_host("localhost", ["localhost", "127.0.0.1"], host.public_key(), now)
    authority.write_bundle(CredentialFiles.host(directory / "ca" / "host"), certified, host)
    certified = authority.issue_controller("us@here", us.public_key(), now)
    authority.write_bundle(CredentialFiles.controller(directory / "ca" / "us"), certified, us)
    return directory / "ca"


if __name__ == "__main__":
    sys.exit(main())
