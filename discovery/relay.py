"""Relay: carries calls of foremen to workers that they cannot connect to, and the replies back.

A call stays in the memory of the process that took it, until the worker has replied or its time is over. In Redis
there is only a note of it (`store/lua/relay.lua`). A worker's poll may wait at any process: that one learns of the
note, and has the call told by the process that holds it. Calls and replies are of a megabyte at most, are not looked
into, and are written to no file.

Whoever holds something, holds little: there are bounds for a worker, for an account at a worker, and for the process.
Beyond them the answer is ``busy``, and the other side comes again.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from discovery.reach import Reach
from discovery.settings import Settings
from discovery.store.calls import Offer
from discovery.store.store import Store
from ec262.errors import ProblemError
from ec262.protocol import messages as m

log = logging.getLogger("ec262.discovery")

TELL_S = 5.0
"""How long another process may take to answer."""
AGAIN_S = 5.0
"""A call that went out and was not confirmed is sent once more after this, and what a slow line takes for it."""
SLOW_LINE = 64 * 1024
"""Bytes a second."""
MOST_POLLS = 16
"""Of one worker that wait at once in a process; with another, the oldest is answered. A worker has four, and some that
broke off and are not known to have. Without a bound one account's polls could take the room of all."""
MOST_TOLD = 8
"""Calls and replies on their way to other processes at once."""
SUMMONED_S = 1e10
"""Whoever was called a moment ago is there, whatever was heard of it before."""
MOST_CONFIRMED = 32
"""Processes that one poll has told what came; a call that is not told of is sent again, which is harmless."""
_PROCESS = 16
"""The first digits of a call's id name the process that holds it."""


class _Held:
    """A call that waits for its reply."""

    __slots__ = ("call", "changed", "received", "reply", "sender", "taken_s", "worker_id")

    def __init__(self, worker_id: str, sender: str, call: bytes) -> None:
        self.worker_id = worker_id
        self.sender = sender
        self.call = call
        self.reply: bytes | None = None
        self.received = False
        self.taken_s = 0.0
        self.changed = threading.Event()

    def again_s(self) -> float:
        """When it is to be sent once more, of `time.monotonic`; never, if the worker has it or it did not go out."""
        if self.received or not self.taken_s:
            return float("inf")
        return self.taken_s + AGAIN_S + len(self.call) / SLOW_LINE


class _Poll:
    """A worker that waits."""

    __slots__ = ("over", "woken")

    def __init__(self) -> None:
        self.over = False
        self.woken = threading.Event()


class _Told:
    """What another process was asked for."""

    __slots__ = ("answer", "came")

    def __init__(self) -> None:
        self.came = threading.Event()
        self.answer: list[Any] = []


