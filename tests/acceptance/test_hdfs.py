"""Jobs from HDFS to HDFS, with a real one: EC262_TEST_HDFS=hdfs://HOST:PORT names it (see docs/cluster.md)."""

from __future__ import annotations

import gzip
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ec262
from ec262.errors import ProgramError, SetupError
from ec262.foreman.original import run_original
from ec262.foreman.sample import sample_of
from ec262.jobs.run import run_job
from ec262.mapreduce.program import Program, map_header
from ec262.programs import find
from ec262.storage import hdfs
from ec262.storage.collect import collect
from ec262.storage.inputs import SharedStorage, files
from ec262.storage.place import place_of
from tests import commands, reference
from tests.acceptance.conftest import Network
from tests.gensort import records
from tests.processes import ROOT, nothing_left, until

URL = os.environ.get("EC262_TEST_HDFS", "").rstrip("/")
BACKENDS = ["local", "processes", "network", "dask"]
BOOK = ROOT / "examples" / "data" / "new_testament.txt"
BLOCK = 1024 * 1024
"""The smallest that HDFS takes if nobody configured it otherwise."""

pytestmark = [
    pytest.mark.skipif(not URL, reason="EC262_TEST_HDFS names no HDFS"),
    pytest.mark.usefixtures("own_home"),
]


@dataclass(frozen=True)
class Folder:
    """A directory in HDFS."""

    fs: Any
    path: str

    @property
    def url(self) -> str:
        return URL + self.path

    def write(self, name: str, data: bytes) -> None:
        """A file, in blocks as small as HDFS allows."""
        self.fs.makedirs(f"{self.path}/{name}".rpartition("/")[0], exist_ok=True)
        with hdfs.HdfsWriter(self.fs, f"{self.path}/{name}", BLOCK) as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        with self.fs.open(f"{self.path}/{name}", "rb") as file:
            return bytes(file.read())

    def names(self, name: str = "") -> list[str]:
        return sorted(str(each).rpartition("/")[2] for each in self.fs.ls(f"{self.path}/{name}", detail=False))


@pytest.fixture(scope="module")
def folder() -> Iterator[Folder]:
    """A directory that is gone after the tests."""
    place, path = place_of(f"{URL}/ec262-tests-{secrets.token_hex(4)}")
    fs = getattr(place, "fs")  # noqa: B009 - of a remote place
    fs.makedirs(path)
    yield Folder(fs, path)
    fs.rm(path, recursive=True)


