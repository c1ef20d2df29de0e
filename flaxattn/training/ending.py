"""How a command ends: what is said of an error, and the exit code."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable

import jax
from jax.errors import JaxRuntimeError

from flaxattn.training.interruption import InterruptedRun
from flaxattn.training.metrics import DivergedError
from flaxattn.training.processes import FirstFailedError, are_several, is_first
from flaxattn.training.screen import Screen
from flaxattn.training.storage.files import SaveError

__all__ = ["EXIT_CODES", "exit_code"]

FAILED, WRONG_INPUT, KEPT, ABORTED, UNREAD = 1, 2, 75, 130, 141
EXIT_CODES = """Exit codes: 0 done, 1 failed (no room, folder gone, no finite loss), 2 wrong input,
75 interrupted and kept, 130 interrupted outside training, 141 nobody reads the output."""
OTHERS_ENDED = (
    "another process of this run has ended or cannot be reached. What the last checkpoint holds is "
    "kept: start all of them again, with the same commands."
)
STATUS = r"[A-Z_]+: "  # begins what XLA says, as which NumPy passes it on as well
NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def exit_code(command: Callable[[], None], *, debug: bool = False) -> int:
    """Runs a command, says in a line what went wrong, and gives the exit code.

    Args:
      debug: raise what is an error, with its traceback.
    """
    try:
        code = _code(command, debug)
    except BaseException:
        if are_several():
            traceback.print_exc()
            _end_at_once(FAILED)
        raise
    if code not in (0, KEPT) and are_several():
        _end_at_once(code)
    return code


def _end_at_once(code: int) -> None:
    """Without agreeing on it with the other processes, which may be waiting for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _code(command: Callable[[], None], debug: bool) -> int:
    try:
        command()
        sys.stdout.flush()  # fails now rather than while Python ends
    except InterruptedRun as end:
        _say(f"Interrupted after step {end}; the same command goes on from there.")
        return KEPT  # EX_TEMPFAIL
    except KeyboardInterrupt:
        _say("Interrupted.")
        return ABORTED  # 128 + SIGINT
    except BrokenPipeError:
        return UNREAD  # 128 + SIGPIPE
    except (ValueError, OSError, DivergedError, FirstFailedError, JaxRuntimeError) as error:
        lost = are_several() and re.match(STATUS, str(error))
        if debug or (isinstance(error, JaxRuntimeError) and not lost):
            raise
        told = f"{OTHERS_ENDED} ({str(error).splitlines()[0]})" if lost else str(error)
        _say(f"error: {told}", all_of_them=True)
        return FAILED if lost or _is_failure(error) else WRONG_INPUT
    return 0


def _say(text: str, *, all_of_them: bool = False) -> None:
    """Says it once; what each process has to say of itself, with its number."""
    if not are_several():
        Screen(error=True).say(text)
    elif all_of_them:
        Screen(error=True, speaker=f"process {jax.process_index()}").say(text)
    else:
        Screen(error=True, silent=not is_first()).say(text)


def _is_failure(error: Exception) -> bool:
    """Whether the input was right, and something else was not."""
    if isinstance(error, FirstFailedError):
        return error.kind in (SaveError.__name__, DivergedError.__name__)
    if isinstance(error, SaveError | DivergedError):
        return True
    return isinstance(error, OSError) and error.errno in NOT_WRITTEN
