"""Being asked to stop: the first SIGTERM or SIGINT is a request, one well after it is obeyed."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

__all__ = ["InterruptedRun", "Interruption"]

SECOND_WISH = 1.0  # seconds after the first; before that it is the same wish, delivered twice


class InterruptedRun(Exception):  # noqa: N818  not an error
    """Training was asked to stop, and all that it had done is kept."""


class Interruption:
    """Remembers whether the process was asked to stop while the block runs.

    A request that comes SECOND_WISH after the first or later ends the process at once, with the
    exit code that the signal has in a shell, also in the midst of a compilation. One that comes
    sooner is the same wish: parents that forward a signal, and signals to a group of processes,
    deliver it twice. For the same reason the block ends no sooner. After it, signals do what they
    did before. Outside the main thread, which alone receives signals, there are never requests.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.requested
    True
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._first: float | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in self.SIGNALS}
            reading, self._writing = os.pipe()
            os.set_blocking(self._writing, False)
            self._former_wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._former:
            return
        if self._first is not None:
            time.sleep(max(0.0, self._first + SECOND_WISH - time.monotonic()))
        signal.set_wakeup_fd(self._former_wakeup)
        os.close(self._writing)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested, self._first = True, self._first or time.monotonic()

    def _watch(self, reading: int) -> None:
        """Reads the numbers of signals as they come, while the main thread may be busy in C."""
        first = None
        with open(reading, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in self.SIGNALS:
                    now = time.monotonic()
                    first = first or now
                    self.requested, self._first = True, self._first or first
                    if now - first >= SECOND_WISH:
                        os._exit(128 + number[0])
