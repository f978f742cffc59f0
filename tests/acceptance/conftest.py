"""A network as a person starts it: discovery, workers and foremen as processes of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from ec262.credentials import CredentialStore
from tests.processes import Process, nothing_left

Json = dict[str, object]


class Network:
    """Discovery and workers, each worker with an account of its own."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory = directory
        self.discovery = Process(
            [
                "-m",
                "discovery",
                "--port",
                "0",
                "--data-dir",
                str(directory / "store"),
                *(flags or ("--network", "private")),
            ],
            home=directory / "discovery",
            log=directory / "discovery.log",
        )
        self.url = str(self.discovery.ready["url"])
        self.workers: list[Process] = []

    def worker(self, *flags: str) -> Process:
        """Starts a worker."""
        name = f"worker{len(self.workers)}"
        made = Process(
            ["worker.py", "-v", "-P", "0", "--slots", "1", "--discovery", self.url, *flags],
            home=self.directory / name,
            log=self.directory / f"{name}.log",
        )
        self.workers.append(made)
        return made

    def account(self, name: str) -> Json:
        """What the account stored in that home has."""
        stored = CredentialStore(self.directory / name, environ={}).account(self.url)
        assert stored is not None
        answer = requests.get(f"{self.url}/v1/account", auth=(stored.account_id, stored.secret), timeout=10)
        return dict(answer.json())

    def credits(self) -> Json:
        """All credits there are."""
        return dict(requests.get(f"{self.url}/v1/credits", timeout=10).json())

    def close(self) -> None:
        """Ends everything; tells workers twice that wait for a foreman (one that was killed) to fetch results."""
        for told in (1, 2):
            for process in (*self.workers, self.discovery):
                if process.popen.poll() is None:
                    process.popen.terminate()
            for process in (*self.workers, self.discovery):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10.0 if told == 1 else 30.0)
        assert not [p.popen.args for p in (*self.workers, self.discovery) if p.popen.poll() is None]


@pytest.fixture
def make_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Network]]:
    """Networks that are gone after the test; the foreman's home is ``tmp_path/foreman``."""
    monkeypatch.setenv("EC262_HOME", str(tmp_path / "foreman"))
    for name in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET"):
        monkeypatch.delenv(name, raising=False)
    made: list[Network] = []

    def make(*flags: str) -> Network:
        made.append(Network(tmp_path, *flags))
        return made[-1]

    with nothing_left():
        yield make
        for network in made:
            network.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Dask cluster of this machine that all tests of a module share."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as running,
        distributed.Client(running) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The embedded network's files are the module's own."""
    before = os.environ.get("EC262_HOME"), os.environ.pop("EC262_DISCOVERY", None)
    os.environ["EC262_HOME"] = str(tmp_path_factory.mktemp("home"))
    yield
    for name, value in zip(("EC262_HOME", "EC262_DISCOVERY"), before, strict=True):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
