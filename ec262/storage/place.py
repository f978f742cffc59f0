"""Places where files are: this machine's own file system, or any that fsspec knows. Both take the same calls.

A place can be pickled; in another process it opens the same files. Its errors are ours (see `explained`). A process
that was forked off one which had used HDFS cannot: hdfs-native's threads are gone there, and it waits for ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, Protocol, cast

from ec262.errors import ProgramError, SetupError
from ec262.storage.about import About, check_local, check_opened, of_local, version_of
from ec262.storage.address import explained, local_path, scheme_of, scrubbed, shown
from ec262.storage.hdfs import HdfsWriter, reach

_HTTP = ("http", "https")
HDFS = ("hdfs", "viewfs")


Fetch = Callable[[int, int], bytes]
"""Bytes [start, end) of a file; fewer only where the file ends."""


class Place(Protocol):
    """A file system. Paths are its own, without a protocol."""

    def shown(self, path: str) -> str:
        """The path as it may stand in messages."""
        ...

    def ranges(self, path: str, expected: About | None = None) -> AbstractContextManager[Fetch]:
        """The file opened to be read in ranges.

        Args:
            expected: what `about` said. A file that is another now is an error, as far as opening it tells.
        """
        ...

    def open(self, path: str) -> BinaryIO:
        """The file to read from its beginning; only ``read(n)`` and ``close()`` are sure to work."""
        ...

    def about(self, path: str) -> About:
        """Size and version of a file."""
        ...

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        ...

    def names(self, directory: str) -> list[str]:
        """Names of what a directory holds; empty if there is none."""
        ...

    def create(self, path: str) -> BinaryIO:
        """A new file to be written from its beginning, in a directory that is made if it is not there."""
        ...

    def publish(self, temporary: str, path: str) -> None:
        """Gives a file that was written its name, in place of what had it; at once where the file system can."""
        ...

    def settle(self, directory: str) -> None:
        """Sees to it that names given in a directory outlast a crash, where the file system can."""
        ...

    def remove(self, path: str) -> None:
        """Removes a file if it is there."""
        ...

    def key(self, path: str) -> tuple[str, str]:
        """Tells this file from others, by whatever path it is named."""
        ...

    def guarded(self, path: str) -> AbstractContextManager[None]:
        """`explained` for what is done with files that this place opened."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """This machine's file system; methods as in `Place`."""

    def key(self, path: str) -> tuple[str, str]:
        """See `Place`."""
        return "", os.path.realpath(path)

    def shown(self, path: str) -> str:
        """See `Place`."""
        return path

    @contextmanager
    def guarded(self, path: str) -> Iterator[None]:
        """See `Place`."""
        with explained(path):
            yield

    @contextmanager
    def ranges(self, path: str, expected: About | None = None) -> Iterator[Fetch]:
        """See `Place`. Compared before and after reading."""
        with explained(path):
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                if expected is not None:
                    check_local(path, expected, descriptor)
                yield partial(_read_at, lambda at, length: os.pread(descriptor, length, at))
                if expected is not None:
                    check_local(path, expected, descriptor)
            finally:
                os.close(descriptor)

    def open(self, path: str) -> BinaryIO:
        """See `Place`."""
        with explained(path):
            return open(path, "rb")

    def about(self, path: str) -> About:
        """See `Place`."""
        with explained(path):
            return of_local(path)

    def exists(self, path: str) -> bool:
        """See `Place`."""
        return os.path.lexists(path)

    def names(self, directory: str) -> list[str]:
        """See `Place`."""
        with explained(directory):
            try:
                return os.listdir(directory or ".")
            except (FileNotFoundError, NotADirectoryError):
                return []

    def create(self, path: str) -> BinaryIO:
        """See `Place`."""
        directory = os.path.dirname(path) or "."
        with explained(directory):  # whoever reads the message knows of no temporary names
            os.makedirs(directory, exist_ok=True)
            return open(path, "xb")

    def publish(self, temporary: str, path: str) -> None:
        """See `Place`."""
        with explained(path):
            _sync(temporary)
            os.replace(temporary, path)

    def settle(self, directory: str) -> None:
        """See `Place`."""
        with explained(directory):
            _sync(directory or ".")

    def remove(self, path: str) -> None:
        """See `Place`."""
        with explained(path):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass


LOCAL = LocalPlace()


