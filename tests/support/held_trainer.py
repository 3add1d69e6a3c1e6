"""The trainer, which waits where a test wants to stop it.

Otherwise it would go on while the test reads that it is there, and may be done before it hears the request.
"""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path
from typing import Any

from workers.training import trainer_process
from workers.training.protocol import Progress, Started, Step
from workers.training.trainer_process import Send, StopRequest, claim_stdout

HOLD = "TRAINER_HOLD"
"""The file that names the step after which a job waits to be stopped, if any; 0 is before the first."""


def hold(module: Any) -> None:
    """Have the trainer, which takes the two from this module, wait as the file says that `HOLD` names."""
    if (named := os.environ.pop(HOLD, None)) is None:
        return  # another rank than the first, which alone hears of a request
    requests = observe_requests(module)

    def claim_and_hold() -> Send:
        send = claim_stdout()

        def send_and_hold(message: Progress) -> None:
            send(message)
            if place_of(message) == Path(named).read_text():
                while not (requests[0].made or message.attempt in requests[0].causes):
                    time.sleep(0.01)

        return send_and_hold

    module.claim_stdout = claim_and_hold


def observe_requests(module: Any) -> list[StopRequest]:
    """The requests to stop that the trainer, which takes their class from this module, listens for."""
    requests: list[StopRequest] = []

    class ObservedStopRequest(StopRequest):
        def __init__(self) -> None:
            super().__init__()
            requests.append(self)

    module.StopRequest = ObservedStopRequest
    return requests


def place_of(message: Progress) -> str | None:
    """Where the job is that says so, as the file names it."""
    match message:
        case Started(attempt=attempt):
            return f"0 {attempt}"
        case Step(attempt=attempt, metrics=metrics):
            return f"{metrics.step} {attempt}"
        case _:
            return None


if __name__ == "__main__":
    hold(trainer_process)
    runpy.run_module("workers.training.trainer", run_name="__main__")
