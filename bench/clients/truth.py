#!/usr/bin/env python3
"""Measures the ground-truth server with several clients: what is true is known, so each client's error is, too.

    python3 truth.py --powertrain target/release/powertrain --tokenizer FOLDER \
        --vllm VENV --aiperf VENV --guidellm VENV --out FOLDER

The server sends a chunk with only the role at once, the first content after TTFT_MS, and CHUNKS chunks GAP_MS apart, each of
so many tokens by its usage. Every client sends the same prompts to /v1/chat/completions, CONCURRENCY at a time, one client after the
other. A table of what each says stands on standard output beside what was so; FOLDER gets each client's own files. A client whose
virtual environment is not given is left out. Standard library only.
"""

import argparse
import json
import random
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from compare import WORDS, run


class Setup:
    server_cpus = client_cpus = None

    def __init__(self, arguments):
        self.__dict__.update(vars(arguments))
        self.url = f"http://127.0.0.1:{self.port}"
        self.out = Path(self.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.prompts = self.out / "prompts.jsonl"
        draw = random.Random(self.seed)
        texts = ["the " + " ".join(draw.choice(WORDS) for _ in range(20)) for _ in range(self.requests)]
        lines = [{"prompt": text, "text": text, "output_tokens": self.chunks} for text in texts]
        self.prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def pinned(self, _cpus, command):
        return command

    def script(self, tokens):
        duration = lambda ms: {"secs": 0, "nanos": round(ms * 1e6)}
        script = {"ttft": duration(self.ttft_ms), "gap": duration(self.gap_ms), "chunks": self.chunks, "tokens_per_chunk": tokens}
        script |= {"role_first": True, "spread": duration(0), "chunks_vary": 0.0, "stall": None, "ending": "Complete"}
        body = json.dumps(script | {"usage": True, "write_bytes": None}).encode()
        request = urllib.request.Request(self.url + "/ground-truth/script", body, method="PUT")
        for _ in range(100):
            try:
                return urllib.request.urlopen(request, timeout=10).read()
            except urllib.error.URLError:
                time.sleep(0.1)
        raise SystemExit("the ground truth does not answer")


def ours(setup, folder, output):
    command = [setup.powertrain, "bench", setup.url, "--model", "truth", "--prompts", setup.prompts, "--warmup", 0]
    command += ["--concurrency", setup.concurrency, "--num-requests", setup.requests, "--max-tokens", output]
    run(setup, command + ["--loop-ms", 0, "-o", folder / "run.json"], folder / "log", folder)
    summary = json.loads((folder / "run.json").read_text())["levels"][0]["summary"]
    latency = summary["latency"]
    return {
        "completed": summary["requests"]["completed"],
        "output_tokens": summary["outputs"]["total"],
        "ttft": latency["ttft_ms"]["mean"],
        "ttft_p50": latency["ttft_ms"]["percentiles"]["p50"]["value"],
        "tpot": latency["tpot_ms"]["mean"],
        "gaps": latency["itl_ms"]["count"],
        "gap": latency["itl_ms"]["mean"],
        "e2e": latency["e2e_ms"]["mean"],
    }


def vllm(setup, folder, output):
    command = [Path(setup.vllm) / "bin/python", "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai-chat"]
    command += ["--base-url", setup.url, "--endpoint", "/v1/chat/completions", "--model", "truth", "--tokenizer", setup.tokenizer]
    command += ["--dataset-name", "custom", "--dataset-path", setup.prompts, "--custom-output-len", output]
    command += ["--skip-chat-template", "--disable-shuffle", "--num-prompts", setup.requests, "--temperature", 0]
    command += ["--max-concurrency", setup.concurrency, "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result"]
    command += ["--save-detailed", "--result-dir", folder, "--result-filename", "run.json"]
    run(setup, command, folder / "log", folder)
    result = json.loads((folder / "run.json").read_text())
    return {
        "completed": result["completed"],
        "output_tokens": result["total_output_tokens"],
        "ttft": result["mean_ttft_ms"],
        "ttft_p50": result["median_ttft_ms"],
        "tpot": result["mean_tpot_ms"],
        "gaps": sum(len(gaps) for gaps in result["itls"]),
        "gap": result["mean_itl_ms"],
        "e2e": result["mean_e2el_ms"],
    }


def aiperf(setup, folder, output):
    command = [Path(setup.aiperf) / "bin/aiperf", "profile", "--model", "truth", "--url", setup.url, "--endpoint-type", "chat"]
    command += ["--streaming", "--input-file", setup.prompts, "--custom-dataset-type", "single_turn"]
    command += ["--concurrency", setup.concurrency, "--request-count", setup.requests, "--tokenizer", setup.tokenizer]
    command += ["--use-server-token-count", "--ui", "none", "--output-artifact-dir", folder, "--no-gpu-telemetry"]
    command += ["--extra-inputs", f"max_tokens:{output}", "--extra-inputs", "temperature:0", "--no-server-metrics"]
    run(setup, command, folder / "log", folder)
    result = json.loads(next(folder.glob("**/profile_export_aiperf.json")).read_text())
    value = lambda name, of="avg": result[name][of]
    return {
        "completed": round(value("request_count")),
        "output_tokens": round(value("request_count") * value("output_sequence_length")),
        "ttft": value("time_to_first_token"),
        "ttft_p50": value("time_to_first_token", "p50"),
        "tpot": value("inter_token_latency"),
        "gap": value("inter_chunk_latency"),
        "e2e": value("request_latency"),
    }


def guidellm(setup, folder, output):
    extras = {"body": {"temperature": 0, "max_tokens": output}}
    backend = {"kind": "openai_http", "target": setup.url, "model": "truth", "request_format": "/v1/chat/completions"}
    mappings = {"text_column": "prompt", "output_tokens_count_column": "output_tokens"}
    command = [Path(setup.guidellm) / "bin/guidellm", "run", "--backend", json.dumps(backend | {"extras": extras, "http2": False})]
    command += ["--profile", json.dumps({"kind": "concurrent", "streams": [setup.concurrency]})]
    command += ["--constraint", json.dumps({"kind": "max_requests", "count": setup.requests})]
    command += ["--tokenizer", json.dumps({"kind": "hf_auto", "model": setup.tokenizer})]
    command += ["--data", json.dumps({"kind": "json_file", "path": str(setup.prompts)})]
    command += ["--data-column-mapper", json.dumps({"kind": "generative_column_mapper", "column_mappings": mappings})]
    command += ["--output", json.dumps({"kind": "json", "path": str(folder / "run.json")}), "--disable-console"]
    run(setup, command, folder / "log", folder)
    metrics = json.loads((folder / "run.json").read_text())["benchmarks"][0]["metrics"]
    value = lambda name, of="mean": metrics[name]["successful"][of]
    completed = metrics["request_totals"]["successful"]
    return {
        "completed": completed,
        "output_tokens": round(completed * value("output_token_count")),
        "ttft": value("time_to_first_token_ms"),
        "ttft_p50": value("time_to_first_token_ms", "median"),
        "tpot": value("inter_token_latency_ms"),
        "e2e": value("request_latency") * 1e3,
    }


CLIENTS = {"powertrain": ours, "vllm": vllm, "aiperf": aiperf, "guidellm": guidellm}


def truth(setup, tokens):
    decode, output = (setup.chunks - 1) * setup.gap_ms, setup.chunks * tokens
    return {
        "completed": setup.requests,
        "output_tokens": setup.requests * output,
        "ttft": setup.ttft_ms,
        "ttft_p50": setup.ttft_ms,
        "tpot": decode / (output - 1),
        "gaps": setup.requests * (setup.chunks - 1),
        "gap": setup.gap_ms,
        "e2e": setup.ttft_ms + decode,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--powertrain", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--tokenizer", required=True, type=lambda path: str(Path(path).resolve()))
    for name in ["vllm", "aiperf", "guidellm"]:
        parser.add_argument(f"--{name}", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--out", required=True)
    for name, value in {"requests": 24, "concurrency": 4, "chunks": 32, "rounds": 3, "port": 18778, "seed": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ttft-ms", type=float, default=50)
    parser.add_argument("--gap-ms", type=float, default=10)
    setup = Setup(parser.parse_args())
    clients = {name: client for name, client in CLIENTS.items() if name == "powertrain" or getattr(setup, name)}
    server = subprocess.Popen(
        [setup.powertrain, "bench", "ground-truth", "--listen", f"127.0.0.1:{setup.port}"], stdout=subprocess.DEVNULL
    )
    said = {}
    try:
        for tokens in [1, 4]:
            setup.script(tokens)
            for number in range(setup.rounds):
                for name, client in clients.items():
                    folder = setup.out / f"{name}.{tokens}.{number}"
                    folder.mkdir(parents=True, exist_ok=True)
                    said.setdefault(tokens, {}).setdefault(name, []).append(client(setup, folder, setup.chunks * tokens))
    finally:
        server.terminate()
        server.wait()
    (setup.out / "summary.json").write_text(json.dumps(said, indent=1) + "\n")
    for tokens, found in said.items():
        so = truth(setup, tokens)
        print(f"| tokens a chunk: {tokens}, median of {setup.rounds} | so | " + " | ".join(found) + " |")
        print("| --- | ---: |" + " ---: |" * len(found))
        for key, value in so.items():
            cells = [[of_run[key] for of_run in runs if key in of_run] for runs in found.values()]
            cells = [f"{statistics.median(values):.6g}" if values else "-" for values in cells]
            print(f"| {key} | {value:.6g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
