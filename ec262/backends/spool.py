"""Spool: the results of one phase's tasks, in memory up to a bound, beyond it in a file.

A task's result is a row of parts; a reduce task wants a column, part r of every row. Rows go to the end of one file,
each with a header and a checksum; columns are read with positioned reads. In memory or on disk, the bytes are the same.

A spool in a checkpoint's directory is *durable*: every row goes to the file, is there when `put` returns (a kill -9
loses nothing; a power cut may), and is found again when the spool is opened anew. Cost: one write a row, one read a
part; memory about 8 bytes a part.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final
from zlib import crc32

from ec262.errors import SetupError

_ROW: Final = struct.Struct(">4sIII16s")  # mark, number, parts (with the facts), checksum of all that follows, tag
_MARK: Final = b"EROW"
_PIECE: Final = 16 * 1024 * 1024


class Memory:
    """How many bytes of results may be held, by all spools of a job together. None: any number."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.held = 0

    def take(self, size: int) -> bool:
        """Whether so many bytes more may be held; if so they count."""
        if self._limit is not None and self.held + size > self._limit:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        """So many bytes are held no more."""
        self.held -= size


class _OnDisk:
    """Where a row's parts lie: `starts` has one place more than there are parts."""

    __slots__ = ("starts",)

    def __init__(self, start: int, lengths: Sequence[int]) -> None:
        self.starts = array("Q", accumulate(lengths, initial=start))


