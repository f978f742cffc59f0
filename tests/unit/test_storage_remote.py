"""The same files elsewhere: in memory, behind HTTP with and without ranges, in an S3 that runs here."""

from __future__ import annotations

import gzip
import http.server
import logging
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from ec262.errors import EC262Error, ProgramError, SetupError
from ec262.mapreduce.records import Reader, read_records
from ec262.mapreduce.split import RecordsSplit
from ec262.protocol.canonical import decode_value
from ec262.storage.about import About
from ec262.storage.address import explained, scheme_of, scrubbed, shown
from ec262.storage.collect import collect, read_pairs
from ec262.storage.hdfs import HdfsWriter
from ec262.storage.inputs import FileInput, FileSplit, SharedStorage, files, local_split
from ec262.storage.output import OutputFiles
from ec262.storage.place import RemotePlace
from ec262.storage.ranges import read_range

TEXT = "".join(f"line {number} of the text\n" for number in range(20_000)).encode()
LINES = TEXT.decode().splitlines()


def lines(given: FileInput, size: int = 50_000) -> list[Any]:
    found = []
    for split in pickle.loads(pickle.dumps(list(given.splits(size)))):
        spec = split.spec()
        data, offset = local_split(split).load()
        reader = Reader.from_wire(spec["reader"])
        found += [value for _, value in read_records(reader, data, name="", offset=int(decode_value(offset)))]
    return found


def names(given: FileInput) -> list[str]:
    return [each.name for each in given.found()]


# --- in memory ------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_memory(memory: Any) -> None:
    for name in ("books/book_00", "books/book_01", "books/bookends", "books/.hidden"):
        memory.pipe_file(f"/{name}", TEXT)
    memory.pipe_file("/books/b.txt.gz", gzip.compress(TEXT))
    numbered = ["memory:///books/book_00", "memory:///books/book_01"]
    assert names(files("memory://books/book_")) == names(files("memory://books/book")) == numbered
    assert names(files("memory://books/book_*")) == names(files("memory://books/book_??")) == numbered
    assert names(files("memory://books")) == ["memory:///books/b.txt.gz", *numbered, "memory:///books/bookends"]
    assert names(files("memory://books/book_00")) == ["memory://books/book_00"]
    given = files("memory://books/book_0*")
    assert given.size() == 2 * len(TEXT)
    assert lines(given) == LINES * 2
    assert lines(files("memory://books/b.txt.gz")) == LINES
    assert read_range(memory, "/books/book_00", 1, 50, Reader()) == read_range(
        memory, "/books/book_00", 10, 50, Reader()
    )
    memory.makedirs("/books/inner")
    with pytest.raises(ProgramError, match="memory:///books/inner is a directory inside memory://books"):
        names(files("memory://books"))


def test_output_in_memory(memory: Any, tmp_path: Path) -> None:
    pairs = [(f"key {number:05}", number) for number in range(5000)]
    for again in (False, True):
        output = OutputFiles("memory://jobs/out", overwrite=again)
        output.check()
        output.begin(3)
        for index in range(3):
            output.write(index, pairs[index::3])
        assert output.finish()[0] == "memory://jobs/out_00"
    assert sorted(memory.ls("/jobs", detail=False)) == [
        *("/jobs/out_00", "/jobs/out_01", "/jobs/out_02", "/jobs/out_manifest.json")
    ]
    with pytest.raises(ProgramError, match="memory://jobs/out_00 is there already"):
        OutputFiles("memory://jobs/out").check()
    collect("memory://jobs/out", tmp_path / "all")
    collect("memory://jobs/out", "memory://jobs/all")
    assert memory.cat_file("/jobs/all") == (tmp_path / "all").read_bytes()
    assert sorted(read_pairs("memory://jobs/out")) == pairs
    assert lines(files("memory://jobs/out")) == lines(files("memory://jobs/out_*"))
    output = OutputFiles("memory://jobs/other")
    output.begin(1)
    output.write(0, pairs)
    output.abort()
    assert len(memory.ls("/jobs", detail=False)) == 5


def test_storage_shared_elsewhere(memory: Any) -> None:
    memory.pipe_file("/data/books/a.txt", TEXT)
    given = files("books/*.txt", shared=SharedStorage("lib", "memory://data"))
    specs = [split.spec() for split in given.splits(100_000)]
    assert {(spec["storage"], spec["path"], spec["name"]) for spec in specs} == {("lib", "books/a.txt", "books/a.txt")}
    assert lines(given) == lines(given.local()) == LINES


