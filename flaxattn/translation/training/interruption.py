"""Being asked to stop: the first SIGTERM or SIGINT is a request, the second is obeyed at once."""

import signal
import threading
from types import FrameType
from typing import Any, Self

__all__ = ["InterruptedRun", "Interruption"]


class InterruptedRun(Exception):  # noqa: N818  not an error
    """Training was asked to stop, and all that it had done is kept."""


class Interruption:
    """Remembers whether the process was asked to stop while the block runs.

    The second request, and any after the block, does what it would without this. Outside the main
    thread, which alone receives signals, there are never requests.

    >>> with Interruption() as interruption:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     interruption.requested
    True
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
