"""Estimates of how long a job takes and how much memory it needs, based on what earlier jobs took.

Work is counted (`packing.Work`), not guessed, and what it costs follows from the base model's shape. Two
figures are left to measure: the device's speed, and the memory that the trainer needs before it computes
anything. Workers record both with every job that succeeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.settings import BaseModelEntry, Settings
from app.fine_tuning import worker_registry
from app.fine_tuning.models import TrainingSpeed, Worker
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

# Costs beyond the model's matrix products, in operations that would take as long. They were fitted to jobs of
# many shapes on CPUs (`make bench-estimates` shows how well), and are assumed to be the same on a GPU.
_SCORE_COST = 1.1
"""A factor: attention is small products and much exponentiation."""
_LOGIT_COST = 2.6
"""A factor: softmax, its gradient and the most likely token, over the whole vocabulary."""
_MICRO_BATCH_COST = 25e9
"""Launching every operation of a pass, and reading the weights for it."""
_STEP_COST = 2e9
"""Gradient clipping, the optimizer, and recording the step."""
_CHECKPOINT_COST = 10e9
_FORWARD_SHARE = 0.7
"""The cost of a forward pass alone, as a share of a whole step's."""

_ADAPTER_BYTES = 16
"""Bytes per trainable parameter: itself, its gradient and Adam's two moments, in fp32."""
# The shares of activations and logits that a CPU process holds at its peak, measured at 400 to 1,500 tokens
# per micro-batch. A GPU's allocator holds exactly what is needed.
_HELD_ACTIVATIONS = 0.87
"""Less than all of them: some are freed before the last is computed."""
_HELD_LOGITS = 1.35
_SCRATCH_BYTES = 220 * 2**20
"""What every job needs beside: temporary gradients, and heap fragmentation."""
_SAVING_BYTES = 24
"""Bytes per trainable parameter while a checkpoint is assembled; no activations are held at that time."""
_EXAMPLE_TOKEN_BYTES = 50
"""Bytes per token of an example in Python objects: its id, and whether it is a target."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of a base model."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    file_bytes: int
    """The size of its weights, in bf16."""

    @classmethod
    def load(cls, folder: Path) -> Geometry:
        """Read the shape of a prepared base model from its folder.

        Raises:
            KeyError: its configuration is not Llama-like.
        """
        whole: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        config: dict[str, Any] = whole.get("text_config") or whole
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_width=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            file_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        )

    @property
    def _linear_layers(self) -> Sequence[tuple[int, int]]:
        """The input and output widths of the linear layers in one decoder layer."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        outward = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys)]
        mlp = [(self.hidden, self.intermediate), (self.hidden, self.intermediate)]
        return [*outward, (queries, self.hidden), *mlp, (self.intermediate, self.hidden)]

    def trainable(self, rank: int) -> int:
        """The number of parameters of an adapter on every linear layer."""
        return self.layers * rank * sum(width_in + width_out for width_in, width_out in self._linear_layers)

    def cost(self, work: Work, rank: int) -> float:
        """The cost of the work in floating-point operations, or in as many as take as long."""
        parameters = self.layers * sum(width_in * width_out for width_in, width_out in self._linear_layers)
        # Two products through frozen weights (forward and backward), three through the adapter's.
        token = 4 * parameters + 6 * self.trainable(rank)
        score = 14 * self.layers * self.heads * self.head_width * _SCORE_COST
        logits = 4 * self.hidden * self.vocabulary * _LOGIT_COST
        return (
            work.tokens * token
            + work.scores * score
            + work.targets * logits
            + work.micro_batches * _MICRO_BATCH_COST
            + work.steps * _STEP_COST
            + work.checkpoints * _CHECKPOINT_COST
        )

    def job_cost(self, training: Work, evaluation: Work, rank: int) -> float:
        """The cost of a job's optimizer steps and of its evaluations."""
        return self.cost(training, rank) + _FORWARD_SHARE * self.cost(evaluation, rank)

    def activation_bytes(self, micro_batch: Work, value_bytes: int) -> int:
        """The activations that one forward pass keeps for its backward pass."""
        queries, keys = self.heads * self.head_width, self.key_heads * self.head_width
        # Per token and layer: the residual stream and its norms; queries, keys and values, before and after
        # rotation and gathered per sequence; attention's output; the MLP's four inner states; the low ranks.
        per_token = 6 * self.hidden + 4 * queries + 6 * keys + 4 * self.intermediate
        per_row = 3 * queries + 2 * keys
        return int(self.layers * value_bytes * (per_token * micro_batch.tokens + per_row * micro_batch.rows))

    def logit_bytes(self, micro_batch: Work, value_bytes: int) -> int:
        """The logits as computed, in fp32, and their softmax."""
        return int(micro_batch.targets * self.vocabulary * (value_bytes + 8))


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


def record(session: Session, speed: TrainingSpeed) -> None:
    """Record what a job took. Recording the same job again changes nothing."""
    session.merge(speed)


def find_basis(
    session: Session | None, base: BaseModelEntry, geometry: Geometry, heartbeat_seconds: float
) -> Basis:
    """Return what the last jobs of this base took on the device where it is trained, or a default."""
    speeds: list[TrainingSpeed] = []
    alive: list[Worker] = []
    if session is not None:
        alive = worker_registry.alive(session, heartbeat_seconds)
        newest = (
            select(TrainingSpeed)
            .where(TrainingSpeed.base_model == base.name)
            .order_by(TrainingSpeed.measured_at.desc())
            .limit(100)
        )
        speeds = list(session.scalars(newest))
    devices = {worker.device: worker for worker in alive}
    speeds = [speed for speed in speeds if not devices or speed.device in devices]
    if session is None or not speeds:
        device = next(iter(devices), f"CPU, {psutil.cpu_count() or 1} cores")
        return _default_basis(geometry, device, devices.get(device))
    same = [speed for speed in speeds if speed.device == speeds[0].device][:_JOBS]
    is_warm = _is_warm(session, speeds[0], alive)
    return _measured_basis(geometry, same, devices.get(speeds[0].device), is_warm=is_warm)


