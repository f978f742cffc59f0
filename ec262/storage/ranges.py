"""Ranges of files: which lines or records belong to a range of bytes, and how to read them.

A line belongs to the range in which it starts. So every line is in exactly one range, whatever ranges a file is cut
into, and the ranges can be read apart: each looks for the first line start at or after its beginning, and reads up to
the first line start at or after its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ec262.errors import ProgramError
from ec262.mapreduce.records import Cut, Reader
from ec262.storage.about import About
from ec262.storage.place import Fetch, as_place

_CHUNK = 64 * 1024
_LARGEST_CHUNK = 4 * 1024 * 1024
_MOST_WALK = 1024 * 1024
"""Bytes of delimiters that overlap which are walked through where reading is limited: it takes a step for each."""
_TIMED_CHUNK = 16 * 1024 * 1024
"""Bytes that are read at once where time is limited."""


def read_range(
    fs: Any,
    path: str,
    start: int,
    end: int,
    reader: Reader,
    *,
    size: int | None = None,
    version: str = "",
    by: Cut | None = None,
    limit: int | None = None,
    deadline: float | None = None,
) -> tuple[int, bytes]:
    """The lines, or records, that start in a range of a file.

    Args:
        fs: a file system of fsspec's, a place, or None for this machine's files.
        path: the file there.
        start: first byte of the range.
        end: the byte after it; beyond the end of the file is no fault.
        reader: says what lines or records are.
        size: of the file in bytes, if it is known.
        version: what `Place.about` said with the size; to be compared, as far as that takes no request of its own.
        by: what to cut by, if not as the reader does.
        limit: most bytes to read for it, but for a few chunks; the work is bounded as well, then.
        deadline: by `time.monotonic`. No reading begins after it.

    Returns:
        The offset of the first byte, and the bytes. Where nothing starts in the range, no bytes; that costs reading
        not much more than the range.

    Raises:
        ProgramError: no such file, it became shorter, a line is longer than `limit`, or time is over.
        SetupError: it cannot be read, or it is another version.
    """
    place = as_place(fs)
    if size is None:
        size = place.about(path).size
        if size is None:
            raise ProgramError(f"{place.shown(path)}: cannot be read in ranges")
    end = min(end, size)
    if start >= end:
        return start, b""
    by = by or reader.splits_by
    if by == "records":
        record = reader.record_size
        first, after = (min(-(-at // record) * record, size) for at in (start, end))
    else:
        first, after = (0, size) if start == 0 else (start, start)
    if by != "lines":
        _check_limit(after - first, limit)
    with place.ranges(path, About(size, version) if version else None) as fetch:
        if deadline is not None:
            fetch = _until(deadline, fetch)
        if by == "lines":
            first, data, after = _Lines(fetch, size, reader.delimiter, limit).within(start, end)
        else:
            data = fetch(first, after)
    if len(data) != after - first:
        raise ProgramError(f"{place.shown(path)}: became shorter while it was read")
    return first, data


def _check_limit(length: int, limit: int | None) -> None:
    if limit is not None and length > limit:
        raise ProgramError(f"a line or record goes on beyond the {limit:,} bytes that may be read")


def _until(deadline: float, fetch: Fetch) -> Fetch:
    """The same with a look at the clock before each chunk."""

    def timed(start: int, end: int) -> bytes:
        pieces = []
        at = start
        while at < end:
            if time.monotonic() >= deadline:
                raise ProgramError("reading took too long")
            high = min(end, at + _TIMED_CHUNK)
            pieces.append(fetch(at, high))
            at += len(pieces[-1])
            if at < high:
                break
        return b"".join(pieces)

    return timed


class _Lines:
    """Finds line starts in a file, and holds what was read of it."""

    def __init__(self, fetch: Fetch, size: int, delimiter: bytes, limit: int | None) -> None:
        self._fetch = fetch
        self._size = size
        self._delimiter = delimiter
        self._limit = limit
        self._buffer = bytearray()
        self._low = 0
        """Where in the file the buffer begins."""

    def within(self, start: int, end: int) -> tuple[int, bytes, int]:
        """The lines that start in [start, end): offset of the first, bytes, offset behind the last."""
        width = len(self._delimiter)
        chained = overlaps_itself(self._delimiter)
        place = max(0, start - width)
        if chained:
            place = self._sync(place, 0)
        ahead = min(_CHUNK, max(_CHUNK // 16, (end - start) // 16))
        self._low = place
        self._extend(min(end + ahead, self._size))
        first: int | None = 0 if start == 0 else None
        if first is None:
            while first is None or first < start:
                # Nothing is looked for beyond `end`: a line that starts there is another range's.
                first = self._after(place, end - 1)
                if first is None:
                    return start, b"", start
                place = first
        after: int | None = None
        if end < self._size:
            place = max(first, end - width)
            if chained:
                place = self._sync(place, first, self._buffer, self._low)
            after = self._after(place)
            while after is not None and after < end:
                after = self._after(after)
        last = self._size if after is None else after
        return first, bytes(memoryview(self._buffer)[first - self._low : last - self._low]), last

    def _after(self, place: int, end: int | None = None) -> int | None:
        """Where the line starts that the first delimiter from `place` on ends; None if there is none up to `end`."""
        width = len(self._delimiter)
        if end is not None:
            found = self._buffer.find(self._delimiter, place - self._low, end - self._low)
            return None if found < 0 else self._low + found + width
        step = _CHUNK
        while True:
            found = self._buffer.find(self._delimiter, place - self._low)
            if found >= 0:
                return self._low + found + width
            high = self._low + len(self._buffer)
            if high >= self._size:
                return None
            _check_limit(high - self._low + 1, self._limit)
            place = max(place, high - width + 1)
            self._extend(min(high + step, self._size))
            step = min(2 * step, _LARGEST_CHUNK)

    def _extend(self, high: int) -> None:
        at = self._low + len(self._buffer)
        data = self._fetch(at, high)
        if len(data) != high - at:
            raise ProgramError("the file became shorter while it was read")
        self._buffer += data

    def _sync(self, place: int, least: int, held: bytes | bytearray = b"", low: int | None = None) -> int:
        """A place at or before `place` that lies in no delimiter; `least`, which no line goes over, at the least.

        Only a delimiter that can overlap itself (two line ends, say) needs this: in a row of three line ends it takes
        the beginning of the row to tell which two are the delimiter.

        Args:
            held, low: bytes that were read already, from `least` on or further down, and where they begin.
        """
        width = len(self._delimiter)
        begun = place
        low = place if low is None else low
        while place > least:
            if low > least and place - width + 1 < low:
                low = max(least, place - _CHUNK)
                held = self._fetch(low, min(place + width, self._size))
            found = held.rfind(self._delimiter, max(least, place - width + 1) - low, place - 1 + width - low)
            if found < 0:
                break
            place = low + found
            if self._limit is not None and begun - place > min(self._limit, _MOST_WALK):
                raise ProgramError(f"a row of what ends lines goes on for more than {begun - place - 1:,} bytes")
        return place


def overlaps_itself(delimiter: bytes) -> bool:
    """Whether the delimiter's end can be the beginning of another one, as with two line ends."""
    return any(delimiter[:length] == delimiter[-length:] for length in range(1, len(delimiter)))


