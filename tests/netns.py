"""Machines for tests: network namespaces joined by virtual cables, with addresses as on the Internet.

A worker's home network is a namespace of its own behind a router: the kernel translates the addresses of what goes out
(NAT), and lets nothing in that does not answer it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ROOT, Process

PORT = 26262
_HOME, _GATEWAY = "10.1.0.2", "10.1.0.1"
_RULES = """
table ip home {
  chain out { type nat hook postrouting priority srcnat; oifname "public" masquerade; }
  chain through {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname != "public" accept
  }
  chain into { type filter hook input priority filter; iifname "public" ct state new drop; }
}
"""


class Unavailable(Exception):
    """This machine, or this user of it, has no network namespaces."""


class Machines:
    """A wire with machines on it; a context manager that takes all of it away again.

    Raises:
        Unavailable: why there are none here.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stem = f"ec{os.getpid() % 100_000}"
        self._made: list[str] = []
        self.processes: list[Process] = []
        self._jobs: list[subprocess.Popen[str]] = []
        if sys.platform != "linux" or os.geteuid() != 0:
            raise Unavailable("network namespaces are Linux' and root's")
        if shutil.which("ip") is None:
            raise Unavailable("there is no command `ip` here (Debian: iproute2)")
        if shutil.which("nft") is None:
            raise Unavailable("there is no command `nft` here (Debian: nftables)")
        try:
            self._wire = self._namespace("wire")
            _ip("-n", self._wire, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._wire, "link", "set", "bridge", "up")
            # Tells whether there is all that is needed, before a test has begun.
            tried = self._namespace("try")
            self._cable(tried, "public", f"{_HOME}/24", self._wire)
            _make_router(tried)
        except BaseException as reason:
            self.close()
            if isinstance(reason, subprocess.CalledProcessError):
                raise Unavailable(f"no network namespaces, or no NAT, here: {reason.stderr.strip()}") from None
            raise

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what runs on the machines, and removes them."""
        for process in self.processes:
            process.kill()
        for job in self._jobs:
            job.kill()
            job.communicate()
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._made.clear()

    def machine(self, name: str, address: str) -> str:
        """A machine on the wire, with a public address; returns its namespace."""
        made = self._namespace(name)
        far = self._cable(made, "public", f"{address}/8", self._wire)
        _ip("-n", self._wire, "link", "set", far, "master", "bridge")
        return made

    def behind_router(self, name: str, address: str) -> str:
        """A machine whose router has the public address; returns its namespace."""
        router = self.machine(f"{name}r", address)
        home = self._namespace(name)
        inside = self._cable(home, "home", f"{_HOME}/24", router)
        _ip("-n", router, "addr", "add", f"{_GATEWAY}/24", "dev", inside)
        _ip("-n", home, "route", "add", "default", "via", _GATEWAY)
        _make_router(router)
        return home

    def cut(self, name: str) -> None:
        """Pulls the cable between a machine and its router."""
        _ip("-n", f"{self._stem}{name}r", "link", "set", f"{name}home", "down")

    def mend(self, name: str) -> None:
        """Puts it back."""
        _ip("-n", f"{self._stem}{name}r", "link", "set", f"{name}home", "up")

    def move(self, name: str, old: str, new: str) -> None:
        """Gives a machine on the wire another address."""
        _ip("-n", self._stem + name, "addr", "del", f"{old}/8", "dev", "public")
        _ip("-n", self._stem + name, "addr", "add", f"{new}/8", "dev", "public")

    @contextmanager
    def blocked(self, name: str, address: str, kind: str) -> Iterator[None]:
        """Lets a machine send nothing to an address meanwhile.

        Args:
            kind: ``unreachable``: its programs are told so; ``blackhole``: they are not.
        """
        _ip("-n", self._stem + name, "route", "add", kind, f"{address}/32")
        try:
            yield
        finally:
            _ip("-n", self._stem + name, "route", "del", kind, f"{address}/32")

    def start(self, namespace: str, name: str, *arguments: str) -> Process:
        """A program of EC262 on a machine, with a home of its own."""
        self.processes.append(
            Process(
                arguments,
                home=self.directory / name,
                log=self.directory / f"{name}.log",
                within=_within(namespace),
                environment={"EC262_PLAIN_HTTP": "1"},
            )
        )
        return self.processes[-1]

    def run(self, namespace: str, name: str, script: str, *arguments: str) -> subprocess.Popen[str]:
        """A Python program on a machine; its standard output is a pipe."""
        path = self.directory / f"{name}.py"
        path.write_text(script)
        environment = {
            **os.environ,
            "EC262_HOME": str(self.directory / name),
            "PYTHONPATH": str(ROOT),
            "EC262_PLAIN_HTTP": "1",
        }
        self._jobs.append(
            subprocess.Popen(
                [*_within(namespace), sys.executable, str(path), *arguments],
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
        )
        return self._jobs[-1]

    def _namespace(self, name: str) -> str:
        made = self._stem + name
        _ip("netns", "add", made)
        self._made.append(made)
        _ip("-n", made, "link", "set", "lo", "up")
        return made

    def _cable(self, near: str, name: str, address: str, far: str) -> str:
        """A cable from a machine to another, up on both sides; returns the name of its far end."""
        end = f"{near.removeprefix(self._stem)}{name}"
        _ip("-n", near, "link", "add", name, "type", "veth", "peer", "name", end, "netns", far)
        _ip("-n", near, "addr", "add", address, "dev", name)
        _ip("-n", near, "link", "set", name, "up")
        _ip("-n", far, "link", "set", end, "up")
        return end


def _within(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace]


def _make_router(namespace: str) -> None:
    _run(*_within(namespace), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    _run(*_within(namespace), "nft", "-f", "-", stdin=_RULES)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str, stdin: str = "") -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, input=stdin)
