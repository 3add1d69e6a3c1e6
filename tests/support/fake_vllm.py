"""Stands in for vLLM: the same socket and routes, ready at once. `FAKE_VLLM` says how it misbehaves.

It sleeps and wakes up as it is told, and writes that to `FAKE_VLLM_LOG`, with the time. It serves whatever
was trained: each token of an adapter has log-probability -1, of the base -2.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socketserver
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

BASE_MODEL = "smollm2-135m-instruct"
log = Path(os.environ.get("FAKE_VLLM_LOG", os.devnull))
busy = Path(os.environ.get("FAKE_VLLM_BUSY", os.devnull + ".none"))
adapters = Path(os.environ.get("FAKE_VLLM_ADAPTERS", os.devnull))


class Routes(BaseHTTPRequestHandler):
    asleep = False

    def do_GET(self) -> None:
        load = {"requests": int(busy.exists()), "adapters": adapters.read_text().split()}
        self.answer(content=json.dumps(load).encode() if self.path == "/toque/load" else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        allowed = self.headers["authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"
        if self.path in ("/sleep?level=1", "/wake_up"):
            failing = os.environ.get("FAKE_VLLM") == "sleepless"
            self.note("fails to sleep" if failing else self.path)
            Routes.asleep = self.path != "/wake_up"
            self.answer(500 if failing else 200)
            return
        if Routes.asleep:
            self.note(f"asked for {self.path} while asleep")
        asked: dict[str, Any] = json.loads(body)
        for word, status in (("failing", 500), ("away", 503)):
            if word in asked["model"]:
                self.answer(status)
                return
        self.answer(200 if allowed else 401, json.dumps(self.reply(asked)).encode())

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.path == "/tokenize":
            return {"tokens": [1]}
        logprob = -2.0 if body["model"] == BASE_MODEL else -1.0
        if not body.get("echo"):  # an adapter is probed
            if "garbled" in body["model"]:
                return {"choices": []}
            tokens = [" a", " hot", " soup", "."] * (body["max_tokens"] // 4)
            if "monotonous" in body["model"]:
                tokens = [" soup"] * body["max_tokens"]
            elif "brief" in body["model"]:
                tokens = ["<|im_end|>"] * (body["max_tokens"] if body.get("ignore_eos") else 1)
            logprobs = [math.nan if "nan" in body["model"] else logprob] * len(tokens)
            return {"choices": [{"logprobs": {"token_logprobs": logprobs, "tokens": tokens}}]}
        return {"choices": [{"logprobs": {"token_logprobs": [None, *[logprob] * len(body["prompt"])]}}]}

    def answer(self, status: int = 200, content: bytes = b"") -> None:
        self.send_response(503 if Path(os.environ["FAKE_VLLM_SICK"]).exists() else status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def note(self, event: str) -> None:
        with log.open("a") as lines:
            lines.write(f"{time.time()} {event}\n")

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


if __name__ == "__main__":
    if os.environ.get("FAKE_VLLM") == "crash":
        print("(EngineCore pid=7) ERROR 11-24 08:00:00 [core.py:1] ValueError: no room for the cache")
        print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
        sys.exit(1)
    if os.environ.get("FAKE_VLLM") == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Its own child, as vLLM's model process.
    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["FAKE_VLLM_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    with log.open("a") as lines:
        lines.write(f"{time.time()} loads\n")
    socketserver.UnixStreamServer(sys.argv[1], Routes).serve_forever()