class Spool:
    """Rows of parts by task number.

    Args:
        memory: what may be held before rows go to the file.
        path: of a durable spool's file; None: a temporary file without a name, made when it is needed.

    Raises:
        SetupError: the file cannot be made, written or read; says where and why.
    """

    def __init__(self, memory: Memory, path: Path | None = None) -> None:
        self._memory = memory
        self._path = path
        self._rows: dict[int, list[bytes] | _OnDisk] = {}
        self._counts: dict[int, dict[str, int]] = {}
        self._failed: dict[int, tuple[str, str]] = {}
        self._tags: dict[int, bytes] = {}
        self._file = -1
        self._end = 0
        self.spilled = 0
        """Bytes written to disk."""
        if path is not None:
            self._reopen(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, number: int) -> bool:
        return number in self._rows

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing ---

    def put(
        self,
        number: int,
        parts: Sequence[bytes],
        counts: Mapping[str, int] | None = None,
        tag: bytes = b"",
        failed: tuple[str, str] | None = None,
        *,
        instead: bool = False,
    ) -> None:
        """Keeps a task's result.

        Args:
            counts: what the task counted.
            tag: up to 16 bytes that say what the task's input was; see `tag_of`.
            failed: of a task that was left out: its label, and why it failed.
            instead: of the one that is there.
        """
        if number in self._rows:
            if not instead:
                raise ValueError(f"task {number} has a result already")
            self._forget(number)
        size = sum(map(len, parts))
        if self._path is None and self._memory.take(size):
            self._rows[number] = list(parts)
        else:
            facts = {name: value for name, value in (("counts", counts), ("failed", failed)) if value}
            self._rows[number] = self._append(number, parts, facts, tag)
        if counts:
            self._counts[number] = dict(counts)
        if failed:
            self._failed[number] = failed
        if tag:
            self._tags[number] = tag.ljust(16, b"\0")

    def drop(self, number: int) -> None:
        """The task has no result any more, nor has it when a durable spool is opened anew."""
        if self._path is not None:
            self._append(number, [], {"dropped": True}, b"")
        self._forget(number)

    def _forget(self, number: int) -> None:
        row = self._rows.pop(number)
        if isinstance(row, list):
            self._memory.give(sum(map(len, row)))
        for facts in (self._counts, self._failed, self._tags):
            facts.pop(number, None)

    def _append(self, number: int, parts: Sequence[bytes], said: Mapping[str, object], tag: bytes) -> _OnDisk:
        facts = json.dumps(said, sort_keys=True).encode() if said else b""
        lengths = [*map(len, parts), len(facts)]
        index = struct.pack(f">{len(lengths)}I", *lengths)
        check = crc32(index)
        for part in parts:
            check = crc32(part, check)
        header = _ROW.pack(_MARK, number, len(lengths), crc32(facts, check), tag.ljust(16, b"\0"))
        start = self._end + len(header) + len(index)
        row = b"".join([header, index, *parts, facts])
        try:
            if self._file < 0:
                self._file = _nameless_file()
            view = memoryview(row)
            at = self._end
            while view:
                written = os.pwrite(self._file, view[:_PIECE], at)
                view, at = view[written:], at + written
        except OSError as reason:
            raise _spool_error("write to", self._path, reason) from None
        self._end += len(row)
        self.spilled += len(row)
        return _OnDisk(start, lengths)

    # --- reading ---

    def numbers(self) -> list[int]:
        """Of the tasks that have results, in order."""
        return sorted(self._rows)

    def tag_of(self, number: int) -> bytes:
        """What was given to `put`, 16 bytes."""
        return self._tags.get(number, bytes(16))

    def counts(self) -> dict[str, int]:
        """What all tasks counted, summed, by name in order."""
        sums: dict[str, int] = {}
        for counts in self._counts.values():
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
        return dict(sorted(sums.items()))

    def counts_of(self, number: int) -> dict[str, int]:
        """What a task counted."""
        return dict(self._counts.get(number, {}))

    def failed(self) -> dict[int, tuple[str, str]]:
        """Tasks that were left out: label and reason by number."""
        return dict(sorted(self._failed.items()))

    def row(self, number: int) -> list[bytes]:
        """A task's parts."""
        row = self._rows[number]
        if isinstance(row, list):
            return row
        starts = row.starts
        return [self._read(starts[at], starts[at + 1]) for at in range(len(starts) - 2)]

    def row_sizes(self, number: int) -> list[int]:
        """Bytes of each of a task's parts."""
        row = self._rows[number]
        if isinstance(row, list):
            return list(map(len, row))
        return [end - start for start, end in zip(row.starts, row.starts[1:-1], strict=False)]

    def column(self, index: int) -> list[bytes]:
        """Part `index` of every task, in task order; empty parts are left out."""
        return [part for number in self.numbers() if (part := self._part(number, index))]

    def column_size(self, index: int) -> int:
        """Bytes of a column."""
        size = 0
        for row in self._rows.values():
            size += len(row[index]) if isinstance(row, list) else row.starts[index + 1] - row.starts[index]
        return size

    def parts(self, index: int) -> Iterator[bytes]:
        """As `column`, one after the other."""
        for number in self.numbers():
            part = self._part(number, index)
            if part:
                yield part

    def _part(self, number: int, index: int) -> bytes:
        row = self._rows[number]
        return row[index] if isinstance(row, list) else self._read(row.starts[index], row.starts[index + 1])

    def _read(self, start: int, end: int) -> bytes:
        if start == end:
            return b""
        try:
            data = os.pread(self._file, end - start, start)
            while len(data) < end - start:
                more = os.pread(self._file, end - start - len(data), start + len(data))
                if not more:
                    raise SetupError(f"the spool {_named(self._path)} was cut short by somebody: start the job anew")
                data += more
            return data
        except OSError as reason:
            raise _spool_error("read", self._path, reason) from None

    # --- opening and closing ---

    def _reopen(self, path: Path) -> None:
        """Finds the rows of an earlier run; what was written in part at its end is cut off."""
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._file).st_size
            while self._end < size and self._take_row(size):
                pass
            os.ftruncate(self._file, self._end)
        except OSError as reason:
            raise _spool_error("open", path, reason) from None

    def _take_row(self, size: int) -> bool:
        start = self._end + _ROW.size
        if start > size:
            return False
        mark, number, count, check, tag = _ROW.unpack(os.pread(self._file, _ROW.size, self._end))
        data_start = start + 4 * count
        if mark != _MARK or count < 1 or data_start > size:
            return False
        index = os.pread(self._file, 4 * count, start)
        lengths = struct.unpack(f">{count}I", index)
        end = data_start + sum(lengths)
        if end > size:
            return False
        sum_ = crc32(index)
        for at in range(data_start, end, _PIECE):
            sum_ = crc32(os.pread(self._file, min(_PIECE, end - at), at), sum_)
        if sum_ != check:
            return False
        if number in self._rows:
            self._forget(number)  # this row came instead
        facts = os.pread(self._file, lengths[-1], end - lengths[-1])
        said = json.loads(facts) if facts else {}
        self._end = end
        if said.get("dropped"):
            return True
        self._rows[number] = _OnDisk(data_start, lengths)
        if "counts" in said:
            self._counts[number] = said["counts"]
        if "failed" in said:
            self._failed[number] = (said["failed"][0], said["failed"][1])
        self._tags[number] = tag
        return True

    def close(self) -> None:
        """Lets go of memory and file; a durable spool's file stays."""
        for row in self._rows.values():
            if isinstance(row, list):
                self._memory.give(sum(map(len, row)))
        self._rows = {}
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _nameless_file() -> int:
    """A temporary file that is gone with the process, however that ends."""
    file, name = tempfile.mkstemp(prefix="ec262-spool-")
    os.unlink(name)
    return file


def _named(path: Path | None) -> str:
    return str(path) if path is not None else f"in {tempfile.gettempdir()}"


def _spool_error(what: str, path: Path | None, reason: OSError) -> SetupError:
    advice = ""
    if reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        place = "another checkpoint directory" if path is not None else "another place with TMPDIR=DIR"
        advice = f": make room there, or choose {place}"
    return SetupError(f"cannot {what} the spool {_named(path)}: {reason.strerror}{advice}")
