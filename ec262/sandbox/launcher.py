"""Outside: the parent that runs units in the sandbox and believes nothing that comes out of it."""

from __future__ import annotations

import contextlib
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ec262.errors import SandboxUnavailable
from ec262.sandbox.outcome import ErrorInfo, Outcome, UnitTask
from ec262.sandbox.policy import DEFAULT, Limits, Policy
from ec262.sandbox.unit import UnitRun
from ec262.sandbox.zygote import Child, Grants, PollLike, Zygote, ZygoteGone

__all__ = ["ErrorInfo", "Grants", "Outcome", "PollLike", "Sandbox", "UnitTask"]

DEFAULT_EXECUTOR: Final = "ec262.mapreduce.program:execute"
_MOST_RESTARTS: Final = 5
_RESTART_WINDOW_S: Final = 30.0


class Sandbox:
    """Runs strangers' programs, unit by unit, each in a process of its own.

    One sandbox has one zygote; `run_unit` may be called from several threads, or from several greenlets when `poll` is
    gevent's, one call a slot. All waiting goes through `poll`.

    Args:
        policy: the layers and what they allow.
        slots: how many units run at once; so many children are kept forked ahead.
        poll: makes objects like ``select.poll``.
        unconfined: go on where the machine has no seccomp. For one's own code on one's own machine.
        executor: ``module:function`` that computes a task, called with program and parts.
        import_paths: directories `executor` is imported from beside EC262's own.
        python: interpreter of the zygote; its minor version is what packed programs must match.
    """

    def __init__(
        self,
        *,
        policy: Policy = DEFAULT,
        slots: int = 1,
        poll: Callable[[], PollLike] = select.poll,
        unconfined: bool = False,
        executor: str = DEFAULT_EXECUTOR,
        import_paths: Sequence[str] = (),
        python: str = sys.executable,
    ) -> None:
        self.policy = policy
        self._slots = slots
        self._poll = poll
        self._unconfined = unconfined
        self._executor = executor
        self._import_paths = tuple(import_paths)
        self._python = python
        self._zygote: Zygote | None = None
        self._spare: deque[tuple[Zygote, Child]] = deque()
        self._lock = threading.Lock()  # held for moments only, never while waiting
        self._starting = False
        self._closed = False
        self._deaths: deque[float] = deque(maxlen=_MOST_RESTARTS)

    def start(self) -> Grants:
        """Starts the zygote.

        Returns:
            What the machine granted.

        Raises:
            SandboxUnavailable: it does not start, or there is no seccomp and `unconfined` was not said.
        """
        return self._live_zygote().grants

    def run_unit(
        self,
        program: bytes,
        next_task: Callable[[], UnitTask | None],
        on_outcome: Callable[[UnitTask, Outcome], None],
        limits: Limits = Limits(),  # noqa: B008 - immutable
        stop: Callable[[], bool] | None = None,
        more: Callable[[], bool] | None = None,
    ) -> int:
        """Runs tasks of one program in one fresh child, until there are no more or the unit is long enough.

        A task that crashes or exceeds a limit costs itself alone: those sent with it run again in a new child.

        Args:
            program: what `pack_program` made; not looked at here.
            next_task: the next task, or None when there is none.
            more: asked when the child has nothing left to do; it may wait. True: `next_task` has a task again;
                False, or no `more`: the unit ends.
            on_outcome: called once for each task taken, in order.
            limits: what the unit may use.
            stop: asked every 0.2 s; True kills the unit, and tasks not done get no outcome.

        Returns:
            How many outcomes there were.

        Raises:
            SandboxUnavailable: the zygote keeps dying.
        """
        return UnitRun(self, self._poll, program, next_task, on_outcome, limits, stop, more).run()

    def acquire(self) -> Child:
        """A forked child, ahead of its first byte of foreign code; asks for the next one's fork already.

        Raises:
            SandboxUnavailable: the zygote keeps dying.
        """
        while True:
            zygote = self._live_zygote()
            try:
                child = self._take_spare(zygote) or zygote.request()
                try:
                    child.await_start(self._poll)
                except BaseException:
                    child.discard()
                    raise
                self._fork_ahead(zygote)
                return child
            except ZygoteGone:
                self._lost(zygote)

    def close(self) -> None:
        """Ends the zygote and every child; nothing is left running. May be called twice."""
        with self._lock:
            self._closed = True
            zygote, self._zygote = self._zygote, None
            spare, self._spare = list(self._spare), deque()
        for _, child in spare:
            child.discard()
        if zygote is not None:
            zygote.close()

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lost(self) -> None:
        """Tells that a child ended without anybody saying how: if the zygote is dead, it is to be replaced."""
        zygote = self._zygote
        if zygote is not None and not zygote.alive:
            self._lost(zygote)

    def _take_spare(self, zygote: Zygote) -> Child | None:
        with self._lock:
            while self._spare:
                owner, child = self._spare.popleft()
                if owner is zygote:
                    return child
                child.discard()
        return None

    def _fork_ahead(self, zygote: Zygote) -> None:
        with contextlib.suppress(ZygoteGone, SandboxUnavailable):
            if len(self._spare) < self._slots:
                child = zygote.request()
                with self._lock:
                    if not self._closed:
                        self._spare.append((zygote, child))
                        return
                child.discard()

    def _live_zygote(self) -> Zygote:
        while True:
            with self._lock:
                if self._closed:
                    raise SandboxUnavailable("the sandbox is closed")
                if self._zygote is not None:
                    return self._zygote
                if not self._starting:
                    self._starting = True
                    break
            self._poll().poll(5)  # another thread or greenlet is starting it
        try:
            zygote = Zygote(
                self.policy,
                executor=self._executor,
                import_paths=self._import_paths,
                python=self._python,
                poll=self._poll,
            )
            if not (zygote.grants.seccomp or self._unconfined):
                zygote.close()
                raise SandboxUnavailable(
                    "this machine has no seccomp, so it cannot confine strangers' code; "
                    "your own programs can still run here with --sandbox none"
                )
            with self._lock:
                if not self._closed:
                    self._zygote = zygote
                    return zygote
            zygote.close()
            raise SandboxUnavailable("the sandbox is closed")
        finally:
            self._starting = False

    def _lost(self, zygote: Zygote) -> None:
        with self._lock:
            if self._zygote is not zygote:
                return
            self._zygote = None
        zygote.close()
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == _MOST_RESTARTS and now - self._deaths[0] < _RESTART_WINDOW_S:
            raise SandboxUnavailable(
                f"the sandbox's zygote died {_MOST_RESTARTS} times within {_RESTART_WINDOW_S:.0f} s; "
                "is the machine out of memory?"
            )
