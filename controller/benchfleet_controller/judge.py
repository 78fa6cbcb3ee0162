"""A model as the judge of answers: one question an answer, over an OpenAI-compatible server.

A judge has tastes and errors of its own. Its scores are kept apart under its name, with what it said, and compare
answers with each other; they are no truth. Nothing here is timed.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from benchfleet_controller.quality import Score

KEY_VARIABLE = "BENCHFLEET_JUDGE_API_KEY"
"""The environment variable with the judge's key; a key is no option, so that no history shows it."""
TIMEOUT_S = 120.0
LEAST, MOST = 1, 5
RUBRIC = (
    "You grade answers of a language model. Given a question and an answer, judge whether the answer is correct, "
    "complete and to the point.\nGrades: 1 wrong or no answer, 2 mostly wrong, 3 half right, 4 right with small flaws, "
    "5 right and complete.\nReply with the grade alone, one digit."
)
RUBRIC_VERSION = 1
_MAXIMUM_REPLY_BYTES = 1 << 20
_MAXIMUM_ANSWER = 20_000


class JudgeError(Exception):
    """The judge cannot be asked at all; says what to do."""


@dataclass(frozen=True, slots=True)
class Judge:
    """A model behind a URL."""

    url: str
    """Base URL of the API, with ``/v1``."""
    model: str
    api_key: str = field(default="not-needed", repr=False)

    @classmethod
    def at(cls, url: str, model: str) -> Judge:
        """A judge, with the key the environment holds. Raises `JudgeError` for what is no URL."""
        if not re.match(r"https?://[^\s@]+$", url):
            raise JudgeError(f"--judge takes a URL such as http://127.0.0.1:8080/v1, not {url!r}")
        base = url.rstrip("/")
        base = base if re.search(r"/v\d+$", base) else base + "/v1"
        return cls(base, model, os.environ.get(KEY_VARIABLE, "").strip() or "not-needed")

    @property
    def name(self) -> str:
        """The scorer's name in the table ``scores``."""
        return f"judge:{self.model}"

    def score(self, question: str, answer: str) -> Score:
        """The judge's grade as a score: 1 is 0, 5 is 1. Raises `JudgeError` when it cannot be asked."""
        reply = self._ask(f"Question:\n{question}\n\nAnswer:\n{answer[:_MAXIMUM_ANSWER]}\n\nGrade (1 to 5):")
        return grade(reply)

    def _ask(self, text: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": RUBRIC}, {"role": "user", "content": text}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": 16,
        }
        request = urllib.request.Request(  # noqa: S310 - http and https only, checked in `at`
            f"{self.url}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
                document: Any = json.loads(response.read(_MAXIMUM_REPLY_BYTES))
            return str(document["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            detail = error.read(500).decode("utf-8", "replace").replace(self.api_key, "…")
            raise JudgeError(f"the judge at {self.url} answered {error.code}: {detail}") from None
        except (OSError, http.client.HTTPException) as error:
            raise JudgeError(f"the judge at {self.url} cannot be asked: {error}; is the server running?") from None
        except (ValueError, KeyError, IndexError, TypeError):
            raise JudgeError(f"the server at {self.url} is not OpenAI-compatible: its answer has no choices") from None


def grade(reply: str) -> Score:
    """The score in a judge's reply: its first number from 1 to 5 that stands alone. None: there is no such number."""
    found = re.search(r"(?<![\d.])([1-5])(?![\d.]*\d)", reply)
    if found is None:
        return Score(None, reason=f"the judge gave no grade but {reply.strip()[:80]!r}")
    return Score((int(found[1]) - LEAST) / (MOST - LEAST))
