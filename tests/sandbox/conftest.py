"""The world a stranger would like to touch, and sandboxes in every mode."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.modes import IS_ROOT, OtherUser, Runner

CANARY = "the canary sings"


class World:
    """A file, a port, a process and a secret, and whether all are as they were."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secret = secrets.token_hex(16)
        self.secret_name = "EC262_TEST_SECRET"
        os.environ[self.secret_name] = self.secret
        nobody: dict[str, Any] = {"user": 65534} if IS_ROOT else {}
        # As the zygote's user, so that only the sandbox stands between.
        self.victim = subprocess.Popen(["sleep", "600"], **nobody)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract_name = f"ec262-test-{self.secret[:8]}"
        self.abstract.bind("\0" + self.abstract_name)
        self.abstract.listen()
        self.abstract.setblocking(False)
        self.reset()

    def reset(self) -> None:
        """Makes the files anew, open to everybody."""
        for path in self.directory.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        self.directory.chmod(0o777)
        self.canary = self.directory / "canary"
        self.canary.write_text(CANARY)
        self.canary.chmod(0o666)
        (self.directory / "canary_module.py").write_text("TEXT = 'imported'")
        self._stat = self.canary.stat()

    def facts(self) -> dict[str, Any]:
        """What a spy knows."""
        return {
            "canary": str(self.canary),
            "directory": str(self.directory),
            "port": self.server.getsockname()[1],
            "abstract": self.abstract_name,
            "victim": self.victim.pid,
            "worker": os.getpid(),
            "secret_name": self.secret_name,
            "secret_half": self.secret[:16],
        }

    def damage(self) -> list[str]:
        """What is not as it was."""
        found = []
        names = sorted(path.name for path in self.directory.iterdir() if path.name != "__pycache__")
        if names != ["canary", "canary_module.py"]:
            return [f"directory: {names}"]
        now = self.canary.stat()
        if self.canary.read_text() != CANARY or (now.st_mode, now.st_mtime_ns) != (
            self._stat.st_mode,
            self._stat.st_mtime_ns,
        ):
            found.append("the canary changed")
        if self.victim.poll() is not None:
            found.append("the victim died")
        elif os.getpriority(os.PRIO_PROCESS, self.victim.pid) != 0:
            found.append("the victim was slowed")
        for server in (self.server, self.abstract):
            try:
                server.accept()
                found.append("a connection came in")
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        """Takes the world down."""
        self.victim.kill()
        self.victim.wait()
        self.server.close()
        self.abstract.close()
        del os.environ[self.secret_name]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
    for parent in [directory, *directory.parents][:3]:
        if parent != Path("/tmp"):
            parent.chmod(0o755)
    made = World(directory)
    yield made
    made.close()


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """Sandboxes of this process (as root: they become nobody)."""
    made = Runner()
    yield made
    made.close()


@pytest.fixture(scope="session")
def other_user() -> Iterator[OtherUser]:
    """Sandboxes of an ordinary user."""
    if not IS_ROOT or sys.platform != "linux":
        pytest.skip("already an ordinary user: the other tests are that case")
    made = OtherUser()
    yield made
    made.close()


@pytest.fixture(scope="session")
def runners(request: pytest.FixtureRequest) -> Any:
    """A runner by the name of its user, started when first asked for."""
    return lambda user: request.getfixturevalue("runner" if user == "self" else "other_user")
