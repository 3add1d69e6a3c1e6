"""The trainer's memory: whether it ran out, how much was taken at the most, and how it is given back."""

from __future__ import annotations

import ctypes
import errno
import gc
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from workers.device import detect


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU neither torch's allocator nor oneDNN has an exception for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    reason = str(error)
    no_primitive = "could not create a primitive" in reason and "descriptor" not in reason
    return "can't allocate memory" in reason or no_primitive


def peak_memory(device: torch.device) -> int:
    """The peak since `reset_peak_memory`, in bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text("ascii"))[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(device: torch.device) -> int:
    """The memory that this process can have, in bytes: on a GPU, what it has and what nobody else has."""
    if device.type != "cuda":
        return detect().memory_bytes
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now, if the system can: a warm trainer has trained other jobs."""
    release_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # Linux: 5 sets the peak (VmHWM) to what is resident now, see proc(5).
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def release_memory(device: torch.device) -> None:
    """Give back what earlier jobs left in the allocators, and models that only reference cycles keep."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # not GNU's libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