@pytest.fixture(scope="module")
def texts(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Text of every kind; the same files are in HDFS, in the directory ``books``."""
    book = BOOK.read_bytes()
    contents = {
        "book_00": book + book[:400_000] + book,  # three blocks, whose ends are in the middle of lines
        "book_01": book[:60_000].replace(b"\n", b"\r\n"),
        "book_02": b"",
        "book_03": book[:50_000].replace(b"\n", b" ") + b"whales walk",
        "book_04": b"\n\r\n\n not utf8 \xff\xfe\xc3 \xff\n" * 50,
    }
    local = tmp_path_factory.mktemp("books")
    for name, content in contents.items():
        (local / name).write_bytes(content)
        folder.write(f"books/{name}", content)
    assert len(contents["book_00"]) > 2 * BLOCK
    return sorted(local.iterdir())


def job(backend: str, request: pytest.FixtureRequest, data: Any, output: str, name: str, **options: Any) -> Any:
    """A named program's job that writes files."""
    return run_job(
        data,
        program=find(name).program,
        backend=backend,
        cluster=request.getfixturevalue("cluster") if backend == "dask" else None,
        output=output,
        progress=False,
        wait_for_workers_s=60,
        **options,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_are_counted_from_hdfs_to_hdfs(
    backend: str, folder: Folder, texts: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    books = f"{folder.url}/books"
    made = f"{backend}/count"
    report = job(backend, request, books, f"{folder.url}/{made}", "wordcount", split_size=200_000, reducers=3)
    assert report.map_tasks >= 13
    assert list(report.files) == [f"{folder.url}/{made}_0{part}" for part in range(3)]
    assert folder.names(backend) == ["count_00", "count_01", "count_02", "count_manifest.json"]
    expected = reference.wordcount(texts)
    collect(f"{folder.url}/{made}", f"{folder.url}/{backend}/all")
    assert folder.read(f"{backend}/all") == expected
    collect(f"{folder.url}/{made}", str(tmp_path / "all"))
    assert (tmp_path / "all").read_bytes() == expected
    # The same files, byte by byte, as of files of this machine.
    job("local", request, [str(path) for path in texts], str(tmp_path / "count"), "wordcount", reducers=3)
    for part in range(3):
        assert folder.read(f"{made}_0{part}") == (tmp_path / f"count_0{part}").read_bytes()


@pytest.mark.parametrize("words", [["books/book_*"], ["books/book_"], ["books/"], ["books/book_0[0-2]", "books/*[34]"]])
@pytest.mark.parametrize("backend", ["processes", "network"])
def test_files_are_found(
    words: list[str], backend: str, folder: Folder, texts: list[Path], request: pytest.FixtureRequest
) -> None:
    made = f"found-{secrets.token_hex(4)}"
    paths = [f"{folder.url}/{word}" for word in words]
    job(backend, request, paths, f"{folder.url}/{made}", "wordcount", split_size=500_000, reducers=1)
    assert folder.read(f"{made}_00") == reference.wordcount(texts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_records_are_sorted(backend: str, folder: Folder, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = tmp_path / "records"
    source.write_bytes(b"".join(records(22_000, keys=15_000)))
    folder.write(f"sort-{backend}/records", source.read_bytes())
    target = f"{folder.url}/sort-{backend}/sorted"
    data = f"{folder.url}/sort-{backend}/records"
    job(backend, request, data, target, "sort_records", split_size=300_000, reducers=3)
    collect(target, f"{folder.url}/sort-{backend}/all")
    assert folder.read(f"sort-{backend}/all") == reference.sort_records([source])


def test_compressed_files_are_read_from_their_beginning(folder: Folder, request: pytest.FixtureRequest) -> None:
    folder.write("packed/book.gz", gzip.compress(BOOK.read_bytes()))
    data = f"{folder.url}/packed/book.gz"
    job("processes", request, data, f"{folder.url}/packed/count", "wordcount", split_size=100_000, reducers=1)
    assert folder.read("packed/count_00") == reference.wordcount([BOOK])


def test_output_is_not_overwritten_unasked(folder: Folder, request: pytest.FixtureRequest) -> None:
    folder.write("twice/in", b"a b a\n")
    data, target = f"{folder.url}/twice/in", f"{folder.url}/twice/out"
    job("local", request, data, target, "wordcount")
    with pytest.raises(ProgramError, match=f"{target}_00 is there already"):
        job("local", request, data, target, "wordcount")
    folder.write("twice/in", b"b\n")
    job("local", request, data, target, "wordcount", overwrite=True)
    assert folder.read("twice/out_00") == b"b\t1\n"
    assert folder.names("twice") == ["in", "out_00", "out_manifest.json"]


# --- what is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, said",
    [
        ("none", "no such file or directory, and no none_00"),
        ("none/book_*", "no file matches"),
        ("none/", "no such file or directory"),
    ],
)
def test_what_is_not_there_is_said(path: str, said: str, folder: Folder) -> None:
    for backend in ("local", "network"):
        with pytest.raises(ProgramError) as caught:
            run_job(f"{folder.url}/{path}", program=find("wordcount").program, backend=backend)
        assert said in str(caught.value)
        assert f"{folder.url}/none" in str(caught.value)


def test_a_file_that_goes_away_ends_the_job(folder: Folder, request: pytest.FixtureRequest) -> None:
    """After it was found, before it was read."""
    folder.write("gone/a", b"a\n" * 1000)
    found = list(files(f"{folder.url}/gone/a").splits(500))
    folder.fs.rm(f"{folder.path}/gone/a")
    with pytest.raises(ProgramError, match="gone/a: no such file"):
        found[1].load()


def test_a_name_node_that_is_down_is_no_hang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def told(address: str, within_s: float) -> str:
        began = time.monotonic()
        with pytest.raises(SetupError) as caught:
            run_job(f"hdfs://{address}/book", program=find("wordcount").program, backend="network")
        assert time.monotonic() - began < within_s
        return str(caught.value)

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody else listens there, and this one does not
        port = closed.getsockname()[1]
        assert f"no name node at 127.0.0.1:{port} (Connection refused)" in told(f"127.0.0.1:{port}", 15)
        for words in (["--local"], ["--backend", "dask"]):
            done = commands.run(
                "run", "wordcount", str(BOOK), *words, "--output", f"hdfs://127.0.0.1:{port}/out", home=tmp_path
            )
            assert (done.returncode, "is it running" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
        closed.listen()  # now it says nothing at all
        monkeypatch.setattr(hdfs, "ANSWER_S", 2.0)
        assert "has not answered for 2 s" in told(f"127.0.0.1:{port}", 15)
    assert "no name node at nowhere.invalid:9000" in told("nowhere.invalid:9000", 30)
    assert "name a host and its port" in told("", 15)


# --- workers that read for themselves -----------------------------------------------------------------


def words_of(name: str, line: str) -> Iterator[tuple[Any, int]]:
    ec262.counter("lines").add()
    yield (ec262.input_name(), "lines"), 1
    for word in line.split():
        yield word, 1


def total(word: Any, counts: list[int]) -> int:
    return sum(counts)


def test_workers_read_their_part_of_hdfs_themselves(
    make_network: Callable[..., Network], folder: Folder, texts: list[Path]
) -> None:
    network = make_network()
    serving = [network.worker("--data-dir", f"books={folder.url}") for _ in range(2)]
    other = network.worker()
    shared = SharedStorage("books", folder.url)
    job = ec262.submit(
        ec262.files("books/book_*", shared=shared),
        program=Program(words_of, total, combiner=total),
        discovery=network.url,
        split_size=300_000,
        reducers=2,
        requirements=[shared.capability],
    )
    result = job.result(100)
    lines = {("books/" + path.name, "lines"): sum(1 for _ in reference.lines_at(path.read_bytes())) for path in texts}
    assert {key: value for key, value in result.items() if isinstance(key, tuple)} == {
        key: count for key, count in lines.items() if count
    }
    made = "".join(f"{reference.escaped(key)}\t{value}\n" for key, value in result.items() if isinstance(key, str))
    assert reference.bytes_of(made) == reference.wordcount(texts)
    report = job.report()
    assert report.counters == {"lines": sum(lines.values())}
    assert str(other.ready["worker_id"]) not in report.earned
    assert set(report.earned) <= {str(worker.ready["worker_id"]) for worker in serving}
    # What was sent is the program and where to read, not what to read.
    assert job.progress().bytes_in < sum(path.stat().st_size for path in texts) / 2
    for worker in network.workers:
        assert worker.stop() == 0, "a worker that has read HDFS leaves like any other"


def test_a_worker_whose_hdfs_is_down_does_not_start(make_network: Callable[..., Network]) -> None:
    network = make_network()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(AssertionError, match=f"no name node at 127.0.0.1:{port}"):
            network.worker("--data-dir", f"books=hdfs://127.0.0.1:{port}/books")


# --- processes ----------------------------------------------------------------------------------------

SLOW = """
import ec262

def words(name, line):
    x = 0
    for i in range(2000):
        x += i
    for word in line.split():
        yield word, 1

def total(word, counts):
    return sum(counts)

program = ec262.Program(words, total)
"""


def test_a_killed_job_goes_on_from_its_checkpoint(
    make_network: Callable[..., Network], folder: Folder, texts: list[Path], tmp_path: Path
) -> None:
    network = make_network()
    for _ in range(2):
        network.worker()
    (tmp_path / "slow.py").write_text(SLOW)
    words = [
        *("run", "slow.py:program", f"{folder.url}/books/book_*", "--output", f"{folder.url}/killed/count"),
        *("--checkpoint", "kept", "--discovery", network.url, "--split-size", "50000", "--reducers", "3"),
        *("--timeout", "25"),
    ]
    foreman = {"home": tmp_path, "cwd": tmp_path, "EC262_HOME": str(tmp_path / "foreman")}
    first = commands.start(*words, **foreman)  # type: ignore[arg-type]
    until(lambda: (tmp_path / "kept" / "map-0.spool").exists(), 60, "the first phase")
    until(lambda: int(str(network.account("foreman")["spent"])) >= 8, 60, "some tasks")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert not folder.fs.exists(f"{folder.path}/killed/count_00")

    again = commands.run(*words, **foreman)  # type: ignore[arg-type]
    assert again.returncode == 0, again.stderr
    collect(f"{folder.url}/killed/count", str(tmp_path / "all"))
    assert (tmp_path / "all").read_bytes() == reference.wordcount(texts)
    # What was leased in the moment of the kill comes back when the leases end, after --timeout.
    until(lambda: network.account("foreman")["escrow"] == 0, 60, "an empty escrow")
    tasks = int(again.stderr.split()[0]) + 3
    spent = int(str(network.account("foreman")["spent"]))
    assert tasks <= spent <= tasks + 8, f"only what was being sent in that moment may be paid twice: {again.stderr}"

    # The input has changed: the checkpoint is of another job.
    folder.write("books/book_02", b"one more\n")
    try:
        other = commands.run(*words, "--overwrite", **foreman)  # type: ignore[arg-type]
    finally:
        folder.write("books/book_02", b"")
    assert (other.returncode, "its input was different" in other.stderr) == (1, True), other.stderr


SCRIPT = """
import sys
import fsspec
import ec262

url, backend = sys.argv[1:]

def words(name, line):
    for word in line.split():
        yield word, 1

def total(word, counts):
    return sum(counts)

if __name__ == "__main__":
    with fsspec.open(url, "rb") as file:      # its threads are there before anything else is
        text = file.read()
    made = ec262.run_job(url, program=ec262.Program(words, total), backend=backend)
    assert sum(made.values()) == len(text.split()), made
    print("done", flush=True)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_that_has_used_hdfs_ends(backend: str, folder: Folder, texts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EC262_HOME": str(tmp_path / "home")}
    with nothing_left():
        done = subprocess.run(
            [sys.executable, str(tmp_path / "script.py"), f"{folder.url}/books/book_01", backend],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_rehearsals_fork_does_without_hdfs(folder: Folder, texts: list[Path]) -> None:
    """It has the sample already. In a fork hdfs-native's threads are gone, and a call of it would wait for ever."""
    splits = list(files(f"{folder.url}/books/book_01").splits(20_000))
    sample = sample_of(iter(splits))
    assert len(sample) == 8

    def steps() -> Any:
        yield [map_header("0" * 64, index=0, partitions=1, spec=sample.spec), *sample.parts(0, len(sample))]

    began = time.monotonic()
    made = run_original(Program(words_of, total), steps, 20.0, lambda: False)
    assert made is not None
    assert (made.raised, len(made.results)) == ("", 1)
    assert time.monotonic() - began < 10
