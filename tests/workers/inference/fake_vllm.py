"""Stands in for vLLM: the same socket and routes, ready at once. `FAKE_VLLM` says how it misbehaves."""

from __future__ import annotations

import os
import signal
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path


class Routes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        allowed = self.headers["authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"
        self.answer(200 if allowed else 401)

    def answer(self, status: int = 200) -> None:
        self.send_response(503 if Path(os.environ["FAKE_VLLM_SICK"]).exists() else status)
        self.end_headers()

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
    socketserver.UnixStreamServer(sys.argv[1], Routes).serve_forever()
