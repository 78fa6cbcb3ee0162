"""The load process: ``python -m benchfleet_agent.load``, JSON lines on stdin and stdout.

Commands are ``{"do": NAME, …}``, carried out one after the other:

=======  ==========================================================  ==================================================
command  fields                                                      answer
=======  ==========================================================  ==================================================
open     base_url, api_key, model, stream, max_tokens, temperature,  opened{pid, versions, stamp_source}
         top_p, seed, concurrency, request_timeout_s,
         first_token_timeout_s, token_timeout_s, tokenizer_path,
         tokenize_url, spool_path
round    round_id, requests [{request_id, prompt_id, messages,       request{round_id, …`RequestRecord`} for each as it
         max_tokens}], duration_s, rate_per_s, arrival, seed,        finishes, then round_finished{round_id, start_ns,
         prefix_seed (`Pace`)                                        end_ns, cpu_ns, rss_bytes, given_up}
close                                                                none: the process ends with code 0
=======  ==========================================================  ==================================================

What cannot be done is answered with ``failed{command, reason, message}``. ``open`` may come again. The end of stdin
and SIGTERM mean *now*: the line being written is finished, a round that still runs is abandoned, the code is 0.
``--no-kernel-stamps`` keeps to stamps taken at the socket read, as on systems without the other kind.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from typing import NoReturn

from benchfleet_agent.child import Message, Protocol, die_with_parent, take_protocol
from benchfleet_agent.load.process import Events, Service

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the interpreter from one that has something to stamp; the default is ten times that."""


class Stopped(Exception):
    """SIGTERM came."""


def main() -> NoReturn:
    """Serve commands until told to end, with exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m benchfleet_agent.load", description="The load process.")
    parser.add_argument("--no-kernel-stamps", action="store_true", help="take all stamps at the socket read")
    kernel = not parser.parse_args().no_kernel_stamps
    protocol = take_protocol()
    die_with_parent()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    events = Events(protocol)
    service = Service(events, kernel=kernel)
    commands: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def serve() -> None:
        while (command := commands.get()) is not None:
            service.handle(command)
        service.close()

    # The main thread only reads: whatever happens to a round, the end of stdin and SIGTERM are noticed at once.
    server = threading.Thread(target=serve, name="service", daemon=True)
    server.start()
    try:
        signal.signal(signal.SIGTERM, _stop)
        if read_commands(protocol, commands):
            commands.put(None)
            server.join()
    except Stopped:
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    events.close()
    # Not sys.exit: open streams and their threads end here, whatever their servers do.
    os._exit(0)


def read_commands(protocol: Protocol, commands: queue.SimpleQueue[Message | None]) -> bool:
    """Pass commands on until ``close`` (True) or the end of stdin (False)."""
    while True:
        try:
            command = protocol.receive()
        except ValueError:
            command = {"do": "a line that is no JSON"}
        if command is None:
            return False
        if not isinstance(command, dict):
            command = {"do": str(command)[:100]}
        if command.get("do") == "close":
            return True
        commands.put(command)


def _stop(_signal_number: int, _frame: object) -> NoReturn:
    raise Stopped


if __name__ == "__main__":
    main()
