"""Journal: what a foreman that is killed needs to go on where it was, without paying for anything twice.

An append-only file of records, each with its length and CRC-32 before it; a record that a kill left half written is cut
off when the file is opened. Requests for leases are written before they are made, leases before they are pushed,
results before they are settled, verdicts before the results are handed on. So after any kill every replica that may
have been started is known, what was leased can be asked for again, and what was paid can still be opened. Nothing is
synced to the disk: a machine that loses power may lose the last records, and then pays for a few tasks again.

Records of tasks that are over are left out when the file is opened, and whenever they are most of it. The file has
keys: only its owner may read it, and it is locked, so that no two foremen go on with one job.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ec262.errors import SetupError
from ec262.foreman.records import (
    Answered,
    Asked,
    Came,
    Closed,
    Decided,
    Dropped,
    Failed,
    Job,
    Kept,
    Keys,
    Leased,
    Met,
    Over,
    Paid,
    Pushed,
    Record,
    Remembered,
    Sent,
    Sums,
    decoder,
    encoder,
    task_of,
)
from ec262.foreman.unsent import Request, Unsent
from ec262.protocol import messages as m

MAGIC = b"EC262 journal 2\n"
COMPACT_BYTES = 64 * 1024 * 1024
"""So many bytes of tasks that are over may lie in the file, or as much as of tasks that are not."""
MAX_RECORD = 1 << 31
_HEAD = struct.Struct(">II")
_PIECE = 1024 * 1024


@dataclass(slots=True)
class _Place:
    """Where a record is, and how many tasks need it that are not over."""

    offset: int
    length: int
    owners: int


class Journal:
    """The file and what it says.

    Args:
        path: made where it is not there; its directory has to be there.

    Attributes:
        job_id, poll_key, program_key: of the job; empty in a new journal.
        workers: those met, by id.
        tasks: tasks that were not over when it was opened, by phase and number, until they are taken.
        bundles: receipts of results that were not settled then.
        earned: credits paid before, by worker.
        accepted: tasks that have results which discovery believes, by phase and number, until the job closes.
        closed: the job's results were believed at its end.

    Raises:
        SetupError: it is no journal, it cannot be opened, or another process has it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.job_id = ""
        self.poll_key = self.program_key = b""
        self.workers: dict[str, m.AssignedWorker] = {}
        self.tasks: dict[tuple[str, int], Remembered] = {}
        self.bundles: list[m.SealedReceipts] = []
        self.earned: dict[str, int] = {}
        self.accepted: dict[tuple[str, int], Kept] = {}
        self.closed = False
        self._by_id: dict[str, Remembered] = {}
        """Those of `tasks` that were leased, by task id."""
        self._places: dict[int, _Place] = {}
        self._of_task: dict[str, list[int]] = {}
        self._next = self._size = self._live = 0
        self._paid: set[str] = set()
        self._failed: dict[tuple[str, int], Failed] = {}
        self._dropped: dict[tuple[str, int], Dropped] = {}
        self._bundles: list[tuple[m.SealedReceipts, list[str]]] = []
        self._unsent = Unsent()
        self._fd = -1
        self._broken = False
        try:
            self._fd = _open(self.path)
            self._read()
            if self._size > len(MAGIC) + self._live:
                self._compact()
        except OSError as reason:
            self.close()
            raise self._trouble(reason) from None
        except SetupError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file and gives up its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Closes and deletes it: the job is over."""
        self.path.unlink(missing_ok=True)
        self.close()

    # --- what happens ---

    def begun(self, job_id: str) -> None:
        """The job has its id."""
        self.job_id = job_id
        self._append(Job(job_id))

    def keys(self, poll_key: bytes, program_key: bytes) -> None:
        """The job has its keys."""
        self.poll_key, self.program_key = poll_key, program_key
        self._append(Keys(poll_key, program_key))

    def met(self, worker: m.AssignedWorker) -> None:
        """A worker is known."""
        self.workers[worker.worker_id] = worker
        self._append(_met(worker))

    def asked(self, wanted: m.LeaseTasks, places: list[tuple[str, int]], asked_s: float) -> None:
        """Leases are about to be asked for.

        Args:
            places: phase and number of each task.
            asked_s: seconds since the epoch.
        """
        record = Asked(wanted.idempotency_key, asked_s, places, m.encode(wanted))
        self._unsent.asked(record)
        self._append(record)

    def answered(self, key: str, lease_ids: list[str]) -> None:
        """These leases came of a request, and are noted. To be called before any is pushed.

        Args:
            lease_ids: none where it was refused, or no worker was free.
        """
        self._unsent.answered(key, lease_ids)
        if lease_ids:
            self._append(Answered(key))
        else:
            self._sent(self._unsent.drop(key))

    def given_up(self, lease_ids: list[str]) -> None:
        """These leases are pushed to nobody any more."""
        self._sent(self._unsent.sent(lease_ids))

    def _sent(self, keys: list[str]) -> None:
        for key in keys:
            self._append(Sent(key))
        self._compact_where_worth()

    def leased(
        self,
        where: tuple[str, int, bytes],
        task_id: str,
        input_key: bytes,
        tries: tuple[int, int],
        leases: list[tuple[str, str, int]],
    ) -> None:
        """A task was leased, or further replicas of one. To be called before anything is pushed.

        Args:
            where: its phase, number and input digest.
            tries: its attempts and losses so far.
            leases: lease id, worker id and price each.
        """
        self._dropped.pop(where[:2], None)
        self._append(Leased(*where, task_id, input_key, *tries, leases), [task_id])

    def pushed(self, lease_ids: list[str]) -> None:
        """A worker has taken leases."""
        self._append(Pushed(lease_ids), _tasks_of(lease_ids))
        self._sent(self._unsent.sent(lease_ids))

    def came(self, receipts: m.SealedReceipts, results: list[tuple[str, list[bytes]]]) -> None:
        """Results came. To be called before they are settled, and before the worker is told that they came."""
        record = Came(receipts.worker_id, receipts.token, results, receipts.arrived)
        self._append(record, _tasks_of(lease_id for lease_id, _ in results))

    def decided(self, verdict: m.TaskVerdict) -> None:
        """Discovery has accepted a result. To be called before it is handed on."""
        self._append(Decided(m.encode(verdict)), [verdict.task_id])

    def paid(self, replicas: list[tuple[str, str, int]]) -> None:
        """Replicas were paid: lease id, worker id and credits each; negative: pay that came back."""
        self._count(replicas)
        self._append(Paid(replicas))

    def _count(self, replicas: list[tuple[str, str, int]]) -> None:
        for lease_id, worker_id, price in replicas:
            self.earned[worker_id] = self.earned.get(worker_id, 0) + price
            self._paid.add(lease_id)

    def kept(self, record: Kept) -> None:
        """As `over`; discovery believes in the result, and may cease to until the job closes."""
        before = self.accepted.get((record.phase, record.number))
        if before is not None:
            self._live -= _size_of(before)
        self.accepted[record.phase, record.number] = record
        self._append(record)
        self._live += _size_of(record)
        self._release(record.task_id)

    def close_job(self) -> None:
        """Discovery stands by all results, for good."""
        self.closed = True
        self._append(Closed())

    def over(self, task_id: str) -> None:
        """Nothing of the task is needed any more: its result is where it belongs."""
        self._append(Over(task_id), dead=True)
        self._release(task_id)

    def dropped(self, where: tuple[str, int, bytes], task_id: str, tries: tuple[int, int]) -> None:
        """The task starts over under another id. Arguments as of `leased`."""
        self._dropped[where[:2]] = record = Dropped(*where, task_id, *tries)
        self._append(record)
        self._release(task_id)

    def failed(self, where: tuple[str, int, bytes], task_id: str, reason: str) -> None:
        """The task has failed for good. Arguments as of `leased`."""
        self._failed[where[:2]] = record = Failed(*where, task_id, reason)
        self._append(record)
        self._release(task_id)

    def unsent(self) -> list[Request]:
        """The requests for leases that are not done with."""
        return list(self._unsent)

    def known(self, task_id: str) -> Remembered | None:
        """What is known of a task from before that was not taken yet."""
        return self._by_id.get(task_id)

    def leased_again(self, where: tuple[str, int, bytes], given: m.LeasedTask) -> None:
        """As `leased`, of a task from before: what is known of it is told by `take`."""
        before = self.tasks.get(where[:2])
        known = Remembered(*where, given.task_id, given.input_key)
        if before is not None:
            known.attempts, known.losses = before.attempts, before.losses
            if self._by_id.pop(before.task_id, None) is not None and before.task_id != given.task_id:
                self.over(before.task_id)
        for replica in given.replicas:
            known.leases[replica.lease_id] = replica.worker_id
            known.prices[replica.lease_id] = replica.price
        self.tasks[where[:2]] = self._by_id[given.task_id] = known
        leases = [(replica.lease_id, replica.worker_id, replica.price) for replica in given.replicas]
        self.leased(where, given.task_id, given.input_key, (known.attempts, known.losses), leases)

    def worker_of(self, lease_id: str) -> str:
        """Whose lease it is, of a task from before that was not taken yet; empty: it is none of these tasks'."""
        known = self._by_id.get(task_of(lease_id))
        return known.leases.get(lease_id, "") if known is not None else ""

    def has_come(self, lease_id: str) -> bool:
        """Whether a result of it came, of a task from before that was not taken yet."""
        known = self._by_id.get(task_of(lease_id))
        return known is not None and lease_id in known.results

    def keep(self, lease_id: str, tokens: list[bytes]) -> bool:
        """Keeps a result for a task from before that was not taken yet; False: it is none of these tasks'."""
        known = self._by_id.get(task_of(lease_id))
        if known is None or lease_id not in known.leases:
            return False
        known.results[lease_id] = tokens
        return True

    def take(self, phase: str, number: int) -> Remembered | None:
        """What is known of a task from before; it is told once."""
        known = self.tasks.pop((phase, number), None)
        if known is not None:
            self._by_id.pop(known.task_id, None)
        return known

    def phase_over(self, phase: str) -> None:
        """The phase has ended: what is remembered of tasks that nobody asked for is of no use."""
        for where in [where for where in self.tasks if where[0] == phase]:
            task = self.tasks.pop(where)
            self._by_id.pop(task.task_id, None)
            verdict = task.verdict
            if verdict is not None and verdict.confidence is not None:
                self.kept(Kept(task.phase, task.number, task.digest, task.task_id, verdict.commitment))
            elif task.task_id:
                self.over(task.task_id)
        for where in [where for where in self._dropped if where[0] == phase]:
            del self._dropped[where]

    # --- the file ---

    def _trouble(self, reason: OSError) -> SetupError:
        advice = ""
        if reason.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = ": make room there, or give the job another checkpoint directory"
        return SetupError(f"the journal {self.path} cannot be used: {reason.strerror or reason}{advice}")

    def _append(self, record: Record, owners: Iterable[str] = (), *, dead: bool = False) -> None:
        """Raises SetupError once; the job ends of that, and what happens until then is not noted."""
        if self._broken:
            return
        body = encoder.encode(record)
        data = _HEAD.pack(len(body), zlib.crc32(body)) + body
        try:
            _write(self._fd, data)
        except OSError as reason:
            self._broken = True
            raise self._trouble(reason) from None
        if dead:
            self._size += len(data)
        else:
            self._place(len(data), owners)

    def _place(self, length: int, owners: Iterable[str]) -> None:
        """Notes where the record is that ends the file. One without owners is of no use once the file is compacted:
        what it says is then written anew."""
        owned = list(owners)
        if owned:
            self._places[self._next] = _Place(self._size, length, len(owned))
            for task_id in owned:
                self._of_task.setdefault(task_id, []).append(self._next)
            self._next += 1
            self._live += length
        self._size += length

    def _release(self, task_id: str) -> None:
        self._forget(task_id)
        self._sent(self._unsent.over(task_id))

    def _compact_where_worth(self) -> None:
        if self._size - self._live > max(COMPACT_BYTES, self._live) and not self._broken:
            try:
                self._compact()
            except OSError as reason:
                self._broken = True  # the file that is there says all that is needed
                raise self._trouble(reason) from None

    def _forget(self, task_id: str) -> None:
        """The task's records are of no use, unless other tasks are in them."""
        for number in self._of_task.pop(task_id, ()):
            place = self._places[number]
            place.owners -= 1
            if not place.owners:
                del self._places[number]
                self._live -= place.length

    def _compact(self) -> None:
        """Writes a file of what is needed and puts it in this one's place."""
        beside = self.path.with_name(self.path.name + ".new")
        beside.unlink(missing_ok=True)
        old, places = self._fd, list(self._places.items())
        self._fd = _open(beside)
        self._size = len(MAGIC)
        self._live = 0
        try:
            _write(self._fd, MAGIC)
            self._append_facts()
            for _, place in places:
                data = os.pread(old, place.length, place.offset)
                _write(self._fd, data)
                place.offset = self._size
                self._size += place.length
                self._live += place.length
            os.replace(beside, self.path)
        finally:
            os.close(old)

    def _append_facts(self) -> None:
        if self.job_id:
            self._append(Job(self.job_id))
        if self.poll_key:
            self._append(Keys(self.poll_key, self.program_key))
        for worker in self.workers.values():
            self._append(_met(worker))
        self._paid = {lease_id for lease_id in self._paid if lease_id.partition(".")[0] in self._of_task}
        if self.earned:
            self._append(Sums(self.earned, sorted(self._paid)))
        for record in self._unsent.records():
            self._append(record)
        for failed in self._failed.values():
            self._append(failed)
        for dropped in self._dropped.values():
            self._append(dropped)
        for kept in self.accepted.values():
            self._append(kept)
            self._live += _size_of(kept)
        if self.closed:
            self._append(Closed())

    def _read(self) -> None:
        """Reads the file; cuts off what is not whole at its end."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                if start and not MAGIC.startswith(start):
                    ours = start.startswith(MAGIC[:-2])
                    what = "was written by another version of EC262" if ours else "is no journal of EC262"
                    raise SetupError(f"{self.path} {what}")
                os.ftruncate(self._fd, 0)
                _write(self._fd, MAGIC)
                self._size = len(MAGIC)
                return
            self._size = len(MAGIC)
            while True:
                head = file.read(_HEAD.size)
                if len(head) < _HEAD.size:
                    break
                length, checksum = _HEAD.unpack(head)
                body = file.read(length) if length < MAX_RECORD else b""
                if len(body) < length or zlib.crc32(body) != checksum:
                    break
                try:
                    record = decoder.decode(body)
                except msgspec.DecodeError:
                    raise SetupError(f"{self.path} was written by another version of EC262") from None
                self._understand(record, _HEAD.size + length)
        os.ftruncate(self._fd, self._size)
        self.tasks = {(task.phase, task.number): task for task in self._by_id.values()}
        for task in self._by_id.values():
            task.paid = {lease_id for lease_id in task.leases if lease_id in self._paid}
        self.bundles = [bundle for bundle, owners in self._bundles if any(owner in self._by_id for owner in owners)]
        self._bundles = []
        for where, dropped in self._dropped.items():
            if where not in self.tasks:
                self.tasks[where] = Remembered(
                    *(dropped.phase, dropped.number, dropped.digest),
                    attempts=dropped.attempts,
                    losses=dropped.losses,
                )
        for where, failed in self._failed.items():
            self.tasks[where] = Remembered(failed.phase, failed.number, failed.digest, failed=failed.reason)
        self._by_id = {task.task_id: task for task in self.tasks.values() if task.task_id}

    def _understand(self, record: Record, length: int) -> None:
        owners: list[str] = []
        over = ""
        match record:
            case Job(job_id):
                self.job_id = job_id
            case Keys(poll_key, program_key):
                self.poll_key, self.program_key = poll_key, program_key
            case Met(worker_id, address, port, slots, relay, relay_pass):
                self.workers[worker_id] = m.AssignedWorker(
                    worker_id=worker_id,
                    address=address,
                    port=port,
                    slots=slots,
                    tickets=b"",
                    relay=relay,
                    relay_pass=relay_pass,
                )
            case Asked():
                self._unsent.asked(record)
            case Answered(key):
                self._unsent.answered(key)
            case Sent(key):
                self._unsent.drop(key)
            case Leased(phase, number, digest, task_id, input_key, attempts, losses, leases):
                task = self._by_id.setdefault(task_id, Remembered(phase, number, digest, task_id, input_key))
                task.attempts, task.losses = attempts, losses
                for lease_id, worker_id, price in leases:
                    task.leases[lease_id], task.prices[lease_id] = worker_id, price
                owners = [task_id]
                dropped = self._dropped.get((phase, number))
                if dropped is not None and dropped.task_id != task_id:
                    del self._dropped[phase, number]  # this lease says the same and more
            case Pushed(lease_ids):
                owners = self._known(lease_ids)
                for lease_id in lease_ids:
                    if (held := self._by_id.get(task_of(lease_id))) is not None:
                        held.pushed.add(lease_id)
            case Came(worker_id, receipts, results, arrived):
                owners = self._known(lease_id for lease_id, _ in results)
                for lease_id, tokens in results:
                    if (held := self._by_id.get(task_of(lease_id))) is not None:
                        held.results[lease_id] = tokens
                self._bundles.append((m.SealedReceipts(worker_id=worker_id, token=receipts, arrived=arrived), owners))
            case Decided(encoded):
                verdict = m.decode(m.TaskVerdict, encoded)
                owners = self._known([verdict.task_id])
                if (held := self._by_id.get(verdict.task_id)) is not None:
                    held.verdict = verdict
            case Paid(replicas):
                self._count(replicas)
            case Sums(earned, paid):
                self.earned = dict(earned)
                self._paid.update(paid)
            case Kept(phase, number, _, task_id):
                before = self.accepted.get((phase, number))
                self._live += length - (_size_of(before) if before is not None else 0)
                self.accepted[phase, number] = record
                over = task_id
            case Closed():
                self.closed = True
            case Over(task_id):
                over = task_id
            case Dropped(phase, number, _, task_id):
                self._dropped[phase, number] = record
                over = task_id
            case Failed(phase, number, _, task_id):
                self._failed[phase, number] = record
                over = task_id
        self._place(length, owners)
        if over:
            self._by_id.pop(over, None)
            self._forget(over)

    def _known(self, lease_ids: Iterable[str]) -> list[str]:
        return [task_id for task_id in _tasks_of(lease_ids) if task_id in self._by_id]


def _met(worker: m.AssignedWorker) -> Met:
    return Met(
        worker.worker_id, worker.address, worker.port, worker.slots, relay=worker.relay, relay_pass=worker.relay_pass
    )


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise SetupError(f"the journal {path} is in use: another process runs this job") from None
    return fd


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[:_PIECE]) :]


def _size_of(record: Record) -> int:
    """Bytes of a record in the file."""
    return _HEAD.size + len(encoder.encode(record))


def _tasks_of(lease_ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(task_of, lease_ids)))
