"""A hub on this machine: it speaks as much of Hugging Face's protocol as a download needs, and can fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" * 6 + "c0ff"


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Hub:
    """What the hub has, how it fails, and what it was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    gated: set[str] = field(default_factory=set[str])
    breaks_after: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """By file: after how many bytes each of the next answers breaks off."""
    corrupt: dict[str, int] = field(default_factory=dict[str, int])
    """By file: how many of the next answers are damaged."""
    claimed_size: dict[str, int] = field(default_factory=dict[str, int])
    """By file: a size that it does not have."""
    commit: str = COMMIT
    asked: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Every file that was asked for, and from which byte on."""
    url: str = ""
    held: threading.Event = field(default_factory=_set_event)
    """Weights are not sent before it is set."""

    def add(self, repository: str, folder: Path) -> None:
        self.repositories[repository] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def info(self, repository: str) -> dict[str, Any]:
        siblings = [self._sibling(*file) for file in self.repositories[repository].items()]
        gated = "manual" if repository in self.gated else False
        return {"id": repository, "sha": self.commit, "gated": gated, "siblings": siblings}

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.claimed_size.get(name, len(content))
        sibling: dict[str, Any] = {"rfilename": name, "size": size}
        if name.endswith((".safetensors", ".bin")):
            pointer = b"version https://git-lfs.github.com/spec/v1"
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
            content = pointer
        sibling["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return sibling


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
            if found[1] in self.hub.repositories:
                self._json(200, self.hub.info(found[1]))
            else:
                self._json(401, {"error": "Invalid username or password."}, "RepoNotFound")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        else:
            self._json(404, {"error": "Not Found"})

    def _file(self, repository: str, commit: str, name: str) -> None:
        hub, content = self.hub, self.hub.repositories[repository].get(name)
        if repository in hub.gated and self.headers.get("authorization") != "Bearer hf_accepted":
            self._json(403, {"error": "Access to this model is restricted."}, "GatedRepo")
            return
        if content is None or commit != hub.commit:
            self._json(404, {"error": "Entry not found"}, "EntryNotFound")
            return
        start = int(re.sub(r"bytes=(\d+)-", r"\1", self.headers.get("range") or "0"))
        hub.asked.append((name, start))
        if name.endswith(".safetensors"):
            hub.held.wait(60)
        if hub.corrupt.get(name, 0) > 0:
            hub.corrupt[name] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(206 if start else 200)
        self.send_header("content-length", str(len(content) - start))
        if start:
            self.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        breaks = hub.breaks_after.get(name)
        if breaks:
            self.wfile.write(content[start : start + breaks.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _json(self, status: int, body: dict[str, Any], error: str | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        if error:
            self.send_header("x-error-code", error)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Serves a hub on a free port until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
