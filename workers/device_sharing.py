"""Sharing one device between a trainer and the engines: they take turns on it.

One row of `shared_devices` says whose turn it is. A worker that takes the device leases it
(`app.core.lease`), and renews that lease with its job's. The engines see that the device is leased, finish
the answers they have begun, and sleep; the worker trains once all of them sleep, and gives the device back
before its model is compared with an engine's answers. An engine must take the device back before it loads or
wakes up, and it then has a turn during which no worker can take the device. A process that dies holds up the
others until its lease or its heartbeat expires, and no longer.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from sqlalchemy import Select, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.completions import service as completions_service
from app.completions.models import Engine, SharedDevice
from app.core.database import Database, database_now
from app.core.lease import Lease, LeaseLostError, LeaseTable
from app.core.settings import Settings
from workers.device import Device

log = logging.getLogger("toque.device")

_POLL_SECONDS = 0.2

LEASES = LeaseTable(
    SharedDevice,
    key=SharedDevice.name,
    epoch=SharedDevice.worker_id,
    until=SharedDevice.worker_until,
    held=SharedDevice.worker_id.is_not(None),
)
"""A worker has one lease on a device at a time, so that its id serves as the epoch."""


def shared_device(settings: Settings, device: Device) -> str:
    """The name of the device that is shared; empty if there is none to share."""
    if settings.shared_device and device.kind == "cpu":
        log.warning("TOQUE_SHARED_DEVICE does nothing here: vLLM can give up only the memory of a GPU")
        return ""
    return settings.shared_device


class TrainingTurns:
    """A worker's turns on the device."""

    def __init__(self, database: Database, settings: Settings, name: str, worker_id: str) -> None:
        self._database = database
        self._settings = settings
        self._name = name
        self._lease = Lease(name, worker_id)
        self._is_leased = False

    def may_begin(self, session: Session) -> bool:
        """Whether the device is free; no other process can take it until this transaction ends."""
        _lock(session, self._name)
        return session.scalar(self._free_device) is not None

    def begin(self, session: Session) -> None:
        """Lease the device, in the transaction that claims a job, after `may_begin`."""
        claim = LEASES.claim(self._free_device, self._settings.lease_seconds, worker_id=self._lease.epoch)
        session.scalars(claim).one()
        self._is_leased = True

    def renew(self, session: Session) -> None:
        """Renew the lease if there is one; called on the heartbeat's thread.

        Raises:
            LeaseLostError: the lease is lost, and an engine may be awake on the device.
        """
        if not self._is_leased:
            return
        try:
            LEASES.renew(session, self._lease, self._settings.lease_seconds)
        except LeaseLostError:
            if self._is_leased:  # else `end` has just given the device back
                raise

    @property
    def _free_device(self) -> Select[str]:
        is_free = or_(
            SharedDevice.worker_id.is_(None), SharedDevice.worker_id == self._lease.epoch, LEASES.expired
        )
        return select(SharedDevice.name).where(
            SharedDevice.name == self._name, SharedDevice.engine_until <= database_now(), is_free
        )

    def engines_awake(self) -> bool:
        """Whether an engine may still hold memory of the device."""
        with self._database.reader() as session:
            return any(engine.status not in ("asleep", "stopped") for engine in self._engines(session))

    def end(self) -> None:
        """Give the device back if it is leased; the trainer must have left it."""
        if not self._is_leased:
            return
        self._is_leased = False
        try:
            with self._database.writer() as session:
                LEASES.update(session, self._lease, worker_id=None)
                if self._engines(session):
                    _set_engine_turn(session, self._name, self._settings.shared_device_serving_seconds)
        except LeaseLostError:
            pass  # there is nothing to give back
        except SQLAlchemyError as error:
            log.warning("could not release the device; it stays leased until the lease expires: %s", error)

    def await_engine(self, base_model: str, stopping: threading.Event) -> None:
        """Wait until an engine of the base model answers, unless no engine on this device is starting."""
        deadline = time.monotonic() + self._settings.engine_start_timeout
        while time.monotonic() < deadline and not stopping.is_set():
            with self._database.reader() as session:
                coming = [each for each in self._engines(session) if each.base_model == base_model]
                of_base = completions_service.live_engines(session, self._settings, base_model)
            if not coming or any(engine.status == "ready" for engine in of_base):
                return
            stopping.wait(_POLL_SECONDS)

    def _engines(self, session: Session) -> list[Engine]:
        engines = completions_service.live_engines(session, self._settings)
        return [engine for engine in engines if engine.shared_device == self._name]


class ServingTurns:
    """An engine's turns on the device. While the database is away, nothing changes."""

    def __init__(self, database: Database, settings: Settings, name: str) -> None:
        self._database = database
        self._settings = settings
        self._name = name
        self._polled_at = 0.0
        self._is_wanted = False

    def is_wanted(self) -> bool:
        """Whether a worker has leased the device; read as often as an idle worker polls for jobs."""
        if time.monotonic() - self._polled_at >= self._settings.poll_seconds:
            self._polled_at = time.monotonic()
            try:
                with self._database.reader() as session:
                    self._is_wanted = _is_leased(session, self._name)
            except SQLAlchemyError as error:
                log.warning("cannot read whether a worker wants the device: %s", error)
        return self._is_wanted

    def take_back(self) -> bool:
        """Take the device for as long as loading may take; return False if a worker has leased it."""
        try:
            with self._database.writer() as session:
                _lock(session, self._name)
                if _is_leased(session, self._name):
                    return False
                # A worker whose lease has expired finds it lost when it comes back.
                _set_engine_turn(session, self._name, self._settings.engine_start_timeout, worker_id=None)
        except SQLAlchemyError as error:
            log.warning("the device cannot be taken: %s", error)
            return False
        self._is_wanted = False
        return True

    def begin(self) -> None:
        """Start the engine's turn, as it is ready."""
        self._keep_for(self._settings.shared_device_serving_seconds)

    def give_up(self) -> None:
        """End the engine's turn, as it has failed, so that no worker waits for it."""
        self._keep_for(0.0)

    def _keep_for(self, seconds: float) -> None:
        try:
            with self._database.writer() as session:
                _set_engine_turn(session, self._name, seconds)
        except SQLAlchemyError as error:
            log.warning("the engine's turn is not recorded: %s", error)


def _lock(session: Session, name: str) -> None:
    """Lock the device's row until the transaction ends; a device without a row gets one."""
    if session.get(SharedDevice, name, with_for_update=True) is None:
        session.add(SharedDevice(name=name, worker_until=0.0, engine_until=0.0))
        session.flush()


def _is_leased(session: Session, name: str) -> bool:
    leased = select(SharedDevice.name).where(SharedDevice.name == name, LEASES.active)
    return session.scalar(leased) is not None


def _set_engine_turn(session: Session, name: str, seconds: float, **values: Any) -> None:
    """Let no worker take the device for so long."""
    turn = update(SharedDevice).where(SharedDevice.name == name)
    session.execute(turn.values(engine_until=database_now() + seconds, **values))
