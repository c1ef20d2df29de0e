"""A worker ahead of training: what will be asked for next is made on a thread meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ["Ahead"]

KEPT = 2  # the one in use and the next

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Makes things by their numbers, each as it would be made alone, and the one after it ahead.

    Each is made on a thread of its own, which ends with it: there is none to be stopped. What is
    raised there is raised where the thing is asked for.

    Args:
      make: a pure function of the number.
    """

    def __init__(self, make: Callable[[int], Made]) -> None:
        self._make, self._kept = make, dict[int, Future[Made]]()

    def __getitem__(self, number: int) -> Made:
        wanted = self._begun(number)
        made = wanted.result()
        self._begun(number + 1)
        self._kept[number] = self._kept.pop(number)  # the last that was used
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return made

    def _begun(self, number: int) -> Future[Made]:
        if number not in self._kept:
            self._kept[number] = Future()
            arguments = self._make, number, self._kept[number]
            threading.Thread(target=_made, args=arguments, name="packing ahead").start()
        return self._kept[number]


def _made(make: Callable[[int], Made], number: int, future: Future[Made]) -> None:
    try:
        future.set_result(make(number))
    except BaseException as error:
        future.set_exception(error)
