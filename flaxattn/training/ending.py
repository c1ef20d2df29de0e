"""How a command ends: what is said of an error, and the exit code."""

import errno
import sys
from collections.abc import Callable

from flaxattn.training.interruption import InterruptedRun
from flaxattn.training.metrics import DivergedError
from flaxattn.training.screen import Screen
from flaxattn.training.storage.files import SaveError

__all__ = ["EXIT_CODES", "exit_code"]

FAILED, WRONG_INPUT, KEPT, ABORTED, UNREAD = 1, 2, 75, 130, 141
EXIT_CODES = """Exit codes: 0 done, 1 failed (no room, folder gone, no finite loss), 2 wrong input,
75 interrupted and kept, 130 interrupted outside training, 141 nobody reads the output."""
NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def exit_code(command: Callable[[], None], *, debug: bool = False) -> int:
    """Runs a command, says in a line what went wrong, and gives the exit code.

    Args:
      debug: raise what is an error, with its traceback.
    """
    say = Screen(error=True).say
    try:
        command()
        sys.stdout.flush()  # fails now rather than while Python ends
    except InterruptedRun as end:
        say(f"Interrupted after step {end}; the same command goes on from there.")
        return KEPT  # EX_TEMPFAIL
    except KeyboardInterrupt:
        say("Interrupted.")
        return ABORTED  # 128 + SIGINT
    except BrokenPipeError:
        return UNREAD  # 128 + SIGPIPE
    except (ValueError, OSError, DivergedError) as error:
        if debug:
            raise
        say(f"error: {error}")
        return FAILED if _is_failure(error) else WRONG_INPUT
    return 0


def _is_failure(error: Exception) -> bool:
    """Whether the input was right, and something else was not."""
    if isinstance(error, SaveError | DivergedError):
        return True
    return isinstance(error, OSError) and error.errno in NOT_WRITTEN
