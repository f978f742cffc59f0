"""The Dask backend: tasks on a Dask cluster, one that exists or one of this machine's own.

Where the workers can load the input themselves, map results stay on the cluster and Dask shuffles them
(`ec262.backends.dask_shuffle`). Otherwise, and where results must be kept (a checkpoint) or no task may run twice, they
come through the job's spool as on other backends. Workers that are lost are Dask's business: it computes anew what they
had. It cannot end a task that takes too long, so `Policy.timeout_s` has no effect here.
"""

# mypy: allow-untyped-calls
# Much of Dask has no annotations.

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import queue
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ec262 import __version__
from ec262.backends.base import Backend, PhaseName, Stage, Tally, Unit, WorkerTally, digest_of, run_phases
from ec262.backends.dask_cluster import OwnCluster
from ec262.backends.failures import DIED, everything_here, program_failed, task_failed
from ec262.backends.spool import Spool
from ec262.errors import EC262Error, JobCancelled, JobFailed, NoWorkers, ProgramError, SetupError
from ec262.policy import Policy
from ec262.sandbox.pack import pack_program

if TYPE_CHECKING:
    from distributed import Client, Future

    from ec262.backends.dask_tasks import Facts

TICK_S: Final = 0.2
_LARGE: Final = 8 * 1024 * 1024
_CONNECT_S: Final = 10.0
_ASK_VERSION: Final = "__import__('ec262.backends.dask_tasks', fromlist=['VERSION']).VERSION"


