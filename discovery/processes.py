"""Processes: several that answer on one socket, and one that watches over them.

::

    supervisor      has the listening socket and, without --redis, the store; answers nobody
      | stdin of each child: a pipe that only the supervisor keeps open
    web process 1 … N     accept on that socket, share the store

One socket that all inherit, and not one each (``SO_REUSEPORT``): with a process its own socket would close, and the
connections that the kernel had put in that one's queue with it. So a child may come and go, and no connection is lost.

- A child that ends is replaced, after a pause that grows while children die young.
- SIGHUP: as many new children are started, which see new code; when all of them answer, the old ones stop accepting,
  have every connection told that it ends with its next answer, and leave.
- SIGTERM, SIGINT: the children stop accepting and finish what they have begun.
- The supervisor is killed: its end of the pipes closes, and children and store end.
- The embedded store dies: it is started again on what it wrote; requests are answered with 503 meanwhile, and clients
  ask again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO, Any

import gevent
from gevent.event import AsyncResult, Event
from gevent.subprocess import Popen

from discovery.logs import say
from discovery.store.keeper import Keeper
from discovery.store.server import start_server
from ec262.errors import SetupError
from ec262.serving import listen

log = logging.getLogger("ec262.discovery")

REDIS_VARIABLE = "EC262_REDIS"
LISTENER_VARIABLE = "EC262_DISCOVERY_LISTENER"
"""The descriptor that a web process inherits; only the supervisor sets it."""
MOST_PROCESSES = 64
DRAIN_S = 30.0
"""So long a process that was replaced waits for one more request on connections at rest. Longer than the time between
a worker's heartbeats."""
START_S = 60.0
STOP_S = 15.0
YOUNG_S = 10.0
"""A process that dies before is replaced after a pause."""
LONGEST_PAUSE_S = 10.0
DESCRIPTORS = 16_384


