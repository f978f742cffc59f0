"""Reading a job's output again: put together in one file, or as pairs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from operator import itemgetter, le
from typing import Any

from ec262.errors import EC262Error, Malformed, ProgramError
from ec262.protocol.canonical import comparable, sort_key
from ec262.storage.address import explained
from ec262.storage.formats import WITH_KEYS, key_reader, pair_reader
from ec262.storage.manifest import Manifest, Output, Part
from ec262.storage.place import Place, place_of

MERGE_BYTES = 32 * 1024 * 1024
"""What all files that are merged may hold in memory together, read but not yet written."""
_LARGEST_BLOCK = 1024 * 1024
_SMALLEST_BLOCK = 4 * 1024


def collect(
    url: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Puts a job's output together in one file, sorted by key; in bounded memory, however large it is.

    Ordered output (the range partitioner's), and output in one file, is copied as it is; other output is merged by
    key, which needs a format that has the keys.

    Args:
        url: the output as the job was given it: ``url_00``, ``url_01``, ... and ``url_manifest.json``.
        target: a path or URL; ``-`` is standard output. It appears under its name when it is complete.
        storage_options: for both.
        overwrite: the target may be there already.

    Returns:
        How many bytes were written.

    Raises:
        ProgramError: no (complete) output there, files that are not as the manifest says, output that cannot be
            merged, a target that is there already.
        SetupError: no permission, no space; no part of the target is left then.
    """
    output = Output(os.fspath(url), storage_options)
    manifest = output.read_manifest()
    output.check_sizes(manifest)
    named = os.fspath(target)
    pieces = _pieces(output, manifest)
    if named == "-":
        return _print(pieces)
    return _write(pieces, *place_of(named, storage_options), overwrite=overwrite)


def _print(pieces: Iterator[bytes]) -> int:
    """Writes to standard output. A reader who has enough is no fault of ours: `BrokenPipeError` stays what it is."""
    written = 0
    try:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            written += len(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as reason:
        with explained("standard output"):
            raise reason
    return written


def _write(pieces: Iterator[bytes], place: Place, path: str, *, overwrite: bool) -> int:
    if place.exists(path) and not overwrite:
        raise ProgramError(f"{place.shown(path)} is there already: choose another target, or overwrite it")
    directory, slash, name = path.rpartition("/")
    if not name:
        raise ProgramError(f"{place.shown(path)}: the target has to be a file")
    temporary = f"{directory}{slash}.{name}.{secrets.token_hex(4)}.part"
    written = 0
    try:
        with contextlib.ExitStack() as closing:
            closing.enter_context(place.guarded(path))
            file = closing.enter_context(place.create(temporary))
            for piece in pieces:
                file.write(piece)
                written += len(piece)
        place.publish(temporary, path)
        place.settle(directory or slash)
    except BaseException:
        with contextlib.suppress(EC262Error):
            place.remove(temporary)
        raise
    return written


def read_pairs(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, Any]]:
    """The pairs of a job's output in format "text" or "json", one after the other: file by file, each in key order.

    Raises:
        ProgramError: no (complete) output there, or a format that does not tell what the pairs were; at once. A file
            that is not as the manifest says: when it has been read.
    """
    output = Output(os.fspath(url), storage_options)
    manifest = output.read_manifest()
    if manifest.format not in WITH_KEYS:
        raise ProgramError(f"{output.name}: files of format {manifest.format!r} hold no pairs")
    read = pair_reader(manifest.format, manifest.keys, manifest.values, where=output.name)
    output.check_sizes(manifest)
    return _pairs(output, manifest, read)


