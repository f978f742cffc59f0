"""A Dask cluster of this machine's own, in a process of its own.

Dask starts its workers with multiprocessing, which runs the user's script once more in each of them; scripts without
``if __name__ == "__main__"`` would start the job again. The cluster's own process has no script. It ends with its
parent, however that ends, and the workers with it.
"""

# mypy: allow-untyped-calls
# Much of Dask has no annotations.

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from ec262.backends.children import kill_group, start_python
from ec262.errors import JobCancelled, SetupError

_START_S: Final = 120.0
_CLOSE_S: Final = 10.0
_TICK_S: Final = 0.2
_WORKER_S: Final = 0.5
_PRELOAD: Final = "import gc; gc.set_threshold(200_000, 50, 50)"
"""As in the sandbox's child: data are hardly ever cycles."""


class OwnCluster:
    """A running cluster with one thread a worker.

    Args:
        workers: how many.
        deaths: how many workers a task may take along before it has failed.
        stop: asked while it starts; True ends that.

    Raises:
        SetupError: it does not start.
        JobCancelled: `stop` said so.
    """

    def __init__(self, workers: int, deaths: int, stop: Callable[[], bool]) -> None:
        self._directory = tempfile.mkdtemp(prefix="ec262-dask-")
        self._channel, theirs = socket.socketpair()
        try:
            self.process = start_python("dask_cluster", theirs)
        except BaseException:
            self._channel.close()
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        finally:
            theirs.close()
        try:
            options = {"workers": workers, "deaths": deaths, "directory": self._directory}
            self._channel.sendall(json.dumps(options).encode() + b"\n")
            self.address = self._await_address(stop)
        except BaseException:
            self.close()
            raise

    def _await_address(self, stop: Callable[[], bool]) -> str:
        said = b""
        until = time.monotonic() + _START_S
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while not said.endswith(b"\n"):
            if stop():
                raise JobCancelled("the job was cancelled")
            if poll.poll(_TICK_S * 1000):
                chunk = b""
                with contextlib.suppress(ConnectionError):
                    chunk = self._channel.recv(4096)
                if not chunk:
                    raise SetupError("Dask's cluster on this machine did not start; see what it printed")
                said += chunk
            elif time.monotonic() > until:
                raise SetupError(f"Dask's cluster on this machine did not start within {_START_S:.0f} s")
        return said.decode().strip()

    def close(self) -> None:
        """Ends the cluster with all its processes; nothing is left."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_CLOSE_S)
        kill_group(self.process)
        self._channel.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def main(descriptor: int, parent: int) -> NoReturn:
    """The cluster's process: serves until the other end of the socket is closed."""
    import dask  # noqa: PLC0415 - the parent imports this module and needs neither
    from distributed import LocalCluster  # noqa: PLC0415

    channel = socket.socket(fileno=descriptor)
    channel.setblocking(True)
    options = json.loads(channel.makefile().readline() or "{}")
    if not options:
        sys.exit(0)
    dask.config.set(
        {"distributed.scheduler.allowed-failures": options["deaths"], "distributed.worker.profile.enabled": False}
    )
    cluster = LocalCluster(
        n_workers=options["workers"],
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        worker_dashboard_address=None,
        # Without a dashboard there is an HTTP server still, on the port that a cluster of the user's may want.
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=logging.CRITICAL,
        local_directory=options["directory"],
        preload=[_PRELOAD],
    )
    try:
        channel.sendall(f"{cluster.scheduler_address}\n".encode())
        while channel.recv(4096):
            pass
    except OSError:
        pass
    cluster.sync(_end_workers, cluster)
    cluster.close()
    shutil.rmtree(options["directory"], ignore_errors=True)  # the parent may be gone
    sys.exit(0)


async def _end_workers(cluster: Any) -> None:
    """Ends workers that are at a task, for which Dask by itself would wait some seconds."""
    ends = [nanny.close(timeout=_WORKER_S) for nanny in cluster.workers.values()]
    await asyncio.gather(*ends, return_exceptions=True)
