"""What is asked of each server: a closed loop of some clients, or a lone prompt."""

from dataclasses import dataclass

ATTEMPTS_MAX = 3
"""A disturbed run is repeated until it was the last of these."""


@dataclass(frozen=True)
class Stage:
    name: str
    clients: int
    prompt_tokens: int
    output_tokens: int
    requests: int
    warmup: int = 0

    def prompts_file(self, attempt: int) -> str:
        """Each attempt has its own prompts: none may be in a cache that the one before left."""
        return f"{self.prompt_tokens}-{self.name}-{attempt}.jsonl"


def load_stage(clients: int, quick: bool) -> Stage:
    """128 tokens in, 64 out; at least two waves, so that answers and new prompts mix as they do in service."""
    requests = {1: 5, 4: 8, 8: 16, 16: 32, 32: 64}[clients]
    if quick:
        requests = {1: 2, 4: 4, 8: 8, 16: 16, 32: 32}[clients]
    return Stage(f"clients_{clients}", clients, 128, 64, requests, warmup=1 if clients == 1 else 0)


def prefill_stage(quick: bool) -> Stage:
    return Stage("prefill_512", 1, 512, 1, 2 if quick else 4, warmup=1)


def long_stage(quick: bool) -> Stage:
    return Stage("context_4096", 1, 4096, 64, 1 if quick else 2)


def short_stage(quick: bool) -> Stage:
    """Beside the long one, on the same server: the same answer at 128 tokens of context."""
    return Stage("context_128", 1, 128, 64, 2 if quick else 5, warmup=1)


def all_stages() -> list[Stage]:
    loads = [load_stage(clients, quick=False) for clients in (1, 4, 8, 16, 32)]
    return [prefill_stage(False), *loads, long_stage(False), short_stage(False)]
