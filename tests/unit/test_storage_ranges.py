"""Ranges: every line in exactly one, wherever a file is cut, and no more is read than that takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec262.errors import ProgramError
from ec262.mapreduce.records import Reader, read_records
from ec262.storage.place import RemotePlace
from ec262.storage.ranges import cut_stream, overlaps_itself, read_range

DELIMITERS = [b"\n", b"\r\n", b"\r", b"ab", b"aa", b"\n\n", b"aba", b"abcab", b"\n\r\n"]


class Watched:
    """A file system of one file in memory, which counts what is read of it."""

    protocol = "watched"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read = 0
        self.requests = 0

    def info(self, path: str) -> dict[str, Any]:
        return {"name": path, "size": len(self.data), "type": "file"}

    def open(self, path: str, mode: str = "rb") -> io.BytesIO:
        watched = self

        class File(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                piece = super().read(size)
                watched.read += len(piece)
                watched.requests += 1
                return piece

        return File(self.data)


def all_lines(reader: Reader, data: bytes) -> list[Any]:
    return list(read_records(reader, data, name="f", offset=0))


pieces = st.lists(
    st.sampled_from([b"a", b"b", b"c", b"\n", b"\r", b"\r\n", b"\n\n", b"aa", b"ab", b"abcab", b"\xff", b"x" * 40])
).map(b"".join)


@settings(max_examples=400)
@given(data=pieces | st.binary(max_size=80), delimiter=st.sampled_from(DELIMITERS), size=st.integers(1, 90))
def test_every_line_is_in_exactly_one_range(data: bytes, delimiter: bytes, size: int) -> None:
    reader = Reader("offsets", delimiter=delimiter, encoding=None)
    place = Watched(data)
    found: list[Any] = []
    joined = b""
    for start in range(0, len(data) + size, size):
        offset, part = read_range(place, "f", start, start + size, reader)
        if part:
            assert start <= offset < start + size
            assert offset == len(joined)
        joined += part
        found += read_records(reader, part, name="f", offset=offset)
    assert joined == data
    assert found == all_lines(reader, data)


@given(data=pieces, delimiter=st.sampled_from(DELIMITERS), size=st.integers(1, 90), chunk=st.integers(1, 50))
def test_a_stream_is_cut_between_lines(data: bytes, delimiter: bytes, size: int, chunk: int) -> None:
    class Short(io.BytesIO):
        def read(self, wanted: int | None = -1, /) -> bytes:
            return super().read(min(wanted, chunk) if wanted and wanted > 0 else chunk)

    reader = Reader("offsets", delimiter=delimiter, encoding=None)
    found: list[Any] = []
    end = 0
    for offset, part in cut_stream(Short(data), reader, size):
        assert offset == end
        assert part
        end += len(part)
        assert len(part) >= size or end == len(data)
        found += read_records(reader, part, name="f", offset=offset)
    assert end == len(data)
    assert found == all_lines(reader, data)


@given(data=st.binary(max_size=100), record=st.integers(1, 9), size=st.integers(1, 40))
def test_records_are_whole(data: bytes, record: int, size: int) -> None:
    data = data[: len(data) // record * record]
    reader = Reader("records", record_size=record)
    parts = [read_range(Watched(data), "f", at, at + size, reader) for at in range(0, len(data), size)]
    assert b"".join(part for _, part in parts) == data
    assert all(len(part) % record == 0 and offset % record == 0 for offset, part in parts)
    cut = list(cut_stream(io.BytesIO(data), reader, size))
    assert b"".join(part for _, part in cut) == data
    assert all(len(part) % record == 0 for _, part in cut)


def test_a_whole_file_is_in_its_first_range() -> None:
    reader = Reader("whole")
    assert read_range(Watched(b"a\nb\n"), "f", 0, 1, reader) == (0, b"a\nb\n")
    assert read_range(Watched(b"a\nb\n"), "f", 1, 4, reader)[1] == b""
    assert list(cut_stream(io.BytesIO(b"a\nb"), reader, 1)) == [(0, b"a\nb")]


@pytest.mark.parametrize("delimiter", [b"\n", b"\n\n", b"<end>"])
def test_ranges_inside_a_huge_line_are_read_once_and_no_further(delimiter: bytes) -> None:
    size, step = 20_000_000, 1_000_000
    place = Watched(b"first" + delimiter + b"x" * size + delimiter + b"last")
    reader = Reader(delimiter=delimiter)
    for start in range(step, size - step, step):
        before = place.read
        assert read_range(place, "f", start, start + step, reader)[1] == b""
        assert place.read - before < step + 200_000
    assert read_range(place, "f", 0, step, reader)[1] == place.data[: -len(b"last")]


def test_an_ordinary_range_is_one_request() -> None:
    place = Watched(b"a line of text\n" * 500_000)
    for start in (0, 1 << 20, 3 << 20):
        before = place.requests
        read_range(place, "f", start, start + (1 << 20), Reader())
        assert place.requests - before == 1
    assert place.read < 3 * ((1 << 20) + (1 << 17))


def test_a_long_row_of_line_ends_is_counted_from_its_beginning() -> None:
    data = b"x" + b"\n" * 300_001 + b"y\n\nz"
    reader = Reader("offsets", delimiter=b"\n\n", encoding=None)
    found: list[Any] = []
    for start in range(0, len(data), 100_000):
        offset, part = read_range(Watched(data), "f", start, start + 100_000, reader)
        found += read_records(reader, part, name="f", offset=offset)
    assert found == all_lines(reader, data)


def test_a_limit_holds_for_long_lines() -> None:
    data = b"x" * 10_000_000 + b"\nlast"
    with pytest.raises(ProgramError, match="goes on beyond"):
        read_range(Watched(data), "f", 0, 1000, Reader(), limit=1_000_000)
    assert read_range(Watched(data), "f", 0, 1000, Reader(), limit=20_000_000)[1] == data[:-4]
    with pytest.raises(ProgramError, match="goes on beyond"):
        read_range(Watched(data), "f", 0, 1, Reader("whole"), limit=1000)


def test_files_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(b"one\ntwo\nthree")
    assert read_range(None, str(path), 1, 5, Reader()) == (4, b"two\n")
    assert read_range(None, str(path), 5, 500, Reader()) == (8, b"three")
    assert read_range(None, str(path), 13, 500, Reader())[1] == b""
    with pytest.raises(ProgramError, match=r"none\.txt: no such file"):
        read_range(None, str(tmp_path / "none.txt"), 0, 1, Reader())
    with pytest.raises(ProgramError, match="shorter"):
        read_range(None, str(path), 0, 20, Reader(), size=20)


def test_file_systems_that_can_open_and_seek_are_enough() -> None:
    class Small:
        protocol = "small"

        def info(self, path: str) -> dict[str, Any]:
            return {"name": path, "size": 13, "type": "file"}

        def open(self, path: str, mode: str = "rb") -> io.BytesIO:
            return io.BytesIO(b"one\ntwo\nthree")

    assert read_range(Small(), "f", 1, 5, Reader()) == (4, b"two\n")
    assert read_range(RemotePlace(Small(), "small"), "f", 5, 9, Reader()) == (8, b"three")


def test_which_delimiters_overlap_themselves() -> None:
    assert [overlaps_itself(each) for each in DELIMITERS] == [
        *(False, False, False, False, True, True, True, True, True)
    ]
    assert not overlaps_itself(b"<end>")
