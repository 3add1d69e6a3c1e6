"""A worker that believes to be on a GPU, with a trainer that minds who else is on it.

As the trainer (`… trainer LOG`): learns nothing, fast, and fails if the stand-in for vLLM is awake at a step.
After each step it waits as long as there is a file `hold` beside the log.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec
import psutil

from benchmarks import stand_in_trainer
from workers.device import Device
from workers.training import worker
from workers.training.protocol import Failed, Finished, Progress, Sample, Step
from workers.training.trainer_process import Send, claim_stdout

SAMPLE = Sample(example=0, input_ids=[1, 2, 3], targets=[1, 2], trained=[-1.0, -1.0], base=[-2.0, -2.0])


def is_awake(log: Path) -> bool:
    """Whether vLLM is there, and did anything but fall asleep last."""
    pids = Path(os.environ["FAKE_VLLM_PIDS"])
    if not pids.exists() or not log.read_text().splitlines()[-1].endswith("/sleep?level=1"):
        return pids.exists() and is_there(int(pids.read_text().split()[0]))
    return False


def is_there(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def minding(log: Path, send: Send) -> Send:
    def mind(message: Progress) -> None:
        if isinstance(message, Step) and is_awake(log):
            message = Failed(code="device_taken", message="The engine is awake.")
        if isinstance(message, Finished):
            message = msgspec.structs.replace(message, samples=[SAMPLE])
        send(message)
        while isinstance(message, Step) and log.with_name("hold").exists():
            time.sleep(0.01)

    return mind


if __name__ == "__main__":
    if sys.argv[1] == "trainer":
        stand_in_trainer.claim_stdout = lambda: minding(Path(sys.argv[2]), claim_stdout())
        stand_in_trainer.main()
    else:
        worker.detect = lambda: Device("cuda", "GPU", 80 * 2**30)  # pyright: ignore[reportPrivateImportUsage]
        worker.main([sys.executable, "-m", "tests.support.sharing_worker", "trainer", sys.argv[1]])
