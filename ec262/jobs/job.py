"""Job: the handle a user holds on a job that runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

from ec262.backends.base import Backend, Tally
from ec262.errors import EC262Error
from ec262.jobs.checkpoint import Checkpoint
from ec262.jobs.driver import Plan, Results, open_source, run_stages
from ec262.jobs.report import Meter, Progress, ProgressCallback, Report
from ec262.policy import Policy
from ec262.storage.inputs import FileInput
from ec262.storage.output import OutputFiles

CANCEL_S = 20.0
"""How long a program that ends waits for its job to settle what is done."""

Connect = Callable[[Policy, Tally, Callable[[], None]], Backend]
"""Makes the backend of a job: its policy, where to write what there is to show, what to call when there is more."""


class Job:
    """A job, in the background unless it is `inline`.

    Everything a backend does happens in one thread of the job's own: the program that started it is not patched, and
    may use threads, asyncio or nothing of the kind.

    Args:
        output: URL of files to write results to; None: they are kept for `result`.
        inline: runs the whole job before this returns, in the calling thread; what it fails of is raised here.
    """

    def __init__(
        self,
        plan: Plan,
        connect: Connect,
        *,
        output: OutputFiles | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: ProgressCallback | None = None,
        inline: bool = False,
    ) -> None:
        self._plan = plan
        self._output = output
        self._checkpoint = Path(checkpoint) if checkpoint is not None else None
        self._meter = Meter(progress)
        self._tally = Tally(stages=len(plan.programs))
        self._connect = connect
        self._backend: Backend | None = None
        self._started_s = self._phase_started_s = time.monotonic()
        self._phase: tuple[int, str, int] = (0, "starting", 0)
        self._elapsed_s = 0.0
        self._cancelled = False
        self._results: Results | None = None
        self._kept: Checkpoint | None = None
        self._files: tuple[str, ...] = ()
        self._failure: BaseException | None = None
        self._over = threading.Event()
        # What is wrong with the input or the output is said here, where the call stands. An iterable may take its time.
        if output is not None:
            output.check()
        self._source = open_source(plan) if isinstance(plan.data, FileInput | Sized) else None
        self._thread: threading.Thread | None = None
        if inline:
            self._run()
            if self._failure is not None:
                raise self._failure
        else:
            self._thread = threading.Thread(target=self._run, name="ec262-job", daemon=True)
            self._thread.start()

    # --- what the user calls ---

    def result(self, timeout_s: float | None = None) -> dict[Any, Any]:
        """Waits for the job to end; the result, keys in canonical order. Empty if the job writes files.

        Raises:
            TimeoutError: not done after `timeout_s`; the job goes on.
            EC262Error: what the job failed of, see `ec262.errors`.
        """
        self._wait_for_success(timeout_s)
        return self._results.as_dict() if self._results is not None else {}

    def pairs(self, timeout_s: float | None = None) -> Iterator[tuple[Any, Any]]:
        """Waits for the job to end; the result's (key, value) pairs one after the other, in canonical order of keys.

        For results that do not fit in memory: they stay in the spool until they are asked for. Raises as `result`.
        """
        self._wait_for_success(timeout_s)
        return self._results.pairs() if self._results is not None else iter(())

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the job to end, well or not; False when it has not after `timeout_s`."""
        return self._over.wait(timeout_s)

    def done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self._over.is_set()

    def cancel(self) -> None:
        """Ends the job: settles what is done, has the rest given back. Returns at once; see `JobCancelled`."""
        self._cancelled = True
        backend = self._backend
        if backend is not None:
            backend.cancel()

    def close(self) -> None:
        """Lets go of results that were kept for `result` and `pairs`; a job that runs is cancelled first."""
        if not self.done():
            self.cancel()
            self.wait()
        if self._results is not None:
            self._results.close()

    def progress(self) -> Progress:
        """The job at this moment."""
        tally = self._tally
        now = time.monotonic()
        phase = (tally.stage, tally.phase, 0)
        if phase[:2] != self._phase[:2]:
            self._phase, self._phase_started_s = (*phase[:2], tally.done), now
        left = None
        fresh = tally.done - self._phase[2]  # what a checkpoint brought along says nothing about speed
        if tally.phase in ("map", "reduce") and fresh > 0 and tally.total is not None:
            left = (now - self._phase_started_s) / fresh * (tally.total - tally.done)
        return Progress(
            phase=tally.phase,
            stage=tally.stage,
            stages=tally.stages,
            done=tally.done,
            total=tally.total,
            running=tally.running,
            failed=len(tally.failed),
            retried=tally.retried,
            workers=tuple(tally.workers),
            bytes_in=tally.bytes_in,
            bytes_out=tally.bytes_out,
            bytes_spilled=tally.bytes_spilled,
            credits_spent=tally.credits_spent,
            counters=dict(tally.counters),
            elapsed_s=(self._elapsed_s or now - self._started_s),
            seconds_left=left,
            believed=tally.believed,
        )

    def counters(self) -> dict[str, int]:
        """What the program counted, by name; whole once the job is done."""
        return dict(self._tally.counters)

    def report(self) -> Report:
        """What the job did and cost, and who earned it; whole once the job is done."""
        tally = self._tally
        earned = dict(tally.earned)
        return Report(
            map_tasks=tally.map_tasks,
            reduce_tasks=tally.reduce_tasks,
            retried=tally.retried,
            credits_spent=tally.credits_spent,
            earned=dict(sorted(earned.items(), key=lambda item: (-item[1], item[0]))),
            dissenters=tuple(sorted(tally.dissenters)),
            elapsed_s=self._elapsed_s or time.monotonic() - self._started_s,
            balance_before=tally.balance_before,
            balance_after=tally.balance_after,
            counters=dict(tally.counters),
            failed=tuple(tally.failed),
            files=self._files,
            believed=tally.believed,
        )

    # --- in the job's thread ---

    def _run(self) -> None:
        try:
            self._results, self._kept = run_stages(
                self._plan, self._source, self._tally, self._connected, self._checkpoint
            )
            if self._output is not None:
                self._write(self._output, self._results)
                self._results.close()
                self._results = None
        except BaseException as reason:  # it reaches the user by result(), whatever it is
            self._failure = reason
        finally:
            self._elapsed_s = time.monotonic() - self._started_s
            self._tally.phase = "done"
            try:
                if self._kept is not None:
                    self._kept.close()
                self._meter.show(self.progress())
            finally:
                self._over.set()  # whatever else goes wrong: somebody waits for this

    def _connected(self) -> Backend:
        backend = self._backend = self._connect(self._plan.policy, self._tally, self._changed)
        if self._cancelled:
            backend.cancel()
        return backend

    def _changed(self) -> None:
        if self._meter.is_due(self._tally.stage, self._tally.phase):
            self._meter.show(self.progress())

    def _write(self, output: OutputFiles, results: Results) -> None:
        """Publishes the results as files, one a partition."""
        self._tally.phase, self._tally.total, self._tally.done = "writing", results.partitions, 0
        self._changed()
        output.begin(results.partitions)
        try:
            for index in range(results.partitions):
                output.write_batches(index, results.batches(index))
                self._tally.done += 1
                self._changed()
            self._files = tuple(output.finish(ordered=results.ordered))
        except BaseException:
            output.abort()
            raise

    def _wait_for_success(self, timeout_s: float | None) -> None:
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"the job is not done after {timeout_s} s; it goes on")
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self._results is None and self._output is None:
            raise EC262Error("the job's results were closed")