class Relay:
    """The relay's part in one process.

    Attributes:
        most_waiting: calls and polls that this process holds at a time.
    """

    def __init__(self, store: Store, reach: Reach, settings: Settings) -> None:
        self._calls = store.calls
        self._channel = store.channel
        self._reach = reach
        self._settings = settings
        self.most_waiting = settings.relay_waiting
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._polls: defaultdict[str, list[_Poll]] = defaultdict(list)
        self._told: dict[str, _Told] = {}
        self._bulk = threading.BoundedSemaphore(MOST_TOLD)
        self._bytes = 0
        self._waiting = 0
        self._leaving = False

    @property
    def held_bytes(self) -> int:
        """Bytes of calls and replies in this process."""
        return self._bytes

    def let_go(self) -> None:
        """Answers all that wait: the process ends. Their calls and polls come again, here or at another one."""
        with self._lock:
            self._leaving = True
            for held in self._held.values():
                held.changed.set()
            for polls in self._polls.values():
                for poll in polls:
                    poll.woken.set()

    # --- a foreman ---

    def call(
        self, account_id: str, worker_id: str, sender: str, call: bytes, *, wait_s: float, pass_until_ms: int
    ) -> bytes:
        """The worker's reply to a call.

        Raises:
            ProblemError: ``busy``, ``unknown-worker``, ``relay-refused``, ``absent``: the worker did not get it;
                ``no-answer``, ``unavailable``: it may have.
        """
        with self._room(len(call)):
            self._channel.listen(self._hear)
            call_id = self._channel.process + secrets.token_hex(8)
            held = self._held[call_id] = _Held(worker_id, sender, call)
            deadline = time.monotonic() + wait_s
            offer = Offer(worker_id, call_id, self._channel.process, account_id, len(call), wait_s, pass_until_ms)
            try:
                self._offer(offer)
                self._await_reply(held, offer, deadline)
            finally:
                with self._lock:
                    del self._held[call_id]
                    self._bytes -= len(held.reply or b"")
                self._calls.end(worker_id, call_id)
            if held.reply is None and self._leaving:
                raise ProblemError(503, "unavailable", "this process of the service ends: call again")
            if held.reply is None:
                raise _no_answer("it took too long" if held.received else "it did not come for it")
            return held.reply

    def _offer(self, offer: Offer) -> None:
        settings = self._settings
        bounds = (settings.relay_worker_calls, settings.relay_worker_bytes)
        outcome = self._calls.offer(offer, bounds, settings.relay_absent_s)
        if outcome[0] == "absent":
            _, address, port, boot_id = outcome
            if not self._reach.call(address, port, boot_id, "call"):
                raise _absent("it is not to be reached by this service either")
            outcome = self._calls.offer(offer, bounds, SUMMONED_S)
        match outcome[0]:
            case "ok":
                return
            case "full":
                raise _busy("as many calls wait for this worker as may")
            case "late":
                raise ProblemError(403, "relay-refused", "the leases that this pass came with are over")
            case "unknown":
                raise ProblemError(404, "unknown-worker", "this worker is not registered, or serves no relay")
            case _:
                raise _absent("nothing was heard of it for a while")

    def _await_reply(self, held: _Held, offer: Offer, deadline: float) -> None:
        while held.reply is None and not self._leaving and (now := time.monotonic()) < deadline:
            held.changed.wait(max(0.0, min(deadline, held.again_s()) - now))
            held.changed.clear()
            if held.reply is None and held.again_s() <= time.monotonic():
                held.taken_s = 0.0
                self._calls.again(offer.worker_id, offer.call_id)

    # --- a worker ---

    def take(self, account_id: str, worker_id: str, wanted: m.TakeCalls) -> m.CallsTaken | None:
        """The next call for a worker; none, when none came while it waited. None: it is not registered so."""
        self._confirm(wanted.received)
        with self._room(0):
            self._channel.listen(self._hear)
            deadline = time.monotonic() + min(wanted.wait_s, self._settings.relay_poll_s)
            poll = _Poll()
            with self._lock:
                polls = self._polls[worker_id]
                if len(polls) >= MOST_POLLS:
                    oldest = polls.pop(0)
                    oldest.over = True
                    oldest.woken.set()
                polls.append(poll)
            anew = wanted.anew
            try:
                while True:
                    left_s = max(0.0, deadline - time.monotonic())
                    outcome, call_id, waiting = self._calls.take(
                        *(worker_id, account_id, wanted.boot_id, self._channel.process, left_s, anew)
                    )
                    anew = False
                    if outcome == "unknown":
                        return None
                    if outcome == "call":
                        taken = self._fetch(worker_id, call_id)
                        if taken is not None:
                            return m.CallsTaken(calls=[taken], waiting=waiting)
                        continue  # its foreman has gone away, or the process that held it
                    if left_s <= 0 or self._leaving or poll.over:
                        return m.CallsTaken(calls=[])
                    poll.woken.wait(left_s)
                    poll.woken.clear()
            finally:
                with self._lock:
                    if not poll.over:
                        self._polls[worker_id].remove(poll)
                    if not self._polls[worker_id]:
                        del self._polls[worker_id]

    def reply(self, worker_id: str, call_id: str, reply: bytes) -> None:
        """A worker has replied to a call. Whoever knows a call's id has been given it to reply to.

        Raises:
            ProblemError: ``too-late``; ``busy``.
        """
        process = call_id[:_PROCESS]
        if process == self._channel.process:
            outcome = self._replied(call_id, worker_id, reply)
        else:
            answer = self._ask(process, "reply", call_id, worker_id, reply)
            if answer is None:
                raise _busy("another process of this service is slow")
            outcome = answer[0] if answer else "gone"
        if outcome == "full":
            raise _busy("too much is on its way")
        if outcome != "ok":
            raise ProblemError(410, "too-late", "nobody waits for the reply to this call any more")

    def _confirm(self, received: Sequence[str]) -> None:
        by_process: defaultdict[str, list[str]] = defaultdict(list)
        for call_id in received:
            by_process[call_id[:_PROCESS]].append(call_id)
        for process, call_ids in islice(by_process.items(), MOST_CONFIRMED):
            if process == self._channel.process:
                self._received(call_ids)
            else:
                self._channel.tell(process, ["received", call_ids])

    def _fetch(self, worker_id: str, call_id: str) -> m.RelayedCall | None:
        process = call_id[:_PROCESS]
        found: list[Any] | None
        if process == self._channel.process:
            found = self._taken(worker_id, call_id)
        else:
            found = self._ask(process, "fetch", worker_id, call_id)
            if found is None:  # that process may not know that it was to be taken
                self._calls.again(worker_id, call_id)
        return m.RelayedCall(call_id=call_id, sender=found[0], call=found[1]) if found else None

    # --- between processes ---

    def _ask(self, process: str, what: str, *arguments: Any) -> list[Any] | None:
        """Another process's answer; empty: it is gone, or knows nothing of it; None: it was told, and did not answer.

        Redis cuts off who listens too slowly (``client-output-buffer-limit pubsub``), and what was on its way is lost.
        """
        with self._bulk:
            token = secrets.token_hex(8)
            told = self._told[token] = _Told()
            try:
                if not self._channel.tell(process, [what, self._channel.process, token, *arguments]):
                    return []
                return told.answer if told.came.wait(TELL_S) else None
            finally:
                del self._told[token]

    def _hear(self, message: list[Any]) -> None:
        match message:
            case ["wake", worker_id]:
                self._wake(worker_id)
            case ["received", call_ids]:
                self._received(call_ids)
            case ["fetch", asker, token, worker_id, call_id]:
                self._channel.tell(asker, ["answer", token, self._taken(worker_id, call_id)])
            case ["reply", asker, token, call_id, worker_id, reply]:
                self._channel.tell(asker, ["answer", token, [self._replied(call_id, worker_id, reply)]])
            case ["answer", token, answer]:
                told = self._told.get(token)
                if told is not None:
                    told.answer = answer
                    told.came.set()
            case _:
                log.error("a process of this service said something unknown; are all of the same version?")

    def _wake(self, worker_id: str) -> None:
        with self._lock:
            polls = self._polls.get(worker_id, ())
            poll = next((each for each in polls if not each.woken.is_set()), None)
            if poll is not None:
                poll.woken.set()

    def _taken(self, worker_id: str, call_id: str) -> list[Any]:
        held = self._held.get(call_id)
        if held is None or held.worker_id != worker_id or held.received:
            return []
        held.taken_s = time.monotonic()
        held.changed.set()
        return [held.sender, held.call]

    def _received(self, call_ids: Sequence[str]) -> None:
        for call_id in call_ids:
            held = self._held.get(call_id)
            if held is not None:
                held.received = True
                held.changed.set()

    def _replied(self, call_id: str, worker_id: str, reply: bytes) -> str:
        with self._lock:
            held = self._held.get(call_id)
            if held is None or held.worker_id != worker_id:
                return "gone"
            if held.reply is None:
                if self._bytes + len(reply) > self._settings.relay_bytes:
                    return "full"
                self._bytes += len(reply)
                held.reply = reply
                held.changed.set()
        return "ok"

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """A place for a call or poll while it waits.

        Raises:
            ProblemError: ``busy``.
        """
        with self._lock:
            if self._waiting >= self.most_waiting or self._bytes + size > self._settings.relay_bytes:
                raise _busy("the relay carries as much as it may")
            self._waiting += 1
            self._bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                self._bytes -= size


def _busy(why: str) -> ProblemError:
    return ProblemError(503, "busy", f"{why}: try again in a moment")


def _absent(why: str) -> ProblemError:
    return ProblemError(504, "absent", f"the worker does not wait at the relay, and was not called: {why}")


def _no_answer(why: str) -> ProblemError:
    return ProblemError(504, "no-answer", f"the worker did not reply: {why}")
