"""The local backend: every task in this process, one after the other, in the thread that asked. A debugger works."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable

from ec262.backends.base import Backend, PhaseName, Stage, Unit, run_phases
from ec262.backends.spool import Spool
from ec262.errors import EC262Error, JobCancelled, ProgramError, TaskFailed
from ec262.mapreduce.program import execute

DIGEST = "local"
"""No program travels, so none needs a digest."""


class LocalBackend(Backend):
    """Sequential, in this process: the functions run as they are, with all that their module may import."""

    def run_stage(self, stage: Stage) -> Spool:
        """See `Backend`."""

        def run(
            phase: PhaseName,
            units: Iterable[Unit],
            count: int | None,
            done: Callable[[Unit, list[bytes]], None],
            spool: Spool,
        ) -> None:
            for unit in units:
                if self._cancelled:
                    raise JobCancelled("the job was cancelled")
                self.tally.running = 1
                try:
                    made = self._compute(stage, unit)
                except ProgramError as reason:
                    self.skip(stage, unit, spool, reason)
                else:
                    self.tally.bytes_out += sum(map(len, made))
                    done(unit, made)
                self.tally.done = len(spool)
                self.changed()
            self.tally.done = self.tally.total = len(spool)
            self.tally.running = 0

        return run_phases(self, stage, DIGEST, run)

    def _compute(self, stage: Stage, unit: Unit) -> list[bytes]:
        parts = unit.load()
        self.tally.bytes_in += sum(map(len, parts))
        try:
            return execute(stage.program, parts)
        except EC262Error:
            raise
        except (Exception, SystemExit) as reason:
            # As on a worker; the cause has the frames, for a debugger's post mortem.
            name = type(reason).__name__
            raise TaskFailed(
                f"{unit.label()}: {name}: {reason}", error_type=name, remote_traceback=traceback.format_exc()
            ) from reason
