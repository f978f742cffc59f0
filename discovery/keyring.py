"""Keyring: the secrets that must not be in Redis, in one file beside it.

The master key makes worker, program and poll keys. Wrapping keys make task keys; a new one is drawn every
`wrapping_rotation_s`, and each is deleted once no task that it serves can be alive. A task's keys are gone from the
service with its record; from Redis' append-only file, where deleted records stay readable until a rewrite, they are
gone with their wrapping key: see `Keyring.delay_s`.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any

from discovery.settings import Settings
from ec262.errors import SetupError
from ec262.protocol.keys import OlderWrapping, Wrapping

BLAKE2B = "blake2b:"
"""How a wrapping key begins in the file whose tasks' keys are made by BLAKE2b; one that is bare is an older one."""


class Keyring:
    """Keys of one discovery service; several processes may share the file.

    Raises:
        SetupError: the file cannot be read or written, or is damaged.
    """

    def __init__(self, data_dir: Path, settings: Settings) -> None:
        self._path = data_dir / "keyring.json"
        self._lock_path = data_dir / "keyring.lock"
        self._rotation_s = settings.wrapping_rotation_s
        self._keep_s = (
            settings.max_task_life_s + settings.max_timeout_s + settings.late_grace_s + settings.settled_grace_s
        )
        self._wrapping: dict[int, Wrapping] = {}
        self.master = b""
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._update(None)
        except OSError as reason:
            raise SetupError(f"the keyring {self._path} cannot be used: {reason}") from reason

    @property
    def delay_s(self) -> float:
        """How long after a task was leased nothing can bring its keys back, whatever was copied from Redis."""
        return self._keep_s + 2 * self._rotation_s

    def current(self, now_s: float) -> tuple[int, Wrapping]:
        """Number and key for tasks made now."""
        number = int(now_s // self._rotation_s)
        key = self._wrapping.get(number)
        if key is None:
            self._update(number)
            key = self._wrapping[number]
        return number, key

    def wrapping(self, number: int) -> Wrapping | None:
        """Wrapping key `number`, ready to make keys with; None once it is destroyed."""
        key = self._wrapping.get(number)
        if key is None:
            self._update(None)  # another process may have drawn it
            key = self._wrapping.get(number)
        return key

    def _update(self, wanted: int | None) -> None:
        with open(self._lock_path, "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stored = self._read()
            changed = not stored
            master = stored.get("master") or secrets.token_hex(32)
            wrapping = {int(number): text for number, text in stored.get("wrapping", {}).items()}
            if wanted is not None and wanted not in wrapping:
                wrapping[wanted] = BLAKE2B + secrets.token_hex(32)
                oldest = wanted - int(self._keep_s // self._rotation_s) - 1
                wrapping = {number: text for number, text in wrapping.items() if number >= oldest}
                changed = True
            if changed:
                self._write({"master": master, "wrapping": {str(n): text for n, text in wrapping.items()}})
            # While the lock is held: what another thread read before must not take the place of what was drawn since.
            self.master = bytes.fromhex(master)
            self._wrapping = {number: _made_ready(text) for number, text in wrapping.items()}

    def _read(self) -> dict[str, Any]:
        try:
            text = self._path.read_text(encoding="ascii")
        except FileNotFoundError:
            return {}
        try:
            stored = json.loads(text)
            bytes.fromhex(stored["master"])
            return dict(stored)
        except (ValueError, KeyError, TypeError):
            raise SetupError(f"the keyring {self._path} is damaged: restore it from a backup") from None

    def _write(self, stored: dict[str, object]) -> None:
        fresh = self._path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(stored, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)


def _made_ready(text: str) -> Wrapping:
    if text.startswith(BLAKE2B):
        return Wrapping(bytes.fromhex(text.removeprefix(BLAKE2B)))
    return OlderWrapping(bytes.fromhex(text))
