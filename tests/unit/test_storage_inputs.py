"""Input files: what paths stand for, and the splits they become."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import multiprocessing
import os
import pickle
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ec262.errors import EC262Error, ProgramError, SetupError
from ec262.mapreduce.records import Reader, read_records
from ec262.mapreduce.split import RecordsSplit, Split
from ec262.protocol.canonical import decode_value
from ec262.storage.inputs import (
    FileInput,
    FileSplit,
    SharedSplit,
    SharedStorage,
    default_split_size,
    files,
    local_split,
)
from ec262.storage.place import LOCAL
from ec262.storage.ranges import read_range

TEXT = "".join(f"line {number} of the text\n" for number in range(3000)).encode()


def records(given: FileInput | list[Split], split_size: int = 1000) -> list[tuple[Any, Any]]:
    splits = given.splits(split_size) if isinstance(given, FileInput) else given
    found: list[tuple[Any, Any]] = []
    for split in splits:
        spec = split.spec()
        assert spec["format"] == "records"
        data, offset = local_split(split).load()
        found += read_records(
            Reader.from_wire(spec["reader"]), data, name=spec["name"], offset=int(decode_value(offset))
        )
    return found


def names(given: FileInput) -> list[str]:
    return [each.name for each in given.found()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- which files ----------------------------------------------------------------------------------


def test_what_paths_stand_for(here: Path) -> None:
    (here / "books").mkdir()
    for name in ("book_00", "book_01", "book_10.txt", "book_x", "bookends", ".hidden", "out_manifest.json"):
        (here / "books" / name).write_text(f"{name}\n")
    (here / "book_").write_text("exact\n")
    numbered = ["books/book_00", "books/book_01", "books/book_10.txt"]
    assert names(files("books/book_00")) == ["books/book_00"]
    assert names(files(Path("books/book_00"))) == ["books/book_00"]
    assert names(files("books/book_")) == names(files("books/book")) == numbered
    assert names(files("books/book_*")) == [*numbered, "books/book_x"]
    assert names(files("books/book_?0")) == ["books/book_00"]
    assert names(files("books/book_[01]?")) == ["books/book_00", "books/book_01"]
    assert names(files("books")) == names(files("books/*")) == [*numbered, "books/book_x", "books/bookends"]
    assert names(files("books/out_manifest.json")) == names(files("books/*_manifest.json"))
    assert names(files("book_")) == ["book_"]
    assert names(files("**/book_0*")) == ["books/book_00", "books/book_01"]
    assert names(files(f"file://{here}/books/book_00")) == [f"file://{here}/books/book_00"]
    # In the order given, each file once.
    assert names(files("books/bookends", "books/book_0*", "books/book_00")) == ["books/bookends", *numbered[:2]]


def test_a_file_whose_name_is_a_pattern(here: Path) -> None:
    (here / "a[1].txt").write_text("x\n")
    (here / "a1.txt").write_text("y\n")
    assert names(files("a[1].txt")) == ["a[1].txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.txt", r"^none\.txt: no such file or directory, and no none\.txt_00 in \.$"),
        ("dir/none_", r"^dir/none_: no such file or directory, and no none_00 in dir$"),
        ("*.dat", r"^\*\.dat: no file matches$"),
        ("empty", r"^empty: an empty directory$"),
        ("dir", r"^dir/inner is a directory inside dir"),
        ("d*", r"^dir is a directory inside d\*"),
        ("a.zip", "an archive"),
        ("a.txt/b", "a.txt/b: no such file"),
        ("nope://x/y", "no protocol nope://"),
        ("memory://none/a", r"memory://none/a: no such file"),
        ("memory://none/*.txt", "no file matches"),
    ],
)
def test_what_is_not_there_is_named(here: Path, path: str, message: str) -> None:
    (here / "dir" / "inner").mkdir(parents=True)
    (here / "empty").mkdir()
    (here / "a.zip").write_bytes(b"")
    (here / "a.txt").write_bytes(b"")
    with pytest.raises(EC262Error, match=message):
        files(path).splits(100)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_missing_permissions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # not pytest's, which others may not enter
        here = Path(name)
        os.chmod(here, 0o755)
        monkeypatch.chdir(here)
        (here / "closed").mkdir()
        for path in ("closed/a.txt", "secret.txt"):
            (here / path).write_bytes(b"a\n")
        os.chmod(here / "closed", 0)
        os.chmod(here / "secret.txt", 0)
        context = multiprocessing.get_context("fork")
        queue: Any = context.Queue()
        child = context.Process(target=_as_nobody, args=(queue,))
        child.start()
        messages = queue.get(timeout=60)
        child.join()
        monkeypatch.undo()
    assert messages == [
        *("secret.txt: no permission to read it", "closed: no permission", "closed: no permission to list it"),
        *("closed/a.txt: no permission", "closed/b_: no permission"),
    ]


def _as_nobody(queue: Any) -> None:
    os.setgid(65534)
    os.setuid(65534)
    said = []
    for path in ("secret.txt", "closed", "closed/*.txt", "closed/a.txt", "closed/b_"):
        try:
            files(path).splits(100)
        except SetupError as reason:
            said.append(str(reason))
        except EC262Error as reason:
            said.append(f"otherwise: {reason}")
    queue.put(said)


def test_nonsense_is_refused() -> None:
    for make in (
        lambda: files(),
        lambda: files(""),
        lambda: files(3),  # type: ignore[arg-type]
        lambda: files(b"a"),  # type: ignore[arg-type]
        lambda: files("a", reader="tables"),  # type: ignore[arg-type]
        lambda: files("a", reader=3),  # type: ignore[arg-type]
        lambda: files("a", split_by="words"),  # type: ignore[arg-type]
        lambda: files("a", split_by="records"),
        lambda: files("a", reader="records"),
        lambda: files("/a", shared=SharedStorage("s", "/mnt")),
        lambda: files("a/../b", shared=SharedStorage("s", "/mnt")),
        lambda: files("s3://a/b", shared=SharedStorage("s", "/mnt")),
        lambda: SharedStorage("Books", "/mnt"),
        lambda: files("a").splits(0),
        lambda: files("a", compression="rar").splits(1),
    ):
        with pytest.raises(ProgramError):
            make()


# --- splits ---------------------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), size=st.integers(1, 250), delimiter=st.sampled_from([b"\n", b"\r\n", b"\0\0"]))
def test_any_split_size_gives_the_same_records(tmp_path: Path, data: bytes, size: int, delimiter: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(data)
    given = files(path, reader="offsets", encoding=None, delimiter=delimiter)
    splits = list(given.splits(size))
    assert len(splits) == given.split_count(size) == -(-len(data) // size)
    reader = Reader("offsets", encoding=None, delimiter=delimiter)
    assert records(splits) == list(read_records(reader, data, name="", offset=0))


def test_splits_say_what_they_are_and_travel(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    splits = list(files(path).splits(10_000))
    assert len(splits) == -(-len(TEXT) // 10_000)
    assert all(split.anywhere for split in splits)
    assert splits[1].label() == f"{path}, from byte 10000"
    assert len({split.tag() for split in splits}) == len(splits)
    assert all(len(split.tag()) == 16 for split in splits)
    again = pickle.loads(pickle.dumps(splits))
    assert again == splits
    expected = [line.decode() for line in TEXT.splitlines()]
    assert [line for _, line in records(again)] == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert b"".join(pool.map(_load, splits)) == TEXT


def _load(split: Split) -> bytes:
    return split.load()[0]


def test_equal_input_equal_splits_and_changed_input_another_tag(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(TEXT)
    given = files(tmp_path)
    assert list(given.splits(999)) == list(files(tmp_path).splits(999))
    tag = given.tag()
    assert files(tmp_path).tag() == tag
    assert files(tmp_path, reader="offsets").tag() != tag
    before = [split.tag() for split in given.splits(1 << 20)]
    os.utime(tmp_path / "a", (1, 1))
    assert given.tag() != tag
    after = [split.tag() for split in given.splits(1 << 20)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_file_that_changes_while_the_job_runs_is_an_error(here: Path) -> None:
    """Else part of the splits would have the old content and part the new one."""
    path = here / "book.txt"
    path.write_bytes(TEXT)
    for source in (
        files("book.txt"),
        files("book.txt", reader="whole"),
        files("book.txt", reader="records", record_size=9),
    ):
        splits = pickle.loads(pickle.dumps(list(source.splits(20_000))))
        assert splits[0].load()
        before = path.stat()
        path.write_bytes(TEXT.upper())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        with pytest.raises(SetupError, match=r"^book\.txt changed while the job runs"):
            splits[-1].load()
    splits = list(files("book.txt").splits(20_000))
    before = path.stat()
    for content in (TEXT + b"more\n", TEXT[:-10]):
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(SetupError, match=r"^book\.txt changed while the job runs"):
            splits[0].load()


def test_a_file_that_changes_while_it_is_read_is_an_error(here: Path) -> None:
    path = here / "book.txt"
    path.write_bytes(TEXT)
    about = LOCAL.about("book.txt")
    with contextlib.ExitStack() as reading:
        fetch = reading.enter_context(LOCAL.ranges("book.txt", about))
        assert fetch(0, 10) == TEXT[:10]
        os.utime(path, (1, 1))
        with pytest.raises(SetupError, match="changed while the job runs"):
            reading.close()


def test_a_file_that_is_named_twice_is_read_once(here: Path) -> None:
    (here / "d").mkdir()
    (here / "d" / "f").write_bytes(b"one\n")
    (here / "link").symlink_to("d/f")
    (here / "same").symlink_to("d")
    paths = ("d/f", "./d/f", "d//f", "d/../d/f", str(here / "d" / "f"), f"file://{here}/d/f", "same/f", "link", "d/*")
    for first in paths[:-1]:
        assert records(files(first, *paths)) == [(first, "one")]
    shared = SharedStorage("s", f"{here}/./")
    for path in ("d/f", "./d/f", "d//f", "d/./f", "./d/*", "d/", "./d/."):
        assert [each.spec()["path"] for each in files(path, "d/f", shared=shared).splits(9)] == ["d/f"]
    (here / "g").write_bytes(b"")
    (here / ".hidden").write_bytes(b"x\n")
    assert [each.spec()["path"] for each in files(".hidden", shared=shared).splits(9)] == [".hidden"]
    with pytest.raises(ProgramError, match="d is a directory inside"):
        files(".", shared=shared).found()


def test_files_that_claim_to_be_empty_and_are_not(here: Path) -> None:
    """Those of /proc have 0 bytes and content."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc")
    assert os.stat("/proc/self/status").st_size == 0
    given = files("/proc/self/status")
    assert given.size() is None
    assert given.split_count(10) is None
    assert records(given)[0][1].startswith("Name:")
    assert records(files("/proc/self/status", reader="whole"))[0][1].startswith("Name:")


