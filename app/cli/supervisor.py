"""Keeps a few programs running, and stops them all in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from app.cli.parent_death import bound_to_parent

_LONGEST_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Program:
    """A command that should always run."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    """Its environment; None means this process's."""
    descriptors: tuple[int, ...] = ()
    """File descriptors that the program inherits."""
    outlives: tuple[str, ...] = ()
    """Programs that need this one while they stop; it is stopped once they have ended."""
    hopeless: int | None = None
    """Exit code that says that another start would fail as well; everything is stopped then."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The supervisor's timing, in seconds."""

    first_restart: float = 1.0
    """Pause before a program that died is restarted; doubles each time."""
    longest_restart: float = 30.0
    steady_after: float = 60.0
    """Uptime after which the pause starts over with `first_restart`."""
    drain: float = 30.0
    """Time between SIGTERM and SIGKILL."""


class Supervisor:
    """Runs programs until SIGTERM, SIGHUP or Ctrl-C.

    Each program leads a process group of its own, so that a terminal's Ctrl-C reaches only the supervisor,
    and whatever the program started dies with it.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        write: Callable[[str, str], None],
        say: Callable[[str], None],
        timing: Timing | None = None,
    ) -> None:
        """`write` gets a program's name and a line of its output; `say` gets the supervisor's messages."""
        self._programs = list(programs)
        self._write = write
        self._say = say
        self._timing = timing or Timing()
        self._processes: dict[str, Process] = {}
        self._ending = {program.name: asyncio.Event() for program in programs}
        """By program: set once it is not to be started again."""
        self._gone = {program.name: asyncio.Event() for program in programs}
        self._stopping = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._exit_code = 0

    async def run(self) -> int:
        """Runs the programs until a stop was requested and every program has ended.

        Returns:
            0, or the exit code of a program whose further starts would be hopeless.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        async with asyncio.TaskGroup() as self._group:
            for program in self._programs:
                self._group.create_task(self._keep(program))
            await self._stopping.wait()
            for ending in self._ending.values():
                ending.set()
            await self._drain()
        return self._exit_code

    def start(self, program: Program) -> None:
        """Runs one more program, while `run` runs; does nothing once a stop was requested."""
        if self._group is None or self._stopping.is_set():
            return
        self._programs.append(program)
        self._ending[program.name], self._gone[program.name] = asyncio.Event(), asyncio.Event()
        self._group.create_task(self._keep(program))

    async def stop(self, program: Program) -> None:
        """Stops one program, and returns once it has ended."""
        self._ending[program.name].set()
        self._terminate(program)
        try:
            async with asyncio.timeout(self._timing.drain):
                await self._gone[program.name].wait()
        except TimeoutError:
            if process := self._processes.get(program.name):  # it may have ended just now
                _kill_group(process)
            await self._gone[program.name].wait()
        if not self._stopping.is_set():
            self._programs.remove(program)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._stopping.is_set():
            self._say("stopping; Ctrl-C again to stop at once")
            self._stopping.set()
        elif number == signal.SIGINT:  # a second SIGTERM means nothing, since `timeout` sends two
            self._kill_all()

    async def _keep(self, program: Program) -> None:
        """Restarts the program with back-off until it is to end."""
        pause, told = self._timing.first_restart, self._ending[program.name]
        while not told.is_set():
            started = time.monotonic()
            try:
                code = await self._run_once(program)
                ending = _ending(code)
                if code == program.hopeless:
                    self._exit_code = code
                    self._ending[program.name].set()
                    self._stopping.set()
            except OSError as error:
                ending = f"cannot start: {error}"
            if told.is_set():
                break
            if time.monotonic() - started >= self._timing.steady_after:
                pause = self._timing.first_restart
            self._say(f"{program.name} ended ({ending}); starting it again in {pause:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), pause)
            pause = min(pause * 2, self._timing.longest_restart)
        self._gone[program.name].set()

    async def _run_once(self, program: Program) -> int:
        # With asyncio's own pipe, `wait` would last until every process that holds the pipe has ended.
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *bound_to_parent(program.command),
                stdin=DEVNULL,
                stdout=write_end,
                stderr=STDOUT,
                process_group=0,
                env=program.environment,
                pass_fds=program.descriptors,
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._processes[program.name] = process
        output = asyncio.create_task(self._copy_output(program.name, read_end))
        if self._ending[program.name].is_set():
            process.terminate()
        try:
            return await process.wait()
        finally:
            _kill_group(process)
            del self._processes[program.name]
            # A process that left the group may hold the pipe for ever.
            _, unfinished = await asyncio.wait({output}, timeout=1)
            for task in unfinished:
                task.cancel()

    async def _copy_output(self, name: str, descriptor: int) -> None:
        reader = asyncio.StreamReader()
        pipe = os.fdopen(descriptor, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            unfinished = b""
            while chunk := await reader.read(_LONGEST_LINE):
                *lines, unfinished = (unfinished + chunk).split(b"\n")
                if len(unfinished) > _LONGEST_LINE:
                    lines, unfinished = [*lines, unfinished], b""
                for line in lines:
                    self._write(name, _shown(line))
            if unfinished:
                self._write(name, _shown(unfinished))
        finally:
            transport.close()

    async def _drain(self) -> None:
        """Asks every program to stop, and kills those that have not stopped in time."""
        try:
            async with asyncio.timeout(self._timing.drain):
                await asyncio.gather(*(self._stop(program) for program in self._programs))
        except TimeoutError:
            self._say(f"still running after {self._timing.drain:g} s, killed: {', '.join(self._processes)}")
            self._kill_all()

    async def _stop(self, program: Program) -> None:
        for name in program.outlives:
            await self._gone[name].wait()
        self._terminate(program)
        await self._gone[program.name].wait()

    def _terminate(self, program: Program) -> None:
        if process := self._processes.get(program.name):
            with suppress(ProcessLookupError):
                process.terminate()

    def _kill_all(self) -> None:
        for process in self._processes.values():
            _kill_group(process)


def _kill_group(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _shown(line: bytes) -> str:
    """Returns the line as a terminal would show it: after a carriage return, only the text behind it."""
    return line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
