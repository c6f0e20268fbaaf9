"""Two processes that compute in turns: while one does a block of steps, the other one waits.

A machine's pace drifts by more than what is looked for within the minutes that a process takes,
but hardly within two blocks of a second. Each process tells what a block took through a connection
of its own, and goes on when it is told to.
"""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from measuring import BenchmarkError, result_of, start

_HERE = "127.0.0.1"
_LOOK_S = 0.5
_END_S = 30.0

KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",
}
"""Has glibc keep memory that is freed. Else it is chance how much of each step's memory a process
gives back to the kernel and fetches again, and that takes more time than what is looked for."""


@dataclass(frozen=True)
class Block:
    """What some steps took."""

    seconds: list[float]
    """Of each step."""
    cpu_s: float
    """Of all threads of the process, those that write in the background included."""
    faults: int
    """Pages that were fetched from the kernel."""


class InTurn:
    """In a process that computes: reports a block of steps, and waits for its next turn."""

    def __init__(
        self, port: int, first: int, block: int, settle: Callable[[], None] | None = None
    ) -> None:
        """Nothing is connected before the first block has ended.

        Args:
            port: where the program that gives turns listens.
            first: steps of the first block, in which both processes start; it is not counted.
            block: steps of each block that follows.
            settle: waits at the end of a block for what a device still computes.
        """
        self.port, self.first, self.block, self.settle = port, first, block, settle
        self._connection: socket.socket | None = None
        self._seconds: list[float] = []
        self._since: float | None = None
        self._used = _usage()

    def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
        """Take the time of a step; after the last of a block wait for the next turn."""
        ends = step >= self.first and (step - self.first) % self.block == 0
        if ends and self.settle is not None:
            self.settle()
        now = time.perf_counter()
        if self._since is not None:
            self._seconds.append(now - self._since)
        if ends:
            self._wait()
        self._since = time.perf_counter()

    def _wait(self) -> None:
        if self._connection is None:
            self._connection = socket.create_connection((_HERE, self.port))
        cpu_s, faults = _usage()
        block = Block(self._seconds, cpu_s - self._used[0], faults - self._used[1])
        self._connection.sendall(f"{json.dumps(asdict(block))}\n".encode())
        self._seconds = []
        if not self._connection.recv(1):
            raise ConnectionError("the program that gives turns has ended")
        self._used = _usage()


def _usage() -> tuple[float, int]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_minflt


class Player:
    """A process that computes in turns, seen from the program that gives them."""

    def __init__(
        self, program: Path, task: str, environment: dict[str, str], **asked: object
    ) -> None:
        """Start it.

        Args:
            program: calls `measuring.serve`.
            task: one of its tasks, which takes a ``port`` for its `InTurn`.
            environment: variables of the process beside those here.
            asked: further arguments of the task.
        """
        self._server = socket.create_server((_HERE, 0))
        self._server.settimeout(_LOOK_S)
        arguments = json.dumps(asked | {"port": self._server.getsockname()[1]})
        self.process = start(program, task, arguments, environment=environment)
        self._connection: socket.socket | None = None

    def __enter__(self) -> Player:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        if self._connection is not None:
            self._lines.close()  # else it would keep the connection open
            self._connection.close()
        # It ends by itself when it wants its next turn, and takes its own processes along.
        for end in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                end()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def meet(self) -> None:
        """Wait until it has done its first block, unless it is known to have.

        Raises:
            BenchmarkError: it ended before.
        """
        if self._connection is not None:
            return
        while self._connection is None:
            try:
                self._connection, _ = self._server.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    raise self._ended() from None
        self._connection.settimeout(None)
        self._lines = self._connection.makefile("r")
        self._read()

    def turn(self) -> Block:
        """Let it do a block.

        Raises:
            BenchmarkError: it ended instead.
        """
        self._go()
        return self._read()

    def finish(self) -> dict[str, Any]:
        """Let it end; what its task returns.

        Raises:
            BenchmarkError: it failed.
        """
        self._go()
        return result_of(self.process)

    def _go(self) -> None:
        assert self._connection is not None  # met before
        try:
            self._connection.sendall(b".")
        except OSError:
            raise self._ended() from None

    def _read(self) -> Block:
        line = self._lines.readline()
        if not line:
            raise self._ended()
        return Block(**json.loads(line))

    def _ended(self) -> BenchmarkError:
        try:
            result_of(self.process)
        except BenchmarkError as error:
            return error
        return BenchmarkError(f"{self.process.args!r} ended before its last turn")


def in_turns(players: Sequence[Player], pairs: int) -> list[list[Block]]:
    """The blocks of each of two players, as many as pairs: A B, B A, A B, ...

    Raises:
        BenchmarkError: one of them ended.
    """
    for player in players:
        player.meet()
    blocks: list[list[Block]] = [[] for _ in players]
    for pair in range(pairs):
        order = range(len(players)) if pair % 2 == 0 else reversed(range(len(players)))
        for number in order:
            blocks[number].append(players[number].turn())
    return blocks
