"""One device for trainer and engine: they take turns on it.

Whose turn it is says one row of `shared_devices`, by the database's clock. A worker that takes the device
holds it by a lease, renewed with its job's. The engines on it see that, answer what they have begun, and
sleep; the worker trains once they all do, and gives the device back before its model is compared. No engine
loads or wakes up without asking for the device first, and it then has a turn in which no worker may take it.
Whoever dies, in whatever state, is waited for no longer than its lease or its heartbeats.
"""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.completions import service as completions_service
from app.completions.models import Engine, SharedDevice
from app.core.database import Database, database_now
from app.core.settings import Settings
from workers.device import Device

log = logging.getLogger("toque.device")

_LOOK_SECONDS = 0.2


def shared_device(settings: Settings, device: Device) -> str:
    """The name of the device to take turns on; empty where there is nothing to share."""
    if settings.shared_device and device.kind == "cpu":
        log.warning("TOQUE_SHARED_DEVICE does nothing here: vLLM can give up a GPU's memory, and no other's")
        return ""
    return settings.shared_device


class TrainingTurns:
    """A worker's turns on the device."""

    def __init__(self, database: Database, settings: Settings, name: str, worker_id: str) -> None:
        self._database = database
        self._settings = settings
        self._name = name
        self._worker_id = worker_id
        self._has_it = False

    def may_begin(self, session: Session) -> bool:
        """Whether the device may be taken in this transaction, which keeps others from it."""
        device, now = _locked(session, self._name)
        is_ours = device.worker_id in (None, self._worker_id)
        return device.engine_until <= now and (is_ours or device.worker_until <= now)

    def begin(self, session: Session) -> None:
        """Takes it, in the transaction that claims a job."""
        device, now = _locked(session, self._name)
        device.worker_id, device.worker_until = self._worker_id, now + self._settings.lease_seconds
        self._has_it = True

    def renew(self, session: Session) -> bool:
        """Keeps it, from the heartbeat's thread; False if it is lost: an engine may be awake on it."""
        if not self._has_it:
            return True
        until = database_now() + self._settings.lease_seconds
        mine = update(SharedDevice).where(
            SharedDevice.name == self._name, SharedDevice.worker_id == self._worker_id
        )
        renewed = session.connection().execute(mine.values(worker_until=until)).rowcount == 1
        return renewed or not self._has_it

    def engines_awake(self) -> bool:
        """Whether an engine may still hold the device's memory."""
        with self._database.reader() as session:
            return any(engine.status not in ("asleep", "stopped") for engine in self._engines(session))

    def end(self) -> None:
        """Gives the device back; the trainer must be gone from it. Done twice, it changes nothing."""
        if not self._has_it:
            return
        self._has_it = False
        try:
            with self._database.writer() as session:
                device, now = _locked(session, self._name)
                if device.worker_id == self._worker_id:
                    device.worker_id = None
                    if self._engines(session):
                        device.engine_until = now + self._settings.shared_device_serving_seconds
        except SQLAlchemyError as error:
            log.warning("the device is given back by the end of its lease: %s", error)

    def await_engine(self, base_model: str, stopping: threading.Event) -> None:
        """Returns once an engine of that base answers, or if none on this device is coming."""
        deadline = time.monotonic() + self._settings.engine_start_timeout
        while time.monotonic() < deadline and not stopping.is_set():
            with self._database.reader() as session:
                coming = [each for each in self._engines(session) if each.base_model == base_model]
                of_base = completions_service.live_engines(session, self._settings, base_model)
            if not coming or any(engine.status == "ready" for engine in of_base):
                return
            stopping.wait(_LOOK_SECONDS)

    def _engines(self, session: Session) -> list[Engine]:
        engines = completions_service.live_engines(session, self._settings)
        return [engine for engine in engines if engine.shared_device == self._name]


class ServingTurns:
    """An engine's turns on the device. While the database is away, all stays as it is."""

    def __init__(self, database: Database, settings: Settings, name: str) -> None:
        self._database = database
        self._settings = settings
        self._name = name
        self._looked_at = 0.0
        self._is_wanted = False

    def is_wanted(self) -> bool:
        """Whether a worker has taken the device; looked up as often as an idle worker looks for jobs."""
        if time.monotonic() - self._looked_at >= self._settings.poll_seconds:
            self._looked_at = time.monotonic()
            taken = select(SharedDevice.name).where(
                SharedDevice.name == self._name,
                SharedDevice.worker_id.is_not(None),
                SharedDevice.worker_until > database_now(),
            )
            try:
                with self._database.reader() as session:
                    self._is_wanted = session.scalar(taken) is not None
            except SQLAlchemyError as error:
                log.warning("whether the device is wanted is not known: %s", error)
        return self._is_wanted

    def take_back(self) -> bool:
        """Has the device for as long as loading may take, unless a worker has it."""
        try:
            with self._database.writer() as session:
                device, now = _locked(session, self._name)
                if device.worker_id is not None and device.worker_until > now:
                    return False
                device.worker_id = None  # one that comes back late finds that it has lost it
                device.engine_until = now + self._settings.engine_start_timeout
        except SQLAlchemyError as error:
            log.warning("the device cannot be taken: %s", error)
            return False
        self._is_wanted = False
        return True

    def begin(self) -> None:
        """The engine answers: from now on it has its turn."""
        self._keep_for(self._settings.shared_device_serving_seconds)

    def give_up(self) -> None:
        """The engine has failed, and does not keep the workers waiting."""
        self._keep_for(0.0)

    def _keep_for(self, seconds: float) -> None:
        this = update(SharedDevice).where(SharedDevice.name == self._name)
        try:
            with self._database.writer() as session:
                session.execute(this.values(engine_until=database_now() + seconds))
        except SQLAlchemyError as error:
            log.warning("the engine's turn is not noted: %s", error)


def _locked(session: Session, name: str) -> tuple[SharedDevice, float]:
    """The device's row, which no other transaction changes before this one ends, and the database's time."""
    device = session.get(SharedDevice, name, with_for_update=True)
    if device is None:
        device = SharedDevice(name=name, worker_until=0.0, engine_until=0.0)
        session.add(device)
        session.flush()
    return device, session.scalars(select(database_now())).one()
