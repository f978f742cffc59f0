"""Checkpoint: a directory from which a job goes on after its foreman was killed.

``job.json`` says what the job is and how far it came; results lie in durable spools (`ec262.backends.spool`), what was
under way on the network in a journal (`ec262.foreman.journal`). One process at a time may use it: a lock says so, and
ends with the process however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ec262.errors import ProgramError, SetupError
from ec262.protocol.canonical import decode_value, encode_value

_FORMAT = 1


class Checkpoint:
    """A job's checkpoint.

    Args:
        directory: made if it is not there; only its owner may read it, it holds keys.

    Raises:
        SetupError: it cannot be made, another process uses it, or it holds something else.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._file = self.directory / "job.json"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as reason:
            raise SetupError(f"the checkpoint {self.directory} cannot be used: {reason.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise SetupError(f"another process uses the checkpoint {self.directory}: is the job running?") from None
        self._facts: dict[str, Any] = {"format": _FORMAT, "identity": None, "stages": {}}
        try:
            self._facts = self._read() or self._facts
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, Any] | None:
        try:
            facts = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            others = [path.name for path in self.directory.iterdir() if path.name not in ("lock", "job.json.new")]
            if others:
                raise SetupError(
                    f"{self.directory} is no checkpoint and not empty (it has {others[0]!r:.80}): name a new directory"
                ) from None
            return None
        except (OSError, ValueError) as reason:
            raise SetupError(f"the checkpoint {self._file} cannot be read: {reason}; delete it to start anew") from None
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise SetupError(f"{self._file} was written by another version of EC262: finish the job with that one")
        return facts

    def open_job(self, identity: dict[str, Any]) -> bool:
        """Says what the job is.

        Returns:
            Whether it goes on, rather than begins.

        Raises:
            ProgramError: the checkpoint is another job's.
        """
        known = self._facts["identity"]
        identity = json.loads(json.dumps(identity))
        if known is None:
            self._facts["identity"] = identity
            self._write()
            return False
        for name in sorted({*known, *identity}):
            if known.get(name) != identity.get(name):
                raise ProgramError(
                    f"the checkpoint {self.directory} is another job's: its {name} was different. Give the same call, "
                    "or another directory"
                )
        return True

    def stage(self, number: int) -> dict[str, Any] | None:
        """What was planned for a stage: ``partitions`` and ``bounds``; whether it is ``complete``, and if so the digest
        of its ``inputs``, its ``counts``, and the tasks that ``failed`` (phase, number, label, why)."""
        facts = self._facts["stages"].get(str(number))
        if facts is None:
            return None
        return {**facts, "bounds": decode_value(facts["bounds"].encode())}

    def plan_stage(self, number: int, *, partitions: int, bounds: list[Any]) -> None:
        """Notes a stage's plan: it has to stay the same, whatever a sample would say next time."""
        text = encode_value(bounds).decode()
        self._facts["stages"][str(number)] = {"partitions": partitions, "bounds": text, "complete": False}
        self._write()

    def complete_stage(
        self, number: int, *, inputs: str, counts: dict[str, int], failed: list[tuple[str, int, str, str]]
    ) -> None:
        """Notes that a stage's results are all there; removes what only led to them."""
        told = {"complete": True, "inputs": inputs, "counts": counts, "failed": failed}
        self._facts["stages"][str(number)].update(told)
        self._write()
        for name in (f"map-{number}.spool", f"journal-{number}", f"reduce-{number - 1}.spool"):
            (self.directory / name).unlink(missing_ok=True)

    def _write(self) -> None:
        fresh = self._file.with_name("job.json.new")
        try:
            with open(fresh, "w", encoding="ascii") as file:
                json.dump(self._facts, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._file)
        except OSError as reason:
            raise SetupError(f"the checkpoint {self.directory} cannot be written: {reason.strerror}") from None

    def close(self) -> None:
        """Lets go of the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
