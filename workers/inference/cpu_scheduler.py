"""The scheduler of an engine on a CPU, which also decides how many cores the next step is computed on."""

from __future__ import annotations

from typing import Any

import torch
from torch._C import set_num_threads  # vLLM puts a function that does nothing in the place of torch's
from typing_extensions import override
from vllm.v1.core.sched.output import SchedulerOutput

from workers.inference.scheduler import InteractiveFirstScheduler
from workers.inference.spare_cores import SpareCores


class CpuScheduler(InteractiveFirstScheduler):
    """Schedules as on other devices, in the thread that computes the model."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._spare_cores = SpareCores(most=torch.get_num_threads())

    @override
    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Choose what the next step computes, and use the cores that are free."""
        threads = 1 if self.grammars.is_compiling else self._spare_cores.count()
        if threads != torch.get_num_threads():
            set_num_threads(threads)
        return super().schedule(throttle_prefills)
