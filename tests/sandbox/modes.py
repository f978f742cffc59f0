"""Sandboxes in every way a worker may have to run: as root or an ordinary user, with namespaces or without.

A mode's sandbox lives as long as the test session. The ordinary user's lives in a helper process of that user, which
sees the interpreter and the project through bind mounts when they are in a directory of root's.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ec262.mapreduce.program import Program
from ec262.sandbox.launcher import Grants, Outcome, Sandbox, UnitTask
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import DEFAULT, NO_LAYERS, Limits, Policy

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
ORDINARY_USER = 23_231
IS_ROOT = os.geteuid() == 0
HAS_NAMESPACES = Path("/proc/self/ns/user").exists()

POLICIES: dict[str, Policy] = {
    "full": DEFAULT,
    "kernel": replace(DEFAULT, language=False),
    "full-no-namespaces": replace(DEFAULT, namespaces=()),
    "kernel-no-namespaces": replace(DEFAULT, namespaces=(), language=False),
    "seccomp-only": replace(DEFAULT, namespaces=(), landlock=False, language=False),
    "none": NO_LAYERS,
}
SMALL = Limits(memory_bytes=256 << 20, max_unit_tasks=1000)


class Runner:
    """Sandboxes of this process, by policy name."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Sandbox] = {}

    def sandbox(self, policy: str, executor: str = "call") -> Sandbox:
        """The running sandbox of a policy."""
        found = self._open.get((policy, executor))
        if found is None:
            found = Sandbox(
                policy=POLICIES[policy],
                unconfined=policy == "none",
                executor=f"executors:{executor}",
                import_paths=[str(HERE)],
            )
            found.start()
            self._open[policy, executor] = found
        return found

    def grants(self, policy: str) -> Grants:
        """What the machine granted it."""
        return self.sandbox(policy).start()

    def run(
        self, policy: str, blob: bytes, tasks: Sequence[UnitTask], limits: Limits = SMALL, executor: str = "call"
    ) -> list[Outcome]:
        """The outcomes of one unit."""
        queue = list(reversed(tasks))
        outcomes: list[Outcome] = []
        self.sandbox(policy, executor).run_unit(
            blob, lambda: queue.pop() if queue else None, lambda _, outcome: outcomes.append(outcome), limits
        )
        return outcomes

    def close(self) -> None:
        """Ends them all."""
        for sandbox in self._open.values():
            sandbox.close()
        self._open.clear()


class OtherUser:
    """A `Runner` in a process of an ordinary user. Started by root only."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            _as_ordinary_user(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]}
        )

    def grants(self, policy: str) -> Grants:
        """As `Runner.grants`."""
        return self._ask("grants", policy)  # type: ignore[no-any-return]

    def run(
        self, policy: str, blob: bytes, tasks: Sequence[UnitTask], limits: Limits = SMALL, executor: str = "call"
    ) -> list[Outcome]:
        """As `Runner.run`."""
        return self._ask("run", policy, blob, list(tasks), limits, executor)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _write(self._process.stdin, (method, arguments))
        answer = _read(self._process.stdout)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _as_ordinary_user() -> list[str]:
    """The command that runs this file as the ordinary user, with what it needs at its usual place."""
    needed = [Path(sys.base_prefix), PROJECT, Path(sys.prefix)]
    needed = [path for path in needed if not any(path != other and path.is_relative_to(other) for other in needed)]
    closed = [path for path in needed if not all(parent.stat().st_mode & 1 for parent in [path, *path.parents])]
    lines = ["set -e", "mount -t tmpfs none /mnt"]
    for number, path in enumerate(closed):
        lines.append(f"mkdir /mnt/{number}; mount --bind '{path}' /mnt/{number}")
    for top in sorted({Path(*path.parts[:2]) for path in closed}):
        lines.append(f"mount -t tmpfs -o mode=755 none '{top}'")
    for number, path in enumerate(closed):
        lines.append(f"mkdir -p '{path}'; mount --bind /mnt/{number} '{path}'")
    lines += [
        f"cd / ; export PYTHONPATH='{PROJECT}' PYTHONDONTWRITEBYTECODE=1 HOME=/nonexistent",
        f"exec setpriv --reuid {ORDINARY_USER} --regid {ORDINARY_USER} --clear-groups '{sys.executable}' '{__file__}'",
    ]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)]


def _write(stream: BinaryIO | Any, thing: Any) -> None:
    body = pickle.dumps(thing)
    stream.write(struct.pack("!Q", len(body)) + body)
    stream.flush()


def _read(stream: BinaryIO | Any) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("!Q", head)[0]))


def one(
    runner: Runner | OtherUser,
    policy: str,
    function: Callable[..., Any],
    facts: Any = None,
    *,
    limits: Limits = SMALL,
    **task_limits: Any,
) -> Outcome:
    """Runs one function as one task of a unit, its argument sent as JSON."""
    return several(runner, policy, function, [facts], limits=limits, **task_limits)[0]


def several(
    runner: Runner | OtherUser,
    policy: str,
    function: Callable[..., Any],
    facts: Sequence[Any],
    *,
    limits: Limits = SMALL,
    **task_limits: Any,
) -> list[Outcome]:
    """Runs one function over several arguments in one unit."""
    tasks = [UnitTask(i, [json.dumps(fact).encode()], **task_limits) for i, fact in enumerate(facts)]
    return runner.run(policy, pack_program(Program(function)), tasks, limits)


def serve() -> None:
    """The ordinary user's process: answers until its input ends."""
    runner = Runner()
    try:
        while True:
            try:
                method, arguments = _read(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer = getattr(runner, method)(*arguments)
            except Exception as reason:
                answer = reason
            _write(sys.stdout.buffer, answer)
    finally:
        runner.close()


if __name__ == "__main__":
    serve()
