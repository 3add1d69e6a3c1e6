"""Estimates of how long a job takes and how much memory it needs, based on what earlier jobs took.

Work is counted (`packing.Work`), not guessed, and what it costs follows from the base model's shape. Two
figures are left to measure: the device's speed, and the memory that the trainer needs before it computes
anything. Workers record both with every job that succeeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.settings import BaseModelEntry, Settings
from app.fine_tuning import worker_registry
from app.fine_tuning.geometry import Geometry, adapter_bytes, example_bytes
from app.fine_tuning.models import FineTuningJob, TrainingSpeed, Worker
from app.fine_tuning.packing import JobWork, Work
from app.fine_tuning.precision import cpu_has_bf16
from app.models.catalogue import Catalogue

_JOBS = 5
"""The number of recent jobs that an estimate is based on."""

# The speed where nothing was measured yet, in operations per second: of one core of a current server CPU, and
# of a data-centre GPU.
_DEFAULT_SPEED = {"fp32": 30e9, "bf16": 150e9, "cuda": 100e12}
_DEFAULT_STARTUP_SECONDS = 15.0
_WARM_STARTUP_SECONDS = 1.0
_DEFAULT_RUNTIME_BYTES = 600 * 2**20
"""What Python, torch and transformers take without a model."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What is known of the device that estimates are based on."""

    kind: Literal["measured", "default"]
    device: str
    device_memory_bytes: int | None
    speed: float
    """Operations per second."""
    startup_seconds: float
    resident_memory_bytes: int
    """The trainer's memory whatever the job: its own, the base model's, and what earlier jobs left."""
    value_bytes: int
    """The size of a weight or an activation in the type that the device computes in."""
    jobs: int = 0
    """The number of jobs that were measured."""
    tokens_per_second: float | None = None
    """The measured jobs' throughput; a job of another shape is faster or slower."""
    measured_at: float | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return not self.device.startswith("CPU")


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a job took, and what of its hyperparameters decided about that."""

    speed: TrainingSpeed
    hyperparameters: dict[str, Any]

    @property
    def training(self) -> Work:
        """The work of its optimizer steps."""
        return msgspec.convert(self.speed.training, Work)

    @property
    def evaluation(self) -> Work:
        """The work of its evaluations."""
        return msgspec.convert(self.speed.evaluation, Work)

    def trainable(self, geometry: Geometry) -> int:
        """The number of its adapter's parameters."""
        return trainable_parameters(geometry, {"lora_rank": self.speed.lora_rank} | self.hyperparameters)

    def cost(self, geometry: Geometry) -> float:
        """The cost of its work."""
        return geometry.job_cost(self.training, self.evaluation, self.trainable(geometry))


def trainable_parameters(geometry: Geometry, hyperparameters: dict[str, Any]) -> int:
    """Return the number of parameters of a job's adapter."""
    targets = hyperparameters.get("target_modules", "all-linear")
    return geometry.trainable(hyperparameters["lora_rank"], targets)


def _base_bytes(geometry: Geometry, value_bytes: int, hyperparameters: dict[str, Any]) -> int:
    """The bytes of the base model on each of a job's GPUs, or in the process."""
    whole = geometry.base_bytes(value_bytes, hyperparameters.get("quantization", "none"))
    return whole // hyperparameters.get("gpus", 1)


def _at_once(device: str, hyperparameters: dict[str, Any]) -> int:
    """The number of devices that compute at once, for nearly as many times the speed of one."""
    return 1 if device.startswith("CPU") else hyperparameters.get("gpus", 1)  # processes share the cores


def record(session: Session, speed: TrainingSpeed) -> None:
    """Record what a job took. Recording the same job again changes nothing."""
    session.merge(speed)


def find_basis(
    session: Session | None,
    base: BaseModelEntry,
    geometry: Geometry,
    heartbeat_seconds: float,
    hyperparameters: dict[str, Any],
) -> Basis:
    """Return what the last jobs of this base took on the device where it is trained, or a default.

    How the base model is stored (`quantization`, `gpus`), and on how many GPUs, is that of a job with these
    hyperparameters.
    """
    measured: list[_Measured] = []
    alive: list[Worker] = []
    if session is not None:
        alive = worker_registry.alive(session, heartbeat_seconds)
        newest = (
            select(TrainingSpeed, FineTuningJob.hyperparameters)
            .join(FineTuningJob, FineTuningJob.id == TrainingSpeed.job_id)
            .where(TrainingSpeed.base_model == base.name)
            .order_by(TrainingSpeed.measured_at.desc())
            .limit(100)
        )
        measured = [_Measured(*row) for row in session.execute(newest)]
    devices = {worker.device: worker for worker in alive}
    measured = [each for each in measured if not devices or each.speed.device in devices]
    if session is None or not measured:
        device = next(iter(devices), f"CPU, {psutil.cpu_count() or 1} cores")
        return _default_basis(geometry, device, devices.get(device), hyperparameters)
    newest_speed = measured[0].speed
    same = [each for each in measured if each.speed.device == newest_speed.device][:_JOBS]
    same_base = all(
        measured[0].hyperparameters.get(name) == hyperparameters.get(name)
        for name in ("quantization", "gpus")
    )
    is_warm = same_base and _is_warm(session, newest_speed, alive)
    worker = devices.get(newest_speed.device)
    return _measured_basis(geometry, same, worker, hyperparameters, is_warm=is_warm)