def lift_descriptor_limit() -> None:
    """Lets this process have as many descriptors as it may, for each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS has a further limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def inherited_listener() -> socket.socket | None:
    """The socket that the supervisor listens on; None: this process has no supervisor."""
    number = os.environ.pop(LISTENER_VARIABLE, None)
    return None if number is None else socket.socket(fileno=int(number))


def supervise(
    flags: argparse.Namespace, arguments: Sequence[str], wait_for_parent: Callable[[AsyncResult], None]
) -> int:
    """Runs web processes until a signal; returns the exit code.

    Args:
        flags: as `service.parser` parsed them.
        arguments: of the command line, for the children.
        wait_for_parent: sets the event when whoever started this process is gone.

    Raises:
        SetupError: the store, the socket or the web processes could not be started, or the store dies again and again.
    """
    over: AsyncResult = AsyncResult()
    renew = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, over.set)
    gevent.signal_handler(signal.SIGHUP, renew.set)
    with ExitStack() as stack:
        keeper = None
        if flags.redis is None:
            keeper = Keeper(start_server(flags.data_dir, ephemeral=flags.ephemeral))
            stack.callback(keeper.close)
        listener = listen(flags.host, flags.port)
        stack.callback(listener.close)
        children = _Children(arguments, listener.fileno(), flags.processes, keeper)
        stack.callback(children.stop)
        children.start()
        port = int(listener.getsockname()[1])
        host = f"[{flags.host}]" if ":" in flags.host else flags.host
        address = f"{'https' if flags.tls_cert else 'http'}://{host}:{port}"
        if flags.report_ready:
            print(json.dumps({"url": address}), flush=True)
        else:
            say(
                flags.log_format,
                f"discovery ({flags.network}) at {address} in {flags.processes} processes  -  Ctrl-C ends it, kill "
                f"-HUP {os.getpid()} renews them",
            )
        if flags.parent_pipe:
            gevent.spawn(wait_for_parent, over)
        if keeper is not None:
            stack.callback(gevent.spawn(_keep, keeper, renew, over).kill)
        while not over.ready():
            with contextlib.suppress(gevent.Timeout):
                over.get(timeout=0.2)
            if renew.is_set() and not over.ready():
                renew.clear()
                children.renew()
            children.mend()
        over.get()
    return 0


def _keep(keeper: Keeper, renew: Event, over: AsyncResult) -> None:
    """Has a store that died started again; where it then listens somewhere else, only new processes find it."""
    before = keeper.server.url

    def moved(url: str) -> None:
        nonlocal before
        if url != before:
            before = url
            renew.set()

    keeper.moved = moved
    try:
        keeper.watch()
    except Exception as reason:  # whatever it is: without a store nothing goes on
        over.set_exception(reason)


class _Child:
    """A web process."""

    def __init__(self, command: Sequence[str], descriptor: int, environment: dict[str, str]) -> None:
        self.started_s = time.monotonic()
        self.ready = Event()
        # A session of its own: Ctrl-C in the terminal is the supervisor's to answer.
        self.popen: Any = Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
        self._reader = gevent.spawn(self._read, self.popen.stdout)

    def _read(self, out: IO[bytes]) -> None:
        if out.readline():
            self.ready.set()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Sends it a signal, if it runs."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.popen.send_signal(number)

    def close(self) -> None:
        """Kills it if it runs still, and lets go of it."""
        self.signal(signal.SIGKILL)
        self.popen.wait()
        self._reader.kill()
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class _Children:
    """All web processes: those that answer, and those that were replaced and finish."""

    def __init__(self, arguments: Sequence[str], descriptor: int, count: int, keeper: Keeper | None) -> None:
        # -P: no module of the directory that it happens to be started in.
        self._command = [sys.executable, "-P", "-m", "discovery", *arguments, "--report-ready", "--parent-pipe"]
        self._descriptor = descriptor
        self._count = count
        self._keeper = keeper
        self._serving: list[_Child] = []
        self._leaving: list[_Child] = []
        self._pause_s = 0.0
        self._not_before_s = float("-inf")

    def start(self) -> None:
        """Starts them; returns when all answer.

        Raises:
            SetupError: one of them did not come to answer.
        """
        fresh = [self._spawn() for _ in range(self._count)]
        deadline = time.monotonic() + START_S
        while not all(child.ready.is_set() for child in fresh):
            if not all(child.alive for child in fresh) or time.monotonic() > deadline:
                for child in fresh:
                    child.close()
                raise SetupError("the processes that are to answer do not start; what they wrote says why")
            gevent.sleep(0.02)
        self._serving += fresh

    def renew(self) -> None:
        """Puts new ones in the place of all that serve, which then finish; where new ones fail, the old ones stay."""
        before, self._serving = self._serving, []
        try:
            self.start()
        except SetupError as reason:
            self._serving = before
            log.error("not renewed, the old processes go on: %s", reason)
            return
        for child in before:
            child.signal(signal.SIGHUP)
        self._leaving += before
        log.warning("renewed: %d processes answer, %d finish", len(self._serving), len(before))

    def mend(self) -> None:
        """Replaces those that died, and lets go of those that finished."""
        for child in [each for each in self._leaving if not each.alive]:
            self._leaving.remove(child)
            child.close()
        now_s = time.monotonic()
        for child in [each for each in self._serving if not each.alive]:
            self._serving.remove(child)
            log.error("process %d ended with code %s; another one takes its place", child.popen.pid, child.popen.poll())
            child.close()
            if now_s - child.started_s < YOUNG_S:
                self._pause_s = min(LONGEST_PAUSE_S, max(0.5, self._pause_s * 2))
                self._not_before_s = now_s + self._pause_s
        if any(now_s - each.started_s > YOUNG_S for each in self._serving):
            self._pause_s = 0.0
        while len(self._serving) < self._count and now_s >= self._not_before_s:
            self._serving.append(self._spawn())

    def stop(self) -> None:
        """Has all finish, and ends those that do not."""
        everybody = self._serving + self._leaving
        for child in everybody:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while any(child.alive for child in everybody) and time.monotonic() < deadline:
            gevent.sleep(0.02)
        for child in everybody:
            child.close()

    def _spawn(self) -> _Child:
        environment = {**os.environ, LISTENER_VARIABLE: str(self._descriptor)}
        if self._keeper is not None:
            environment[REDIS_VARIABLE] = self._keeper.server.url
        os.set_inheritable(self._descriptor, True)
        return _Child(self._command, self._descriptor, environment)
