"""One contender of `training.py` in a process of its own, told what to do through a pipe."""

import importlib
import multiprocessing
import time
import traceback
from typing import Any, NamedTuple, Protocol

import numpy as np
from training_problem import Problem

__all__ = ["Contender", "Count", "Remote", "count"]


class Count(NamedTuple):
    """Cells of a batch, source and target, and how many of them are tokens."""

    source_tokens: int
    source_cells: int
    target_tokens: int
    target_cells: int


class Contender(Protocol):
    """One way to train the model of a `Problem`.

    Attributes:
      parameters: how many numbers are trained.
      trial_updates: updates after which everything has been compiled.
    """

    parameters: int
    trial_updates: int

    def reset(self) -> None:
        """Back to the parameters of the problem, before the first update."""

    def update(self, step: int) -> Count:
        """Makes and takes the batch of `step`; may return before the computation ends."""

    def wait(self) -> None:
        """Until all updates have ended."""

    def validate(self) -> tuple[float, float]:
        """The negative log-likelihood of the validation split, in nats, and its tokens."""


def count(source: np.ndarray, target: np.ndarray, pad_id: int) -> Count:
    """The cells of two arrays of ids."""
    return Count(
        int(np.count_nonzero(source != pad_id)),
        source.size,
        int(np.count_nonzero(target != pad_id)),
        target.size,
    )


class Remote:
    """A contender in a process of its own, which sleeps unless it is asked something.

    Args:
      module: which has a class `Contender`.
      problem: what is to be trained.
      options: of the contender, by name.
    """

    def __init__(self, module: str, problem: Problem, options: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, module, problem, options)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, question: str, *arguments: int) -> dict[str, float]:
        """The answer of `about`, `train` or `validate` below."""
        self._pipe.send((question, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"A contender failed.\n{answer}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


def about(contender: Contender) -> dict[str, float]:
    """Parameters, and by how much the first trial took longer than the second: compilation."""
    seconds = [train(contender, 0, contender.trial_updates)["seconds"] for _ in range(2)]
    contender.reset()
    compile_s = max(seconds[0] - seconds[1], 0.0)
    return {"parameters": contender.parameters, "compile_s": compile_s}


def train(contender: Contender, start: int, stop: int) -> dict[str, float]:
    """The updates from `start` to `stop`: their seconds, all included, and their cells."""
    contender.wait()
    began = time.perf_counter()
    counts = [contender.update(step) for step in range(start, stop)]
    contender.wait()
    seconds = time.perf_counter() - began
    return {"seconds": seconds} | Count(*map(sum, zip(*counts, strict=True)))._asdict()


def validate(contender: Contender) -> dict[str, float]:
    """Nats per token, and how many tokens that is the mean of."""
    nll, tokens = contender.validate()
    return {"nll": nll / tokens, "tokens": tokens}


def _serve(pipe: Any, module: str, problem: Problem, options: dict[str, Any]) -> None:
    questions = {function.__name__: function for function in (about, train, validate)}
    contender = None
    while True:
        try:
            question, arguments = pipe.recv()
        except EOFError:
            return
        try:
            contender = contender or importlib.import_module(module).Contender(problem, **options)
            pipe.send(questions[question](contender, *arguments))
        except Exception:
            pipe.send(traceback.format_exc())
