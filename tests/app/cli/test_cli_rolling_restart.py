"""API processes are replaced one after the other while clients work: nothing that was accepted is lost."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
from openai import OpenAI

from app.core.database import Database
from app.core.settings import Settings
from tests.support.command import TOQUE
from tests.support.service import API_KEY, BASE_MODEL
from tests.support.training_files import training_bytes
from tests.support.waiting import wait_until
from tests.support.watched_process import read_until

StartApi = Callable[[socket.socket], subprocess.Popen[str]]


@pytest.fixture
def start_api(settings: Settings, database: Database) -> Iterator[StartApi]:
    """Starts an API process on a listening socket, and returns once it serves."""
    environment = os.environ | {
        "TOQUE_DATA_DIR": str(settings.data_dir),
        "TOQUE_DATABASE_URL": settings.database_url,
        "TOQUE_MODELS_DIR": str(settings.models_root),
    }
    with ExitStack() as stack:

        def start(listener: socket.socket) -> subprocess.Popen[str]:
            api = subprocess.Popen(
                [*TOQUE, "api", "--fd", str(listener.fileno())],
                env=environment,
                pass_fds=(listener.fileno(),),
                stderr=subprocess.STDOUT,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(api)
            stack.callback(api.kill)
            read_until(api, "Application startup complete")
            assert api.stdout is not None
            threading.Thread(target=api.stdout.read).start()  # a full pipe would stop it at a line of its log
            return api

        yield start


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def openai_client(port: int) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=API_KEY)


class BusyClient(threading.Thread):
    """Creates one job after another until it is told to stop."""

    def __init__(self, port: int, file_id: str) -> None:
        super().__init__()
        self.acknowledged: dict[str, str] = {}
        self.failures: list[Exception] = []
        self.stopping = threading.Event()
        self._port = port
        self._file_id = file_id

    def run(self) -> None:
        with openai_client(self._port) as client:
            while not self.stopping.is_set() and not self.failures:
                name = f"{self.ident}-{len(self.acknowledged)}"
                try:
                    job = client.fine_tuning.jobs.create(
                        model=BASE_MODEL, training_file=self._file_id, metadata={"name": name}
                    )
                except Exception as error:
                    self.failures.append(error)
                else:
                    self.acknowledged[job.id] = name


def all_create_another(clients: list[BusyClient]) -> None:
    before = [len(client.acknowledged) for client in clients]
    wait_until(
        lambda: (
            all(len(client.acknowledged) > done for client, done in zip(clients, before, strict=True))
            or any(client.failures for client in clients)
        ),
        "every client creates another job",
    )


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.one_database
def test_clients_notice_nothing_when_each_process_is_replaced(start_api: StartApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        old_ones = [start_api(listener) for _ in range(2)]
        with openai_client(port_of(listener)) as client:
            file_id = client.files.create(file=("a.jsonl", training_bytes()), purpose="fine-tune").id
            busy = [BusyClient(port_of(listener), file_id) for _ in range(3)]
            for thread in busy:
                thread.start()
            all_create_another(busy)
            for old in old_ones:
                old.terminate()
                assert old.wait(20) == 0
                start_api(listener)
                all_create_another(busy)
            for thread in busy:
                thread.stopping.set()
                thread.join()

            assert [error for thread in busy for error in thread.failures] == []
            acknowledged = {job: name for thread in busy for job, name in thread.acknowledged.items()}
            kept = {job.id: (job.metadata or {})["name"] for job in client.fine_tuning.jobs.list(limit=100)}
            assert kept == acknowledged, "each that was acknowledged is there, and there only once"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_request_in_flight_is_answered_before_the_process_ends(
    start_api: StartApi, settings: Settings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = port_of(listener)
        api = start_api(listener)
    boundary = "b0undary"
    content = training_bytes(1000)
    disposition = "Content-Disposition: form-data; name="
    head = f'--{boundary}\r\n{disposition}"purpose"\r\n\r\nfine-tune\r\n'
    head += f'--{boundary}\r\n{disposition}"file"; filename="a.jsonl"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()

    with (
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as upload,
        openai_client(port) as idle,
    ):
        assert list(idle.files.list()) == []  # keeps its connection
        upload.putrequest("POST", "/v1/files")
        upload.putheader("Authorization", f"Bearer {API_KEY}")
        upload.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
        upload.putheader("Content-Length", str(len(body)))
        upload.endheaders(body[:20_000])
        incoming = settings.storage_root / "tmp"
        wait_until(lambda: incoming.exists() and any(incoming.iterdir()), "the upload is being received")

        api.terminate()
        wait_until(lambda: refuses_connections(port), "it takes no new connection")
        assert api.poll() is None, "it waits for what is in flight"
        for start in range(20_000, len(body), 20_000):
            upload.send(body[start : start + 20_000])
        response = upload.getresponse()
        answer = json.loads(response.read())

    assert (response.status, response.headers["connection"]) == (200, "close")
    assert api.wait(20) == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start_api(listener)
        with openai_client(port_of(listener)) as client:
            [file] = client.files.list()
            assert file.id == answer["id"]
            assert client.files.content(file.id).read() == content
