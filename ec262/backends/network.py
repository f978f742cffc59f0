"""The network backend: volunteers' machines, or a network of this machine, through `ec262.foreman.engine`.

Everything about the network happens in the thread that calls `start`, with a gevent loop of that thread's own.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import gevent

from ec262.backends.backtracking import Backtracking
from ec262.backends.base import (
    Backend,
    Believed,
    DisputedTask,
    PhaseName,
    Stage,
    Tally,
    Unit,
    WorkerTally,
    digest_of,
    run_phases,
)
from ec262.backends.spool import Spool
from ec262.credentials import Account, CredentialStore
from ec262.discovery_client import DiscoveryClient, create_account_at
from ec262.embedded import embedded_network
from ec262.errors import EC262Error, InsufficientCredits, JobCancelled, JobFailed, NetworkError, SetupError
from ec262.foreman.engine import Engine
from ec262.foreman.journal import Journal
from ec262.foreman.records import Kept
from ec262.foreman.rehearsal import rehearse
from ec262.foreman.sample import sample_of
from ec262.foreman.schedule import Task
from ec262.mapreduce.blocks import EMPTY
from ec262.mapreduce.program import check_result
from ec262.policy import Policy
from ec262.protocol import messages as m
from ec262.protocol.credits import price_of
from ec262.sandbox.executor_program import ExecutorMapper
from ec262.sandbox.pack import pack_program

log = logging.getLogger("ec262.jobs")

CLOSE_S = 5.0
"""How long a job that is done waits for replicas that are still out, so that these are paid too."""
CANCEL_S = 10.0
SIGN_OF_LIFE_S = 600.0
"""How often discovery hears of a job that is not reported under its id: it forgets what rests on silent ones."""
REPORT_S = 5.0
"""How often discovery hears how the job stands; a job that is over sooner reports its end alone."""
FACTS_S = 0.1
INFLIGHT_BYTES = 64 * 1024 * 1024
NOTHING: Mapping[tuple[str, int], Kept] = MappingProxyType({})
Done = Callable[[Unit, list[bytes]], None]
"""Takes a unit's result."""


