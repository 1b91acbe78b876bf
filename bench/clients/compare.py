#!/usr/bin/env python3
"""Measures one local server with several clients in turn and compares what they say.

    python3 compare.py --powertrain target/release/powertrain --model MODEL.gguf --tokenizer FOLDER \
        --vllm VENV --aiperf VENV --guidellm VENV --out FOLDER

Every client sends the same prompts, to /v1/completions, with the same number of clients, temperature 0 and exactly OUTPUT
tokens. One server answers all of them, one client after the other, and keeps no prefixes, so that all find it alike; with
--server-cpus and --client-cpus no client takes time from it. Clients take turns, ROUNDS times, another one first in each round.
The table has the median over rounds of what each client says and its range, and the median and range of its ratio to ours in the
same round; what the server's own histograms say of the very same requests stands beside it. A server is not equally fast in two
runs, less so where a client takes CPU time from it: the last rows compare clients by how much each says over what the server
says of that client's own run. FOLDER gets each client's own files
and `summary.json`; the table goes to standard output. A client whose virtual environment is not given is left out. Standard
library only.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

WORDS = Path(__file__).parents[2].joinpath("crates", "load", "src", "work", "words.txt").read_text().split()


class Setup:
    def __init__(self, arguments):
        self.__dict__.update(vars(arguments))
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = "served"
        self.out = Path(self.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.prompts = self.out / "prompts.jsonl"
        draw = random.Random(self.seed)
        texts = ["the " + " ".join(draw.choice(WORDS) for _ in range(self.words - 1)) for _ in range(self.requests)]
        lines = [{"prompt": text, "text": text, "output_tokens": self.output} for text in texts]
        self.prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def serve(self):
        command = [self.powertrain, "serve", self.model, "--served-model-name", self.name, "--port", str(self.port)]
        command += ["--no-enable-prefix-caching", "--threads", str(self.threads)]
        command = self.pinned(self.server_cpus, command)
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(self.out / "server.log", "a"))
        for _ in range(3000):
            try:
                urllib.request.urlopen(self.url + "/v1/models", timeout=1)
                break
            except OSError:
                if server.poll() is not None:
                    break
                time.sleep(0.1)
        if server.poll() is not None:
            sys.exit(f"the server ended: see {self.out}/server.log")
        # One request warms it up, whichever client comes next.
        body = json.dumps({"model": self.name, "prompt": "the day", "max_tokens": 8}).encode()
        request = urllib.request.Request(self.url + "/v1/completions", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=60).read()
        return server

    def pinned(self, cpus, command):
        return ["taskset", "-c", cpus, *command] if cpus else command

    def truth(self):
        """Sums and counts of the server's histograms."""
        text = urllib.request.urlopen(self.url + "/metrics", timeout=60).read().decode()
        found = {}
        for line in text.splitlines():
            name, _, rest = line.partition("{")
            if name.startswith("vllm:") and name.endswith(("_sum", "_count")):
                found[name.removeprefix("vllm:")] = float(rest.rpartition("}")[2])
        return found


def between(before, after):
    """What the server says of the requests between two looks."""
    grown = {name: after[name] - before[name] for name in after}
    mean_ms = lambda name: 1e3 * grown[f"{name}_sum"] / grown[f"{name}_count"]
    return {
        "server_requests": grown["e2e_request_latency_seconds_count"],
        "server_ttft_ms": mean_ms("time_to_first_token_seconds"),
        "server_tpot_ms": mean_ms("request_time_per_output_token_seconds"),
        "server_e2e_ms": mean_ms("e2e_request_latency_seconds"),
    }


def run(setup, command, log, cwd):
    command = setup.pinned(setup.client_cpus, [str(part) for part in command])
    with open(log, "w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, timeout=900)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed with {done.returncode}: see {log}")


def mean(values):
    values = [value for value in values if value is not None]
    return statistics.fmean(values) if values else None


def powertrain(setup, folder):
    result = folder / "run.json"
    run(
        setup,
        [setup.powertrain, "bench", setup.url, "--endpoint", "completions", "--model", setup.name]
        + ["--prompts", setup.prompts, "--concurrency", setup.concurrency, "--num-requests", setup.requests, "--warmup", 0]
        + ["--max-tokens", setup.output, "--ignore-eos", "--client-threads", 1, "--loop-ms", 0, "--seed", 1, "-o", result],
        folder / "log",
        folder,
    )
    summary = json.loads(result.read_text())["levels"][0]["summary"]
    latency = summary["latency"]
    return {
        "completed": summary["requests"]["completed"],
        "output_tokens": summary["outputs"]["total"],
        "prompt_tokens": round(summary["prompts"]["counted_mean"] * summary["requests"]["completed"]),
        "ttft_ms": latency["ttft_ms"]["mean"],
        "tpot_ms": latency["tpot_ms"]["mean"],
        "tpot_with_first_ms": latency["tpot_with_first_ms"]["mean"],
        "chunk_gap_ms": latency["itl_ms"]["mean"],
        "e2e_ms": latency["e2e_ms"]["mean"],
        "requests_per_s": summary["throughput"]["requests_per_s"],
    }