class Versioned(AbstractFileSystem):  # type: ignore[misc]
    """As the many file systems built on fsspec's own classes are: to open a file asks for its facts."""

    protocol = "versioned"
    facts: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[str]] = []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self.asked.append(path)
        return {"name": path, "type": "file", **self.facts}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        class File(AbstractBufferedFile):  # type: ignore[misc]
            def _fetch_range(self, start: int, end: int) -> bytes:
                return TEXT[start:end]

        return File(self, path, mode)


def test_a_file_that_changes_elsewhere_while_the_job_runs() -> None:
    Versioned.facts = {"size": len(TEXT), "ETag": "one"}
    place = RemotePlace(Versioned(), "versioned")
    about = place.about("/f")
    assert about == About(len(TEXT), "one")
    arguments = ("/f", 0, 50_000, len(TEXT), "f", Reader(), "lines", about.version)
    split = FileSplit(place, *arguments)  # type: ignore[arg-type]
    Versioned.asked.clear()
    assert TEXT.startswith(split.load()[0])
    assert len(Versioned.asked) == 1  # by fsspec itself
    for facts in ({"size": len(TEXT), "ETag": "two"}, {"size": len(TEXT) + 1, "ETag": "one"}):
        Versioned.facts = facts
        with pytest.raises(SetupError, match="/f changed while the job runs"):
            split.load()
    Versioned.facts = {"size": len(TEXT)}
    assert split.load()


# --- HTTP -----------------------------------------------------------------------------------------


class Served(http.server.SimpleHTTPRequestHandler):
    """Python's server: it has directories, and no ranges."""

    requests_seen: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.requests_seen.append(self.headers.get("Range", "all"))
        super().do_GET()


