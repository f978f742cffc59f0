"""Shared storage as strangers would like to misuse it: real files, links, pipes; each test names its attack."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from ec262.config import WorkerSettings
from ec262.errors import ProgramError, SetupError, TicketRefused
from ec262.mapreduce.program import map_header
from ec262.mapreduce.records import Cut, Reader
from ec262.protocol.canonical import decode_value
from ec262.storage import data_dir
from ec262.storage.data_dir import DataDir, DataRefused
from ec262.storage.ranges import read_range
from ec262.worker.stored import StoredInputs

LINES = Reader()
WHOLE = Reader(kind="whole")
SECRET = "the secret outside"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A storage with a few files, and a secret beside it."""
    made = tmp_path / "root"
    (made / "a" / "b").mkdir(parents=True)
    (made / "book.txt").write_bytes(b"one\ntwo\nthree\n")
    (made / "a" / "b" / "deep.txt").write_bytes(b"deep\n")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text(SECRET)
    return made


def refused(storage: DataDir, path: Any, start: Any = 0, end: Any = 100, reader: Reader = LINES) -> str:
    """What is said; never where the root is, nor anything from outside."""
    with pytest.raises(DataRefused) as caught:
        storage.read(path, start, end, reader)
    said = str(caught.value)
    assert SECRET not in said
    assert storage._root not in said
    assert said.isprintable()
    return said


def test_ranges_of_files_inside_are_read(root: Path) -> None:
    storage = DataDir(str(root))
    assert storage.read("book.txt", 0, 100, LINES) == (0, b"one\ntwo\nthree\n")
    assert storage.read("book.txt", 1, 5, LINES) == (4, b"two\n")
    assert storage.read("a/b/deep.txt", 0, 1, LINES) == (0, b"deep\n")
    assert storage.read("book.txt", 0, 14, WHOLE) == (0, b"one\ntwo\nthree\n")


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert DataDir(str(tmp_path / "link")).read("book.txt", 0, 3, LINES)[1] == b"one\n"


@pytest.mark.parametrize(
    "path",
    [
        *("../secret", "a/../../secret", "a/..", "..", ".", "", "a//b/deep.txt", "./book.txt", "a/b/", "/"),
        *("/etc/passwd", "/proc/self/environ", "//etc/passwd", "~/secret", "~root/x", "file:///etc/passwd"),
        *("book.txt\0", "\0", "a\\..\\..\\secret", "book.txt\n", "x" * 5000, None, 7, b"book.txt", ["book.txt"]),
    ],
    ids=lambda path: repr(path)[:24],
)
def test_a_path_that_leads_outside_or_is_none_is_refused(path: Any, root: Path) -> None:
    refused(DataDir(str(root)), path)


@pytest.mark.parametrize(
    "start, end", [(-1, 5), (5, 1), (0, -1), (0, 1.5), ("0", 9), (None, 3), (True, 3), (0, 1 << 70)]
)
def test_a_range_that_is_none_is_refused(start: Any, end: Any, root: Path) -> None:
    assert "range" in refused(DataDir(str(root)), "book.txt", start, end)


def test_a_huge_range_is_refused_and_a_huge_line_not_read_to_its_end(root: Path) -> None:
    storage = DataDir(str(root), max_bytes=1000)
    assert "1,000 bytes" in refused(storage, "book.txt", 0, 1 << 40)
    with open(root / "line", "wb") as file:
        file.truncate(1 << 36)  # 64 GiB of zeros that take no room
    assert "1,000 bytes" in refused(storage, "line", 0, 500)
    assert "1,000 bytes" in refused(storage, "line", 0, 500, WHOLE)