def vllm(setup, folder):
    run(
        setup,
        [Path(setup.vllm) / "bin/python", "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"]
        + ["--base-url", setup.url, "--endpoint", "/v1/completions", "--model", setup.name, "--tokenizer", setup.tokenizer]
        + ["--dataset-name", "custom", "--dataset-path", setup.prompts, "--custom-output-len", setup.output]
        + ["--skip-chat-template", "--disable-shuffle", "--num-prompts", setup.requests, "--ignore-eos", "--temperature", 0]
        + ["--max-concurrency", setup.concurrency, "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result"]
        + ["--save-detailed", "--result-dir", folder, "--result-filename", "run.json"],
        folder / "log",
        folder,
    )
    result = json.loads((folder / "run.json").read_text())
    return {
        "completed": result["completed"],
        "output_tokens": result["total_output_tokens"],
        "prompt_tokens": result["total_input_tokens"],
        "ttft_ms": result["mean_ttft_ms"],
        "tpot_ms": result["mean_tpot_ms"],
        "chunk_gap_ms": result["mean_itl_ms"],
        "e2e_ms": result["mean_e2el_ms"],
        "requests_per_s": result["request_throughput"],
    }


def aiperf(setup, folder):
    run(
        setup,
        [Path(setup.aiperf) / "bin/aiperf", "profile", "--model", setup.name, "--url", setup.url]
        + ["--endpoint-type", "completions", "--streaming", "--input-file", setup.prompts]
        + ["--custom-dataset-type", "single_turn", "--concurrency", setup.concurrency, "--request-count", setup.requests]
        + ["--tokenizer", setup.tokenizer, "--use-server-token-count", "--ui", "none", "--output-artifact-dir", folder]
        + ["--extra-inputs", f"max_tokens:{setup.output}", "--extra-inputs", "ignore_eos:true"]
        + ["--extra-inputs", "temperature:0", "--no-gpu-telemetry", "--no-server-metrics"],
        folder / "log",
        folder,
    )
    result = json.loads(next(folder.glob("**/profile_export_aiperf.json")).read_text())
    value = lambda name: (result.get(name) or {}).get("avg")
    count = value("request_count")
    return {
        "completed": round(count),
        "output_tokens": round(count * value("output_sequence_length")),
        "prompt_tokens": round(count * value("input_sequence_length")),
        "ttft_ms": value("time_to_first_token"),
        "tpot_ms": value("inter_token_latency"),
        "chunk_gap_ms": value("inter_chunk_latency"),
        "e2e_ms": value("request_latency"),
        "requests_per_s": value("request_throughput"),
    }


def guidellm(setup, folder):
    extras = {"body": {"ignore_eos": True, "temperature": 0, "max_tokens": setup.output}}
    backend = {"kind": "openai_http", "target": setup.url, "model": setup.name, "request_format": "/v1/completions"}
    backend |= {"extras": extras, "http2": False}
    mappings = {"text_column": "prompt", "output_tokens_count_column": "output_tokens"}
    run(
        setup,
        [Path(setup.guidellm) / "bin/guidellm", "run", "--backend", json.dumps(backend)]
        + ["--profile", json.dumps({"kind": "concurrent", "streams": [setup.concurrency]})]
        + ["--constraint", json.dumps({"kind": "max_requests", "count": setup.requests})]
        + ["--tokenizer", json.dumps({"kind": "hf_auto", "model": str(setup.tokenizer)})]
        + ["--data", json.dumps({"kind": "json_file", "path": str(setup.prompts)})]
        + ["--data-column-mapper", json.dumps({"kind": "generative_column_mapper", "column_mappings": mappings})]
        + ["--output", json.dumps({"kind": "json", "path": str(folder / "run.json")}), "--disable-console"],
        folder / "log",
        folder,
    )
    benchmark = json.loads((folder / "run.json").read_text())["benchmarks"][0]
    metrics = benchmark["metrics"]
    value = lambda name: metrics[name]["successful"]["mean"]
    completed = metrics["request_totals"]["successful"]
    return {
        "completed": completed,
        "output_tokens": round(completed * value("output_token_count")),
        "prompt_tokens": round(completed * value("prompt_token_count")),
        "ttft_ms": value("time_to_first_token_ms"),
        "tpot_ms": value("inter_token_latency_ms"),
        "tpot_with_first_ms": value("time_per_output_token_ms"),
        "e2e_ms": value("request_latency") * 1e3,
        "requests_per_s": value("requests_per_second"),
    }


