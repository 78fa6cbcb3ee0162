"""The agent, but its sampling rests from one signal to the next: for what sampling alone costs (`overhead.py`).

python -m benchmarks.pausable_agent serve …
"""

from __future__ import annotations

import signal
import sys
import threading

from benchfleet_agent.__main__ import main
from benchfleet_agent.sampler import Sampler

SAMPLE, REST = signal.SIGUSR1, signal.SIGUSR2

_awake = threading.Event()
_tick = Sampler.tick


def _tick_when_awake(self: Sampler, generation: int | None = None) -> int:
    _awake.wait()
    return _tick(self, generation)


def _serve() -> int:
    _awake.set()
    signal.signal(SAMPLE, lambda *_: _awake.set())
    signal.signal(REST, lambda *_: _awake.clear())
    Sampler.tick = _tick_when_awake  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    sys.exit(_serve())
