"""A whole network in one process tree: discovery with its store, and workers, on free loopback ports.

It starts with the first job of a program that names no discovery, serves all later ones, and ends with the program
however that ends: each process holds the other end of a pipe and leaves when the program's end of it closes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ec262
from ec262.config import core_count
from ec262.credentials import CredentialStore
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.errors import SetupError

START_S = 30.0
STOP_S = 10.0
LEAST_WORKERS = 3


@dataclass(slots=True)
class _Process:
    """A process of the network and what it said when it was ready."""

    process: subprocess.Popen[bytes]
    ready: dict[str, object]


class EmbeddedNetwork:
    """Discovery and workers as children of this process.

    Args:
        workers: how many; default one a core, at least three, or ``EC262_WORKERS``.

    Attributes:
        url: of the discovery service.
        account_id, secret: an account to pay jobs from.
        lane: the workers' (``none`` where this machine cannot confine programs).

    Raises:
        SetupError: a process did not start; the message ends with what it wrote.
    """

    def __init__(self, workers: int | None = None) -> None:
        count = workers if workers is not None else _workers_wanted()
        self.lane = "native" if sys.platform == "linux" else "none"
        if self.lane == "none":
            warnings.warn(
                "this machine cannot confine programs: the embedded network runs yours unconfined",
                RuntimeWarning,
                stacklevel=2,
            )
        # The store removes this directory when it ends, also after a kill -9 of this process.
        self._directory = Path(tempfile.mkdtemp(prefix="ec262-"))
        self._home = self._directory / "home"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - nameless: it is gone with the last process that has it
        self._processes: list[_Process] = []
        self._lock = threading.Lock()
        self.url = self.account_id = self.secret = ""
        try:
            self._start(count)
        except BaseException:
            self.close()
            raise

    def _start(self, count: int) -> None:
        flags = ["--network", "private", "--port", "0", "--ephemeral", "--data-dir", str(self._directory)]
        ready = self._await([self._spawn(["discovery", *flags], "discovery")])[0]
        self.url = str(ready["url"])
        with DiscoveryClient(self.url) as client:
            account = create_account_at(client, "foreman")
            self.account_id, self.secret = account.account_id, account.secret
        with DiscoveryClient(self.url) as client:
            CredentialStore(self._home, environ={}).ensure_account(
                self.url, lambda: create_account_at(client, "workers")
            )
        worker = ["ec262.worker", "--port", "0", "--slots", "1", "--discovery", self.url, "--sandbox", self.lane]
        self._await([self._spawn(worker, "worker") for _ in range(count)])

    @property
    def workers(self) -> list[tuple[int, str]]:
        """Process id and worker id of each worker."""
        return [(item.process.pid, str(item.ready["worker_id"])) for item in self._processes[1:]]

    @property
    def discovery_pid(self) -> int:
        """Process id of discovery."""
        return self._processes[0].process.pid

    @property
    def alive(self) -> bool:
        """Whether discovery still runs."""
        return bool(self._processes) and self._processes[0].process.poll() is None

    def close(self) -> None:
        """Ends every process and removes what they wrote. May be called twice."""
        with self._lock:
            processes, self._processes = self._processes, []
        workers, discovery = processes[1:], processes[:1]
        for group in (workers, discovery):  # workers first, so that they can say goodbye
            for item in group:
                _let_go(item.process)
            deadline = time.monotonic() + STOP_S
            for item in group:
                try:
                    item.process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    item.process.kill()
                    item.process.wait()
        self._log.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def forget(self) -> None:
        """In a forked child: drops this process's ends of the pipes, so that the network ends with the parent alone."""
        for item in self._processes:
            _let_go(item.process)
        self._processes = []

    def _spawn(self, module_and_flags: Sequence[str], what: str) -> _Process:
        root = str(Path(ec262.__file__).resolve().parent.parent)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("EC262_DISCOVERY", "EC262_ACCOUNT", "EC262_SECRET")
        }
        environment["EC262_HOME"] = str(self._home)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *module_and_flags, "--report-ready", "--parent-pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            # Ctrl-C in the terminal is the program's to handle: it still needs the network to settle.
            start_new_session=True,
        )
        item = _Process(process, {"what": what})
        self._processes.append(item)
        return item

    def _await(self, items: Sequence[_Process]) -> list[dict[str, object]]:
        """Reads the line each process writes when it is ready."""
        deadline = time.monotonic() + START_S
        for item in items:
            item.ready = self._read_ready(item.process, str(item.ready["what"]), deadline)
        return [item.ready for item in items]

    def _read_ready(self, process: subprocess.Popen[bytes], what: str, deadline: float) -> dict[str, object]:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise SetupError(f"the embedded network's {what} did not start in {START_S:g} s{self._log_tail()}")
            piece = os.read(process.stdout.fileno(), 4096)
            if not piece:
                raise SetupError(f"the embedded network's {what} ended at once{self._log_tail()}")
            line += piece
        ready = json.loads(line)
        return dict(ready)

    def _log_tail(self) -> str:
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip()
        return f"; it wrote:\n{text[-2000:]}" if text else ""


_network: EmbeddedNetwork | None = None
_lock = threading.Lock()


def embedded_network() -> EmbeddedNetwork:
    """The network of this process; started at the first call, ended with the process.

    Raises:
        SetupError: it cannot be started.
    """
    global _network
    with _lock:
        if _network is not None and not _network.alive:
            _network.close()
            _network = None
        if _network is None:
            _network = EmbeddedNetwork()
            atexit.register(_network.close)
            os.register_at_fork(after_in_child=_forget)
        return _network


def _forget() -> None:
    global _network, _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    if _network is not None:
        atexit.unregister(_network.close)
        _network.forget()
        _network = None


def _workers_wanted() -> int:
    text = os.environ.get("EC262_WORKERS", "")
    if not text:
        return max(LEAST_WORKERS, core_count())
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise SetupError(f"EC262_WORKERS={text!r}: has to be a number from 1 to 1024")
    return int(text)


def _let_go(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
