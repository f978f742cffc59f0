"""Readers: bytes to records, whatever the bytes."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ec262.errors import Malformed, ProgramError
from ec262.mapreduce.records import Reader, csv_fields, read_records


def read(data: bytes, offset: int = 0, **options: Any) -> list[tuple[Any, Any]]:
    return list(read_records(Reader(**options), data, name="file.txt", offset=offset))


def lines(data: bytes, **options: Any) -> list[Any]:
    found = read(data, **options)
    assert all(name == "file.txt" for name, _ in found)
    return [line for _, line in found]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\nb", ["a", "b"]),
        (b"a\n\nb\n", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\nc\r", ["a\rb", "c\r"]),
        (b"a\r\r\nb", ["a\r", "b"]),
        (b"a\0b\n\0\n", ["a\0b", "\0"]),
        ("a\u2028b\x0bc\x0cd\x85e\x1cf\n".encode(), ["a\u2028b\x0bc\x0cd\x85e\x1cf"]),
        ("žluť\n".encode(), ["žluť"]),
        (b"\xff\xfe\n\xc3\n(", ["\udcff\udcfe", "\udcc3", "("]),
    ],
)
def test_lines(data: bytes, expected: list[str]) -> None:
    assert lines(data) == expected
    assert [line.encode("utf-8", "surrogateescape") for line in expected] == lines(data, encoding=None)


def test_other_line_ends() -> None:
    assert lines(b"a\rb\nc\r", delimiter=b"\r") == ["a", "b\nc"]
    assert lines(b"a\r\nb\nc\r\n", delimiter=b"\r\n") == ["a", "b\nc"]
    assert lines(b"a<>b<>", delimiter=b"<>") == ["a", "b"]
    assert lines(b"a\xffb\xff\xc3\xa9", delimiter=b"\xff") == ["a", "b", "é"]
    # Two bytes that are also the end of one character and the beginning of the next.
    assert lines(b"\xc3\xa9\xc3\xa9", delimiter=b"\xa9\xc3") == ["\udcc3", "\udca9"]


def test_other_encodings() -> None:
    assert lines("é\nß".encode("latin-1"), encoding="latin-1") == ["é", "ß"]
    assert lines("日本\n語".encode("shift_jis"), encoding="shift_jis") == ["日本", "語"]
    assert lines("日本|語".encode("shift_jis"), encoding="shift_jis", delimiter=b"\n") == ["日本|語"]
    assert lines(b"\xef\xbb\xbfa\nb", encoding="utf-8-sig") == ["a", "b"]
    assert lines(b"\xef\xbb\xbfa\n", encoding="utf-8-sig", offset=7) == ["\ufeffa"]
    assert lines(b"\xef\xbb\xbfa\xff\xef\xbb\xbfb", encoding="utf-8-sig", delimiter=b"\xff") == ["a", "\ufeffb"]
    assert read("wörter".encode("utf-16"), kind="whole", encoding="utf-16") == [("file.txt", "wörter")]
    with pytest.raises(ProgramError, match=r"file\.txt: no utf-16"):
        read(b"a", kind="whole", encoding="utf-16")
    with pytest.raises(ProgramError, match="whole"):
        Reader(encoding="utf-16")


@given(
    data=st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\xff", b"\0", "é".encode(), b"|", b"||"])).map(b"".join),
    delimiter=st.sampled_from([b"\n", b"\r\n", b"|", b"||", b"\xa9", b"\xff\0"]),
    encoding=st.sampled_from([None, "utf-8", "latin-1", "cp1252", "shift_jis"]),
    start=st.integers(0, 1 << 40),
)
def test_offsets_say_where_lines_are_and_nothing_is_lost(
    data: bytes, delimiter: bytes, encoding: str | None, start: int
) -> None:
    found = read(data, start, kind="offsets", delimiter=delimiter, encoding=encoding)
    assert [line for _, line in found] == lines(data, offset=start, delimiter=delimiter, encoding=encoding)
    whole = [] if not data else data.split(delimiter)[: None if not data.endswith(delimiter) else -1]
    assert len(found) == len(whole)
    for (offset, line), raw in zip(found, whole, strict=True):
        assert data[offset - start : offset - start + len(raw)] == raw
        bare = raw.removesuffix(b"\r") if delimiter == b"\n" and offset - start + len(raw) < len(data) else raw
        assert (line if encoding is None else line.encode(encoding, "surrogateescape")) == bare


def test_records() -> None:
    options: dict[str, Any] = {"kind": "records", "record_size": 3}
    assert read(b"abcdef", 30, **options) == [(30, b"abc"), (33, b"def")]
    assert read(b"", **options) == []
    assert read(b"abcde", 30, **options) == [(30, b"abc"), (33, b"de")]


def test_whole() -> None:
    assert read(b"a\r\nb", kind="whole") == [("file.txt", "a\r\nb")]
    assert read(b"\xff", kind="whole", encoding=None) == [("file.txt", b"\xff")]
    assert read(b"", kind="whole") == [("file.txt", "")]


def test_csv() -> None:
    assert read(b'a,"b,""c"""\r\n\r\n1,2', kind="csv") == [(0, ["a", 'b,"c"']), (15, ["1", "2"])]
    assert read(b"a;b\n", kind="csv", separator=";") == [(0, ["a", "b"])]
    table = b"name,age\nAda,36\nKurt,71\n"
    people = [(9, {"name": "Ada", "age": "36"}), (16, {"name": "Kurt", "age": "71"})]
    assert read(table, kind="csv", header=True) == people
    later = read(table[16:], 16, kind="csv", header=True, fields=("name", "age"))
    assert later == people[1:]
    reader = Reader(kind="csv", header=True)
    assert csv_fields(reader, b"name,age\r\n", name="f") == ("name", "age")
    for line in (b"", b"\n", b"a,a\n"):
        with pytest.raises(ProgramError, match="first line"):
            csv_fields(reader, line, name="f")


