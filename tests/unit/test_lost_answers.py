"""Answers that got lost are asked for again: each task is what it was, though others of the answer are gone since."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from msgspec.structs import replace

from discovery.app import Discovery
from ec262.discovery_client import DiscoveryClient
from ec262.errors import NetworkError
from ec262.foreman.journal import Journal
from ec262.foreman.leasing import Leasing
from ec262.foreman.payloads import input_digest
from ec262.foreman.polling import Polling
from ec262.foreman.purse import Purse
from ec262.foreman.pushing import Pairs, Pushing
from ec262.foreman.repeating import Repeating
from ec262.foreman.schedule import Schedule, Task
from ec262.foreman.session import Session
from ec262.policy import Policy
from ec262.protocol import messages as m
from ec262.serving import Server
from tests.conftest import MakeDiscovery
from tests.parties import Caller, Foreman, Problem, Worker, answer_all

A, B, C = (hashlib.sha256(name).digest() for name in (b"a", b"b", b"c"))
CONFIDENT = m.Policy(confidence=0.5)
PLAIN = m.Policy()


def request(inputs: list[bytes], policy: m.Policy = PLAIN) -> m.LeaseTasks:
    """A request for leases with a key that is always the same."""
    return m.LeaseTasks(
        job_id=Foreman.job_id,
        idempotency_key="the-same-key",
        tasks=[m.TaskWanted(input_digest=digest) for digest in inputs],
        requirements=m.Requirements(python="3.11"),
        policy=policy,
    )


class Cut:
    """A foreman that leased and heard no answer, a worker, and means to let tasks of the answer be gone."""

    def __init__(self, make_discovery: MakeDiscovery, workers: int = 1) -> None:
        self.discovery = make_discovery(settled_grace_s=0.0)
        self.foreman = Foreman(self.discovery)
        self.workers = [Worker(Caller(self.discovery)) for _ in range(workers)]

    def lease(self, body: m.LeaseTasks) -> m.Leased:
        return self.foreman.call("POST", "/v1/tasks", m.Leased, body)

    def forget(self, leased: m.Leased, position: int) -> None:
        """A task is accepted and its grace period over: its keys are destroyed, its record goes with them unless it is
        kept until the job closes."""
        shown = answer_all(leased, self.workers)
        for _ in range(len(self.workers)):  # a spot check wants further workers
            settled = self.foreman.settle(shown, [leased.tasks[position].task_id])
            shown = answer_all(settled, self.workers)
        assert [verdict.verdict for verdict in settled.tasks] == ["accepted"]
        self.discovery.sweep()

    def inputs(self, leased: m.Leased) -> dict[str, bytes]:
        """What the worker is to compute, by task."""
        return {
            ticket.lease_id.partition(".")[0]: ticket.input_digest
            for worker in self.workers
            for ticket in worker.tickets(leased)
        }


# --- discovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PLAIN, CONFIDENT], ids=["record gone", "keys gone"])
@pytest.mark.parametrize("gone", [0, 1, 2, 3])
@pytest.mark.parametrize("inputs", [[A, B, C, A], [A, A, A, A]], ids=["different", "equal"])
def test_a_repeated_answer_says_what_each_task_is_though_one_is_gone(
    make_discovery: MakeDiscovery, inputs: list[bytes], gone: int, policy: m.Policy
) -> None:
    cut = Cut(make_discovery, workers=6)
    body = request(inputs, policy)
    first = cut.lease(body)
    assert [task.position for task in first.tasks] == [0, 1, 2, 3]
    cut.forget(first, gone)
    again = cut.lease(body)
    assert again.tasks == [task for task in first.tasks if task.position != gone]
    given = cut.inputs(again)
    assert {task.position: given[task.task_id] for task in again.tasks} == {
        position: digest for position, digest in enumerate(inputs) if position != gone
    }


def test_tasks_that_are_all_gone_are_leased_to_nobody_and_cost_nothing(make_discovery: MakeDiscovery) -> None:
    cut = Cut(make_discovery)
    first = cut.lease(request([A]))
    cut.forget(first, 0)
    paid = cut.foreman.state
    assert cut.lease(request([A])).tasks == []
    assert cut.foreman.state == paid


@pytest.mark.parametrize("other", [[B, A, C], [A, A, B], [A, B]], ids=["turned", "of the same inputs", "shorter"])
def test_a_repeated_request_has_to_be_the_same_task_by_task(make_discovery: MakeDiscovery, other: list[bytes]) -> None:
    """Else the tasks of the answer would be taken for others, of which one is as long out."""
    cut = Cut(make_discovery)
    cut.lease(request([A, B, B]))
    with pytest.raises(Problem, match="conflict"):
        cut.lease(request(other))


def test_replicas_that_a_lost_answer_added_are_told_again_to_who_says_what_it_knows(
    make_discovery: MakeDiscovery,
) -> None:
    """Their workers are promised and their credits in escrow: without this both would wait for the deadline."""
    cut = Cut(make_discovery, workers=6)
    leased = cut.foreman.lease(2, redundancy=3, quorum=3)
    first, second = leased.tasks
    decide, lost = [first.task_id, second.task_id], [replica.lease_id for replica in first.replicas[:2]]
    told = cut.foreman.settle([], decide, lost)
    assert [verdict.verdict for verdict in told.tasks] == ["more", "pending"]
    escrow = cut.foreman.state.escrow
    assert [verdict.verdict for verdict in cut.foreman.settle([], decide).tasks] == ["pending", "pending"]
    known = [task.replicas[-1].lease_id for task in leased.tasks]
    again = cut.foreman.settle([], decide, known=known)
    assert again.tasks == told.tasks
    assert {w.worker_id: cut_tickets(w, again) for w in cut.workers} == {
        w.worker_id: cut_tickets(w, told) for w in cut.workers
    }
    assert cut.foreman.state.escrow == escrow, "nothing was leased again"
    more = again.tasks[0].task
    assert more is not None
    middle = more.replicas[0].lease_id
    (verdict,) = cut.foreman.settle([], [first.task_id], known=[middle]).tasks
    assert verdict.task is not None
    assert verdict.task.replicas == more.replicas[1:], "those that came after the last one known"
    (verdict,) = cut.foreman.settle([], [first.task_id], [more.replicas[1].lease_id], known=[middle]).tasks
    assert verdict.task is not None
    assert more.replicas[1] not in verdict.task.replicas, "one that was named lost is not waited for"
    shown = [w.receipts([t.lease_id for t in w.tickets(leased)]) for w in cut.workers if w.tickets(leased)]
    accepted = cut.foreman.settle(shown, [first.task_id, second.task_id], known=known)
    assert [verdict.verdict for verdict in accepted.tasks] == ["accepted", "accepted"]


def test_attack_another_foreman_learns_nothing_of_replicas_by_saying_that_it_knows(
    make_discovery: MakeDiscovery,
) -> None:
    cut = Cut(make_discovery, workers=3)
    (task,) = cut.foreman.lease().tasks
    lease = task.replicas[0].lease_id
    cut.foreman.settle([], [task.task_id], [lease])
    told = Foreman(cut.discovery).settle([], [task.task_id], known=[lease])
    assert [verdict.verdict for verdict in told.tasks] == ["unknown"]
    assert told.workers == []
    for known in ([f"{task.task_id}.999"], ["0" * 24 + ".0"]):
        (verdict,) = cut.foreman.settle([], [task.task_id], known=known).tasks
        assert (verdict.verdict, verdict.task) == ("pending", None)


def cut_tickets(worker: Worker, answer: m.Settled) -> list[str]:
    return [ticket.lease_id for ticket in worker.tickets(answer)]


# --- the foreman ----------------------------------------------------------------------------------


class Forgetful(DiscoveryClient):
    """Its first answer to a request for leases lacks tasks, as one that is repeated may."""

    gone: frozenset[int] = frozenset()

    def lease_tasks(self, body: m.LeaseTasks) -> m.Leased:
        leased = super().lease_tasks(body)
        tasks = [task for task in leased.tasks if task.position not in self.gone]
        self.gone = frozenset()
        return replace(leased, tasks=tasks)


class Kept(Pushing):
    """Pushes to nobody; keeps what it was told to push."""

    def __init__(self) -> None:
        self.pairs: Pairs = []
        self.inputs: dict[str, bytes] = {}

    def push(self, pairs: Pairs, workers: object) -> None:
        self.pairs += pairs


Calling = Callable[[Discovery, Foreman], Forgetful]


@pytest.fixture
def calling() -> Iterator[Calling]:
    """Clients of a discovery that serves in this thread."""
    servers: list[Server] = []
    clients: list[Forgetful] = []

    def make(discovery: Discovery, foreman: Foreman) -> Forgetful:
        servers.append(Server(discovery.app))
        servers[-1].__enter__()
        account = foreman.account
        clients.append(Forgetful(servers[-1].url, account.account_id, account.secret, retry_for_s=0))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    for server in servers:
        server.__exit__(None, None, None)


def answering(client: Forgetful, message: m.Message) -> None:
    """From now on discovery answers this."""
    body = m.encode(message, m.PACKED)
    client._answer = lambda *_: (body, m.PACKED)  # type: ignore[method-assign]


def session_of(client: DiscoveryClient, journal: Journal | None) -> Session:
    """A foreman's, before it has done anything."""
    schedule = Schedule(redundancy=1, quorum=1)
    return Session(
        *(client, Policy(), schedule, Purse(None, 1), journal), job_id=Foreman.job_id, program=b"", changed=lambda: None
    )


