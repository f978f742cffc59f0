"""``ec262 balance``, ``ec262 ledger`` and ``ec262 credits``, as the account's owner and as the operator."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discovery.app import Discovery
from discovery.archive.files import segments
from discovery.archive.mover import Mover
from discovery.operator import store_of
from discovery.store.server import start_server
from discovery.store.store import Store
from ec262.cli import balance, credits, ledger
from ec262.errors import EC262Error, SetupError
from ec262.protocol import messages as m
from ec262.serving import Server
from tests.commands import start
from tests.parties import Caller, Foreman, Worker, answer_all
from tests.processes import nothing_left


def command(*words: str) -> int:
    """Runs a subcommand in this process; returns its exit code."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for module in (balance, credits, ledger):
        module.add_parser(commands)
    flags = parser.parse_args(words)
    return int(flags.run(flags))


@pytest.fixture
def caller(discovery: Discovery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Caller]:
    """An account of this machine at a discovery that listens; it has 50 credits that can be sent."""
    with Server(discovery.app) as server:
        made = Foreman(discovery)
        discovery.store.books.mint("mint", made.account.account_id, 50, "seed")
        monkeypatch.setenv("EC262_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("EC262_DISCOVERY", server.url)
        monkeypatch.setenv("EC262_ACCOUNT", made.account.account_id)
        monkeypatch.setenv("EC262_SECRET", made.account.secret)
        yield made


@pytest.fixture
def archive(discovery: Discovery, tmp_path: Path) -> Iterator[Callable[[], int]]:
    mover = Mover(discovery.store.books, tmp_path / "ledger", settle_s=0, wait_s=0, post_share=1)
    yield mover.move
    mover.close()


def test_balance_says_what_can_be_sent(caller: Caller, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("balance") == 0
    shown = capsys.readouterr().out
    assert f"balance  {caller.state.balance} credits" in shown
    assert "to send  50" in shown


def test_a_statement_for_a_person_and_for_a_program(
    discovery: Discovery, caller: Foreman, archive: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(Caller(discovery))
    leased = caller.lease(4)
    caller.settle(answer_all(leased, [worker]), [task.task_id for task in leased.tasks])
    archive()
    assert command("ledger") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["LAST", "(UTC)", "RECEIVED", "PAID", "MOVEMENTS", "WHAT", "ABOUT"]
    assert lines[1].split()[2:] == ["0", "4", "4", "job", Foreman.job_id]
    assert lines[2].split()[2:] == ["50", "0", "1", "mint", "seed"]
    assert lines[-2] == f"balance {caller.state.balance}, of which 50 can be sent; in escrow 0"
    assert command("ledger", "--json", "--limit", "2") == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in told["rows"]] == ["job", "mint"]
    assert told["balance"] == caller.state.balance


def test_a_long_statement_is_fetched_page_by_page(
    discovery: Discovery, caller: Caller, archive: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(150):
        discovery.store.books.mint("mint", caller.account.account_id, 1, f"n{number}")
    archive()
    assert command("ledger", "--json", "--limit", "130") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["about"] for row in rows] == [f"n{number}" for number in range(149, 19, -1)]


def test_a_note_cannot_act_on_the_terminal(
    discovery: Discovery, caller: Caller, archive: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger sends one credit with a note full of control characters."""
    stranger = Caller(discovery)
    discovery.store.books.mint("mint", stranger.account.account_id, 1, "x")
    stranger.call(
        "POST",
        "/v1/transfers",
        m.Transferred,
        m.Transfer(to=caller.account.account_id, amount=1, note="\x1b[2J\r\nbalance 10\u202e", idempotency_key="k" * 8),
    )
    archive()
    command("ledger")
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    assert f"from {stranger.account.account_id}: ?[2J??balance 10?" in shown


def test_sending(discovery: Discovery, caller: Caller, capsys: pytest.CaptureFixture[str]) -> None:
    friend = Caller(discovery)
    start = friend.state.balance
    assert command("credits", "send", friend.account.account_id, "20", "--note", "thanks") == 0
    assert "of which 30 can be sent" in capsys.readouterr().out
    assert friend.state.balance == start + 20
    for to, amount, said in (
        (friend.account.account_id, "31", "30 may be sent"),
        ("0" * 32, "1", "no account"),
        (caller.account.account_id, "1", "itself"),
    ):
        with pytest.raises(EC262Error, match=said):
            command("credits", "send", to, amount)
    with pytest.raises(SystemExit) as caught:
        command("credits", "send", "../../etc", "1")
    assert caught.value.code == 2
    assert friend.state.balance == start + 20


@pytest.mark.parametrize("amount", ["0", "-1", "1.5", "many", "9" * 30, "", "١"])
@pytest.mark.parametrize("action", [["send"], ["mint", "--redis", "x", "--note", "n"]])
def test_amounts_that_are_none_are_wrong_flags(action: list[str], amount: str) -> None:
    with pytest.raises(SystemExit) as caught:
        command("credits", *action, "--", "a" * 32, amount)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["credits", "mint", "a" * 32, "5", "--redis", "x"],
        ["credits", "mint", "a" * 32, "5", "--note", "n"],
        ["credits", "mint", "a" * 32, "5", "--note", "two\nlines", "--redis", "x"],
        ["credits", "burn", "a" * 32, "5", "--note", "x" * 201, "--redis", "x"],
        ["ledger", "verify"],
        ["ledger", "verify", "--redis", "x", "--anchor", "5"],
        ["ledger", "export", "--redis", "x", "--since", "yesterday"],
        ["ledger", "--limit", "0"],
    ],
)
def test_wrong_flags(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(*words)
    assert caught.value.code == 2


# --- the operator, over a data directory ----------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with an account and a ledger that is partly on disk."""
    made = tmp_path / "data"
    with start_server(made) as server:
        store = Store(server.url)
        mover = Mover(store.books, made / "ledger", settle_s=0, wait_s=0, post_share=1)
        for account in ("a" * 32, "b" * 32, "c" * 32):
            store._redis.hset("{ec}:account:" + account, "secret_hash", b"x")
            store.books.mint("mint", account, 10, "start")
            if account[0] < "c":
                mover.move()
        mover.close()
        store.close()
    return made


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_an_operator_works_on_the_data_directory(
    data: Path, running: bool, transport: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_server(data, transport=transport) if running else None  # type: ignore[arg-type]
    try:
        at = ["--data-dir", str(data)]
        assert command("credits", "mint", "a" * 32, "25", "--note", "grant", *at) == 0
        assert command("credits", "burn", "a" * 32, "5", "--note", "abuse", *at) == 0
        assert f"{'a' * 32} has 30" in capsys.readouterr().out
        assert command("credits", "burn", "a" * 32, "31", "--note", "abuse", *at) == 1
        assert command("credits", "mint", "d" * 32, "1", "--note", "x", *at) == 1
        assert "no account" in capsys.readouterr().err
        assert command("ledger", "verify", *at) == 0
        shown = capsys.readouterr().out
        assert "5 movements; minted 55, burnt 5" in shown
        assert "2 blocks on disk" in shown
        anchor = shown.split("--anchor ")[1].split()[0]
        assert command("ledger", "verify", *at, "--anchor", anchor, "--quick", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["clean"], told["blocks"], told["faults"]) == (True, 2, [])
        assert command("ledger", "export", *at) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(line["block"], line["amount"], line["for"]) for line in lines] == [
            *((1, 10, "mint:start"), (2, 10, "mint:start"), (None, 10, "mint:start")),
            *((None, 25, "mint:grant"), (None, 5, "burn:abuse")),
        ]
        assert set(lines[0]) == {"block", "entry", "time_ms", "from", "to", "amount", "for"}
        assert command("ledger", "export", *at, "--account", "b" * 32, "--until", "2000-01-01") == 0
        assert capsys.readouterr().out == ""
    finally:
        if server is not None:
            assert server.alive, "the commands leave a store alone that they did not start"
            server.close()


def test_an_archive_that_was_tampered_with_is_exit_code_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = segments(data / "ledger")
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    assert command("ledger", "verify", "--data-dir", str(data)) == 1
    shown = capsys.readouterr()
    assert "FAULT" in shown.err
    assert "1 faults" in shown.out
    assert command("ledger", "verify", "--data-dir", str(data), "--json") == 1
    assert json.loads(capsys.readouterr().out)["clean"] is False


def test_a_copy_of_the_archive_elsewhere_can_be_named(data: Path, tmp_path: Path) -> None:
    (data / "ledger").rename(tmp_path / "moved")
    assert command("ledger", "verify", "--data-dir", str(data)) == 1
    assert command("ledger", "verify", "--data-dir", str(data), "--archive", str(tmp_path / "moved")) == 0


def test_a_directory_of_nobody_is_left_alone(tmp_path: Path) -> None:
    for words in (["ledger", "verify"], ["credits", "mint", "a" * 32, "1", "--note", "x"]):
        with pytest.raises(SetupError, match="no directory of a discovery"):
            command(*words, "--data-dir", str(tmp_path))
    assert os.listdir(tmp_path) == []
    with pytest.raises(SetupError), store_of("no-url", None):
        pass


# --- as a process ---------------------------------------------------------------------------------


@pytest.fixture
def long(data: Path) -> Path:
    """A data directory whose export is longer than a pipe holds."""
    with start_server(data) as server:
        store = Store(server.url)
        for _ in range(1500):
            store.books.mint("mint", "a" * 32, 1, "x" * 100)
        store.close()
    return data


def test_ctrl_c_ends_an_export_and_the_store_it_started(long: Path, tmp_path: Path) -> None:
    with nothing_left():
        process = start("ledger", "export", "--data-dir", str(long), home=tmp_path)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["amount"] == 10
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == ""


def test_an_export_that_nobody_reads_on_ends_quietly(long: Path, tmp_path: Path) -> None:
    with nothing_left():
        process = start("ledger", "export", "--data-dir", str(long), home=tmp_path)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == ""
        process.stderr.close()
