"""Checks a built model by running it, where onnxruntime is installed (foundry-local-sdk brings it)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from benchfleet_agent.reference_model.graph import GRAPH_NAME
from benchfleet_agent.reference_model.weights import Weights

_PROMPT = ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")
_ANSWER = "ĠParis"


def can_run() -> bool:
    """Whether this interpreter has onnxruntime."""
    return importlib.util.find_spec("onnxruntime") is not None


def check(model_dir: Path, weights: Weights) -> None:
    """Run the model on one prompt. Raises `ValueError` when it does not answer as it must.

    A model that knows the words must continue "The capital of France is" with " Paris"; any model must give
    finite logits of the right shape.
    """
    vocabulary = weights.vocabulary
    known = all(word in vocabulary.tokens for word in (*_PROMPT, _ANSWER))
    prompt = [vocabulary.tokens.index(word) for word in _PROMPT] if known else [vocabulary.begin_id, 3, 4, 5]
    logits = _next_token_logits(model_dir, weights, prompt)
    if logits.shape != (1, 1, len(vocabulary.tokens)) or not np.isfinite(logits).all():
        raise ValueError(f"the model's output is wrong: shape {logits.shape}, finite {np.isfinite(logits).all()}")
    answer = vocabulary.tokens[int(logits[0, 0].argmax())]
    if known and answer != _ANSWER:
        raise ValueError(f"the model continues 'The capital of France is' with {answer!r} instead of {_ANSWER!r}")


def _next_token_logits(model_dir: Path, weights: Weights, prompt: list[int]) -> Any:
    """Logits (1, 1, vocabulary) after ``prompt``, with an empty key-value cache."""
    import onnxruntime  # its module does not say what it exports

    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined, unused-ignore]
    options.log_severity_level = 3  # warnings about initializers that the optimiser folds say nothing here
    session = onnxruntime.InferenceSession(  # type: ignore[attr-defined, unused-ignore]
        str(model_dir / GRAPH_NAME), options, providers=["CPUExecutionProvider"]
    )
    sizes = weights.architecture
    empty = np.zeros((1, sizes.kv_heads, 0, sizes.head_size), np.float32)
    feeds = {entry.name: empty for entry in session.get_inputs() if entry.name.startswith("past_key_values")}
    tokens = np.array([prompt], np.int64)
    return session.run(["logits"], {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **feeds})[0]