@pytest.mark.parametrize(
    ("data", "at", "why"),
    [
        (b'a,b\n"c\nd",e\nf,g\n', 4, "multiline=True"),
        (b'a,b\n"c\n', 4, "multiline=True"),
        (b'a,b\nc,"d"e\n', 4, "expected after"),
        (b"a\rb,c\n", 0, "new-line"),
    ],
)
def test_bad_csv_is_named(data: bytes, at: int, why: str) -> None:
    with pytest.raises(ProgramError, match=rf"^file\.txt, byte {at + 100}: no CSV: .*{why}"):
        read(data, 100, kind="csv")


def test_ragged_csv_is_named() -> None:
    with pytest.raises(ProgramError, match=r"byte 8: .*1 cells where the first line has 2 names"):
        read(b"a,b\n1,2\n3\n", kind="csv", header=True)


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r")), min_size=1), max_size=8))
def test_csv_of_several_lines_is_what_the_library_wrote(rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    found = read(text.getvalue().encode(), kind="csv", multiline=True)
    assert [row for _, row in found] == rows


def test_csv_cells_may_be_long() -> None:
    assert read(b"x" * 300_000 + b",y\n", kind="csv") == [(0, ["x" * 300_000, "y"])]


def test_jsonl() -> None:
    assert read(b'{"a": [1, null]}\n\n "x"\r\n3', 5, kind="jsonl") == [(5, {"a": [1, None]}), (23, "x"), (29, 3)]
    for bad in (b"[1,\n", b"[" * 100_000, b"9" * 5000):
        with pytest.raises(ProgramError, match=r"^file\.txt, byte 12: no JSON"):
            read(b"{}\n" + bad, 9, kind="jsonl")


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text() | st.none()), max_size=5))
def test_jsonl_is_what_the_library_wrote(values: list[Any]) -> None:
    data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    assert [value for _, value in read(data, kind="jsonl")] == values


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "tables"},
        {"kind": "records"},
        {"kind": "records", "record_size": -1},
        {"encoding": "klingon"},
        {"encoding": "rot13"},
        {"encoding": 8},
        {"kind": "csv", "encoding": None},
        {"kind": "jsonl", "encoding": None},
        {"delimiter": b""},
        {"delimiter": "\n"},
        {"delimiter": b"x" * 65},
        {"kind": "csv", "separator": ""},
        {"kind": "csv", "separator": '"'},
        {"kind": "csv", "multiline": True, "delimiter": b"|"},
    ],
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ProgramError):
        Reader(**options)
    with pytest.raises(Malformed):
        Reader.from_wire({**Reader().to_wire(), **options})


def test_the_wire() -> None:
    for reader in (Reader(), Reader("csv", header=True, fields=("a", "b")), Reader("records", record_size=90)):
        assert Reader.from_wire(reader.to_wire()) == reader
    for wire in ({}, {"kind": "lines"}, {**Reader().to_wire(), "more": 1}, {**Reader().to_wire(), "fields": [1]}):
        with pytest.raises(Malformed):
            Reader.from_wire(wire)


def test_where_files_may_be_cut() -> None:
    cuts = {kind: Reader(kind, record_size=1).splits_by for kind in ("lines", "csv", "records", "whole")}
    assert cuts == {"lines": "lines", "csv": "lines", "records": "records", "whole": "whole"}
    assert Reader("csv", multiline=True).splits_by == "whole"
