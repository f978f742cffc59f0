"""Output of jobs as files: one a reduce partition, which appear under their names when all of them are there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ec262.errors import EC262Error, ProgramError, SetupError
from ec262.storage.collect import collect, read_pairs
from ec262.storage.formats import FORMATS, Batch, Kinds, encoded, encoder, in_batches
from ec262.storage.manifest import Manifest, Output, Part, part_names

__all__ = ["FORMATS", "OutputFiles", "collect", "encoder", "read_pairs"]


class OutputFiles:
    """Writes a job's results to ``url_00``, ``url_01``, ... and ``url_manifest.json``.

    Everything is written under temporary names in the same directory. `finish` gives the files their names, one after
    the other, and writes the manifest last: where it stands, the output is complete.

    Args:
        url: what the names begin with: a path or a URL.
        format: one of `FORMATS`, see `ec262.storage.formats`.
        storage_options: for the file system.
        overwrite: what is there is replaced, and no error.

    Raises:
        ProgramError: no such format, or not the beginning of a file's name.
        SetupError: no such protocol.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        format: str = "text",
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        if format not in FORMATS:
            raise ProgramError(f"output format {format!r:.80}: has to be one of {', '.join(FORMATS)}")
        self._output = Output(os.fspath(url), storage_options)
        self._place = self._output.place
        self._format = format
        self._overwrite = overwrite
        self._token = secrets.token_hex(4)
        self._names: list[str] = []
        self._parts: dict[int, Part] = {}
        self._keys, self._values = Kinds(), Kinds()
        self._written: set[str] = set()
        """Paths of temporary files."""

    def check(self) -> None:
        """To be called before a job starts: that its output can be written in the end.

        Raises:
            ProgramError: there is output under these names already, and `overwrite` is not set.
            SetupError: no permission, no space, nothing that can be written to.
        """
        output = self._output
        if not self._overwrite:
            ours = re.compile(re.escape(output.base) + r"_(\d+|manifest\.json)")
            there = sorted(name for name in self._place.names(output.directory) if ours.fullmatch(name))
            if there:
                raise ProgramError(
                    f"{output.address(there[0])} is there already: remove it, choose another output, or overwrite"
                )
        path = self._temporary("check")
        try:
            with self._place.guarded(output.path(output.base)), self._place.create(path) as file:
                file.write(b"ec262\n")
        finally:
            with contextlib.suppress(EC262Error):
                self._place.remove(path)

    def begin(self, partitions: int) -> None:
        """Says how many files there will be; to be called before `write`.

        Raises:
            ProgramError: not a number of partitions.
        """
        if partitions < 1:
            raise ProgramError("there has to be at least one partition")
        self._names = part_names(self._output.base, partitions)

    def write(self, index: int, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Writes a partition, as its pairs come. As `write_batches`."""
        self.write_batches(index, in_batches(pairs))

    def write_batches(self, index: int, batches: Iterable[Batch]) -> None:
        """Writes a partition, as its keys and values come. Once more for the same: in place of what was written.

        Raises:
            ProgramError: a value that the format cannot hold.
            SetupError: it cannot be written (no space, say); nothing of the partition is left then.
        """
        name = self._names[index]
        path, shown_path = self._temporary(name), self._output.path(name)
        keys, values = Kinds(), Kinds()
        digest = hashlib.sha256()
        length = records = 0
        self._discard(path)
        self._parts.pop(index, None)
        self._written.add(path)
        try:
            pieces = encoded(batches, self._format, keys, values, where=f"output {self._output.address(name)}")
            file = self._place.create(path)
            try:
                for count, data in pieces:
                    with self._place.guarded(shown_path):
                        file.write(data)
                    digest.update(data)
                    length += len(data)
                    records += count
            except BaseException:
                with contextlib.suppress(Exception):
                    file.close()
                raise
            with self._place.guarded(shown_path):
                file.close()
        except BaseException:
            self._discard(path)
            raise
        self._parts[index] = Part(name, length, digest.hexdigest(), records)
        self._keys.merge(keys)
        self._values.merge(values)

    def finish(self, *, ordered: bool = False, facts: Mapping[str, Any] | None = None) -> list[str]:
        """Gives the files their names. A partition that was not written becomes an empty file.

        Args:
            ordered: every key of a file stands before those of the next (the range partitioner's doing).
            facts: what else the manifest is to say; plain data.

        Warns:
            UserWarning: the files cannot be collected, as keys of different kinds are written in format "text".

        Returns:
            The files' paths or URLs, without credentials.

        Raises:
            ProgramError: others wrote output there meanwhile.
            SetupError: the file system refuses; what has its name already keeps it, but there is no manifest.
        """
        output, place = self._output, self._place
        for index in range(len(self._names)):
            if index not in self._parts:
                self.write(index, ())
        parts = tuple(self._parts[index] for index in range(len(self._names)))
        manifest = Manifest(self._format, ordered, self._keys.name(), self._values.name(), parts, dict(facts or {}))
        mixed = manifest.keys == "mixed" and self._format == "text" and not ordered
        if mixed and sum(part.bytes > 0 for part in parts) > 1:
            warnings.warn(
                f"{output.name}: some keys are text and others are not, which format 'text' does not tell apart: these "
                "files cannot be put together again (collect); with output_format='json' they could",
                stacklevel=2,
            )
        data = manifest.encode()
        there = output.path(output.manifest_name)
        if place.exists(there):
            if not self._overwrite:
                raise ProgramError(f"{output.address(output.manifest_name)} came to be there meanwhile")
            self._remove_old(there)
        for part in parts:
            path = self._temporary(part.name)
            place.publish(path, output.path(part.name))
            self._written.discard(path)
        place.settle(output.directory)
        path = self._temporary("manifest")
        self._written.add(path)
        with place.guarded(there), place.create(path) as file:
            file.write(data)
        place.publish(path, there)
        self._written.discard(path)
        place.settle(output.directory)
        return [output.address(part.name) for part in parts]

    def abort(self) -> None:
        """Removes what was written, as far as it has no name yet. Never raises."""
        for path in list(self._written):
            self._discard(path)

    def _remove_old(self, manifest: str) -> None:
        """Takes the output away that is to be overwritten: its files may be more than ours."""
        with contextlib.suppress(ProgramError, SetupError):
            old = self._output.read_manifest()
            self._place.remove(manifest)
            for part in old.parts:
                if part.name not in self._names and part.name.startswith(self._output.base + "_"):
                    self._place.remove(self._output.path(part.name))
        self._place.remove(manifest)

    def _temporary(self, name: str) -> str:
        return self._output.path(f".{name}.{self._token}.part")

    def _discard(self, path: str) -> None:
        if path in self._written:
            with contextlib.suppress(EC262Error):
                self._place.remove(path)
                self._written.discard(path)