@pytest.mark.parametrize("inputs", [[A, B, C], [A, A, A]], ids=["different", "equal"])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_killed_foreman_that_asks_again_takes_no_task_for_another(
    make_discovery: MakeDiscovery, calling: Calling, tmp_path: Path, inputs: list[bytes], gone: int
) -> None:
    cut = Cut(make_discovery)
    body = request(inputs)
    journal = Journal(tmp_path / "journal")
    journal.begun(body.job_id)
    journal.asked(body, [("map", 7), ("map", 8), ("reduce", 9)], time.time())
    first = cut.lease(body)
    journal.close()
    cut.forget(first, gone)
    journal = Journal(tmp_path / "journal")
    session = session_of(calling(cut.discovery, cut.foreman), journal)
    Repeating(session, journal, Pushing(session, Polling(session))).ask()
    places = [("map", 7), ("map", 8), ("reduce", 9)]
    expected = {
        place: (digest, task.task_id)
        for place, digest, task in zip(places, inputs, first.tasks, strict=True)
        if task.position != gone
    }
    assert {place: (known.digest, known.task_id) for place, known in journal.tasks.items()} == expected
    journal.close()
    again = Journal(tmp_path / "journal")
    assert {place: (known.digest, known.task_id) for place, known in again.tasks.items()} == expected
    again.close()