class DaskBackend(Backend):
    """Tasks on a Dask cluster.

    Args:
        policy, tally, changed: see `Backend`.
        address: of a scheduler (``"tcp://host:8786"``), or a ``distributed.Client``; None: a cluster of this machine's
            processors, made for the job and closed after it.
        workers: how many an own cluster has; default: the usable processors.
    """

    def __init__(
        self,
        policy: Policy,
        tally: Tally,
        changed: Callable[[], None],
        *,
        address: str | Client | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__(policy, tally, changed)
        self._address = address
        self._workers = workers
        self._cluster: OwnCluster | None = None
        self._client: Client | None = None
        self._finished: dict[str, int] = {}
        self._began = time.monotonic()
        self._queue: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._job = uuid.uuid4().hex
        self.threads = 1
        """Tasks that the cluster can run at once."""

    # --- the cluster ---

    def start(self, stage: Stage) -> None:
        """See `Backend`.

        Raises:
            SetupError: Dask is not installed here, or EC262 is not on its workers.
            NoWorkers: the cluster has none.
        """
        try:
            from distributed import Client  # noqa: PLC0415 - takes half a second, and is optional
        except ImportError as reason:
            raise SetupError(f"the Dask backend needs Dask ({reason}): pip install 'ec262[dask]'") from None
        from ec262.backends.processes import usable_cpus  # noqa: PLC0415

        patched = sys.modules.get("gevent.monkey")
        if patched is not None and patched.is_module_patched("threading"):
            raise SetupError(
                "Dask needs threads, which gevent's monkey patching has replaced in this program: use "
                "backend='processes', or give the job a process of its own"
            )
        address = self._address
        if address is None:
            deaths = 0 if self.policy.runs_once else self.policy.max_retries
            self._cluster = OwnCluster(self._workers or usable_cpus(), deaths, lambda: self._cancelled)
            address = self._cluster.address
        if isinstance(address, Client):
            self._client = address
        elif isinstance(address, str):
            try:
                self._client = Client(address, timeout=_CONNECT_S, set_as_default=False)
            except (OSError, ValueError, TimeoutError) as reason:
                raise SetupError(f"no Dask scheduler answers at {address}: {reason}") from None
        else:
            raise ProgramError(
                f"address={address!r:.80}: has to be the address of a Dask scheduler, such as 'tcp://host:8786', "
                "or a distributed.Client"
            )
        self._await_workers(self._client)

    def _await_workers(self, client: Client) -> None:
        until = time.monotonic() + (120.0 if self._cluster is not None else self.policy.wait_for_workers_s)
        while not (threads := client.nthreads()):
            if self._cancelled:
                raise JobCancelled("the job was cancelled")
            if time.monotonic() > until:
                raise NoWorkers("the Dask cluster has no workers: start some, or wait longer (wait_for_workers_s)")
            time.sleep(TICK_S)
        self.threads = max(1, sum(threads.values()))
        for worker, said in client.run(eval, _ASK_VERSION, on_error="return").items():
            if isinstance(said, BaseException):
                raise SetupError(
                    f"the Dask worker {worker} cannot import EC262 ({type(said).__name__}: {said}): install "
                    f"ec262[dask] {__version__} where Dask's workers run"
                )
            if said != __version__:
                raise SetupError(f"the Dask worker {worker} has EC262 {said}, this program {__version__}")

    def close(self, *, failed: bool) -> None:
        """See `Backend`."""
        client, self._client = self._client, None
        cluster, self._cluster = self._cluster, None
        try:
            if client is not None and client is not self._address:
                with contextlib.suppress(Exception):  # a cluster that is gone already
                    client.close()
        finally:
            if cluster is not None:
                cluster.close()

    # --- a stage ---

    def run_stage(self, stage: Stage) -> Spool:
        """See `Backend`."""
        from ec262.backends.dask_phase import DaskPhase  # noqa: PLC0415 - these import Dask
        from ec262.backends.dask_shuffle import Shuffle  # noqa: PLC0415
        from ec262.backends.dask_tasks import same  # noqa: PLC0415

        packed = pack_program(stage.program, allowed=everything_here())
        digest = digest_of(packed)
        program = self.submit(same, packed, name=f"program-{stage.number}", size=len(packed), watched=False)
        splits = iter(stage.splits())
        first = next(splits, None)
        rest = splits if first is None else itertools.chain([first], splits)
        stage = dataclasses.replace(stage, splits=lambda: rest)
        loadable = first is not None and first.anywhere
        if loadable and stage.directory is None and not self.policy.runs_once:
            return Shuffle(self, stage, digest, program).run()

        def run(
            phase: PhaseName,
            units: Iterable[Unit],
            count: int | None,
            done: Callable[[Unit, list[bytes]], None],
            spool: Spool,
        ) -> None:
            DaskPhase(self, stage, phase, program, done, spool).run(units)

        return run_phases(self, stage, digest, run)

    # --- for what runs ---

    @property
    def client(self) -> Client:
        """The connection to the scheduler."""
        assert self._client is not None, "start() was not called"
        return self._client

    def submit(
        self, function: Callable[..., Any], *arguments: Any, name: str, size: int = 0, watched: bool = True
    ) -> Future[Any]:
        """Has Dask call a function; `ended` gives the future when that is over, if it is `watched`.

        Args:
            name: what the call is, once a job.
            size: bytes of the arguments.
        """
        columns = [[argument] for argument in arguments]
        return self.submit_all(function, *columns, names=[name], size=size, watched=watched)[0]

    def submit_all(
        self,
        function: Callable[..., Any],
        *columns: Sequence[Any],
        names: Sequence[str],
        size: int = 0,
        watched: bool = True,
        priority: int = 0,
    ) -> list[Future[Any]]:
        """As `submit`, of many calls in one message; one sequence for each argument of the function."""
        calls = functools.partial(
            self.client.map,
            function,
            *columns,
            key=[self.key(name) for name in names],
            pure=False,
            retries=self.policy.max_retries,
            priority=priority,
        )
        if size > _LARGE:  # Dask would warn
            import dask  # noqa: PLC0415

            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
                futures = calls()
        else:
            futures = calls()
        if watched:
            for future in futures:
                self.watch(future)
        return futures

    def key(self, name: str) -> str:
        """Dask's name of a call."""
        return f"ec262-{name}-{self._job}"

    def watch(self, future: Future[Any]) -> None:
        """Has `ended` give the future."""
        future.add_done_callback(self._queue.put)

    def ended(self, most: int = 64) -> list[Future[Any]]:
        """Futures whose calls are over, as soon as there is one, or none after a moment.

        Raises:
            JobCancelled: the job was.
            JobFailed: the cluster is gone.
        """
        futures: list[Future[Any]] = []
        with contextlib.suppress(queue.Empty):
            futures.append(self._queue.get(timeout=TICK_S))
            while len(futures) < most:
                futures.append(self._queue.get_nowait())
        if self._cancelled:
            raise JobCancelled("the job was cancelled")
        if self._cluster is not None and self._cluster.process.poll() is not None:
            raise JobFailed("Dask's cluster on this machine ended in the middle of the job")
        if self.client.status not in ("running", "connecting"):
            raise JobFailed("the connection to the Dask cluster is lost")
        return futures

    def results_of(self, futures: list[Future[Any]]) -> dict[str, Any]:
        """What calls of `ended` gave, by key, as far as that is to be had at once; in one message."""
        fine = [future for future in futures if future.status == "finished"]
        with contextlib.suppress(Exception):  # one of them has just been lost: `result_of` will say
            return dict(zip([str(future.key) for future in fine], self.client.gather(fine), strict=True))
        return {}

    def result_of(self, future: Future[Any], unit: Unit) -> Any:
        """What a call of `ended` gives, sooner or later.

        Raises:
            TaskFailed: its workers died of it.
            JobFailed: Dask did not manage.
            JobCancelled: the job was.
        """
        from distributed import CancelledError, KilledWorker  # noqa: PLC0415

        while True:
            try:
                return future.result(timeout=TICK_S * 5)
            except TimeoutError as reason:
                if future.status == "error":  # it is the call's own
                    raise JobFailed(f"{unit.label()}: Dask: {reason!r}") from reason
                self.ended_check()
            except KilledWorker:
                raise task_failed(unit.label(), DIED, "the Dask workers that computed it died") from None
            except CancelledError:
                raise JobFailed(f"{unit.label()}: the Dask cluster gave it up; is it being shut down?") from None
            except Exception as reason:
                raise JobFailed(f"{unit.label()}: Dask: {type(reason).__name__}: {reason}") from reason

    def ended_check(self) -> None:
        """Raises `JobCancelled` if the job was."""
        if self._cancelled:
            raise JobCancelled("the job was cancelled")

    def judge(self, facts: Facts, unit: Unit) -> EC262Error | None:
        """Takes a task's facts into the tally; why it has failed, if it has."""
        tally = self.tally
        tally.bytes_in += facts["loaded"]
        tally.bytes_out += facts["made"]
        worker = facts["worker"]
        self._finished[worker] = self._finished.get(worker, 0) + 1
        if facts["state"] == "failed":
            return program_failed(unit.label(), facts["error"])
        if facts["state"] == "again":
            text = "the Dask worker that computed it was lost, and it must not run again (max_retries=0)"
            return task_failed(unit.label(), DIED, text)
        return None

    def show(self) -> None:
        """Brings the tally's workers up to date."""
        elapsed = max(time.monotonic() - self._began, 1e-6)
        self.tally.workers = [
            WorkerTally(worker, 0, finished, finished / elapsed) for worker, finished in self._finished.items()
        ]
        self.changed()

    def give_up(self, futures: Iterable[Future[Any]]) -> None:
        """Ends calls that nobody wants any more, as far as Dask can."""
        with contextlib.suppress(Exception):  # the cluster may be gone
            self.client.cancel(list(futures), force=True)
