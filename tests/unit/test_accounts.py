"""Accounts for people: made, shown, renamed, their keys replaced and shown to nobody; several services side by side."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discovery.app import Discovery
from ec262.cli import main
from ec262.config import configured_discovery, discovery_url
from ec262.credentials import Account, CredentialStore
from ec262.discovery_client import DiscoveryClient
from ec262.errors import DiscoveryUnreachable, ProblemError, SetupError, Unauthorized
from ec262.protocol import messages as m
from ec262.serving import Server
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Problem

Run = Callable[..., int]


@pytest.fixture
def url(discovery: Discovery) -> Iterator[str]:
    with Server(discovery.app, "127.0.0.1", 0) as server:
        yield server.url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "home"))
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command with something on its standard input."""

    def running(*words: str, given: str = "") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        return main(list(words))

    return running


def test_an_account_is_made_shown_and_renamed(run: Run, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("account", "show", "--discovery", url) == 1
    assert "account create" in capsys.readouterr().err
    assert run("account", "create", "--name", "lab", "--discovery", url) == 0
    assert run("account", "rename", "lab 3", "--discovery", url) == 0
    capsys.readouterr()
    assert run("account", "show", "--discovery", url) == 0
    shown = capsys.readouterr().out
    account = CredentialStore().account(url)
    assert account is not None
    assert "lab 3" in shown
    assert account.account_id in shown
    assert account.secret not in shown
    assert run("account", "show", "--json", "--discovery", url) == 0
    assert account.secret not in capsys.readouterr().out


def test_the_key_is_printed_alone_and_only_when_asked_for(
    run: Run, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("account", "create", "--discovery", url)
    capsys.readouterr()
    assert run("account", "show", "--key", "--discovery", url) == 0
    account = CredentialStore().account(url)
    assert account is not None
    assert capsys.readouterr().out == f"{account.account_id}:{account.secret}\n"


def test_a_name_that_is_not_printable_is_refused(run: Run, url: str) -> None:
    run("account", "create", "--discovery", url)
    with DiscoveryClient(url) as client:
        account = CredentialStore().account(url)
        assert account is not None
        client.use_account(account.account_id, account.secret)
        with pytest.raises(ProblemError, match="printable"):
            client.rename_account(m.RenameAccount(name="a\u202eb"))


def test_a_new_key_replaces_the_old_one(
    run: Run, url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run("account", "create", "--discovery", url)
    old = CredentialStore().account(url)
    assert run("account", "rotate-key", "--discovery", url) == 0
    new = CredentialStore().account(url)
    assert old is not None
    assert new is not None
    assert new.account_id == old.account_id
    assert new.secret != old.secret
    with DiscoveryClient(url, new.account_id, new.secret) as client:
        assert client.account().account_id == old.account_id
    with DiscoveryClient(url, old.account_id, old.secret) as client, pytest.raises(Unauthorized):
        client.account()
    said = "".join(capsys.readouterr()) + caplog.text
    assert new.secret not in said
    assert old.secret not in said


def test_a_new_key_whose_answer_was_lost_is_not_lost(run: Run, url: str) -> None:
    """The program ends between discovery's answer and the file: the next try finds that it was done."""
    run("account", "create", "--discovery", url)
    store = CredentialStore()
    old = store.account(url)
    assert old is not None
    with DiscoveryClient(url, old.account_id, old.secret) as client:
        client.rotate_key(m.RotateKey(secret=store.next_secret(url)))
    assert store.account(url) == old
    assert run("account", "rotate-key", "--discovery", url) == 0
    new = store.account(url)
    assert new is not None
    with DiscoveryClient(url, new.account_id, new.secret) as client:
        client.account()


def test_a_worker_that_meets_the_new_key_first_does_not_set_the_account_aside(run: Run, url: str) -> None:
    run("account", "create", "--discovery", url)
    store = CredentialStore()
    old = store.account(url)
    assert old is not None
    fresh = store.next_secret(url)
    assert store.retire_account(url, old)
    assert store.account(url) == Account(old.account_id, fresh)
    assert store.rotated(url) == Account(old.account_id, fresh)
    assert store.retire_account(url, Account(old.account_id, fresh)), "the service forgot it altogether"
    assert store.account(url) is None


def test_of_two_new_keys_at_once_one_counts(discovery: Discovery) -> None:
    caller = Caller(discovery)
    other = Caller(discovery, caller.account)
    stored, _ = discovery.store.accounts.secret(caller.account.account_id)
    assert stored is not None
    caller.call("PUT", "/v1/account/secret", m.KeyRotated, m.RotateKey(secret="a" * 43))
    assert not discovery.store.accounts.replace_secret(caller.account.account_id, stored, b"x" * 32)
    with pytest.raises(Problem) as caught:
        other.call("PUT", "/v1/account/secret", m.KeyRotated, m.RotateKey(secret="b" * 43))
    assert caught.value.code == "unauthorized"


@pytest.mark.parametrize("secret", ["", "short", "a" * 42, "a" * 44, "a" * 42 + "\n", "é" * 43, " " * 43])
def test_a_weak_or_odd_key_is_refused(discovery: Discovery, secret: str) -> None:
    caller = Caller(discovery)
    body = b'{"secret": "' + secret.encode().replace(b"\n", b"\\n") + b'"}'
    assert caller.raw("PUT", "/v1/account/secret", body).status_code == 400
    assert caller.state.account_id == caller.account.account_id


def test_pages_ask_for_the_key_again_once_it_is_replaced(discovery: Discovery) -> None:
    caller = Caller(discovery)
    browser = discovery.app.test_client()
    browser.post("/sign-in", data={"key": f"{caller.account.account_id}:{caller.account.secret}"})
    assert browser.get("/account").status_code == 200
    caller.call("PUT", "/v1/account/secret", m.KeyRotated, m.RotateKey(secret="a" * 43))
    assert browser.get("/account").status_code == 303


def test_the_key_of_the_environment_is_not_replaced(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with DiscoveryClient(url) as client:
        made = client.create_account(m.CreateAccount())
    monkeypatch.setenv("EC262_ACCOUNT", made.account_id)
    monkeypatch.setenv("EC262_SECRET", made.secret)
    assert run("account", "rotate-key", "--discovery", url) == 1
    with DiscoveryClient(url, made.account_id, made.secret) as client:
        client.account()


def test_login_makes_an_account_and_the_service_the_default(run: Run, url: str, home: Path) -> None:
    assert configured_discovery() is None
    assert run("login", url) == 0
    assert CredentialStore().account(url) is not None
    assert configured_discovery() == discovery_url() == url
    assert configured_discovery({**os.environ, "EC262_DISCOVERY": "embedded"}) is None
    assert configured_discovery({**os.environ, "EC262_DISCOVERY": "http://other:1"}) == "http://other:1"
    assert run("balance") == 0


def test_login_takes_a_key_from_standard_input_alone(run: Run, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with DiscoveryClient(url) as client:
        made = client.create_account(m.CreateAccount())
    assert run("login", url, given=f"{made.account_id}:{made.secret}\n") == 0
    account = CredentialStore().account(url)
    assert account is not None
    assert (account.account_id, account.secret) == (made.account_id, made.secret)
    assert made.secret not in "".join(capsys.readouterr())
    with pytest.raises(SystemExit) as caught:
        run("login", url, "--key", f"{made.account_id}:{made.secret}")
    assert caught.value.code == 2


def test_a_wrong_key_changes_nothing(run: Run, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("login", url)
    before = CredentialStore().account(url)
    for given in ("nonsense", "a" * 32 + ":" + "b" * 43):
        assert run("login", url, given=given) == 1
        assert CredentialStore().account(url) == before
    assert "b" * 43 not in "".join(capsys.readouterr())


def test_login_at_a_service_that_does_not_answer_changes_nothing(run: Run, home: Path) -> None:
    assert run("login", "http://127.0.0.1:9") == 1
    assert configured_discovery() is None
    with pytest.raises(DiscoveryUnreachable), DiscoveryClient("http://127.0.0.1:9", retry_for_s=0.0) as client:
        client.describe()


def test_accounts_at_several_services_are_kept_side_by_side(
    run: Run, make_discovery: MakeDiscovery, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(make_discovery().app, "127.0.0.1", 0) as one, Server(make_discovery().app, "127.0.0.1", 0) as two:
        assert run("login", one.url) == 0
        assert run("login", two.url) == 0
        capsys.readouterr()
        assert run("account", "show", "--all") == 0
        lines = capsys.readouterr().out.splitlines()
        assert sorted(line.split()[-2] for line in lines) == sorted([one.url, two.url])
        assert [line for line in lines if line.startswith("*")] == [line for line in lines if two.url in line]
        assert run("balance", "--discovery", one.url) == 0


def test_a_damaged_default_is_an_error_that_names_the_file(home: Path) -> None:
    home.mkdir()
    (home / "discovery").write_bytes(b"\xff\xfe")
    with pytest.raises(SetupError, match="discovery"):
        configured_discovery()
