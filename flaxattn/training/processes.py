"""The processes that train together: how they find each other, and what they agree on.

The first of them alone reads and writes the run's folder and speaks. All compute the same; what the
first finds out, the others are told.
"""

import collections
import contextlib
import functools
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxattn.training.trees import Tree

__all__ = [
    "ALONE",
    "Agreement",
    "FirstFailedError",
    "Rendezvous",
    "any_process",
    "are_several",
    "by_first",
    "check_same",
    "from_first",
    "is_first",
    "join",
    "on_first",
    "whole",
]

LAG = 2  # steps after which an answer is there without waiting for the device
PATIENCE = 300  # seconds to wait for the others to be started
PAUSE = 0.2
SILENCE = 30  # seconds after which a process that is not heard of is taken for dead
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # of processes, where a cluster tells
HOSTS = "TPU_WORKER_HOSTNAMES"

Result = TypeVar("Result")


class Rendezvous(NamedTuple):
    """Where the processes meet, as the command line gives it."""

    coordinator: str = ""
    """Host and port of process 0, which the others can reach."""
    processes: int = 0
    """How many there are."""
    process: int = -1
    """Which of them this is, from 0."""


ALONE = Rendezvous()


class FirstFailedError(Exception):
    """What process 0 was to do for all has failed.

    Args:
      error: its words.
      kind: the kind of error there, by name.
    """

    def __init__(self, error: str, kind: str) -> None:
        super().__init__(f"process 0: {error}")
        self.kind = kind