@pytest.mark.parametrize("delimiter", [b"\0\0", b"\0" * 7, b"\0\0\1\0\0"])
def test_delimiters_that_overlap_do_not_make_it_walk_through_the_file(root: Path, delimiter: bytes) -> None:
    """A range of 10 bytes inside a long row of them: where lines start there is known from the row's beginning only."""
    with open(root / "row", "wb") as file:
        file.truncate(1 << 24)
        if b"\1" in delimiter:
            file.write(b"\0\0\1" * (1 << 22))
    with open(root / "row", "rb") as file:
        opened = Counted(file)
        reader = Reader(delimiter=delimiter, encoding=None)
        for start, end in ((1 << 23, (1 << 23) + 10), (0, 1 << 23)):
            opened.taken = 0
            with pytest.raises(ProgramError, match="a row of what ends lines goes on for more than"):
                read_range(opened, "row", start, end, reader, limit=1 << 30)
            assert opened.taken < end - start + (2 << 20)
    storage = DataDir(str(root))
    assert "a row of what ends lines" in refused(storage, "row", 1 << 23, (1 << 23) + 10, reader)
    # Rows of usual length are counted exactly, as in files of one's own.
    (root / "short").write_bytes(b"x" + delimiter * 3001 + b"y")
    for start in range(1, 9):
        expected = read_range(None, str(root / "short"), start, start + 900, reader)
        assert storage.read("short", start, start + 900, reader) == expected


