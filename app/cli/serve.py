"""`toque serve`, and the three processes that it supervises: `toque api`, `toque worker`, `toque engine`."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from app.cli.catalogue import read_catalogue
from app.cli.db import upgrade_database
from app.cli.keys import ensure_first_key, first_key_file
from app.cli.models import pull_base_model
from app.cli.output import fail, stdout
from app.cli.permissions import restrict_permissions
from app.cli.processes import toque_command
from app.cli.serve_lock import FolderInUseError, ServeLock
from app.cli.settings import read_settings
from app.cli.supervisor import Program, Supervisor
from app.core.child_environment import (
    DATABASE,
    ENGINES,
    TELEMETRY,
    child_environment,
    engine_environment,
    storage_secrets,
    worker_environment,
)
from app.core.logs import set_up_logging
from app.core.settings import BaseModelEntry, Settings
from app.core.tracing import tracing

_SWITCH_SECONDS = 0.0005
_API_DRAIN_SECONDS = 20
"""Less than the supervisor's drain time, since the engine stops after the API."""
_STYLES = {"api": "cyan", "worker": "magenta", "engine": "green", "toque": "bold yellow"}


def serve(
    host: Annotated[str | None, typer.Option(show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, show_default="8000", help="Port of the API; 0 takes a free one."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            show_default=False,
            help="Folder for the database, files, models and the first API key.",
        ),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(show_default="SQLite in the data folder", help="postgresql+psycopg://…")
    ] = None,
) -> None:
    """Run the whole service on this machine: API, worker and engine.

    Example: toque serve --port 8000 --data-dir ./toque
    """
    started = time.monotonic()
    settings = _settings_from(
        HOST=host, PORT=port, DATA_DIR=data_dir and data_dir.absolute(), DATABASE_URL=database_url
    )
    if settings.log_format == "auto":  # for the children, which write into a pipe
        os.environ["TOQUE_LOG_FORMAT"] = "console" if sys.stdout.isatty() else "json"
    restrict_permissions(settings)
    lock = _lock(settings.data_dir)
    listener = _bind(settings.host, settings.port)
    os.environ["TOQUE_PORT"] = str(listener.getsockname()[1])
    os.environ["PYTHONUNBUFFERED"] = "1"

    _say(f"database {upgrade_database(settings)}")
    if secret := ensure_first_key(settings):
        _say(f"API key {secret} (shown once; kept in {first_key_file(settings)})")
    _ensure_base_model(settings)
    address = _listen(listener)
    lock.announce(address)
    _say(f"starting on {address}/v1")

    programs = [
        Program(
            "api",
            toque_command("api", "--fd", str(listener.fileno())),
            child_environment((*DATABASE, *storage_secrets(), *ENGINES, *TELEMETRY), has_settings=True),
            descriptors=(listener.fileno(),),
        ),
        Program("worker", toque_command("worker"), worker_environment(settings.tracker)),
    ]
    supervisor = Supervisor(programs, _write, _say)
    asyncio.run(_supervise(supervisor, settings, listener, address, started))


def api(
    descriptor: Annotated[int | None, typer.Option("--fd", hidden=True)] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="Log every request.")
    ] = True,
) -> None:
    """Run the API alone, on TOQUE_HOST and TOQUE_PORT.

    Example: TOQUE_PORT=8000 toque api
    """
    import uvicorn  # noqa: PLC0415 - the server side is slow to import

    from app.api.main import create_app  # noqa: PLC0415 - as above

    settings = read_settings()
    set_up_logging("api", settings.log_format)
    if not access_log:
        logging.getLogger("toque.access").setLevel(logging.WARNING)
    restrict_permissions(settings)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="app.api.http_protocol:HttpProtocol",
        ws="none",
        log_config=None,  # it logs as everything does
        access_log=False,  # the app has its own, app.api.access_log
        proxy_headers=False,  # as TOQUE_TRUSTED_PROXIES says
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=_API_DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # each connection is one
    # What is loaded by now stays; collecting it again and again would pause all answers for 70 ms each time.
    gc.collect()
    gc.freeze()
    # Each time a request comes back from the database it waits this long for a thread that makes a page.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # uvicorn raises the signal again after it has drained; that must not look like a failure.
    signal.signal(signal.SIGTERM, _end)
    # A KeyboardInterrupt is uvicorn's way to say that Ctrl-C ended it.
    with suppress(KeyboardInterrupt), tracing("toque-api"):
        server.run(None if descriptor is None else [socket.socket(fileno=descriptor)])
    if not server.started:
        raise typer.Exit(1)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


