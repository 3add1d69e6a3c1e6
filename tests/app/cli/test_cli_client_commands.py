"""Client commands, against a real API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.completions.models import Engine
from app.fine_tuning.models import Checkpoint
from tests.support.command import Service, finished, metrics_event
from tests.support.waiting import wait_until

MODEL = "smollm2-135m-instruct"


def test_help_and_version_do_not_load_the_slow_libraries() -> None:
    check = (
        "import sys; from app.cli.main import app; "
        "slow = {'openai', 'sqlalchemy', 'fastapi', 'uvicorn', 'aiohttp', 'alembic'} & set(sys.modules); "
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "api",
        "files upload",
        "jobs create",
        "jobs check",
        "jobs wait",
        "compare",
        "compare report",
        "models pull",
        "keys create",
        "keys rotate",
        "projects create",
        "db upgrade",
        "chat",
    ],
)
def test_every_command_has_an_example(service: Service, command: str) -> None:
    shown = service.run(*command.split(), "--help")

    assert shown.exit_code == 0
    assert "Example: " in shown.output
    assert f"toque {command}" in shown.output


def test_version(service: Service) -> None:
    assert service.run("--version").output.startswith("toque 0.")


def test_a_file_from_upload_to_deletion(service: Service, dataset: Path, tmp_path: Path) -> None:
    uploaded = json.loads(service.run("files", "upload", dataset, "--json").stdout)
    assert (uploaded["filename"], uploaded["purpose"]) == ("train.jsonl", "fine-tune")
    file_id = uploaded["id"]

    assert file_id in [file["id"] for file in json.loads(service.run("files", "list", "--json").stdout)]
    assert file_id in service.run("files", "list", "--purpose", "fine-tune").stdout
    assert file_id not in service.run("files", "list", "--purpose", "batch").stdout
    assert f"{dataset.stat().st_size:,}" in service.run("files", "get", file_id).stdout
    assert service.run("files", "download", file_id).stdout == dataset.read_text()

    copy = tmp_path / "copy.jsonl"
    assert service.run("files", "download", file_id, "-o", copy).exit_code == 0
    assert copy.read_bytes() == dataset.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []

    assert service.run("files", "delete", file_id).exit_code == 0
    gone = service.run("files", "get", file_id, "--json")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert file_id in gone.stderr
    assert "code file_not_found" in gone.stderr
    assert "request req_" in gone.stderr


def test_a_bad_dataset_ends_with_one_line(service: Service, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("not json\n")

    refused = service.run("files", "upload", bad)

    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: Line 1 ")
    assert refused.stderr.count("\n") == 1
    assert "invalid_json" in refused.stdout


def test_a_job_is_created_as_asked(service: Service, dataset: Path) -> None:
    file_id = json.loads(service.run("files", "upload", dataset, "--json").stdout)["id"]
    options = "--suffix chef --seed 7 --n-epochs 2 --batch-size 4 --learning-rate 0.001 --lora-rank 8"

    created = service.run(
        *("jobs", "create", "--model", MODEL, "--training-file", file_id, "--validation-file", dataset),
        *(*options.split(), "--metadata", "team=kitchen", "--metadata", "why=a=b", "--json"),
    )

    assert created.exit_code == 0, created.stderr
    job = json.loads(created.stdout)
    assert job["training_file"] == file_id
    assert f"Uploaded {dataset} as {job['validation_file']}" in created.stderr
    assert (job["status"], job["suffix"], job["seed"]) == ("queued", "chef", 7)
    assert job["metadata"] == {"team": "kitchen", "why": "a=b"}
    used = job["hyperparameters"]
    assert [used[name] for name in ("n_epochs", "batch_size", "learning_rate", "lora_rank")] == [
        2,
        4,
        0.001,
        8,
    ]

    listed = service.run("jobs", "list", "--limit", "1")
    assert job["id"] in listed.stdout
    shown = service.run("jobs", "get", job["id"])
    assert "team=kitchen, why=a=b" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--training-file", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--training-file", "file-abc", "--metadata", "novalue"), "novalue"),
        (("--training-file", "file-abc", "--n-epochs", "0"), "--n-epochs"),
    ],
)
def test_wrong_usage_is_exit_code_2(service: Service, arguments: tuple[str, ...], named: str) -> None:
    refused = service.run("jobs", "create", "--model", MODEL, *arguments)

    assert refused.exit_code == 2
    assert named in refused.stderr


def test_an_unset_variable_is_wrong_usage(service: Service) -> None:
    assert service.run("jobs", "get", "").exit_code == 2
    assert service.run("files", "get", "").exit_code == 2


def test_what_the_service_refuses_names_the_parameter(service: Service, dataset: Path) -> None:
    refused = service.run("jobs", "create", "--model", "gpt-9", "--training-file", dataset)

    assert refused.exit_code == 1
    assert "code model_not_found, param model" in refused.stderr


def test_checkpoints(service: Service, job_id: str) -> None:
    with service.database.writer() as session:
        session.add(
            Checkpoint(
                job_id=job_id,
                step_number=5,
                fine_tuned_model_checkpoint=f"ft:{job_id}:ckpt-step-5",
                metrics={"step": 5, "train_loss": 0.25},
            )
        )

    assert f"ft:{job_id}:ckpt-step-5" in service.run("jobs", "checkpoints", job_id).stdout
    [checkpoint] = json.loads(service.run("jobs", "checkpoints", job_id, "--json").stdout)
    assert checkpoint["metrics"]["train_loss"] == 0.25


def test_events_are_shown_oldest_first(service: Service, job_id: str) -> None:
    service.work_on(job_id, *(metrics_event(step, 3, 1.0 / step) for step in (1, 2, 3)))

    shown = service.run("jobs", "events", job_id).stdout
    log = json.loads(service.run("jobs", "events", job_id, "--json").stdout)

    assert shown.index("Created") < shown.index("Step 1/3") < shown.index("Step 3/3")
    assert [event["data"]["step"] for event in log if event["type"] == "metrics"] == [1, 2, 3]


def test_cancel(service: Service, job_id: str) -> None:
    assert json.loads(service.run("jobs", "cancel", job_id, "--json").stdout)["status"] == "cancelled"
    service.work_on(job_id, **finished("failed"))

    again = service.run("jobs", "cancel", job_id)

    assert again.exit_code == 1
    assert "code job_failed" in again.stderr


def test_models_list(service: Service) -> None:
    assert MODEL in service.run("models", "list").stdout
    assert MODEL in [model["id"] for model in json.loads(service.run("models", "list", "--json").stdout)]


def test_keys_from_first_to_last(service: Service) -> None:
    made = json.loads(service.run("keys", "create", "ci", "--project", "support", "--json").stdout)
    with_it = Service(service.environment | {"TOQUE_API_KEY": made["key"]}, service.database)
    assert with_it.run("jobs", "list").exit_code == 0
    listed = service.run("keys", "list")
    assert made["id"] in listed.stdout
    assert made["key"] not in listed.output

    assert service.run("keys", "revoke", made["id"]).exit_code == 0

    refused = wait_until(
        lambda: (listing := with_it.run("jobs", "list")).exit_code and listing, "the key is refused"
    )
    assert refused.exit_code == 1
    assert "code invalid_api_key" in refused.stderr
    assert service.run("keys", "revoke", "key_none").exit_code == 1


def test_a_key_is_limited_and_rotated(service: Service) -> None:
    limits = ("--role", "inference", "--model", MODEL, "--model", "soup:live", "--expires-in", "90d")
    made = json.loads(service.run("keys", "create", "web", *limits, "--json").stdout)
    assert (made["role"], made["models"]) == ("inference", [MODEL, "soup:live"])
    assert made["expires_at"] == pytest.approx(time.time() + 90 * 86_400, abs=60)
    limited = Service(service.environment | {"TOQUE_API_KEY": made["key"]}, service.database)
    refused = limited.run("jobs", "list")
    assert refused.exit_code == 1
    assert "code insufficient_permissions" in refused.stderr

    rotated = service.run("keys", "rotate", made["id"], "--overlap", "30m", "--json")
    successor = json.loads(rotated.stdout)
    assert made["id"] in rotated.stderr
    keys = {key["id"]: key for key in json.loads(service.run("keys", "list", "--json").stdout)}
    assert keys[made["id"]]["expires_at"] == pytest.approx(time.time() + 1800, abs=60)
    for name in ("name", "project", "role", "models"):
        assert keys[successor["id"]][name] == keys[made["id"]][name]
    assert successor["key"] not in rotated.stderr

    for wrong in (("--expires-in", "5w"), ("--role", "chef")):
        assert service.run("keys", "create", "web", *wrong).exit_code == 2
    refused = service.run("keys", "create", "web", "--role", "train", "--model", MODEL)
    assert refused.exit_code == 1
    assert "'inference'" in refused.stderr


def test_projects_from_first_to_last(service: Service) -> None:
    made = json.loads(service.run("projects", "create", "Night shift", "--json").stdout)
    assert (made["name"], made["slug"], made["status"]) == ("Night shift", "night-shift", "active")
    assert "Night shift" in service.run("projects", "list").stdout
    assert service.run("projects", "archive", made["id"]).exit_code == 0

    assert "Night shift" not in service.run("projects", "list").stdout
    listed = json.loads(service.run("projects", "list", "--archived", "--json").stdout)
    assert made["id"] in [each["id"] for each in listed if each["status"] == "archived"]
    refused = service.run("keys", "create", "late", "--project", "night-shift")
    assert refused.exit_code == 1
    assert "archived" in refused.stderr
    assert service.run("projects", "archive", "proj_none").exit_code == 1


def test_keys_need_a_database(service: Service, tmp_path: Path) -> None:
    elsewhere = Service(service.environment | {"TOQUE_DATA_DIR": str(tmp_path)}, service.database)

    refused = elsewhere.run("keys", "list")
    assert refused.exit_code == 1
    assert "toque db upgrade" in refused.stderr

    assert elsewhere.run("db", "upgrade").exit_code == 0
    assert elsewhere.run("db", "upgrade").exit_code == 0
    [key] = json.loads(elsewhere.run("keys", "list", "--json").stdout)
    assert service.environment["TOQUE_API_KEY"].endswith(key["hint"])


def test_the_key_comes_from_the_data_folder(service: Service, tmp_path: Path) -> None:
    environment = {name: value for name, value in service.environment.items() if name != "TOQUE_API_KEY"}
    assert Service(environment, service.database).run("jobs", "list").exit_code == 0
    empty = environment | {"TOQUE_API_KEY": ""}
    assert Service(empty, service.database).run("jobs", "list").exit_code == 0

    refused = Service(environment | {"TOQUE_DATA_DIR": str(tmp_path)}, service.database).run("jobs", "list")

    assert refused.exit_code == 2
    assert "TOQUE_API_KEY" in refused.stderr


def test_openai_variables_stand_in_for_ours(service: Service, tmp_path: Path) -> None:
    address, key = service.environment["TOQUE_BASE_URL"], service.environment["TOQUE_API_KEY"]
    away = {"TOQUE_DATA_DIR": str(tmp_path), "NO_COLOR": "1"}  # its data folder keeps no key

    def exit_code(**environment: str) -> int:
        return Service(away | environment, service.database).run("jobs", "list").exit_code

    assert exit_code(OPENAI_BASE_URL=address, OPENAI_API_KEY=key) == 0
    assert exit_code(OPENAI_BASE_URL=address, OPENAI_API_KEY=key, TOQUE_BASE_URL="", TOQUE_API_KEY="") == 0
    assert exit_code(OPENAI_BASE_URL=address, OPENAI_API_KEY="sk-other", TOQUE_API_KEY=key) == 0
    elsewhere = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "sk-of-openai"}
    assert exit_code(**elsewhere, TOQUE_BASE_URL=address, TOQUE_API_KEY=key) == 0
    assert exit_code(OPENAI_BASE_URL=address, OPENAI_API_KEY=key, TOQUE_API_KEY="sk-other") == 1


def test_openai_variables_stand_behind_the_option_and_before_the_data_folder(service: Service) -> None:
    environment = service.environment | {"TOQUE_BASE_URL": "", "TOQUE_API_KEY": ""}
    address = service.environment["TOQUE_BASE_URL"]
    elsewhere = environment | {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
    there = environment | {"OPENAI_BASE_URL": address}

    assert Service(elsewhere, service.database).run("jobs", "list", "--base-url", address).exit_code == 0
    refused = Service(there | {"OPENAI_API_KEY": "sk-other"}, service.database).run("jobs", "list")
    assert "code invalid_api_key" in refused.stderr


def test_a_key_of_openai_stays_here(service: Service) -> None:
    """OPENAI_API_KEY goes to OPENAI_BASE_URL, and nowhere else."""
    environment = service.environment | {"TOQUE_API_KEY": "", "OPENAI_API_KEY": "sk-of-openai"}
    elsewhere = environment | {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}

    assert Service(environment, service.database).run("jobs", "list").exit_code == 0
    assert Service(elsewhere, service.database).run("jobs", "list").exit_code == 0


def test_no_service_there(service: Service) -> None:
    refused = service.run("models", "list", "--base-url", "http://127.0.0.1:1/v1")

    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "is `toque serve` running there?" in refused.stderr


@pytest.mark.parametrize(("name", "value"), [("PORT", "high"), ("BASE_MODELS", "[")])
def test_a_wrong_setting_is_named(service: Service, name: str, value: str) -> None:
    refused = Service(service.environment | {f"TOQUE_{name}": value}, service.database).run("jobs", "list")

    assert refused.exit_code == 2
    assert name in refused.stderr.upper()


def test_chat_streams_the_answer(service: Service, engine: list[dict[str, object]]) -> None:
    answered = service.run(
        *("chat", MODEL, "What is salt?", "--system", "Be brief."),
        *("--temperature", "0", "--max-tokens", "5"),
    )

    assert (answered.exit_code, answered.stdout) == (0, "Na Cl\n")
    [asked] = engine
    assert [message["content"] for message in asked["messages"]] == ["Be brief.", "What is salt?"]  # type: ignore[attr-defined, index]
    assert (asked["temperature"], asked["max_tokens"]) == (0, 5)


def test_chat_reads_the_question_from_a_pipe(service: Service, engine: list[dict[str, object]]) -> None:
    answered = service.run("chat", MODEL, "--json", stdin="What is\nsalt?")

    chunks = [json.loads(line) for line in answered.stdout.splitlines()]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "Na Cl"
    assert engine[0]["messages"] == [{"role": "user", "content": "What is\nsalt?"}]


def test_a_conversation_remembers_and_ends_with_ctrl_d(
    service: Service, engine: list[dict[str, object]]
) -> None:
    ours, theirs = os.openpty()
    talk = service.start("chat", MODEL, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    os.close(theirs)
    assert talk.stdout is not None

    os.write(ours, b"One?\n")
    assert "Na Cl" in talk.stdout.readline()
    os.write(ours, b"Two?\n")
    assert "Na Cl" in talk.stdout.readline()
    os.write(ours, b"\x04")

    assert talk.wait(20) == 0
    talk.stdout.close()
    os.close(ours)
    assert [message["content"] for message in engine[1]["messages"]] == ["One?", "Na Cl", "Two?"]  # type: ignore[attr-defined, index]


@pytest.fixture
def engine(service: Service) -> Iterator[list[dict[str, object]]]:
    """A stand-in for vLLM, which takes a minute to start; yields the bodies that the gateway sent it."""
    bodies: list[dict[str, object]] = []

    class Completions(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # it is well
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for text in ("Na", " ", "Cl"):
                delta = {"index": 0, "delta": {"content": text}, "finish_reason": None}
                chunk = {
                    "id": "c",
                    "object": "chat.completion.chunk",
                    "created": 1,
                    "model": MODEL,
                    "choices": [delta],
                }
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        row = Engine(
            base_model=MODEL,
            url=f"http://127.0.0.1:{server.server_port}",
            api_key="secret",
            status="ready",
            device="none",
            version="0",
            started_at=time.time(),
            heartbeat_at=time.time() + 600,
        )
        with service.database.writer() as session:
            session.add(row)
        yield bodies
        with service.database.writer() as session:
            session.delete(row)
        server.shutdown()
        thread.join()
