"""What `ec262 worker --check` shows: each layer, whether this machine grants it, and real attacks tried on it.

The attacks run without the language layer, so that the kernel's layers are what holds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ec262.errors import SandboxUnavailable
from ec262.mapreduce.program import Program, map_header
from ec262.protocol.canonical import encode_pairs
from ec262.sandbox.launcher import Outcome, Sandbox, UnitTask
from ec262.sandbox.layers import Layer, layers_of
from ec262.sandbox.pack import pack_program
from ec262.sandbox.policy import DEFAULT, Limits, Policy


@dataclass(frozen=True, slots=True)
class Trial:
    """One attack tried.

    Attributes:
        name: what was attempted.
        held: whether the sandbox held.
        ending: how it ended, in a few words.
    """

    name: str
    held: bool
    ending: str


@dataclass(frozen=True, slots=True)
class Report:
    """Layers and trials; `safe` when strangers' code may run here."""

    layers: list[Layer]
    trials: list[Trial]
    lane: str

    @property
    def safe(self) -> bool:
        """Seccomp is there and every attack failed."""
        return all(trial.held for trial in self.trials) and any(
            layer.name == "seccomp" and layer.granted for layer in self.layers
        )


def check(policy: Policy = DEFAULT, *, python: str = sys.executable) -> Report:
    """Starts a sandbox, asks what the machine granted, and attacks it. Takes about a second.

    Where there is no seccomp nothing is attacked: it would be this machine that is hit.

    Raises:
        SandboxUnavailable: no sandbox starts here, not even an unconfined one.
    """
    with Sandbox(policy=policy, python=python, unconfined=True) as sandbox:
        grants = sandbox.start()
    trials = list(_try_attacks(policy, python)) if grants.seccomp else []
    return Report(layers_of(grants), trials, grants.lane)


def _try_attacks(policy: Policy, python: str) -> Iterable[Trial]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        canary = Path(name, "canary")
        canary.write_text("canary")
        # Open to everybody: only the sandbox stands between.
        os.chmod(name, 0o777)
        canary.chmod(0o666)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.setblocking(False)
        facts = {"canary": str(canary), "port": server.getsockname()[1], "worker": os.getpid()}
        sandbox = stack.enter_context(Sandbox(policy=replace(policy, language=False), python=python))
        for title, attack in ATTACKS.items():
            outcome = _run(sandbox, attack, facts)
            said = outcome.parts[0].decode(errors="replace") if outcome.kind == "ok" else ""
            connected = False
            with contextlib.suppress(BlockingIOError):
                server.accept()
                connected = True
            touched = connected or canary.read_text() != "canary" or len(os.listdir(name)) != 1
            yield Trial(title, "escaped" not in said and not touched, _ending(outcome))


def _run(sandbox: Sandbox, attack: Callable[..., Any], facts: dict[str, Any]) -> Outcome:
    parts = [map_header("selftest", index=0, partitions=1), encode_pairs([("facts", facts)])]
    tasks = [UnitTask("selftest", parts, cpu_limit_s=0.3, wall_limit_s=3.0, max_output_bytes=1 << 20)]
    outcomes: list[Outcome] = []
    sandbox.run_unit(
        pack_program(Program(attack)),
        lambda: tasks.pop() if tasks else None,
        lambda _, outcome: outcomes.append(outcome),
        Limits(memory_bytes=128 << 20),
    )
    if not outcomes:
        raise SandboxUnavailable("the self-test got no answer from the sandbox")
    return outcomes[0]


def _ending(outcome: Outcome) -> str:
    error = outcome.error
    if error is None:
        return "it ran, and nothing came of it"
    return error.message if error.limit else f"{error.type}: {error.message}"


# --- the attacks; each runs inside, and yields "escaped" when it had its way -----------------------------------


def _read_a_file(_: Any, facts: Any) -> Any:
    with open(facts["canary"]) as file:
        yield "escaped", file.read()


def _write_a_file(_: Any, facts: Any) -> Any:
    with open(facts["canary"], "w") as file:
        yield "escaped", file.write("x")


def _list_the_root(_: Any, __: Any) -> Any:
    import os  # noqa: PLC0415 - an attack travels with its imports

    if os.listdir("/"):
        yield "escaped", 1


def _read_the_environment(_: Any, __: Any) -> Any:
    import os  # noqa: PLC0415

    for name in ("HOME", "PATH", "USER", "SSH_AUTH_SOCK"):
        if name in os.environ:
            yield "escaped", name


def _connect(_: Any, facts: Any) -> Any:
    import socket  # noqa: PLC0415

    socket.create_connection(("127.0.0.1", facts["port"]), 1)
    yield "escaped", 1


def _run_a_program(_: Any, __: Any) -> Any:
    import subprocess  # noqa: PLC0415

    subprocess.run(["true"], check=True)
    yield "escaped", 1


def _fork(_: Any, __: Any) -> Any:
    import os  # noqa: PLC0415

    if os.fork() == 0:
        os._exit(0)
    yield "escaped", 1


def _signal_the_worker(_: Any, facts: Any) -> Any:
    import os  # noqa: PLC0415

    os.kill(facts["worker"], 0)
    yield "escaped", 1


def _trace_the_worker(_: Any, facts: Any) -> Any:
    import ctypes  # noqa: PLC0415

    if ctypes.CDLL(None).ptrace(16, facts["worker"], 0, 0) == 0:
        yield "escaped", 1


def _make_machine_code(_: Any, __: Any) -> Any:
    import mmap  # noqa: PLC0415

    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    yield "escaped", 1


def _use_up_memory(_: Any, __: Any) -> Any:
    yield "escaped", len(bytearray(1 << 32))


def _never_end(_: Any, __: Any) -> Any:
    while True:
        pass


ATTACKS: dict[str, Callable[[Any, Any], Any]] = {
    "read a file": _read_a_file,
    "write a file": _write_a_file,
    "list the file system": _list_the_root,
    "read the environment": _read_the_environment,
    "connect to a port": _connect,
    "run a program": _run_a_program,
    "fork": _fork,
    "signal the worker": _signal_the_worker,
    "trace the worker": _trace_the_worker,
    "make machine code": _make_machine_code,
    "use up memory": _use_up_memory,
    "never end": _never_end,
}
