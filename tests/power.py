"""What of a folder is left if the power fails: what was asked for, call by call, and what stays.

Only what has been waited for is sure to stay: a file's content after `fsync` of the file, a name
after `fsync` of its folder. Of the rest a disk keeps what it likes; here, in each of MODES, what
would do most harm. Calls are recorded in Python; files that other code wrote are known once they
are waited for.
"""

import copy
import os
import stat
from pathlib import Path

MODES = {  # which calls stay at once, although nobody has waited for them
    "nothing": set(),
    "deletions": {"delete"},
    "names": {"rename", "delete", "make"},
}


class Disk:
    """Records every call that changes names below a folder, or waits for the disk."""

    def __init__(self, root, monkeypatch):
        self.root, self.points = Path(root), []
        self._files = {}  # content by inode
        self._names = {mode: {} for mode in MODES}  # {name: inode} by inode of the folder
        self._pins = []  # what is deleted stays open, so that its inode is not given to another
        for name in ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir"):
            monkeypatch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
        self._made = set()  # folders that were
        for path in [self.root, *self.root.rglob("*")]:  # what is there is there to stay
            self._wait_for(os.open(path, os.O_RDONLY))

    def left_at(self, point, mode, place):
        """Makes a folder of what is left after a call."""
        _, files, names = self.points[point]
        self._fill(files, names[mode], self.root.stat().st_ino, Path(place))

    def _fill(self, files, names, inode, place):
        place.mkdir()
        for name, child in names.get(inode, {}).items():
            if child in self._made:
                self._fill(files, names, child, place / name)
            else:
                (place / name).write_bytes(files.get(child, b""))

    def _note(self, call, path):
        self.points.append((f"{call} {path}", dict(self._files), copy.deepcopy(self._names)))

    def _inode(self, path):
        return os.lstat(path).st_ino

    def _pin(self, path):
        if os.path.lexists(path):
            self._pins.append(os.open(path, os.O_PATH | os.O_NOFOLLOW))

    def _change(self, kind, change):
        for mode, kinds in MODES.items():
            if kind in kinds:
                change(self._names[mode])

    def _wait_for(self, handle):
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            self._made.add(status.st_ino)
            for names in self._names.values():
                names[status.st_ino] = {x.name: x.inode() for x in os.scandir(handle)}
        else:
            with open(f"/proc/self/fd/{handle}", "rb") as file:
                self._files[status.st_ino] = file.read()

    def _fsync(self, call):
        def fsync(file):
            handle = file if isinstance(file, int) else file.fileno()
            call(handle)
            path = os.readlink(f"/proc/self/fd/{handle}")
            if Path(path).is_relative_to(self.root):
                self._wait_for(handle)
                self._note("fsync", path)

        return fsync

    def _rename(self, call):
        def rename(source, target, **options):
            if not Path(os.path.abspath(source)).is_relative_to(self.root):
                return call(source, target, **options)
            inode, paths = self._inode(source), [Path(source), Path(target)]
            folders = [self._inode(path.parent) for path in paths]
            self._pin(target)
            call(source, target, **options)

            def change(names):
                names.setdefault(folders[0], {}).pop(paths[0].name, None)
                names.setdefault(folders[1], {})[paths[1].name] = inode

            self._change("rename", change)
            self._note("rename", target)

        return rename

    _replace = _rename

    def _unlink(self, call):
        def unlink(path, *, dir_fd=None):
            where = (
                Path(path) if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
            )
            if not Path(os.path.abspath(where)).is_relative_to(self.root):
                return call(path, dir_fd=dir_fd)
            folder = self._inode(where.parent)
            self._pin(where)
            call(path, dir_fd=dir_fd)
            self._change("delete", lambda names: names.get(folder, {}).pop(where.name, None))
            self._note("delete", where)

        return unlink

    _remove = _rmdir = _unlink

    def _mkdir(self, call):
        def mkdir(path, mode=0o777, *, dir_fd=None):
            call(path, mode, dir_fd=dir_fd)
            if dir_fd is None and Path(os.path.abspath(path)).is_relative_to(self.root):
                folder, made = self._inode(Path(path).parent), {Path(path).name: self._inode(path)}
                self._made.add(self._inode(path))
                self._change("make", lambda names: names.setdefault(folder, {}).update(made))
                self._note("make", path)

        return mkdir