class WithRanges(Served):
    """The same with ranges."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        self.requests_seen.append(self.headers["Range"])
        data, start, end = path.read_bytes(), int(wanted[1]), int(wanted[2]) + 1
        piece = data[start:end]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(piece) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)


@contextmanager
def serving(directory: Path, kind: type[Served]) -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []

    class Handler(kind):  # type: ignore[misc,valid-type]
        requests_seen = seen

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_http_with_ranges_is_read_in_ranges(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    with serving(tmp_path, WithRanges) as (url, seen):
        given = files(f"{url}/text")
        assert given.size() == len(TEXT)
        count = given.split_count(50_000)
        splits = list(given.splits(50_000))
        assert len(splits) == count
        assert all(isinstance(split, FileSplit) for split in splits)
        assert lines(given) == LINES
        assert "all" not in seen
        seen.clear()
        splits[1].load()
        assert len(seen) == 1


def test_http_without_ranges_is_read_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "text.gz").write_bytes(gzip.compress(TEXT))
    with serving(tmp_path, Served) as (url, _):
        given = files(f"{url}/text")
        assert given.size() is None
        assert given.split_count(50_000) is None
        splits = list(given.splits(50_000))
        assert len(splits) > 5
        assert all(isinstance(split, RecordsSplit) for split in splits)
        assert lines(given) == lines(files(f"{url}/text.gz")) == LINES


def test_http_directories(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.txt", "b.txt", "c.dat"):
        (tmp_path / "d" / name).write_bytes(TEXT)
    with serving(tmp_path, WithRanges) as (url, _):
        assert names(files(f"{url}/d/*.txt")) == [f"{url}/d/a.txt", f"{url}/d/b.txt"]
        assert names(files(f"{url}/d/")) == [f"{url}/d/{name}" for name in ("a.txt", "b.txt", "c.dat")]
        assert lines(files(f"{url}/d/*.txt")) == LINES * 2
        with pytest.raises(ProgramError, match=f"{url}/d/none: no such file"):
            names(files(f"{url}/d/none"))
        with pytest.raises(SetupError, match="http:// is for reading"):
            OutputFiles(f"{url}/d/out").check()


def test_nobody_answers(tmp_path: Path) -> None:
    with serving(tmp_path, Served) as (url, _):
        pass
    with pytest.raises(EC262Error, match=f"^{url}/x"):
        names(files(f"{url}/x"))


# --- S3 -------------------------------------------------------------------------------------------

SECRET = "A-very-secret-key"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "someone", "secret": SECRET, "endpoint_url": f"http://{host}:{port}"}
    server.stop()


def test_s3(s3: dict[str, Any], tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3", **s3)
    fs.mkdir("bucket")
    for name in ("book_00", "book_01"):
        fs.pipe_file(f"bucket/in/{name}", TEXT)
    for path in ("s3://bucket/in/book_", "s3://bucket/in/*", "s3://bucket/in"):
        given = files(path, storage_options=s3)
        assert names(given) == ["s3://bucket/in/book_00", "s3://bucket/in/book_01"]
        assert lines(given) == LINES * 2
    assert SECRET not in repr(given) + repr(list(given.splits(50_000))) + repr([s.spec() for s in given.splits(50_000)])
    pairs = [(f"key {number:05}", number) for number in range(2000)]
    for again in (False, True):
        output = OutputFiles("s3://bucket/out/count", storage_options=s3, overwrite=again)
        output.check()
        output.begin(2)
        for index in range(2):
            output.write(index, pairs[index::2])
        output.finish(ordered=False)
    fs.invalidate_cache()
    there = [str(path).rpartition("/")[2] for path in fs.find("bucket/out")]
    assert sorted(there) == ["count_00", "count_01", "count_manifest.json"]
    assert SECRET not in fs.cat_file("bucket/out/count_manifest.json").decode()
    collect("s3://bucket/out/count", "s3://bucket/out/all", storage_options=s3)
    assert lines(files("s3://bucket/out/all", storage_options=s3)) == [f"{key}\t{value}" for key, value in pairs]
    with pytest.raises(ProgramError, match="count_00 is there already"):
        OutputFiles("s3://bucket/out/count", storage_options=s3).check()
    for path in ("s3://bucket/none", "s3://nobucket/a/b_"):
        with pytest.raises(ProgramError, match="no such file"):
            names(files(path, storage_options=s3))


# --- secrets and messages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("a/b.txt", "a/b.txt"),
        ("what?.txt", "what?.txt"),
        ("s3://bucket/a?.txt", "s3://bucket/a?.txt"),
        ("ftp://user:pa@ss@host/a", "ftp://host/a"),
        ("https://host/a?X-Signature=abc&b=1", "https://host/a"),
        ("zip://*.txt::https://u:p@host/a.zip?sig=1", "zip://*.txt::https://host/a.zip"),
        ("http://u:p@[::1]:80/a?k=v", "http://[::1]:80/a"),
        ("hdfs://me@host:9000/books", "hdfs://host:9000/books"),
    ],
)
def test_what_may_be_shown_of_an_address(address: str, seen: str) -> None:
    assert shown(address) == seen


def test_secrets_stay_out_of_messages() -> None:
    options = {"secret": SECRET, "endpoint_url": "http://host:9", "client": {"tokens": [b"tok-en-1"]}, "anon": True}
    text = f"403 at http://u:p@host:9/x?sig=1 for {SECRET} with tok-en-1"
    assert scrubbed(text, options) == "403 at http://host:9/x for *** with ***"
    with (
        pytest.raises(SetupError, match=r"^ftp://host/a: ValueError: \*\*\* was wrong$"),
        explained("ftp://u:p@host/a", options),
    ):
        raise ValueError(f"{SECRET} was wrong")
    with pytest.raises(SetupError) as found:
        names(files("ftp://user:hidden-word@127.0.0.1:1/a.txt"))
    assert "hidden-word" not in str(found.value)
    assert found.value.__cause__ is None
    assert "hidden-word" not in repr(files("ftp://user:hidden-word@127.0.0.1:1/a.txt"))


def test_protocols_that_need_more_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("s3", "hdfs", "https"):
        with (
            pytest.raises(SetupError, match=rf"{scheme}:// needs more.*pip install 'ec262\["),
            explained(f"{scheme}://a/b"),
        ):
            raise ImportError("no module")
    assert [scheme_of(each) for each in ("a", "/a:b", "file:///a", "S3://b", "zip://a::file://b", "c:d")] == [
        *("", "", "", "s3", "zip", "")
    ]


# --- HDFS's writer, on what looks like HDFS to it ---------------------------------------------------


def test_hdfs_files_are_written_block_by_block(memory: Any) -> None:
    calls: list[tuple[str, Any]] = []

    class Recorded:
        def open(self, path: str, mode: str, **options: Any) -> Any:
            calls.append((mode, options.get("block_size")))
            return memory.open(path, mode)

    with HdfsWriter(Recorded(), "/f", 10) as file:
        for piece in (b"", b"abc", b"d" * 7, b"e" * 25):
            assert file.write(piece) == len(piece)
    assert calls == [("wb", 10), ("ab", None), ("ab", None), ("ab", None)]
    assert memory.cat_file("/f") == b"abc" + b"d" * 7 + b"e" * 25