def cut_stream(stream: Any, reader: Reader, split_size: int, *, by: Cut | None = None) -> Iterator[tuple[int, bytes]]:
    """Whole lines or records of a stream, in pieces of about `split_size` bytes: (offset, bytes).

    Holds one piece at a time, and of lines as much more as the longest takes. Lines are cut as `read_range` cuts them.

    Args:
        stream: anything with ``read(n)``, which may give less than asked for.
    """
    by = by or reader.splits_by
    if by == "whole":
        yield 0, b"".join(iter(lambda: bytes(stream.read(_LARGEST_CHUNK)), b""))
        return
    if by == "records":
        split_size = max(1, split_size // reader.record_size) * reader.record_size
    delimiter = reader.delimiter
    chained = overlaps_itself(delimiter)
    offset, looked = 0, 0
    buffer = bytearray()
    while True:
        cut = split_size if by == "records" else -1
        if by == "lines" and len(buffer) >= split_size:
            found = buffer.find(delimiter, looked if chained else max(looked, split_size - len(delimiter)))
            while chained and 0 <= found < split_size - len(delimiter):
                looked = found + len(delimiter)
                found = buffer.find(delimiter, looked)
            if found < 0:
                looked = max(looked, len(buffer) - len(delimiter) + 1)
            cut = found + len(delimiter) if found >= 0 else -1
        if 0 < cut <= len(buffer):
            yield offset, bytes(memoryview(buffer)[:cut])
            del buffer[:cut]
            offset, looked = offset + cut, 0
            continue
        wanted = split_size - len(buffer) if len(buffer) < split_size else max(_CHUNK, len(buffer) // 2)
        data = stream.read(min(_LARGEST_CHUNK, wanted))
        if not data:
            break
        buffer += data
    if buffer:
        yield offset, bytes(buffer)
