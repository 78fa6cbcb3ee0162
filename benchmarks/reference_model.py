"""Decode and prefill speed of two or more ONNX Runtime GenAI model directories, alternated in one process.

How docs/reference-model.md compares the reference model with what ONNX Runtime GenAI's own builder makes of the
same weights. Needs an environment of its own with ``pip install onnxruntime-genai==0.18.0``:

    python benchmarks/reference_model.py OURS THEIRS … --rounds 20

Every round visits every model once, so that drift of the machine hits all alike; the order is turned from round
to round. Ratios are against the first directory, of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import onnxruntime_genai as genai  # type: ignore[import-untyped, import-not-found, unused-ignore]  # has no types

_TEXT = "The history of computing is longer than the history of computing machinery, and it began with counting. "


@dataclass(frozen=True, slots=True)
class Speed:
    """One answer's speed, in tokens per second."""

    prefill: float
    decode: float


def measure(model: genai.Model, prompt: list[int], new_tokens: int) -> Speed:
    """Answer ``prompt`` greedily with exactly ``new_tokens`` tokens (the end token is forbidden)."""
    parameters = genai.GeneratorParams(model)
    length = len(prompt) + new_tokens
    parameters.set_search_options(do_sample=False, max_length=length, min_length=length)
    generator = genai.Generator(model, parameters)
    begun = time.perf_counter_ns()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    first = time.perf_counter_ns()
    for _ in range(new_tokens - 1):
        generator.generate_next_token()
    last = time.perf_counter_ns()
    return Speed(len(prompt) * 1e9 / (first - begun), (new_tokens - 1) * 1e9 / (last - first))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    models = {path: genai.Model(str(path)) for path in arguments.directories}
    tokenizer = genai.Tokenizer(models[arguments.directories[0]])
    prompt = list(tokenizer.encode(_TEXT * arguments.prompt_tokens))[: arguments.prompt_tokens]
    speeds: dict[Path, list[Speed]] = {path: [] for path in models}
    for number in range(arguments.rounds + 1):
        for path in arguments.directories if number % 2 else reversed(arguments.directories):
            speed = measure(models[path], prompt, arguments.new_tokens)
            if number:  # the first round warms up
                speeds[path].append(speed)
    base = speeds[arguments.directories[0]]
    print(f"{arguments.rounds} rounds, {len(prompt)} + {arguments.new_tokens} tokens; median (min to max)")
    for path, own in speeds.items():
        for quantity in ("decode", "prefill"):
            values = [getattr(speed, quantity) for speed in own]
            pairs = zip(values, (getattr(speed, quantity) for speed in base), strict=True)
            ratios = [value / reference for value, reference in pairs]
            print(
                f"{path}: {quantity} {statistics.median(values):.1f} tokens/s ({min(values):.1f} to {max(values):.1f}),"
                f" ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            )


if __name__ == "__main__":
    main()