@dataclass(frozen=True, slots=True)
class RemotePlace:
    """A file system of fsspec's; methods as in `Place`.

    Attributes:
        fs: the file system; made anew from what it was made of where this is unpickled.
        scheme: the protocol it was asked for.
        options: the storage options, so that messages can be freed of them.
    """

    fs: Any = field(repr=False)
    scheme: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def key(self, path: str) -> tuple[str, str]:
        """See `Place`."""
        return str(getattr(self.fs, "_fs_token", self.scheme)), path

    def shown(self, path: str) -> str:
        """See `Place`."""
        try:
            return shown(str(self.fs.unstrip_protocol(path)))
        except Exception:
            return shown(path)

    @contextmanager
    def guarded(self, path: str) -> Iterator[None]:
        """See `Place`."""
        with explained(self.shown(path), self.options):
            yield

    @contextmanager
    def ranges(self, path: str, expected: About | None = None) -> Iterator[Fetch]:
        """See `Place`. Where every range is a request of its own, nothing is compared: that would be one more."""
        with self.guarded(path):
            if getattr(self.fs, "async_impl", False):  # one request a range
                yield partial(_read_at, partial(self._fetch, path))
                return
            with self.fs.open(path, "rb") as file:
                if expected is not None:
                    check_opened(self.shown(path), expected, file)
                yield partial(_read_at, lambda at, length: (file.seek(at), file.read(length))[1])

    def _fetch(self, path: str, at: int, length: int) -> bytes:
        data = cast(bytes, self.fs.cat_file(path, start=at, end=at + length))
        if len(data) > length:
            raise SetupError(f"{self.shown(path)}: more came than was asked for: ranges are not served there")
        return data

    def open(self, path: str) -> BinaryIO:
        """See `Place`."""
        with self.guarded(path):
            # HTTP with blocks of 0 bytes is a plain stream: one request.
            options = {"block_size": 0} if self.scheme in _HTTP else {}
            return cast(BinaryIO, self.fs.open(path, "rb", **options))

    def about(self, path: str) -> About:
        """See `Place`."""
        with self.guarded(path):
            return self.about_of(path, self.fs.info(path))

    def about_of(self, path: str, info: Mapping[str, Any]) -> About:
        """The same from what the file system told already."""
        if info.get("type") == "directory" and self.scheme not in _HTTP:
            raise IsADirectoryError(path)
        size = info.get("size")
        version = version_of(info)
        if size is None or (self.scheme in _HTTP and not self._serves_ranges(path, size, info)):
            return About(None, version)
        return About(int(size), version)

    def _serves_ranges(self, path: str, size: int, about: Mapping[str, Any]) -> bool:
        """Whether the server reads in the middle of a file: it need not say so, and one that cannot sends it all."""
        if size < 2:
            return True
        if about.get("partial") is False:
            return False
        with self.fs.open(path, "rb", block_size=2, cache_type="none", size=size) as file:
            file.seek(size - 1)
            try:
                return len(file.read(1)) == 1
            except ValueError:
                return False

    def exists(self, path: str) -> bool:
        """See `Place`."""
        with self.guarded(path):
            return bool(self.fs.exists(path))

    def names(self, directory: str) -> list[str]:
        """See `Place`."""
        with self.guarded(directory):
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(directory, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def create(self, path: str) -> BinaryIO:
        """See `Place`."""
        parent = path.rstrip("/").rpartition("/")[0]
        with self.guarded(parent or path):
            if self.scheme in _HTTP:
                raise SetupError(f"{self.shown(parent)}: {self.scheme}:// is for reading")
            if parent:
                self.fs.makedirs(parent, exist_ok=True)
            if self.scheme in HDFS:
                return cast(BinaryIO, HdfsWriter(self.fs, path))
            return cast(BinaryIO, self.fs.open(path, "wb"))

    def publish(self, temporary: str, path: str) -> None:
        """See `Place`."""
        with self.guarded(path):
            self.fs.invalidate_cache()
            if self.scheme in HDFS:
                self.fs.mv(temporary, path, overwrite=True)
                return
            try:
                self.fs.mv(temporary, path)
            except OSError:
                # Object stores replace what is there; some file systems rename only to a free name.
                if not (self.fs.exists(temporary) and self.fs.exists(path)):
                    raise
                self.fs.rm_file(path)
                self.fs.mv(temporary, path)

    def settle(self, directory: str) -> None:
        """See `Place`."""

    def remove(self, path: str) -> None:
        """See `Place`."""
        with self.guarded(path):
            self.fs.invalidate_cache()
            try:
                if self.fs.exists(path):
                    self.fs.rm_file(path)
            except FileNotFoundError:
                pass


def place_of(address: str, options: Mapping[str, Any] | None = None) -> tuple[Place, str]:
    """Where an address is: the place, and the path there.

    Raises:
        SetupError: no such protocol, or what it needs is not installed or does not answer.
    """
    scheme = scheme_of(address)
    if not scheme:
        return LOCAL, local_path(address)
    with explained(address, options):
        from fsspec.core import url_to_fs  # noqa: PLC0415 - loaded by whoever leaves this machine

        try:
            fs, path = url_to_fs(address, **dict(options or {}))
        except TypeError as reason:  # an option that the file system does not have
            raise SetupError(f"{shown(address)}: {scrubbed(str(reason), options)}") from None
        except RuntimeError as reason:
            if scheme not in HDFS or "InvalidArgument" not in str(reason):
                raise
            raise SetupError(
                f"{shown(address)}: name a host and its port (hdfs://host:9000/...), or what the configuration that "
                f"HADOOP_CONF_DIR names knows: {scrubbed(str(reason), options)}"
            ) from None
    if scheme in HDFS:
        reach(fs, address)
    if not isinstance(path, str):
        raise ProgramError(f"{shown(address)}: one address at a time")
    return RemotePlace(fs, scheme, dict(options or {})), path


def as_place(fs: Any) -> Place:
    """A place from what callers have: one already, a file system of fsspec's, or None for this machine's."""
    if fs is None:
        return LOCAL
    if isinstance(fs, (LocalPlace, RemotePlace)):
        return fs
    protocol = getattr(fs, "protocol", "")
    scheme = protocol if isinstance(protocol, str) else next(iter(protocol), "")
    return LOCAL if scheme in ("file", "local") else RemotePlace(fs, scheme, getattr(fs, "storage_options", {}))


def _read_at(fetch: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """[start, end) by as many calls as it takes: a file system may give less than was asked for."""
    data = fetch(start, end - start) if end > start else b""
    if len(data) == max(0, end - start) or not data:
        return data
    pieces = [data]
    at = start + len(data)
    while at < end and (data := fetch(at, end - at)):
        pieces.append(data)
        at += len(data)
    return b"".join(pieces)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
