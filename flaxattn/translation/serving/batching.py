"""What is asked at the same time is answered together, by one thread that owns the model."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from flaxattn.translation.serving.model import Question

__all__ = ["Batches", "BusyError"]

Answer = Any
Found = TypeVar("Found")


class BusyError(Exception):
    """More is waiting than may."""


class _Asked(NamedTuple):
    questions: Sequence[Question]
    answers: asyncio.Future[list[Answer]]


class Batches:
    """Questions wait here while others are answered; those that wait are answered together.

    Args:
      answer: called in a thread of its own with questions; gives an answer for each, in order.
      most_together: questions that are answered together, at most, but for those of one request.
      most_waiting: questions that may wait or be answered at a time.
    """

    def __init__(
        self,
        answer: Callable[[list[Question]], list[Answer]],
        *,
        most_together: int,
        most_waiting: int,
    ) -> None:
        self._answer, self._most_together = answer, most_together
        self.waiting, self._most_waiting = 0, most_waiting
        self._queue: asyncio.Queue[_Asked] = asyncio.Queue()
        self._worker = ThreadPoolExecutor(1, "flaxattn-model")

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers, in order.

        Raises:
          BusyError at once, if too many wait; what answering raises.
        """
        with self._counted(len(questions)):
            answers = asyncio.get_running_loop().create_future()
            self._queue.put_nowait(_Asked(questions, answers))
            return await answers

    async def alone(self, call: Callable[[], Found]) -> Found:
        """What a call gives that needs the model for itself; raises as `ask`."""
        with self._counted(1):
            return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    @contextlib.asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """While the block runs, what is asked is answered."""
        task = asyncio.create_task(self._serve())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._worker.shutdown()

    @contextlib.contextmanager
    def _counted(self, count: int) -> Any:
        if self.waiting + count > self._most_waiting:
            raise BusyError(f"{self.waiting} texts are waiting; expected fewer. Ask again later.")
        self.waiting += count
        try:
            yield
        finally:
            self.waiting -= count

    async def _serve(self) -> None:
        while True:
            together = [await self._queue.get()]
            while not self._queue.empty() and _count(together) < self._most_together:
                together.append(self._queue.get_nowait())
            await self._answer_together([x for x in together if not x.answers.done()])

    async def _answer_together(self, asked: Sequence[_Asked]) -> None:
        """Where that fails, each by itself, so that nobody suffers from what another asks."""
        loop = asyncio.get_running_loop()
        try:
            questions = [question for x in asked for question in x.questions]
            found = iter(await loop.run_in_executor(self._worker, self._answer, questions))
            for one in asked:
                _settle(one, [next(found) for _ in one.questions])
        except Exception as error:
            if len(asked) == 1:
                _settle(asked[0], error)
                return
            for one in asked:
                await self._answer_together([one])


def _count(asked: Sequence[_Asked]) -> int:
    return sum(len(x.questions) for x in asked)


def _settle(asked: _Asked, outcome: list[Answer] | Exception) -> None:
    if asked.answers.done():  # whoever asked is gone
        return
    if isinstance(outcome, Exception):
        asked.answers.set_exception(outcome)
    else:
        asked.answers.set_result(outcome)
