"""The process that counts tokens: ``python -m benchfleet_agent.load.token_counter``.

JSON lines on stdin and stdout. The first says by what to count: ``{"path": …}``, a ``tokenizer.json``, or ``{"url": …,
"model": …, "api_key": …}``, a server that takes ``{"content": …}`` and answers ``{"tokens": […]}`` as llama.cpp's does
(https://github.com/ggml-org/llama.cpp/tree/master/tools/server, ``POST /tokenize``). It answers ``ready``, or
``failed{message}`` and ends; then each ``{"text": …}`` with ``tokens{count}`` or ``failed{message}``. The end of stdin
is its end. It imports little, for its memory counts as the load process's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

NICENESS = 10
ASK_S = 10.0
_MOST_BYTES = 1 << 26


def say(event: str, **fields: Any) -> None:
    """Write one event."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def file_counter(path: str) -> Callable[[str], int]:
    """What counts with a ``tokenizer.json``. Raises whatever the library raises."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(path)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def server_counter(source: Mapping[str, str]) -> Callable[[str], int]:
    """What has a server count; asked once, to see that it does. Raises OSError or ValueError."""
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None  # the text and the key are for this server alone

    # No proxy: a tokenizer is never further away than the server that is measured.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {source['api_key']}"}

    def count(text: str) -> int:
        # Routers choose the model by its name; special tokens would be counted that no text holds.
        body = json.dumps({"model": source["model"], "content": text, "add_special": False}).encode()
        with opener.open(urllib.request.Request(source["url"], body, headers), timeout=ASK_S) as answer:  # noqa: S310
            said = json.loads(answer.read(_MOST_BYTES))
        tokens = said.get("tokens") if isinstance(said, dict) else None
        if not isinstance(tokens, list):
            raise ValueError("the answer holds no list of tokens")
        return len(tokens)

    if not count("one two three"):
        raise ValueError("it found no token in a text")
    return count


def main() -> None:
    """Make the counter and count until nobody asks any more."""
    if sys.platform != "win32":
        os.nice(NICENESS)
    source = json.loads(sys.stdin.readline() or "{}")
    try:
        count = file_counter(source["path"]) if "path" in source else server_counter(source)
    except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
        say("failed", message=str(error))
        return
    say("ready")
    for line in sys.stdin:
        text = json.loads(line)["text"].encode("utf-8", "replace").decode()  # half a surrogate pair cannot be encoded
        try:
            say("tokens", count=count(text))
        except Exception as error:  # noqa: BLE001 (as above)
            say("failed", message=str(error))


if __name__ == "__main__":
    main()
