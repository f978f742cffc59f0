"""A worker at work in the test's own thread, and a foreman beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ec262.worker.service import Worker
from tests.worker_peers import Foreman, make_worker


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with make_worker(tmp_path) as made:
        yield made
        made.hurry()


@pytest.fixture
def foreman(worker: Worker) -> Foreman:
    return Foreman(worker.server.port)
