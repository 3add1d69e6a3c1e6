"""Waiting for a job: exit codes, what is printed, and what a wait survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.cli import job_progress
from app.fine_tuning.models import Event, FineTuningJob
from tests.support.command import Service, finished, metrics_event
from tests.support.watched_process import read_rest


def test_a_job_that_succeeds(service: Service, job_id: str) -> None:
    service.work_on(job_id, **finished("succeeded"), fine_tuned_model="ft:chef", trained_tokens=1234)

    waited = service.run("jobs", "wait", job_id)

    assert waited.exit_code == 0
    assert "ft:chef" in waited.stdout
    assert "1,234" in waited.stdout
    assert "Created fine-tuning job" in waited.stderr


def test_a_job_that_succeeded_ends_with_what_to_do_next(service: Service, job_id: str) -> None:
    model = "ft:smollm2-135m-instruct:default:chef:a1"
    service.work_on(job_id, **finished("succeeded"), fine_tuned_model=model)

    said = service.run("jobs", "wait", job_id).stderr

    assert f"toque chat {model} 'Your question'\n" in said
    assert (
        "toque compare --file HELD_OUT.jsonl --base-model smollm2-135m-instruct --candidate base "
        f"--candidate {model} --grader exact_match --wait\n"
    ) in said
    assert "toque chat" not in service.run("jobs", "wait", job_id, "--json").stderr


def test_a_job_with_a_validation_file_is_compared_on_it(service: Service, dataset: Path) -> None:
    created = service.run(
        *("jobs", "create", "--training-file", dataset, "--validation-file", dataset),
        *("--model", "smollm2-135m-instruct", "--json"),
    )
    job = json.loads(created.stdout)
    service.work_on(job["id"], **finished("succeeded"), fine_tuned_model="ft:smollm2-135m-instruct:p::a2")

    assert f"--file {job['validation_file']} " in service.run("jobs", "wait", job["id"]).stderr


def test_a_job_that_fails(service: Service, job_id: str) -> None:
    error = {"code": "out_of_memory", "message": "Use a smaller batch.", "param": None}
    service.work_on(job_id, **finished("failed"), error=error)

    waited = service.run("jobs", "wait", job_id, "--json")

    assert waited.exit_code == 1
    assert json.loads(waited.stdout)["error"] == error
    assert "Use a smaller batch. (out_of_memory)" in waited.stderr


def test_a_job_that_is_cancelled(service: Service, job_id: str) -> None:
    service.run("jobs", "cancel", job_id)

    waited = service.run("jobs", "wait", job_id, "--json")

    assert waited.exit_code == 3
    assert json.loads(waited.stdout)["status"] == "cancelled"


def test_a_job_that_takes_too_long(service: Service, dataset: Path) -> None:
    waited = service.run(
        *("jobs", "create", "--training-file", dataset, "--model", "smollm2-135m-instruct"),
        *("--wait", "--timeout", "0", "--json"),
    )

    assert waited.exit_code == 4
    job_id = json.loads(waited.stdout)["id"]
    assert f"toque jobs wait {job_id}" in waited.stderr
    address = service.environment["TOQUE_BASE_URL"].removesuffix("/v1")
    assert f"Created job {job_id}: {address}/console/jobs/{job_id}\n" in waited.stderr


def test_ctrl_c_leaves_the_job_going(service: Service, job_id: str) -> None:
    waiting = service.start("jobs", "wait", job_id, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert waiting.stderr is not None
    assert "Created fine-tuning job" in waiting.stderr.readline()

    waiting.send_signal(signal.SIGINT)
    errors = waiting.stderr.read()

    assert waiting.wait(20) == 130
    assert f"job {job_id} goes on" in errors
    waiting.stderr.close()
    with service.database.reader() as session:
        assert session.get_one(FineTuningJob, job_id).status == "queued"


def test_events_are_followed_to_the_end(service: Service, job_id: str) -> None:
    following = service.start("jobs", "events", job_id, "--follow", "--json", stdout=subprocess.PIPE)
    assert following.stdout is not None
    first = json.loads(following.stdout.readline())

    service.work_on(job_id, metrics_event(1, 2, 0.9), metrics_event(2, 2, 0.5))
    second = json.loads(following.stdout.readline())
    last = Event(level="info", type="message", message="The job has successfully completed")
    service.work_on(job_id, last, **finished("succeeded"))
    rest = read_rest(following)

    messages = [event["message"] for event in (first, second, *map(json.loads, rest.splitlines()))]
    assert messages[0].startswith("Created fine-tuning job")
    assert messages[1:] == [
        "Step 1/2: training loss=0.9",
        "Step 2/2: training loss=0.5",
        "The job has successfully completed",
    ]
    assert following.wait(20) == 0
    following.stdout.close()


def test_a_terminal_gets_a_bar(service: Service, job_id: str) -> None:
    service.work_on(job_id, metrics_event(3, 8, 0.512), status="running", estimated_finish=4e9)
    ours, theirs = os.openpty()
    environment = {"TERM": "xterm", "COLUMNS": "120"}
    watched = Service(service.environment | environment, service.database)
    waiting = watched.start("jobs", "wait", job_id, "--json", stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)

    shown = _read_until(ours, "left")
    reading = threading.Thread(target=_read_rest, args=(ours,))  # or a full terminal would stop the bar
    reading.start()
    service.work_on(job_id, **finished("succeeded"))
    result, _ = waiting.communicate(timeout=120)
    reading.join()
    os.close(ours)

    assert "running" in shown
    assert "3/8" in shown
    assert "loss 0.512" in shown
    assert json.loads(result)["status"] == "succeeded"


def test_a_wait_survives_faults(stand_in: Callable[[list[object]], Service]) -> None:
    service = stand_in(["queued", 503, "drop", 500, 429, "running", "succeeded"])

    waited = service.run("jobs", "wait", "ftjob-1", "--timeout", "60")

    assert waited.exit_code == 0, waited.output
    assert waited.stderr.count("The service does not answer") == 1


def test_a_wait_for_a_dead_service_times_out(stand_in: Callable[[list[object]], Service]) -> None:
    service = stand_in(["queued", *["drop"] * 1000])

    waited = service.run("jobs", "wait", "ftjob-1", "--timeout", "0.3")

    assert waited.exit_code == 4


def test_a_wait_ends_when_the_service_refuses(stand_in: Callable[[list[object]], Service]) -> None:
    service = stand_in(["queued", 401])

    waited = service.run("jobs", "wait", "ftjob-1")

    assert waited.exit_code == 1
    assert "Error: status 401" in waited.stderr


@pytest.fixture
def stand_in(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[list[object]], Service]]:
    """Makes a service that answers from a list: a job's statuses, HTTP errors, lost connections."""
    monkeypatch.setattr(job_progress, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(job_progress, "_MAX_POLL_SECONDS", 0.02)
    with _scripted_server() as (server, answers):

        def make(script: list[object]) -> Service:
            answers.extend(script)
            address = {"TOQUE_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1"}
            return Service(service.environment | address, service.database)

        yield make


@contextmanager
def _scripted_server() -> Iterator[tuple[ThreadingHTTPServer, list[object]]]:
    answers: list[object] = []

    class Jobs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/events" in self.path:
                self._send(200, {"object": "list", "data": [], "has_more": False})
                return
            answer = answers.pop(0)
            if answer == "drop":
                self.close_connection = True
            elif isinstance(answer, int):
                self._send(answer, {"error": {"message": f"status {answer}", "code": None, "param": None}})
            else:
                self._send(200, _job(str(answer)))

        def _send(self, status: int, body: dict[str, object]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Jobs) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server, answers
        server.shutdown()
        thread.join()


def _job(status: str) -> dict[str, object]:
    return {
        "id": "ftjob-1",
        "object": "fine_tuning.job",
        "created_at": 1,
        "hyperparameters": {"n_epochs": 1},
        "model": "base",
        "organization_id": "proj_1",
        "result_files": [],
        "seed": 1,
        "status": status,
        "training_file": "file-1",
    }


def _read_until(descriptor: int, text: str) -> str:
    shown = ""
    while text not in shown:
        shown += os.read(descriptor, 4096).decode()
    return shown


def _read_rest(descriptor: int) -> None:
    """Until nobody has the terminal open any more."""
    with suppress(OSError):
        while os.read(descriptor, 4096):
            pass
