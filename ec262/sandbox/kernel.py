"""Linux, spoken to through ctypes alone: namespaces, empty root, capabilities, Landlock, seccomp, prctl.

Imported by the zygote and its children; on other systems it imports and every layer reports "not granted".
Each function says the man page it follows. Nothing here decides: the policy does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from typing import Final

from ec262.sandbox.syscalls import MACHINES

IS_LINUX: Final = sys.platform == "linux" and platform.machine() in MACHINES
_NUMBERS: Final = MACHINES[platform.machine()][1] if IS_LINUX else {}
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if IS_LINUX else None

_CLONE_FLAGS: Final = {
    "mnt": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
    "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
_NOBODY: Final = 65534
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 1, 4, 38, 24, 47
_PR_GET_SECCOMP: Final = 21
_SECCOMP_SET_MODE_FILTER: Final = 1
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 32, 0x4000, 1 << 18
_MNT_DETACH: Final = 2


def _call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """One raw system call.

    Raises:
        OSError: what errno says; ENOSYS off Linux.
    """
    if _LIBC is None or name not in _NUMBERS:
        raise OSError(38, f"{name} is not to be had on this system")
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = int(_LIBC.syscall(ctypes.c_long(_NUMBERS[name]), *wide))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _control(option: int, *arguments: int) -> int:
    """``prctl(2)``: unused arguments have to be zero for several options."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    return _call("prctl", option, *padded)


def become_nobody() -> bool:
    """Gives root up for user and group 65534, for good; True where done or not root to begin with."""
    if os.geteuid() != 0:
        return True
    try:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except OSError:  # a container whose user namespace does not map nobody
        return False
    # Changing user made /proc/self root's: without this, uid_map could not be written.
    _control(_PR_SET_DUMPABLE, 1)
    return True


def enter_namespaces(wanted: Iterable[str]) -> list[str]:
    """Leaves the machine's namespaces for new ones (``unshare(2)``, ``user_namespaces(7)``).

    Ubuntu's AppArmor grants a user namespace without any capability in it, Docker's seccomp profile grants
    nothing: each is asked for by itself when all together are refused.

    Returns:
        The names that were granted.
    """
    names = [name for name in wanted if name in _CLONE_FLAGS]
    granted: list[str] = []
    uid, gid = os.geteuid(), os.getegid()
    if "user" in names:
        try:
            _call("unshare", _CLONE_FLAGS["user"])
        except OSError:
            return []
        granted.append("user")
        with contextlib.suppress(OSError):
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
    rest = [name for name in names if name != "user"]
    try:
        _call("unshare", sum(_CLONE_FLAGS[name] for name in rest))
        granted += rest
    except OSError:
        for name in rest:
            with contextlib.suppress(OSError):
                _call("unshare", _CLONE_FLAGS[name])
                granted.append(name)
    return granted


def empty_root() -> bool:
    """Replaces the file system by an empty read-only tmpfs (``pivot_root(2)``); needs a mount namespace."""
    quiet = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    try:
        _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        place = next(path for path in (b"/tmp", b"/var", b"/dev", b"/proc") if os.path.isdir(path))
        _call("mount", b"none", place, b"tmpfs", quiet, b"size=4k,nr_inodes=2,mode=0555")
        os.chdir(place)
        _call("pivot_root", b".", b".")  # stacks the old root on the new one, where it is taken off again
        _call("umount2", b".", _MNT_DETACH)
        _call("mount", b"none", b"/", None, _MS_REMOUNT | _MS_RDONLY | quiet, b"size=4k,nr_inodes=2,mode=0555")
        os.chdir("/")
    except (OSError, StopIteration):
        return False
    return os.listdir("/") == []


def drop_capabilities() -> bool:
    """Empties every capability set, bounding and ambient ones included (``capabilities(7)``)."""
    for number in range(64):
        try:
            _control(_PR_CAPBSET_DROP, number)
        except OSError:
            break  # EINVAL past the last capability, EPERM without CAP_SETPCAP: then there is none to lose
    with contextlib.suppress(OSError):
        _control(_PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    try:
        # version 3: two words each of effective, permitted, inheritable
        _call("capset", struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 0, 0, 0, 0, 0, 0))
    except OSError:
        return False
    return True


def forbid_new_privileges() -> bool:
    """``PR_SET_NO_NEW_PRIVS``: no exec can gain anything; Landlock and seccomp ask for it."""
    try:
        _control(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError:
        return False
    return True


def landlock_version() -> int:
    """The kernel's Landlock ABI (``landlock(7)``), 0 without."""
    try:
        return _call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def landlock_ruleset() -> int:
    """A descriptor of a rule set that handles everything the kernel knows and allows nothing of it; -1 without."""
    version = landlock_version()
    if version < 1:
        return -1
    files = 0x1FFF | (0x2000 if version >= 2 else 0) | (0x4000 if version >= 3 else 0)
    files |= 0x8000 if version >= 5 else 0
    attributes = struct.pack("=Q", files)
    if version >= 4:
        attributes += struct.pack("=Q", 3)  # bind and connect TCP
    if version >= 6:
        attributes += struct.pack("=Q", 3)  # abstract Unix sockets and signals to outside
    try:
        return _call("landlock_create_ruleset", attributes, len(attributes), 0)
    except OSError:
        return -1


def landlock_restrict(ruleset: int) -> bool:
    """Puts the calling process, and all it forks, under a rule set; they stack."""
    try:
        _call("landlock_restrict_self", ruleset, 0)
    except OSError:
        return False
    return True


def install_filter(program: bytes) -> None:
    """Puts the calling process under a seccomp filter, for good.

    Args:
        program: what `ec262.sandbox.seccomp.assemble` made.

    Raises:
        OSError: the kernel has no seccomp filters or refuses this one.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, header)


def has_seccomp() -> bool:
    """Whether filters can be had: asks with a null program, for which a kernel that has them says EFAULT."""
    try:
        _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, None)
    except OSError as reason:
        return reason.errno == 14
    return False


def die_with_parent(signal_number: int) -> None:
    """``PR_SET_PDEATHSIG``: the signal to get when the parent (thread) ends; nothing off Linux."""
    with contextlib.suppress(OSError):
        _control(_PR_SET_PDEATHSIG, signal_number)


def forbid_inspection() -> None:
    """``PR_SET_DUMPABLE`` 0: no core, no ptrace, /proc entries owned by root."""
    with contextlib.suppress(OSError):
        _control(_PR_SET_DUMPABLE, 0)


def close_from(lowest: int) -> None:
    """Closes every descriptor from `lowest` on."""
    try:
        _call("close_range", lowest, 0x7FFFFFFF, 0)
    except OSError:
        os.closerange(lowest, 65_536)
