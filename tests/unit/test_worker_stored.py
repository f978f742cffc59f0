"""A worker that serves a shared storage: tasks without data, over HTTP, computed in its real sandbox."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest

import ec262
from ec262.cli import worker as command
from ec262.config import WorkerSettings
from ec262.errors import SetupError
from ec262.mapreduce.blocks import batches_of
from ec262.mapreduce.program import map_header
from ec262.mapreduce.records import Reader
from ec262.protocol import messages as m
from ec262.protocol.framing import frame_parts, parts_digest
from ec262.protocol.receipts import Kind, Receipt
from ec262.storage.data_dir import DataDir
from ec262.worker.service import Worker
from tests.worker_peers import SETTINGS, Foreman, make_worker


def lines(name: str, line: str) -> Iterator[tuple[str, list[str]]]:
    yield line, [name, ec262.input_name()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    (made / "book.txt").write_bytes(b"one\ntwo\nthree\n")
    (tmp_path / "secret").write_text("the secret\n")
    (made / "link").symlink_to(tmp_path / "secret")
    return made


@pytest.fixture
def worker(tmp_path: Path, root: Path) -> Iterator[Worker]:
    settings = replace(SETTINGS, data_dirs=(("books", str(root)),), read_bytes=1000)
    with make_worker(tmp_path, settings) as made:
        yield made
        made.hurry()


def lease(foreman: Foreman, **where: Any) -> str:
    """A lease of a task that names a range in the storage."""
    (lease_id,) = foreman.lease([0])
    spec: dict[str, Any] = {"format": "records", "name": "the book", "reader": Reader().to_wire(), "storage": "books"}
    spec |= {"path": "book.txt", "start": 0, "end": 14, **where}
    parts = [map_header(foreman.digest, index=0, partitions=1, spec=spec)]
    digest = parts_digest(parts, domain=b"input")
    foreman.tickets[lease_id] = msgspec.structs.replace(foreman.tickets[lease_id], input_digest=digest)
    foreman.inputs[lease_id] = frame_parts(parts)
    return lease_id


def outcome(foreman: Foreman, **where: Any) -> tuple[Receipt, list[bytes]]:
    lease_id = lease(foreman, **where)
    foreman.push([lease_id])
    results, receipts = foreman.collect(1)
    return receipts[lease_id], foreman.open(results[lease_id]) if results[lease_id].tokens else []


def test_a_task_without_data_is_computed_from_the_storage(worker: Worker) -> None:
    assert worker.capabilities == ["data:books"]
    foreman = Foreman(worker.server.port, lines)
    receipt, parts = outcome(foreman)
    assert receipt.kind == Kind.OK
    name = ["the book", "the book"]
    assert list(batches_of(parts[0])) == [(["one", "three", "two"], [[name], [name], [name]])]
    receipt, parts = outcome(foreman, start=1, end=5)
    assert list(batches_of(parts[0])) == [(["two"], [[name]])]


@pytest.mark.parametrize(
    "where, words",
    [
        ({"storage": "letters"}, "does not serve storage 'letters'"),
        ({"path": "../secret"}, "not a path inside"),
        ({"path": "/proc/self/environ"}, "not a path inside"),
        ({"path": "link"}, "not a regular file"),
        ({"path": "none"}, "no such file"),
        ({"start": -1}, "range"),
        ({"end": 1 << 40}, "1,000 bytes"),
    ],
    ids=["another storage", "upwards", "absolute", "link out", "none", "negative", "huge"],
)
def test_what_is_not_served_is_refused_by_a_receipt(
    where: dict[str, Any], words: str, worker: Worker, root: Path
) -> None:
    foreman = Foreman(worker.server.port, lines)
    receipt, parts = outcome(foreman, **where)
    assert (receipt.kind, parts) == (Kind.REFUSED, [])
    assert words in receipt.reason
    assert str(root) not in receipt.reason
    assert "secret" not in receipt.reason.replace("../secret", "")
    assert outcome(foreman)[0].kind == Kind.OK  # and the slot goes on


def test_a_storage_that_does_not_answer_stops_nobody_else(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads run in threads: while one hangs the worker answers; the task is given back when it is asked to stop."""
    hanging, over = threading.Event(), threading.Event()
    read = DataDir.read

    def hang(*arguments: Any, **_more: Any) -> Any:
        hanging.set()
        over.wait(60)
        return read(*arguments)

    monkeypatch.setattr(DataDir, "read", hang)
    foreman = Foreman(worker.server.port, lines)
    lease_id = lease(foreman)
    foreman.push([lease_id])
    while not hanging.is_set():
        gevent.sleep(0.01)
    status, body = foreman.call("GET", "/")
    assert (status, m.decode(m.WorkerState, body).running) == (200, 1)
    over.set()
    _, receipts = foreman.collect(1)
    assert receipts[lease_id].kind == Kind.OK


def test_a_worker_leaves_also_while_a_storage_hangs(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, over = threading.Event(), threading.Event()

    def hang(*_: Any, **_more: Any) -> Any:
        hanging.set()
        over.wait(60)

    monkeypatch.setattr(DataDir, "read", hang)
    with make_worker(tmp_path, replace(SETTINGS, data_dirs=(("books", str(root)),))) as made:
        foreman = Foreman(made.server.port, lines)
        foreman.push([lease(foreman)])
        while not hanging.is_set():
            gevent.sleep(0.01)
        made.hurry()
        with gevent.Timeout(20):
            made.close()
    over.set()


# --- settings and flags ---------------------------------------------------------------------------------


def test_storages_come_from_settings_environment_and_flags() -> None:
    environ = {"EC262_WORKER_DATA_DIRS": "books=/data/books; logs=s3://bucket/a=b"}
    settings = WorkerSettings.from_environment(environ)
    assert settings.data_dirs == (("books", "/data/books"), ("logs", "s3://bucket/a=b"))
    parser = command.configure(argparse.ArgumentParser())
    args = parser.parse_args(["--data-dir", "a=/x", "--data-dir", "b=file:///y", "--executor", "m:C"])
    assert args.data_dir == [("a", "/x"), ("b", "file:///y")]
    assert args.executor == "m:C"


@pytest.mark.parametrize("text", ["books", "=x", "books=", "Books=/x", "a b=/x", "_=/x"])
def test_what_is_no_storage_is_said(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--data-dir", text])
    assert "NAME=DIRECTORY" in capsys.readouterr().err
    with pytest.raises(SetupError):
        WorkerSettings.from_environment({"EC262_WORKER_DATA_DIRS": text})


def test_one_name_twice_or_too_many_are_refused() -> None:
    with pytest.raises(SetupError):
        WorkerSettings(data_dirs=(("a", "/x"), ("a", "/y")))
    with pytest.raises(SetupError):
        WorkerSettings(data_dirs=tuple((f"s{number}", "/x") for number in range(16)))


@pytest.mark.parametrize("flags", [["--data-dir", "a=/nowhere"], ["--data-dir", "a=/"], ["--executor", "nowhere:X"]])
def test_what_cannot_be_served_ends_the_command_in_a_sentence(
    flags: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EC262_HOME", str(tmp_path))
    assert command.main(["-P", "0", "--discovery", "http://127.0.0.1:9", *flags]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("worker: ")
    assert "\n" not in said
