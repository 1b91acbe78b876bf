"""Our own compiled client, and what is kept of its result."""

import json
import subprocess
from pathlib import Path
from typing import Any

from stages import Stage


class ClientError(Exception):
    """It could not measure; the text is what the report says."""


def measure(binary: Path, port: int, stage: Stage, prompts: Path, seed: int, output: Path) -> dict[str, Any]:
    """Runs one stage. One connection for each request: llama.cpp promises to keep one open and then closes it."""
    command = [
        *(str(binary), "bench", f"http://127.0.0.1:{port}", "--endpoint", "completions", "--model", "model"),
        *("--prompts", str(prompts), "--max-tokens", str(stage.output_tokens), "--ignore-eos"),
        *("--concurrency", str(stage.clients), "--num-requests", str(stage.requests), "--warmup", str(stage.warmup)),
        *("--no-keep-alive", "--client-threads", "1", "--seed", str(seed), "--timeout", "300", "--output", str(output)),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0 or not output.exists():
        raise ClientError(run.stderr.strip()[-400:])
    return reduced(json.loads(output.read_text(encoding="utf-8")), events(output), stage)


def events(output: Path) -> list[dict[str, Any]]:
    """The measured requests, one by one."""
    lines = output.with_suffix(".events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if not event["warmup"]]


def reduced(result: dict[str, Any], requests: list[dict[str, Any]], stage: Stage) -> dict[str, Any]:
    """Counts, rates and each request's times; an answer of the wrong length is a failure that the report shows."""
    summary = result["levels"][0]["summary"]
    completed = [request for request in requests if request.get("failure") is None]
    ttft, tpot = [], []
    for request in completed:
        gaps = request["chunk_gaps_us"]
        ttft.append(round(gaps[0] / 1000, 2) if gaps else None)
        tokens = request["usage"]["completion_tokens"] if request.get("usage") else len(gaps)
        spent_ms = (request["last_event_us"] - request["scheduled_us"] - gaps[0]) / 1000 if gaps else 0
        tpot.append(round(spent_ms / (tokens - 1), 3) if tokens > 1 else None)
    return {
        "requests": summary["requests"]["sent"],
        "completed": summary["requests"]["completed"],
        "failures": summary["failures"],
        "window_s": round(summary["window_s"], 3),
        "output_tokens_per_s": round(summary["throughput"]["output_tokens_per_s"], 2),
        "output_tokens_estimated": summary["throughput"]["estimated"],
        "prompt_tokens_counted": summary["prompts"]["counted_mean"],
        "prompt_tokens_asked": stage.prompt_tokens,
        "answers_at_limit": summary["outputs"]["at_limit"],
        "content_chunks": summary["chunks"]["count"],
        "tokens_per_chunk": summary["chunks"]["tokens_per_chunk"],
        "cached_share": summary["prompts"]["cached_share"],
        "client_limited": result["levels"][0]["client"]["client_limited"],
        "ttft_ms": ttft,
        "tpot_ms": tpot,
    }


def complaint(kept: dict[str, Any]) -> str | None:
    """What is wrong with a stage's answers, if anything."""
    if kept["completed"] < kept["requests"]:
        examples = "; ".join(f"{name}: {failure['example']}" for name, failure in kept["failures"].items())
        return f"{kept['completed']} of {kept['requests']} requests completed ({examples})"
    if kept["answers_at_limit"] < kept["completed"]:
        return f"{kept['answers_at_limit']} of {kept['completed']} answers have the length asked for"
    if kept["prompt_tokens_counted"] is not None and kept["prompt_tokens_counted"] != kept["prompt_tokens_asked"]:
        return f"the server counts {kept['prompt_tokens_counted']} prompt tokens in place of {kept['prompt_tokens_asked']}"
    return None
