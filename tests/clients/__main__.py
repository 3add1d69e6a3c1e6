"""`python -m tests.clients [CLIENT…]`: try the clients that people use against one live service.

Each client runs in an environment of its own, with only the base URL and the key changed. With --page, what
was found is written as a page of the docs. With --base-url, --base-folder and --model, a service that already
runs is asked.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from tests.clients.environments import HERE, NODE, SCRIPTS, prepare
from tests.clients.page import render
from tests.clients.registry import CLIENTS, Client
from tests.clients.results import Result, read
from tests.clients.service import LiveService, live_service
from tests.support.service import BASE_MODEL

AT_ONCE = 3
"""How many clients run at the same time: the engine answers several requests sooner together than in turn."""
SECONDS = 1800
"""How long one client may take."""
QUIET = {
    # Nothing may call home, or wait for a network that is not there.
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
}


def main() -> None:
    """Exit with 1 if anything that was tried failed."""
    options = _options()
    names: Sequence[str] = options.clients or list(CLIENTS)
    folders = {CLIENTS[name].environment: prepare(CLIENTS[name].environment) for name in names}
    with (
        _service(options) as service,
        tempfile.TemporaryDirectory() as temporary,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        print(f"{service.base_url}: {service.model}", file=sys.stderr, flush=True)
        reports: Path = options.reports or Path(temporary)

        def try_one(name: str) -> Result:
            folder = folders[CLIENTS[name].environment]
            return try_client(name, CLIENTS[name], folder, service, reports / f"{name}.xml")

        results = list(pool.map(try_one, names))
    if options.page:
        options.page.write_text(render(results), "utf-8")
    failures = sum(len(result.failures) for result in results)
    print(f"{sum(len(result.attempts) for result in results) - failures} passed, {failures} failed")
    sys.exit(failures > 0)


def try_client(name: str, client: Client, folder: Path, service: LiveService, report: Path) -> Result:
    """Runs a client's scripts, prints what failed, and returns what they proved."""
    began = time.monotonic()
    report.unlink(missing_ok=True)
    environment = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    environment |= QUIET | {
        "OPENAI_BASE_URL": service.base_url,
        "OPENAI_API_KEY": service.api_key,
        "MODEL": service.model,
        "BASE_MODEL": service.base_model,
        "BASE_FOLDER": str(service.base_folder),
    }
    command = (
        _node(client, folder, report)
        if client.environment == "javascript"
        else _pytest(client, folder, report)
    )
    try:
        done = subprocess.run(
            command,
            cwd=HERE.parents[1],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        output = f"it was stopped after {SECONDS} seconds"
    result = read(name, report, output)
    _print(result, time.monotonic() - began)
    return result


def _pytest(client: Client, folder: Path, report: Path) -> list[str]:
    return [
        str(folder / "bin" / "python"), "-m", "pytest", "-c", str(SCRIPTS / "pytest.ini"), "--quiet",
        "--tb=short", f"--rootdir={HERE}", f"--junit-xml={report}", str(SCRIPTS / client.scripts),
    ]  # fmt: skip


def _node(client: Client, folder: Path, report: Path) -> list[str]:
    # Node looks for packages beside the script.
    script = folder / Path(client.scripts).name
    script.write_bytes((SCRIPTS / client.scripts).read_bytes())
    return [
        str(NODE), "--test", "--test-timeout=600000", "--test-reporter=junit",
        f"--test-reporter-destination={report}", str(script),
    ]  # fmt: skip


def _service(options: argparse.Namespace) -> AbstractContextManager[LiveService]:
    if not options.base_url:
        return live_service()
    if not (key := os.environ.get("OPENAI_API_KEY")):
        raise SystemExit("--base-url needs the service's key in OPENAI_API_KEY")
    return nullcontext(LiveService(options.base_url, key, BASE_MODEL, options.base_folder, options.model))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", choices=[[], *CLIENTS], default=[])
    parser.add_argument("--page", type=Path, help="write what was found to this file")
    parser.add_argument("--reports", type=Path, help="keep the reports in this folder, as JUnit's XML")
    parser.add_argument("--base-url", help="of a running service, whose key is in OPENAI_API_KEY")
    parser.add_argument("--model", help="its model that was trained on tests/clients/kitchen.py")
    parser.add_argument("--base-folder", type=Path, help="where the files of its base model are")
    return parser.parse_args()


def _print(result: Result, seconds: float) -> None:
    tried = len(result.attempts)
    print(f"{result.client}: {tried - len(result.failures)} of {tried} in {seconds:.0f} s", file=sys.stderr)
    for attempt in result.failures:
        print(
            f"  FAILED: {attempt.name} ({attempt.seconds:.1f} s)\n{attempt.failure}",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    main()
