"""Reading a file from its beginning, taken out of its compression as it comes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, BinaryIO, cast
from zlib import error as ZlibError

from ec262.errors import ProgramError, SetupError
from ec262.storage.find import Found


@contextmanager
def decompressed(file: Found) -> Iterator[BinaryIO]:
    """The file's content as a stream.

    Raises:
        ProgramError: the data are not compressed in that way.
        SetupError: this Python cannot read that compression.
    """
    opener = _OPENERS[file.compression]
    raw = file.place.open(file.path)
    try:
        with opener(raw) as stream:
            try:
                yield stream
            except (gzip.BadGzipFile, ZlibError, lzma.LZMAError, EOFError) as reason:
                raise _broken(file, reason) from None
            except OSError as reason:
                if file.compression == "bz2" and reason.errno is None:
                    raise _broken(file, reason) from None
                raise
            except Exception as reason:
                if type(reason).__name__ == "ZstdError":
                    raise _broken(file, reason) from None
                raise
    finally:
        raw.close()


def _broken(file: Found, reason: Exception) -> ProgramError:
    return ProgramError(f"{file.name}: no whole {file.compression} file: {reason!s:.200}")


def _zstd(raw: BinaryIO) -> BinaryIO:
    try:
        module: Any = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise SetupError(".zst files need more than is installed here: pip install 'ec262[zstd]'") from None
    return cast(BinaryIO, module.ZstdFile(raw))


class _Plain:
    """A stream that is none of ours to close twice."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def __enter__(self) -> BinaryIO:
        return self._raw

    def __exit__(self, *_: object) -> None:
        pass


_OPENERS: dict[str, Any] = {
    "": _Plain,
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _zstd,
}
