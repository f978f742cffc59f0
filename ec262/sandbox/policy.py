"""What strangers' code may do, as data: limits, kernel layers, modules, builtins, system calls."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final


def _words(text: str) -> list[str]:
    return text.split()


NAMESPACES: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
"""The namespaces a zygote enters where the machine allows it (``namespaces(7)``)."""

STANDARD_MODULES: Final = frozenset(
    _words(
        """
    __future__ abc array base64 binascii bisect calendar cmath collections collections.abc copy dataclasses datetime
    decimal difflib enum fractions functools hashlib heapq hmac itertools json json.decoder json.encoder math numbers
    operator random re statistics string struct textwrap types typing unicodedata uuid zlib
    """
    )
)
"""Modules of the standard library a job may import. None reaches files, processes or the network by itself."""

INTERNAL_MODULES: Final = frozenset(_words("_strptime _datetime _pydatetime time _decimal _pydecimal copyreg"))
"""Modules that C code of the standard library imports through the job's ``__import__``, such as ``_strptime`` for
``datetime.strptime``. They are loaded before lock-down; a job that imports one by name gets an empty module."""

C_HOMES: Final = {
    "_operator": "operator", "_functools": "functools", "_collections": "collections", "_bisect": "bisect",
    "_heapq": "heapq", "_hashlib": "hashlib", "_sha1": "hashlib", "_sha2": "hashlib", "_sha256": "hashlib",
    "_sha512": "hashlib", "_sha3": "hashlib", "_md5": "hashlib", "_blake2": "hashlib", "_struct": "struct",
    "_statistics": "statistics", "_json": "json", "_collections_abc": "collections.abc", "_decimal": "decimal",
    "_pydecimal": "decimal", "_datetime": "datetime", "_typing": "typing", "copyreg": "copy", "_abc": "abc",
}  # fmt: skip
"""Where pickles say that public names live, and whose they are."""

PRELOADED_MODULES: Final = (
    "_strptime", "encodings.utf_8", "encodings.ascii", "encodings.latin_1", "encodings.idna", "encodings.utf_16",
    "encodings.utf_16_le", "encodings.utf_16_be", "encodings.utf_32", "encodings.cp1252", "encodings.cp437",
    "encodings.hex_codec", "encodings.base64_codec", "encodings.rot_13", "encodings.raw_unicode_escape",
    "encodings.unicode_escape", "encodings.punycode", "stringprep", "unicodedata", "copyreg", "linecache",
    "_pydecimal", "_compat_pickle", "typing", "contextvars",
    # Of text files: `Reader(encoding=...)`.
    "encodings.utf_8_sig", "encodings.cp1250", "encodings.cp1251", "encodings.iso8859_2", "encodings.iso8859_15",
    "encodings.iso8859_1", "encodings.koi8_r", "encodings.mac_roman", "encodings.shift_jis", "encodings.euc_jp",
    "encodings.gb18030", "encodings.big5", "encodings.euc_kr",
)  # fmt: skip
"""Modules loaded lazily by those above: after lock-down there is no file system to load them from."""

ATTACK_MODULES: Final = (
    "ctypes", "os", "socket", "subprocess", "mmap", "signal", "resource", "threading", "multiprocessing", "fcntl",
    "shutil", "tempfile", "pathlib", "glob", "gc", "sys", "select", "asyncio", "pickle", "marshal", "time", "inspect",
    "importlib", "urllib.request", "faulthandler", "io", "pty", "termios", "pwd", "platform", "ssl", "secrets",
    "multiprocessing.shared_memory", "sqlite3", "zipfile", "webbrowser", "syslog", "_thread", "builtins", "weakref",
)  # fmt: skip
"""What is preloaded when the language layer is off, so that tests attack with everything Python has."""

DENIED_BUILTINS: Final = frozenset(
    _words("""open input exec eval compile breakpoint help exit quit copyright credits license""")
)
"""Builtins replaced by a function that says they are not available; ``print`` writes nowhere."""

ALLOWED_CALLS: Final = tuple(
    _words(
        """
    brk munmap futex clock_gettime clock_getres gettimeofday time clock_nanosleep nanosleep sched_yield rt_sigreturn
    rt_sigprocmask sigaltstack restart_syscall exit exit_group set_robust_list rseq
    """
    )
)
"""System calls that pass whatever their arguments."""

REFUSED_CALLS: Final = tuple(
    _words(
        """
    open openat openat2 creat close stat fstat lstat newfstatat statx poll ppoll select pselect6 lseek ioctl pread64
    pwrite64 readv writev access faccessat faccessat2 pipe pipe2 dup dup2 dup3 fcntl fsync fdatasync truncate ftruncate
    getdents getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat rmdir link linkat unlink unlinkat
    symlink symlinkat readlink readlinkat chmod fchmod fchmodat chown fchown lchown fchownat umask utimensat statfs
    fstatfs mknod mknodat sendfile rt_sigaction pause alarm getitimer setitimer kill tkill tgkill rt_sigqueueinfo
    getpid gettid getppid getpgrp getpgid getsid setsid setpgid getuid geteuid getgid getegid getgroups setuid setgid
    setreuid setregid setresuid setresgid setgroups uname sysinfo times getrusage getrlimit setrlimit prlimit64
    getpriority setpriority sched_getaffinity sched_setaffinity getcpu getrandom prctl socket socketpair connect accept
    accept4 bind listen sendto recvfrom sendmsg recvmsg shutdown getsockname getpeername setsockopt getsockopt clone
    clone3 fork vfork execve execveat wait4 waitid memfd_create epoll_create epoll_create1 eventfd eventfd2
    inotify_init1 timerfd_create signalfd4 shmget shmat msgget semget mq_open close_range sync mlock msync mincore
    """
    )
)
"""System calls that honest libraries make and that fail with EPERM here. Any call not named in this module kills."""

ALLOWED_ADVICE: Final = (0, 4, 8, 14, 15)
"""``madvise`` advice that allocators use: NORMAL, DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one unit may use, enforced by the kernel in the child; CPU, wall clock and output are set task by task.

    Attributes:
        memory_bytes: address space beyond what the empty child has (RLIMIT_AS).
        unit_cpu_s: CPU seconds of the whole unit (RLIMIT_CPU), a backstop should the parent stand still.
        max_unit_tasks: tasks after which a unit ends and its process with it.
    """

    memory_bytes: int = 1 << 30
    unit_cpu_s: int = 3600
    max_unit_tasks: int = 1000

    def __post_init__(self) -> None:
        if self.memory_bytes < 16 << 20 or self.unit_cpu_s < 1 or self.max_unit_tasks < 1:
            raise ValueError("limits: memory_bytes >= 16 MiB, unit_cpu_s >= 1, max_unit_tasks >= 1")


@dataclass(frozen=True, slots=True)
class Policy:
    """What the sandbox is made of. The default is for strangers' code; the switches are for tests and self-tests.

    Attributes:
        modules: modules a job may import.
        extra_modules: further modules the volunteer allows, such as ``numpy``; handed out as they are, not proxied.
        language: the language layer (restricted builtins, import whitelist, seeded random, no clocks).
        become_nobody: started as root, give root up first.
        namespaces: the namespaces to ask for; the empty root comes with ``mnt``.
        landlock: the file system, TCP and signals denied by Landlock.
        rlimits: resource limits in the child.
        seccomp: the system call filter. Without it only `Sandbox(unconfined=True)` starts.
        hash_seed: PYTHONHASHSEED of the zygote; replicas need the same, a determinism check a second one.
        max_message_bytes: longest result frame taken from a child whatever a task allows.
    """

    modules: frozenset[str] = STANDARD_MODULES
    extra_modules: frozenset[str] = frozenset()
    language: bool = True
    become_nobody: bool = True
    namespaces: tuple[str, ...] = NAMESPACES
    landlock: bool = True
    rlimits: bool = True
    seccomp: bool = True
    hash_seed: int = 0
    max_message_bytes: int = 1 << 30
    preload: tuple[str, ...] = field(default=PRELOADED_MODULES)

    def as_message(self) -> dict[str, Any]:
        """The policy in JSON types, for the zygote."""
        fields = asdict(self)
        return {**fields, "modules": sorted(self.modules), "extra_modules": sorted(self.extra_modules)}


DEFAULT: Final = Policy()
NO_LAYERS: Final = Policy(
    language=False, become_nobody=False, namespaces=(), landlock=False, rlimits=False, seccomp=False
)
"""No layer at all: shows in tests that an attack would work, runs one's own code where nothing better is to be had."""
