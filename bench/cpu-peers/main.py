"""Compares powertrain with other servers on this machine's CPUs: `run.sh --help`."""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import machine
import prompts
import report
from prepare import prepare
from scratch import REPOSITORY, Scratch
from server import Server, free_port
from stages import ATTEMPTS_MAX, all_stages
from subjects import SUBJECTS, subjects_named
from unit import Unit


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("steps", nargs="*", default=["prepare", "measure", "report"], help="some of: prepare measure report")
    parser.add_argument("--scratch", type=Path, default=Scratch.default_root(), help="folder for peers, models and results")
    parser.add_argument(
        "--binary", type=Path, default=REPOSITORY / "target" / "release" / "powertrain", help="ours, built before"
    )
    parser.add_argument("--only", default="", help="subjects or groups, comma-separated: " + ", ".join(s.name for s in SUBJECTS))
    parser.add_argument("--rounds", type=int, default=3, help="each round starts and measures every subject once")
    parser.add_argument("--quick", action="store_true", help="fewer requests, 1, 8 and 32 clients, no repeats")
    parser.add_argument(
        "--no-extras", action="store_true", help="without what peers do in the first round only: 4,096 tokens, llama-bench"
    )
    parser.add_argument("--run", default="latest", help="name of the run: results lie in SCRATCH/results/RUN")
    parser.add_argument("--resume", action="store_true", help="go on with a run: leave out what has a result")
    parser.add_argument("--units", type=int, default=1_000_000, help="end after so many servers; go on with --resume")
    parser.add_argument("--output", type=Path, help="where report writes its Markdown and raw data [default: the run's folder]")
    chosen = parser.parse_args()
    unknown = set(chosen.steps) - {"prepare", "measure", "report"}
    if unknown:
        parser.error(f"{', '.join(unknown)}: steps are prepare, measure, report")
    return chosen


def make_prompts(scratch: Scratch, binary: Path) -> None:
    """Counted by our own server's tokenizer; every peer's usage is checked against it afterwards."""
    for name, model in (("smollm2", "q4_1.gguf"), ("gemma3", "gemma3.gguf")):
        folder = scratch.prompts / name
        if folder.exists() or not (scratch.models / model).exists():
            continue
        partial = folder.with_suffix(".partial")
        partial.mkdir(parents=True, exist_ok=True)
        port = free_port()
        command = [str(binary), "serve", str(scratch.models / model), "--port", str(port), "--served-model-name", "model"]
        with Server(command, port, {}, scratch.logs / f"prompts-{name}.log") as server:
            server.first_answer(60)
            count = prompts.tokenize_by(port)
            words, overhead = prompts.one_token_words(count)
            for stage in all_stages():
                for attempt in range(ATTEMPTS_MAX):
                    path = partial / stage.prompts_file(attempt)
                    prompts.write(path, words, overhead, stage.prompt_tokens, stage.requests + stage.warmup, count)
        partial.rename(folder)


def measure(chosen: argparse.Namespace, scratch: Scratch) -> None:
    if not chosen.binary.exists():
        raise SystemExit(f"{chosen.binary} is not there: cargo build --release, or name one with --binary")
    make_prompts(scratch, chosen.binary)
    folder = scratch.root / "results" / chosen.run
    folder.mkdir(parents=True, exist_ok=True)
    wanted = subjects_named([name for name in chosen.only.split(",") if name])
    (folder / "machine.json").write_text(json.dumps(machine.facts(scratch, chosen.binary), indent=1) + "\n", encoding="utf-8")
    units_left = chosen.units
    for number in range(1, chosen.rounds + 1):
        # Another order each round: nobody always comes after the same neighbour.
        shift = (number - 1) * 3 % len(wanted)
        for subject in wanted[shift:] + wanted[:shift]:
            unit = Unit(scratch, chosen.binary, subject, number, folder, chosen.quick, not chosen.no_extras)
            if chosen.resume and unit.path.exists():
                continue
            if units_left == 0:
                return
            units_left -= 1
            began = time.monotonic()
            result = unit.measure()
            print(f"{subject.name} round {number}, {time.monotonic() - began:.0f} s: {report.one_line(result)}", flush=True)


def main() -> None:
    # A server under test must not outlive its harness.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = arguments()
    scratch = Scratch(chosen.scratch.resolve())
    if "prepare" in chosen.steps:
        prepare(scratch)
    if "measure" in chosen.steps:
        measure(chosen, scratch)
    if "report" in chosen.steps:
        folder = scratch.root / "results" / chosen.run
        report.write(folder, chosen.output or folder)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
