"""A backup of a service that is used meanwhile, restored: its books are clean, and it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from discovery.archive.files import segments
from discovery.archive.mover import Mover
from discovery.backup import backup_to, restore_from
from discovery.ledger import verify
from discovery.operator import store_of
from discovery.registry import new_account
from discovery.store.server import start_server
from discovery.store.store import Store
from ec262.discovery_client import DiscoveryClient
from ec262.errors import SetupError
from tests.acceptance.test_processes import service
from tests.commands import run, start
from tests.load import Load, load
from tests.processes import nothing_left, until


def backup(data: Path, target: Path, home: Path) -> None:
    done = run("discovery", "backup", "--data-dir", str(data), str(target), home=home)
    assert done.returncode == 0, done.stderr
    assert "the books are clean" in done.stdout


def clean(data: Path, home: Path) -> dict[str, int]:
    """What an audit says of a data directory whose books have to be clean."""
    done = run("ledger", "verify", "--data-dir", str(data), "--json", home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, int] = json.loads(done.stdout)
    return told


def go_on(busy: Load, over: threading.Event) -> None:
    """Lets a job go on for as long as it takes, at a pace that leaves the machine to others."""
    upto = 0
    while not over.wait(0.1):
        upto += 8
        busy.open_gate(upto)


def backed_up_under_load(directory: Path, backups: int) -> None:
    """Backups of a service while a job is computed, each restored; the audit of each has to be clean."""
    data = directory / "data"
    with nothing_left():
        discovery = service(directory, "--processes", "2")
        with load(directory / "load", discovery.ready["url"], items=100_000) as busy:
            over = threading.Event()
            drip = threading.Thread(target=go_on, args=(busy, over))
            drip.start()
            try:
                with store_of(None, data) as (store, _):
                    until(lambda: store.books.head().number >= 1, 60, "a block on disk")
                for number in range(backups):
                    before = busy.done
                    backup(data, directory / f"backup{number}", directory)
                    until(lambda: busy.done > before, 60, "further accepted items")  # noqa: B023
            finally:
                over.set()
                drip.join()
        discovery.stop()
    whole = clean(data, directory)
    for number in range(backups):
        restored = directory / f"again{number}"
        words = ["discovery", "restore", str(directory / f"backup{number}"), "--data-dir", str(restored)]
        done = run(*words, home=directory)
        assert done.returncode == 0, done.stderr
        audit = clean(restored, directory)
        assert 0 < audit["movements"] <= whole["movements"]


@pytest.mark.timeout(240)
def test_a_backup_under_load_is_restored(tmp_path: Path) -> None:
    backed_up_under_load(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_backups_under_load_are_restored_and_the_service_goes_on(tmp_path: Path) -> None:
    backed_up_under_load(tmp_path, 4)
    data = tmp_path / "x" / "data"
    data.parent.mkdir()
    (tmp_path / "again3").rename(data)
    with nothing_left():
        discovery = service(data.parent, "--processes", "1")
        with store_of(None, data) as (store, _):
            before = store.books.head().number
            with load(tmp_path / "load2", discovery.ready["url"], items=40) as busy:
                busy.finish()
            until(lambda: store.books.head().number > before, 60, "a further block")
        discovery.stop()
    assert "the ledger stays in Redis" not in discovery.log.read_text()
    clean(data, tmp_path)


def filled(store: Store, directory: Path, accounts: int = 40) -> None:
    """Accounts, of which some are on disk in several segments, and some in Redis alone."""
    mover = Mover(store.books, directory, segment_bytes=600, settle_s=0, wait_s=0)
    for number in range(accounts):
        assert new_account(store.accounts, f"{number}", 10)[0] == "ok"
        if number < accounts - 5 and number % 3 == 0:
            time.sleep(0.002)
            mover.move()
    assert mover.fault == ""
    mover.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small service, with its backup in it."""
    directory = tmp_path_factory.mktemp("original")
    data = directory / "data"
    with start_server(data) as server:
        store = Store(server.url)
        filled(store, data / "ledger")
        (data / "keyring.json").write_text(json.dumps({"master": "00" * 32, "wrapping": {}}))
        backup_to(directory / "backup", store, data)
        store.close()
    assert len(segments(directory / "backup" / "ledger")) > 2
    return directory


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A copy of the backup, to do something to."""
    shutil.copytree(original / "backup", tmp_path / "backup")
    return tmp_path / "backup"


def test_into_a_redis_of_its_own(made: Path, tmp_path: Path) -> None:
    with start_server(tmp_path / "own") as server:
        restore_from(made, tmp_path / "again", server.url)
        store = Store(server.url)
        audit = verify(store, tmp_path / "again" / "ledger")
        assert (audit.faults, audit.movements) == ([], 40)
        # The stream's ids go on where they ended.
        assert new_account(store.accounts, "one more", 10)[0] == "ok"
        assert verify(store, tmp_path / "again" / "ledger").faults == []
        store.close()
        with pytest.raises(SetupError, match="not empty"):
            restore_from(made, tmp_path / "third", server.url)
        assert not (tmp_path / "third").exists()


def test_a_backup_is_only_for_its_owner(made: Path) -> None:
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in made.rglob("*")} == {0}


@pytest.mark.parametrize("attack", ["flip a bit of the state", "cut a segment", "swap the keyring", "remove a segment"])
def test_a_backup_that_somebody_changed_is_not_restored(made: Path, tmp_path: Path, attack: str) -> None:
    first = segments(made / "ledger")[0]
    if attack == "flip a bit of the state":
        data = bytearray((made / "state.rdb").read_bytes())
        data[len(data) // 2] ^= 1
        (made / "state.rdb").write_bytes(data)
    elif attack == "cut a segment":
        os.truncate(first, first.stat().st_size - 1)
    elif attack == "swap the keyring":
        (made / "keyring.json").write_text(json.dumps({"master": "11" * 32, "wrapping": {}}))
    else:
        first.unlink()
    with pytest.raises(SetupError):
        restore_from(made, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_nothing_is_overwritten(original: Path, made: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in made.iterdir())
    done = run("discovery", "backup", "--data-dir", str(original / "data"), str(made), home=tmp_path)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)
    done = run("discovery", "restore", str(made), "--data-dir", str(original / "data"), home=tmp_path)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)
    assert sorted(path.name for path in made.iterdir()) == before


def test_an_archive_that_is_not_this_redis_own_is_not_taken(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with start_server(other) as server:
        store = Store(server.url)
        filled(store, other / "ledger")
        (other / "keyring.json").write_text("{}")
        with pytest.raises(Exception, match=r"not the archive|has not the ledger"):
            backup_to(tmp_path / "wrong", store, other, made / "ledger")
        store.close()
    assert not (tmp_path / "wrong").exists()


def test_ctrl_c_leaves_nothing_half_done(original: Path, tmp_path: Path) -> None:
    with nothing_left():
        words = ["discovery", "backup", "--data-dir", str(original / "data"), str(tmp_path / "b2")]
        process = start(*words, home=tmp_path)
        assert process.stderr is not None
        assert "copying" in process.stderr.readline()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        assert "Traceback" not in process.stderr.read()
        process.communicate()
    assert [path.name for path in tmp_path.iterdir() if "b2" in path.name] == []


def test_accounts_are_known_to_the_restored_service(made: Path, tmp_path: Path) -> None:
    restore_from(made, tmp_path / "x" / "data")
    discovery = service(tmp_path / "x")
    with DiscoveryClient(discovery.ready["url"]) as client:
        assert client.credits().minted == 40 * 10
    discovery.stop()
