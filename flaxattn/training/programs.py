"""Programs that are kept from one process to the next, so that a command begins at once.

Two things take the time of a first call: JAX traces the function, and XLA compiles what was traced.
Both results are kept in one folder: JAX's own compilation cache, and beside it the traced programs,
as `jax.export` writes them.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from flaxattn.training.storage.files import write_whole

__all__ = ["ANEW", "Programs", "keep_programs", "mending", "of_user"]

MOST_BYTES = 500_000_000  # of the user's folder; what was longest unused goes first
PACKAGES = ("flax", "jax", "jaxlib", "numpy")
ADDRESS = " at 0x"  # in what Python shows of an object that has no name of its own
OPTION = "jax_compilation_cache_dir"
COMPLAINTS = ("Error reading persistent", "Error writing persistent")  # of JAX, of its cache
UNKEPT = (ImportError, NotImplementedError, TypeError, ValueError)  # raised by what has no export


class Programs:
    """Traced programs in a folder.

    Args:
      folder: where they lie. None: nowhere; every process traces anew.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._loaded: dict[Any, Callable[..., Any]] = {}

    def call(
        self,
        function: Callable[..., Any],
        model: Any,
        *arrays: Any,
        kind: Callable[..., Any],
        **static: Any,
    ) -> Any:
        """`function(model, *arrays, **static)`, which is a named tuple of the kind given.

        Args:
          function: jitted; all that it computes follows from the arguments.
          model, static: hashable, and told by their `repr`.
        """
        static_told = repr((model, static))
        if self._folder is None or ADDRESS in static_told or not hasattr(function, "lower"):
            return function(model, *arrays, **static)
        leaves, tree = jax.tree.flatten(arrays)
        kinds = tuple((x.shape, str(x.dtype)) for x in leaves)
        key = (function, static_told, tree, kinds)
        if key not in self._loaded:
            of_leaves = functools.partial(_parts, function, model, static, tree)
            told = repr((static_told, tree, kinds))
            self._loaded[key] = self._program(function.__name__, of_leaves, leaves, told)
        return kind(*self._loaded[key](*leaves))

    def data(self, name: str, told: str, make: Callable[[], bytes]) -> bytes:
        """What `make` gives, or gave a process before; it follows from the name and `told`."""
        path = self._path(name, told)
        kept = _read(path) if path else None
        if kept is None:
            kept = make()
            if path:
                _write(path, kept)
        return kept

    def _program(
        self, name: str, function: Callable[..., Any], arrays: Sequence[Any], told: str
    ) -> Callable[..., Any]:
        def traced() -> bytes:
            return bytes(export.export(jax.jit(function))(*arrays).serialize())

        try:
            told = repr((told, jax.default_backend(), jax.device_count(), _settings()))
            kept = self.data(name, told, traced)
            return jax.jit(export.deserialize(bytearray(kept)).call)
        except UNKEPT:  # a kernel of one's own, say; or an error which the call then raises
            return function

    def _path(self, name: str, told: str) -> Path | None:
        if self._folder is None or ADDRESS in told:
            return None
        digest = hashlib.sha256(repr((name, told, _versions())).encode()).hexdigest()
        return self._folder / f"{name}-{digest[:40]}.kept"


ANEW = Programs()  # every process traces for itself


def _parts(
    function: Callable[..., Any], model: Any, static: Mapping[str, Any], tree: Any, *leaves: Any
) -> tuple[Any, ...]:
    """The parts of the answer to the arrays that a tree of these leaves is: any may be exported."""
    return tuple(function(model, *jax.tree.unflatten(tree, leaves), **static))


def keep_programs() -> Programs:
    """Lets JAX keep what it compiles, in the user's cache folder unless another is chosen.

    `JAX_COMPILATION_CACHE_DIR` chooses one, and `JAX_ENABLE_COMPILATION_CACHE=false` none. Call it
    before anything is compiled. Where the folder cannot be written to, or is not this user's
    alone (what lies in it is run), nothing is kept.
    """
    if not jax.config.values["jax_enable_compilation_cache"]:
        return ANEW
    chosen = jax.config.values[OPTION]
    if chosen:
        return Programs(None if "://" in chosen else _made(Path(chosen) / "flaxattn"))
    folder = _made(of_user())
    if folder:
        _prune(folder, MOST_BYTES)
        jax.config.update(OPTION, str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return Programs(folder)


def of_user() -> Path | None:
    """The folder in the user's cache: of this kind of processor, for which XLA compiles."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return Path(home) / "flaxattn" / f"programs-{_machine()}" if Path(home).is_absolute() else None


@contextlib.contextmanager
def mending() -> Iterator[None]:
    """While the block runs, no word of kept programs that are damaged: they are deleted after it.

    JAX compiles anew what it cannot read, but leaves what was damaged in its place.
    """
    show, failed = warnings.showwarning, False

    def shown(message: Warning | str, *rest: Any, **named: Any) -> None:
        nonlocal failed
        if str(message).startswith(COMPLAINTS):
            failed = True
        else:
            show(message, *rest, **named)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = show
        folder = of_user()
        if failed and folder and jax.config.values[OPTION] == str(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path | None) -> Path | None:
    """The folder, if this user can write to it and nobody else can."""
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o22)
    return folder if own and os.access(folder, os.W_OK | os.X_OK) else None


def _prune(folder: Path, most: int) -> None:
    """Deletes the files of a folder that were longest unused, until there are `most` bytes."""
    with contextlib.suppress(OSError):
        found = [(entry.stat(), entry.path) for entry in os.scandir(folder) if entry.is_file()]
        size = sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda x: max(x[0].st_atime, x[0].st_mtime)):
            if size <= most:
                return
            os.unlink(path)
            size -= status.st_size


def _read(path: Path) -> bytes | None:
    """What `_write` has written, unless it is damaged."""
    with contextlib.suppress(OSError):
        digest, content = (whole := path.read_bytes())[:32], whole[32:]
        return content if hashlib.sha256(content).digest() == digest else None
    return None


def _write(path: Path, content: bytes) -> None:
    with contextlib.suppress(OSError):  # no room, say: the next process does it again
        write_whole(path, hashlib.sha256(content).digest() + content)


def _settings() -> str:
    """How JAX is set: a program may depend on it."""
    return repr(sorted((k, v) for k, v in jax.config.values.items() if "cache" not in k))


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of the packages that make a program: the source of this one, since it may be edited."""
    source, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        source.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return source.hexdigest(), *map(importlib.metadata.version, PACKAGES)


@functools.cache
def _machine() -> str:
    """A digest of the processor and of what compiles for it."""
    told = [platform.machine(), *map(importlib.metadata.version, PACKAGES)]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told += sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]
