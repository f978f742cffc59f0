"""Credentials on disk: closed to others, whole at every moment, one account however many ask at once."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from ec262.credentials import Account, CredentialStore
from ec262.errors import SetupError

URL = "http://127.0.0.1:26262"
OTHER = "https://discovery.example"


@pytest.fixture
def store(tmp_path: Path) -> CredentialStore:
    return CredentialStore(tmp_path / "home", environ={})


def make(name: str) -> Account:
    return Account(name, f"secret of {name}")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_account_is_made_once_and_kept_closed_to_others(store: CredentialStore) -> None:
    assert store.account(URL) is None
    assert store.ensure_account(URL, lambda: make("a")) == make("a")
    assert store.ensure_account(URL, lambda: make("b")) == make("a")
    assert CredentialStore(store.home, environ={}).account(URL) == make("a")
    assert mode(store.path) == 0o600
    assert mode(store.home) == 0o700


def test_services_stand_side_by_side_whatever_the_spelling(store: CredentialStore) -> None:
    store.ensure_account(URL, lambda: make("a"))
    store.ensure_account(OTHER, lambda: make("b"))
    assert store.account("127.0.0.1:26262/") == make("a")
    assert store.account("HTTPS://Discovery.Example:443/") == make("b")


def test_a_worker_keeps_its_identity_a_port_and_account(store: CredentialStore) -> None:
    first = store.worker_id(URL, "a", 11235)
    assert store.worker_id(URL, "a", 11235) == first
    assert len({first, store.worker_id(URL, "a", 11236), store.worker_id(OTHER, "a", 11235)}) == 3
    assert store.worker_id(URL, "b", 11235) != first
    assert store.renew_worker_id(URL, "a", 11235) != first
    assert store.account(URL) is None


def test_the_environment_comes_first(tmp_path: Path) -> None:
    CredentialStore(tmp_path, environ={}).save_account(URL, make("stored"))
    store = CredentialStore(tmp_path, environ={"EC262_ACCOUNT": "e", "EC262_SECRET": "s"})
    assert store.account(URL) == Account("e", "s")
    assert store.retire_account(URL, Account("e", "s")) is False
    with pytest.raises(SetupError, match="belong together"):
        CredentialStore(tmp_path, environ={"EC262_ACCOUNT": "e"}).account(URL)


def test_an_account_the_service_forgot_is_set_aside_not_lost(store: CredentialStore) -> None:
    store.save_account(URL, make("old"))
    worker_id = store.worker_id(URL, "old", 1)
    assert store.retire_account(URL, make("old"))
    assert store.account(URL) is None
    assert store.ensure_account(URL, lambda: make("new")) == make("new")
    assert store.retire_account(URL, make("old"))  # another worker noticed, too: the new one stays
    assert store.account(URL) == make("new")
    content = json.loads(store.path.read_text())
    assert content["discoveries"][URL]["former"] == [{"account_id": "old", "secret": "secret of old"}]
    assert store.worker_id(URL, "old", 1) == worker_id


def test_a_file_open_to_others_is_closed_with_a_warning(
    store: CredentialStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.save_account(URL, make("a"))
    os.chmod(store.path, 0o644)
    with caplog.at_level(logging.WARNING):
        assert store.account(URL) == make("a")
    assert mode(store.path) == 0o600
    assert "closed it" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_somebody_elses_readable_file_is_refused(store: CredentialStore) -> None:
    store.save_account(URL, make("a"))
    os.chmod(store.path, 0o644)
    os.chown(store.path, 12345, 12345)
    with pytest.raises(SetupError, match="another user"):
        store.account(URL)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 2, "discoveries": {}}', b'{"version": 1, "discoveries": []}',
                b'{"version": 1, "discoveries": {"x": 1}}', b'{"version": 1, "discoveries": {"x": {"workers": 1}}}',
                b"\xff"]
)  # fmt: skip
def test_a_damaged_file_is_a_clear_error_and_left_alone(store: CredentialStore, content: bytes) -> None:
    store.home.mkdir(mode=0o700)
    store.path.write_bytes(content)
    store.path.chmod(0o600)
    with pytest.raises(SetupError, match="damaged"):
        store.ensure_account(URL, lambda: make("a"))
    assert store.path.read_bytes() == content


def test_a_directory_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="EC262_HOME"):
        CredentialStore(tmp_path / "file" / "home", environ={}).save_account(URL, make("a"))


def test_a_failed_write_leaves_the_old_file(store: CredentialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save_account(URL, make("a"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SetupError, match="No space"):
        store.save_account(URL, make("b"))
    monkeypatch.undo()
    assert store.account(URL) == make("a")
    assert sorted(path.name for path in store.home.iterdir()) == ["credentials.json", "credentials.lock"]


def test_a_failed_creation_holds_nobody_up(store: CredentialStore) -> None:
    def fail() -> Account:
        raise RuntimeError("discovery is away")

    with pytest.raises(RuntimeError):
        store.ensure_account(URL, fail)
    assert store.ensure_account(URL, lambda: make("a")) == make("a")


def test_secrets_are_not_shown() -> None:
    assert "secret of" not in repr(make("a"))


def _ask(home: str, number: int, answers: multiprocessing.Queue[tuple[str, str]]) -> None:
    store = CredentialStore(Path(home), environ={})
    account = store.ensure_account(URL, lambda: make(f"made by {number}"))
    answers.put((account.account_id, store.worker_id(URL, account.account_id, number)))


def test_of_many_processes_at_once_one_makes_the_account(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[tuple[str, str]] = context.Queue()
    asking = [context.Process(target=_ask, args=(str(tmp_path), number, answers)) for number in range(4)]
    for process in asking:
        process.start()
    got = [answers.get(timeout=60) for _ in asking]
    for process in asking:
        process.join()
    assert len({account_id for account_id, _ in got}) == 1
    assert len({worker_id for _, worker_id in got}) == 4
