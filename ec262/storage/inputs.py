"""File input of jobs: which files, and the splits they are cut into."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, ClassVar

from ec262.errors import EC262Error, ProgramError
from ec262.mapreduce.records import Cut, Kind, Reader, csv_fields
from ec262.mapreduce.split import RecordsSplit, Split
from ec262.protocol.canonical import encode_value
from ec262.storage.address import scheme_of, shown
from ec262.storage.compressed import decompressed
from ec262.storage.find import Found, find
from ec262.storage.place import Place, place_of
from ec262.storage.ranges import cut_stream, read_range

Splitter = Callable[[BinaryIO, str], Iterable[bytes]]

SPLITS = 64
"""Without a wish of the user's, input becomes about so many splits,"""
LEAST_SPLIT = 64 * 1024
"""none smaller than this,"""
MOST_SPLIT = 4 * 1024 * 1024
"""and none larger than this (but for lines that are)."""
EXPANSION = 4
"""How many bytes of text a compressed byte is taken for."""

_STORAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,57}")


def default_split_size(total: int | None) -> int:
    """Bytes of a split for so many bytes of input (None: nobody knows how many)."""
    return MOST_SPLIT if total is None else min(max(total // SPLITS, LEAST_SPLIT), MOST_SPLIT)


@dataclass(frozen=True, slots=True)
class SharedStorage:
    """Files that workers have as well: they read their part themselves, nothing is sent.

    Attributes:
        name: as in the workers' ``--data-dir NAME=DIR``.
        root: where this machine sees the same files: a directory, or a URL.

    Raises:
        ProgramError: not a name.
    """

    name: str
    root: str = field(repr=False)

    def __post_init__(self) -> None:
        if type(self.name) is not str or not _STORAGE.fullmatch(self.name):
            raise ProgramError(f"a storage's name is lower case letters, digits, '.', '_', '-', not {self.name!r:.80}")
        object.__setattr__(self, "root", os.fspath(self.root))

    @property
    def capability(self) -> str:
        """What a worker registers that has these files."""
        return f"data:{self.name}"


@dataclass(frozen=True, slots=True)
class FileSplit:
    """A range of a file, read when it is loaded: also in another process, which opens the file anew."""

    place: Place
    path: str
    start: int
    end: int
    size: int
    name: str
    reader: Reader
    by: Cut
    version: str = ""
    anywhere: ClassVar[bool] = True

    def spec(self) -> dict[str, Any]:
        """See `Split`."""
        return {"format": "records", "name": self.name, "reader": self.reader.to_wire()}

    def load(self) -> list[bytes]:
        """See `Split`."""
        about: dict[str, Any] = {"size": self.size, "version": self.version}
        offset, data = read_range(self.place, self.path, self.start, self.end, self.reader, by=self.by, **about)
        return [data, encode_value(offset)]

    def label(self) -> str:
        """See `Split`."""
        return f"{self.name}, from byte {self.start}"

    def tag(self) -> bytes:
        """See `Split`."""
        return _digest(self.name, self.size, self.version, self.start, self.end, self.by, self.reader.to_wire())

    def is_empty(self) -> bool:
        """See `Split`."""
        return self.start == self.end and self.reader.kind != "whole"


@dataclass(frozen=True, slots=True)
class SharedSplit:
    """A range of a file in a shared storage: the worker reads it, `load` gives nothing."""

    storage: str
    inside: str
    """The path in the storage."""
    here: FileSplit
    anywhere: ClassVar[bool] = False

    def spec(self) -> dict[str, Any]:
        """See `Split`."""
        where = {"storage": self.storage, "path": self.inside, "start": self.here.start, "end": self.here.end}
        return {**self.here.spec(), **where}

    def load(self) -> list[bytes]:
        """See `Split`."""
        return []

    def local(self) -> FileSplit:
        """The same split, read by this machine."""
        return self.here

    def label(self) -> str:
        """See `Split`."""
        return self.here.label()

    def tag(self) -> bytes:
        """See `Split`."""
        return self.here.tag()

    def is_empty(self) -> bool:
        """See `Split`."""
        return self.here.is_empty()


@dataclass(frozen=True, repr=False)
class FileInput:
    """Files as a job's input. Made by `files`.

    Attributes:
        paths: paths, URLs, patterns, directories or base names, see `ec262.storage.find.find`.
        reader: how records are read.
        split_by: where files may be cut, if not as the reader does; or a function of a stream and the file's name that
            gives the splits' bytes.
        storage_options: for fsspec, such as credentials.
        compression: ``infer`` from the names, None, or ``gzip``, ``bz2``, ``xz``, ``zstd``.
        shared: the paths are relative to this storage, which the workers have too. What is compressed or cut by a
            function is sent nevertheless.
        reads_here: read shared files on this machine, see `local`.
    """

    paths: tuple[str, ...]
    reader: Reader = field(default_factory=Reader)
    split_by: Cut | Splitter | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    compression: str | None = "infer"
    shared: SharedStorage | None = None
    reads_here: bool = False

    def __post_init__(self) -> None:
        if not self.paths:
            raise ProgramError("no input file is named")
        for path in self.paths:
            if not path or "\0" in path:
                raise ProgramError(f"{path!r:.80} is no path")
            if self.shared is not None and (path.startswith(("/", "~")) or ".." in path.split("/") or scheme_of(path)):
                raise ProgramError(f"{shown(path)}: has to be a path inside the storage {self.shared.name}")
        if not callable(self.split_by) and self.split_by not in (None, "lines", "records", "whole"):
            raise ProgramError(f"split_by={self.split_by!r:.80}: 'lines', 'records', 'whole' or a function")
        if self.split_by == "records" and self.reader.record_size < 1:
            raise ProgramError("split_by='records' needs a record_size")

    def __repr__(self) -> str:
        return f"FileInput({', '.join(map(shown, self.paths))}; {self.reader})"

    def local(self) -> FileInput:
        """The same records, shared files being read on this machine."""
        return replace(self, reads_here=True) if self.shared is not None else self

    def found(self) -> list[Found]:
        """The files, in the order of `paths` and then of names, each once, under the first of its names.

        Raises:
            ProgramError, SetupError: see `find`.
        """
        root = self.shared.root.rstrip("/") + "/" if self.shared is not None else ""
        above = place_of(root, self.storage_options)[1].rstrip("/") + "/" if root else ""
        made: dict[tuple[str, str], Found] = {}
        for path in self.paths:
            if root:  # workers take plain paths only
                inside = posixpath.normpath(path)
                path = "" if inside == "." else inside + "/" * path.endswith("/")
            for each in find(root + path, self.storage_options, compression=self.compression):
                if root:
                    each = replace(each, name=each.path.removeprefix(above))
                made.setdefault(each.place.key(each.path), each)
        return list(made.values())

    def size(self) -> int | None:
        """Bytes of input; an estimate where files are compressed, None where nobody knows."""
        total = 0
        for file in self.found():
            if file.about.size is None:
                return None
            total += file.about.size * (EXPANSION if file.compression else 1)
        return total

    def split_size(self, wanted: int | None = None) -> int:
        """The size of splits: the one wanted, or else one that suits the size of the input."""
        if wanted is not None and wanted < 1:
            raise ProgramError("split_size has to be 1 byte or more")
        return wanted if wanted is not None else default_split_size(self.size())

    def split_count(self, split_size: int) -> int | None:
        """How many splits there will be; None if only reading tells."""
        count = 0
        for file in self.found():
            if self._streams(file) or file.about.size is None:
                return None
            count += len(self._starts(file.about.size, split_size))
        return count

    def tag(self) -> str:
        """Tells this input from others, also from itself once a file has changed, as far as places tell that."""
        by = getattr(self.split_by, "__qualname__", None) or str(self.split_by)
        facts = [(each.name, each.about.size or 0, each.about.version, each.compression) for each in self.found()]
        return _digest(*facts, by, self.reader.to_wire()).hex()

    def splits(self, split_size: int) -> Iterator[Split]:
        """The splits, in order of files and offsets, read as they are taken. The same for the same input.

        Args:
            split_size: bytes of each, about.

        Raises:
            ProgramError, SetupError: see `find`; at once, not only when the first split is taken.
        """
        if split_size < 1:
            raise ProgramError("split_size has to be 1 byte or more")
        found = self.found()
        return (split for file in found for split in self._splits_of(file, split_size))

    @property
    def _by(self) -> Cut:
        return self.reader.splits_by if self.split_by is None or callable(self.split_by) else self.split_by

    def _streams(self, file: Found) -> bool:
        """Whether a file has to be read from its beginning, here, to be cut."""
        return bool(file.compression) or callable(self.split_by) or file.about.size is None

    def _starts(self, size: int, split_size: int) -> range:
        if self._by == "whole":
            return range(1) if size or self.reader.kind == "whole" else range(0)
        if not size and self.reader.kind == "whole":
            return range(1)
        step = split_size
        if self._by == "records":
            step = max(1, split_size // self.reader.record_size) * self.reader.record_size
        return range(0, size, step)

    def _splits_of(self, file: Found, split_size: int) -> Iterator[Split]:
        if self._streams(file):
            yield from self._streamed(file, split_size)
            return
        size = file.about.size or 0
        reader = self.reader
        if reader.kind == "csv" and reader.header and not reader.fields and size:
            line = read_range(file.place, file.path, 0, 1, reader, size=size, by="lines")[1]
            reader = replace(reader, fields=csv_fields(reader, line, name=file.name))
        starts = self._starts(size, split_size)
        shares = self.shared is not None and not self.reads_here and self._by == reader.splits_by
        for start in starts:
            end = min(start + starts.step, size) if self._by != "whole" else size
            here = FileSplit(
                *(file.place, file.path, start, end, size, file.name, reader, self._by, file.about.version)
            )
            yield SharedSplit(self.shared.name, file.name, here) if shares and self.shared is not None else here

    def _streamed(self, file: Found, split_size: int) -> Iterator[Split]:
        reader = self.reader
        with file.place.guarded(file.path), decompressed(file) as stream:
            if callable(self.split_by):
                pieces = _pieces(self.split_by, stream, file.name)
            else:
                pieces = cut_stream(stream, reader, split_size, by=self._by)
            for offset, data in pieces:
                if reader.kind == "csv" and reader.header and not reader.fields:
                    line = data.partition(reader.delimiter)[0]
                    reader = replace(reader, fields=csv_fields(reader, line, name=file.name))
                yield RecordsSplit(data, offset, file.name, reader)


def _pieces(split: Splitter, stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """What a user's splitter gives, with offsets."""
    offset = 0
    try:
        for piece in split(stream, name):
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise ProgramError(f"{name}: split_by gave a {type(piece).__name__}, it has to give bytes")
            yield offset, bytes(piece)
            offset += len(piece)
    except EC262Error:
        raise
    except Exception as reason:
        raise ProgramError(f"split_by failed on {name}: {type(reason).__name__}: {reason!s:.200}") from reason


def _digest(*facts: Any) -> bytes:
    return hashlib.sha256(encode_value(list(facts))).digest()[:16]


_KEEP: Any = object()


def files(
    *paths: str | os.PathLike[str],
    reader: Reader | Kind = "lines",
    split_by: Cut | Splitter | None = None,
    encoding: str | None = _KEEP,
    record_size: int = _KEEP,
    delimiter: bytes = _KEEP,
    separator: str = _KEEP,
    header: bool = _KEEP,
    multiline: bool = _KEEP,
    storage_options: Mapping[str, Any] | None = None,
    compression: str | None = "infer",
    shared: SharedStorage | None = None,
) -> FileInput:
    """Files as a job's input: ``run_job(files("books/*.txt"))``.

    Args:
        paths: paths of this machine or URLs (``hdfs://``, ``s3://``, ``http://``, whatever fsspec knows): files,
            patterns, directories, or base names (``book_`` stands for ``book_00``, ``book_01``, ...).
        reader: what the records are, see `Reader`; a kind, or a reader of your own making.
        split_by: where files may be cut: "lines", "records", "whole" (not at all); or a function that is given each
            file as a stream, and its name, and yields the bytes of each split. Default: what suits the reader.
        encoding, record_size, delimiter, separator, header, multiline: of the reader.
        storage_options: for the file system, such as credentials; they stay on this machine and, with backend "dask",
            its workers.
        compression: "infer" from the names (.gz, .bz2, .xz, .zst), None, or one of gzip, bz2, xz, zstd.
        shared: workers have the files too and read them themselves; paths are relative to it.

    Raises:
        ProgramError: arguments that make no sense. Files are looked for when the job starts.
    """
    wishes: dict[str, Any] = {
        name: value
        for name, value in (
            *(("encoding", encoding), ("record_size", record_size), ("delimiter", delimiter)),
            *(("separator", separator), ("header", header), ("multiline", multiline)),
        )
        if value is not _KEEP
    }
    if isinstance(reader, Reader):
        made = replace(reader, **wishes)
    elif isinstance(reader, str):
        made = Reader(reader, **wishes)
    else:
        raise ProgramError(f"reader={reader!r:.80}: has to be a name or a Reader")
    if split_by == "whole" and made.kind == "csv" and "multiline" not in wishes:
        made = replace(made, multiline=True)
    try:
        named = tuple(os.fspath(path) for path in paths)
    except TypeError as reason:
        raise ProgramError(f"files(): {reason}") from None
    if not all(isinstance(path, str) for path in named):
        raise ProgramError("files(): paths are text")
    return FileInput(named, made, split_by, dict(storage_options or {}), compression, shared)


def local_split(split: Split) -> Split:
    """A split that this machine can load: of a shared storage's, the one that reads the file here."""
    return split.local() if isinstance(split, SharedSplit) else split
