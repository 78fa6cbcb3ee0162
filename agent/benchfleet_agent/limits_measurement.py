"""A child process that measures what this machine can do at most: ``python -m benchfleet_agent.limits_measurement``.

Memory: threads take dot products of arrays far larger than any cache, which reads every byte once and hardly computes.
Compute: threads multiply matrices that fit the caches (single precision; one multiply and one add are two operations).
The best of several passes counts: others can only take away. Numpy gives up the interpreter's lock in both, and its
BLAS is held to one thread, so threads are ours to count. One line of JSON goes to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

METHOD = "dot products and matrix products by numpy's BLAS, best of 3 passes of 0.25 s"
_PASSES, _PASS_S = 3, 0.25
_MOST_BYTES = 1 << 30
_LEAST_BYTES = 64 << 20
_MATRIX = 512
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def thread_counts(processors: int) -> tuple[int, ...]:
    """How many threads to try: all processors, and half of them, for two on one core may disturb each other."""
    return (processors,) if processors == 1 else (processors, max(1, processors // 2))


def array_bytes(available_bytes: int, threads: int) -> int:
    """Size of each of a thread's two arrays: all together a gibibyte, or an eighth of the memory that is free."""
    total = max(_LEAST_BYTES, min(_MOST_BYTES, available_bytes // 8))
    return max(1 << 20, total // (2 * threads))


def rate(works: list[Callable[[], float]]) -> float:
    """Work per second of all functions, each repeated on its own thread for one pass; each returns what it did."""
    barrier = threading.Barrier(len(works) + 1)
    done = [0.0] * len(works)
    ends = [0.0] * len(works)

    def repeat(place: int) -> None:
        barrier.wait()
        deadline = time.perf_counter() + _PASS_S
        while time.perf_counter() < deadline:
            done[place] += works[place]()
        ends[place] = time.perf_counter()

    threads = [threading.Thread(target=repeat, args=(place,)) for place in range(len(works))]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(amount / (end - begun) for amount, end in zip(done, ends, strict=True))


def main() -> int:
    """Measure and print; the arguments are the processors to keep to (none: all)."""
    for name in _BLAS_THREADS:
        os.environ[name] = "1"
    import numpy as np
    import psutil

    if len(sys.argv) > 1 and sys.platform != "darwin":
        psutil.Process().cpu_affinity([int(one) for one in sys.argv[1:]])
    processors = len(sys.argv) - 1 or os.cpu_count() or 1
    available = psutil.virtual_memory().available

    def reading(count: int) -> Callable[[], float]:
        first, second = np.ones(count, np.float32), np.ones(count, np.float32)

        def read() -> float:
            np.dot(first, second)
            return 8.0 * count

        return read

    def multiplying() -> Callable[[], float]:
        left, right = np.ones((_MATRIX, _MATRIX), np.float32), np.ones((_MATRIX, _MATRIX), np.float32)
        product = np.empty((_MATRIX, _MATRIX), np.float32)

        def multiply() -> float:
            np.matmul(left, right, out=product)
            return 2.0 * _MATRIX**3

        return multiply

    bandwidth: dict[int, float] = {}
    for threads in thread_counts(processors):
        works = [reading(array_bytes(available, threads) // 4) for _ in range(threads)]
        bandwidth[threads] = max(rate(works) for _ in range(_PASSES))
    compute: dict[int, float] = {}
    for threads in thread_counts(processors):
        works = [multiplying() for _ in range(threads)]
        compute[threads] = max(rate(works) for _ in range(_PASSES))
    found: dict[str, Any] = {
        "memory_bandwidth_bytes_per_s": max(bandwidth.values()),
        "compute_flop_per_s": max(compute.values()),
        "thread_count": max(bandwidth, key=lambda threads: bandwidth[threads]),
        "method": METHOD,
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
