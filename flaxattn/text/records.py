"""Records of bytes, one after another: in memory while they are few, then in a file with no name.

A file with no name is nobody else's, and it is gone with the process, however that ends: nothing
is shared, nothing collides, and nothing is left to be taken for whole.
"""

import os
import tempfile
import threading
import weakref
from array import array
from pathlib import Path

from flaxattn.training.storage.files import telling_of_room

__all__ = ["Records", "place_for"]

MOST_IN_MEMORY = 1 << 25  # bytes of all records together
ROOM_HINT = "Text that does not fit memory is kept there; name a folder elsewhere with --output."


class Records:
    """Records of bytes that are read by their numbers.

    Args:
      folder: where the file lies that takes them once they are many. None: as temporary files do.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._file = tempfile.SpooledTemporaryFile(MOST_IN_MEMORY, dir=str(self._folder))
        self._ends = array("Q", [0])
        self._lock = threading.Lock()  # a file has one position
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, record: bytes) -> None:
        """Adds a record. Raises SaveError if there is no room for it."""
        with self._lock, telling_of_room(self._folder, ROOM_HINT):
            self._file.seek(self._ends[-1])
            self._file.write(record)
        self._ends.append(self._ends[-1] + len(record))

    def __getitem__(self, number: int) -> bytes:
        start, end = self._ends[number : number + 2]
        with self._lock, telling_of_room(self._folder, ROOM_HINT):
            self._file.seek(start)  # writes what is still to be written
            return self._file.read(end - start)


def place_for(output: Path) -> Path | None:
    """Where records lie beside a run's folder, which need not be there yet; None: elsewhere."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    return place if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else None
