"""The manifest beside a job's output: what the files are. Where it stands, the output is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ec262.errors import Malformed, ProgramError, SetupError
from ec262.storage.address import scheme_of, shown
from ec262.storage.formats import FORMATS
from ec262.storage.place import Place, place_of

VERSION = 1
_LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One output file.

    Attributes:
        name: without directory.
        bytes: its size.
        sha256: of its content, in hexadecimal.
        records: pairs in it.
    """

    name: str
    bytes: int
    sha256: str
    records: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of an output.

    Attributes:
        format: one of `FORMATS`.
        ordered: every key of a file stands before those of the next: the files one after the other are sorted.
        keys, values: their kinds, see `ec262.storage.formats`.
        parts: the files, in order of partitions.
        facts: what else the job wanted to be known, plain data.
    """

    format: str
    ordered: bool
    keys: str
    values: str
    parts: tuple[Part, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As the file's bytes."""
        members = {"version": VERSION, "partitions": len(self.parts), **asdict(self)}
        return (json.dumps(members, indent=1) + "\n").encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """From the file's bytes.

        Raises:
            Malformed: not a manifest, or one of a later version.
        """
        try:
            members = json.loads(data)
            if members.pop("version") != VERSION:
                raise Malformed("a manifest of another version")
            partitions = members.pop("partitions")
            parts = tuple(Part(**each) for each in members.pop("parts"))
            made = cls(**members, parts=parts)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Malformed("not a manifest") from None
        if made.format not in FORMATS or len(parts) != partitions or not all(map(_is_sound, parts)):
            raise Malformed("not a manifest")
        return made


def _is_sound(part: Part) -> bool:
    texts = type(part.name) is str and type(part.sha256) is str
    return texts and "/" not in part.name and type(part.bytes) is int and part.bytes >= 0


class Output:
    """An output's files: where they are and what they are called.

    Args:
        url: what their names begin with.
        options: for the file system.

    Raises:
        ProgramError: not the beginning of a file's name.
        SetupError: no such protocol.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        if not url or "\0" in url or url.endswith("/"):
            raise ProgramError(f"{shown(url)!r}: give what the names of the files begin with, such as out/part")
        self.name = shown(url)
        """The address without credentials."""
        self.url = url
        self.place: Place
        self.place, path = place_of(url, options)
        self.directory, slash, self.base = path.rpartition("/")
        self.directory = self.directory or slash
        if not self.base:
            raise ProgramError(f"{self.name}: give what the names of the files begin with, such as out/part")

    def path(self, name: str) -> str:
        """The path of a file of that name in the output's directory."""
        return f"{self.directory.rstrip('/')}/{name}" if self.directory else name

    def address(self, name: str) -> str:
        """The file's path or URL, without credentials."""
        if not scheme_of(self.url):
            return self.path(name)
        return self.name.rpartition("/")[0] + "/" + name

    @property
    def manifest_name(self) -> str:
        """The manifest's."""
        return f"{self.base}_manifest.json"

    def read_manifest(self) -> Manifest:
        """The manifest.

        Raises:
            ProgramError: there is none: the output is not there or not complete.
            SetupError: it cannot be read.
        """
        path = self.path(self.manifest_name)
        if not self.place.exists(path):
            raise ProgramError(f"{self.name}: no {self.manifest_name}: no job has written (all of) its output there")
        try:
            with self.place.guarded(path), self.place.open(path) as file:
                return Manifest.decode(read_all(file, _LARGEST))
        except Malformed as reason:
            raise ProgramError(f"{self.address(self.manifest_name)}: {reason}") from None

    def check_sizes(self, manifest: Manifest) -> None:
        """Raises for a file that is missing or has not the size that the manifest says.

        Raises:
            ProgramError: names the file.
        """
        for part in manifest.parts:
            try:
                size = self.place.about(self.path(part.name)).size
            except ProgramError:
                raise ProgramError(f"{self.address(part.name)}: missing, though the manifest names it") from None
            if size is not None and size != part.bytes:
                raise ProgramError(
                    f"{self.address(part.name)}: {size:,} bytes, while the manifest says {part.bytes:,}: it was changed"
                )


def read_all(file: Any, most: int) -> bytes:
    """All of a stream.

    Raises:
        SetupError: more than `most` bytes.
    """
    pieces: list[bytes] = []
    length = 0
    while piece := file.read(1 << 20):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise SetupError(f"more than {most:,} bytes")
    return b"".join(pieces)


def part_names(base: str, partitions: int) -> list[str]:
    """Names of the output files: ``base_00``, ``base_01``, ..., as wide as they have to be."""
    width = max(2, len(str(partitions - 1)))
    return [f"{base}_{index:0{width}}" for index in range(partitions)]