def test_readers_of_other_kinds(here: Path) -> None:
    (here / "r").write_bytes(b"0123456789")
    assert records(files("r", reader="records", record_size=5), 7) == [(0, b"01234"), (5, b"56789")]
    assert records(files("r", reader="records", record_size=3), 7)[-1] == (9, b"9")
    assert records(files("r", reader="whole"), 2) == [("r", "0123456789")]
    assert files("r", reader="whole").split_count(2) == 1
    (here / "t").write_bytes(b"a\nb\n")
    assert records(files("t", split_by="whole"), 1) == [("t", "a"), ("t", "b")]
    assert records(files("t", reader="whole", split_by="lines"), 1) == [
        ("t", "a\n"),
        ("t", ""),
        ("t", "b\n"),
        ("t", ""),
    ]
    (here / "t.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}\n')
    assert records(files("t.jsonl", reader="jsonl"), 3) == [(0, {"a": 1}), (9, {"a": 2})]


def test_csv_has_its_names_in_every_split(here: Path) -> None:
    (here / "1.csv").write_bytes(b"name;age\nAda;36\nKurt;71\n")
    (here / "2.csv").write_bytes(b"age;name\n28;Emmy\n")
    given = files("*.csv", reader="csv", header=True, separator=";")
    people = [{"name": "Ada", "age": "36"}, {"name": "Kurt", "age": "71"}, {"age": "28", "name": "Emmy"}]
    for size in (1, 8, 9, 10, 100):
        assert [person for _, person in records(given, size)] == people
    (here / "1.csv.gz").write_bytes(gzip.compress((here / "1.csv").read_bytes()))
    assert [person for _, person in records(files("1.csv.gz", reader=given.reader), 5)] == people[:2]
    (here / "q.csv").write_bytes(b'a,"b\nc"\n')
    with pytest.raises(ProgramError, match="multiline"):
        records(files("q.csv", reader="csv"), 3)
    assert records(files("q.csv", reader="csv", multiline=True), 3) == [(0, ["a", "b\nc"])]
    assert records(files("q.csv", reader="csv", split_by="whole"), 3) == [(0, ["a", "b\nc"])]


def test_empty_files_make_no_splits(here: Path) -> None:
    (here / "empty").touch()
    (here / "full").write_bytes(b"a\n")
    assert [split.spec()["name"] for split in files("*").splits(10)] == ["full"]
    assert files("empty").split_count(5) == 0
    assert records(files("empty", reader="whole")) == [("empty", "")]
    assert list(files("empty", split_by="whole").splits(5)) == []


def test_the_default_size_of_a_split() -> None:
    assert default_split_size(0) == default_split_size(1 << 20) == 64 * 1024
    assert default_split_size(64 << 20) == 1 << 20
    assert default_split_size(1 << 40) == default_split_size(None) == 4 << 20


def test_a_splitter_of_the_users(here: Path) -> None:
    (here / "log").write_bytes(b"BEGIN a\n1\nBEGIN b\n2\n3\nBEGIN c\n")
    (here / "log.gz").write_bytes(gzip.compress((here / "log").read_bytes()))

    def chapters(stream: BinaryIO, name: str) -> Iterator[bytes]:
        assert name.startswith("log")
        chapter = b""
        for line in stream:
            if line.startswith(b"BEGIN") and chapter:
                yield chapter
                chapter = b""
            chapter += line
        yield chapter

    for name in ("log", "log.gz"):
        given = files(name, reader="whole", split_by=chapters)
        assert given.split_count(5) is None
        assert [text for _, text in records(given)] == ["BEGIN a\n1\n", "BEGIN b\n2\n3\n", "BEGIN c\n"]
    assert [offset for offset, _ in records(files("log", reader="offsets", split_by=chapters))] == [
        0,
        8,
        10,
        18,
        20,
        22,
    ]
    for bad, message in (
        (lambda stream, name: ["text"], "split_by gave a str"),
        (lambda stream, name: 1 / 0, "split_by failed on log: ZeroDivisionError"),
    ):
        with pytest.raises(ProgramError, match=message):
            list(files("log", split_by=bad).splits(5))  # type: ignore[arg-type]


# --- compressed and unseekable --------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd")
    return bytes(module.compress(data))


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_compressed_files_are_read_as_they_come(here: Path, suffix: str, compress: Any) -> None:
    # Two members, as tools that compress in parallel write them.
    (here / f"text{suffix}").write_bytes(compress(TEXT[:50_000]) + compress(TEXT[50_000:]))
    given = files(f"text{suffix}")
    assert given.split_count(1000) is None
    size = given.size()
    assert size is not None
    assert size > 0
    splits = list(given.splits(10_000))
    assert len(splits) > 5
    assert all(isinstance(split, RecordsSplit) and len(split.data) < 11_000 for split in splits)
    assert [line for _, line in records(splits)] == TEXT.decode().splitlines()
    assert records(files(f"text{suffix}", reader="whole"))[0][1] == TEXT.decode()
    whole = (here / f"text{suffix}").read_bytes()
    (here / f"cut{suffix}").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(ProgramError, match="cut"):
        list(files(f"cut{suffix}").splits(1000))
    (here / f"bad{suffix}").write_bytes(b"no such thing, but some text" * 10)
    with pytest.raises(ProgramError, match=f"bad{suffix}: no whole"):
        list(files(f"bad{suffix}").splits(1000))
    assert len(records(files(f"bad{suffix}", compression=None))) == 1


def test_a_compressed_file_is_never_in_memory_as_a_whole(here: Path) -> None:
    import tracemalloc  # noqa: PLC0415

    with gzip.open(here / "big.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"some text in a line\n" * 50_000)
    tracemalloc.start()
    total = sum(len(split.load()[0]) for split in files("big.gz").splits(1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 64_000_000
    assert peak < 8 << 20


def test_a_pipe_is_read_from_its_beginning(here: Path) -> None:
    os.mkfifo("pipe")
    writer = threading.Thread(target=lambda: (here / "pipe").write_bytes(TEXT))
    writer.start()
    given = files("pipe")
    assert given.size() is None
    assert given.split_size() == 4 << 20
    assert [line for _, line in records(given)] == TEXT.decode().splitlines()
    writer.join()


# --- shared storage -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_shared_files_are_named_not_sent(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_bytes(TEXT)
    storage = SharedStorage("books", f"{scheme}{tmp_path}")
    assert storage.capability == "data:books"
    for path in ("books/a.txt", "books/*.txt", "books"):
        given = files(path, shared=storage)
        splits = list(given.splits(20_000))
        for split in splits:
            assert isinstance(split, SharedSplit)
            assert split.load() == []
            spec = split.spec()
            assert (spec["storage"], spec["path"], spec["name"]) == ("books", "books/a.txt", "books/a.txt")
            place = (None, str(tmp_path / spec["path"]), spec["start"], spec["end"], Reader.from_wire(spec["reader"]))
            assert split.local().load()[0] == read_range(*place)[1]
        assert [line for _, line in records(splits)] == TEXT.decode().splitlines()
        assert pickle.loads(pickle.dumps(splits)) == splits
        local = list(given.local().splits(20_000))
        assert all(isinstance(split, FileSplit) and "storage" not in split.spec() for split in local)
        assert records(local) == records(splits)
        assert [split.tag() for split in local] == [split.tag() for split in splits]
        assert str(tmp_path) not in repr([split.spec() for split in splits])
    # What no range can say is sent.
    (tmp_path / "c.gz").write_bytes(gzip.compress(TEXT))
    sent = list(files("c.gz", shared=storage).splits(20_000))
    assert all("storage" not in split.spec() for split in sent)
    assert records(sent)[0] == ("c.gz", "line 0 of the text")