class Counted:
    """A file system of one file that counts the bytes which are read."""

    protocol = "counted"

    def __init__(self, file: Any) -> None:
        self.file = file
        self.taken = 0

    def info(self, path: str) -> dict[str, Any]:
        return {"name": path, "size": os.fstat(self.file.fileno()).st_size, "type": "file"}

    def open(self, path: str, mode: str = "rb") -> Any:
        counted = self

        class File(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                data = super().read(size) or b""
                counted.taken += len(data)
                return data

        return File(os.dup(self.file.fileno()), "rb")


def test_nothing_is_read_after_the_deadline(root: Path) -> None:
    storage = DataDir(str(root))
    for reader in (LINES, WHOLE, Reader("records", record_size=2)):
        with pytest.raises(DataRefused, match=r"^book\.txt: reading took too long$"):
            storage.read("book.txt", 0, 10, reader, deadline=time.monotonic())
        assert storage.read("book.txt", 0, 4, reader, deadline=time.monotonic() + 600)[1].startswith(b"one\n")


def test_a_slow_storage_is_left_between_two_reads() -> None:
    """One that takes until the deadline for its first answer is not asked for the next."""
    until = time.monotonic() + 0.05
    asked: list[int] = []

    class Slow:
        protocol = "slow"

        def info(self, path: str) -> dict[str, Any]:
            return {"name": path, "size": 1 << 30, "type": "file"}

        def open(self, path: str, mode: str = "rb") -> Any:
            class File(io.BytesIO):
                def seek(self, *_: Any) -> int:
                    return 0

                def read(self, size: int | None = -1, /) -> bytes:
                    asked.append(size or 0)
                    time.sleep(max(0.0, until - time.monotonic()))
                    return bytes(size or 0)

            return File()

    by: Cut
    for by in ("lines", "whole"):
        asked.clear()
        with pytest.raises(ProgramError, match="reading took too long"):
            read_range(Slow(), "f", 0, 1 << 30, Reader(), by=by, deadline=until)
        assert len(asked) <= 1
        assert sum(asked) <= 16 << 20
        until = time.monotonic() + 0.05


def test_a_symbolic_link_out_is_refused_wherever_it_stands(root: Path, tmp_path: Path) -> None:
    (root / "last").symlink_to(tmp_path / "secret")
    (root / "way").symlink_to(tmp_path / "outside")
    (root / "a" / "up").symlink_to("..")
    (root / "environ").symlink_to("/proc/self/environ")
    (root / "inside").symlink_to("book.txt")  # also one that stays inside: where it leads can change
    storage = DataDir(str(root))
    assert "not a regular file" in refused(storage, "last")
    assert "symbolic link" in refused(storage, "way/secret")
    assert "symbolic link" in refused(storage, "a/up/book.txt")
    assert "not a regular file" in refused(storage, "environ")
    assert "not a regular file" in refused(storage, "inside")


def test_a_symbolic_link_swapped_in_between_check_and_open_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacker wins the race every time: the file is a link from the moment it was looked at."""
    check = data_dir._check_regular
    swapped: list[int] = []

    def check_and_swap(found: os.stat_result, shown: str) -> None:
        check(found, shown)
        if not swapped:
            swapped.append(1)
            (root / "book.txt").unlink()
            (root / "book.txt").symlink_to(tmp_path / "secret")

    monkeypatch.setattr(data_dir, "_check_regular", check_and_swap)
    assert "not a regular file" in refused(DataDir(str(root)), "book.txt")
    assert swapped


def test_a_directory_swapped_for_a_link_while_files_are_read_leads_nowhere(root: Path, tmp_path: Path) -> None:
    """The race as it really is: one thread swaps, the other reads."""
    (root / "d").mkdir()
    (root / "d" / "secret").write_text("inside\n")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            os.rename(root / "d", root / "kept")
            os.symlink(tmp_path / "outside", root / "d")
            os.unlink(root / "d")
            os.rename(root / "kept", root / "d")

    thread = threading.Thread(target=swap)
    thread.start()
    storage = DataDir(str(root))
    seen = set()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            try:
                seen.add(storage.read("d/secret", 0, 100, WHOLE)[1])
            except DataRefused:
                pass
    finally:
        over.set()
        thread.join()
    assert seen <= {b"inside\n"}


def test_what_is_no_regular_file_is_refused_at_once(root: Path) -> None:
    """A FIFO without a writer would be waited for, a device can do anything, a directory is none."""
    os.mkfifo(root / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "socket"))
    try:
        os.mknod(root / "null", 0o666 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pass
    storage = DataDir(str(root))
    for name in ("fifo", "socket", "a", *(["null"] if (root / "null").exists() else [])):
        assert "not a regular file" in refused(storage, name)
    listener.close()
    assert "no directory on the way" in refused(storage, "book.txt/x")


def test_a_fifo_swapped_in_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = data_dir._check_regular

    def check_and_swap(found: os.stat_result, shown: str) -> None:
        check(found, shown)
        (root / "book.txt").unlink()
        os.mkfifo(root / "book.txt")

    monkeypatch.setattr(data_dir, "_check_regular", check_and_swap)
    assert "not a regular file" in refused(DataDir(str(root)), "book.txt")


def test_what_cannot_be_read_is_named_from_inside_only(root: Path) -> None:
    storage = DataDir(str(root))
    assert refused(storage, "a/none.txt") == "a/none.txt: no such file"
    assert refused(storage, "none/none.txt") == "none/none.txt: no such file"
    assert refused(storage, "x" * 300).endswith("...: File name too long")


def test_no_descriptor_is_left_open(root: Path) -> None:
    os.mkfifo(root / "fifo")
    storage = DataDir(str(root))
    before = len(os.listdir("/proc/self/fd"))
    for path in ("book.txt", "a/b/deep.txt", "fifo", "none", "a/none", "book.txt/x", "../x") * 3:
        try:
            storage.read(path, 0, 10, LINES)
        except DataRefused:
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "place", ["/", "/usr/..", "/proc/self", "/dev", "/nowhere/at/all", "/etc/hostname", "nosuchprotocol://x/y"]
)
def test_a_root_that_is_none_is_said_at_the_start(place: str) -> None:
    with pytest.raises(SetupError):
        DataDir(place)


# --- URLs ---------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[DataDir]:
    """A storage behind a URL, with a secret beside it."""
    fs = fsspec.filesystem("memory")
    fs.pipe({"/shop/data/book.txt": b"one\ntwo\n", "/shop/secret": SECRET.encode()})
    yield DataDir("memory://shop/data")
    fs.rm("/shop", recursive=True)


def test_a_url_is_read_like_a_directory(memory: DataDir) -> None:
    assert memory.read("book.txt", 1, 100, LINES) == (4, b"two\n")
    assert refused(memory, "none.txt") == "none.txt: no such file"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../secret",
            "a/../../secret",
            "/shop/secret",
            "memory://shop/secret",
            "//shop/secret",
            "book.txt?x=../secret",
        ),
        *("%2e%2e/secret", "..%2fsecret", "book.txt#x", "*", "boo[k].txt", "{book,x}.txt", "x::memory://shop/secret"),
        "http:secret",
    ],
)
def test_a_path_that_a_url_would_make_more_of_is_refused(path: str, memory: DataDir) -> None:
    assert "not a path inside" in refused(memory, path)


def test_a_file_url_is_a_directory_with_all_its_checks(root: Path, tmp_path: Path) -> None:
    storage = DataDir(f"file://{root}")
    (root / "last").symlink_to(tmp_path / "secret")
    assert "not a regular file" in refused(storage, "last")
    assert storage.read("book.txt", 0, 1, LINES)[1] == b"one\n"


def test_a_root_with_the_credentials_in_it_is_refused(tmp_path: Path) -> None:
    """`--data-dir home=$HOME` would let every job read the account's secret."""
    home = tmp_path / "me" / ".config" / "ec262"
    home.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "me")
    for root in (tmp_path / "me", tmp_path / "link", home):
        with pytest.raises(SetupError, match="credentials"):
            StoredInputs(WorkerSettings(data_dirs=(("home", str(root)),)), home)
    (tmp_path / "me" / "data").mkdir()
    StoredInputs(WorkerSettings(data_dirs=(("data", str(tmp_path / "me" / "data")),)), home)


