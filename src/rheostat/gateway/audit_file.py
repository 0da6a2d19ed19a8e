"""A file of lines that only grows: whole lines, one writer, older files by rename. Raises `OSError` as it comes."""

import errno
import fcntl
import os
from pathlib import Path

_FIRST = 1


class LineFile:
    """The file at `path`, held by this process alone, of about `rotate_bytes`, with `keep` older ones: `path.1`, ….

    The lock is on `path.lock`, which stays; the file itself is locked too, so that another name of it is no way around.
    With `fsync` a file is on the disk when it is set aside. Raises `BlockingIOError` where another process holds the
    file, `OSError` where it cannot be opened.
    """

    def __init__(self, path: Path, *, rotate_bytes: int, keep: int, fsync: bool = False) -> None:
        self.path, self._name = path, str(path)
        self.rotation_fault: OSError | None = None
        """Why an older file could not be set aside when it was last tried; lines go on into the file meanwhile."""
        self._rotate_bytes, self._keep, self._fsync = rotate_bytes, keep, fsync
        self._rotate_at = rotate_bytes
        self._is_torn = False
        self._lock = _locked(_named(path, "lock"))
        try:
            self._file = self._opened()
        except OSError:
            os.close(self._lock)
            raise

    def append(self, data: bytes) -> None:
        """Write whole lines at the end, in one write. What could not be written whole is ended by the next one.

        A file that was moved or removed by someone else is made anew.
        """
        size = self._size()
        if size >= self._rotate_at:
            self._rotate(size)
        line = b"\n" + data if self._is_torn else data
        written = os.write(self._file, line)
        if written < len(line):
            self._is_torn = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._is_torn = False

    def handle(self) -> int:
        """A descriptor of its own to the file, for `os.fsync` in another thread; the caller closes it."""
        return os.dup(self._file)

    def close(self) -> None:
        """Lets the file go."""
        os.close(self._file)
        os.close(self._lock)

    def _size(self) -> int:
        """The size of the file at `path`, which is opened anew where it is not the one that is open."""
        own = os.fstat(self._file)
        try:
            there = os.stat(self._name)
        except FileNotFoundError:
            there = None
        if there is not None and (there.st_ino, there.st_dev) == (own.st_ino, own.st_dev):
            return own.st_size
        opened = self._opened()
        os.close(self._file)
        self._file = opened
        return os.fstat(opened).st_size

    def _opened(self) -> int:
        file = _locked(self.path, os.O_APPEND)
        size = os.fstat(file).st_size
        self._is_torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        self._rotate_at = self._rotate_bytes
        return file

    def _rotate(self, size: int) -> None:
        """Set the file aside and begin a new one; where that fails, lines go on into this one for a tenth more."""
        try:
            self._set_aside()
        except OSError as error:
            self.rotation_fault = error
            self._rotate_at = size + max(1, self._rotate_bytes // 10)
        else:
            self.rotation_fault = None

    def _set_aside(self) -> None:
        older = [_named(self.path, str(number)) for number in range(_FIRST, self._keep + 1)]
        free = next((place for place, path in enumerate(older) if not os.path.lexists(path)), len(older) - 1)
        for path in older[: free + 1]:
            _check_unheld(path)
        if self._fsync:
            os.fsync(self._file)
        for place in range(free, 0, -1):
            os.replace(older[place - 1], older[place])
        os.replace(self.path, older[0])
        try:
            opened = self._opened()
        except OSError:
            os.replace(older[0], self.path)
            raise
        os.close(self._file)
        self._file = opened


def _named(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _locked(path: Path, flags: int = 0) -> int:
    """A file, made for its owner's eyes alone where it is absent, that no other process holds."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def _check_unheld(path: Path) -> None:
    """Raises `OSError` where another process has locked the file that would be moved or replaced."""
    if os.path.lexists(path):
        try:
            os.close(_locked(path))
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another process holds it", str(path)) from None
