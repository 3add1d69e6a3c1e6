"""How fast does a file come in, against a plain FastAPI handler? `python -m benchmarks.upload`.

Both are real uvicorn processes on this machine and get the same file from the same client, in turns. The
plain one takes an `UploadFile` and copies it to disk. Ours hashes it besides, makes it durable, and adds its
row; meanwhile its file list is asked 20 times a second. The last line is one JSON object: `ratio` (of the
medians), `peak_rss_mib` of the API, `p95_ms` of the other requests, and of everything the median, the lowest
and the highest; `cpu_seconds` tell how much of a difference is other work on the machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
from fastapi import FastAPI, UploadFile

from app.auth.service import ensure_first_key
from app.core.database import Database
from app.core.migrations import upgrade
from benchmarks.serving.measurements import Measurements, percentile, progress

KEY = "sk-toque-benchmark"
BOUNDARY = "benchmark-boundary"
INTERVAL_SECONDS = 0.05
HEADERS = {"authorization": f"Bearer {KEY}"}


def plain_app() -> FastAPI:
    """Returns the app that most people would write."""
    app = FastAPI()

    @app.post("/v1/files")
    def upload(file: UploadFile) -> dict[str, str | None]:
        with Path(os.environ["PLAIN_TARGET"]).open("wb") as target:
            shutil.copyfileobj(file.file, target)
        return {"filename": file.filename}

    return app


@contextmanager
def serving(command: list[str], environment: dict[str, str]) -> Iterator[tuple[int, psutil.Process]]:
    """Runs a server on a free port; yields its address and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [*command, "--fd", str(listener.fileno())],
            env=os.environ | environment,
            pass_fds=(listener.fileno(),),
            stdout=subprocess.DEVNULL,
        )
    try:
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def send(port: int, file: Path) -> float:
    """Uploads the file straight from the disk's cache; returns the seconds until the answer is there."""
    head = (
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="{file.name}"\r\n'
        "content-type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with file.open("rb") as content:
        started = time.perf_counter()
        connection.putrequest("POST", "/v1/files")
        for name, value in {
            **HEADERS,
            "content-type": f"multipart/form-data; boundary={BOUNDARY}",
            "content-length": str(len(head) + file.stat().st_size + len(tail)),
        }.items():
            connection.putheader(name, value)
        connection.endheaders(head)
        connection.sock.sendfile(content)
        connection.send(tail)
        answer = connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - started
    connection.close()
    assert answer.status == 200, body
    return seconds


class Watch:
    """Asks for the list of files, and looks at the API's memory, while an upload runs."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.milliseconds: list[float] = []
        self.peak_bytes = 0
        self._process = process
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._ended = threading.Event()

    def __enter__(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            asked = time.perf_counter()
            self._connection.request("GET", "/v1/files?limit=10", headers=HEADERS)
            answer = self._connection.getresponse()
            answer.read()
            self.milliseconds.append((time.perf_counter() - asked) * 1000)
            assert answer.status == 200
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)


def make_file(path: Path, size: int) -> None:
    block = os.urandom(2**24)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.write(block[: size % len(block)])


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def await_answer(port: int) -> None:
    """Waits for the first answers, which import what later ones need and so are not measured."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/files", headers=HEADERS)
    connection.getresponse().read()
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="On the disk to measure; the default is the temporary one."
    )
    arguments = parser.parse_args()
    size = arguments.megabytes * 10**6
    measured = Measurements()
    with tempfile.TemporaryDirectory(prefix="toque-bench-", dir=arguments.folder) as name:
        folder = Path(name)
        file = folder / "upload.bin"
        make_file(file, size)
        url = f"sqlite:///{folder / 'toque.db'}"
        upgrade(url)
        database = Database(url)
        with database.writer() as session:
            ensure_first_key(session, KEY)
        database.dispose()
        ours = {
            "TOQUE_DATA_DIR": str(folder),
            "TOQUE_DATABASE_URL": url,
            "TOQUE_MAX_FILE_BYTES": str(2 * size),
        }
        # The plain handler's first copy is in the temporary folder: on the same disk as everything else.
        plain = {"PLAIN_TARGET": str(folder / "plain.bin"), "TMPDIR": str(folder)}
        api_command = [sys.executable, "-m", "app.cli.main", "api"]
        plain_command = [
            *(sys.executable, "-m", "uvicorn", "benchmarks.upload:plain_app", "--factory"),
            *("--no-access-log", "--log-level", "warning"),
        ]
        with (
            serving(api_command, ours) as (port, process),
            serving(plain_command, plain) as (
                other,
                other_process,
            ),
        ):
            for each in (port, other):
                await_answer(each)
            watch = Watch(port, process)
            for number in range(arguments.rounds):
                for side in ("toque", "plain") if number % 2 else ("plain", "toque"):
                    os.sync()  # what one has left for the disk must not slow the other
                    server = process if side == "toque" else other_process
                    before = cpu_seconds(server)
                    with watch if side == "toque" else nullcontext():
                        measured.add(f"{side}_seconds", send(port if side == "toque" else other, file))
                    measured.add(f"{side}_cpu_seconds", cpu_seconds(server) - before)
                for key in (folder / "storage" / "objects").glob("*/*"):
                    key.unlink()
                progress(f"round {number + 1}: {measured.last()}")
    summary = {
        "ratio": measured.ratio("plain_seconds", "toque_seconds"),
        "peak_rss_mib": round(watch.peak_bytes / 2**20, 1),
        "p95_ms": round(percentile(watch.milliseconds, 95), 1),
        "other_requests": len(watch.milliseconds),
        "megabytes": arguments.megabytes,
        "median_low_high": measured.spreads(),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