class NetworkBackend(Backend):
    """Workers that discovery finds, paid in credits.

    Args:
        discovery: URL of a discovery service; None: a network of this program's own.
        name: of the job, for people.
    """

    def __init__(
        self, policy: Policy, tally: Tally, changed: Callable[[], None], *, discovery: str | None = None, name: str = ""
    ) -> None:
        super().__init__(policy, tally, changed)
        self._url = discovery
        self._name = "".join(c for c in name if c.isprintable())[:64]
        self._client: DiscoveryClient | None = None
        self._lane = "native"
        self._engine: Engine | None = None
        self._loop: Callable[[Callable[[], None]], None] | None = None
        self._thread: threading.Thread | None = None
        self._reporter: gevent.Greenlet | None = None
        self._job_id = secrets.token_hex(16)
        self._facts_s = self._alive_s = 0.0
        self._stage = 0
        # What engines that are over have to say.
        self._before = Tally()

    # --- the job's life ---

    def start(self, stage: Stage) -> None:
        """See `Backend`. Tries the program out, finds discovery and the account, and asks whether it can pay."""
        # First of all: it needs no network, and what it finds is the author's to change whatever the network is.
        self._rehearse(stage, pack_program(stage.program))
        url, account, self._lane = self._network()
        # After the network's own handler was registered: exit handlers run last in, first out.
        self._thread = threading.current_thread()
        atexit.register(self._leave)
        self._client = DiscoveryClient(url, account.account_id, account.secret)
        self._loop = _caller_into_this_thread()
        self._check_credits(stage, self._client)
        self._reporter = gevent.spawn(self._report_now_and_then, self._client)

    def run_stage(self, stage: Stage) -> Spool:
        """See `Backend`."""
        assert self._client is not None
        packed = _packed(stage)
        if stage.number:
            self._rehearse(stage, packed)
        mapper = stage.program.mapper
        self._stage = stage.number
        digest = digest_of(packed)
        redo = None
        if self.policy.confidence:
            redo = Backtracking(stage, digest, self.tally, lambda place: self._disown(place))

        def run(
            phase: PhaseName,
            units: Iterable[Unit],
            count: int | None,
            done: Callable[[Unit, list[bytes]], None],
            spool: Spool,
        ) -> None:
            if self._engine is None:
                requirements = self.policy.requirements
                if phase == "map" and isinstance(mapper, ExecutorMapper):
                    requirements = (*requirements, mapper.capability)
                self._engine = self._start_engine(stage, phase, packed, requirements)
            self._run_phase(self._engine, stage, units, done, spool)
            executor = isinstance(mapper, ExecutorMapper)
            if redo is not None:
                redo.maps, redo.results = (spool, None) if phase == "map" else (redo.maps, spool)
                self._make_sure(self._engine, stage, redo, done, closing=executor or phase == "reduce")
            if executor:  # others reduce than map
                self._end_engine(CLOSE_S)

        try:
            made = run_phases(self, stage, digest, run, redo.seen if redo is not None else None)
        except BaseException:
            self._end_engine(CANCEL_S)
            raise
        finally:
            if redo is not None:
                redo.close()
        self._end_engine(CLOSE_S)
        return made

    def close(self, *, failed: bool) -> None:
        """See `Backend`."""
        loop, self._loop = self._loop, None
        if self._client is None:
            if loop is not None or threading.current_thread() is not threading.main_thread():
                gevent.get_hub().destroy(destroy_loop=True)
            return
        try:
            if self._reporter is not None:
                self._reporter.kill()
            state = "cancelled" if self._cancelled else "failed" if failed else "done"
            try:
                self._report(self._client, state)
                self.tally.balance_after = self._client.account().balance
            except NetworkError as reason:
                log.debug("discovery was not told of the job's end: %s", reason)
            self._client.close()
        finally:
            gevent.get_hub().destroy(destroy_loop=True)
            atexit.unregister(self._leave)

    def cancel(self) -> None:
        """See `Backend`."""
        self._cancelled = True
        call = self._loop
        if call is not None:
            call(lambda: self._engine.cancel() if self._engine is not None else None)

    def _leave(self) -> None:
        """When the program ends before the job: an event loop must not run on while the interpreter is taken down."""
        self.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CANCEL_S + CLOSE_S)

    # --- before the first task ---

    def _rehearse(self, stage: Stage, packed: bytes) -> None:
        if self.policy.rehearse and not isinstance(stage.program.mapper, ExecutorMapper):
            rehearse(stage.program, packed, sample_of(stage.sample()), stop=lambda: self._cancelled)
        if self._cancelled:
            raise JobCancelled("the job was cancelled")

    def _network(self) -> tuple[str, Account, str]:
        """Discovery's URL, the account that pays and the workers' lane: as named, or of a network of its own."""
        if self._url is None:
            network = embedded_network()
            return network.url, Account(network.account_id, network.secret), network.lane
        with DiscoveryClient(self._url) as client:
            account = CredentialStore(pause=gevent.sleep).ensure_account(self._url, lambda: create_account_at(client))
        return self._url, account, "native"

    def _check_credits(self, stage: Stage, client: DiscoveryClient) -> None:
        """Whether the job can be paid at all, and within its own limit, as far as can be said before."""
        policy = self.policy
        state = client.describe()
        policy = self.policy = policy.on_network(state.network)
        assumed = (
            f"{policy.replicas_assumed:g} replicas, as is assumed for confidence={policy.confidence:g}"
            if policy.confidence
            else f"redundancy {policy.copies}"
        )
        price = price_of(policy.cpu_limit_s) * policy.price
        tasks = (stage.count or 1) + (stage.partitions if stage.count != 0 else 0)
        needed = math.ceil(tasks * price * policy.replicas_assumed)
        available = state.account.balance if state.account is not None else 0
        self.tally.balance_before = self.tally.balance_after = available
        cost = (
            f"{'' if stage.count is not None else 'at least '}{needed} credits ({stage.count or 'some'} map and "
            f"{stage.partitions} reduce tasks at {'up to ' if policy.price > 1 else ''}{price} times {assumed}"
            f"{', of the first of several stages' if self.tally.stages > 1 else ''})"
        )
        if stage.directory is not None and any(stage.directory.glob("*.spool")):
            return  # a job that goes on needs less, and nobody knows how much
        if policy.max_credits is not None and needed > policy.max_credits:
            raise JobFailed(
                f"the job needs {cost}, more than max_credits={policy.max_credits}: allow more, or make its tasks "
                "larger (split_size, items_per_task)"
            )
        if needed > available:
            raise InsufficientCredits(
                *(402, "insufficient-credits"),
                f"the job needs {cost}, the account has {available}: run a worker to earn some, or put more into a "
                "task (items_per_task, split_size)",
                needed=needed,
                available=available,
            )

    # --- engines ---

    def _start_engine(self, stage: Stage, phase: PhaseName, packed: bytes, requirements: tuple[str, ...]) -> Engine:
        assert self._client is not None
        journal = None
        if stage.directory is not None:
            executor = f"-{phase}" if isinstance(stage.program.mapper, ExecutorMapper) else ""
            journal = Journal(stage.directory / f"journal-{stage.number}{executor}")
        limit = self.policy.max_credits
        memory = self.policy.memory_limit
        engine = Engine(
            *(self._client, dataclasses.replace(self.policy, requirements=requirements)),
            program=packed,
            lane=self._lane,
            changed=self._on_change,
            inflight_bytes=INFLIGHT_BYTES if memory is None else max(memory // 4, 1),
            credits_limit=None if limit is None else max(0, limit - self._before.credits_spent),
            job_id=secrets.token_hex(16) if stage.number or phase == "reduce" else self._job_id,
            journal=journal,
        )
        if not stage.number and phase == "map":
            self._job_id = engine.job_id  # a checkpoint's, if it goes on from one
        if self._cancelled:
            engine.cancel()
        return engine

    def _run_phase(
        self,
        engine: Engine,
        stage: Stage,
        units: Iterable[Unit],
        done: Callable[[Unit, list[bytes]], None],
        spool: Spool,
        redo: Backtracking | None = None,
        stale: Mapping[tuple[str, int], Kept] = NOTHING,
    ) -> None:
        running: dict[int, Unit] = {}

        def tasks() -> Iterator[Task]:
            for unit in units:
                running[unit.number] = unit
                task = _task(stage, unit)
                known = stale.get((unit.phase, unit.number))
                yield task if known is None else engine.task_again(task, known)

        def on_done(task: Task, parts: list[bytes]) -> None:
            unit = running.pop(task.number)
            known = stale.get((unit.phase, unit.number))
            if redo is None or known is None or unit.number not in spool:
                done(unit, parts)
            elif task.commitment != known.commitment or unit.number in spool.failed():
                log.info("%s: the result is another than before", unit.label())
                redo.replace(unit, parts)
            self.tally.done = len(spool)

        def on_failed(task: Task, reason: EC262Error) -> None:
            unit = running.pop(task.number)
            if unit.number in spool and redo is not None:
                redo.uncount(unit)
                redo.before_new_parts(unit, [EMPTY] * stage.partitions)
            self.skip(stage, unit, spool, reason, task.task_id, instead=unit.number in spool)
            self.tally.done = len(spool)

        engine.run_phase(tasks(), on_done, on_failed)
        self.tally.done = self.tally.total = len(spool)
        self._take_facts()

    def _make_sure(self, engine: Engine, stage: Stage, redo: Backtracking, done: Done, *, closing: bool) -> None:
        """Has discovery say of all results that they hold, and has computed anew what does not; `closing`: for good.

        A map task's result that is another than before costs reduce tasks theirs, so that there may be several rounds.
        """
        whole = True
        while engine.audits:
            stale = engine.audit(whole=whole, closing=closing)
            whole = False
            maps = {place: kept for place, kept in stale.items() if place[0] == "map"}
            if maps:
                log.info("%d map tasks are computed anew: who gave their results is no longer believed", len(maps))
                assert redo.maps is not None
                units = [redo.unit(*place) for place in sorted(maps)]
                self._run_phase(engine, stage, units, done, redo.maps, redo, maps)
            again: dict[tuple[str, int], Kept] = {}
            if redo.results is not None:
                # Those that are stale and have a result: what they reduce has not changed.
                for place, kept in engine.audit(whole=False, closing=False).items():
                    if place[0] == "reduce" and place[1] in redo.results:
                        again[place] = kept
                    elif place[0] == "reduce":
                        engine.disown(place)
                missing = redo.missing()
                if again or missing:
                    log.info("%d reduce tasks are computed anew", len(again) + len(missing))
                    units = [redo.unit("reduce", index) for index in sorted([*missing, *(at for _, at in again)])]
                    self._run_phase(engine, stage, units, done, redo.results, redo, again)
                    continue
            if not maps and (not closing or not engine.audits):
                return

    def _disown(self, place: tuple[str, int]) -> None:
        if self._engine is not None:
            self._engine.disown(place)

    def _end_engine(self, patience_s: float) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        try:
            engine.close(patience_s)
        finally:
            self._engine = engine
            self._take_facts()
            self._engine = None
            tally = self.tally
            self._before = Tally(
                retried=tally.retried,
                bytes_in=tally.bytes_in,
                bytes_out=tally.bytes_out,
                credits_spent=tally.credits_spent,
                earned=dict(tally.earned),
                dissenters=set(tally.dissenters),
                believed=tally.believed,
            )

    def _on_change(self) -> None:
        now = time.monotonic()
        if now - self._facts_s >= FACTS_S:
            self._facts_s = now
            self._take_facts()
        self.changed()

    def _take_facts(self) -> None:
        """What the engine knows, for who watches."""
        engine, tally, before = self._engine, self.tally, self._before
        if engine is None:
            return
        facts = engine.facts()
        tally.running = facts.running
        tally.retried = before.retried + facts.retried
        tally.bytes_in = before.bytes_in + facts.bytes_sent
        tally.bytes_out = before.bytes_out + facts.bytes_received
        tally.credits_spent = before.credits_spent + facts.credits_spent
        tally.workers = [
            WorkerTally(each.worker_id, each.out, each.finished, each.rate, each.credits) for each in facts.workers
        ]
        earned = dict(before.earned)
        for worker_id, credits in engine.earned.items():
            earned[worker_id] = earned.get(worker_id, 0) + credits
        tally.earned = earned
        tally.dissenters = before.dissenters | engine.dissenters
        tally.believed = before.believed.plus(
            Believed(
                tasks=facts.answers.tasks,
                answers=facts.answers.given,
                disagreements=facts.answers.dissents,
                confidence=facts.answers.confidence,
                recomputed=facts.recomputed,
                unaudited=facts.unaudited,
                clarity=facts.answers.clarity,
                disputed=tuple(
                    DisputedTask(
                        *(self._stage, each.label, each.task_id, each.worker_id),
                        *(each.verdict, each.reason, each.refund),
                    )
                    for each in facts.disputes
                ),
            )
        )

    # --- telling discovery ---

    def _report_now_and_then(self, client: DiscoveryClient) -> None:
        while True:
            gevent.sleep(REPORT_S)
            try:
                self._report(client, "running")
                self._say_alive(client)
            except NetworkError as reason:
                log.debug("discovery was not told how the job stands: %s", reason)

    def _say_alive(self, client: DiscoveryClient) -> None:
        """Later stages have jobs of their own at discovery, which are not reported."""
        engine, now = self._engine, time.monotonic()
        if engine is None or not engine.audits or engine.job_id == self._job_id:
            return
        if now - self._alive_s > SIGN_OF_LIFE_S:
            self._alive_s = now
            client.audit(m.AuditTasks(job_id=engine.job_id))

    def _report(self, client: DiscoveryClient, state: str) -> None:
        tally = self.tally
        self._take_facts()
        client.report_job(
            self._job_id,
            m.JobReport(
                state=state,  # type: ignore[arg-type]
                name=self._name,
                phase=f"{tally.phase}" + (f" {tally.stage + 1}/{tally.stages}" if tally.stages > 1 else ""),
                tasks_done=tally.done,
                tasks_total=tally.total,
                failed=len(tally.failed),
                retried=tally.retried,
                workers=len(tally.workers),
                credits_spent=tally.credits_spent,
                bytes_in=tally.bytes_in,
                bytes_out=tally.bytes_out,
            ),
        )


def _task(stage: Stage, unit: Unit) -> Task:
    # Reading files may take its time, and meanwhile results come in.
    slow = unit.split is not None and unit.split.anywhere
    return Task(
        *(unit.number, partial(_beside, unit.load) if slow else unit.load, unit.phase, unit.label),
        check=_check_map(stage.partitions) if unit.phase == "map" else _CHECK_REDUCE,
    )


_CHECK_REDUCE = partial(check_result, expected=1, grouped=False)


def _check_map(partitions: int) -> Callable[[list[bytes]], None]:
    """What looks through a map task's result before it is believed."""
    return partial(check_result, expected=partitions, grouped=True)


def _packed(stage: Stage) -> bytes:
    """The program as it travels. With a checkpoint as it did the first time: tasks under way are known by its digest,
    and equal functions need not give equal bytes in another process."""
    if stage.directory is None:
        return pack_program(stage.program)
    path = stage.directory / f"program-{stage.number}"
    try:
        if path.exists():
            return path.read_bytes()
        packed = pack_program(stage.program)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(packed)
        fresh.replace(path)
    except OSError as reason:
        raise SetupError(f"the checkpoint {stage.directory} cannot be used: {reason.strerror}") from None
    return packed


def _beside(load: Callable[[], list[bytes]]) -> list[bytes]:
    """Loads in another thread; this one's other greenlets go on."""
    parts: list[bytes] = gevent.get_hub().threadpool.apply(load)
    return parts


def _caller_into_this_thread() -> Callable[[Callable[[], None]], None]:
    """A function other threads may call to have something done in this thread's event loop."""
    loop = gevent.get_hub().loop
    return lambda function: loop.run_callback_threadsafe(function)
