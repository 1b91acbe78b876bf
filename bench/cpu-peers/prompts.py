"""Prompts of an exact length: common words of one token each, counted by our server's /tokenize, and by each peer's usage afterwards.

Each stage has its own, all different from the second word on, so that no prefix cache helps anyone.
"""

import json
import random
import urllib.request
from collections.abc import Callable
from pathlib import Path

from scratch import REPOSITORY

FIRST_WORD = "the"
WORDS = REPOSITORY / "crates" / "load" / "src" / "work" / "words.txt"
Count = Callable[[str], int]


def tokenize_by(port: int) -> Count:
    def count(text: str) -> int:
        body = json.dumps({"model": "model", "prompt": text}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(json.load(response)["count"])

    return count


def one_token_words(count: Count) -> tuple[list[str], int]:
    """The words, and how many tokens are added around a text."""
    overhead = count(FIRST_WORD) - 1
    words = [word for word in WORDS.read_text(encoding="utf-8").split() if count(f"{FIRST_WORD} {word}") == overhead + 2]
    if len(words) < 100:
        raise SystemExit(f"only {len(words)} words are one token each; prompts of an exact length need 100")
    return words, overhead


def write(path: Path, words: list[str], overhead: int, tokens: int, number: int, count: Count) -> None:
    """A file for `powertrain bench --prompts`."""
    draw = random.Random(path.name)
    lines = []
    for _ in range(number):
        text = " ".join([FIRST_WORD, *(draw.choice(words) for _ in range(tokens - overhead - 1))])
        if count(text) != tokens:
            raise SystemExit(f"a prompt made for {tokens} tokens has {count(text)}")
        lines.append(json.dumps({"prompt": text}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
