"""The process that counts tokens: ``python -m benchfleet_agent.load.token_counter PATH``.

JSON lines on stdin and stdout: it answers ``{"text": …}`` with ``tokens{count}``; ``ready`` comes first, or
``failed{message}`` and the end. The end of stdin is its end. It imports little, for its memory counts as the load
process's.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

NICENESS = 10


def say(event: str, **fields: Any) -> None:
    """Write one event."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def main(path: str) -> None:
    """Read the tokenizer and count until nobody asks any more."""
    if sys.platform != "win32":
        os.nice(NICENESS)
    try:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
        say("failed", message=str(error))
        return
    say("ready")
    for line in sys.stdin:
        text = json.loads(line)["text"].encode("utf-8", "replace").decode()  # half a surrogate pair cannot be encoded
        say("tokens", count=len(tokenizer.encode(text, add_special_tokens=False)))


if __name__ == "__main__":
    main(sys.argv[1])