def seconds_by_others(session: Session, settings: Settings, speed: TrainingSpeed) -> float | None:
    """Estimate from earlier jobs of the base how long the steps take; None if there are none."""
    base = Catalogue.read(session, settings).find(speed.base_model)
    if base is None:
        return None
    try:
        geometry = Geometry.load(settings.base_model_dir(base))
    except KeyError:
        return None
    basis = find_basis(session, base, geometry, settings.heartbeat_seconds)
    work = msgspec.convert(speed.training, Work), msgspec.convert(speed.evaluation, Work)
    return geometry.job_cost(*work, speed.lora_rank) / basis.speed if basis.kind == "measured" else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long one job takes, and how much memory."""

    seconds: float
    """Time from the job's claim to its end."""
    peak_memory_bytes: int
    adapter_memory_bytes: int
    activation_memory_bytes: int


def estimate(geometry: Geometry, basis: Basis, work: JobWork | None, *, rank: int, tokens: int) -> Estimate:
    """Estimate one job.

    Args:
        geometry: the base model's shape.
        basis: what is known of the device.
        work: the job's work; None if there is no example to train on.
        rank: the adapter's rank.
        tokens: the tokens of all its examples, each counted once.
    """
    work = work or JobWork(Work(), Work(), [])
    cost = geometry.job_cost(work.training, work.evaluation, rank)
    adapter = _ADAPTER_BYTES * geometry.trainable(rank)
    activations = _activations(geometry, work.largest, rank, basis.value_bytes, is_gpu=basis.is_gpu)
    examples = 0 if basis.is_gpu else _EXAMPLE_TOKEN_BYTES * tokens
    return Estimate(
        seconds=basis.startup_seconds + cost / basis.speed,
        peak_memory_bytes=basis.resident_memory_bytes + adapter + examples + activations,
        adapter_memory_bytes=adapter,
        activation_memory_bytes=activations,
    )


def _activations(geometry: Geometry, largest: Work, rank: int, value_bytes: int, *, is_gpu: bool) -> int:
    """Bytes at the peak of a step on that micro-batch, or while a checkpoint is assembled."""
    activations = geometry.activation_bytes(largest, value_bytes)
    logits = geometry.logit_bytes(largest, value_bytes)
    saving = _SAVING_BYTES * geometry.trainable(rank)
    if is_gpu:
        return max(activations + logits, saving)
    held = int(_HELD_ACTIVATIONS * activations + _HELD_LOGITS * logits)
    return _SCRATCH_BYTES + max(held, saving)


def _default_basis(geometry: Geometry, device: str, worker: Worker | None) -> Basis:
    is_gpu = not device.startswith("CPU")
    value_bytes = 2 if is_gpu or cpu_has_bf16() else 4
    cores = 1 if is_gpu else int("".join(filter(str.isdigit, device)) or 1)
    weights = geometry.file_bytes * value_bytes // 2
    return Basis(
        kind="default",
        device=device,
        device_memory_bytes=_memory_of(device, worker),
        speed=_DEFAULT_SPEED["cuda" if is_gpu else "bf16" if value_bytes == 2 else "fp32"] * cores,
        startup_seconds=_DEFAULT_STARTUP_SECONDS,
        resident_memory_bytes=weights + (0 if is_gpu else _DEFAULT_RUNTIME_BYTES),
        value_bytes=value_bytes,
    )


def _measured_basis(
    geometry: Geometry, speeds: Sequence[TrainingSpeed], worker: Worker | None, *, is_warm: bool
) -> Basis:
    seconds = sum(speed.seconds for speed in speeds)
    cost = sum(
        geometry.job_cost(
            msgspec.convert(speed.training, Work), msgspec.convert(speed.evaluation, Work), speed.lora_rank
        )
        for speed in speeds
    )
    startups = [speed.startup_seconds for speed in speeds]
    resident = max(speed.resident_memory_bytes for speed in speeds)
    return Basis(
        kind="measured",
        device=speeds[0].device,
        device_memory_bytes=_memory_of(speeds[0].device, worker),
        speed=cost / seconds,
        startup_seconds=min(_WARM_STARTUP_SECONDS, *startups) if is_warm else max(startups),
        resident_memory_bytes=resident + _left_over(geometry, speeds),
        value_bytes=speeds[0].value_bytes,
        jobs=len(speeds),
        tokens_per_second=sum(speed.tokens for speed in speeds) / seconds,
        measured_at=speeds[0].measured_at,
    )


def _left_over(geometry: Geometry, speeds: Sequence[TrainingSpeed]) -> int:
    """The most memory that a job took beyond the sum of its parts, because earlier jobs had left some."""
    beyond = [
        speed.peak_memory_bytes
        - speed.resident_memory_bytes
        - _ADAPTER_BYTES * geometry.trainable(speed.lora_rank)
        - _activations(
            geometry,
            msgspec.convert(speed.largest, Work),
            speed.lora_rank,
            speed.value_bytes,
            is_gpu=not speed.device.startswith("CPU"),
        )
        for speed in speeds
    ]
    return max(0, *beyond)


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
