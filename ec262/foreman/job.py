"""A job, from top to bottom: split, have mapped, shuffle, have reduced, collect."""

from __future__ import annotations

import atexit
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gevent

from ec262.credentials import Account, CredentialStore
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.embedded import embedded_network
from ec262.errors import InsufficientCredits, JobCancelled, JobFailed
from ec262.foreman.engine import Engine
from ec262.foreman.options import JobOptions
from ec262.foreman.payloads import input_digest
from ec262.foreman.rehearsal import rehearse, sample_of
from ec262.foreman.report import Meter, Progress, ProgressCallback, Report
from ec262.foreman.schedule import Task
from ec262.mapreduce.program import Program, map_header, reduce_header
from ec262.mapreduce.split import split_items
from ec262.protocol.canonical import decode_pairs, sort_pairs
from ec262.protocol.credits import price_of
from ec262.protocol.framing import MAX_PARTS
from ec262.sandbox.pack import pack_program

CLOSE_S = 5.0
"""How long a job that is done waits for replicas that are still out, so that these are paid too."""
CANCEL_S = 10.0
REDUCERS_MOST = 64
REDUCER_BYTES = 16 * 1024 * 1024

EMPTY_PART = b"[]"


class Job:
    """A job that runs in the background.

    Everything about the network happens in a thread of the job's own with an event loop of its own: the program that
    started it is not patched, and may use threads, asyncio or nothing of the kind.
    """

    def __init__(
        self,
        data: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        program: Program,
        options: JobOptions,
        *,
        discovery: str | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._splits = split_items(data, options.items_per_task)
        self._program = pack_program(program)
        self._functions = program
        self._options = options
        self._url = discovery
        self._meter = Meter(progress)
        self._started_s = time.monotonic()
        self._phase = "starting"
        self._map_total, self._map_done, self._reduce_total, self._reduce_done = len(self._splits), 0, 0, 0
        self._phase_started_s = self._started_s
        self._engine: Engine | None = None
        self._loop: Callable[[Callable[[], None]], None] | None = None
        self._cancelled = False
        self._result: dict[Any, Any] | None = None
        self._failure: BaseException | None = None
        self._elapsed_s = 0.0
        self._balance_before = self._balance_after = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ec262-job", daemon=True)
        self._thread.start()

    # --- what the user calls ---

    def result(self, timeout_s: float | None = None) -> dict[Any, Any]:
        """Waits for the job to end; the result, keys in canonical order.

        Raises:
            TimeoutError: not done after `timeout_s`; the job goes on.
            EC262Error: what the job failed of, see `ec262.errors`.
        """
        if not self._over.wait(timeout_s):
            raise TimeoutError(f"the job is not done after {timeout_s} s; it goes on")
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._result is not None
        return self._result

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the job to end, well or not; False when it has not after `timeout_s`."""
        return self._over.wait(timeout_s)

    def done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self._over.is_set()

    def cancel(self) -> None:
        """Ends the job: settles what is done, has the rest given back. Returns at once; see `JobCancelled`."""
        self._cancelled = True
        call = self._loop
        if call is not None:
            call(lambda: self._engine.cancel() if self._engine is not None else None)

    def progress(self) -> Progress:
        """The job at this moment."""
        engine = self._engine
        mapped, reduced = self._map_done, self._reduce_done
        retried = workers = spent = 0
        if engine is not None:
            schedule = engine.schedule
            if self._phase == "map":
                mapped = schedule.done
            elif self._phase == "reduce":
                reduced = schedule.done
            retried, workers = schedule.retried, len(schedule.peers)
            spent = engine.credits_spent
        now = time.monotonic()
        done, total = (mapped, self._map_total) if self._phase == "map" else (reduced, self._reduce_total)
        left = None
        if self._phase in ("map", "reduce") and done:
            left = (now - self._phase_started_s) / done * (total - done)
        return Progress(
            phase=self._phase,
            map_done=mapped,
            map_total=self._map_total,
            reduce_done=reduced,
            reduce_total=self._reduce_total,
            workers=workers,
            retried=retried,
            credits_spent=spent,
            elapsed_s=now - self._started_s,
            seconds_left=left,
        )

    def report(self) -> Report:
        """What the job cost and who earned it; whole once the job is done."""
        engine = self._engine
        earned: dict[str, int] = {}
        if engine is not None:
            for worker_id in list(engine.paid.values()):
                earned[worker_id] = earned.get(worker_id, 0) + engine.price
        return Report(
            map_tasks=self._map_total,
            reduce_tasks=self._reduce_total,
            retried=engine.schedule.retried if engine is not None else 0,
            credits_spent=sum(earned.values()),
            earned=dict(sorted(earned.items(), key=lambda item: (-item[1], item[0]))),
            dissenters=tuple(sorted(engine.dissenters)) if engine is not None else (),
            elapsed_s=self._elapsed_s or time.monotonic() - self._started_s,
            balance_before=self._balance_before,
            balance_after=self._balance_after,
        )

    # --- in the job's thread ---

    def _run(self) -> None:
        try:
            self._result = self._compute()
        except BaseException as reason:  # it reaches the user by result(), whatever it is
            self._failure = reason
        finally:
            self._elapsed_s = time.monotonic() - self._started_s
            self._phase = "done"
            self._loop = None
            try:
                self._meter.show(self.progress())
                gevent.get_hub().destroy(destroy_loop=True)
            finally:
                self._over.set()  # whatever else goes wrong: somebody waits for this
            atexit.unregister(self._leave)

    def _leave(self) -> None:
        """When the program ends before the job: an event loop must not run on while the interpreter is taken down."""
        self.cancel()
        self._thread.join(CANCEL_S + CLOSE_S)

    def _compute(self) -> dict[Any, Any]:
        # First of all: it needs no network, and what it finds is the author's to change whatever the network is.
        if self._options.rehearse:
            rehearse(self._functions, self._program, sample_of(self._splits), stop=lambda: self._cancelled)
        url, account, lane = self._network()
        # After the network's own handler was registered: exit handlers run last in, first out.
        atexit.register(self._leave)
        with DiscoveryClient(url, account.account_id, account.secret) as discovery:
            reducers = self._reducers(discovery)
            engine = self._engine = Engine(
                *(discovery, self._options),
                program=self._program,
                lane=lane,
                changed=lambda: self._meter.show(self.progress()),
            )
            self._loop = _caller_into_this_thread()
            digest = hashlib.sha256(self._program).hexdigest()
            try:
                if self._cancelled:
                    raise JobCancelled("the job was cancelled")
                mapped = self._have_mapped(engine, digest, reducers)
                reduced = self._have_reduced(engine, digest, mapped, reducers)
            except BaseException:
                engine.close(CANCEL_S)
                raise
            engine.close(CLOSE_S)
            self._balance_after = discovery.account().balance
            return _collect(reduced)

    def _network(self) -> tuple[str, Account, str]:
        """Discovery's URL, the account that pays and the workers' lane: as named, or of a network of its own."""
        if self._url is None:
            network = embedded_network()
            return network.url, Account(network.account_id, network.secret), network.lane
        with DiscoveryClient(self._url) as client:
            account = CredentialStore(pause=gevent.sleep).ensure_account(self._url, lambda: create_account_at(client))
        return self._url, account, "native"

    def _reducers(self, discovery: DiscoveryClient) -> int:
        """How many reduce partitions; and whether the job can be paid at all."""
        state = discovery.describe()
        options = self._options
        size = sum(map(len, self._splits))
        reducers = options.reducers
        if reducers is None:
            busy = min(max(1, state.workers), len(self._splits) // 8)
            reducers = min(REDUCERS_MOST, max(1, busy, size // REDUCER_BYTES))
        price = price_of(options.cpu_limit_s)
        needed = (len(self._splits) + (reducers if self._splits else 0)) * price * options.redundancy
        available = state.account.balance if state.account is not None else 0
        self._balance_before = self._balance_after = available
        if needed > available:
            raise InsufficientCredits(
                *(402, "insufficient-credits"),
                f"the job needs {needed} credits ({len(self._splits)} map and {reducers} reduce tasks at {price} "
                f"times redundancy {options.redundancy}), the account has {available}: run a worker to earn some, "
                "or put more items into a task (items_per_task)",
                needed=needed,
                available=available,
            )
        return reducers

    def _have_mapped(self, engine: Engine, digest: str, reducers: int) -> list[Task]:
        tasks = []
        for number, split in enumerate(self._splits):
            parts = [map_header(digest, index=number, partitions=reducers), split]
            tasks.append(Task(number, parts, input_digest(parts)))
        self._splits = []
        self._phase, self._phase_started_s = "map", time.monotonic()
        self._meter.show(self.progress())
        engine.run_phase(tasks)
        self._map_done = len(tasks)
        return tasks

    def _have_reduced(self, engine: Engine, digest: str, mapped: list[Task], reducers: int) -> list[Task]:
        """Shuffle: partition r of every map result, in map task order, is the input of reduce task r."""
        tasks: list[Task] = []
        for index in range(reducers):
            parts = [reduce_header(digest, index=index)]
            for task in mapped:
                assert task.result is not None
                if len(task.result) != reducers:
                    raise JobFailed(f"map task {task.number} came back in {len(task.result)} parts, not {reducers}")
                if task.result[index] != EMPTY_PART:
                    parts.append(task.result[index])
            if len(parts) > MAX_PARTS:
                raise JobFailed(f"reduce takes the results of at most {MAX_PARTS - 1} map tasks: raise items_per_task")
            if len(parts) > 1:
                tasks.append(Task(index, parts, input_digest(parts), "reduce"))
        for task in mapped:
            task.result = None
        self._reduce_total = len(tasks)
        self._phase, self._phase_started_s = "reduce", time.monotonic()
        self._meter.show(self.progress())
        engine.run_phase(tasks)
        self._reduce_done = len(tasks)
        return tasks


def _collect(reduced: list[Task]) -> dict[Any, Any]:
    """The reduce tasks' pairs as one dictionary in canonical key order."""
    pairs: list[tuple[Any, Any]] = []
    for task in reduced:
        assert task.result is not None
        for part in task.result:
            pairs += [(key, value) for key, value in decode_pairs(part)]
    return dict(sort_pairs(pairs))


def _caller_into_this_thread() -> Callable[[Callable[[], None]], None]:
    """A function other threads may call to have something done in this thread's event loop."""
    loop = gevent.get_hub().loop
    return lambda function: loop.run_callback_threadsafe(function)