def join(where: Rendezvous) -> int:
    """Joins the other processes, if there are any: those that are given, or a cluster tells of.

    To be called before jax computes anything.

    Returns:
      How many there are, as far as is known without asking for devices.

    Raises:
      ValueError that names the option at fault; OSError if the others are not there.
    """
    given, told = _checked(where), _told()
    if jax.distributed.is_initialized():
        return jax.process_count()
    if not given and told == 1:
        return 1
    if given and where.process:
        _await(where.coordinator)
    former = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(AttributeError, ValueError):  # jax that knows of no others
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    numbers: dict[str, Any] = {}
    if given:
        numbers = {"num_processes": where.processes, "process_id": where.process}
    try:
        jax.distributed.initialize(
            where.coordinator or None,
            **numbers,
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=SILENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise OSError(
            f"--coordinator {where.coordinator}: the other processes could not be reached: {error}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, former)  # jax has taken it, and would end nothing
    return where.processes or told


def _checked(where: Rendezvous) -> bool:
    """Whether it is given. Raises ValueError if only a part of it is, or it is wrong."""
    if where == ALONE:
        return False
    port = where.coordinator.rpartition(":")[2]
    if not re.fullmatch(r"\S+:[0-9]{1,5}", where.coordinator) or not 0 < int(port) < 2**16:
        raise ValueError(
            f"--coordinator is {where.coordinator!r}; expected host:port of process 0, such as "
            "node1:1234, with --processes and --process."
        )
    if where.processes < 1:
        raise ValueError(
            f"--processes is {where.processes}; expected how many are started, with --coordinator."
        )
    if not 0 <= where.process < where.processes:
        raise ValueError(
            f"--process is {where.process}; expected this process's own number, from 0 to "
            f"{where.processes - 1}."
        )
    return True


def _await(coordinator: str) -> None:
    """Waits until process 0 listens: jax itself would end the process with a trace of its own.

    Raises:
      OSError if it does not within PATIENCE.
    """
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(
                    f"--coordinator {coordinator}: process 0 was not reached in {PATIENCE} s: "
                    f"{error}. Start it with --process 0 on that host."
                ) from error
            time.sleep(PAUSE)


def _told() -> int:
    """How many processes a cluster has started that jax can ask for the rest; 1 if none tells."""
    counts = [os.environ.get(name, "") for name in COUNTS]
    hosts = os.environ.get(HOSTS, "").count(",") + 1
    return max(hosts, *(int(count) for count in counts if count.isdecimal()), 1)


def are_several() -> bool:
    """Whether there are other processes. Asks for no devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not are_several() or jax.process_index() == 0


# ---- What is told ----------------------------------------------------------------------------


def on_first(do: Callable[[], Result]) -> Result | None:
    """What the first process gets by doing something; None in the others, which wait for it.

    Raises:
      what it raises there; FirstFailedError in the others.
    """
    if not are_several():
        return do()
    result, error = None, None
    if is_first():
        try:
            result = do()
        except Exception as raised:
            error = raised
    told = _told_by_first([type(error).__name__, str(error)] if error else None)
    if error:
        raise error
    if told:
        kind, words = told
        raise FirstFailedError(words, kind)
    return result


def by_first(do: Callable[[], Result]) -> Result:
    """What the first process gets by doing something, in all of them: JSON-able data."""
    result = on_first(do)
    return _told_by_first(result) if are_several() else result  # type: ignore[return-value]


def from_first(tree: Tree) -> Tree:
    """A tree of arrays as the first process has it, bit by bit; others give one of its shapes."""
    if not are_several():
        return tree

    def told(x: Any) -> np.ndarray:
        array = np.asarray(x)
        octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return _broadcast(octets).view(array.dtype).reshape(array.shape)

    return jax.tree.map(told, tree)


def check_same(what: str, mine: str) -> None:
    """Raises ValueError where a process has something else than the first."""
    if by_first(lambda: mine) != mine:
        raise ValueError(
            f"this process reads other {what} than process 0. Give all processes the same files "
            "and the same options."
        )


def whole(tree: Tree) -> Tree:
    """Arrays of which this process has all: as they are, or gathered in its memory.

    All processes have to call it; one array after another is gathered.
    """

    def gathered(x: Any) -> Any:
        if getattr(x, "is_fully_addressable", True):
            return x
        return np.asarray(x if x.is_fully_replicated else _on_all(jnp.copy, x.sharding.mesh)(x))

    return jax.tree.map(gathered, tree)


def _told_by_first(data: Any) -> Any:
    """JSON-able data of the first process, in all of them."""
    content = np.frombuffer(json.dumps(data).encode(), np.uint8)
    length = int(_broadcast(np.array(content.size, np.int32)))
    mine = content if is_first() else np.zeros(length, np.uint8)
    return json.loads(_broadcast(mine).tobytes())


def _broadcast(array: np.ndarray) -> np.ndarray:
    told: np.ndarray = multihost_utils.broadcast_one_to_all(array)
    return np.asarray(told)


# ---- What is asked ---------------------------------------------------------------------------


class Agreement:
    """Whether any process asks for something: all are told the same, at the same call.

    The answer is that to a question some calls ago, so that no call waits for the devices.
    """

    def __init__(self) -> None:
        self._asked: collections.deque[jax.Array] = collections.deque()

    def asked(self, asks: bool) -> bool:
        """Whether one has asked; to be called by all, as often as by each other."""
        if not are_several():
            return asks
        self._asked.append(_any(asks))
        return len(self._asked) > LAG and bool(self._asked.popleft())


def any_process(asks: bool) -> bool:
    """Whether any process asks for something, which is waited for."""
    return bool(_any(asks)) if are_several() else asks


def _any(asks: bool) -> jax.Array:
    """bool `[]` on all devices, perhaps not computed yet."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    spread = NamedSharding(mesh, PartitionSpec("devices"))
    each = jax.make_array_from_callback((mesh.size,), spread, lambda _: np.array([asks]))
    return _on_all(jnp.any, mesh)(each)


@functools.cache
def _on_all(fn: Callable[[jax.Array], jax.Array], mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """`fn`, whose output is the same on all devices; compiled once for each shape."""
    return jax.jit(fn, out_shardings=NamedSharding(mesh, PartitionSpec()))
