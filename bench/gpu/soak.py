"""Mixed load on a server that runs, in pieces; after each piece the server must be idle, hold no block, have grown in no memory and answer as before.

    soak.py URL --pid PID [--pieces 3] [--seconds 60] [--clients 24] [--seed 1] [--gpu 0] [--out FILE]

Python's standard library only. Prints a line per piece and writes all of it as JSON. Ends with 1 if anything was not as it must be.
"""

import argparse
import collections
import http.client
import json
import random
import subprocess
import sys
import threading
import time
import urllib.parse

# What the process may hold more than after the first piece: graphs and the allocator's caches have come by then. (On a CPU the KV cache's pages come
# with their first use: give --kv-cache-memory a size that the first piece fills.)
RSS_GROWTH_MAX_MIB = 96
GPU_GROWTH_MAX_MIB = 64
WORDS = "time year people way day man thing woman life child world school state family student group country problem hand part".split()


class Server:
    def __init__(self, url, pid, gpu):
        self.host = urllib.parse.urlparse(url).netloc
        self.pid, self.gpu = pid, gpu

    def ask(self, method, path, body=None, headers=None, timeout=300):
        connection = http.client.HTTPConnection(self.host, timeout=timeout)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def engine(self):
        return json.loads(self.ask("GET", "/v1/engine")[1])

    def rss_mib(self):
        with open(f"/proc/{self.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

    def gpu_mib(self):
        if self.gpu is None:
            return None
        query = ["nvidia-smi", "-i", str(self.gpu), "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout)

    def greedy(self):
        """The same short prompt alone: a damaged cache, table or weight changes what comes."""
        body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        status, answer = self.ask("POST", "/v1/completions", json.dumps(body))
        assert status == 200, answer
        return json.loads(answer)["choices"][0]["text"]


def sampling(draw):
    fields = {"temperature": draw.choice([0, 0, 0.7, 1.0, 1.6])}
    for name, choices, share in [
        ("top_p", [0.1, 0.9, 0.99], 0.4), ("top_k", [1, 5, 50], 0.4), ("min_p", [0.01, 0.1], 0.2),
        ("presence_penalty", [-1.0, 0.5, 2.0], 0.15), ("frequency_penalty", [0.3, 1.5], 0.15), ("repetition_penalty", [0.9, 1.2], 0.15),
        ("seed", [1, 2**31], 0.3), ("min_tokens", [3, 20], 0.1), ("stop", [["time"], ["\n", "."]], 0.2), ("ignore_eos", [True], 0.3),
        ("logit_bias", [{"5": -100}, {"7": 5.5, "9": -3}], 0.1), ("n", [2, 3], 0.1),
    ]:
        if draw.random() < share:
            fields[name] = draw.choice(choices)
    return fields


def text(draw, words):
    return " ".join(draw.choices(WORDS, k=words))


def good(draw, length_max):
    """A request that must be answered: path and body."""
    # Many short, few long.
    words = max(1, int(min(length_max // 2, draw.lognormvariate(4, 1.2))))
    fields = sampling(draw)
    fields["max_tokens"] = max(draw.choice([1, 2, 16, 64, 128, 200]), fields.get("min_tokens", 0))
    if draw.random() < 0.3:
        prefix = text(random.Random(draw.randrange(4)), min(120, length_max // 4))
    else:
        prefix = ""
    if draw.random() < 0.5:
        if draw.random() < 0.2:
            fields |= {"logprobs": True, "top_logprobs": draw.choice([0, 5])}
        return "/v1/chat/completions", fields | {"messages": [{"role": "user", "content": prefix + text(draw, words)}]}
    if draw.random() < 0.2:
        fields["logprobs"] = draw.choice([1, 5])
    prompt = [draw.randrange(100, 20000) for _ in range(words)] if draw.random() < 0.3 else prefix + text(draw, words)
    return "/v1/completions", fields | {"prompt": prompt}


BAD = [
    ("POST", "/v1/completions", "{", 400),
    ("POST", "/v1/completions", json.dumps({"prompt": "a", "temperature": -1}), 400),
    ("POST", "/v1/completions", json.dumps({"prompt": "a", "n": 0}), 400),
    ("POST", "/v1/completions", json.dumps({"prompt": [-1]}), 400),
    ("POST", "/v1/completions", json.dumps({"prompt": [4_000_000_000]}), 400),
    ("POST", "/v1/completions", json.dumps({"prompt": [10] * 200_000}), 400),
    ("POST", "/v1/completions", json.dumps({"prompt": "a", "model": "none"}), 404),
    ("POST", "/v1/chat/completions", json.dumps({"messages": []}), 400),
    ("POST", "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}), 400),
    ("GET", "/nowhere", None, 404),
    ("DELETE", "/v1/completions", None, 405),
]


class Piece:
    """One piece's clients, what they saw, and what was wrong."""

    def __init__(self, server, length_max):
        self.server, self.length_max = server, length_max
        self.seen = collections.Counter()
        self.wrong = []
        self.lock = threading.Lock()

    def count(self, what, wrong=None):
        with self.lock:
            self.seen[what] += 1
            if wrong:
                self.wrong.append(str(wrong)[:400])

    def client(self, seed, until):
        draw = random.Random(seed)
        while time.monotonic() < until:
            kind = draw.choices(["whole", "stream", "cancel", "deadline", "bad"], [40, 30, 15, 7, 8])[0]
            try:
                getattr(self, kind)(draw)
            except Exception as error:  # whatever it is, it is the finding
                self.count("exception", f"{kind}: {type(error).__name__}: {error}")

    def whole(self, draw, headers=None):
        path, body = good(draw, self.length_max)
        status, answer = self.server.ask("POST", path, json.dumps(body), headers)
        if status == 200:
            used, most = json.loads(answer)["usage"]["completion_tokens"], body["max_tokens"] * body.get("n", 1)
            self.count("answered", f"{used} tokens of {most}: {body}" if not 0 < used <= most else None)
        elif status == 429 or (headers and status == 504):
            self.count(f"status {status}")
        else:
            self.count(f"status {status}", f"{status} {answer[:300]} for {json.dumps(body)[:200]}")

    def deadline(self, draw):
        self.whole(draw, {"x-request-timeout-ms": str(draw.choice([1, 20, 200, 1000]))})

    def stream(self, draw, events_max=None):
        path, body = good(draw, self.length_max)
        connection = http.client.HTTPConnection(self.server.host, timeout=300)
        try:
            connection.request("POST", path, json.dumps(body | {"stream": True}), {"content-type": "application/json"})
            if events_max == 0:
                self.count("left at once")
                return
            answer = connection.getresponse()
            if answer.status != 200:
                self.count(f"status {answer.status}", None if answer.status == 429 else answer.read()[:300])
                return
            events, last = 0, b""
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                events, last = events + 1, line
                if line.strip() != b"data: [DONE]" and "error" in json.loads(line[6:]):
                    self.count("error in a stream", line)
                    return
                if events == events_max:
                    self.count("left in its answer")
                    return
            self.count("streamed", None if last.strip() == b"data: [DONE]" else f"the stream ended with {last!r}")
        finally:
            connection.close()

    def cancel(self, draw):
        self.stream(draw, draw.choice([0, 0, 1, 2, 5, 20]))

    def bad(self, draw):
        method, path, body, expected = draw.choice(BAD)
        status, answer = self.server.ask(method, path, body)
        self.count("refused", None if status == expected else f"{method} {path}: {status} instead of {expected}: {answer[:200]}")


def idle(server, wrong):
    """Waits until nothing runs; a minute is longer than any request that was left behind may take."""
    for _ in range(600):
        now = server.engine()["now"]
        if now["requests_running"] == 0 and now["requests_waiting"] == 0:
            break
        time.sleep(0.1)
    else:
        wrong.append(f"not idle after a minute: {now}")
    if now["kv_blocks_used"] != 0:
        wrong.append(f"blocks are held at idle: {now}")
    return now


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("url")
    arguments.add_argument("--pid", type=int, required=True)
    arguments.add_argument("--pieces", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--clients", type=int, default=24)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--gpu", type=int)
    arguments.add_argument("--out")
    given = arguments.parse_args()
    server = Server(given.url, given.pid, given.gpu)
    length_max = server.engine()["max_model_len"]
    first_text, pieces, failed = server.greedy(), [], 0
    for number in range(1, given.pieces + 1):
        piece = Piece(server, length_max)
        until = time.monotonic() + given.seconds
        threads = [
            threading.Thread(target=piece.client, args=(given.seed * 1_000_003 + number * 1009 + client, until))
            for client in range(given.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = idle(server, piece.wrong)
        status, answer = server.ask("GET", "/health")
        if status != 200:
            piece.wrong.append(f"/health is {status}: {answer}")
        if (again := server.greedy()) != first_text:
            piece.wrong.append(f"the greedy text is {again!r}, at first it was {first_text!r}")
        found = {"piece": number, "rss_mib": round(server.rss_mib(), 1), "gpu_mib": server.gpu_mib(), "seen": dict(piece.seen), "now": now}
        if pieces:
            for name, most in [("rss_mib", RSS_GROWTH_MAX_MIB), ("gpu_mib", GPU_GROWTH_MAX_MIB)]:
                if found[name] is not None and found[name] > pieces[0][name] + most:
                    piece.wrong.append(f"{name} grew from {pieces[0][name]} to {found[name]}")
        found["wrong"] = piece.wrong
        failed += len(piece.wrong)
        pieces.append(found)
        seen = ", ".join(f"{count} {what}" for what, count in sorted(piece.seen.items()))
        print(f"piece {number}: RSS {found['rss_mib']} MiB, GPU {found['gpu_mib']} MiB, preemptions {now['preemptions']}; {seen}", flush=True)
        for wrong in piece.wrong[:10]:
            print(f"  WRONG {wrong}", flush=True)
    if given.out:
        with open(given.out, "w") as out:
            json.dump({"arguments": vars(given), "pieces": pieces}, out, indent=1)
    print("soak: all as it must be" if failed == 0 else f"soak: {failed} WRONG")
    sys.exit(1 if failed else 0)


main()
