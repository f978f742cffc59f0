"""What tests share: a real store, a real discovery over it, and parties that speak the protocol to it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from discovery.app import Discovery, create_discovery
from discovery.ledger import verify
from discovery.settings import Settings
from discovery.store.server import start_server

MakeDiscovery = Callable[..., Discovery]

# Whoever runs the tests may have accounts and a default service: none of that is to be used, or touched.
os.environ["EC262_HOME"] = tempfile.mkdtemp(prefix="ec262-tests-")
atexit.register(shutil.rmtree, os.environ["EC262_HOME"], ignore_errors=True)

# A shell starts what runs in the background with Ctrl-C ignored, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, durable as in production, for the whole run."""
    with start_server(tmp_path_factory.mktemp("store"), fsync="always") as server:
        yield server.url


@pytest.fixture
def make_discovery(redis_url: str, tmp_path: Path) -> Iterator[MakeDiscovery]:
    """Discovery services over an empty store; afterwards the books must be clean, whatever the test did."""
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    made: list[Discovery] = []

    def make(**settings: object) -> Discovery:
        made.append(create_discovery(Settings(**settings), redis_url, tmp_path))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for discovery in made:
        assert verify(discovery.store).faults == []
        in_flight = sum(discovery.store.balances()[1].values())
        assert discovery.store.pulse.read().escrow == in_flight, "what people see is what there is"
        discovery.store.close()
    client.close()


@pytest.fixture
def discovery(make_discovery: MakeDiscovery) -> Discovery:
    """A discovery service with default settings."""
    return make_discovery()
