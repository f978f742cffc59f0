"""Readers: the bytes of a split to records, (key, value) pairs. Pure, standard library only: the sandbox loads it.

A split holds whole lines (or whole records), so what is read does not depend on where a file was cut.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, chain, repeat
from typing import Any, Literal, get_args

from ec262.errors import Malformed, ProgramError

Kind = Literal["lines", "offsets", "records", "whole", "csv", "jsonl"]
Cut = Literal["lines", "records", "whole"]

MAX_DELIMITER = 64
"""Bytes that may end a line."""
_TRANSPARENT = frozenset({"utf-8", "utf-8-sig", "ascii", "iso8859-1"})
"""Encodings in which an ASCII character's byte is nothing else: text may be decoded first and cut then."""
_OPEN = "a cell in quotes goes on in the next line; with multiline=True such files are read, each as a whole"


@dataclass(frozen=True, slots=True)
class Reader:
    """How the bytes of files become records.

    =========  =============================================================
    kind       records
    =========  =============================================================
    lines      (file's name, line)
    offsets    (offset of the line in the file in bytes, line)
    records    (offset, `record_size` bytes; the last record of a file may have fewer)
    whole      (file's name, the whole file)
    csv        (offset, list of cells), or a dict by the names in the first line where `header` is set
    jsonl      (offset, the line's JSON value)
    =========  =============================================================

    Attributes:
        kind: see there. Blank lines of csv and jsonl are passed over.
        encoding: of text; None leaves bytes (not for csv and jsonl). Bytes that do not belong to it are kept as
            ``surrogateescape`` says: encoding the text again gives them back. ``utf-8-sig`` drops a byte order mark.
        record_size: bytes of a record.
        delimiter: what ends a line. A ``\\r`` before ``\\n`` goes with it; elsewhere it is part of the line.
        separator: what stands between the cells of csv, one character.
        header: the first line of each csv file has the names of the cells.
        fields: these names; filled in when splits are planned.
        multiline: csv cells in quotes may hold line ends; such files are not split.

    Raises:
        ProgramError: values that make no sense together.
    """

    kind: Kind = "lines"
    encoding: str | None = "utf-8"
    record_size: int = 0
    delimiter: bytes = b"\n"
    separator: str = ","
    header: bool = False
    fields: tuple[str, ...] = ()
    multiline: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ProgramError(f"there is no reader {self.kind!r:.40}; there are {', '.join(get_args(Kind))}")
        if self.encoding is not None:
            self._check_encoding(self.encoding)
        elif self.kind in ("csv", "jsonl"):
            raise ProgramError(f"{self.kind} is text: it needs an encoding")
        if self.kind == "records" and (type(self.record_size) is not int or self.record_size < 1):
            raise ProgramError("reader 'records' needs a record_size of 1 byte or more")
        if type(self.delimiter) is not bytes or not 1 <= len(self.delimiter) <= MAX_DELIMITER:
            raise ProgramError(f"a delimiter is 1 to {MAX_DELIMITER} bytes, not {self.delimiter!r:.80}")
        if type(self.separator) is not str or len(self.separator) != 1 or self.separator in '\r\n"':
            raise ProgramError(f"a separator is one character, not {self.separator!r:.40}")

        if self.multiline and self.delimiter not in (b"\n", b"\r\n", b"\r"):
            raise ProgramError("multiline goes with lines that \\n, \\r or \\r\\n ends")

    def _check_encoding(self, encoding: str) -> None:
        try:
            line_end = "\n".encode("utf-8" if _codec(encoding) == "utf-8-sig" else encoding)
        except (LookupError, TypeError, ValueError):
            raise ProgramError(f"there is no encoding {encoding!r:.40}") from None
        if line_end != b"\n" and self.splits_by == "lines":
            raise ProgramError(f"lines cannot be told apart in {encoding}: read files of it with reader 'whole'")

    @property
    def splits_by(self) -> Cut:
        """Where files may be cut for this reader."""
        if self.kind == "records":
            return "records"
        return "whole" if self.kind == "whole" or self.multiline else "lines"

    def to_wire(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "fields": list(self.fields)}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Reader:
        """What `to_wire` gave.

        Raises:
            Malformed: anything else.
        """
        try:
            made = cls(**{**wire, "fields": tuple(wire["fields"])})
            plain = (type(made.header), type(made.multiline), type(made.record_size)) == (bool, bool, int)
            if not plain or not all(type(each) is str for each in made.fields):
                raise ProgramError("values of other types")
        except (ProgramError, TypeError, KeyError) as reason:
            raise Malformed(f"no reader of records: {reason!s:.200}") from None
        return made