# --- as a worker fills tasks in ------------------------------------------------------------------------


def task(**changes: Any) -> list[bytes]:
    spec = {"format": "records", "name": "book.txt", "reader": LINES.to_wire(), "storage": "books", "path": "book.txt"}
    return [map_header("p", index=0, partitions=1, spec={**spec, "start": 4, "end": 7, **changes})]


@pytest.fixture
def stored(root: Path) -> Iterator[StoredInputs]:
    made = StoredInputs(WorkerSettings(data_dirs=(("books", str(root)),), slots=1))
    yield made
    made.close()


def test_a_worker_adds_what_the_header_names(stored: StoredInputs) -> None:
    header, data, offset = stored.fill(task(), within_s=60)
    assert (header, data, decode_value(offset)) == (task()[0], b"two\n", 4)
    assert stored.capabilities == ["data:books"]
    plain = [map_header("p", index=0, partitions=1), b"[]"]
    assert stored.fill(plain, within_s=60) is plain


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"storage": "other"}, "does not serve storage 'other'"),
        ({"storage": ["books"]}, "does not serve storage"),
        ({"storage": None}, "does not serve storage"),
        ({"path": "../secret"}, "not a path inside"),
        ({"path": None}, "a path that is none"),
        ({"start": -4}, "range"),
        ({"end": 1 << 50}, "more than"),
        ({"reader": {"kind": "lines"}}, ""),
        ({"reader": None}, ""),
        ({"format": "pairs"}, "brings data"),
    ],
)
def test_a_task_that_names_what_is_not_served_is_refused(
    changes: dict[str, Any], reason: str, stored: StoredInputs, root: Path
) -> None:
    with pytest.raises(TicketRefused) as caught:
        stored.fill(task(**changes), within_s=60)
    assert reason in str(caught.value)
    assert str(root) not in str(caught.value)


def test_a_task_that_brings_data_as_well_is_refused(stored: StoredInputs) -> None:
    with pytest.raises(TicketRefused, match="brings data"):
        stored.fill([*task(), b"x", b"0"], within_s=60)


def test_a_storage_that_hangs_does_not_keep_its_task(stored: StoredInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(stored._served["books"], "read", lambda *_, **__: over.wait(60))
    with pytest.raises(TicketRefused, match="took longer"):
        stored.fill(task(), within_s=0.05)
    over.set()
