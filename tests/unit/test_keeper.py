"""The keeper of an embedded store: brings it back wherever it comes up, and knows when to give up."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from discovery.store.keeper import PAUSES_S, SOON_S, Keeper, Patience
from discovery.store.server import start_server
from discovery.store.store import Store
from ec262.errors import SetupError
from tests.processes import nothing_left, until


def test_a_store_that_fails_soon_each_time_is_given_up() -> None:
    patience = Patience()
    assert [patience.pause_s(0.0) for _ in range(len(PAUSES_S) + 1)] == [*PAUSES_S, None]
    assert patience.failures == len(PAUSES_S) + 1


def test_a_store_that_was_well_for_long_has_its_starts_again() -> None:
    patience = Patience()
    for _ in range(20):
        assert [patience.pause_s(lived_s) for lived_s in (SOON_S, 0.0, 0.0)] == [*PAUSES_S[:3]]


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """One that does not pause, and gives up at the fourth failure."""
    monkeypatch.setattr("discovery.store.keeper.PAUSES_S", (0.0, 0.0, 0.0))
    with nothing_left():
        made = Keeper(start_server(tmp_path / "data", transport="tcp"))
        yield made
        shutil.rmtree(tmp_path / "data", ignore_errors=True)  # nothing is started on that
        made.close()


def watch(keeper: Keeper) -> tuple[threading.Thread, list[str]]:
    """Has a thread keep it; what it gives up with."""
    said: list[str] = []

    def run() -> None:
        try:
            keeper.watch()
        except SetupError as reason:
            said.append(str(reason))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, said


def kill(keeper: Keeper) -> None:
    """kill -9, and the next server is there."""
    before = keeper.server
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: keeper.server is not before, what="the next server")


def test_the_store_goes_on_where_the_next_server_listens(keeper: Keeper) -> None:
    """Over TCP: port and password are others than before; scripts and open connections follow."""
    store = Store(keeper.server.url)
    keeper.moved = store.move_to
    store.lapse(1)
    store._redis.set("kept", "yes")
    urls = {keeper.server.url}
    thread, said = watch(keeper)
    for _ in range(3):
        kill(keeper)

        def answers() -> bool:
            try:
                return store.lapse(1) == 0
            except redis.RedisError:
                return False

        until(answers, what="the store")
        assert store._redis.get("kept") == b"yes"
        urls.add(keeper.server.url)
    assert len(urls) == 4
    store.close()
    os.kill(keeper.server.pid, signal.SIGKILL)
    thread.join(60)
    (reason,) = said
    assert "failed 4 times, each time soon after its start" in reason
    assert "killed by SIGKILL" in reason
    assert "redis.log" in reason


def test_nothing_is_started_where_the_data_are_gone(keeper: Keeper) -> None:
    """Somebody removed them under the store: an empty one would make all credits worthless without a word."""
    data = keeper.server.data_dir
    thread, said = watch(keeper)
    (data / "appendonlydir").rename(data / "elsewhere")
    os.kill(keeper.server.pid, signal.SIGKILL)
    thread.join(60)
    assert "data of the embedded store are gone" in said[0]
    assert not (data / "appendonlydir").exists()
