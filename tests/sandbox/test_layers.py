"""The layers one by one: the filter as data, what the machine grants, the self-test."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace

import pytest

from ec262.sandbox import seccomp
from ec262.sandbox.launcher import Sandbox
from ec262.sandbox.outcome import sanitise
from ec262.sandbox.policy import ALLOWED_CALLS, DEFAULT, NAMESPACES, REFUSED_CALLS, Limits
from ec262.sandbox.selftest import ATTACKS, Report, _try_attacks, check
from ec262.sandbox.syscalls import MACHINES
from tests.sandbox.modes import HERE, PROJECT, OtherUser, Runner

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000


def _decide(machine: str, number: int, arguments: tuple[int, ...] = (), architecture: int | None = None) -> int:
    """What the filter says: classic BPF, interpreted."""
    code = list(struct.iter_unpack("=HBBI", seccomp.assemble(machine)))
    word = MACHINES[machine][0] if architecture is None else architecture
    data = struct.pack("=iIQ6Q", number, word, 0, *(arguments + (0,) * 6)[:6])
    at, register = 0, 0
    while True:
        operation, yes, no, constant = code[at]
        at += 1
        if operation == 0x20:
            (register,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x06:
            return int(constant)
        else:
            true = {0x15: register == constant, 0x35: register >= constant, 0x45: bool(register & constant)}[operation]
            at += yes if true else no


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_decides_as_the_policy_says(machine: str) -> None:
    numbers = MACHINES[machine][1]
    for name in ALLOWED_CALLS:
        if name in numbers:
            assert _decide(machine, numbers[name]) == ALLOW, name
    for name in REFUSED_CALLS:
        if name in numbers and name != "clone3":
            assert _decide(machine, numbers[name]) == REFUSE, name
    assert _decide(machine, numbers["clone3"]) == 0x00050026
    named = {*ALLOWED_CALLS, *REFUSED_CALLS, "read", "write", "mmap", "mprotect", "mremap", "madvise"}
    known = {numbers[name] for name in named if name in numbers}
    for number in range(600):
        if number not in known:
            assert _decide(machine, number) == KILL, number


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_looks_at_arguments(machine: str) -> None:
    numbers = MACHINES[machine][1]
    assert [_decide(machine, numbers["read"], (fd,)) for fd in (0, 1, 3)] == [ALLOW, REFUSE, REFUSE]
    assert [_decide(machine, numbers["write"], (fd,)) for fd in (0, 1, 2)] == [REFUSE, ALLOW, REFUSE]
    for name in ("mmap", "mprotect"):
        assert [_decide(machine, numbers[name], (0, 4096, prot)) for prot in (3, 4, 7, 5)] == [ALLOW, *[REFUSE] * 3]
    assert [_decide(machine, numbers["madvise"], (0, 0, advice)) for advice in (4, 8, 100)] == [ALLOW, ALLOW, REFUSE]


def test_filter_kills_foreign_architectures_and_x32() -> None:
    assert _decide("x86_64", 1, (1,), architecture=0x40000003) == KILL  # i386: 1 is exit, 4 is write
    assert _decide("x86_64", 0x40000000 + 1, (1,)) == KILL
    assert _decide("aarch64", 64, (1,), architecture=0xC000003E) == KILL


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's layers")
def test_grants_tell_what_is_there(runner: Runner) -> None:
    grants = runner.grants("full")
    assert grants.seccomp
    assert grants.capabilities
    assert grants.no_new_privileges
    assert grants.nobody
    assert grants.uid != 0
    assert set(grants.namespaces) <= set(NAMESPACES)
    assert grants.lane.startswith(f"native-{sys.version_info[0]}.{sys.version_info[1]}-")
    bare = runner.grants("seccomp-only")
    assert (bare.namespaces, bare.empty_root, bare.landlock) == ((), False, 0)


def test_ordinary_user_gets_the_same_layers(runner: Runner, other_user: OtherUser) -> None:
    mine, theirs = runner.grants("full"), other_user.grants("full")
    assert (mine.seccomp, mine.namespaces, mine.landlock) == (theirs.seccomp, theirs.namespaces, theirs.landlock)
    assert theirs.uid not in (0, 65534)


def test_it_works_where_namespaces_are_refused() -> None:
    """As in Docker: a filter around the worker makes unshare fail, and the rest holds."""
    script = f"""
import struct, sys
sys.path.insert(0, {str(PROJECT)!r})
from ec262.sandbox import kernel, seccomp
from ec262.sandbox.syscalls import MACHINES
import platform
architecture, numbers = MACHINES[platform.machine()]
kernel.forbid_new_privileges()
kernel.install_filter(b"".join(struct.pack("=HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x15, 0, 1, numbers["unshare"]), (6, 0, 0, 0x00050001), (6, 0, 0, 0x7FFF0000)]))
from ec262.sandbox.selftest import check
report = check()
assert report.safe, report
assert not [layer for layer in report.layers if layer.name == "namespaces"][0].granted
print("held")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "held\n", done.stderr


def test_selftest_reports_layers_and_holds() -> None:
    report = check()
    assert report.safe
    assert {layer.name for layer in report.layers} >= {"seccomp", "namespaces", "landlock", "ordinary user"}
    assert [trial.name for trial in report.trials] == list(ATTACKS)
    assert all(trial.held and trial.ending for trial in report.trials)


def test_selftest_can_fail() -> None:
    """Without seccomp and the rest, several of its attacks have their way: it looks at effects."""
    bare = replace(DEFAULT, namespaces=(), landlock=False, rlimits=False, seccomp=False)
    report = check(bare)
    assert not report.safe
    assert report.trials == [], "nothing is attacked that is not confined"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ec262.sandbox.selftest.Sandbox", _unconfined)
        trials = list(_try_attacks(bare, sys.executable))
    assert not Report(report.layers, trials, report.lane).safe
    fallen = {trial.name for trial in trials if not trial.held}
    assert fallen >= {"read a file", "write a file", "connect to a port", "fork", "run a program"}


def _unconfined(**arguments: object) -> Sandbox:
    return Sandbox(**arguments, unconfined=True)  # type: ignore[arg-type]


def test_package_imports_nothing_heavy() -> None:
    code = f"import sys; sys.path[:0] = [{str(HERE.parents[1])!r}]; import ec262.sandbox.launcher; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"gevent", "flask", "redis", "cloudpickle", "requests"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain é", "plain é"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202e", "\\u202e"),
        ("\r\x00", "\\r\\x00"),
        ("x" * 99, "x" * 50),
    ],
)
def test_strangers_text_is_sanitised(text: str, shown: str) -> None:
    assert sanitise(text, 50) == shown


def test_limits_refuse_nonsense() -> None:
    for wrong in ({"memory_bytes": 1}, {"unit_cpu_s": 0}, {"max_unit_tasks": 0}):
        with pytest.raises(ValueError, match="limits"):
            Limits(**wrong)
