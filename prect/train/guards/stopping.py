"""Signals that ask a run to stop: noted at once, acted upon between two steps.

A cluster sends SIGTERM or SIGUSR1 some time before it takes a machine away, a person at a terminal
sends SIGINT. The run finishes its step, saves, and ends. A second SIGINT ends it at once.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_ECHO_SECONDS = 0.5
"""A signal that follows so soon is the same one: launchers pass on what a terminal sends to all."""


class StopRequest:
    """While it is entered, notes signals instead of dying of them; in the main thread only."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first that came."""
        self._interrupted: float | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self.note) for n in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Take a signal in.

        Raises:
            KeyboardInterrupt: it is the second SIGINT.
        """
        self.signal = self.signal or signal.Signals(number)
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted is not None and now - self._interrupted > _ECHO_SECONDS:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or now
