"""Processes of their own for what is measured, and requests to them."""

from __future__ import annotations

import os
import pickle
import selectors
import subprocess
import sys
import tempfile
from contextlib import suppress
from types import TracebackType
from typing import Any

from prect.benchmark.measuring import BenchmarkError

ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "BLOSC_NTHREADS",
        "RAYON_NUM_THREADS",
    )
}
_ANSWER_SECONDS = 180.0
"""A process that says nothing for so long hangs."""
_END_SECONDS = 2.0
"""A process that has nothing more to do has so long to end by itself."""


class Process:
    """A process that answers requests one after the other; see `prect.benchmark.worker.serve`.

    Args:
        module: what it runs, by its dotted name.

    Use it as a context manager: the process ends with the block.
    """

    def __init__(self, module: str = "prect.benchmark.worker") -> None:
        self.module = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | ONE_THREAD,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, method: str, *arguments: object) -> Any:
        """Let the process do one thing, and wait for what it returns.

        Raises:
            BenchmarkError: it raised an error, ended, or does not answer.
        """
        self.begin(method, *arguments)
        return self.answer()

    def begin(self, method: str, *arguments: object) -> None:
        """Send a request; `answer` must be called before the next one."""
        requests = self._process.stdin
        if requests is None:
            raise BenchmarkError("the process was started without a pipe")
        try:
            pickle.dump((method, arguments), requests, protocol=5)
            requests.flush()
        except OSError:
            raise self._ended() from None

    def answer(self) -> Any:
        """Wait for the answer to the last request.

        Raises:
            BenchmarkError: the process raised an error, ended, or does not answer.
        """
        answers = self._process.stdout
        if answers is None:
            raise BenchmarkError("the process was started without a pipe")
        with selectors.DefaultSelector() as waiting:
            waiting.register(answers, selectors.EVENT_READ)
            answered = waiting.select(_ANSWER_SECONDS)
        if not answered:
            raise BenchmarkError(f"no answer within {_ANSWER_SECONDS:.0f} s: the process hangs")
        try:
            state, result = pickle.load(answers)
        except EOFError:
            raise self._ended() from None
        if state == "failed":
            error = BenchmarkError(str(result).strip().splitlines()[-1])
            error.add_note(str(result))
            raise error
        return result

    def _ended(self) -> BenchmarkError:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return BenchmarkError(f"the process ended with {code}: {said[-1] if said else 'no word'}")

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what is left in the pipe of a process that has ended
                    pipe.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
