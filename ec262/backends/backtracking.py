"""Backtracking: what becomes of a stage's results when some of them no longer hold and are computed anew.

A map task whose new result is the old one changes nothing. Where it is another, the reduce tasks that used a part that
changed lose their results, and are run again. Nothing here talks to the network; `ec262.backends.network` does.

Map tasks may be wanted again until the stage ends. Files are read again; what was given as pairs is kept for that in a
spool of its own, within the job's memory limit and beyond it on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ec262.backends.base import Stage, Tally, Unit, count, reduce_unit, tag_of
from ec262.backends.spool import Spool
from ec262.mapreduce.program import split_counters
from ec262.mapreduce.split import PairsSplit


class Backtracking:
    """The results of one stage, and how to replace them.

    Args:
        digest: of the stage's program.
        disown: called with phase and number of a task whose result is not used any more.
    """

    def __init__(self, stage: Stage, digest: str, tally: Tally, disown: Callable[[tuple[str, int]], None]) -> None:
        self._stage = stage
        self._digest = digest
        self._tally = tally
        self._disown = disown
        self._units: dict[int, Unit] = {}
        self._inputs = Spool(stage.memory)
        self.maps: Spool | None = None
        self.results: Spool | None = None

    def close(self) -> None:
        """Lets go of inputs."""
        self._inputs.close()

    def seen(self, unit: Unit) -> Unit:
        """Remembers how a map task is loaded; gives the unit to be run, which needs no more memory than that."""
        if unit.split is not None and isinstance(unit.split, PairsSplit):
            self._inputs.put(unit.number, unit.load())
            load, label = partial(self._inputs.row, unit.number), partial(self._label, unit.number)
            tag = tag_of(self._stage, unit)
            unit = Unit(unit.number, "map", load, label, tag=tag)
        self._units[unit.number] = unit
        return unit

    def unit(self, phase: str, number: int) -> Unit:
        """A task of the stage, to be computed anew."""
        assert self.maps is not None
        made = self._units[number] if phase == "map" else reduce_unit(self._digest, number, self.maps)
        return Unit(number, made.phase, made.load, partial(_anew, made.label), made.split, made.tag)

    def missing(self) -> list[int]:
        """Reduce partitions that have something to reduce, and no result."""
        assert self.maps is not None
        assert self.results is not None
        results = self.results
        return [
            index for index in range(self._stage.partitions) if index not in results and self.maps.column_size(index)
        ]

    def replace(self, unit: Unit, made: list[bytes]) -> None:
        """A task that was computed anew has another result than before."""
        spool, width = self._spool(unit), self._stage.partitions if unit.phase == "map" else 1
        parts, counts = split_counters(made, width)
        self.uncount(unit)
        self.before_new_parts(unit, parts)
        spool.put(unit.number, parts, counts, tag_of(self._stage, unit), instead=True)
        count(self._stage, self._tally, counts)

    def uncount(self, unit: Unit) -> None:
        """What the task's present result counted, or that it was left out, is no longer so."""
        counts = self._spool(unit).counts_of(unit.number)
        count(self._stage, self._tally, counts, -1)
        place = (self._stage.number, unit.phase, unit.number)
        self._tally.failed = [each for each in self._tally.failed if (each.stage, each.phase, each.number) != place]

    def before_new_parts(self, unit: Unit, parts: list[bytes]) -> None:
        """A map task's parts will be these: reduce tasks that used others have no result any more.

        They lose it first: were the program killed in between, they would be run again, not left as they are.
        """
        if unit.phase != "map" or self.results is None:
            return
        old = self._spool(unit).row(unit.number)
        for index, (before, after) in enumerate(zip(old, parts, strict=True)):
            if before != after and index in self.results:
                self._disown(("reduce", index))
                self.uncount(Unit(index, "reduce", list, str))
                self.results.drop(index)

    def _spool(self, unit: Unit) -> Spool:
        spool = self.maps if unit.phase == "map" else self.results
        assert spool is not None
        return spool

    def _label(self, number: int) -> str:
        _, data = self._inputs.row(number)
        return f"map task {number} ({PairsSplit(data).label()})"


def _anew(label: Callable[[], str]) -> str:
    return f"{label()}, computed anew"