@pytest.mark.parametrize("gone", [{0}, {1, 2}, {3}, {0, 1, 2, 3}])
@pytest.mark.parametrize("equal", [False, True], ids=["different", "equal"])
def test_tasks_that_an_answer_leaves_out_are_leased_anew_and_the_others_are_what_they_are(
    discovery: Discovery, calling: Calling, gone: set[int], equal: bool
) -> None:
    """A task of another's lease would be sent to a worker that refuses it, or be given what that one had computed."""
    foreman, worker = Foreman(discovery), Worker(Caller(discovery), slots=8)
    client = calling(discovery, foreman)
    client.gone = frozenset(gone)
    session, pushing = session_of(client, None), Kept()
    parts = [[b"one"], [b"the same"] if equal else [b"two"], [b"the same"] if equal else [b"three"], [b"four"]]
    tasks = [Task(number, lambda number=number: parts[number]) for number in range(4)]  # type: ignore[misc]
    answers: list[m.Leased] = []
    lease_tasks = client.lease_tasks

    def note(body: m.LeaseTasks) -> m.Leased:
        answers.append(lease_tasks(body))
        return answers[-1]

    client.lease_tasks = note  # type: ignore[method-assign]
    session.schedule.slots_alive = 8
    session.schedule.begin(tasks)
    leasing = Leasing(session, pushing, None, m.Requirements(python="3.11"))
    running = gevent.spawn(leasing.run)
    with gevent.Timeout(20):
        while len({task.number for task, _ in pushing.pairs}) < 4:
            assert running.exception is None
            gevent.sleep(0.01)
    running.kill()
    given = {ticket.lease_id: ticket.input_digest for answer in answers for ticket in worker.tickets(answer)}
    assert sorted(task.number for task, _ in pushing.pairs) == [0, 1, 2, 3]
    for task, replica in pushing.pairs:
        assert given[replica.lease_id] == input_digest(parts[task.number]) == task.digest
        assert replica.lease_id.startswith(f"{task.task_id}.")
    assert len({replica.lease_id for _, replica in pushing.pairs}) == 4, "no lease is of two tasks"


@pytest.mark.parametrize("wrong", [3, 0, "id"], ids=["of none", "of one twice", "the same twice"])
def test_an_answer_with_what_was_not_asked_for_is_discoverys_fault_and_is_not_used(
    make_discovery: MakeDiscovery, calling: Calling, tmp_path: Path, wrong: int | str
) -> None:
    cut = Cut(make_discovery)
    body = request([A, B, C])
    client = calling(cut.discovery, cut.foreman)
    leased = client.lease_tasks(body)
    first, second, third = leased.tasks
    task_id = first.task_id if wrong == "id" else second.task_id
    second = replace(second, task_id=task_id, position=wrong if isinstance(wrong, int) else 1)
    answering(client, replace(leased, tasks=[first, second, third]))
    with pytest.raises(NetworkError, match=r"was not asked for|leased a task twice"):
        client.lease_tasks(body)
    journal = Journal(tmp_path / "journal")
    journal.asked(body, [("map", 0), ("map", 1), ("map", 2)], time.time())
    session = session_of(client, journal)
    with pytest.raises(NetworkError, match=r"answer of http.* to lease_tasks is wrong"):
        Repeating(session, journal, Pushing(session, Polling(session))).ask()
    assert journal.tasks == {}
    journal.close()


def test_verdicts_on_other_tasks_are_discoverys_fault_and_are_not_used(
    make_discovery: MakeDiscovery, calling: Calling
) -> None:
    cut = Cut(make_discovery, workers=2)
    client = calling(cut.discovery, cut.foreman)
    first, second = client.lease_tasks(request([A, B])).tasks
    body = m.Settle(job_id=Foreman.job_id, decide=[first.task_id, second.task_id, first.task_id])
    settled = client.settle(body)
    assert [verdict.task_id for verdict in settled.tasks] == [first.task_id, second.task_id]
    leases = m.TaskVerdict(task_id=first.task_id, verdict="more", task=second)
    for tasks in (settled.tasks[::-1], settled.tasks[:1], [leases, settled.tasks[1]]):
        answering(client, replace(settled, tasks=tasks))
        with pytest.raises(NetworkError, match=r"answer of http.* to settle is wrong: it (decided|leased) "):
            client.settle(body)
