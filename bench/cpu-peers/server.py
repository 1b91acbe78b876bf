"""A server under test: started, asked until it answers, observed, ended."""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import processes

POLL_S = 0.005
STOP_S = 15.0


class ServerError(Exception):
    """It did not start, or answered wrongly; the text is what the report says."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def complete(port: int, prompt: str, max_tokens: int, timeout_s: float) -> dict[str, Any]:
    """One answer, not streamed; raises OSError, HTTPException or ValueError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        body = {"model": "model", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}: {data[:300].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(data)
        return answer
    finally:
        connection.close()


class Server:
    """Runs in a session of its own, so that its whole tree can be ended."""

    def __init__(self, command: list[str], port: int, environment: dict[str, str], log: Path) -> None:
        self.port = port
        self._log = log
        self._log_file = log.open("wb")
        cpu_before = processes.machine_cpu()
        harness_before = processes.harness_cpu_s()
        self._spawned = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            cwd=log.parent,
        )
        self._before = (cpu_before, harness_before)

    @property
    def pid(self) -> int:
        return self._process.pid

    def first_answer(self, timeout_s: float) -> dict[str, Any]:
        """Waits until one token has been answered; tells the seconds since the start, and the CPU meanwhile."""
        last = "no connection"
        while True:
            wall_s = time.monotonic() - self._spawned
            if self._process.poll() is not None:
                raise ServerError(f"ended with code {self._process.returncode}: {self.log_tail()}")
            if wall_s > timeout_s:
                raise ServerError(f"no answer within {timeout_s:.0f} s ({last}): {self.log_tail()}")
            try:
                answer = complete(self.port, "The capital of France is", 1, timeout_s)
                break
            except (OSError, http.client.HTTPException, ValueError) as error:
                last = str(error)
            # To within a hundredth: asking a server that takes minutes to start must not slow it down.
            time.sleep(max(POLL_S, wall_s / 100))
        wall_s = time.monotonic() - self._spawned
        if not answer["choices"][0]["text"]:
            raise ServerError(f"the first answer is empty: {answer}")
        machine_before, harness_before = self._before
        machine = processes.machine_cpu()
        server_s = processes.tree_cpu_s(self.pid)
        harness_s = processes.harness_cpu_s() - harness_before
        return {
            "wall_s": round(wall_s, 4),
            "server_cpu_s": round(server_s, 2),
            "client_cpu_s": round(harness_s, 2),
            "others_cpu_s": round(max(0.0, machine.busy_s - machine_before.busy_s - server_s - harness_s), 2),
            "steal_s": round(machine.steal_s - machine_before.steal_s, 2),
        }

    def log_tail(self) -> str:
        self._log_file.flush()
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        # Python underlines the place of an error.
        lines = [line for line in lines if line.strip("^~ ")]
        return " | ".join(lines[-3:])[-600:]

    def stop(self) -> None:
        try:
            self._process.terminate()
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._log_file.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
