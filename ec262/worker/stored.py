"""Shared storage: the input of a task that came without its data is read here, outside the sandbox."""

from __future__ import annotations

import time
from pathlib import Path

import gevent
from gevent.threadpool import ThreadPool

from ec262.config import WorkerSettings, home_directory
from ec262.errors import Malformed, SetupError, TicketRefused
from ec262.mapreduce.records import Reader
from ec262.protocol.canonical import decode_value, encode_value
from ec262.storage.data_dir import DataDir, DataRefused

_CLOSE_S = 0.5


class StoredInputs:
    """The storages a worker serves.

    Args:
        settings: which, and how much of them a task may read.
        home: where this machine's credentials are: no job shall read these.

    Raises:
        SetupError: one that is not there, or that has the credentials in it.
    """

    def __init__(self, settings: WorkerSettings, home: Path | None = None) -> None:
        self._settings = settings
        self._served = {name: DataDir(root, max_bytes=settings.read_bytes) for name, root in settings.data_dirs}
        kept = home or home_directory()
        for name, storage in self._served.items():
            if storage.holds(kept):
                raise SetupError(
                    f"data directory {name} has EC262's credentials in it ({kept}): every job could read them; serve a "
                    "directory below it, or move them with EC262_HOME"
                )
        self._pool: ThreadPool | None = None

    @property
    def capabilities(self) -> list[str]:
        """What the worker registers."""
        return [f"data:{name}" for name in self._served]

    def fill(self, parts: list[bytes], *, within_s: float) -> list[bytes]:
        """A task's parts with the data its header only names; other tasks' parts as they are.

        The greenlet waits; a thread reads.

        Raises:
            TicketRefused: the worker does not serve that storage, or the range cannot be read.
        """
        # Most headers name none: they are not decoded here.
        if b'"storage"' not in parts[0]:
            return parts
        spec = _spec_of(parts[0])
        if spec is None:
            return parts
        storage, path, start, end = (spec.get(name) for name in ("storage", "path", "start", "end"))
        served = self._served.get(storage) if type(storage) is str else None
        if served is None:
            raise TicketRefused(f"this worker does not serve storage {storage!r:.80}")
        if len(parts) != 1 or spec.get("format") != "records":
            raise TicketRefused("a task that names a storage and brings data as well")
        try:
            reader = Reader.from_wire(spec.get("reader"))  # type: ignore[arg-type]
            offset, data = self._read(served, path, start, end, reader, within_s)
        except Malformed as reason:
            raise TicketRefused(f"storage {storage}: {reason}") from None
        except DataRefused as reason:
            raise TicketRefused(f"storage {storage}: {reason}") from None
        except gevent.Timeout:
            raise TicketRefused(f"storage {storage}: reading took longer than {within_s:.0f} s") from None
        return [parts[0], data, encode_value(offset)]

    def _read(
        self, served: DataDir, path: object, start: object, end: object, reader: Reader, within_s: float
    ) -> tuple[int, bytes]:
        if self._pool is None:
            # Twice as many as slots: one that hangs (a file server that is gone) shall not stop all.
            self._pool = ThreadPool(min(2 * self._settings.slots, 64))
        deadline = time.monotonic() + within_s

        def read() -> tuple[int, bytes] | Exception:
            # The pool would print what its thread raises, with a traceback, as if that were a fault of the worker.
            try:
                return served.read(path, start, end, reader, deadline=deadline)  # type: ignore[arg-type]
            except (Malformed, DataRefused) as reason:
                return reason

        # The timeout is raised here and not swallowed by the pool; the thread looks at the deadline between its reads.
        with gevent.Timeout(within_s):
            outcome = self._pool.spawn(read).get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    def close(self) -> None:
        """Lets the threads go; one that hangs ends with the process."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with gevent.Timeout(_CLOSE_S, False):
                pool.kill()


def _spec_of(header: bytes) -> dict[str, object] | None:
    try:
        fields = decode_value(header)
    except Malformed:
        return None  # the sandbox says what is wrong with it
    spec = fields.get("input") if type(fields) is dict else None
    return spec if type(spec) is dict and "storage" in spec else None
