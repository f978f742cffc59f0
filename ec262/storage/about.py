"""What is known of a file without reading it, and whether it is still the same."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ec262.errors import SetupError

_VERSIONS = ("ETag", "etag", "md5Hash", "modification_time", "mtime", "LastModified", "Last-Modified", "created")
"""Where file systems tell a file's version."""


@dataclass(frozen=True, slots=True)
class About:
    """What a place knows of a file.

    Attributes:
        size: bytes; None if the file can only be read from its beginning.
        version: changes with the file's content, as far as the place tells.
    """

    size: int | None
    version: str


def of_local(path: str) -> About:
    """Of a file of this machine.

    Raises:
        OSError: none there, or a directory.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(path)
    sized = stat.S_ISREG(found.st_mode) and (found.st_size > 0 or not _has_content(path))
    return About(found.st_size if sized else None, str(found.st_mtime_ns))


def _has_content(path: str) -> bool:
    """Whether a file of 0 bytes has some, as those in /proc have. It is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        return bool(os.read(descriptor, 1))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def version_of(info: Mapping[str, Any]) -> str:
    """The version in what a file system of fsspec's tells of a file; empty if it tells none."""
    return next((str(info[name]) for name in _VERSIONS if info.get(name)), "")


def check_local(name: str, expected: About, descriptor: int) -> None:
    """Compares with an open file of this machine.

    Raises:
        SetupError: it is another now.
    """
    found = os.fstat(descriptor)
    if About(found.st_size, str(found.st_mtime_ns)) != expected:
        raise _changed(name)


def check_opened(name: str, expected: About, file: Any) -> None:
    """Compares with what is known of a file that fsspec opened: its own classes have asked, others know the size.

    Raises:
        SetupError: it is another now.
    """
    details = getattr(file, "details", None)
    details = details if isinstance(details, Mapping) else {}
    size = details.get("size", getattr(file, "size", None))
    version = version_of(details) or expected.version
    if version != expected.version or (type(size) is int and size != expected.size):
        raise _changed(name)


def _changed(name: str) -> SetupError:
    return SetupError(f"{name} changed while the job runs: size or time of change are not what they were at its start")
