"""One of several processes that train the language model of `language_task.py` together.

    python tests/several.py FOLDER --coordinator 127.0.0.1:1234 --processes 2 --process 0

At a step it can be sent a signal, and can find its disk full from a step on.
"""

import argparse
import dataclasses
import errno
import functools
import os
import signal
import sys
from pathlib import Path

import jax
from language_task import RULES, TRAINING, Config, LanguageTask, Model

from flaxattn.training.ending import exit_code
from flaxattn.training.processes import ALONE, Rendezvous
from flaxattn.training.run import run
from flaxattn.training.storage import checkpoints


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--process", type=int, default=-1)
    parser.add_argument("--mesh", default="")
    parser.add_argument("--text", default=Model().text)
    parser.add_argument("--signal", default="", help="and the step before which it is sent")
    parser.add_argument("--full", type=int, default=0, help="the step before which it is full")
    parser.add_argument("--first", action="store_true", help="all that only in the first of them")
    given = parser.parse_args()
    if given.first and given.process != 0:
        given.signal = ""

    def before_step(step: int) -> None:
        name, _, at = given.signal.partition("@")
        if name and step == int(at):
            signal.raise_signal(getattr(signal, name))
        if given.full and step == given.full:
            checkpoints.seal = no_room

    training = dataclasses.replace(TRAINING, mesh=given.mesh)
    config = Config(str(given.folder), Model(text=given.text), training)
    where = Rendezvous(given.coordinator, given.processes, given.process)
    prepare = functools.partial(LanguageTask, before_step=before_step)
    with jax.numpy_dtype_promotion("standard"):
        return exit_code(
            lambda: run(config, prepare, RULES, rendezvous=where if given.coordinator else ALONE)
        )


def no_room(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    sys.exit(main())
