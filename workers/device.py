"""Which device this machine computes on, without importing torch (four seconds and 300 MB)."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import psutil


class Device(NamedTuple):
    """The device that torch computes on in this machine."""

    kind: Literal["cuda", "cpu"]
    name: str
    """Name of the first GPU, or the number of cores, for display."""
    memory_bytes: int
    """Memory of the first GPU, or of the machine, free or not."""
    gpus: int = 0
    """The number of GPUs."""

    def offered(self, limit: int) -> int:
        """The most GPUs that a job can have here, or processes in place of GPUs; `limit` 0 is no limit."""
        return min(limit or self.gpus, self.gpus) if self.gpus else limit or 1


@cache
def detect() -> Device:
    """Return the GPU if torch is a CUDA build and the driver offers one, else the CPU."""
    gpu = None if _torch_is_cpu_only() else _first_gpu()
    return gpu or cpu()


def cpu() -> Device:
    """Return the CPU, even where there is a GPU."""
    return Device("cpu", f"CPU, {os.cpu_count() or 1} cores", _memory_limit())


def _memory_limit() -> int:
    """The memory of the machine, or of the container if that is less (cgroup v2)."""
    machine = psutil.virtual_memory().total
    try:
        allowed = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return machine
    return min(machine, int(allowed)) if allowed.isdigit() else machine


def _torch_is_cpu_only() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True


def _first_gpu() -> Device | None:
    # The driver's own library, which torch uses too: unlike nvidia-smi and NVML it respects
    # CUDA_VISIBLE_DEVICES and MIG. It creates no context here, so it takes no GPU memory.
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(64)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
        return None
    memory = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Device("cuda", name.value.decode("utf-8", "replace"), memory.value, count.value)
