"""Serves a page to type into and a JSON endpoint, on this machine."""

import dataclasses
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flaxattn.ranges import Range, check_fields
from flaxattn.translation.commands.screen import SCREEN

if TYPE_CHECKING:
    from flaxattn.translation.serving.model import Service

__all__ = ["Serve"]

GRACE = 10  # seconds in which requests under way are still answered, once it is to stop


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serves a page to type into and a JSON endpoint, on this machine, until control-C.

    $ flaxattn serve runs/tiny
    """

    folder: tyro.conf.Positional[Path]
    """The folder of a run, or of an exported model."""
    host: str = "127.0.0.1"
    """The name or address to listen on. Others than this machine reach it by 0.0.0.0, say: then
    put it behind what asks for a password."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """The port. 0: any that is free."""
    max_characters: Annotated[int, Range(1, 1_000_000)] = 2000
    """Characters of one text, at most."""
    max_texts: Annotated[int, Range(1, 10_000)] = 64
    """Texts of one request, at most."""
    max_waiting: Annotated[int, Range(1, 1_000_000)] = 1024
    """Texts that wait or are translated at a time, at most."""

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> None:
        """Answers until the process is told to stop."""
        try:
            import uvicorn

            from flaxattn.translation.serving.app import Limits, make_app
        except ImportError as error:
            raise ValueError(
                f"serve needs more: pip install 'flaxattn[serve]' ({error})."
            ) from error
        limits = Limits(self.max_characters, self.max_texts, self.max_waiting)
        with _bound(self.host, self.port) as listening:
            app = make_app(self._service(), limits, host=self.host, report=SCREEN.warn)
            settings = uvicorn.Config(
                app, log_level="error", access_log=False, timeout_graceful_shutdown=GRACE
            )
            server = uvicorn.Server(settings)
            for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn heeds them and passes them on
                signal.signal(number, lambda *_: setattr(server, "should_exit", True))
            listening.listen(settings.backlog)  # who asks from here on is answered
            SCREEN.say(f"ready: {_address(listening)} (control-C stops it)")
            server.run(sockets=[listening])
        SCREEN.say("stopped")

    def _service(self) -> "Service":
        """The model, loaded and compiled for what is usual."""
        began = time.perf_counter()
        SCREEN.say(f"loading {self.folder}")
        import jax

        from flaxattn.memory import keep_freed_memory
        from flaxattn.training.devices import describe_devices
        from flaxattn.training.programs import keep_programs
        from flaxattn.translation.serving.model import Service
        from flaxattn.translation.trained.loading import load

        keep_freed_memory()
        programs = keep_programs()
        loaded = load(self.folder, programs)
        size = sum(x.size for x in jax.tree.leaves(loaded.params))
        SCREEN.say(f"{size:,} parameters on {describe_devices()}; compiling")
        service = Service(loaded, programs)
        service.warm_up()
        SCREEN.say(f"compiled, {time.perf_counter() - began:.1f} s since the start")
        return service


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, or an error that says what is in the way."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"--host {host}: no such name or address: {error.strerror}.") from error
    bound = socket.socket(kind, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        raise ValueError(
            f"--port {port}: cannot be listened on at {host}: {error}. Name another, or 0 for any "
            "that is free."
        ) from error
    return bound


def _address(listening: socket.socket) -> str:
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
