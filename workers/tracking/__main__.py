"""The process that sends metrics to trackers: `python -m workers.tracking`. A worker starts it.

It is a process of its own because the trackers' libraries start threads and processes, hang when their
server does, and need secrets; nothing of that reaches training.
"""

from __future__ import annotations

import asyncio
import os
import signal

from app.core.child_environment import TRACKERS
from app.core.database import Database
from app.core.logs import set_up_logging
from app.core.parent_death import die_with_parent
from app.core.settings import Settings
from workers.tracking.redaction import redact_log
from workers.tracking.sender import Sender

_DEFAULTS = {
    # Nobody is told of this deployment but the tracker.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    # A server that is away is asked again by us.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "WANDB_INIT_TIMEOUT": "60",
}
"""Variables of the trackers' libraries, where the operator has not set them."""


def main() -> None:
    """Send until SIGTERM."""
    die_with_parent()
    settings = Settings()
    set_up_logging("tracking", settings.log_format)
    redact_log(os.environ[name] for name in TRACKERS[settings.tracker] if name in os.environ)
    os.environ.update(_DEFAULTS | os.environ)
    database = Database(settings.sqlalchemy_url)
    asyncio.run(_run(Sender(settings, database)))
    database.dispose()


async def _run(sender: Sender) -> None:
    sending = asyncio.create_task(sender.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sending.cancel)
    # The worker, which waits for its signals in a thread, blocks them, and this process has that from it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    await asyncio.wait({sending})
    if not sending.cancelled() and (error := sending.exception()):
        raise error


if __name__ == "__main__":
    main()
