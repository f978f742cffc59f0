"""Splits for tests of backends: pieces of a file that other processes can load, and one that they cannot."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ec262.mapreduce.records import Reader
from ec262.protocol.canonical import encode_value


@dataclass(frozen=True, slots=True)
class FileSplit:
    """A range of a file, at the borders of lines."""

    path: str
    start: int
    end: int
    anywhere: ClassVar[bool] = True

    def spec(self) -> dict[str, Any]:
        """See `Split`."""
        return {"format": "records", "name": self.path, "reader": Reader().to_wire()}

    def load(self) -> list[bytes]:
        """See `Split`."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return [file.read(self.end - self.start), encode_value(self.start)]

    def label(self) -> str:
        """See `Split`."""
        return f"{Path(self.path).name}, from byte {self.start}"

    def tag(self) -> bytes:
        """See `Split`."""
        return hashlib.sha256(repr(self).encode()).digest()[:16]

    def is_empty(self) -> bool:
        """See `Split`."""
        return self.start == self.end


@dataclass(frozen=True, slots=True)
class HomeSplit(FileSplit):
    """Loads in the process that made it and in no other, as a file that only this machine sees."""

    home: int = field(default_factory=os.getpid)

    def load(self) -> list[bytes]:
        """See `Split`."""
        if os.getpid() != self.home:
            raise FileNotFoundError(self.path)
        return FileSplit.load(self)


def split_file(path: Path, size: int, kind: type[FileSplit] = FileSplit) -> Iterator[FileSplit]:
    """A file of lines in pieces of about `size` bytes."""
    start = end = 0
    for line in path.read_bytes().splitlines(keepends=True):
        end += len(line)
        if end - start >= size:
            yield kind(str(path), start, end)
            start = end
    yield kind(str(path), start, end)
