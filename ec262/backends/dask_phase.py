"""A phase on a Dask cluster whose results come through the job's spool, and how tasks are put into messages."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from ec262.backends.base import PhaseName, Stage, Unit
from ec262.backends.dask_tasks import Facts, Source, run_task
from ec262.backends.spool import Spool
from ec262.errors import ProgramError

if TYPE_CHECKING:
    from distributed import Future

    from ec262.backends.dask import DaskBackend

BATCH: Final = 16
BATCH_BYTES: Final = 1024 * 1024
"""So many tasks, or bytes of them, go to Dask at once: each message costs some milliseconds."""
WINDOW: Final = 64
"""Tasks that Dask has at a time, at least, so that it can plan."""
_WINDOW_BYTES: Final = 128 * 1024 * 1024
"""Of tasks of so many bytes together it gets no more."""


def source_of(unit: Unit, *, carried: bool) -> tuple[Source, int]:
    """A task's input for a worker, and bytes of it: what loads it, if that can travel, or else the parts.

    Args:
        carried: the parts, by all means.
    """
    if unit.split is not None and unit.split.anywhere and not carried:
        with contextlib.suppress(pickle.PicklingError, TypeError, AttributeError):
            pickled = pickle.dumps(unit.load, protocol=pickle.HIGHEST_PROTOCOL)
            return pickled, len(pickled)
    parts = unit.load()
    return parts, sum(map(len, parts))


class DaskPhase:
    """The tasks of a phase, whose results come through the job's spool."""

    def __init__(
        self,
        backend: DaskBackend,
        stage: Stage,
        phase: PhaseName,
        program: Future[Any],
        done: Callable[[Unit, list[bytes]], None],
        spool: Spool,
    ) -> None:
        self._backend = backend
        self._stage = stage
        self._phase = phase
        self._program = program
        self._done = done
        self._spool = spool
        self._running: dict[str, tuple[Future[Any], Unit, int]] = {}  # by key, with the bytes under way
        self._bytes = 0
        self._batch: list[tuple[Unit, Source, int, bool]] = []

    def run(self, units: Iterable[Unit]) -> None:
        """Until every task has its result or is left out."""
        backend, tally = self._backend, self._backend.tally
        waiting = iter(units)
        exhausted = False
        window = max(WINDOW, 4 * backend.threads)
        try:
            while True:
                while not exhausted and len(self._running) + len(self._batch) < window and self._bytes < _WINDOW_BYTES:
                    unit = next(waiting, None)
                    if unit is None:
                        exhausted = True
                    else:
                        self._add(unit, carried=False)
                        backend.ended_check()
                self._post()
                tally.running = min(len(self._running), backend.threads)
                if not self._running:
                    break
                futures = backend.ended(BATCH)
                known = backend.results_of(futures)
                for future in futures:
                    key = str(future.key)
                    if key in self._running:
                        self._take(*self._running.pop(key), known.pop(key, None))
                backend.show()
        except BaseException:
            backend.give_up(future for future, _, _ in self._running.values())
            raise
        tally.done = tally.total = len(self._spool)

    def _add(self, unit: Unit, *, carried: bool) -> None:
        """Has a task go with the next message; at once, if workers may be waiting."""
        source, size = source_of(unit, carried=carried)
        self._batch.append((unit, source, size, carried))
        self._bytes += size
        large = sum(size for _, _, size, _ in self._batch) >= BATCH_BYTES
        if large or len(self._batch) >= BATCH or len(self._running) < self._backend.threads:
            self._post()

    def _post(self) -> None:
        backend, batch, self._batch = self._backend, self._batch, []
        if not batch:
            return
        prefix = f"{self._phase}-{self._stage.number}"
        names = [f"{prefix}-{unit.number}{'-carried' if carried else ''}" for unit, _, _, carried in batch]
        futures = backend.submit_all(
            run_task,
            [self._program] * len(batch),
            [source for _, source, _, _ in batch],
            [backend.key(name) if backend.policy.runs_once else "" for name in names],
            names=names,
            size=sum(size for _, _, size, _ in batch),
        )
        for future, (unit, _, size, _) in zip(futures, batch, strict=True):
            self._running[str(future.key)] = (future, unit, size)

    def _take(self, future: Future[Any], unit: Unit, size: int, known: tuple[Facts, list[bytes]] | None) -> None:
        backend = self._backend
        self._bytes -= size
        try:
            facts, made = known or backend.result_of(future, unit)
        except ProgramError as reason:
            backend.skip(self._stage, unit, self._spool, reason)
        else:
            if facts["state"] == "unread":
                self._add(unit, carried=True)
                return
            failure = backend.judge(facts, unit)
            if failure is None:
                self._done(unit, made)
            else:
                backend.skip(self._stage, unit, self._spool, failure)
        backend.tally.done = len(self._spool)
