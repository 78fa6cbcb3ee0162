"""Text out of common words: prefixes that no cache has seen, and prompts of a wanted length. Pure.

Every word here is one token in the usual vocabularies, alone and after a space, so that text of n words has n tokens.
Where a vocabulary differs, the server's own count says so (`benchfleet_agent.case_run` asks it).
"""

from __future__ import annotations

import random

_WORDS = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work number night point home water room mother area money
    story fact month lot right study book eye job word business issue side kind head house service friend father power
    hour game line end member law car city community name president team minute idea body information back parent face
    level office door health person art war history party result change reason research girl moment air teacher force
    education
"""
WORDS = tuple(_WORDS.split())
PREFIX_WORDS = 6
"""95^6 prefixes: two equal ones are not to be expected in any run."""


def prefix(seed: str, position: int) -> str:
    """Words to put before the prompt at a position; the same seed and position give the same words."""
    return text(PREFIX_WORDS, f"{seed}/{position}") + "\n\n"


def text(word_count: int, seed: str) -> str:
    """So many words with spaces between them; the same seed gives the same words."""
    return " ".join(random.Random(seed).choices(WORDS, k=word_count))
