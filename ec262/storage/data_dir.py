"""A directory, or a place with a URL, that a worker reads for strangers: nothing outside of it can be named.

What is asked for comes from whoever submitted the job. A path is relative, with plain components; on this machine's
file system every component is opened from the one above it without following symbolic links, and only a regular file
is read, so that nothing which somebody changes meanwhile leads outside either. (Hard links and mounts inside the root
are the volunteer's own doing.) A bound on what is read holds whatever the file has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from ec262.errors import EC262Error, SetupError
from ec262.mapreduce.records import Reader
from ec262.storage.hdfs import reach
from ec262.storage.place import HDFS
from ec262.storage.ranges import read_range

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,57}")
"""What a storage may be called: with ``data:`` before it, it is a capability."""
MOST_PATH: Final = 4096
_MOST_OFFSET: Final = 1 << 62
_NOT_IN_URLS: Final = re.compile(r"[?#%\\:*\[\]{}]")
"""What a server or a file system library might take for more than a letter of a name."""
_DIRECTORY: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_FILE: Final = os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)


class DataRefused(EC262Error):
    """A range that this machine does not read, or cannot; the message names the path inside the storage only."""


class DataDir:
    """What a worker serves as one storage.

    Args:
        root: a directory, or a URL that fsspec knows.
        max_bytes: most bytes read for one range.

    Raises:
        SetupError: not a directory; no such kind of URL.
    """

    def __init__(self, root: str, *, max_bytes: int = 1 << 30) -> None:
        self.max_bytes = max_bytes
        self._fs: Any = None
        scheme = urlsplit(root).scheme if "://" in root else ""
        if scheme and scheme not in ("file", "local"):
            self._root, self._fs = _open_url(root)
            return
        self._root = os.path.abspath(os.path.expanduser(urlsplit(root).path if scheme else root))
        if not os.path.isdir(self._root):
            raise SetupError(f"data directory {root}: not a directory")
        real = os.path.realpath(self._root)
        if real == "/" or real.split("/")[1] in ("proc", "sys", "dev"):
            raise SetupError(f"a data directory cannot be {real}: strangers could read what is nobody's business")

    def holds(self, path: Path) -> bool:
        """Whether a path of this machine is inside."""
        return self._fs is None and path.resolve().is_relative_to(os.path.realpath(self._root))

    def read(
        self, path: str, start: int, end: int, reader: Reader, *, deadline: float | None = None
    ) -> tuple[int, bytes]:
        """The records of a file that start in a range of it. Blocks: it is not for an event loop's thread.

        Args:
            path: relative to the root.
            start, end: offsets in bytes; `end` is outside.
            reader: what the records are.
            deadline: by `time.monotonic`; reading ends soon after it.

        Returns:
            The offset of the first byte, and the bytes.

        Raises:
            DataRefused: a path that leads outside or to no regular file, a range that is none or too large, a file
                that cannot be read, or not in time.
        """
        names = split_path(path)
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= _MOST_OFFSET:
            raise DataRefused(f"{_shown(path)}: the range to be read is none")
        if end - start > self.max_bytes:
            raise DataRefused(f"{_shown(path)}: more than the {self.max_bytes:,} bytes that a task may read here")
        bounds: dict[str, Any] = {"limit": self.max_bytes, "deadline": deadline}
        try:
            if self._fs is None:
                with _open_beneath(self._root, names) as file:
                    return read_range(_OneFile(file), path, start, end, reader, **bounds)
            if any(_NOT_IN_URLS.search(name) for name in names):
                raise DataRefused(f"{_shown(path)}: not a path inside the storage")
            whole = "/".join([self._root.rstrip("/"), *names])
            return read_range(self._fs, whole, start, end, reader, **bounds)
        except DataRefused:
            raise
        except FileNotFoundError:
            raise DataRefused(f"{_shown(path)}: no such file") from None
        except Exception as reason:
            raise DataRefused(f"{_shown(path)}: {self._why(reason)}") from None

    def _why(self, reason: Exception) -> str:
        """What went wrong, without where on this machine, or behind a URL with whatever secrets, it did."""
        if isinstance(reason, OSError) and reason.errno:
            return os.strerror(reason.errno)
        text = str(reason)
        if isinstance(reason, EC262Error) and text.endswith("no such file"):
            return "no such file"
        known = isinstance(reason, EC262Error) and self._root not in text and "://" not in text
        return text if known else f"cannot be read ({type(reason).__name__})"


def split_path(path: object) -> list[str]:
    """The components of a path inside a storage.

    Raises:
        DataRefused: absolute, upwards, empty, too long, or with characters that are no name's.
    """
    if type(path) is not str or not path or len(path) > MOST_PATH:
        raise DataRefused("a path that is none")
    if path.startswith(("/", "~")) or "\\" in path or "://" in path or not path.isprintable():
        raise DataRefused(f"{_shown(path)}: not a path inside the storage")
    names = path.split("/")
    if any(name in ("", ".", "..") for name in names):
        raise DataRefused(f"{_shown(path)}: not a path inside the storage")
    return names


def _open_url(root: str) -> tuple[str, Any]:
    try:
        import fsspec  # noqa: PLC0415 - takes its time, and only URLs need it

        fs, inside = fsspec.core.url_to_fs(root)
    except Exception as reason:
        raise SetupError(f"data directory {root}: {reason}") from None
    if urlsplit(root).scheme in HDFS:
        reach(fs, root)
    return str(inside), fs


def _open_beneath(root: str, names: list[str]) -> IO[bytes]:
    """Opens a regular file, each component from the directory above it and without following links."""
    shown = _shown("/".join(names))
    here = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        for name in names[:-1]:
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=here)
            except OSError as reason:
                if reason.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
                    raise DataRefused(f"{shown}: a symbolic link or no directory on the way") from None
                raise
            os.close(here)
            here = inner
        # Looked at first, for opening a device can do something; and again once it is open, for it may be another.
        _check_regular(os.stat(names[-1], dir_fd=here, follow_symlinks=False), shown)
        try:
            descriptor = os.open(names[-1], _FILE, dir_fd=here)
        except OSError as reason:
            if reason.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
                raise DataRefused(f"{shown}: not a regular file") from None
            raise
    finally:
        os.close(here)
    try:
        _check_regular(os.fstat(descriptor), shown)
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def _check_regular(found: os.stat_result, shown: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise DataRefused(f"{shown}: not a regular file")


class _OneFile:
    """As much of a file system as reading a range takes, with one file in it, open and checked."""

    protocol: Final = "data"

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def info(self, path: str) -> dict[str, Any]:
        """As fsspec's."""
        return {"name": path, "size": os.fstat(self._file.fileno()).st_size, "type": "file"}

    def open(self, path: str, mode: str = "rb", **_: Any) -> IO[bytes]:
        """The file; whoever opened it closes it."""
        return os.fdopen(os.dup(self._file.fileno()), "rb", buffering=0)


def _shown(path: str) -> str:
    text = path if len(path) <= 200 else path[:197] + "..."
    return text if text.isprintable() else ascii(text)