async def _supervise(
    supervisor: Supervisor, settings: Settings, listener: socket.socket, address: str, started: float
) -> None:
    from app.cli.engine_pool import EnginePool  # noqa: PLC0415 - SQLAlchemy is slow to import

    ready = asyncio.create_task(_announce(settings, address, started))
    engines = asyncio.create_task(EnginePool(settings, supervisor, _engine, _say).run())
    try:
        await supervisor.run()
    finally:
        ready.cancel()
        engines.cancel()
        listener.close()


def _engine(entry: BaseModelEntry, is_default: bool) -> Program:
    """Returns the engine of a base model; the default one has the address of the settings."""
    name, options = ("engine", []) if is_default else (f"engine of {entry.name}", ["--base", entry.name])
    return Program(name, toque_command("engine", *options), engine_environment(), outlives=("api",))


async def _announce(settings: Settings, address: str, started: float) -> None:
    """Prints a line once the service is ready."""
    import aiohttp  # noqa: PLC0415 - slow to import

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while True:
            try:
                async with session.get(f"{address}/health/ready") as response:
                    if response.status == 200:
                        break
            except (aiohttp.ClientError, TimeoutError):
                pass  # not yet
            await asyncio.sleep(0.5)
    _say(f"ready on {address}/v1 after {time.monotonic() - started:.1f} s")
    key_file = first_key_file(settings)
    hint = f"; the first one is kept in {key_file}" if key_file.is_file() else ""
    _say(f"the console is {address}/console: sign in with an API key{hint}")


def _settings_from(**options: object) -> Settings:
    """Returns the settings; sets the options as environment variables, which the children inherit."""
    for name, value in options.items():
        if value is not None:
            os.environ[f"TOQUE_{name}"] = str(value)
    return read_settings()


def _lock(folder: Path) -> ServeLock:
    """Takes the data folder, which is created if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return ServeLock(folder)
    except FolderInUseError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"cannot use the data folder: {error}", 2)


def _bind(host: str, port: int) -> socket.socket:
    """Binds the port now, so that no other program can take it before the API starts."""
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        _refuse(host, port, error)
    return listener


def _listen(listener: socket.socket) -> str:
    """Lets connections wait until the API accepts them; returns the address for this machine."""
    address: tuple[str, int] = listener.getsockname()[:2]
    host, port = address
    try:
        listener.listen(2048)
    except OSError as error:
        _refuse(host, port, error)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _refuse(host: str, port: int, error: OSError) -> NoReturn:
    if error.errno == errno.EADDRINUSE:
        fail(f"port {port} on {host} is already in use; stop what uses it, or choose one with --port", 2)
    fail(f"cannot listen on {host}:{port}: {error.strerror}", 2)


def _ensure_base_model(settings: Settings) -> None:
    """Prepares the base model that the engine serves, unless it is prepared already."""
    from app.models.catalogue import is_prepared  # noqa: PLC0415 - as above

    try:
        entry = read_catalogue(settings).engine_base
    except ValueError as error:
        fail(str(error), 2)
    if is_prepared(settings, entry):
        return
    _say(f"base model {entry.name} is not here yet: running `toque models pull {entry.name}`")
    if code := pull_base_model(entry.name):
        raise typer.Exit(code)


def _say(line: str) -> None:
    _write("toque", line)


def _write(name: str, line: str) -> None:
    if line.startswith("{"):  # a line for machines, which names its process
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        return
    style = _STYLES[name.partition(" ")[0]]
    stdout.print(Text.assemble((f"{name:<6} | ", style), line), soft_wrap=True)
