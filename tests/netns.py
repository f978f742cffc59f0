"""Machines for tests: network namespaces joined by virtual cables, with addresses as on the Internet.

A worker's home network is a namespace of its own behind a router that lets nothing in: connections go out through a
proxy on the router, as through a NAT, and discovery sees the router's address. No packet filter is needed for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import ROOT, Process

PORT = 26262


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
        self._cables = 0
        self.processes: list[Process] = []
        self._others: list[subprocess.Popen[bytes]] = []
        if sys.platform != "linux" or os.geteuid() != 0:
            raise Unavailable("network namespaces are Linux' and root's")
        if shutil.which("ip") is None:
            raise Unavailable("there is no command `ip` here (Debian: iproute2)")
        try:
            self._wire = self._namespace("wire")
            _ip("-n", self._wire, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._wire, "link", "set", "bridge", "up")
        except BaseException as reason:
            self.close()
            if isinstance(reason, subprocess.CalledProcessError):
                raise Unavailable(f"no network namespaces here: {reason.stderr.decode().strip()}") from None
            raise

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what runs on the machines, and removes them."""
        for process in self.processes:
            process.kill()
        for other in self._others:
            other.kill()
            other.wait()
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._made.clear()

    def machine(self, name: str, address: str) -> str:
        """A machine on the wire, with a public address; returns its namespace."""
        made = self._namespace(name)
        far = self._cable(made, "public", f"{address}/8", self._wire)
        _ip("-n", self._wire, "link", "set", far, "master", "bridge")
        return made

    def behind_router(self, name: str, address: str, discovery: str) -> tuple[str, str]:
        """A machine whose router has the public address; returns its namespace, and where it finds discovery."""
        router = self.machine(f"{name}r", address)
        home = self._namespace(name)
        inside = self._cable(home, "home", "10.1.0.2/24", router)
        _ip("-n", router, "addr", "add", "10.1.0.1/24", "dev", inside)
        self._others.append(
            subprocess.Popen(
                [*_within(router), sys.executable, "-m", "tests.netns", "10.1.0.1", discovery],
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
        )
        assert self._others[-1].stdout is not None
        assert self._others[-1].stdout.readline() == b"ready\n"
        return home, f"http://10.1.0.1:{PORT}"

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

    def block(self, name: str, address: str, kind: str) -> None:
        """Lets a machine send nothing to an address: ``unreachable``: its programs are told so; ``blackhole``: what
        they answer does not arrive."""
        _ip("-n", self._stem + name, "route", "add", kind, f"{address}/32")

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
        return subprocess.Popen(
            [*_within(namespace), sys.executable, str(path), *arguments],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

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


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


async def _pass_on(here: str, there: str) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(there, PORT)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async with await asyncio.start_server(connected, here, PORT) as server:
        print("ready", flush=True)
        await server.serve_forever()


def main(arguments: list[str]) -> Any:
    """A router's proxy: ``python -m tests.netns HERE THERE``."""
    asyncio.run(_pass_on(*arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
