"""Attackers for `benchmarks.load`: clients of a service on this machine that mean ill. Of the standard library alone.

python -m benchmarks.attackers "slow bodies" http://127.0.0.1:26262 127.0.0.66 20
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import sys
import time
from urllib.parse import urlsplit

ATTACKS = {"slow headers": 150, "slow bodies": 150, "half-open": 300, "flood": 16, "flood of connections": 1}
"""How many connections each has at a time."""
_BODY = b"POST /v1/accounts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"
_ASK = b"GET /v1/leaderboard HTTP/1.1\r\nHost: x\r\n\r\n"
_GUESS = b"GET /v1/account HTTP/1.1\r\nHost: x\r\nAuthorization: Basic Zm9vOmJhcg==\r\n\r\n"


def attack(url: str, kind: str, source: str, seconds: float) -> None:
    """Attacks a service of this machine for so long, from a loopback address of its own.

    ``slow headers``, ``slow bodies``: send a byte a second. ``half-open``: send nothing. ``flood``: asks, and guesses
    secrets, as fast as it is answered. ``flood of connections``: the same on a new connection each time.
    """
    at = urlsplit(url)
    assert at.hostname == "127.0.0.1"
    assert at.port is not None
    os.nice(19)  # it is the service that is to be measured, not what this process takes
    address = (at.hostname, at.port)
    until = time.monotonic() + seconds
    held: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while time.monotonic() < until:
        for number in range(ATTACKS[kind]):
            with contextlib.suppress(OSError):
                if number not in held:
                    held[number] = _connect(address, source, kind)
                elif kind.startswith("slow"):
                    held[number].send(b"G" if kind == "slow headers" else b"x")
        _listen(held, kind, 0.2 if kind.startswith("flood") else 1.0)
    for each in held.values():
        each.close()


def _connect(address: tuple[str, int], source: str, kind: str) -> socket.socket:
    made = socket.create_connection(address, timeout=5, source_address=(source, 0))
    if kind == "slow bodies":
        made.sendall(_BODY)
    elif kind.startswith("flood"):
        made.sendall(random.choice((_ASK, _GUESS)))
    return made


def _listen(held: dict[int, socket.socket], kind: str, seconds: float) -> None:
    """Goes on with connections that were answered, and drops those that are closed, for up to so long."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        answered = select.select(list(held.values()), [], [], left)[0]
        for number, each in list(held.items()):
            if each not in answered:
                continue
            try:
                gone = not each.recv(65536) or kind == "flood of connections"
                if not gone and kind == "flood":
                    each.sendall(random.choice((_ASK, _GUESS)))
            except OSError:
                gone = True
            if gone:
                each.close()
                del held[number]
        if answered and (kind.startswith("slow") or len(held) < ATTACKS[kind]):
            return


if __name__ == "__main__":
    attack(sys.argv[2], sys.argv[1], sys.argv[3], float(sys.argv[4]))
