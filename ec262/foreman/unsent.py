"""Unsent: requests for leases, from before they are asked until workers have all that came of them. No I/O.

A request that a kill cuts short may have cost credits for leases that no worker has been sent, or that one has been
sent and did not confirm. Asked again, word for word, discovery gives the same answer, tickets included; a worker that
has a lease already does not run it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ec262.foreman.records import Answered, Asked, Record, task_of


@dataclass(slots=True)
class Request:
    """A request for leases.

    Attributes:
        answered: what was leased is noted. Until then nothing of it was sent to anybody.
        left: tasks of which leases are unsent; 0 until it is answered.
    """

    asked: Asked
    answered: bool = False
    left: int = 0


class Unsent:
    """The requests that are not done with."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._tasks: dict[str, tuple[str, set[str]]] = {}
        """By task id: the request's key, and the leases that are unsent."""

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def records(self) -> Iterator[Record]:
        """What a journal has to say of them."""
        for key, request in self._requests.items():
            yield request.asked
            if request.answered:
                yield Answered(key)

    def asked(self, record: Asked) -> None:
        """A request is about to be made."""
        self._requests[record.key] = Request(record)

    def answered(self, key: str, lease_ids: Iterable[str] = ()) -> None:
        """These leases came of it."""
        request = self._requests.get(key)
        if request is None:
            return
        by_task: dict[str, set[str]] = {}
        for lease_id in lease_ids:
            by_task.setdefault(task_of(lease_id), set()).add(lease_id)
        request.answered, request.left = True, len(by_task)
        self._tasks |= {task_id: (key, leases) for task_id, leases in by_task.items()}

    def sent(self, lease_ids: Iterable[str]) -> list[str]:
        """Their workers have these leases, or will not get them; returns the keys of requests that are done with."""
        over = []
        for lease_id in lease_ids:
            task_id = task_of(lease_id)
            if task_id in self._tasks:
                leases = self._tasks[task_id][1]
                leases.discard(lease_id)
                if not leases:
                    over += self.over(task_id)
        return over

    def over(self, task_id: str) -> list[str]:
        """No worker needs the task any more. Returns as `sent`."""
        key, _ = self._tasks.pop(task_id, ("", None))
        request = self._requests.get(key)
        if request is None:
            return []
        request.left -= 1
        return [] if request.left else self.drop(key)

    def drop(self, key: str) -> list[str]:
        """Nothing came of the request, or nothing can come of it any more. Returns as `sent`."""
        return [] if self._requests.pop(key, None) is None else [key]
