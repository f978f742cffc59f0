"""A corpus of attacks. Each is a function that runs inside the sandbox and says "ESCAPED" when it had its way.

An attack gets the facts a spy would like to have: the canary file, a listening port, a victim's process id, the
worker's process id and the name of a secret in its environment. With the language layer on, `steal` goes around it
through the object graph, as a stranger would: what holds then is the kernel's part.

An attack that fails may return, raise, be killed or be cut off by a limit: all the same, as long as nothing happened.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]
Attack = Callable[[Facts, Any], Any]

ATTACKS: dict[str, Attack] = {}
DETECTABLE: set[str] = set()
"""Attacks that are safe to run unconfined and must succeed then: they show that the tests can fail."""


def attack(function: Attack) -> Attack:
    """Enters an attack in the corpus."""
    ATTACKS[function.__name__] = function
    return function


def detectable(function: Attack) -> Attack:
    """As `attack`, for one that is run without any layer too."""
    DETECTABLE.add(function.__name__)
    return attack(function)


def steal(name: str) -> Any:
    """A module, by way of the functions of an allowed one."""
    real = json.dumps.__globals__["__builtins__"]
    module = real["__import__"](name) if isinstance(real, dict) else real.__import__(name)
    for part in name.split(".")[1:]:
        module = getattr(module, part)
    return module


def real_open(*arguments: Any) -> Any:
    """``open``, the real one."""
    return steal("io").open(*arguments)


def raw(number: int, *arguments: Any) -> int:
    """A system call by number; minus errno when it fails."""
    ctypes = steal("ctypes")
    libc = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    return -int(ctypes.get_errno()) if result < 0 else int(result)


# --- reading files ------------------------------------------------------------------------------


@detectable
def read_canary_with_open(facts: Facts, _: Any) -> str:
    return f"ESCAPED {real_open(facts['canary']).read()}"


@detectable
def read_canary_with_os(facts: Facts, _: Any) -> str:
    os = steal("os")
    return f"ESCAPED {os.read(os.open(facts['canary'], 0), 100)}"


@detectable
def read_canary_with_pathlib(facts: Facts, _: Any) -> str:
    return "ESCAPED " + str(steal("pathlib").Path(facts["canary"]).read_text())


@detectable
def read_canary_with_libc(facts: Facts, _: Any) -> str:
    libc = steal("ctypes").CDLL(None)
    file = libc.open(facts["canary"].encode(), 0)
    return "ESCAPED" if file >= 0 else "held"


@detectable
def read_canary_with_openat2(facts: Facts, _: Any) -> str:
    how = steal("ctypes").create_string_buffer(24)
    return "ESCAPED" if raw(437, -100, facts["canary"].encode(), how, 24) >= 0 else "held"


@detectable
def read_canary_with_linecache(facts: Facts, _: Any) -> str:
    lines = steal("linecache").getlines(facts["canary"])
    return f"ESCAPED {lines}" if lines else "held"


@detectable
def read_password_file(facts: Facts, _: Any) -> str:
    return f"ESCAPED {real_open('/etc/passwd').read(10)}"


@detectable
def list_the_root(facts: Facts, _: Any) -> str:
    names = steal("os").listdir("/")
    return f"ESCAPED {names}" if names else "held"


@detectable
def stat_the_canary(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('os').stat(facts['canary']).st_size}"


@detectable
def stat_with_a_raw_call(facts: Facts, _: Any) -> str:
    room = steal("ctypes").create_string_buffer(512)
    return "ESCAPED" if raw(332, -100, facts["canary"].encode(), 0, 0xFFF, room) >= 0 else "held"


@detectable
def access_the_canary(facts: Facts, _: Any) -> str:
    return "ESCAPED" if steal("os").access(facts["canary"], 4) else "held"


@detectable
def read_own_command_line(facts: Facts, _: Any) -> str:
    return f"ESCAPED {real_open('/proc/self/cmdline').read(10)}"


@detectable
def follow_own_executable(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('os').readlink('/proc/self/exe')}"


@attack
def read_environment_of_the_worker(facts: Facts, _: Any) -> str:
    path = f"/proc/{facts['worker']}/environ"
    return f"ESCAPED {real_open(path, 'rb').read(10)!r}"


@attack
def read_memory_of_the_worker_by_proc(facts: Facts, _: Any) -> str:
    file = real_open(f"/proc/{facts['worker']}/mem", "rb")
    return f"ESCAPED {file!r}"


@attack
def write_own_memory_by_proc(facts: Facts, _: Any) -> str:
    return f"ESCAPED {real_open('/proc/self/mem', 'r+b')!r}"


@attack
def climb_out_by_proc_root(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('os').listdir('/proc/1/root')}"


@attack
def climb_out_by_dots(facts: Facts, _: Any) -> str:
    return f"ESCAPED {real_open('../' * 30 + 'etc/passwd').read(10)}"


@attack
def open_by_handle(facts: Facts, _: Any) -> str:
    room = steal("ctypes").create_string_buffer(256)
    return "ESCAPED" if raw(303, -100, facts["canary"].encode(), room, room, 0) >= 0 else "held"


@detectable
def import_a_module_from_a_file(facts: Facts, _: Any) -> str:
    steal("sys").path.insert(0, facts["directory"])
    return f"ESCAPED {steal('importlib').import_module('canary_module').TEXT}"


@detectable
def load_a_library(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    return f"ESCAPED {ctypes.CDLL('libutil.so.1')}"


@detectable
def watch_a_directory(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(294, 0) >= 0 else "held"


@detectable
def where_am_i(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('os').getcwd()}"


@detectable
def what_machine_is_this(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('os').uname().nodename}"


# --- changing files -----------------------------------------------------------------------------


@detectable
def overwrite_canary(facts: Facts, _: Any) -> str:
    real_open(facts["canary"], "w").write("broken")
    return "ESCAPED"


@detectable
def delete_canary(facts: Facts, _: Any) -> str:
    steal("os").unlink(facts["canary"])
    return "ESCAPED"


@detectable
def rename_canary(facts: Facts, _: Any) -> str:
    steal("os").rename(facts["canary"], facts["canary"] + "2")
    return "ESCAPED"


@detectable
def truncate_canary(facts: Facts, _: Any) -> str:
    steal("os").truncate(facts["canary"], 0)
    return "ESCAPED"


@detectable
def open_canary_up(facts: Facts, _: Any) -> str:
    steal("os").chmod(facts["canary"], 0o600)
    return "ESCAPED"


@detectable
def make_a_file(facts: Facts, _: Any) -> str:
    steal("os").open(facts["directory"] + "/new", 0o102, 0o600)
    return "ESCAPED"


@detectable
def make_a_directory(facts: Facts, _: Any) -> str:
    steal("os").mkdir(facts["directory"] + "/new-directory")
    return "ESCAPED"


@detectable
def make_a_symlink(facts: Facts, _: Any) -> str:
    steal("os").symlink("/etc/passwd", facts["directory"] + "/new-link")
    return "ESCAPED"


@detectable
def make_a_hard_link(facts: Facts, _: Any) -> str:
    steal("os").link(facts["canary"], facts["directory"] + "/new-hard-link")
    return "ESCAPED"


@detectable
def make_a_fifo(facts: Facts, _: Any) -> str:
    steal("os").mkfifo(facts["directory"] + "/new-fifo")
    return "ESCAPED"


@detectable
def touch_canary(facts: Facts, _: Any) -> str:
    steal("os").utime(facts["canary"], (1, 1))
    return "ESCAPED"


@detectable
def make_a_temporary_file(facts: Facts, _: Any) -> str:
    steal("tempfile").TemporaryFile(dir=facts["directory"])
    return "ESCAPED"


@detectable
def make_a_file_in_memory(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(319, b"x", 0) >= 0 else "held"


@detectable
def make_a_database(facts: Facts, _: Any) -> str:
    steal("sqlite3").connect(facts["directory"] + "/new.db").execute("create table t (x)")
    return "ESCAPED"


@attack
def write_in_the_empty_root(facts: Facts, _: Any) -> str:
    real_open("/planted", "w").write("x")
    return "ESCAPED"


# --- the environment and the worker's secrets ------------------------------------------------------


@attack
def read_a_secret_from_the_environment(facts: Facts, _: Any) -> str:
    value = steal("os").environ.get(facts["secret_name"])
    return f"ESCAPED {value}" if value else "held"


@attack
def read_a_secret_from_libc_environment(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    value = getenv(facts["secret_name"].encode())
    return f"ESCAPED {value}" if value else "held"


@attack
def search_own_memory_for_secrets(facts: Facts, _: Any) -> str:
    secret_half = facts["secret_half"]
    for thing in steal("gc").get_objects():
        if isinstance(thing, dict):
            for value in list(thing.values()):
                if isinstance(value, str) and secret_half in value and value != secret_half:
                    return f"ESCAPED {value}"
    return "held"


@attack
def read_memory_of_the_worker_by_call(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    room = ctypes.create_string_buffer(16)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(room), 16)
    return "ESCAPED" if raw(310, facts["worker"], vector, 1, vector, 1, 0) > 0 else "held"


@attack
def write_memory_of_the_victim(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    vector = (ctypes.c_ulong * 2)(0, 0)
    return "ESCAPED" if raw(311, facts["victim"], vector, 1, vector, 1, 0) >= 0 else "held"


@attack
def trace_the_victim(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(101, 16, facts["victim"], 0, 0) >= 0 else "held"


@attack
def trace_the_zygote(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(101, 16, 1, 0, 0) >= 0 else "held"


@attack
def take_a_descriptor_of_the_worker(facts: Facts, _: Any) -> str:
    handle = raw(434, facts["worker"], 0)
    return "ESCAPED" if handle >= 0 and raw(438, handle, 0, 0) >= 0 else "held"


@attack
def look_for_open_descriptors(facts: Facts, _: Any) -> str:
    os = steal("os")
    found = []
    for number in range(2, 300):
        try:
            os.read(number, 1)
            found.append(number)
        except OSError:
            continue
    return f"ESCAPED {found}" if found else "held"


@attack
def write_to_open_descriptors(facts: Facts, _: Any) -> str:
    os = steal("os")
    found = []
    for number in [0, *range(2, 300)]:
        try:
            os.write(number, b"x")
            found.append(number)
        except OSError:
            continue
    return f"ESCAPED {found}" if found else "held"


@attack
def compare_with_the_worker(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(312, facts["worker"], facts["victim"], 0, 0, 0) >= 0 else "held"


# --- the network ----------------------------------------------------------------------------------


@detectable
def connect_to_a_port(facts: Facts, _: Any) -> str:
    steal("socket").create_connection(("127.0.0.1", facts["port"]), timeout=1)
    return "ESCAPED"


@detectable
def connect_with_libc(facts: Facts, _: Any) -> str:
    return "ESCAPED" if steal("ctypes").CDLL(None).socket(2, 1, 0) >= 0 else "held"


@detectable
def send_a_datagram(facts: Facts, _: Any) -> str:
    socket = steal("socket")
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", facts["port"]))
    return "ESCAPED"


@detectable
def listen_on_a_port(facts: Facts, _: Any) -> str:
    socket = steal("socket")
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return f"ESCAPED {server.getsockname()}"


@detectable
def connect_to_an_abstract_socket(facts: Facts, _: Any) -> str:
    socket = steal("socket")
    socket.socket(socket.AF_UNIX).connect("\0" + facts["abstract"])
    return "ESCAPED"


@detectable
def make_a_socket_pair(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('socket').socketpair()}"


@detectable
def talk_to_the_kernel_by_netlink(facts: Facts, _: Any) -> str:
    socket = steal("socket")
    return f"ESCAPED {socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)}"


@attack
def open_a_raw_socket(facts: Facts, _: Any) -> str:
    socket = steal("socket")
    return f"ESCAPED {socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)}"


@attack
def open_a_packet_socket(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(41, 17, 3, 0x300) >= 0 else "held"


@attack
def open_a_vsock(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(41, 40, 1, 0) >= 0 else "held"


@attack
def fetch_an_address(facts: Facts, _: Any) -> str:
    address = f"http://127.0.0.1:{facts['port']}/"
    return f"ESCAPED {steal('urllib.request').urlopen(address, timeout=1)}"


@attack
def go_round_by_io_uring(facts: Facts, _: Any) -> str:
    room = steal("ctypes").create_string_buffer(256)
    return "ESCAPED" if raw(425, 8, room) >= 0 else "held"


# --- processes ------------------------------------------------------------------------------------


@detectable
def fork_once(facts: Facts, _: Any) -> str:
    os = steal("os")
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return "ESCAPED"


@attack
def fork_bomb(facts: Facts, _: Any) -> str:
    os = steal("os")
    made = 0
    for _round in range(50):
        try:
            if os.fork() == 0:
                os._exit(0)
            made += 1
        except OSError:
            continue
    return f"ESCAPED {made}" if made else "held"


@detectable
def run_a_shell(facts: Facts, _: Any) -> str:
    status = steal("os").system("true")
    return "ESCAPED" if status == 0 else "held"


@detectable
def run_a_program(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('subprocess').run(['true'], check=True)}"


@detectable
def spawn_a_program(facts: Facts, _: Any) -> str:
    os = steal("os")
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return "ESCAPED"


@attack
def replace_myself(facts: Facts, _: Any) -> str:
    steal("os").execv("/bin/true", ["true"])
    return "ESCAPED"


@detectable
def start_a_thread(facts: Facts, _: Any) -> str:
    thread = steal("threading").Thread(target=int)
    thread.start()
    thread.join()
    return "ESCAPED"


@attack
def clone_by_number(facts: Facts, _: Any) -> str:
    made = raw(56, 17, 0, 0, 0, 0)
    if made == 0:
        steal("os")._exit(0)
    return "ESCAPED" if made > 0 else "held"


@attack
def vfork_by_number(facts: Facts, _: Any) -> str:
    made = raw(58)
    if made == 0:
        steal("os")._exit(0)
    return "ESCAPED" if made > 0 else "held"


@attack
def clone3_by_number(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    arguments = (ctypes.c_ulonglong * 11)(0, 0, 0, 0, 17)
    made = raw(435, arguments, 88)
    if made == 0:
        steal("os")._exit(0)
    return "ESCAPED" if made > 0 else "held"


@attack
def kill_the_victim(facts: Facts, _: Any) -> str:
    steal("os").kill(facts["victim"], 9)
    return "ESCAPED"


@attack
def kill_the_worker(facts: Facts, _: Any) -> str:
    steal("os").kill(facts["worker"], 0)
    return "ESCAPED"


@attack
def kill_the_zygote(facts: Facts, _: Any) -> str:
    os = steal("os")
    os.kill(os.getppid() if os.getppid() > 0 else 1, 9)
    return "ESCAPED"


@attack
def kill_everybody(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(62, -1, 9) >= 0 else "held"


@attack
def kill_my_group(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(62, 0, 9) >= 0 else "held"


@attack
def signal_a_thread_of_the_victim(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(234, facts["victim"], facts["victim"], 9) >= 0 else "held"


@attack
def queue_a_signal(facts: Facts, _: Any) -> str:
    room = steal("ctypes").create_string_buffer(128)
    return "ESCAPED" if raw(129, facts["victim"], 9, room) >= 0 else "held"


@attack
def signal_by_pidfd(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(424, raw(434, facts["victim"], 0), 9, 0, 0) >= 0 else "held"


@attack
def slow_the_victim(facts: Facts, _: Any) -> str:
    steal("os").setpriority(0, facts["victim"], 19)
    return "ESCAPED"


@attack
def pin_the_victim(facts: Facts, _: Any) -> str:
    steal("os").sched_setaffinity(facts["victim"], {0})
    return "ESCAPED"


@attack
def limit_the_victim(facts: Facts, _: Any) -> str:
    resource = steal("resource")
    resource.prlimit(facts["victim"], resource.RLIMIT_CPU, (1, 1))
    return "ESCAPED"


@attack
def raise_my_limits(facts: Facts, _: Any) -> str:
    resource = steal("resource")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return "ESCAPED"


@attack
def outlive_my_parent(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(157, 1, 0, 0, 0, 0) >= 0 else "held"


@attack
def let_others_inspect_me(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(157, 4, 1, 0, 0, 0) >= 0 else "held"


@attack
def leave_the_session(facts: Facts, _: Any) -> str:
    steal("os").setsid()
    return "ESCAPED"


@attack
def catch_signals(facts: Facts, _: Any) -> str:
    signal = steal("signal")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "ESCAPED"


@attack
def set_an_alarm(facts: Facts, _: Any) -> str:
    signal = steal("signal")
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    return "ESCAPED"


@detectable
def share_memory(facts: Facts, _: Any) -> str:
    shared = steal("multiprocessing.shared_memory").SharedMemory(create=True, size=100)
    shared.unlink()
    return "ESCAPED"


@attack
def share_memory_the_old_way(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(29, 0, 4096, 0o1600) >= 0 else "held"


@attack
def queue_messages(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(68, 0, 0o1600) >= 0 else "held"


@detectable
def make_a_pipe(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('os').pipe()}"


@attack
def type_into_the_terminal(facts: Facts, _: Any) -> str:
    fcntl = steal("fcntl")
    for descriptor in (0, 1, 2):
        try:
            fcntl.ioctl(descriptor, 0x5412, b"x")
        except OSError:
            continue
        return "ESCAPED"
    return "held"


# --- privileges and raw system calls -----------------------------------------------------------------


@attack
def become_root(facts: Facts, _: Any) -> str:
    steal("os").setuid(0)
    return "ESCAPED"


@attack
def make_code_by_mmap(facts: Facts, _: Any) -> str:
    mmap = steal("mmap")
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    return "ESCAPED"


@attack
def make_code_by_mprotect(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_long] * 5]
    place = libc.mmap(None, 4096, 3, 0x22, -1, 0)
    return "ESCAPED" if raw(10, place, 4096, 5) >= 0 else "held"


@attack
def make_a_callback_for_c(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    kind = ctypes.CFUNCTYPE(ctypes.c_int)
    return f"held: {kind(lambda: 1)()}"  # may work where libffi has static trampolines: own memory only


@attack
def use_the_x32_numbers(facts: Facts, _: Any) -> str:
    return "ESCAPED" if raw(0x40000000 + 39) > 0 else "held"


@attack
def fill_the_high_half_of_a_descriptor(facts: Facts, _: Any) -> str:
    room = steal("ctypes").create_string_buffer(8)
    return "ESCAPED" if raw(0, (1 << 32) + 3, room, 8) > 0 else "held"


RAW_CALLS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "mount": (165, (b"none", b"/tmp", b"tmpfs", 0, 0)),
    "umount2": (166, (b"/", 2)),
    "pivot_root": (155, (b".", b".")),
    "chroot": (161, (b"/",)),
    "unshare_user": (272, (0x10000000,)),
    "unshare_mount": (272, (0x20000,)),
    "setns": (308, (0, 0)),
    "ptrace_traceme": (101, (0, 0, 0, 0)),
    "personality": (135, (0x0400000,)),
    "seccomp": (317, (1, 0, 0)),
    "bpf": (321, (0, 0, 0)),
    "userfaultfd": (323, (0,)),
    "perf_event_open": (298, (b"\0" * 128, 0, -1, -1, 0)),
    "keyctl": (250, (0, -3, 1)),
    "add_key": (248, (b"user", b"x", b"y", 1, -2)),
    "init_module": (175, (0, 0, b"")),
    "finit_module": (313, (0, b"", 0)),
    "kexec_load": (246, (0, 0, 0, 0)),
    "reboot": (169, (0, 0, 0, 0)),
    "swapon": (167, (b"/x", 0)),
    "acct": (163, (0,)),
    "quotactl": (179, (0, 0, 0, 0)),
    "iopl": (172, (3,)),
    "ioperm": (173, (0, 1, 1)),
    "modify_ldt": (154, (1, b"\0" * 16, 16)),
    "settimeofday": (164, (b"\0" * 16, 0)),
    "clock_settime": (227, (0, b"\0" * 16)),
    "sethostname": (170, (b"x", 1)),
    "syslog": (103, (2, b"\0" * 16, 16)),
    "capset": (126, (b"\0" * 8, b"\0" * 24)),
    "setfsuid": (122, (1,)),
    "prlimit": (302, (0, 7, b"\0" * 16, 0)),
    "fanotify_init": (300, (0, 0)),
    "name_to_handle_at": (303, (-100, b"/", b"\0" * 16, b"\0" * 16, 0)),
    "process_madvise": (440, (0, 0, 0, 0, 0)),
    "memfd_secret": (447, (0,)),
    "pidfd_open_self": (434, (1, 0)),
    "io_uring_setup": (425, (8, b"\0" * 128)),
    "fsopen": (430, (b"tmpfs", 0)),
    "open_tree": (428, (-100, b"/", 0)),
    "move_mount": (429, (0, b"", 0, b"", 0)),
    "landlock_restrict_self": (446, (0, 0)),
    "migrate_pages": (256, (0, 0, 0, 0)),
    "lookup_dcookie": (212, (0, 0, 0)),
    "vhangup": (153, ()),
    "getrandom": (318, (b"\0" * 16, 16, 0)),
    "arch_prctl": (158, (0x1001, 0)),
    "remap_file_pages": (216, (0, 0, 0, 0, 0)),
    "splice": (275, (0, 0, 1, 0, 1, 0)),
    "tee": (276, (0, 1, 1, 0)),
    "vmsplice": (278, (1, 0, 0, 0)),
    "sendfile": (40, (1, 0, 0, 1)),
    "copy_file_range": (326, (0, 0, 1, 0, 1, 0)),
    "readv_other": (19, (3, 0, 0)),
    "no_such_call": (9999, ()),
}
"""Numbers of x86_64 and arguments; any answer but a failure or a kill is an escape."""


def _raw_attack(number: int, arguments: tuple[Any, ...]) -> Attack:
    def attempt(facts: Facts, _: Any) -> str:
        result = raw(number, *arguments)
        return f"ESCAPED {result}" if result >= 0 else f"held: errno {-result}"

    return attempt


for _name, (_number, _arguments) in RAW_CALLS.items():
    ATTACKS[f"raw_{_name}"] = _raw_attack(_number, _arguments)


# --- what is used up -----------------------------------------------------------------------------------


@attack
def memory_bomb(facts: Facts, _: Any) -> str:
    hoard = []
    while True:
        hoard.append(bytearray(1 << 24))


@attack
def memory_bomb_of_small_things(facts: Facts, _: Any) -> str:
    hoard: list[Any] = []
    while True:
        hoard = [hoard, hoard[:], *hoard]


@attack
def memory_at_one_go(facts: Facts, _: Any) -> str:
    return f"ESCAPED {len('x' * (1 << 40))}"


@attack
def memory_by_mmap(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('mmap').mmap(-1, 1 << 40)}"


@attack
def memory_by_integers(facts: Facts, _: Any) -> str:
    return f"ESCAPED {(1 << (1 << 40)).bit_length()}"


@attack
def endless_loop(facts: Facts, _: Any) -> str:
    while True:
        pass


@attack
def endless_loop_that_catches_everything(facts: Facts, _: Any) -> str:
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue


@attack
def endless_sleep(facts: Facts, _: Any) -> str:
    steal("time").sleep(1e6)
    return "woke"


@attack
def endless_futex(facts: Facts, _: Any) -> str:
    lock = steal("_thread").allocate_lock()
    lock.acquire()
    lock.acquire()
    return "woke"


@attack
def endless_power(facts: Facts, _: Any) -> str:
    return str((7 ** (7**9)) % 10)


@attack
def catastrophic_regex(facts: Facts, _: Any) -> str:
    import re  # noqa: PLC0415 - an attack travels with its imports

    return str(re.match(r"(a+)+$", "a" * 60 + "b"))


@attack
def deep_recursion(facts: Facts, _: Any) -> str:
    return str(deep_recursion(facts, _))


@attack
def deep_recursion_without_limit(facts: Facts, _: Any) -> str:
    steal("sys").setrecursionlimit(1 << 30)

    def down(depth: int) -> Any:
        return max([depth], key=lambda x: down(x + 1))

    return f"{down(0)}"


@attack
def deeply_nested_output(facts: Facts, _: Any) -> Any:
    nest: list[Any] = []
    for _level in range(200_000):
        nest = [nest]
    return repr(nest)


@attack
def decompression_bomb(facts: Facts, _: Any) -> str:
    import zlib  # noqa: PLC0415

    bomb = zlib.compress(b"\0" * (1 << 24))
    hoard = [zlib.decompress(bomb) for _round in range(100)]
    return f"ESCAPED {len(hoard)}"


@attack
def endless_output(facts: Facts, _: Any) -> bytes:
    return b"x" * (100 << 20)


@attack
def many_parts(facts: Facts, _: Any) -> list[bytes]:
    return [b""] * 100_000


@attack
def no_bytes_at_all(facts: Facts, _: Any) -> Any:
    return [1, 2, 3]


@attack
def pickle_bomb(facts: Facts, _: Any) -> str:
    status = steal("pickle").loads(b"cposix\nsystem\n(Vtrue\ntR.")
    return "ESCAPED" if status == 0 else "held"


@attack
def crafted_bytecode(facts: Facts, _: Any) -> str:
    code = (lambda: None).__code__
    crafted: Any = code.replace(co_code=bytes([100, 255] * 40), co_consts=())
    kind: Any = type(lambda: None)
    return str(kind(crafted, {})())


@attack
def crash_by_null(facts: Facts, _: Any) -> str:
    return f"ESCAPED {steal('ctypes').string_at(0)}"


@attack
def abort(facts: Facts, _: Any) -> str:
    steal("os").abort()
    return "ESCAPED"


@attack
def leave_at_once(facts: Facts, _: Any) -> str:
    steal("os")._exit(0)
    return "ESCAPED"


# --- what the parent reads ---------------------------------------------------------------------------


def put(data: bytes) -> None:
    """Writes to the unit's own output, behind the child's back."""
    steal("os").write(1, data)


@attack
def garbage_frames(facts: Facts, _: Any) -> str:
    put(b"\xff" * 4096)
    return "after"


@attack
def endless_raw_output(facts: Facts, _: Any) -> str:
    os = steal("os")
    while True:
        os.write(1, b"\0" * 65536)


@attack
def frame_of_absurd_length(facts: Facts, _: Any) -> str:
    put(b"\x0b\0\0\0" + b"\0\0\0\0" + b"\xff\xff\xff\xff" + b"\0" * 8)
    return "after"


@attack
def frame_for_a_task_never_sent(facts: Facts, _: Any) -> str:
    put(b"\x0b\0\0\0" + b"\0\0\0\x09" + b"\0\0\0\0" + b"\0" * 8)
    return "after"


@attack
def frame_of_an_unknown_kind(facts: Facts, _: Any) -> str:
    put(b"\x63\0\0\0" + b"\0\0\0\0" + b"\0\0\0\0" + b"\0" * 8)
    return "after"


@attack
def frame_that_says_ready_again(facts: Facts, _: Any) -> str:
    put(b"\x0a\0\0\0" + b"\0\0\0\0" + b"\0\0\0\0" + b"\0" * 8)
    return "after"


@attack
def half_a_frame_and_silence(facts: Facts, _: Any) -> str:
    put(b"\x0b\0\0\0")
    while True:
        pass


@attack
def frame_whose_parts_lie(facts: Facts, _: Any) -> str:
    body = b"EP1" + b"\xff\xff\xff\xff" + b"\0" * 20
    put(b"\x0b\0\0\0" + b"\0\0\0\0" + len(body).to_bytes(4, "big") + b"\0" * 8 + body)
    return "after"


@attack
def error_frame_of_nested_json(facts: Facts, _: Any) -> str:
    body = b"[" * 200_000
    put(b"\x0c\0\0\0" + b"\0\0\0\0" + len(body).to_bytes(4, "big") + b"\0" * 8 + body)
    return "after"


@attack
def error_frame_with_a_pickle(facts: Facts, _: Any) -> str:
    body = b"cposix\nsystem\n(Vtouch /tmp/planted\ntR."
    put(b"\x0c\0\0\0" + b"\0\0\0\0" + len(body).to_bytes(4, "big") + b"\0" * 8 + body)
    return "after"


@attack
def limit_frame_of_an_unknown_limit(facts: Facts, _: Any) -> str:
    body = b'{"limit": "\\u001b[2J", "message": "x"}'
    put(b"\x0d\0\0\0" + b"\0\0\0\0" + len(body).to_bytes(4, "big") + b"\0" * 8 + body)
    return "after"


@attack
def close_the_output(facts: Facts, _: Any) -> str:
    steal("os").close(1)
    return "after"


@attack
def read_the_next_tasks_input(facts: Facts, _: Any) -> str:
    os = steal("os")
    return f"held: {len(os.read(0, 1 << 16))}"  # its own job's, at most


@attack
def escape_sequences_in_an_error(facts: Facts, _: Any) -> str:
    raise ValueError("\x1b[2J\x1b]0;owned\x07\u202e\x9b31m\r\n" + "A" * 100_000)


@attack
def error_that_cannot_be_shown(facts: Facts, _: Any) -> str:
    class Rude(Exception):
        def __str__(self) -> str:
            raise SystemExit("no")

    raise Rude


@attack
def error_of_a_huge_name(facts: Facts, _: Any) -> str:
    raise type("E" * 1_000_000, (Exception,), {})("x")


@attack
def ten_thousand_chained_errors(facts: Facts, _: Any) -> str:
    reason: Exception = ValueError("first")
    for number in range(10_000):
        link = ValueError(str(number))
        link.__cause__ = reason
        reason = link
    raise reason


@attack
def system_exit(facts: Facts, _: Any) -> str:
    raise SystemExit(0)


@attack
def keyboard_interrupt(facts: Facts, _: Any) -> str:
    raise KeyboardInterrupt


# --- the next unit of somebody else ---------------------------------------------------------------------


@attack
def patch_the_executor(facts: Facts, _: Any) -> str:
    for module in list(steal("sys").modules.values()):
        if hasattr(module, "execute"):
            module.execute = lambda *_: [b"poisoned"]
        if hasattr(module, "frame_parts"):
            module.frame_parts = lambda _: b"poisoned"
    return "after"


@attack
def patch_the_builtins(facts: Facts, _: Any) -> str:
    module = steal("builtins")
    module.len = lambda _: 0
    module.list = tuple
    return "after"


@attack
def patch_modules(facts: Facts, _: Any) -> str:
    steal("math").pi = 3
    steal("json").dumps = None
    steal("hashlib").sha256 = None
    return "after"


@attack
def leave_a_tracer(facts: Facts, _: Any) -> str:
    steal("sys").settrace(lambda *_: None)
    steal("sys").setprofile(lambda *_: None)
    return "after"


@attack
def leave_an_exit_handler(facts: Facts, _: Any) -> str:
    steal("atexit").register(print, "planted")
    return "after"


@attack
def leave_a_collector_callback(facts: Facts, _: Any) -> str:
    steal("gc").callbacks.append(lambda *_: steal("os")._exit(3))
    return "after"


@attack
def scribble_over_memory(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    ctypes.memset(id(0), 0xFF, 4096)
    return "after"


@attack
def change_small_numbers(facts: Facts, _: Any) -> str:
    ctypes = steal("ctypes")
    ctypes.memmove(id(7) + 24, (9).to_bytes(4, "little"), 4)
    return f"after {3 + 4}"
