"""A stage whose map results stay on the Dask cluster: Dask moves them from the mappers to the reducers.

Dask moves whole results, so each map result is cut into *groups* of partitions, and a reduce call takes one group of
every map result. A group is one partition as long as there are few; maps times groups is bounded, for each is a call
that the scheduler knows of. Of a map task only its facts come here, of a reduce call its results, one call after the
other; what is not wanted any more is released at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ec262.backends.base import Stage, Unit, map_units, open_spool, reduce_unit
from ec262.backends.dask_phase import BATCH, BATCH_BYTES, WINDOW, source_of
from ec262.backends.dask_tasks import Facts, Source, piece, run_map, run_reduces
from ec262.backends.spool import Spool
from ec262.errors import EC262Error, ProgramError
from ec262.mapreduce.program import reduce_header, split_counters

if TYPE_CHECKING:
    from distributed import Future

    from ec262.backends.dask import DaskBackend

MOST_PIECES: Final = 100_000
"""Calls that cut map results, about, in a stage."""
_FEW_GROUPS: Final = 64
"""Groups, where nobody knows how many map tasks there will be."""


class Shuffle:
    """One stage.

    Args:
        backend: whose.
        program: the packed program, on the cluster.
    """

    def __init__(self, backend: DaskBackend, stage: Stage, digest: str, program: Future[Any]) -> None:
        self._backend = backend
        self._stage = stage
        self._digest = digest
        self._program = program
        most = max(1, MOST_PIECES // max(1, stage.count)) if stage.count is not None else _FEW_GROUPS
        groups = min(stage.partitions, most)
        self._borders = [at * stage.partitions // groups for at in range(groups + 1)]
        self._pieces: list[dict[int, Future[Any]]] = [{} for _ in range(groups)]  # by map task, for each group
        self._filled = 0  # partitions with something in them, a bit each
        self._running: dict[str, tuple[Future[Any], Any]] = {}
        self._before = dict(backend.tally.counters)
        self._counts: dict[str, int] = {}
        self._batch: list[tuple[Unit, Source, int, bool]] = []

    def run(self) -> Spool:
        """Computes it; row r of the spool is the result of partition r."""
        stage = self._stage
        results = open_spool(stage, "reduce")
        maps = open_spool(stage, "map")  # a row without parts for each map task that is done
        try:
            self._map(maps)
            self._reduce(results, maps)
        except BaseException:
            self._backend.give_up(
                [future for future, _ in self._running.values()]
                + [future for pieces in self._pieces for future in pieces.values()]
            )
            results.close()
            raise
        finally:
            maps.close()
        return results

    # --- map ---

    def _map(self, maps: Spool) -> None:
        backend, stage = self._backend, self._stage
        tally = backend.tally
        tally.stage, tally.phase, tally.total, tally.done, tally.running = stage.number, "map", stage.count, 0, 0
        backend.changed()
        units: Iterator[Unit] = map_units(stage, self._digest, maps)
        window = max(WINDOW, 4 * backend.threads)
        exhausted = False
        while True:
            while not exhausted and len(self._running) + len(self._batch) < window:
                unit = next(units, None)
                if unit is None:
                    exhausted = True
                else:
                    self._add_map(unit, carried=False)
                    backend.ended_check()
            self._post_maps()
            tally.running = min(len(self._running), backend.threads)
            if not self._running:
                break
            futures = backend.ended()
            known = backend.results_of(futures)
            for future in futures:
                key = str(future.key)
                if key in self._running:
                    self._take_map(*self._running.pop(key), maps, known.get(key))
            tally.done = len(maps)
            backend.show()
        tally.done = tally.total = len(maps)
        tally.map_tasks += len(maps)

    def _add_map(self, unit: Unit, *, carried: bool) -> None:
        """Has a task go with the next message; at once, if workers may be waiting."""
        source, size = source_of(unit, carried=carried)
        self._batch.append((unit, source, size, carried))
        large = sum(size for _, _, size, _ in self._batch) >= BATCH_BYTES
        if large or len(self._batch) >= BATCH or len(self._running) < self._backend.threads:
            self._post_maps()

    def _post_maps(self) -> None:
        backend, batch, self._batch = self._backend, self._batch, []
        if not batch:
            return
        prefix = f"map-{self._stage.number}"
        names = [f"{prefix}-{unit.number}{'-carried' if carried else ''}" for unit, _, _, carried in batch]
        made = backend.submit_all(
            run_map,
            [self._program] * len(batch),
            [source for _, source, _, _ in batch],
            [self._borders] * len(batch),
            names=names,
            size=sum(size for _, _, size, _ in batch),
            watched=False,
        )
        places = range(len(self._pieces) + 1)  # the facts are the last
        cut = backend.submit_all(
            piece,
            [each for each in made for _ in places],
            [at for _ in made for at in places],
            names=[f"{name}-{at}" for name in names for at in places],
            watched=False,
            priority=1,  # before further maps: it lets go of the whole
        )
        for (unit, _, _, _), start in zip(batch, range(0, len(cut), len(places)), strict=True):
            *pieces, facts = cut[start : start + len(places)]
            for known, future in zip(self._pieces, pieces, strict=True):
                known[unit.number] = future
            self._running[str(facts.key)] = (facts, unit)
            backend.watch(facts)

    def _take_map(self, future: Future[Any], unit: Unit, maps: Spool, known: Facts | None) -> None:
        backend, stage = self._backend, self._stage
        try:
            facts = known or backend.result_of(future, unit)
            if facts["state"] == "unread":
                self._add_map(unit, carried=True)
                return
            failure: EC262Error | None = backend.judge(facts, unit)
        except ProgramError as reason:
            facts, failure = {}, reason
        if failure is not None:
            backend.skip(stage, unit, maps, failure)
            for pieces in self._pieces:
                del pieces[unit.number]
            return
        maps.put(unit.number, [], facts["counts"])
        self._filled |= facts["filled"]
        self._count(facts["counts"])

    def _count(self, counts: dict[str, int]) -> None:
        if not counts:
            return
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count
        names = sorted({*self._before, *self._counts})
        self._backend.tally.counters = {name: self._before.get(name, 0) + self._counts.get(name, 0) for name in names}

    # --- reduce ---

    def _reduce(self, results: Spool, maps: Spool) -> None:
        backend, tally = self._backend, self._backend.tally
        wanted = self._filled.bit_count()
        tally.phase, tally.total, tally.done, tally.running = "reduce", wanted, 0, 0
        backend.changed()
        waiting = deque(group for group in range(len(self._pieces)) if self._bits_of(group))
        window = max(8, 3 * backend.threads)
        while True:
            while waiting and len(self._running) < window:
                self._give_reduce(waiting.popleft())
            tally.running = min(len(self._running), backend.threads)
            if not self._running:
                break
            for future in backend.ended():
                if str(future.key) in self._running:
                    self._take_reduces(*self._running.pop(str(future.key)), results, maps)
            tally.done = len(results)
            tally.bytes_spilled = results.spilled
            backend.show()
        tally.done = tally.total = len(results)
        tally.reduce_tasks += wanted

    def _bits_of(self, group: int) -> int:
        first, last = self._borders[group], self._borders[group + 1]
        return (self._filled >> first) & ((1 << (last - first)) - 1)

    def _give_reduce(self, group: int) -> None:
        partitions = range(self._borders[group], self._borders[group + 1])
        headers = [reduce_header(self._digest, index=index) for index in partitions]
        pieces = [future for _, future in sorted(self._pieces[group].items())]
        future = self._backend.submit(
            run_reduces, self._program, headers, pieces, name=f"reduce-{self._stage.number}-{group}"
        )
        self._running[str(future.key)] = (future, group)
        self._pieces[group] = {}  # Dask keeps them for the call

    def _take_reduces(self, future: Future[Any], group: int, results: Spool, maps: Spool) -> None:
        backend, stage = self._backend, self._stage
        units = [
            reduce_unit(self._digest, index, maps) for index in range(self._borders[group], self._borders[group + 1])
        ]
        try:
            made = backend.result_of(future, units[0])
        except ProgramError as reason:  # it took its worker along
            for unit in units:
                if self._filled >> unit.number & 1:
                    backend.skip(stage, unit, results, reason)
            return
        for unit, each in zip(units, made, strict=True):
            if each is None:
                continue
            facts, parts = each
            failure = backend.judge(facts, unit)
            if failure is not None:
                backend.skip(stage, unit, results, failure)
                continue
            parts, counts = split_counters(parts, 1)
            results.put(unit.number, parts, counts)
            self._count(counts)
