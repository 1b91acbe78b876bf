"""From the rounds' files to numbers: for each subject and quantity one value a round, then median and range."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEVELS = (1, 4, 8, 16, 32)


@dataclass(frozen=True)
class Value:
    """One quantity over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(values: list[float]) -> "Value | None":
        if not values:
            return None
        return Value(statistics.median(values), min(values), max(values), len(values))


@dataclass
class Row:
    """A subject over all rounds."""

    name: str
    quantities: dict[str, Value]
    errors: list[str]
    complaints: list[str]
    quick: bool
    """Only from a quick pass, with few requests."""
    disturbed: list[str]
    tokens_per_chunk: float
    """The most of any stage: above 1 the server joins tokens, and gaps between chunks are no gaps between tokens."""
    command: str
    answer: str
    llama_bench: list[dict[str, Any]]

    def median(self, quantity: str) -> float | None:
        value = self.quantities.get(quantity)
        return value.median if value else None


def percentile(values: list[float], percent: float) -> float:
    """By linear interpolation between order statistics."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def read_units(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.*.json"))]


def quantities(unit: dict[str, Any]) -> dict[str, float]:
    """What one unit measured, by name."""
    found: dict[str, float] = {}
    if unit.get("starts"):
        found["start_s"] = statistics.median(start["wall_s"] for start in unit["starts"])
    for when in ("memory_after_load", "memory_after_work"):
        if when in unit:
            found[f"rss_mib_{when.removeprefix('memory_')}"] = unit[when]["rss_mib"]
    if "idle" in unit:
        found["idle_percent"] = 100 * unit["idle"]["server_cpu_s"] / unit["idle"]["wall_s"]
    if "model_mib" in unit:
        found["model_mib"] = unit["model_mib"]
    for name, stage in unit["stages"].items():
        if stage["complaint"]:
            continue
        kept = stage["attempts"][-1]
        ttft = [time for time in kept["ttft_ms"] if time is not None]
        tpot = [time for time in kept["tpot_ms"] if time is not None]
        if name == "prefill_512" and ttft:
            found["prefill"] = 1000 * kept["prompt_tokens_asked"] / statistics.median(ttft)
        if name.startswith("clients_"):
            clients = name.removeprefix("clients_")
            found[f"output_{clients}"] = kept["output_tokens_per_s"]
            found[f"ttft_p50_{clients}"] = percentile(ttft, 50)
            found[f"ttft_p95_{clients}"] = percentile(ttft, 95)
        if name in ("clients_1", "context_128", "context_4096") and tpot:
            key = "decode" if name == "clients_1" else f"decode_{name.removeprefix('context_')}"
            found[key] = 1000 / statistics.median(tpot)
    if "decode_128" in found and "decode_4096" in found:
        found["context_slowdown"] = found["decode_128"] / found["decode_4096"]
    return found


def rows(units: list[dict[str, Any]]) -> dict[str, Row]:
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for unit in units:
        by_subject.setdefault(unit["subject"], []).append(unit)
    return {name: row(name, own) for name, own in by_subject.items()}


def row(name: str, units: list[dict[str, Any]]) -> Row:
    values: dict[str, list[float]] = {}
    complaints, disturbed, tokens_per_chunk = [], [], 1.0
    for unit in units:
        for quantity, value in quantities(unit).items():
            values.setdefault(quantity, []).append(value)
        for stage, found in unit["stages"].items():
            if found["complaint"]:
                complaints.append(f"round {unit['round']}, {stage}: {found['complaint']}")
            if found["attempts"][-1]["disturbed"]:
                disturbed.append(f"round {unit['round']}, {stage}")
            tokens_per_chunk = max(tokens_per_chunk, found["attempts"][-1].get("tokens_per_chunk") or 1.0)
    found = {quantity: Value.of(all_values) for quantity, all_values in values.items()}
    return Row(
        name=name,
        quantities={quantity: value for quantity, value in found.items() if value is not None},
        errors=[f"round {unit['round']}: {unit['error']}" for unit in units if unit["error"]],
        complaints=complaints,
        quick=all(unit["quick"] for unit in units),
        disturbed=disturbed,
        tokens_per_chunk=tokens_per_chunk,
        command=next((unit["command"] for unit in units if "command" in unit), ""),
        answer=next((unit["answer"] for unit in units if "answer" in unit), ""),
        llama_bench=next((unit["llama_bench"] for unit in units if unit.get("llama_bench")), []),
    )