def read_records(reader: Reader, data: bytes, *, name: str, offset: int) -> Iterator[tuple[Any, Any]]:
    """The records of a split.

    Args:
        reader: how to read.
        data: the split's bytes, whole lines or records.
        name: the file's name.
        offset: where in the file `data` begin, in bytes.

    Raises:
        ProgramError: the data are not what the reader reads; names the file and the offset. Raised at the record in
            question, not before.
    """
    kind = reader.kind
    if kind == "lines":
        return zip(repeat(name), _lines(reader, data, offset, name))
    if kind == "offsets":
        return zip(_offsets(reader, data, offset), _lines(reader, data, offset, name), strict=False)
    if kind == "whole":
        return iter([(name, _decoder(reader, offset, name)(data))])
    if kind == "records":
        return _records(reader, data, offset)
    return _csv(reader, data, name, offset) if kind == "csv" else _jsonl(reader, data, name, offset)


def csv_fields(reader: Reader, line: bytes, *, name: str) -> tuple[str, ...]:
    """The names in the first line of a csv file.

    Raises:
        ProgramError: there are none, or one stands there twice.
    """
    plain = replace(reader, header=False, fields=(), multiline=True)
    found = tuple(next((row for _, row in _csv(plain, line, name, 0)), ()))
    if not found:
        raise ProgramError(f"{name}: the first line has no names of fields")
    if len(set(found)) != len(found):
        raise ProgramError(f"{name}: a field's name stands twice in the first line")
    return found


# --- lines ----------------------------------------------------------------------------------------


def _lines(reader: Reader, data: bytes, offset: int, name: str) -> Iterable[Any]:
    """Lines without what ends them; the loops are C's."""
    delimiter = reader.delimiter
    if not data:
        return ()
    if delimiter == b"\n" and b"\r\n" in data:
        data = data.replace(b"\r\n", b"\n")
    if reader.encoding is None:
        return _no_last(data.split(delimiter))
    decode = _decoder(reader, offset, name)
    if delimiter.isascii() and _codec(reader.encoding) in _TRANSPARENT:
        return _no_last(decode(data).split(delimiter.decode("ascii")))
    lines = _no_last(data.split(delimiter))
    return chain(map(decode, lines[:1]), map(_decoder(reader, offset + 1, name), lines[1:]))


def _no_last(lines: list[Any]) -> list[Any]:
    """A delimiter ends a line: what follows the last one is a line only if there is anything."""
    if not lines[-1]:
        lines.pop()
    return lines


def _offsets(reader: Reader, data: bytes, offset: int) -> Iterator[int]:
    width = len(reader.delimiter)
    return accumulate((len(line) + width for line in data.split(reader.delimiter)), initial=offset)


def _decoder(reader: Reader, offset: int, name: str) -> Callable[[bytes], Any]:
    encoding = reader.encoding
    if encoding is None:
        return bytes
    if offset and _codec(encoding) == "utf-8-sig":
        encoding = "utf-8"  # inside a file the mark is a character as any other

    def decode(data: bytes) -> str:
        try:
            return data.decode(encoding, "surrogateescape")
        except UnicodeError as reason:  # of encodings that cannot keep what is not theirs, such as utf-16
            raise ProgramError(f"{name}: no {encoding}: {reason!s:.200}") from None

    return decode


def _codec(encoding: str) -> str:
    return codecs.lookup(encoding).name


# --- the others -----------------------------------------------------------------------------------


def _records(reader: Reader, data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    size = reader.record_size
    return ((offset + at, data[at : at + size]) for at in range(0, len(data), size))


def _csv(reader: Reader, data: bytes, name: str, offset: int) -> Iterator[tuple[int, Any]]:
    if len(data) > csv.field_size_limit():
        csv.field_size_limit(len(data))  # a cell may be as long as the data, there is no other limit
    starts = list(_offsets(reader, data, offset))
    lines = iter(_lines(reader, data, offset, name))
    if reader.multiline:
        end = reader.delimiter.decode("ascii")
        lines = (line + end for line in lines)
    rows = csv.reader(lines, delimiter=reader.separator, strict=True)
    names, first = reader.fields, 0
    try:
        while (row := next(rows, None)) is not None:
            if rows.line_num != first + 1 and not reader.multiline:
                raise csv.Error(_OPEN)
            if row and reader.header and offset + first == 0:
                names = names or tuple(row)
            elif row and reader.header:
                if len(row) != len(names):
                    raise csv.Error(f"{len(row)} cells where the first line has {len(names)} names")
                yield starts[first], dict(zip(names, row, strict=True))
            elif row:
                yield starts[first], row
            first = rows.line_num
    except csv.Error as reason:
        text = _OPEN if "unexpected end of data" in str(reason) and not reader.multiline else str(reason)
        raise ProgramError(f"{name}, byte {starts[first]}: no CSV: {text}") from None


def _jsonl(reader: Reader, data: bytes, name: str, offset: int) -> Iterator[tuple[int, Any]]:
    for at, line in zip(_offsets(reader, data, offset), _lines(reader, data, offset, name), strict=False):
        if line and not line.isspace():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as reason:
                raise ProgramError(f"{name}, byte {at}: no JSON: {reason!s:.200}") from None
            yield at, value