def _pairs(output: Output, manifest: Manifest, read: Callable[[bytes], tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    for part in manifest.parts:
        for lines in _Reading(output, part).lines(_LARGEST_BLOCK):
            with _sound(output, part):
                yield from map(read, lines)


@contextlib.contextmanager
def _sound(output: Output, part: Part) -> Iterator[None]:
    try:
        yield
    except Malformed as reason:
        raise ProgramError(f"{output.address(part.name)}: not what a job writes: {reason}") from None


def _pieces(output: Output, manifest: Manifest) -> Iterator[bytes]:
    parts = [part for part in manifest.parts if part.bytes]
    if manifest.ordered or len(parts) < 2:
        return (piece for part in parts for piece in _Reading(output, part).pieces(_LARGEST_BLOCK))
    if manifest.format not in WITH_KEYS:
        raise ProgramError(
            f"{output.name}: {len(parts)} files that are not in order, and format {manifest.format!r} holds no keys to "
            "merge them by: run the job with partitioner='range', with reducers=1, or with another output_format"
        )
    return _merge(output, parts, key_reader(manifest.format, manifest.keys, where=output.name))


class _Reading:
    """A part being read from its beginning to its end, and compared with what the manifest says of it."""

    def __init__(self, output: Output, part: Part) -> None:
        self._name = output.address(part.name)
        self._place, self._path = output.place, output.path(part.name)
        self._part = part

    def pieces(self, block: int) -> Iterator[bytes]:
        """The bytes, about `block` at a time. The file is open only while it is read from: parts may be many."""
        digest = hashlib.sha256()
        at = 0
        while at < self._part.bytes:
            with self._place.ranges(self._path) as fetch:
                piece = fetch(at, min(at + block, self._part.bytes))
            if not piece:
                raise ProgramError(f"{self._name}: ends too early: it was changed while it was read")
            at += len(piece)
            digest.update(piece)
            if at == self._part.bytes and digest.hexdigest() != self._part.sha256:
                raise ProgramError(f"{self._name}: its SHA-256 is not what the manifest says: it was changed")
            yield piece

    def lines(self, block: int) -> Iterator[list[bytes]]:
        """The lines without their line feeds, some at a time."""
        rest: list[bytes] = []
        for piece in self.pieces(block):
            head, feed, tail = piece.rpartition(b"\n")
            if not feed:
                rest.append(piece)
                continue
            yield b"".join([*rest, head]).split(b"\n")
            rest = [tail]
        last = b"".join(rest)
        if last:
            yield [last]


class _Run:
    """A part being merged: its current lines, as (key, line)."""

    def __init__(self, output: Output, part: Part, key_of: Callable[[bytes], Any], block: int) -> None:
        self._output, self._part, self._key_of = output, part, key_of
        self._blocks = _Reading(output, part).lines(block)
        self.lines: list[tuple[Any, bytes]] = []
        self.load()

    def load(self) -> None:
        """The next lines, where none are left.

        Raises:
            ProgramError: they are not in order.
        """
        before = [key for key, _ in self.lines[-1:]]
        lines = next(self._blocks, [])
        with _sound(self._output, self._part):
            keys = [*map(self._key_of, lines)]
        self.lines = list(zip(keys, lines, strict=True))
        if not _ascend(before + keys):
            raise ProgramError(
                f"{self._output.address(self._part.name)}: its keys are not in order, so that it cannot be merged: a "
                "false result is in it, or bytes of another encoding than UTF-8, which output_format='json' keeps apart"
            )


def _ascend(keys: list[Any]) -> bool:
    places = keys if comparable(set(map(type, keys))) else [*map(sort_key, keys)]
    return all(map(le, places, islice(places, 1, None)))


def _merge(output: Output, parts: list[Part], key_of: Callable[[bytes], Any]) -> Iterator[bytes]:
    """Lines of all parts by key; those of equal keys in the order of the parts.

    A round takes from every part the lines up to the least of their last keys (nothing smaller can follow) and sorts
    these at once, which is faster than a heap of single lines.
    """
    block = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, MERGE_BYTES // (8 * len(parts))))
    runs = [_Run(output, part, key_of, block) for part in parts]
    while runs:
        kinds = {type(key) for run in runs for key, _ in run.lines}
        place: Callable[[Any], Any] = itemgetter(0) if comparable(kinds) else _place
        last = min(place(run.lines[-1]) for run in runs)
        taken: list[tuple[Any, bytes]] = []
        for run in runs:
            count = _up_to(run.lines, last, place)
            taken += run.lines[:count]
            if count == len(run.lines):
                run.load()
            else:
                del run.lines[:count]
        taken.sort(key=place)
        yield b"".join([b"%b\n" % line for _, line in taken])
        runs = [run for run in runs if run.lines]


def _place(line: tuple[Any, bytes]) -> Any:
    return sort_key(line[0])


def _up_to(lines: list[tuple[Any, bytes]], last: Any, place: Callable[[Any], Any]) -> int:
    """How many of the lines stand at or before `last`."""
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high) // 2
        if place(lines[middle]) <= last:
            low = middle + 1
        else:
            high = middle
    return low
