"""HTTP for peers that bring no server: OpenAI's /v1/completions, streamed, on the standard library alone.

An engine's thread writes each token to the socket itself, right after the step that made it. A chunk's time is then the step's, whoever
holds Python's lock afterwards.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Request:
    """One request on its connection. `send` and `finish` are called from the engine's thread."""

    def __init__(self, body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
        self.prompt: str = body["prompt"]
        self.max_tokens: int = body.get("max_tokens", 16)
        self.ignore_eos: bool = bool(body.get("ignore_eos", False))
        self.stream: bool = bool(body.get("stream", False))
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.done = threading.Event()
        self._text: list[str] = []
        self._handler = handler
        self._gone = False
        if self.stream:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.send_header("Connection", "close")
            handler.end_headers()

    def send(self, text: str, tokens: int) -> None:
        """Text of some new tokens."""
        self.completion_tokens += tokens
        self._text.append(text)
        if self.stream and text:
            self._event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})

    def finish(self) -> None:
        """The answer is whole."""
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.stream:
            self._event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
            self._event({"choices": [], "usage": usage})
            self._write(b"data: [DONE]\n\n")
        else:
            choices = [{"index": 0, "text": "".join(self._text), "finish_reason": "length"}]
            self._reply(200, {"object": "text_completion", "choices": choices, "usage": usage})
        self.done.set()

    def fail(self, message: str) -> None:
        """No answer, or no more of it."""
        error = {"error": {"message": message}}
        if self.stream:
            self._event(error)
        else:
            self._reply(500, error)
        self.done.set()

    def _event(self, value: dict[str, Any]) -> None:
        self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _reply(self, status: int, value: dict[str, Any]) -> None:
        if not self._gone:
            reply(self._handler, status, value)

    def _write(self, data: bytes) -> None:
        if self._gone:
            return
        try:
            self._handler.wfile.write(data)
        except OSError:
            self._gone = True


def reply(handler: BaseHTTPRequestHandler, status: int, value: dict[str, Any]) -> None:
    """A whole JSON answer."""
    data = json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(data)


def listen(port: int, submit: Callable[[Request], None]) -> None:
    """Serves on a thread of its own from now on; `submit` takes each request and answers it whenever it likes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            reply(self, 200, {"object": "list", "data": [{"id": "model", "object": "model"}]})

        def do_POST(self) -> None:
            self.close_connection = True
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/completions" or not isinstance(body.get("prompt"), str):
                reply(self, 404, {"error": {"message": "only /v1/completions with a prompt of text"}})
                return
            request = Request(body, self)
            submit(request)
            request.done.wait()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    threading.Thread(target=Server(("127.0.0.1", port), Handler).serve_forever, daemon=True).start()


class Detokenizer:
    """Text of tokens as they come. Holds back what may be the beginning of a character of several bytes."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._pending: list[int] = []

    def push(self, ids: list[int]) -> str:
        self._pending += ids
        text = self._decode(self._pending)
        if text.endswith("\ufffd") and len(self._pending) < 8:
            return ""
        self._pending = []
        return text
