"""One subject in one round: from start to end of its server, everything in one JSON file."""

import json
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import client
import processes
from scratch import Scratch
from server import Server, ServerError, complete, free_port
from stages import ATTEMPTS_MAX, Stage, load_stage, long_stage, prefill_stage, short_stage
from subjects import THREADS, Subject

FORMAT = "powertrain-cpu-peers/1"
SETTLE_S = 1.0
IDLE_S = 2.0
PROMPT = "The capital of France is"


class Unit:
    def __init__(
        self, scratch: Scratch, binary: Path, subject: Subject, number: int, folder: Path, quick: bool, extras: bool
    ) -> None:
        self.scratch, self.binary, self.subject, self.quick = scratch, binary, subject, quick
        # Once is enough for peers: only our own slowdown with length has a bar.
        self.extras = extras and number == 1
        self.path = folder / f"{subject.name}.{number}.json"
        self.number = number
        self._port = 0
        self._servers = 0
        self._clients = 0
        self.result: dict[str, Any] = {
            "format": FORMAT,
            "subject": subject.name,
            "round": number,
            "quick": quick,
            "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": None,
            "stages": {},
        }

    def measure(self) -> dict[str, Any]:
        began = time.monotonic()
        try:
            self._read_model()
            self._starts()
            if self.extras and self.subject.long_command is not None:
                self._long_on_its_own_server()
            if self.extras and self.subject.engine == "llama.cpp":
                self.result["llama_bench"] = self._llama_bench()
        except (ServerError, client.ClientError) as error:
            self.result["error"] = str(error)
        self.result["unit_wall_s"] = round(time.monotonic() - began, 1)
        partial = self.path.with_suffix(".partial")
        partial.write_text(self.scratch.redacted(written(self.result)), encoding="utf-8")
        partial.rename(self.path)
        return self.result

    def _read_model(self) -> None:
        """Into the page cache: a start is measured on cached weights."""
        model = self.scratch.models / self.subject.model
        files = [path for path in model.iterdir() if path.is_file()] if model.is_dir() else [model]
        size = 0
        for path in files:
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    size += len(block)
        self.result["model_mib"] = round(size / (1 << 20), 1)

    def _start(self, command: list[str]) -> Server:
        self._servers += 1
        log = self.scratch.logs / f"{self.subject.name}.{self.number}.{self._servers}.log"
        return Server(command, self._port, self.subject.environment(self.scratch), log)

    def _starts(self) -> None:
        starts = 1 if self.quick else self.subject.starts
        self.result["starts"] = []
        for remaining in reversed(range(starts)):
            self._port = free_port()
            command = self.subject.command(self.scratch, self.binary, self._port)
            self.result["command"] = self._shown(command, self._port)
            with self._start(command) as server:
                self.result["starts"].append(server.first_answer(self.subject.start_timeout_s))
                if remaining == 0:
                    self._observe(server)

    def _shown(self, command: list[str], port: int) -> str:
        text = self.scratch.redacted(" ".join(command)).replace(str(port), "PORT")
        binary = self.scratch.redacted(str(self.binary))
        return text.replace(binary, "powertrain")

    def _observe(self, server: Server) -> None:
        time.sleep(SETTLE_S)
        self.result["memory_after_load"] = processes.tree_memory(server.pid)
        idle = processes.Watch(server.pid)
        time.sleep(IDLE_S)
        self.result["idle"] = idle.end()
        answer = complete(server.port, PROMPT, 8, self.subject.start_timeout_s)["choices"][0]["text"]
        self.result["answer"] = answer
        self._stage(server, prefill_stage(self.quick))
        for clients in self.subject.levels:
            if self.quick and clients in (4, 16):
                continue
            self._stage(server, load_stage(clients, self.quick))
        if self.subject.long_command is None and self.subject.measures_long_context:
            self._long(server)
        self.result["memory_after_work"] = processes.tree_memory(server.pid)

    def _long(self, server: Server) -> None:
        self._stage(server, short_stage(self.quick))
        self._stage(server, long_stage(self.quick))

    def _long_on_its_own_server(self) -> None:
        assert self.subject.long_command is not None
        self._port = free_port()
        with self._start(self.subject.long_command(self.scratch, self.binary, self._port)) as server:
            server.first_answer(self.subject.start_timeout_s)
            self._long(server)

    def _stage(self, server: Server, stage: Stage) -> None:
        """Measures until a run was not disturbed; keeps every attempt, the least disturbed one last."""
        attempts: list[dict[str, Any]] = []
        folder = self.path.parent / "client"
        folder.mkdir(exist_ok=True)
        for attempt in range(1 if self.quick else ATTEMPTS_MAX):
            self._clients += 1
            output = folder / f"{self.subject.name}.{self.number}.{self._clients}.{stage.name}.json"
            prompts = self.scratch.prompts / self.subject.prompts / stage.prompts_file(attempt)
            watch = processes.Watch(server.pid)
            # The round is the seed: everyone gets the same prompts in the same order.
            kept = client.measure(self.binary, server.port, stage, prompts, self.number, output)
            kept["watch"] = watch.end()
            kept["disturbed"] = processes.disturbed(kept["watch"])
            attempts.append(kept)
            if not kept["disturbed"]:
                break
        attempts.sort(key=lambda kept: -(kept["watch"]["others_cpu_s"] + kept["watch"]["steal_s"]) / kept["watch"]["wall_s"])
        self.result["stages"][stage.name] = {"attempts": attempts, "complaint": client.complaint(attempts[-1])}

    def _llama_bench(self) -> list[dict[str, Any]]:
        """llama.cpp's own tool beside ours: 512 tokens of prefill, 64 of decode at no context."""
        model = str(self.scratch.models / self.subject.model)
        command = [str(self.scratch.llama_tool("llama-bench")), "-m", model, "-t", str(THREADS), "-p", "512", "-n", "64"]
        run = subprocess.run([*command, "-r", "3", "-o", "json"], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            return []
        keep = ("n_prompt", "n_gen", "avg_ts", "stddev_ts", "samples_ts")
        return [{key: row[key] for key in keep} for row in json.loads(run.stdout)]


def written(result: dict[str, Any]) -> str:
    """JSON that a person can read too: a line for each stage, and for each thing beside them."""
    stages = ",\n".join(f"  {json.dumps(name)}: {json.dumps(stage)}" for name, stage in result["stages"].items())
    rest = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items() if key != "stages")
    return f'{{\n{rest},\n "stages": {{\n{stages}\n }}\n}}\n'