def seconds_by_others(session: Session, settings: Settings, speed: TrainingSpeed) -> float | None:
    """Estimate from earlier jobs of the base how long the steps take; None if there are none."""
    base = Catalogue.read(session, settings).find(speed.base_model)
    if base is None:
        return None
    geometry = Geometry.load(settings.base_model_dir(base))
    job = _Measured(speed, session.get_one(FineTuningJob, speed.job_id).hyperparameters)
    basis = find_basis(session, base, geometry, settings.heartbeat_seconds, job.hyperparameters)
    return job.cost(geometry) / basis.speed if basis.kind == "measured" else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long one job takes, and how much memory."""

    seconds: float
    """Time from the job's claim to its end."""
    peak_memory_bytes: int
    adapter_memory_bytes: int
    activation_memory_bytes: int
    activation_checkpointing: bool
    """Whether it only fits because activations are computed again in the backward pass."""


def estimate(
    geometry: Geometry, basis: Basis, work: JobWork | None, *, trainable: int, tokens: int
) -> Estimate:
    """Estimate one job.

    Args:
        geometry: the base model's shape.
        basis: what is known of the device.
        work: the job's work; None if there is no example to train on.
        trainable: the number of the adapter's parameters.
        tokens: the tokens of all its examples, each counted once.
    """
    work = work or JobWork(Work(), Work(), [])
    before = (
        basis.resident_memory_bytes + adapter_bytes(trainable) + example_bytes(tokens, is_gpu=basis.is_gpu)
    )

    def held(work: JobWork) -> int:
        return geometry.held_bytes(work.largest, trainable, basis.value_bytes, is_gpu=basis.is_gpu)

    memory = basis.device_memory_bytes
    recomputes = memory is not None and before + held(work) > memory
    work = work.recomputing() if recomputes else work
    return Estimate(
        seconds=basis.startup_seconds
        + geometry.job_cost(work.training, work.evaluation, trainable) / basis.speed,
        peak_memory_bytes=before + held(work),
        adapter_memory_bytes=adapter_bytes(trainable),
        activation_memory_bytes=held(work),
        activation_checkpointing=recomputes,
    )


def _default_basis(
    geometry: Geometry, device: str, worker: Worker | None, hyperparameters: dict[str, Any]
) -> Basis:
    is_gpu = not device.startswith("CPU")
    value_bytes = 2 if is_gpu or cpu_has_bf16() else 4
    cores = 1 if is_gpu else int("".join(filter(str.isdigit, device)) or 1)
    speed = _DEFAULT_SPEED["cuda" if is_gpu else "bf16" if value_bytes == 2 else "fp32"]
    weights = _base_bytes(geometry, value_bytes, hyperparameters)
    return Basis(
        kind="default",
        device=device,
        device_memory_bytes=_memory_of(device, worker),
        speed=speed * cores * _at_once(device, hyperparameters),
        startup_seconds=_DEFAULT_STARTUP_SECONDS,
        resident_memory_bytes=weights + (0 if is_gpu else _DEFAULT_RUNTIME_BYTES),
        value_bytes=value_bytes,
    )


def _measured_basis(
    geometry: Geometry,
    measured: Sequence[_Measured],
    worker: Worker | None,
    hyperparameters: dict[str, Any],
    *,
    is_warm: bool,
) -> Basis:
    newest = measured[0].speed
    seconds = sum(each.speed.seconds for each in measured)
    cost = sum(each.cost(geometry) / _at_once(each.speed.device, each.hyperparameters) for each in measured)
    startups = [each.speed.startup_seconds for each in measured]
    weights = _base_bytes(geometry, newest.value_bytes, hyperparameters)
    beside_weights = max(
        each.speed.resident_memory_bytes - _base_bytes(geometry, each.speed.value_bytes, each.hyperparameters)
        for each in measured
    )
    return Basis(
        kind="measured",
        device=newest.device,
        device_memory_bytes=_memory_of(newest.device, worker),
        speed=cost / seconds * _at_once(newest.device, hyperparameters),
        startup_seconds=min(_WARM_STARTUP_SECONDS, *startups) if is_warm else max(startups),
        resident_memory_bytes=max(0, weights + beside_weights) + _left_over(geometry, measured),
        value_bytes=newest.value_bytes,
        jobs=len(measured),
        tokens_per_second=sum(each.speed.tokens for each in measured) / seconds,
        measured_at=newest.measured_at,
    )


def _left_over(geometry: Geometry, measured: Sequence[_Measured]) -> int:
    """The most memory that a job took beyond the sum of its parts, because earlier jobs had left some."""

    def beyond(job: _Measured) -> int:
        speed, trainable = job.speed, job.trainable(geometry)
        largest, is_gpu = msgspec.convert(speed.largest, Work), not speed.device.startswith("CPU")
        held = geometry.held_bytes(largest, trainable, speed.value_bytes, is_gpu=is_gpu)
        return speed.peak_memory_bytes - speed.resident_memory_bytes - adapter_bytes(trainable) - held

    return max(0, *map(beyond, measured))


def _is_warm(session: Session, speed: TrainingSpeed, alive: Sequence[Worker]) -> bool:
    """Whether the worker that trained this job is alive and has loaded no other base since."""
    last = (
        select(TrainingSpeed.base_model)
        .where(TrainingSpeed.worker_id == speed.worker_id)
        .order_by(TrainingSpeed.measured_at.desc())
        .limit(1)
    )
    lives = any(worker.id == speed.worker_id for worker in alive)
    return lives and session.scalar(last) == speed.base_model


def _memory_of(device: str, worker: Worker | None) -> int | None:
    if worker is not None and worker.device_memory_bytes:
        return worker.device_memory_bytes
    return psutil.virtual_memory().total if device.startswith("CPU") else None