CLIENTS = {"powertrain": powertrain, "vllm": vllm, "aiperf": aiperf, "guidellm": guidellm}
COUNTS = ["completed", "prompt_tokens", "output_tokens", "server_requests"]
MEASURES = {
    "ttft_ms": "TTFT, ms",
    "tpot_ms": "TPOT, ms",
    "tpot_with_first_ms": "E2E / tokens, ms",
    "chunk_gap_ms": "gap between chunks, ms",
    "e2e_ms": "E2E, ms",
    "requests_per_s": "requests/s",
    "server_ttft_ms": "TTFT by the server, ms",
    "server_tpot_ms": "TPOT by the server, ms",
    "server_e2e_ms": "E2E by the server, ms",
}


# Latencies that the server tells, too.
BOTH_TELL = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "e2e_ms": "E2E"}


def spread(values, form):
    """The median and the range."""
    middle = form(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form(min(values))} to {form(max(values))})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--powertrain", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True, type=lambda path: str(Path(path).resolve()))
    for name in ["vllm", "aiperf", "guidellm"]:
        parser.add_argument(f"--{name}", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--out", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-round", type=int, default=0, help="number of the first: adds rounds to an earlier call's")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--words", type=int, default=512)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of the server: the other CPUs are for the clients")
    parser.add_argument("--server-cpus", help="the server runs on these, as taskset -c takes them")
    parser.add_argument("--client-cpus", help="and the clients on these")
    parser.add_argument("--port", type=int, default=18777)
    parser.add_argument("--seed", type=int, default=7)
    setup = Setup(parser.parse_args())
    clients = {name: client for name, client in CLIENTS.items() if name == "powertrain" or getattr(setup, name)}
    server = setup.serve()
    try:
        for number in range(setup.first_round, setup.first_round + setup.rounds):
            names = list(clients)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                folder = setup.out / f"{name}.{number}"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                before = setup.truth()
                numbers = clients[name](setup, folder)
                numbers |= between(before, setup.truth())
                (folder / "numbers.json").write_text(json.dumps(numbers) + "\n")
                print(f"{name} {number}: {numbers}", file=sys.stderr)
    finally:
        server.terminate()
        server.wait()
    # Rounds of earlier calls count too, where every client had its turn.
    rounds = {}
    for path in setup.out.glob("*.*/numbers.json"):
        name, _, number = path.parent.name.partition(".")
        rounds.setdefault(int(number), {})[name] = json.loads(path.read_text())
    rounds = {number: rounds[number] for number in sorted(rounds) if rounds[number].keys() >= clients.keys()}
    asked = {key: getattr(setup, key) for key in ["requests", "concurrency", "words", "output", "threads", "seed"]}
    (setup.out / "summary.json").write_text(json.dumps({"asked": asked, "rounds": rounds}, indent=1) + "\n")
    print(f"| median of {len(rounds)} rounds (range) | " + " | ".join(clients) + " |\n| --- |" + " ---: |" * len(clients))
    for key in COUNTS:
        found = {name: sorted({done[name][key] for done in rounds.values()}) for name in clients}
        print(f"| {key} | " + " | ".join(" or ".join(f"{value:g}" for value in found[name]) for name in clients) + " |")
    for key, title in MEASURES.items():
        found = {name: [done[name].get(key) for done in rounds.values()] for name in clients}
        known = {name: values for name, values in found.items() if None not in values}
        cells = [spread(known[name], "{:.2f}".format) if name in known else "-" for name in clients]
        print(f"| {title} | " + " | ".join(cells) + " |")
        if "powertrain" not in known:
            continue
        cells = ["-" for _ in clients]
        for place, name in enumerate(clients):
            if name != "powertrain" and name in known:
                ratios = [value / ours - 1 for value, ours in zip(known[name], known["powertrain"])]
                cells[place] = spread(ratios, "{:+.1%}".format)
        print("| against ours in the same round | " + " | ".join(cells) + " |")
    for key, title in BOTH_TELL.items():
        over = {name: [done[name][key] / done[name][f"server_{key}"] for done in rounds.values()] for name in clients}
        cells = [spread([value - 1 for value in over[name]], "{:+.2%}".format) for name in clients]
        print(f"| {title}, client over server | " + " | ".join(cells) + " |")
        ratios = {name: [value / ours - 1 for value, ours in zip(over[name], over["powertrain"])] for name in clients}
        cells = [spread(ratios[name], "{:+.2%}".format) if name != "powertrain" else "-" for name in clients]
        print("| that against ours in the same round | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
