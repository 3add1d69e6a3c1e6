"""The supervisor, with small programs to keep."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.watched_process import Watched, has_ended, read_rest, read_until

_DRIVER = """
import asyncio, json, sys
from app.cli.supervisor import Program, Supervisor, Timing

programs, timing = json.loads(sys.argv[1]), json.loads(sys.argv[2])

def write(name, line):
    print(f"{name}: {line}", flush=True)

def program(name, code, outlives):
    return Program(name, [sys.executable, "-u", "-c", code], outlives=tuple(outlives))

kept = [program(*described) for described in programs]
asyncio.run(Supervisor(kept, write, lambda line: write("toque", line), Timing(**timing)).run())
"""

_WAITS = "import os, signal; print('pid', os.getpid()); signal.pause()"
_DRAINS = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print('pid', os.getpid())
signal.sigwait({signal.SIGTERM})
print('drained')
"""
_DRAINS_WHEN_TOLD = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
print('pid', os.getpid())
signal.sigwait({signal.SIGTERM})
print('draining')
signal.sigwait({signal.SIGUSR1})
print('drained')
"""
_STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('pid', os.getpid())
while True: signal.pause()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def supervise() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(
        *programs: tuple[str, str] | tuple[str, str, list[str]], **timing: float
    ) -> subprocess.Popen[str]:
        described = [(name, code, outlives[0] if outlives else []) for name, code, *outlives in programs]
        command = [sys.executable, "-c", _DRIVER, json.dumps(described), json.dumps(timing)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_program_that_dies_is_started_again_less_and_less_often(supervise: Start) -> None:
    supervisor = supervise(("a", "raise SystemExit(3)"), first_restart=0.01, longest_restart=0.04)

    said = "".join(read_until(supervisor, "starting it again") for _ in range(4))
    supervisor.terminate()

    assert re.findall(r"a ended \(exit code 3\); starting it again in (\S+) s", said) == [
        "0.01",
        "0.02",
        "0.04",
        "0.04",
    ]
    assert supervisor.wait(20) == 0


def test_a_program_that_ran_long_starts_over_with_the_shortest_pause(supervise: Start) -> None:
    supervisor = supervise(("a", "pass"), first_restart=0.01, steady_after=0)

    said = "".join(read_until(supervisor, "starting it again") for _ in range(3))

    assert re.findall(r"in (\S+) s", said) == ["0.01", "0.01", "0.01"]


def test_a_hopeless_program_ends_them_all() -> None:
    code = """
import asyncio, sys
from app.cli.supervisor import Program, Supervisor
programs = [
    Program("hopeless", [sys.executable, "-c", "raise SystemExit(78)"], hopeless=78),
    Program("other", [sys.executable, "-c", "import signal; signal.pause()"]),
]
sys.exit(asyncio.run(Supervisor(programs, lambda *_: None, print).run()))
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert ended.returncode == 78


def test_a_program_that_was_killed_is_said_to_be(supervise: Start) -> None:
    supervisor = supervise(("a", "import os; os.kill(os.getpid(), 9)"), first_restart=0.01)

    assert "a ended (SIGKILL)" in read_until(supervisor, "starting it again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_drains_every_program(supervise: Start, number: signal.Signals) -> None:
    supervisor = supervise(("a", _DRAINS), ("b", _DRAINS))
    _pids(supervisor, 2)

    supervisor.send_signal(number)
    said = read_rest(supervisor)

    assert "a: drained" in said
    assert "b: drained" in said
    assert "killed" not in said
    assert supervisor.wait(20) == 0


def test_what_a_program_needs_stops_after_it(supervise: Start) -> None:
    supervisor = supervise(("engine", _DRAINS, ["api"]), ("api", _DRAINS))
    _pids(supervisor, 2)

    supervisor.terminate()
    said = read_rest(supervisor)

    assert said.index("api: drained") < said.index("engine: drained")


def test_what_does_not_stop_is_killed(supervise: Start) -> None:
    supervisor = supervise(("a", _STUBBORN), drain=0.1)
    [stubborn] = _pids(supervisor, 1)

    supervisor.terminate()
    said = read_rest(supervisor)

    assert "still running after 0.1 s, killed: a" in said
    assert stubborn.ends()
    assert supervisor.wait(20) == 0


def test_a_second_ctrl_c_stops_at_once(supervise: Start) -> None:
    supervisor = supervise(("a", _STUBBORN), drain=600)
    [stubborn] = _pids(supervisor, 1)

    supervisor.send_signal(signal.SIGINT)
    read_until(supervisor, "stopping")
    supervisor.send_signal(signal.SIGINT)

    assert supervisor.wait(20) == 0
    assert stubborn.ends()


def test_a_second_sigterm_does_not_cut_the_drain_short(supervise: Start) -> None:
    supervisor = supervise(("a", _DRAINS_WHEN_TOLD), drain=600)
    [program] = _pids(supervisor, 1)

    supervisor.terminate()
    read_until(supervisor, "draining")
    supervisor.terminate()
    signal.pidfd_send_signal(program.descriptor, signal.SIGUSR1)
    said = read_rest(supervisor)

    assert "drained" in said
    assert supervisor.wait(20) == 0


def test_ctrl_c_in_the_terminal_reaches_the_supervisor_only(supervise: Start) -> None:
    code = "import os; print('leads', os.getpgid(0) == os.getpid())"
    supervisor = supervise(("a", code), first_restart=600)

    assert "a: leads True" in read_until(supervisor, "leads")


def test_no_program_outlives_a_killed_supervisor(supervise: Start) -> None:
    supervisor = supervise(("a", _WAITS), ("b", _WAITS))
    programs = _pids(supervisor, 2)

    supervisor.kill()

    assert all(program.ends() for program in programs)


def test_what_a_program_started_dies_with_it(supervise: Start) -> None:
    code = f"import subprocess, sys; print('pid', subprocess.Popen([sys.executable, '-c', {_WAITS!r}]).pid)"
    supervisor = supervise(("a", code), first_restart=600)

    pid = int(read_until(supervisor, "pid ").rpartition("pid ")[2])

    assert has_ended(pid)
    assert "a ended (exit code 0)" in read_until(supervisor, "starting it again")


def test_long_and_broken_lines_are_shown(supervise: Start) -> None:
    code = (
        "import sys; out = sys.stdout.buffer; "
        r"out.write(b'1%\r50%\r100%\n' + b'x' * 200_000 + b'\n' + b'\xff\n' + b'no end'); out.flush()"
    )
    supervisor = supervise(("a", code), first_restart=600)

    said = read_until(supervisor, "starting it again")

    assert "a: 100%\n" in said
    assert said.count("x") == 200_001  # and the one of "exit"
    assert "a: \N{REPLACEMENT CHARACTER}\n" in said
    assert "a: no end\n" in said


def _pids(supervisor: subprocess.Popen[str], count: int) -> list[Watched]:
    return [Watched(int(read_until(supervisor, "pid ").rpartition("pid ")[2])) for _ in range(count)]
